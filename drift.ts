/** Whether a live object still is what was asked for, and whose its fields are. Pure. */
import type { ManagedFieldsEntry } from "./kube.ts";
import { type Data, FIELD_MANAGER } from "./manifests.ts";

/** Whether every field of the desired object has its value in the live one. What others added is not looked at. */
export function isSubset(desired: unknown, live: unknown): boolean {
	if (Array.isArray(desired))
		return (
			Array.isArray(live) &&
			desired.length === live.length &&
			desired.every((item, index) => isSubset(item, live[index]))
		);
	if (typeof desired === "object" && desired !== null)
		return (
			typeof live === "object" &&
			live !== null &&
			Object.entries(desired).every(([key, value]) =>
				isSubset(value, (live as Record<string, unknown>)[key]),
			)
		);
	return desired === live;
}

/**
 * Whether the live object has something that is not to be there any more: a key in its data, or a field that we have
 * applied and do not ask for now. An apply removes both.
 */
export const hasLeftovers = (desired: Data, live: Data): boolean =>
	(desired.data !== undefined &&
		Object.keys(live.data ?? {}).some(
			(key) => !(key in (desired.data ?? {})),
		)) ||
	(live.metadata.managedFields ?? []).some(
		({ manager, operation, subresource, fieldsV1 }) =>
			manager === FIELD_MANAGER &&
			operation === "Apply" &&
			!subresource &&
			!covers(desired, (fieldsV1 ?? {}) as Fields),
	);

/** Whether each field of a set is there. */
const covers = (value: unknown, fields: Fields): boolean =>
	Object.entries(fields).every(([key, within]) => {
		if (key === ".") return true;
		const part = partOf(value, key);
		return part !== undefined && covers(part, within);
	});

/**
 * What a path element of fieldsV1 names: `f:` a field, `k:` the item of a list with these keys, `v:` an item itself.
 * https://github.com/kubernetes-sigs/structured-merge-diff/blob/master/fieldpath/serialize-pe.go
 */
function partOf(value: unknown, element: string): unknown {
	const name = element.slice(2);
	if (element.startsWith("f:"))
		return (value as Record<string, unknown> | undefined)?.[name];
	if (!Array.isArray(value)) return undefined;
	const wanted = JSON.parse(name);
	if (element.startsWith("v:")) return value.find((item) => item === wanted);
	// A key that an item does not say has its default, as a port's protocol has.
	return value.find((item) => isSubset(wanted, { ...wanted, ...item }));
}

/** Whether a managedFields entry is about a field: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/object-meta/ (fieldsV1) */
export const hasField = (
	fieldsV1: object | undefined,
	...path: string[]
): boolean =>
	path.reduce<Fields | undefined>(
		(within, key) => within?.[`f:${key}`],
		fieldsV1 as Fields | undefined,
	) !== undefined;

type Fields = { [field: string]: Fields };

/**
 * The field sets of others in an owned object's spec or data, to be taken over: an apply alone would leave, say, a
 * container or a key that somebody added. Metadata is free for all, and so are the pod template's annotations:
 * `kubectl rollout restart` writes one.
 * https://kubernetes.io/docs/reference/using-api/server-side-apply/#field-management
 * @param created whether also what we have created, not applied: an apply would not remove any of it
 * @returns undefined when nothing has to be taken over, else the managedFields to write before the next apply
 */
export function takeOver(
	managedFields: ManagedFieldsEntry[] = [],
	created = false,
): ManagedFieldsEntry[] | undefined {
	const foreign = managedFields.filter(
		(entry) =>
			(entry.manager !== FIELD_MANAGER ||
				(created && entry.operation === "Update")) &&
			!entry.subresource &&
			touchesContent(entry.fieldsV1),
	);
	if (foreign.length === 0) return undefined;
	const ours = managedFields.find(
		(entry) =>
			entry.manager === FIELD_MANAGER &&
			entry.operation === "Apply" &&
			!entry.subresource,
	);
	const base = ours ?? (foreign[0] as ManagedFieldsEntry);
	const [taken, left] = [foreign.map(contentOf), foreign.flatMap(metadataOf)];
	// A Secret's type cannot be changed: it is nobody's, or the next apply would.
	const { "f:type": _, ...merged } = [
		...taken,
		...(ours ? [fieldsOf(ours)] : []),
	].reduce(mergeFields);
	return [
		...managedFields.filter(
			(entry) => !foreign.includes(entry) && entry !== ours,
		),
		...left,
		{
			...base,
			manager: FIELD_MANAGER,
			operation: "Apply",
			fieldsV1: merged,
		},
	];
}

const fieldsOf = (entry: ManagedFieldsEntry) =>
	(entry.fieldsV1 ?? {}) as Fields;

/** All fields of what we have created, and those of others but for the object's metadata. */
function contentOf(entry: ManagedFieldsEntry): Fields {
	const { "f:metadata": metadata, ...content } = fieldsOf(entry);
	return entry.manager === FIELD_MANAGER ? fieldsOf(entry) : content;
}

/** What others keep of an entry: somebody may wait for a finalizer. */
function metadataOf(entry: ManagedFieldsEntry): ManagedFieldsEntry[] {
	const { "f:metadata": metadata } = fieldsOf(entry);
	return entry.manager === FIELD_MANAGER || metadata === undefined
		? []
		: [{ ...entry, fieldsV1: { "f:metadata": metadata } }];
}

function touchesContent(fieldsV1: object | undefined): boolean {
	const fields = (fieldsV1 ?? {}) as Fields;
	if (fields["f:data"] || fields["f:stringData"] || fields["f:binaryData"])
		return true;
	const spec = structuredClone(fields["f:spec"]);
	if (!spec) return false;
	const template = spec["f:template"];
	if (template) {
		delete template["f:metadata"]?.["f:annotations"];
		if (isEmpty(template["f:metadata"])) delete template["f:metadata"];
		if (isEmpty(template)) delete spec["f:template"];
	}
	return !isEmpty(spec);
}

/** `.` stands for the field itself. */
const isEmpty = (fields: Fields | undefined) =>
	Object.keys(fields ?? {}).every((key) => key === ".");

const mergeFields = (a: Fields, b: Fields): Fields => {
	const merged: Fields = { ...a };
	for (const [key, value] of Object.entries(b))
		merged[key] = merged[key] ? mergeFields(merged[key], value) : value;
	return merged;
};
