import { beforeAll, describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { EtcdStorage, EtcdStorageStatus, Spec } from "../etcdstorage.ts";
import * as pki from "../pki.ts";
import {
	BACKDATE,
	decide,
	events,
	hash01,
	type Leaf,
	leafRenewalTime,
	nextVisit,
	type Observed,
	type Outcome,
	type Signer,
	signerRenewalTime,
	status,
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

const storage = (before?: EtcdStorageStatus) =>
	({
		apiVersion: "etcd.xmudrii.com/v1alpha1",
		kind: "EtcdStorage",
		metadata: { name: "sample", generation: 7 },
		spec: {},
		...(before && { status: before }),
	}) as unknown as EtcdStorage;
const outcome = (more: Partial<Outcome> = {}): Outcome => ({
	problems: [],
	issued: [],
	written: [],
	certificates: [],
	bundleExpiry: Number.POSITIVE_INFINITY,
	targets: [],
	availability: { available: true, ready: 3, wanted: 3 },
	...more,
});
const problem = {
	condition: "CertificatesReady" as const,
	reason: "TargetMissing",
	message: "Secret a/b is not there",
	userError: true,
};

describe("status", () => {
	const shown = (result: EtcdStorageStatus) =>
		Object.fromEntries(
			(result.conditions ?? []).map((one) => [
				one.type,
				`${one.status} ${one.reason}`,
			]),
		);

	test("is ready when everything is", () => {
		const result = status(storage(), NAMESPACE, spec, outcome(), NOW);
		expect(shown(result)).toEqual({
			CertificatesReady: "True CertificatesIssued",
			Deployed: "True Deployed",
			Ready: "True Ready",
			ValidityWarning: "False AsWritten",
		});
		expect(result).toMatchObject({
			observedGeneration: 7,
			endpoint: "https://etcd-sample.kube-apiserver-storage.svc:2379",
		});
	});

	test("is not ready while a certificate cannot be delivered, and says where", () => {
		const result = status(
			storage(),
			NAMESPACE,
			spec,
			outcome({ problems: [problem] }),
			NOW,
		);
		expect(shown(result)).toMatchObject({
			CertificatesReady: "False TargetMissing",
			Deployed: "True Deployed",
			Ready: "False TargetMissing",
		});
		expect(
			result.conditions?.find((one) => one.type === "Ready")?.message,
		).toBe(problem.message);
	});

	test("is not ready while the Deployment is not available", () => {
		const availability = { available: false, ready: 1, wanted: 3 };
		const result = status(
			storage(),
			NAMESPACE,
			spec,
			outcome({ availability }),
			NOW,
		);
		expect(shown(result)).toMatchObject({
			Deployed: "False DeploymentNotAvailable",
			Ready: "False DeploymentNotAvailable",
		});
		expect(
			result.conditions?.find((one) => one.type === "Deployed")?.message,
		).toContain("1 of 3");
	});

	test("keeps lastTransitionTime until a condition flips", () => {
		const first = status(storage(), NAMESPACE, spec, outcome(), NOW);
		const second = status(
			storage(first),
			NAMESPACE,
			spec,
			outcome(),
			NOW + HOUR,
		);
		expect(second).toEqual(first);
		const third = status(
			storage(second),
			NAMESPACE,
			spec,
			outcome({ problems: [problem] }),
			NOW + 2 * HOUR,
		);
		const times = Object.fromEntries(
			(third.conditions ?? []).map((one) => [one.type, one.lastTransitionTime]),
		);
		expect(times).toMatchObject({
			Deployed: "2026-11-23T12:00:00Z",
			Ready: "2026-11-23T14:00:00Z",
		});
	});
});

describe("events", () => {
	const healthy = status(storage(), NAMESPACE, spec, outcome(), NOW);
	const broken = status(
		storage(healthy),
		NAMESPACE,
		spec,
		outcome({ problems: [problem] }),
		NOW,
	);
	const starting = status(
		storage(),
		NAMESPACE,
		spec,
		outcome({ availability: { available: false, ready: 0, wanted: 3 } }),
		NOW,
	);
	const told = (
		before: EtcdStorageStatus | undefined,
		after: EtcdStorageStatus,
		issued: string[] = [],
	) => events(before, after, issued).map((one) => `${one.type} ${one.reason}`);

	test.each<
		[string, EtcdStorageStatus | undefined, EtcdStorageStatus, string[]]
	>([
		["success", undefined, healthy, ["Normal EtcdStorageDeployed"]],
		["a problem", healthy, broken, ["Warning CertificatesDeployFailure"]],
		["recovery", broken, healthy, ["Normal CertificatesReady"]],
		["pods that still start: nothing", undefined, starting, []],
		[
			"pods that went away",
			healthy,
			starting,
			["Warning EtcdStorageDeployFailure"],
		],
		["no change: nothing", broken, broken, []],
	])("tell of %s", (_, before, after, expected) => {
		expect(told(before, after)).toEqual(expected);
	});

	test("tell what was issued and why, in one event", () => {
		expect(
			events(healthy, healthy, [
				"server (signer replaced)",
				"client/a/b (not there)",
			]),
		).toEqual([
			{
				type: "Normal",
				reason: "CertificatesIssued",
				message: "server (signer replaced); client/a/b (not there)",
			},
		]);
	});
});

describe("the next visit", () => {
	const facts = { notAfter: NOW + HOUR } as pki.CertificateFacts;
	const due = (renewalTime: number) => [
		{ id: "server", domain: "serving" as const, facts, renewalTime },
	];

	test("comes within 40 s, to read the targets", () => {
		fc.assert(
			fc.property(fc.double({ min: 0, max: 0.999, noNaN: true }), (random) => {
				const wait = nextVisit(outcome(), NOW, random);
				expect(wait).toBeGreaterThanOrEqual(30_000);
				expect(wait).toBeLessThanOrEqual(40_000);
			}),
		);
	});
	test("comes within 5 s where a person may have mended something", () => {
		expect(
			nextVisit(outcome({ problems: [problem] }), NOW, 0.99),
		).toBeLessThanOrEqual(5_000);
	});
	test("comes when a certificate is due, but never at once", () => {
		expect(
			nextVisit(outcome({ certificates: due(NOW + 10_000) }), NOW, 0.5),
		).toBe(10_001);
		expect(
			nextVisit(outcome({ certificates: due(NOW - HOUR) }), NOW, 0.5),
		).toBe(1_000);
	});
	test("comes when a former CA expires", () => {
		expect(nextVisit(outcome({ bundleExpiry: NOW + 12_345 }), NOW, 0.5)).toBe(
			12_346,
		);
	});
});
