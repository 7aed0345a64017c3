/**
 * Whoever upgrades keeps what is stored, and what is written in Git. test/golden/crd.yaml is the CustomResourceDefinition
 * of the last release, made anew with the next one and at no other time: `RELEASE=1 bun test test/crd.test.ts`.
 */
import { describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { incompatibilities, narrowings } from "./crdschema.ts";
import type { Json } from "./harness.ts";
import { manifest, one } from "./installation.ts";

const released = join(import.meta.dir, "golden/crd.yaml");
const crd = one(manifest(), "CustomResourceDefinition");

test("an EtcdStorage that the last release took is taken, and means what it meant", () => {
	if (process.env.RELEASE)
		writeFileSync(released, `${Bun.YAML.stringify(crd, null, 2)}\n`);
	const before = Bun.YAML.parse(readFileSync(released, "utf8"));
	expect(incompatibilities(before, crd)).toEqual([]);
});

test("an EtcdStorage of 2018 has all of its fields, and needs no more", () => {
	const { spec } = crd.spec.versions.find(
		({ name }: Json) => name === "v1alpha1",
	).schema.openAPIV3Schema.properties;
	const target = {
		type: "object",
		required: ["name", "namespace"],
		properties: { name: { type: "string" }, namespace: { type: "string" } },
	};
	const validity = { type: "string" };
	const durations = {
		signingCertificateValidity: validity,
		servingCertificateValidity: validity,
		clientCertificateValidity: validity,
	};
	const of2018 = {
		type: "object",
		required: Object.keys(durations),
		properties: {
			caCertConfigMap: { type: "array", items: target },
			clientCertSecret: { type: "array", items: target },
			...durations,
		},
	};
	// Anything could be written then. That names are names and durations are durations is checked since.
	const sinceThen =
		/: (maxItems|maxLength|pattern|the rule|x-kubernetes-list-(type|map-keys)) /;
	expect(
		narrowings(of2018, spec).filter((sentence) => !sinceThen.test(sentence)),
	).toEqual([]);
});

describe("it is seen as incompatible that", () => {
	const before = {
		type: "object",
		required: ["name"],
		properties: {
			name: { type: "string", pattern: "^[a-z]+$", maxLength: 63 },
			kind: { type: "string", enum: ["A", "B"] },
			count: { type: "integer", minimum: 1, maximum: 9, default: 3 },
			list: {
				type: "array",
				maxItems: 8,
				"x-kubernetes-list-type": "map",
				"x-kubernetes-list-map-keys": ["id"],
				items: {
					type: "object",
					properties: { id: { type: "string" }, at: { type: "string" } },
				},
			},
			labels: { type: "object", additionalProperties: { type: "string" } },
			any: {
				type: "object",
				nullable: true,
				"x-kubernetes-preserve-unknown-fields": true,
			},
			free: {
				type: "string",
				"x-kubernetes-validations": [{ rule: "self != ''", message: "m" }],
			},
		},
	};
	/** The schema with one thing changed. */
	const changed = (change: (properties: Json, schema: Json) => void) => {
		const after: Json = structuredClone(before);
		change(after.properties, after);
		return narrowings(before, after);
	};

	test.each<
		[string, (properties: Json, schema: Json) => void, ...sentences: string[]]
	>([
		["a field is gone", (p) => delete p.kind, "kind: is gone"],
		[
			"a field within a list is gone",
			(p) => delete p.list.items.properties.at,
			"list[].at: is gone",
		],
		[
			"a type is another",
			(p) => (p.count.type = "number"),
			'count: type is "number", was "integer"',
		],
		[
			"the type of a map's values is another",
			(p) => (p.labels.additionalProperties.type = "integer"),
			'labels[]: type is "integer", was "string"',
		],
		[
			"a value may not be chosen any more",
			(p) => p.kind.enum.shift(),
			"kind: enum has no A any more",
		],
		[
			"only some values may be chosen",
			(p) => (p.free.enum = ["x", "y"]),
			"free: enum x, y is new",
		],
		[
			"a pattern is another",
			(p) => (p.name.pattern = "^[a-z0-9]+$"),
			"name: pattern is ^[a-z0-9]+$, was ^[a-z]+$",
		],
		[
			"there is a pattern",
			(p) => (p.kind.pattern = "A"),
			"kind: pattern is A, was none",
		],
		[
			"a text must be shorter",
			(p) => (p.name.maxLength = 62),
			"name: maxLength is 62, was 63",
		],
		[
			"a text has a limit",
			(p) => (p.free.maxLength = 10_000),
			"free: maxLength is 10000, was none",
		],
		[
			"a list must be shorter",
			(p) => (p.list.maxItems = 7),
			"list: maxItems is 7, was 8",
		],
		[
			"a list must not be empty",
			(p) => (p.list.minItems = 1),
			"list: minItems is 1, was none",
		],
		[
			"a number must be larger",
			(p) => (p.count.minimum = 2),
			"count: minimum is 2, was 1",
		],
		[
			"a number must be smaller",
			(p) => (p.count.maximum = 8),
			"count: maximum is 8, was 9",
		],
		[
			"a number means another where it is absent",
			(p) => (p.count.default = 2),
			"count: default is 2, was 3",
		],
		[
			"there is no default any more",
			(p) => delete p.count.default,
			"count: default is none, was 3",
		],
		[
			"a field is required",
			(_, schema) => schema.required.push("kind"),
			": kind is required",
		],
		[
			"a field of a list's items is required",
			(p) => (p.list.items.required = ["at"]),
			"list[]: at is required",
		],
		[
			"there is one more rule",
			(p) => p.free["x-kubernetes-validations"].push({ rule: "self != 'a'" }),
			"free: the rule self != 'a' is new",
		],
		[
			"there is a rule for all",
			(_, schema) =>
				(schema["x-kubernetes-validations"] = [{ rule: "has(self.kind)" }]),
			": the rule has(self.kind) is new",
		],
		[
			"a list is merged by other keys",
			(p) => (p.list["x-kubernetes-list-map-keys"] = ["at"]),
			'list: x-kubernetes-list-map-keys is ["at"], was ["id"]',
		],
		[
			"a list is replaced as a whole",
			(p) => {
				p.list["x-kubernetes-list-type"] = "atomic";
				delete p.list["x-kubernetes-list-map-keys"];
			},
			'list: x-kubernetes-list-type is "atomic", was "map"',
			'list: x-kubernetes-list-map-keys is none, was ["id"]',
		],
		[
			"null is nothing any more",
			(p) => delete p.any.nullable,
			"any: nullable is gone",
		],
		[
			"unknown fields are pruned",
			(p) => delete p.any["x-kubernetes-preserve-unknown-fields"],
			"any: x-kubernetes-preserve-unknown-fields is gone",
		],
		[
			"a map has no further keys",
			(p) => delete p.labels.additionalProperties,
			'labels: additionalProperties is none, was {"type":"string"}',
		],
		[
			"something is said that is not known here",
			(p) => (p.free.not = { pattern: "x" }),
			'free: not is {"pattern":"x"}, was none',
		],
	])("%s", (_, change, ...sentences) => {
		expect(changed(change)).toEqual(sentences);
	});

	test.each<[string, (definition: Json) => void, string]>([
		[
			"a version is gone",
			({ spec }) => (spec.versions[0].name = "v1"),
			"v1alpha1 is gone",
		],
		[
			"a version is not served",
			({ spec }) => (spec.versions[0].served = false),
			"v1alpha1 is not served any more",
		],
		[
			"another version is stored",
			({ spec }) => (spec.versions[0].storage = false),
			"v1alpha1 is not stored any more",
		],
		[
			"the status can be written by anybody",
			({ spec }) => delete spec.versions[0].subresources,
			"v1alpha1: the subresource status is gone",
		],
		[
			"the kind has another name",
			({ spec }) => (spec.names.kind = "Storage"),
			"names has changed",
		],
		[
			"a short name is gone",
			({ spec }) => (spec.names.shortNames = []),
			"names has changed",
		],
		[
			"objects lie in namespaces",
			({ spec }) => (spec.scope = "Namespaced"),
			"scope has changed",
		],
		[
			"a field of the status is gone",
			({ spec }) =>
				delete spec.versions[0].schema.openAPIV3Schema.properties.status
					.properties.endpoint,
			"v1alpha1.status.endpoint: is gone",
		],
	])("%s", (_, change, sentence) => {
		const after = structuredClone(crd);
		change(after);
		expect(incompatibilities(crd, after)).toEqual([sentence]);
	});
});

describe("it is compatible that", () => {
	test.each<[string, (spec: Json, version: Json) => void]>([
		["there is one more field", ({ properties }) => (properties.more = {})],
		[
			"more may be chosen",
			({ properties }) =>
				properties.consumers.items.properties.kind.enum.push("Job"),
		],
		[
			"a list may be longer",
			({ properties }) => (properties.consumers.maxItems = 65),
		],
		[
			"a text has no limit any more",
			({ properties }) =>
				delete properties.signingCertificateValidity.maxLength,
		],
		[
			"a rule is gone",
			({ properties }) =>
				delete properties.signingCertificateValidity[
					"x-kubernetes-validations"
				],
		],
		[
			"a rule has another message",
			({ properties }) =>
				(properties.signingCertificateValidity[
					"x-kubernetes-validations"
				][0].message = "another"),
		],
		["a field is not required any more", (spec) => spec.required.pop()],
		["a description is another", (spec) => (spec.description = "another")],
		[
			"a column is printed",
			(_, version) => version.additionalPrinterColumns.push({}),
		],
	])("%s", (_, change) => {
		const after = structuredClone(crd);
		const [version] = after.spec.versions;
		change(version.schema.openAPIV3Schema.properties.spec, version);
		expect(after).not.toEqual(crd);
		expect(incompatibilities(crd, after)).toEqual([]);
	});

	test("there is one more version, and one more short name", () => {
		const after = structuredClone(crd);
		after.spec.versions.push({ name: "v1", served: true, storage: false });
		after.spec.names.shortNames.push("etcds");
		expect(incompatibilities(crd, after)).toEqual([]);
	});
});
