import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
	type EtcdStorage,
	formatDuration,
	parseDuration,
	readSpec,
} from "../etcdstorage.ts";

const storage = (
	spec: Record<string, unknown> = {},
	name = "sample-apiserver",
) =>
	({
		apiVersion: "etcd.xmudrii.com/v1alpha1",
		kind: "EtcdStorage",
		metadata: { name },
		spec: {
			signingCertificateValidity: "730h",
			servingCertificateValidity: "730h",
			clientCertificateValidity: "730h",
			...spec,
		},
	}) as unknown as EtcdStorage;

describe("durations", () => {
	// What Go's time.ParseDuration makes of the same texts.
	test.each([
		["730h", 730 * 3_600_000],
		["1h30m", 5_400_000],
		["1.5h", 5_400_000],
		[".5s", 500],
		["1.s", 1000],
		["0", 0],
		["-0", 0],
		["-1.5m", -90_000],
		["+10s", 10_000],
		["1h1m1s1ms", 3_661_001],
		["2562047h", 2_562_047 * 3_600_000],
	])("%s is read as Go reads it", (text, ms) => {
		expect(Math.abs((parseDuration(text) ?? Number.NaN) - ms)).toBeLessThan(
			1e-6,
		);
	});

	test.each([
		"",
		"h",
		"1",
		"1d",
		"1 h",
		"1h ",
		"--1h",
		"1h-1m",
		".h",
		"1,5h",
		"1H",
		"2562048h",
		"99999999999999999999h",
		undefined,
		null,
		730,
		{},
	])("%p is refused as Go refuses it", (text) => {
		expect(parseDuration(text)).toBeUndefined();
	});

	test("every text of whole seconds survives being printed and read", () => {
		fc.assert(
			fc.property(fc.integer({ min: 0, max: 2 ** 33 }), (seconds) => {
				expect(parseDuration(formatDuration(seconds * 1000))).toBe(
					seconds * 1000,
				);
			}),
		);
	});
});

describe("a spec", () => {
	test("of 2018 is read with three replicas", () => {
		const spec = readSpec(
			storage({
				caCertConfigMap: [{ name: "ca", namespace: "a" }],
				clientCertSecret: [{ name: "crt", namespace: "a" }],
			}),
		);
		expect(spec).toEqual({
			name: "sample-apiserver",
			replicas: 3,
			targets: [
				{ kind: "ConfigMap", name: "ca", namespace: "a" },
				{ kind: "Secret", name: "crt", namespace: "a" },
			],
			validity: {
				signing: 2_628_000_000,
				serving: 2_628_000_000,
				client: 2_628_000_000,
			},
			consumers: [],
			requests: { client: {}, serving: {} },
			warnings: [],
		});
	});

	test.each([
		[
			"an unparsable duration",
			{ servingCertificateValidity: "soon" },
			"spec.servingCertificateValidity",
		],
		[
			"a missing duration",
			{ clientCertificateValidity: undefined },
			"spec.clientCertificateValidity",
		],
		[
			"a zero duration",
			{ signingCertificateValidity: "0s" },
			"spec.signingCertificateValidity",
		],
		[
			"a negative duration",
			{ signingCertificateValidity: "-1h" },
			"spec.signingCertificateValidity",
		],
		[
			"more than 292 years",
			{ signingCertificateValidity: "99999999h" },
			"spec.signingCertificateValidity",
		],
		["no replicas", { replicas: 0 }, "spec.replicas"],
		["half a replica", { replicas: 1.5 }, "spec.replicas"],
		[
			"a target without a namespace",
			{ clientCertSecret: [{ name: "a" }] },
			"spec.clientCertSecret[0]",
		],
		[
			"a target that climbs out of its path",
			{ caCertConfigMap: [{ name: "../x", namespace: "a" }] },
			"spec.caCertConfigMap[0]",
		],
		[
			"a target that is null",
			{ caCertConfigMap: [null] },
			"spec.caCertConfigMap[0]",
		],
		[
			"targets that are no list",
			{ caCertConfigMap: {} },
			"spec.caCertConfigMap",
		],
		[
			"one target twice",
			{
				caCertConfigMap: [
					{ name: "a", namespace: "b" },
					{ name: "a", namespace: "b" },
				],
			},
			"spec.caCertConfigMap",
		],
		["consumers that are no list", { consumers: "all" }, "spec.consumers"],
		["a consumer that is null", { consumers: [null] }, "spec.consumers[0]"],
		[
			"a consumer of another kind",
			{
				consumers: [
					{ kind: "Deployment", name: "a", namespace: "b" },
					{ kind: "Job", name: "a", namespace: "b" },
				],
			},
			"spec.consumers[1]",
		],
		[
			"a consumer without a kind",
			{ consumers: [{ name: "a", namespace: "b" }] },
			"spec.consumers[0]",
		],
		[
			"a consumer that climbs out of its path",
			{
				consumers: [{ kind: "Deployment", name: "../x", namespace: "b" }],
			},
			"spec.consumers[0]",
		],
	])("with %s is refused by the name of its field", (_, spec, field) => {
		const result = readSpec(storage(spec));
		expect("invalid" in result && result.invalid).toStartWith(field);
	});

	test("names its consumers in the order in which they are restarted", () => {
		const consumers = [
			{ kind: "StatefulSet", name: "b", namespace: "z" },
			{ kind: "Deployment", name: "a", namespace: "a" },
			{ kind: "DaemonSet", name: "a", namespace: "a" },
		];
		const more = { consumers: consumers.map((one) => ({ ...one, more: 1 })) };
		expect(readSpec(storage(more))).toMatchObject({ consumers });
	});

	test.each<[string, Record<string, string>, object, number]>([
		["none", {}, { client: {}, serving: {} }, 0],
		[
			"to replace the client CA",
			{ "etcd.xmudrii.com/rotate-client": "audit" },
			{ client: { rotate: "audit" }, serving: {} },
			0,
		],
		[
			"to replace the serving CA",
			{ "etcd.xmudrii.com/rotate-serving": "audit" },
			{ client: {}, serving: { rotate: "audit" } },
			0,
		],
		[
			"to trust the client CA no longer",
			{ "etcd.xmudrii.com/compromised-client": "laptop" },
			{ client: { compromised: "laptop" }, serving: {} },
			0,
		],
		[
			"to trust the serving CA no longer",
			{ "etcd.xmudrii.com/compromised-serving": "laptop" },
			{ client: {}, serving: { compromised: "laptop" } },
			0,
		],
		[
			"with space around the reason",
			{ "etcd.xmudrii.com/rotate-client": "  audit\n" },
			{ client: { rotate: "audit" }, serving: {} },
			0,
		],
		[
			"with a reason as long as a book",
			{ "etcd.xmudrii.com/rotate-client": "a".repeat(200_000) },
			{ client: { rotate: "a".repeat(256) }, serving: {} },
			0,
		],
		[
			"without a reason",
			{
				"etcd.xmudrii.com/rotate-client": "",
				"etcd.xmudrii.com/compromised-serving": "  ",
			},
			{ client: {}, serving: {} },
			2,
		],
		[
			"of another name",
			{ "etcd.xmudrii.com/rotate": "audit", "rotate-client": "audit" },
			{ client: {}, serving: {} },
			0,
		],
	])("with annotations that ask %s", (_, annotations, requests, warnings) => {
		const one = storage();
		one.metadata.annotations = annotations;
		const spec = readSpec(one);
		expect(spec).toMatchObject({ requests });
		if ("invalid" in spec) throw new Error(spec.invalid);
		expect(spec.warnings).toHaveLength(warnings);
		for (const warning of spec.warnings)
			expect(warning).toMatch(
				/^the annotation etcd\.xmudrii\.com\/\w+-\w+ has no effect without a reason/,
			);
	});

	test("that is absent altogether is refused", () => {
		const { spec: _, ...rest } = storage();
		expect(readSpec(rest as EtcdStorage)).toHaveProperty("invalid");
	});

	test.each([
		["a".repeat(58), true],
		["a".repeat(59), false],
		["a.b", false],
		["-a", false],
		["0", true],
		["registry", false],
		["registry-1", true],
	])("under the name %s is accepted: %p", (name, ok) => {
		expect("name" in readSpec(storage({}, name))).toBe(ok);
	});

	test("shorter than what can be delivered is lengthened to a minute, and said", () => {
		const spec = readSpec(storage({ clientCertificateValidity: "1ns" }));
		expect(spec).toMatchObject({
			validity: { client: 60_000 },
			warnings: [expect.stringContaining("spec.clientCertificateValidity")],
		});
	});

	test("of five minutes is taken as it is, with a warning", () => {
		const spec = readSpec(storage({ clientCertificateValidity: "5m" }));
		expect(spec).toMatchObject({
			validity: { client: 300_000 },
			warnings: [expect.stringContaining("short")],
		});
	});

	test("with a leaf that would outlive its signer is accepted, and said", () => {
		const spec = readSpec(storage({ servingCertificateValidity: "1000h" }));
		expect(spec).toMatchObject({
			warnings: [
				expect.stringContaining("longer than spec.signingCertificateValidity"),
			],
		});
	});

	test("of any shape is read or refused, but never crashes the controller", () => {
		fc.assert(
			fc.property(fc.anything(), fc.string(), (spec, name) => {
				const result = readSpec({ ...storage({}, name), spec } as EtcdStorage);
				expect("invalid" in result || "targets" in result).toBe(true);
			}),
		);
	});
});
