import { beforeAll, describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { Spec } from "../etcdstorage.ts";
import * as pki from "../pki.ts";
import {
	BACKDATE,
	decide,
	hash01,
	type Leaf,
	leafRenewalTime,
	type Observed,
	type Signer,
	signerRenewalTime,
	validityFor,
} from "../reconcile.ts";

const HOUR = 3_600_000;
const NOW = Date.UTC(2026, 10, 23, 12);
const NAMESPACE = "kube-apiserver-storage";

const spec: Spec = {
	name: "sample",
	replicas: 3,
	targets: [{ kind: "Secret", name: "crt", namespace: "api" }],
	validity: { signing: 730 * HOUR, serving: 100 * HOUR, client: 100 * HOUR },
	warnings: [],
};
const CLIENT = "client/api/crt";

/** What the plan asks for, made for real: the state after a visit. */
async function carryOut(
	plan: ReturnType<typeof decide>,
	before: Observed,
	now: number,
): Promise<Observed> {
	const after = structuredClone(before);
	for (const due of plan.signers) {
		const pair = await pki.issueCA(due);
		const [facts] = pki.parseCertificates(pair.certificate);
		const old = before.signers[due.domain];
		if (!facts) throw new Error("no CA");
		const cross =
			due.crossSign && "pair" in old
				? pki.parseCertificates(
						await pki.crossSign({
							signer: old.pair,
							subject: pair.certificate,
							validity: due.crossSign,
						}),
					)[0]
				: undefined;
		const bundle = pki.parseCertificates(pki.bundle([...due.keep, facts], now));
		after.signers[due.domain] = {
			pair,
			facts,
			keyMatches: true,
			bundle,
			...(cross && { cross }),
		};
	}
	for (const due of plan.leaves) {
		const signer = after.signers[due.domain] as Signer;
		const pair = await pki.issueLeaf({ ...due, signer: signer.pair });
		const [facts] = pki.parseCertificates(pair.certificate);
		if (!facts) throw new Error("no leaf");
		after.leaves[due.id] = {
			pair,
			facts,
			keyMatches: true,
			signedBySigner: true,
		};
	}
	return after;
}

const nothing: Observed = {
	signers: { client: { missing: true }, serving: { missing: true } },
	leaves: { server: { missing: true }, [CLIENT]: { missing: true } },
};
let fresh: Observed;
beforeAll(async () => {
	fresh = await carryOut(decide(spec, NAMESPACE, nothing, NOW), nothing, NOW);
});

const leaf = (observed: Observed, id: string) => observed.leaves[id] as Leaf;
const reasons = (observed: Observed, now = NOW, wanted = spec) => {
	const plan = decide(wanted, NAMESPACE, observed, now);
	return Object.fromEntries([
		...plan.signers.map((due) => [`${due.domain}-signer`, due.reason]),
		...plan.leaves.map((due) => [due.id, due.reason]),
	]);
};
/** The fresh state with one thing changed. */
const changed = (
	change: (observed: {
		signers: Record<string, Signer>;
		leaves: Record<string, Leaf>;
	}) => void,
) => {
	const copy = structuredClone(fresh);
	change(
		copy as unknown as {
			signers: Record<string, Signer>;
			leaves: Record<string, Leaf>;
		},
	);
	return copy;
};
const at = <T>(map: Record<string, T>, key: string): T => map[key] as T;

describe("what is due", () => {
	test("at the beginning is everything", () => {
		expect(reasons(nothing)).toEqual({
			"client-signer": "not there",
			"serving-signer": "not there",
			server: "not there",
			[CLIENT]: "not there",
		});
	});

	test("after that is nothing", () => {
		expect(reasons(fresh)).toEqual({});
	});

	test.each<
		[
			string,
			(o: {
				signers: Record<string, Signer>;
				leaves: Record<string, Leaf>;
			}) => void,
			Record<string, string>,
		]
	>([
		[
			"the server's key does not match",
			(o) => {
				at(o.leaves, "server").keyMatches = false;
			},
			{ server: "key does not match" },
		],
		[
			"the server certificate is another signer's",
			(o) => {
				at(o.leaves, "server").signedBySigner = false;
			},
			{ server: "signer replaced" },
		],
		[
			"a SAN is missing",
			(o) => {
				at(o.leaves, "server").facts.dnsNames.pop();
			},
			{ server: "SAN missing: localhost" },
		],
		[
			"there is a SAN too many",
			(o) => {
				at(o.leaves, "server").facts.dnsNames.push("evil");
			},
			{ server: "SAN not wanted: evil" },
		],
		[
			"a client certificate is for servers",
			(o) => {
				at(o.leaves, CLIENT).facts.extendedKeyUsages = ["serverAuth"];
			},
			{ [CLIENT]: "extended key usage is serverAuth" },
		],
		[
			"a client certificate is somebody else's",
			(o) => {
				at(o.leaves, CLIENT).facts.commonName = "other";
			},
			{ [CLIENT]: 'common name is "other"' },
		],
		[
			"a client certificate is a CA",
			(o) => {
				at(o.leaves, CLIENT).facts.isCA = true;
			},
			{ [CLIENT]: "is a CA" },
		],
		[
			"a signer's key does not match",
			(o) => {
				at(o.signers, "client").keyMatches = false;
			},
			{ "client-signer": "key does not match", [CLIENT]: "signer replaced" },
		],
		[
			"a signer is no CA",
			(o) => {
				at(o.signers, "client").facts.isCA = false;
			},
			{ "client-signer": "not a CA", [CLIENT]: "signer replaced" },
		],
		[
			"a certificate begins tomorrow",
			(o) => {
				at(o.leaves, "server").facts.notBefore += 24 * HOUR;
				at(o.leaves, "server").facts.notAfter += 24 * HOUR;
			},
			{ server: "not valid yet" },
		],
	])("when %s is told with its reason", (_, change, expected) => {
		expect(reasons(changed(change))).toEqual(expected);
	});

	test("when a Secret holds junk is told with what is wrong", () => {
		const junk = structuredClone(fresh);
		junk.leaves[CLIENT] = { unreadable: "no certificate: empty" };
		junk.signers.serving = {
			unreadable: "certificate 1 of 1: damaged PEM block",
		};
		expect(reasons(junk)).toEqual({
			[CLIENT]: "unreadable: no certificate: empty",
			"serving-signer": "unreadable: certificate 1 of 1: damaged PEM block",
			server: "signer replaced",
		});
	});

	test("when a signer is lost is its whole domain, and nothing of the other", () => {
		const lost = structuredClone(fresh);
		lost.signers.client = { missing: true };
		expect(reasons(lost)).toEqual({
			"client-signer": "not there",
			[CLIENT]: "signer replaced",
		});
	});

	test("when a validity is changed is what it touches", () => {
		const validity = { ...spec.validity, client: 50 * HOUR };
		expect(reasons(fresh, NOW, { ...spec, validity })).toEqual({
			[CLIENT]: "validity changed from 100h0m0s to 50h0m0s",
		});
	});

	test("when a leaf is to live longer than its signer is nothing more than a leaf as old as the signer", async () => {
		const long = {
			...spec,
			validity: { ...spec.validity, serving: 9999 * HOUR },
		};
		const after = await carryOut(
			decide(long, NAMESPACE, nothing, NOW),
			nothing,
			NOW,
		);
		expect(leaf(after, "server").facts.notAfter).toBe(
			(after.signers.serving as Signer).facts.notAfter,
		);
		expect(reasons(after, NOW, long)).toEqual({});
	});
});

describe("renewal", () => {
	test("of a leaf comes between 2/3 less 10 % and 2/3 of its life", () => {
		const { facts } = leaf(fresh, "server");
		const due = leafRenewalTime(spec, "serving", facts);
		expect(reasons(fresh, due - 1)).not.toHaveProperty("server");
		expect(reasons(fresh, due)).toHaveProperty(
			"server",
			"past 2/3 of its life",
		);
		expect(due).toBeLessThanOrEqual(NOW + (100 * HOUR * 2) / 3);
		expect(due).toBeGreaterThan(NOW + 100 * HOUR * (2 / 3 - 0.1) - 1000);
	});

	test("of a signer comes by half of its life, signed by the old one", () => {
		const { facts } = fresh.signers.serving as Signer;
		const due = signerRenewalTime(spec, "serving", facts);
		const plan = decide(spec, NAMESPACE, fresh, due);
		expect(due).toBeLessThanOrEqual(NOW + 365 * HOUR);
		expect(plan.signers.find((one) => one.domain === "serving")).toMatchObject({
			reason: "past 1/2 of its life",
			crossSign: { notAfter: facts.notAfter },
			keep: [{ fingerprint: facts.fingerprint }],
		});
	});

	test("of an expired signer goes without its signature, for it counts no more", () => {
		const plan = decide(spec, NAMESPACE, fresh, NOW + 800 * HOUR);
		for (const due of plan.signers) {
			expect(due.reason).toBe("expired");
			expect(due.crossSign).toBeUndefined();
		}
		expect(plan.signers).toHaveLength(2);
	});

	test("of signers from the future is signed by them, for it may be our own clock that is behind", async () => {
		const behind = NOW - HOUR;
		const plan = decide(spec, NAMESPACE, fresh, behind);
		expect(
			plan.signers.map((due) => [due.reason, due.crossSign?.notBefore]),
		).toEqual([
			["not valid yet", NOW - BACKDATE],
			["not valid yet", NOW - BACKDATE],
		]);
		const after = await carryOut(plan, fresh, behind);
		expect(reasons(after, behind)).toEqual({});
	});

	test("of signers from a future after their successor's end is not", () => {
		const short = {
			...spec,
			validity: { signing: 60_000, serving: 60_000, client: 60_000 },
		};
		for (const due of decide(short, NAMESPACE, fresh, NOW - HOUR).signers)
			expect(due.crossSign).toBeUndefined();
	});

	test("of what was made together is spread", () => {
		const times = Array.from({ length: 1000 }, (_, index) =>
			hash01(`tenant-${index}/serving/00ff`),
		);
		for (let tenth = 0; tenth < 10; tenth++) {
			const share = times.filter(
				(time) => Math.floor(time * 10) === tenth,
			).length;
			expect(share).toBeGreaterThan(60);
			expect(share).toBeLessThan(140);
		}
	});

	test("settles at once, whatever the validities: what was just issued is not due", async () => {
		const minutes = fc.integer({ min: 60_000, max: 292 * 365 * 24 * HOUR });
		await fc.assert(
			fc.asyncProperty(
				minutes,
				minutes,
				minutes,
				fc.integer({ min: 0, max: 999 }),
				async (signing, serving, client, ms) => {
					const wanted = { ...spec, validity: { signing, serving, client } };
					const now = NOW + ms;
					const after = await carryOut(
						decide(wanted, NAMESPACE, nothing, now),
						nothing,
						now,
					);
					expect(reasons(after, now, wanted)).toEqual({});
				},
			),
			{ numRuns: 50 },
		);
	});

	test("never lets a certificate expire through ten signer lives, visited when nextVisit says", async () => {
		let now = NOW;
		let state = fresh;
		let visits = 0;
		while (now < NOW + 10 * 365 * HOUR) {
			const plan = decide(spec, NAMESPACE, state, now);
			for (const found of [
				...Object.values(state.leaves),
				...Object.values(state.signers),
			])
				expect((found as Leaf).facts.notAfter).toBeGreaterThan(now);
			state = await carryOut(plan, state, now);
			expect(reasons(state, now)).toEqual({});
			// The cross-certificate lets who trusts only the former signer accept the leaf.
			const certificates = [
				...Object.entries(state.leaves).map(([id, one]) => {
					const domain =
						id === "server" ? ("serving" as const) : ("client" as const);
					return {
						id,
						domain,
						facts: (one as Leaf).facts,
						renewalTime: leafRenewalTime(spec, domain, (one as Leaf).facts),
					};
				}),
				...(["client", "serving"] as const).map((domain) => {
					const { facts } = state.signers[domain] as Signer;
					return {
						id: domain,
						domain,
						facts,
						renewalTime: signerRenewalTime(spec, domain, facts),
					};
				}),
			];
			now = Math.min(...certificates.map((one) => one.renewalTime));
			visits++;
		}
		// Each signer lives 365 h here and each leaf 67 h: a bounded number of writes.
		expect(visits).toBeLessThan(200);
	});
});

test("a validity begins five minutes back, in whole seconds, and stays inside its signer's", () => {
	expect(validityFor(HOUR, NOW + 999)).toEqual({
		notBefore: NOW - BACKDATE,
		notAfter: NOW + HOUR,
	});
	const signer = { notBefore: NOW, notAfter: NOW + HOUR };
	expect(validityFor(2 * HOUR, NOW, signer)).toEqual(signer);
});
