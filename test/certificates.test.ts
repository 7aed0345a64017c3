/** What the signers' Secrets tell, whole and damaged: with real certificates. */
import { beforeAll, describe, expect, test } from "bun:test";
import { observeLeaf, observeSigners, provenCAs } from "../certificates.ts";
import { readSpec } from "../etcdstorage.ts";
import type { Data } from "../manifests.ts";
import { type Material, secretText, signerSecret } from "../manifests.ts";
import * as pki from "../pki.ts";
import { type Authority, advance, type Signers } from "../signers.ts";
import { base64 } from "./client.ts";
import { etcdStorage } from "./harness.ts";

const HOUR = 3_600_000;
const NOW = Date.UTC(2026, 10, 23, 12);
const validity = { notBefore: NOW - HOUR, notAfter: NOW + 100 * HOUR };
const missing = { missing: true } as const;

async function authority(older = 0): Promise<Authority> {
	const pair = await pki.issueCA({
		commonName: "etcd serving CA",
		organization: "sample",
		validity: { ...validity, notBefore: validity.notBefore - older },
	});
	return { pair, facts: only(pair.certificate), keyMatches: true };
}

function only(pem: string): pki.CertificateFacts {
	const [facts] = pki.parseCertificates(pem);
	if (!facts) throw new Error("no certificate");
	return facts;
}

const crossOf = async (signer: Authority, subject: Authority) =>
	only(
		await pki.crossSign({
			signer: signer.pair,
			subject: subject.pair.certificate,
			validity: { notBefore: NOW, notAfter: NOW + HOUR },
		}),
	);

/** Three generations, the oldest first, and each phase's Secret as the controller writes it. */
let one: Authority;
let two: Authority;
let three: Authority;
let cross: pki.CertificateFacts;
let phases: Record<
	"steady" | "publish" | "lost" | "spread" | "distrust" | "retire",
	Signers
>;
beforeAll(async () => {
	[one, two, three] = [
		await authority(2000),
		await authority(1000),
		await authority(),
	];
	cross = await crossOf(one, two);
	const nextCross = await crossOf(two, three);
	const steady: Signers = {
		...{ current: one, next: missing },
		...{ trusted: [one.facts], answered: {} },
	};
	const publish: Signers = {
		...{ current: two, next: three, nextCross, cross },
		...{ trusted: [one.facts, two.facts, three.facts] },
		answered: { rotate: "audit" },
	};
	phases = {
		steady,
		publish,
		lost: {
			...{ current: missing, next: two, answered: {} },
			trusted: [one.facts, two.facts],
		},
		spread: {
			...{ current: two, next: missing, cross },
			previous: { facts: one.facts, pair: one.pair },
			...{ trusted: [one.facts, two.facts], answered: {} },
		},
		distrust: advance(
			steady,
			{
				...{ do: "make", as: "current", validity },
				...{ distrust: true, lost: false },
				...{ commonName: "", organization: "" },
				answered: { compromised: "laptop" },
			},
			{ authority: two },
			NOW,
		),
		retire: {
			...{ current: two, next: missing, cross },
			...{ trusted: [one.facts, two.facts], answered: {} },
		},
	};
});

const storage = etcdStorage("sample", "api") as never;
const environment = {
	...{ namespace: "ns", coreUrls: [], coreCAConfigMap: "" },
	...{ coreCertsSecret: "", proxyImage: "", proxyPriorityClass: "" },
};
function secretOf(signers: Signers): Data {
	if ("invalid" in readSpec(storage)) throw new Error("invalid");
	const bundle = pki.bundle(signers.trusted);
	const material: Material["signers"]["serving"] = { ...signers, bundle };
	return signerSecret(storage, environment, "serving", material);
}

/** The Secret with another text under a key; without the key for undefined. */
function damaged(secret: Data, edits: Record<string, string | undefined>) {
	const data = { ...secret.data };
	for (const [key, text] of Object.entries(edits))
		if (text === undefined) delete data[key];
		else data[key] = base64(text);
	return { ...secret, data };
}
const half = (text = "") => text.slice(0, Math.floor(text.length / 2));
const names = new Map<string, string>();
/** Which of the three generations these are. */
const generations = (trusted: pki.CertificateFacts[]) => {
	names.set(one.facts.fingerprint, "one").set(two.facts.fingerprint, "two");
	names.set(three.facts.fingerprint, "three");
	return trusted.map(({ fingerprint }) => names.get(fingerprint)).sort();
};

test.each([
	...["steady", "publish", "lost", "spread", "distrust", "retire"],
] as (keyof typeof phases)[])(
	"the Secret of a signer in %s tells all that was written into it",
	(phase) => {
		expect(
			observeSigners("serving", secretOf(phases[phase]), undefined, NOW),
		).toEqual(phases[phase]);
	},
);

describe("of a signer's Secret", () => {
	type Edits = (secret: Data) => Record<string, string | undefined>;
	const cut =
		(...keys: string[]): Edits =>
		(secret) =>
			Object.fromEntries(
				keys.map((key) => [key, half(secretText(secret, key))]),
			);
	const without =
		(...keys: string[]): Edits =>
		() =>
			Object.fromEntries(keys.map((key) => [key, undefined]));
	const junk =
		(...keys: string[]): Edits =>
		() =>
			Object.fromEntries(keys.map((key) => [key, "junk"]));
	const found = (what: Signers["current"]) => {
		if ("missing" in what) return "missing";
		if ("unreadable" in what) return "unreadable";
		return what.keyMatches ? "whole" : "other key";
	};

	test.each<
		[
			string,
			keyof typeof phases,
			Edits,
			current: string,
			next: string,
			trusted: string[],
		]
	>([
		["nothing", "steady", () => ({}), "whole", "missing", ["one"]],
		["the key", "steady", without("tls.key"), "unreadable", "missing", ["one"]],
		[
			"the certificate",
			"steady",
			without("tls.crt"),
			"unreadable",
			"missing",
			["one"],
		],
		[
			"half the key",
			"steady",
			cut("tls.key"),
			"unreadable",
			"missing",
			["one"],
		],
		[
			"half the certificate",
			"steady",
			cut("tls.crt"),
			"unreadable",
			"missing",
			["one"],
		],
		[
			"half the bundle",
			"spread",
			cut("ca-bundle.crt"),
			"whole",
			"missing",
			["one", "two"],
		],
		[
			"the bundle",
			"spread",
			without("ca-bundle.crt"),
			"whole",
			"missing",
			["one", "two"],
		],
		[
			"the first CA of the bundle",
			"spread",
			() => ({ "ca-bundle.crt": two.facts.pem }),
			"whole",
			"missing",
			["one", "two"],
		],
		[
			"the bundle, with a compromised CA,",
			"distrust",
			without("ca-bundle.crt"),
			"whole",
			"missing",
			["two"],
		],
		[
			"the bundle, in Publish,",
			"publish",
			junk("ca-bundle.crt"),
			"whole",
			"whole",
			["three", "two"],
		],
		[
			"half the next certificate",
			"publish",
			cut("next.crt"),
			"whole",
			"unreadable",
			["one", "three", "two"],
		],
		[
			"half the next key",
			"publish",
			cut("next.key"),
			"whole",
			"unreadable",
			["one", "three", "two"],
		],
		[
			"the next key",
			"publish",
			without("next.key"),
			"whole",
			"unreadable",
			["one", "three", "two"],
		],
		[
			"the current pair",
			"publish",
			without("tls.crt", "tls.key"),
			"missing",
			"whole",
			["one", "three", "two"],
		],
		[
			"all",
			"publish",
			without("tls.crt", "tls.key", "next.crt", "next.key", "ca-bundle.crt"),
			"missing",
			"missing",
			[],
		],
		[
			"both crosses",
			"publish",
			junk("cross.crt", "next-cross.crt"),
			"whole",
			"whole",
			["one", "three", "two"],
		],
	])(
		"that has lost %s (phase %s) the rest counts",
		(_, phase, edits, current, next, trusted) => {
			const secret = secretOf(phases[phase]);
			const seen = observeSigners(
				"serving",
				damaged(secret, edits(secret)),
				undefined,
				NOW,
			);
			expect([found(seen.current), found(seen.next)]).toEqual([current, next]);
			expect(generations(seen.trusted)).toEqual(trusted as never);
		},
	);

	test("a key of another is noticed", () => {
		const secret = secretOf(phases.publish);
		const swapped = damaged(secret, {
			"tls.key": secretText(secret, "next.key"),
			"next.key": secretText(secret, "tls.key"),
		});
		const { current, next } = observeSigners(
			"serving",
			swapped,
			undefined,
			NOW,
		);
		expect([found(current), found(next)]).toEqual(["other key", "other key"]);
	});

	test("a cross-certificate that is damaged is none", () => {
		const secret = secretOf(phases.publish);
		const seen = observeSigners(
			"serving",
			damaged(secret, cut("cross.crt", "next-cross.crt")(secret)),
			undefined,
			NOW,
		);
		expect(seen).not.toHaveProperty("cross");
		expect(seen).not.toHaveProperty("nextCross");
	});

	test.each<[string, Edits, "with" | "without" | "none"]>([
		["is whole", () => ({}), "with"],
		["has no key", without("previous.key"), "without"],
		["has half a key", cut("previous.key"), "without"],
		[
			"has the key of another",
			(secret) => ({ "previous.key": secretText(secret, "tls.key") }),
			"without",
		],
		["has half a certificate", cut("previous.crt"), "without"],
		["has no certificate", without("previous.crt"), "none"],
	])(
		"the previous signer, where it %s, is known %s its key",
		(_, edits, expected) => {
			const secret = secretOf(phases.spread);
			const { previous } = observeSigners(
				"serving",
				damaged(secret, edits(secret)),
				undefined,
				NOW,
			);
			const key = previous?.pair ? "with" : "without";
			expect(previous ? key : "none").toBe(expected);
			if (previous) expect(previous.facts).toEqual(one.facts);
		},
	);

	const copyOf = (bundle?: string): Data => ({
		...{ apiVersion: "v1", kind: "ConfigMap", metadata: { name: "copy" } },
		...(bundle !== undefined && { data: { "serving-ca.crt": bundle } }),
	});
	test("that is gone the copy of the bundle tells who is trusted", () => {
		const both = pki.bundle([one.facts, two.facts]);
		const read = (bundle?: string) =>
			generations(
				observeSigners("serving", undefined, copyOf(bundle), NOW).trusted,
			);
		expect(read(both)).toEqual(["one", "two"]);
		expect(read(one.facts.pem)).toEqual(["one"]);
		for (const nothing of [undefined, "", "junk", half(both).slice(1)])
			expect(read(nothing)).toEqual([]);
		expect(
			observeSigners("serving", undefined, undefined, NOW).trusted,
		).toEqual([]);
		// That is for the other domain.
		expect(
			observeSigners("client", undefined, copyOf(both), NOW).trusted,
		).toEqual([]);
	});

	describe("what others carry in our name", () => {
		const proven = async (secret: Data | undefined, ...texts: string[]) =>
			generations(await provenCAs(secret, texts));
		const holding = (...pems: string[]): Data => ({
			...{ apiVersion: "v1", kind: "Secret", metadata: { name: "server" } },
			data: { "tls.crt": base64(pems.join("")) },
		});
		let leaf: string;
		let crossed: string;
		beforeAll(async () => {
			const pair = await pki.issueLeaf({
				...{ signer: two.pair, commonName: "etcd-sample", validity },
				...{ usage: "serverAuth", dnsNames: ["etcd-sample"], ipAddresses: [] },
			});
			leaf = pair.certificate;
			crossed = cross.pem;
		});

		test("is known for a CA of ours by what its key has signed", async () => {
			const [a, b] = [one.facts.pem, two.facts.pem];
			expect(await proven(holding(leaf), a + b)).toEqual(["two"]);
			expect(await proven(holding(leaf, crossed), a, b, a)).toEqual([
				"one",
				"two",
			]);
			expect(await proven(holding(leaf), a)).toEqual([]);
			// One damaged text makes no difference to another.
			expect(await proven(holding(leaf), half(a), "junk", b)).toEqual(["two"]);
			expect(await proven(undefined, b)).toEqual([]);
			expect(await proven(holding("junk"), b)).toEqual([]);
			expect(await proven(holding(""), b)).toEqual([]);
		});

		test("is not by its name and public key, which everybody knows", async () => {
			const forged = await pki.crossSign({
				...{ signer: one.pair, subject: two.facts.pem, validity },
			});
			expect(pki.parseCertificates(forged)[0]?.subject).toBe(two.facts.subject);
			expect(await provenCAs(holding(leaf, crossed), [forged])).toEqual([]);
		});
	});

	test("the copy counts where its own bundle cannot be read, and only there: a compromised CA stays away", () => {
		const both = copyOf(pki.bundle([one.facts, two.facts]));
		const whole = secretOf(phases.distrust);
		const cut = damaged(whole, { "ca-bundle.crt": "junk" });
		expect(
			generations(observeSigners("serving", whole, both, NOW).trusted),
		).toEqual(["two"]);
		expect(
			generations(observeSigners("serving", cut, both, NOW).trusted),
		).toEqual(["one", "two"]);
	});
});

describe("a leaf", () => {
	const leafOf = async (signer: Authority, chain = ""): Promise<Data> => {
		const { certificate, key } = await pki.issueLeaf({
			...{ signer: signer.pair, commonName: "x" },
			...{ usage: "serverAuth" as const, dnsNames: ["x"] },
			validity,
		});
		return {
			...{ apiVersion: "v1", kind: "Secret", metadata: { name: "x" } },
			data: {
				"tls.crt": base64(certificate + chain),
				"tls.key": base64(key),
			},
		};
	};
	test("of the current signer is known, with its chain", async () => {
		const secret = await leafOf(two, cross.pem);
		const seen = await observeLeaf(secret, phases.spread);
		expect("facts" in seen && seen.signedBySigner).toBe(true);
		expect("chain" in seen && seen.chain).toBe(
			secretText(secret, "tls.crt") ?? "",
		);
	});
	test("of the former signer is not the current's, and neither is any where the current one is lost", async () => {
		const secret = await leafOf(one);
		for (const signers of [phases.spread, phases.lost]) {
			const seen = await observeLeaf(secret, signers);
			expect("facts" in seen && seen.signedBySigner).toBe(false);
		}
	});
	test("with empty values is not there", async () => {
		const secret = damaged(await leafOf(one), { "tls.crt": "", "tls.key": "" });
		expect("missing" in (await observeLeaf(secret, phases.steady))).toBe(true);
	});
});
