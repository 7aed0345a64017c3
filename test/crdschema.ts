/** Whether a CustomResourceDefinition takes, and keeps, everything that another one did. */
import type { Json } from "./harness.ts";

/** Limits that may be lifted, not lowered; and the other way round. */
const most = ["maximum", "maxItems", "maxLength", "maxProperties"];
const least = ["minimum", "minItems", "minLength", "minProperties"];
/** What is told to people. */
const prose = ["description", "title", "example", "externalDocs"];
/** Once they are in effect, they may be dropped, but neither added nor changed. */
const restrictions = [
	...["pattern", "format", "multipleOf", "uniqueItems"],
	...["exclusiveMinimum", "exclusiveMaximum"],
];
const RULES = "x-kubernetes-validations";
const nested = ["properties", "items", "additionalProperties"];

/**
 * What an object that the former CustomResourceDefinition took would be refused, pruned or understood otherwise for.
 * @returns sentences that begin with the version and the field; none when it is compatible
 */
export function incompatibilities(before: Json, after: Json): string[] {
	const frame = ["group", "scope", "names"].flatMap((key) =>
		contains(before.spec[key], after.spec[key]) ? [] : [`${key} has changed`],
	);
	const versions = before.spec.versions.flatMap((version: Json): string[] => {
		const { name, served, storage, subresources = {} } = version;
		const now = after.spec.versions.find((one: Json) => one.name === name);
		if (!now) return [`${name} is gone`];
		const schema = (one: Json) => one.schema?.openAPIV3Schema ?? {};
		return [
			...(served && !now.served ? [`${name} is not served any more`] : []),
			...(storage && !now.storage ? [`${name} is not stored any more`] : []),
			...Object.keys(subresources)
				.filter((one) => now.subresources?.[one] === undefined)
				.map((one) => `${name}: the subresource ${one} is gone`),
			...narrowings(schema(version), schema(now), name),
		];
	});
	return [...frame, ...versions];
}

/**
 * What is narrower in a structural schema.
 * https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
 * @param path of the field, for the sentences
 */
export function narrowings(before: Json, after: Json, path = ""): string[] {
	const found: string[] = [];
	const says = (what: string) => found.push(`${path}: ${what}`);
	const keys = new Set([...Object.keys(before), ...Object.keys(after)]);
	for (const key of keys) {
		const [old, now] = [before[key], after[key]];
		if (prose.includes(key) || nested.includes(key)) continue;
		if (Bun.deepEquals(old, now)) continue;
		if (key === "required") {
			const more = (now ?? []).filter((one: string) => !old?.includes(one));
			for (const one of more) says(`${one} is required`);
		} else if (key === "enum") {
			const fewer = (old ?? []).filter((one: Json) => !now?.includes(one));
			if (old === undefined) says(`enum ${now.join(", ")} is new`);
			else if (now !== undefined)
				for (const one of fewer) says(`enum has no ${one} any more`);
		} else if (key === RULES) {
			const rules = (old ?? []).map(({ rule }: Json) => rule);
			for (const { rule } of now ?? [])
				if (!rules.includes(rule)) says(`the rule ${rule} is new`);
		} else if (most.includes(key)) {
			if (now !== undefined && !(old <= now))
				says(`${key} is ${now}, was ${old ?? "none"}`);
		} else if (least.includes(key)) {
			if (now !== undefined && !(old >= now))
				says(`${key} is ${now}, was ${old ?? "none"}`);
		} else if (restrictions.includes(key)) {
			if (now !== undefined) says(`${key} is ${now}, was ${old ?? "none"}`);
		} else if (key === "nullable" || key === PRESERVE) {
			if (!now) says(`${key} is gone`);
		}
		// Types, defaults, how lists are merged, and whatever is not known here.
		else says(`${key} is ${show(now)}, was ${show(old)}`);
	}
	for (const [name, old] of Object.entries<Json>(before.properties ?? {})) {
		const now = after.properties?.[name];
		const field = path === "" ? name : `${path}.${name}`;
		if (now) found.push(...narrowings(old, now, field));
		else if (!after[PRESERVE]) found.push(`${field}: is gone`);
	}
	for (const key of ["items", "additionalProperties"]) {
		const [old, now] = [before[key], after[key]];
		if (typeof old === "object" && typeof now === "object")
			found.push(...narrowings(old, now, `${path}[]`));
		else if (old !== now) says(`${key} is ${show(now)}, was ${show(old)}`);
	}
	return found;
}

const PRESERVE = "x-kubernetes-preserve-unknown-fields";
const show = (value: Json) => JSON.stringify(value) ?? "none";

/** Whether everything of the one is in the other, which may have more. */
function contains(before: Json, after: Json): boolean {
	if (Array.isArray(before))
		return before.every((one) => Object(after).includes?.(one));
	if (typeof before === "object" && before !== null)
		return Object.entries(before).every(([key, value]) =>
			contains(value, Object(after)[key]),
		);
	return before === after;
}
