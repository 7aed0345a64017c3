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
	])("with %s is refused by the name of its field", (_, spec, field) => {
		const result = readSpec(storage(spec));
		expect("invalid" in result && result.invalid).toStartWith(field);
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
