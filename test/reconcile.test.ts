import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { Requests, Spec } from "../etcdstorage.ts";
import {
	BACKDATE,
	type Domain,
	domains,
	hash01,
	issuedAt,
	leafRenewalTime,
	partOfLife,
	signerRenewalTime,
	validityFor,
} from "../lifetimes.ts";
import type { CertificateFacts } from "../pki.ts";
import { decide, type Leaf, type Observed, type Plan } from "../reconcile.ts";
import {
	held,
	type LiveLeaf,
	type Reach,
	type Rotation,
	rotate,
	spreading,
	standing,
	type Wait,
} from "../rotation.ts";
import {
	type Authority,
	advance,
	generationOf,
	newest,
	type Signers,
	type Step,
} from "../signers.ts";
import { Issuer } from "./lifetimepki.ts";

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const NOW = Date.UTC(2026, 10, 23, 12);
const LIFE = 730 * HOUR;
const LEAF_LIFE = 100 * HOUR;
const NAMESPACE = "kube-apiserver-storage";
const CLIENT = "client/api/crt";

const issuer = new Issuer(0);
const spec: Spec = {
	name: "sample",
	replicas: 3,
	targets: [{ kind: "Secret", name: "crt", namespace: "api" }],
	consumers: [],
	validity: { signing: LIFE, serving: LEAF_LIFE, client: LEAF_LIFE },
	requests: { client: {}, serving: {} },
	warnings: [],
};
const asked = (requests: Requests): Spec => ({
	...spec,
	requests: { client: requests, serving: requests },
});

const nobodyBehind: Reach = {
	...{ unwritten: [], undelivered: [], unread: [] },
	handedOut: false,
};
const missing = { missing: true } as const;

describe("what is due of leaves", () => {
	const nothing: Observed = {
		signers: {
			client: emptySigners(),
			serving: emptySigners(),
		},
		reach: { client: nobodyBehind, serving: nobodyBehind },
		leaves: { server: missing, [CLIENT]: missing },
	};
	const fresh = carryOut(decide(spec, NAMESPACE, nothing, NOW), nothing, NOW);
	const leaf = (observed: Observed, id: string) => observed.leaves[id] as Leaf;
	const signer = (observed: Observed, domain: Domain) =>
		observed.signers[domain].current as Authority;

	const reasons = (observed: Observed, now = NOW, wanted = spec) => {
		const plan = decide(wanted, NAMESPACE, observed, now);
		return Object.fromEntries([
			...domains.flatMap((domain) => {
				const { step, reason } = plan.rotations[domain];
				return step ? [[`${domain}-signer: ${step.do}`, reason]] : [];
			}),
			...plan.leaves.map((due) => [due.id, due.reason]),
		]);
	};
	/** The fresh state with one thing changed. */
	const changed = (change: (observed: Observed) => void) => {
		const copy = structuredClone(fresh);
		change(copy);
		return copy;
	};

	test("at the beginning is everything", () => {
		expect(reasons(nothing)).toEqual({
			"client-signer: make": "not there",
			"serving-signer: make": "not there",
			server: "not there",
			[CLIENT]: "not there",
		});
	});

	test("after that is nothing", () => {
		expect(reasons(fresh)).toEqual({});
	});

	test.each<[string, (o: Observed) => void, Record<string, string>]>([
		[
			"the server's key does not match",
			(o) => {
				leaf(o, "server").keyMatches = false;
			},
			{ server: "key does not match" },
		],
		[
			"the server certificate is another signer's",
			(o) => {
				leaf(o, "server").signedBySigner = false;
			},
			{ server: "signer replaced" },
		],
		[
			"a certificate is gone",
			(o) => {
				o.leaves.server = missing;
			},
			{ server: "not there" },
		],
		[
			"a Secret holds junk",
			(o) => {
				o.leaves[CLIENT] = { unreadable: "no certificate: empty" };
			},
			{ [CLIENT]: "unreadable: no certificate: empty" },
		],
		[
			"a SAN is missing",
			(o) => {
				leaf(o, "server").facts.dnsNames.pop();
			},
			{ server: "SAN missing: localhost" },
		],
		[
			"there is a SAN too many",
			(o) => {
				leaf(o, "server").facts.ipAddresses.push("10.0.0.1");
			},
			{ server: "SAN not wanted: 10.0.0.1" },
		],
		[
			"a client certificate is for servers",
			(o) => {
				leaf(o, CLIENT).facts.extendedKeyUsages = ["serverAuth"];
			},
			{ [CLIENT]: "extended key usage: is serverAuth" },
		],
		[
			"a client certificate is for nothing",
			(o) => {
				leaf(o, CLIENT).facts.extendedKeyUsages = [];
			},
			{ [CLIENT]: "extended key usage: is missing" },
		],
		[
			"a client certificate is somebody else's",
			(o) => {
				leaf(o, CLIENT).facts.commonName = "other";
			},
			{ [CLIENT]: 'common name: is "other"' },
		],
		[
			"a client certificate is a CA",
			(o) => {
				leaf(o, CLIENT).facts.isCA = true;
			},
			{ [CLIENT]: "is a CA" },
		],
		[
			"a certificate begins tomorrow",
			(o) => {
				leaf(o, "server").facts.notBefore += 24 * HOUR;
				leaf(o, "server").facts.notAfter += 24 * HOUR;
			},
			{ server: "not valid yet" },
		],
		[
			"a certificate has expired",
			(o) => {
				leaf(o, "server").facts.notAfter = NOW;
			},
			{ server: "expired" },
		],
	])("when %s is told with its reason", (_, change, expected) => {
		expect(reasons(changed(change))).toEqual(expected);
	});

	test("when a validity is changed is what it touches", () => {
		const validity = { ...spec.validity, client: 50 * HOUR };
		expect(reasons(fresh, NOW, { ...spec, validity })).toEqual({
			[CLIENT]: "validity changed: from 100h0m0s to 50h0m0s",
		});
	});

	test("when it is to live longer than its signer is nothing more than a leaf that ends with it", () => {
		const long = {
			...spec,
			validity: { ...spec.validity, serving: 9999 * HOUR },
		};
		const after = carryOut(decide(long, NAMESPACE, nothing, NOW), nothing, NOW);
		expect(leaf(after, "server").facts.notAfter).toBe(
			signer(after, "serving").facts.notAfter,
		);
		expect(reasons(after, NOW, long)).toEqual({});
	});

	test("while the signer is of no use is nothing: what is there must do", () => {
		const later = NOW + 70 * HOUR;
		expect(Object.keys(reasons(fresh, later))).toEqual([CLIENT, "server"]);
		const broken = changed((o) => {
			signer(o, "client").keyMatches = false;
			o.signers.serving.current = { unreadable: "damaged PEM" };
		});
		expect(reasons(broken, later)).toEqual({
			"client-signer: make": "key does not match",
			"serving-signer: make": "unreadable: damaged PEM",
		});
	});

	test("comes from the next signer in the visit in which it becomes the current one", () => {
		const due = signerRenewalTime(
			"sample",
			"client",
			signer(fresh, "client").facts,
		);
		const now = Math.max(
			due,
			signerRenewalTime("sample", "serving", signer(fresh, "serving").facts),
		);
		const renewed = carryOut(decide(spec, NAMESPACE, fresh, now), fresh, now);
		const plan = decide(spec, NAMESPACE, renewed, now);
		expect(
			plan.leaves.map(({ id, reason, validity }) => [
				id,
				reason,
				validity.notAfter,
			]),
		).toEqual([
			[CLIENT, "signer replaced", validityFor(LEAF_LIFE, now).notAfter],
			["server", "signer replaced", validityFor(LEAF_LIFE, now).notAfter],
		]);
	});

	describe("counts, where nobody can certify the next signer,", () => {
		const { current: _, ...lost } = fresh.signers.client;
		const next = generation(NOW).authority;
		const emergency = (change: (leaf: Leaf) => void) =>
			changed((o) => {
				o.signers.client = {
					...lost,
					current: missing,
					next,
					trusted: [...lost.trusted, next.facts],
				};
				o.reach = {
					...o.reach,
					client: { ...nobodyBehind, unread: [wait("ProxyNotUpdated")] },
				};
				leaf(o, CLIENT).signedBySigner = false;
				change(leaf(o, CLIENT));
			});
		const step = (change: (leaf: Leaf) => void) =>
			decide(spec, NAMESPACE, emergency(change), NOW).rotations.client.reason;

		test("as long as somebody can be using it", () => {
			expect(step(() => {})).toBeUndefined();
		});

		test.each<[string, (leaf: Leaf) => void]>([
			[
				"expired",
				({ facts }) => {
					facts.notAfter = NOW;
				},
			],
			[
				"without its key",
				(one) => {
					one.keyMatches = false;
				},
			],
			[
				"somebody else's",
				({ facts }) => {
					facts.issuer = "CN=etcd client CA of somebody else";
				},
			],
		])("not when it is %s", (_, change) => {
			expect(step(change)).toBe("no certificate is in use");
		});
	});

	test("comes between 2/3 less 10 % and 2/3 of its life", () => {
		const { facts } = leaf(fresh, "server");
		const due = leafRenewalTime("sample", "serving", facts);
		expect(reasons(fresh, due - 1)).not.toHaveProperty("server");
		expect(reasons(fresh, due)).toHaveProperty(
			"server",
			"past 2/3 of its life",
		);
		expect(due).toBeLessThanOrEqual(NOW + (LEAF_LIFE * 2) / 3);
		expect(due).toBeGreaterThan(NOW + LEAF_LIFE * (2 / 3 - 0.1) - SECOND);
	});

	test("settles at once, whatever the validities: what was just issued is not due", () => {
		const ms = fc.integer({ min: MINUTE, max: 292 * 365 * 24 * HOUR });
		fc.assert(
			fc.property(
				ms,
				ms,
				ms,
				fc.integer({ min: 0, max: 999 }),
				(signing, serving, client, after) => {
					const wanted = { ...spec, validity: { signing, serving, client } };
					const now = NOW + after;
					const plan = decide(wanted, NAMESPACE, nothing, now);
					const made = carryOut(plan, nothing, now);
					expect(reasons(made, now, wanted)).toEqual({});
				},
			),
		);
	});
});

/** A CA, and its certificate by another one. */
function generation(at: number, by?: Authority, life = LIFE) {
	return issuer.authority(
		{
			do: "make",
			as: "next",
			commonName: "etcd client CA",
			organization: "sample",
			...{ distrust: false, lost: false },
			answered: {},
			validity: validityFor(life, at),
			...(by && {
				cross: { by: "current", validity: validityFor(life, at, by.facts) },
			}),
		},
		{ ...emptySigners(), ...(by && { current: by }) },
	);
}

function emptySigners(): Signers {
	return { current: missing, next: missing, trusted: [], answered: {} };
}

/** What the plan asks for, made: the state after a visit. */
function carryOut(plan: Plan, before: Observed, now: number): Observed {
	const signers = {} as Observed["signers"];
	for (const domain of domains) {
		const { step } = plan.rotations[domain];
		const made = issuer.made(step, before.signers[domain]);
		signers[domain] = advance(before.signers[domain], step, made, now);
	}
	const leaves = { ...before.leaves };
	for (const due of plan.leaves) {
		const { current } = signers[due.domain];
		const pair = issuer.leaf((current as Authority).pair, due);
		leaves[due.id] = {
			...{ pair, facts: pair.facts, keyMatches: true },
			...{ chain: pair.facts.pem, signedBySigner: true },
		};
	}
	return { ...before, signers, leaves };
}

/** Generations a, b and c; each is made at half of its predecessor's life, which certifies it. */
const MADE = { a: NOW, b: NOW + LIFE / 2, c: NOW + LIFE };
const a = generation(MADE.a);
const b = generation(MADE.b, a.authority);
const END = {
	a: a.authority.facts.notAfter,
	b: b.authority.facts.notAfter,
};
const pairOf = ({ facts, pair }: Authority) => ({ facts, pair });

const steady: Signers = {
	current: a.authority,
	next: missing,
	trusted: [a.authority.facts],
	answered: {},
};
const publish: Signers = {
	...steady,
	next: b.authority,
	...(b.cross && { nextCross: b.cross }),
	trusted: [a.authority.facts, b.authority.facts],
};
const retire: Signers = {
	current: b.authority,
	next: missing,
	...(b.cross && { cross: b.cross }),
	trusted: publish.trusted,
	answered: {},
};
const spread: Signers = { ...retire, previous: pairOf(a.authority) };
/** The signer is lost, and the next one without anybody's signature. */
const { nextCross: _, ...withoutCross } = publish;
const emergency: Signers = { ...withoutCross, current: missing };

/** The cross-certificate of the current one is lost. */
const { cross: __, ...withoutChain } = spread;
/** Nobody knows what the current one has replaced. */
const lost: Signers = {
	...{ current: b.authority, next: missing, answered: {} },
	...{ previous: { facts: b.authority.facts }, trusted: [b.authority.facts] },
};

const broken = (authority: Authority): Authority => ({
	...authority,
	keyMatches: false,
});
const wait = (reason: string): Wait => ({
	who: `Deployment api/${reason.toLowerCase()}`,
	reason,
	message: "there is something in the way",
	obstacle: false,
});
const unwritten = wait("BundleNotWritten");
const undelivered = wait("CertificateNotWritten");
const unread = wait("ConsumerNotRestarted");
const unknown = wait("ConsumerUnknown");
const reaching = (reach: Partial<Reach>): Reach => ({
	...nobodyBehind,
	...reach,
});
const live = (at: number, signedBySigner = true): LiveLeaf => ({
	...validityFor(LEAF_LIFE, at),
	signedBySigner,
});

interface Case {
	signers: Signers;
	now: number;
	reach?: Partial<Reach>;
	leaves?: LiveLeaf[];
	spec?: Spec;
}
/** What is decided, in short. */
interface Decision {
	phase: Rotation["phase"];
	/** Step, as what, by whose certification, with what distrust. */
	step?: string;
	reason?: string;
	waits?: string[];
	nextStepAt?: number | undefined;
	harmlessUntil?: number | undefined;
	overdueAt?: number | undefined;
}

const decided = ({ signers, now, reach = {}, leaves = [], ...more }: Case) =>
	rotate(more.spec ?? spec, "client", signers, reaching(reach), leaves, now);

function inShort(rotation: Rotation): Decision {
	const { phase, step, reason, waits } = rotation;
	const { nextStepAt, harmlessUntil, overdueAt } = rotation;
	return {
		phase,
		...(step && { step: stepInShort(step) }),
		...(reason !== undefined && { reason }),
		waits: waits.map((one) => one.reason),
		...{ nextStepAt, harmlessUntil, overdueAt },
	};
}

function stepInShort(step: Step): string {
	if (step.do === "certify") {
		const { by, validity } = step.cross;
		const until = validity.notAfter === END.a ? "a's end" : "another time";
		return `certify ${step.of} by ${by} until ${until}`;
	}
	if (step.do !== "make") return step.do;
	return [
		`make ${step.as}`,
		step.cross && `certified by ${step.cross.by}`,
		step.distrust && "distrusting all others",
		step.lost && "lost",
	]
		.filter(Boolean)
		.join(", ");
}

const renewal = (facts: CertificateFacts) =>
	signerRenewalTime("sample", "client", facts);
/** The last quarter of the time since the new CA was made. */
const overdue = (made: number, harmlessUntil: number) =>
	harmlessUntil - Math.max(0, harmlessUntil - made) / 4;
const forHalfALife = { nextStepAt: renewal(a.authority.facts) };
const soon = MADE.b + MINUTE;
const crowd: Signers = {
	...steady,
	trusted: Array.from({ length: 32 }, (_, index) => ({
		...a.authority.facts,
		...(index > 0 && { fingerprint: `${index}` }),
	})),
};
const rows: [string, Case, Decision][] = [
	// Steady
	[
		"nothing at all makes a first signer, which nobody waits for",
		{ signers: emptySigners(), now: NOW },
		{ phase: "Steady", step: "make current", reason: "not there" },
	],
	[
		"a signer in the first half of its life stays",
		{ signers: steady, now: NOW, leaves: [live(NOW)] },
		{ phase: "Steady", ...forHalfALife },
	],
	[
		"a target out of reach since ever is no phase of anything",
		{
			signers: steady,
			now: NOW,
			reach: { undelivered: [undelivered], unwritten: [unwritten] },
		},
		{ phase: "Steady", ...forHalfALife },
	],
	[
		"a signer at half of its life gets a successor, certified by it",
		{ signers: steady, now: renewal(a.authority.facts) },
		{
			phase: "Publish",
			step: "make next, certified by current",
			reason: "past 1/2 of its life",
		},
	],
	[
		"a signer just before half of its life does not",
		{ signers: steady, now: renewal(a.authority.facts) - 1 },
		{ phase: "Steady", ...forHalfALife },
	],
	[
		"another validity replaces the signer",
		{
			signers: steady,
			now: NOW,
			spec: { ...spec, validity: { ...spec.validity, signing: 2 * LIFE } },
		},
		{
			phase: "Publish",
			step: "make next, certified by current",
			reason: "validity changed: from 730h0m0s to 1460h0m0s",
		},
	],
	[
		"the request after so many in a row waits for room in the bundle, and for whoever makes them",
		{
			signers: crowd,
			now: NOW,
			spec: asked({ rotate: "once more" }),
		},
		{ phase: "Retire", waits: ["TooManyCAs"], ...forHalfALife },
	],
	[
		"a signer at half of its life does not wait for that",
		{
			signers: crowd,
			now: renewal(a.authority.facts),
			spec: asked({ rotate: "once more" }),
		},
		{
			phase: "Publish",
			step: "make next, certified by current",
			reason: "past 1/2 of its life",
		},
	],
	[
		"a request replaces the signer",
		{ signers: steady, now: NOW, spec: asked({ rotate: "a drill" }) },
		{
			phase: "Publish",
			step: "make next, certified by current",
			reason: "requested: a drill",
		},
	],
	[
		"a request that has been answered does not",
		{
			signers: { ...steady, answered: { rotate: "a drill" } },
			now: NOW,
			spec: asked({ rotate: "a drill" }),
		},
		{ phase: "Steady", ...forHalfALife },
	],
	// Compromised
	[
		"a compromised signer is replaced at once, and what it certifies helps those who know only it",
		{
			signers: steady,
			now: NOW,
			reach: { unwritten: [unwritten] },
			spec: asked({ compromised: "stolen" }),
		},
		{
			phase: "Sign",
			step: "make current, certified by current, distrusting all others",
			reason: "compromised: stolen",
		},
	],
	[
		"in any phase",
		{
			signers: publish,
			now: soon,
			spec: asked({ compromised: "stolen", rotate: "a drill" }),
		},
		{
			phase: "Sign",
			step: "make current, certified by current, distrusting all others",
			reason: "compromised: stolen",
		},
	],
	[
		"while the spread is not confirmed, it is the previous one that certifies",
		{ signers: spread, now: soon, spec: asked({ compromised: "stolen" }) },
		{
			phase: "Sign",
			step: "make current, certified by previous, distrusting all others",
			reason: "compromised: stolen",
		},
	],
	[
		"once",
		{
			signers: { ...steady, answered: { compromised: "stolen" } },
			now: NOW,
			spec: asked({ compromised: "stolen" }),
		},
		{ phase: "Steady", ...forHalfALife },
	],
	[
		"what was never there cannot be compromised",
		{
			signers: emptySigners(),
			now: NOW,
			spec: asked({ compromised: "stolen" }),
		},
		{ phase: "Steady", step: "make current", reason: "not there" },
	],
	// Emergencies
	[
		"a signer that is gone, of which nothing else tells, gets a successor that is waited for, where something was handed out",
		{ signers: emptySigners(), now: NOW, reach: { handedOut: true } },
		{ phase: "Sign", step: "make current, lost", reason: "not there" },
	],
	[
		"who trusts one that nobody knows is cut off already",
		{ signers: lost, now: soon, reach: { unread: [unread] } },
		{
			phase: "Spread",
			waits: ["ConsumerNotRestarted"],
			harmlessUntil: MADE.b,
			overdueAt: MADE.b,
		},
	],
	[
		"and is waited for a day where nobody knows who that is",
		{ signers: lost, now: soon, reach: { unread: [unknown] } },
		{
			phase: "Spread",
			waits: ["ConsumerUnknown"],
			nextStepAt: MADE.b + 24 * HOUR,
			harmlessUntil: MADE.b,
			overdueAt: MADE.b,
		},
	],
	[
		"but no longer",
		{
			signers: lost,
			now: MADE.b + 24 * HOUR,
			reach: { unread: [unknown] },
		},
		{
			phase: "Steady",
			step: "confirm",
			reason:
				"the former CA has expired, and nobody else is known to need the new one",
		},
	],
	[
		"a signer that is gone, but is trusted, gets a successor that nobody certifies",
		{ signers: { ...emptySigners(), trusted: steady.trusted }, now: NOW },
		{ phase: "Publish", step: "make next", reason: "not there" },
	],
	[
		"one that is gone, of which nothing that is trusted lives, is replaced at once, and who had it must load the other",
		{
			signers: { ...emptySigners(), trusted: steady.trusted },
			reach: { handedOut: true },
			now: END.a,
		},
		{ phase: "Sign", step: "make current, lost", reason: "not there" },
	],
	[
		"so does one that cannot be read",
		{
			signers: {
				...steady,
				current: { unreadable: "damaged PEM" },
			},
			now: NOW,
		},
		{ phase: "Publish", step: "make next", reason: "unreadable: damaged PEM" },
	],
	[
		"one whose key does not match",
		{ signers: { ...steady, current: broken(a.authority) }, now: NOW },
		{ phase: "Publish", step: "make next", reason: "key does not match" },
	],
	[
		"one that is no CA",
		{
			signers: {
				...steady,
				current: {
					...a.authority,
					facts: { ...a.authority.facts, isCA: false },
				},
			},
			now: NOW,
		},
		{ phase: "Publish", step: "make next", reason: "not a CA" },
	],
	[
		"and one that has expired",
		{ signers: steady, now: END.a },
		{ phase: "Publish", step: "make next", reason: "expired" },
	],
	[
		"one from the future certifies its successor, for it may be our own clock that is behind",
		{ signers: steady, now: NOW - HOUR },
		{
			phase: "Publish",
			step: "make next, certified by current",
			reason: "not valid yet",
		},
	],
	[
		"but not where the successor has ended by then",
		{
			signers: steady,
			now: NOW - HOUR,
			spec: { ...spec, validity: { ...spec.validity, signing: MINUTE } },
		},
		{ phase: "Publish", step: "make next", reason: "not valid yet" },
	],
	[
		"a signer that is broken while the spread is not confirmed is replaced with the previous one's help",
		{ signers: { ...spread, current: broken(b.authority) }, now: soon },
		{
			phase: "Publish",
			step: "make next, certified by previous",
			reason: "key does not match",
		},
	],
	// Publish
	[
		"the next signer waits for the bundles, until 3/4 of the current one's life",
		{
			signers: publish,
			now: soon,
			reach: { unwritten: [unwritten], unread: [unread] },
			leaves: [live(MADE.b - HOUR)],
		},
		{
			phase: "Publish",
			waits: ["BundleNotWritten"],
			nextStepAt: partOfLife(a.authority.facts, 3 / 4),
			harmlessUntil: END.a,
			overdueAt: overdue(MADE.b, END.a),
		},
	],
	[
		"not for those who have not read them: they have the chain",
		{
			signers: publish,
			now: soon,
			reach: { unread: [unread], undelivered: [undelivered] },
		},
		{
			phase: "Sign",
			step: "promote",
			reason: "the new CA is in every bundle",
		},
	],
	[
		"at 3/4 of its life the next one goes on, and names who was not reached",
		{
			signers: publish,
			now: partOfLife(a.authority.facts, 3 / 4),
			reach: { unwritten: [unwritten] },
			leaves: [live(partOfLife(a.authority.facts, 3 / 4))],
		},
		{
			phase: "Sign",
			step: "promote",
			reason: "it could wait no longer",
			waits: ["BundleNotWritten"],
		},
	],
	[
		"without a chain it waits for the readers, too, until 9/10 of what was left of the first leaf's life",
		{
			signers: emergency,
			now: soon,
			reach: { unwritten: [unwritten], unread: [unread] },
			leaves: [live(MADE.b - HOUR, false), live(MADE.b - 2 * HOUR, false)],
		},
		{
			phase: "Publish",
			waits: ["BundleNotWritten", "ConsumerNotRestarted"],
			nextStepAt: MADE.b + (LEAF_LIFE - 2 * HOUR) * 0.9,
			harmlessUntil: MADE.b + (LEAF_LIFE - 2 * HOUR) * 0.9,
			overdueAt: overdue(MADE.b, MADE.b + (LEAF_LIFE - 2 * HOUR) * 0.9),
		},
	],
	[
		"also where the leaf was nearly at its end when the next signer was made",
		{
			signers: emergency,
			now: soon,
			reach: { unread: [unread] },
			leaves: [live(MADE.b + HOUR - LEAF_LIFE, false)],
		},
		{
			phase: "Publish",
			waits: ["ConsumerNotRestarted"],
			nextStepAt: MADE.b + HOUR * 0.9,
			harmlessUntil: MADE.b + HOUR * 0.9,
			overdueAt: overdue(MADE.b, MADE.b + HOUR * 0.9),
		},
	],
	[
		"without a chain and without a certificate in use, nobody is waited for",
		{ signers: emergency, now: soon, reach: { unread: [unread] } },
		{
			phase: "Sign",
			step: "promote",
			reason: "no certificate is in use",
			waits: ["ConsumerNotRestarted"],
		},
	],
	[
		"without a chain, when it could wait no longer, it goes on",
		{
			signers: emergency,
			now: MADE.b + LEAF_LIFE * 0.9,
			reach: { unread: [unread] },
			leaves: [live(MADE.b, false)],
		},
		{
			phase: "Sign",
			step: "promote",
			reason: "it could wait no longer",
			waits: ["ConsumerNotRestarted"],
		},
	],
	[
		"without a chain, when all have read the bundle, it goes on",
		{ signers: emergency, now: soon, leaves: [live(MADE.b, false)] },
		{ phase: "Sign", step: "promote", reason: "the new CA is in every bundle" },
	],
	[
		"a chain that has expired is none",
		{
			signers: publish,
			now: END.a,
			reach: { unread: [unread] },
			leaves: [live(END.a - HOUR, false)],
		},
		{
			phase: "Publish",
			waits: ["ConsumerNotRestarted"],
			nextStepAt: END.a - HOUR + LEAF_LIFE * 0.9,
			// Who has only the former CA is cut off with it.
			harmlessUntil: END.a,
			overdueAt: overdue(MADE.b, END.a),
		},
	],
	[
		"without a chain, and nobody who could make one, likewise",
		{
			signers: { ...withoutCross, current: broken(a.authority) },
			now: soon,
			reach: { unread: [unread] },
			leaves: [live(MADE.b)],
		},
		{
			phase: "Publish",
			waits: ["ConsumerNotRestarted"],
			nextStepAt: MADE.b + LEAF_LIFE * 0.9,
			harmlessUntil: MADE.b + LEAF_LIFE * 0.9,
			overdueAt: overdue(MADE.b, MADE.b + LEAF_LIFE * 0.9),
		},
	],
	[
		"a current signer that breaks in Publish leaves as much time as its leaves have",
		{
			signers: { ...publish, current: broken(a.authority) },
			now: soon,
			reach: { unwritten: [unwritten], unread: [unread] },
			leaves: [live(MADE.b)],
		},
		{
			phase: "Publish",
			waits: ["BundleNotWritten"],
			nextStepAt: MADE.b + LEAF_LIFE * 0.9,
			harmlessUntil: MADE.b + LEAF_LIFE * 0.9,
			overdueAt: overdue(MADE.b, MADE.b + LEAF_LIFE * 0.9),
		},
	],
	[
		"who had only a CA that has expired meanwhile is cut off already, and does not make it later for others",
		{
			signers: {
				...{ ...withoutCross, current: broken(a.authority) },
				trusted: [early(a.authority.facts), b.authority.facts],
			},
			now: soon + 1,
			reach: { unread: [unread] },
			leaves: [live(MADE.b)],
		},
		{
			phase: "Publish",
			waits: ["ConsumerNotRestarted"],
			nextStepAt: MADE.b + LEAF_LIFE * 0.9,
			harmlessUntil: MADE.b + LEAF_LIFE * 0.9,
			overdueAt: overdue(MADE.b, MADE.b + LEAF_LIFE * 0.9),
		},
	],
	[
		"a next signer that is broken is made again",
		{ signers: { ...publish, next: broken(b.authority) }, now: soon },
		{
			phase: "Publish",
			step: "make next, certified by current",
			reason: "next signer key does not match",
		},
	],
	[
		"a next signer that cannot be read likewise",
		{ signers: { ...publish, next: { unreadable: "junk" } }, now: soon },
		{
			phase: "Publish",
			step: "make next, certified by current",
			reason: "next signer unreadable: junk",
		},
	],
	// Sign
	[
		"while a leaf is another signer's, and everybody can be reached, nobody is waited for",
		{ signers: spread, now: soon, leaves: [live(MADE.b, false)] },
		{ phase: "Sign" },
	],
	[
		"a certificate that cannot be written is waited for until the first old leaf ends",
		{
			signers: spread,
			now: soon,
			leaves: [live(MADE.b - HOUR, false), live(MADE.b, true)],
			reach: { undelivered: [undelivered], unread: [unread] },
		},
		{
			phase: "Sign",
			waits: ["CertificateNotWritten"],
			harmlessUntil: MADE.b - HOUR + LEAF_LIFE,
			overdueAt: overdue(MADE.b, MADE.b - HOUR + LEAF_LIFE),
		},
	],
	[
		"where it cannot be read either, until the former CA ends",
		{ signers: spread, now: soon, reach: { undelivered: [undelivered] } },
		{
			phase: "Sign",
			waits: ["CertificateNotWritten"],
			harmlessUntil: END.a,
			overdueAt: overdue(MADE.b, END.a),
		},
	],
	// Spread
	[
		"who has not read the bundle is waited for, until the former CA ends",
		{
			signers: spread,
			now: soon,
			reach: { unread: [unread], unwritten: [unwritten] },
			leaves: [live(soon)],
		},
		{
			phase: "Spread",
			waits: ["BundleNotWritten", "ConsumerNotRestarted"],
			nextStepAt: END.a,
			harmlessUntil: END.a,
			overdueAt: overdue(MADE.b, END.a),
		},
	],
	[
		"a chain that is gone is made again as long as the former key is there",
		{ signers: withoutChain, now: soon, reach: { unread: [unread] } },
		{
			phase: "Spread",
			step: "certify current by previous until a's end",
			reason: "cross-certificate not there",
			waits: ["ConsumerNotRestarted"],
			nextStepAt: END.a,
			harmlessUntil: MADE.b,
			overdueAt: MADE.b,
		},
	],
	[
		"that of the next signer by who is current",
		{
			signers: withoutCross,
			now: soon,
			reach: { unread: [unread] },
			leaves: [live(MADE.b)],
		},
		{
			phase: "Publish",
			step: "certify next by current until a's end",
			reason: "cross-certificate not there",
			waits: ["ConsumerNotRestarted"],
			nextStepAt: MADE.b + LEAF_LIFE * 0.9,
			harmlessUntil: MADE.b + LEAF_LIFE * 0.9,
			overdueAt: overdue(MADE.b, MADE.b + LEAF_LIFE * 0.9),
		},
	],
	[
		"before that is done, nothing is signed",
		{ signers: withoutCross, now: soon },
		{
			phase: "Publish",
			step: "certify next by current until a's end",
			reason: "cross-certificate not there",
		},
	],
	[
		"who has no chain is cut off already",
		{
			signers: { ...withoutChain, previous: { facts: a.authority.facts } },
			now: soon,
			reach: { unread: [unread] },
		},
		{
			phase: "Spread",
			waits: ["ConsumerNotRestarted"],
			nextStepAt: END.a,
			harmlessUntil: MADE.b,
			overdueAt: MADE.b,
		},
	],
	[
		"and so is who has a chain to a CA that he does not trust either",
		{
			signers: {
				...spread,
				...crossOf(generation(MADE.b, generation(NOW).authority)),
			},
			now: soon,
			reach: { unread: [unread] },
		},
		{
			phase: "Spread",
			waits: ["ConsumerNotRestarted"],
			nextStepAt: END.a,
			harmlessUntil: MADE.b,
			overdueAt: MADE.b,
		},
	],
	[
		"as long as somebody trusts a compromised CA, that is harm",
		{
			signers: {
				...spread,
				previous: { facts: a.authority.facts },
				trusted: [b.authority.facts],
			},
			now: soon,
			reach: { unread: [unread] },
		},
		{
			phase: "Spread",
			waits: ["ConsumerNotRestarted"],
			harmlessUntil: MADE.b,
			overdueAt: MADE.b,
		},
	],
	[
		"until it has ended, where nobody knows who does",
		{
			signers: {
				...spread,
				previous: { facts: a.authority.facts },
				trusted: [b.authority.facts],
			},
			now: soon,
			reach: { unread: [unknown] },
		},
		{
			phase: "Spread",
			waits: ["ConsumerUnknown"],
			nextStepAt: END.a,
			harmlessUntil: MADE.b,
			overdueAt: MADE.b,
		},
	],
	[
		"when everybody has read it, the spread is confirmed",
		{ signers: spread, now: soon },
		{
			phase: "Retire",
			step: "confirm",
			reason: "all who verify have loaded the new CA",
		},
	],
	[
		"where nothing else is trusted, there is nothing to retire",
		{
			signers: {
				...spread,
				previous: { facts: a.authority.facts },
				trusted: [b.authority.facts],
			},
			now: soon,
		},
		{
			phase: "Steady",
			step: "confirm",
			reason: "all who verify have loaded the new CA",
		},
	],
	[
		"a successor waits until the spread is confirmed, whoever asks for it",
		{
			signers: spread,
			now: soon,
			reach: { unread: [unread] },
			spec: asked({ rotate: "a drill" }),
		},
		{
			phase: "Spread",
			waits: ["ConsumerNotRestarted", "RotationPutOff"],
			nextStepAt: END.a,
			harmlessUntil: END.a,
			overdueAt: overdue(MADE.b, END.a),
		},
	],
	[
		"or until the former CA has expired",
		{
			signers: spread,
			now: END.a,
			reach: { unread: [unread] },
			spec: asked({ rotate: "a drill" }),
		},
		{
			phase: "Publish",
			step: "make next, certified by current",
			reason: "requested: a drill",
		},
	],
	[
		"unless the former CA lives on when the current one is late in its life: then that certifies",
		{
			signers: {
				...spread,
				current: generation(MADE.b, a.authority, LIFE / 4).authority,
			},
			now: MADE.b + LIFE / 8,
			reach: { unread: [unread] },
			spec: { ...spec, validity: { ...spec.validity, signing: LIFE / 4 } },
		},
		{
			phase: "Publish",
			step: "make next, certified by previous",
			reason: "past 1/2 of its life",
		},
	],
	[
		"guesses are given up a day after the former CA has expired",
		{
			signers: lateInSpread(unknown),
			now: MADE.b + 25 * HOUR,
			reach: { unread: [unknown] },
		},
		{
			phase: "Steady",
			step: "confirm",
			reason:
				"the former CA has expired, and nobody else is known to need the new one",
		},
	],
	[
		"not before",
		{
			signers: lateInSpread(unknown),
			now: MADE.b + 23 * HOUR,
			reach: { unread: [unknown] },
		},
		{
			phase: "Spread",
			waits: ["ConsumerUnknown"],
			nextStepAt: MADE.b + 24 * HOUR,
			harmlessUntil: MADE.b + HOUR,
			overdueAt: MADE.b + 0.75 * HOUR,
		},
	],
	[
		"nor while the former CA lives",
		{ signers: spread, now: MADE.b + 25 * HOUR, reach: { unread: [unknown] } },
		{
			phase: "Spread",
			waits: ["ConsumerUnknown"],
			nextStepAt: END.a,
			harmlessUntil: END.a,
			overdueAt: overdue(MADE.b, END.a),
		},
	],
	[
		"and what is known is not given up",
		{
			signers: lateInSpread(unread),
			now: MADE.b + 25 * HOUR,
			reach: { unread: [unknown, unread] },
		},
		{
			phase: "Spread",
			waits: ["ConsumerUnknown", "ConsumerNotRestarted"],
			harmlessUntil: MADE.b + HOUR,
			overdueAt: MADE.b + 0.75 * HOUR,
		},
	],
	// Retire
	[
		"the former CA stays until it expires",
		{
			signers: retire,
			now: soon,
			reach: { unread: [unread], unwritten: [unwritten] },
		},
		{
			phase: "Retire",
			nextStepAt: Math.min(END.a, renewal(b.authority.facts)),
		},
	],
	[
		"after its last millisecond it goes",
		{
			signers: {
				...retire,
				trusted: [early(a.authority.facts), b.authority.facts],
			},
			now: soon + 1,
		},
		{
			phase: "Steady",
			step: "retire",
			reason: "the former CA has expired",
		},
	],
	[
		"and of two the other stays",
		{
			signers: {
				...retire,
				trusted: [
					early(a.authority.facts),
					generation(NOW).authority.facts,
					b.authority.facts,
				],
			},
			now: soon + 1,
		},
		{
			phase: "Retire",
			step: "retire",
			reason: "the former CA has expired",
		},
	],
	[
		"a leaf out of order when the spread is confirmed begins no phase",
		{
			signers: retire,
			now: soon,
			leaves: [live(MADE.b, false)],
			reach: { undelivered: [undelivered] },
		},
		{
			phase: "Retire",
			nextStepAt: Math.min(END.a, renewal(b.authority.facts)),
		},
	],
];

function crossOf({ cross }: { cross?: CertificateFacts }) {
	if (!cross) throw new Error("no cross-certificate");
	return { cross };
}

/** A CA that ends soon. */
function early(facts: CertificateFacts): CertificateFacts {
	return { ...facts, notAfter: soon };
}

/** A former CA that ended an hour after its successor was made. */
function lateInSpread(_: Wait): Signers {
	const former = generation(MADE.b - LIFE + HOUR).authority;
	const current = generation(MADE.b, former);
	return {
		...spread,
		current: current.authority,
		...crossOf(current),
		previous: pairOf(former),
		trusted: [current.authority.facts],
	};
}

describe("the replacement of a signer:", () => {
	test.each(rows)("%s", (_, one, expected) => {
		expect(inShort(decided(one))).toEqual({
			waits: [],
			nextStepAt: undefined,
			harmlessUntil: undefined,
			overdueAt: undefined,
			...expected,
		});
	});

	/** Of the same rows, where the signer's Secret cannot be written. */
	const stuck = (of: string) => {
		const row = rows.find(([title]) => title === of);
		if (!row) throw new Error(`no row: ${of}`);
		return held(decided(row[1]), row[1].signers, row[1].now);
	};
	test.each<[Rotation["phase"], letter: "a" | "b" | undefined, of: string]>([
		[
			"Steady",
			undefined,
			"nothing at all makes a first signer, which nobody waits for",
		],
		["Publish", "b", "before that is done, nothing is signed"],
		["Publish", "b", "a next signer that is broken is made again"],
		["Spread", "b", "when everybody has read it, the spread is confirmed"],
		[
			"Spread",
			"b",
			"a chain that is gone is made again as long as the former key is there",
		],
		["Retire", "b", "and of two the other stays"],
	])(
		"its Secret cannot be written, so it stays in %s (CA %s): %s",
		(phase, letter, of) => {
			const { facts } = { a, b }[letter ?? "a"].authority;
			const ca = letter && generationOf(facts);
			const rotation = stuck(of);
			expect([rotation.phase, rotation.generation]).toEqual([phase, ca]);
			expect(rotation).not.toHaveProperty("step");
			expect(rotation).not.toHaveProperty("reason");
		},
	);

	test("a replacement that is put off needs a person no more than what it waits for", () => {
		const puttingOff = (wait: Wait) =>
			decided({
				...{ signers: spread, now: soon, reach: { unread: [wait] } },
				spec: asked({ rotate: "a drill" }),
			}).waits.map(({ reason, obstacle }) => [reason, obstacle]);
		expect(puttingOff(unread)).toEqual([
			["ConsumerNotRestarted", false],
			["RotationPutOff", false],
		]);
		expect(puttingOff({ ...unread, obstacle: true })).toEqual([
			["ConsumerNotRestarted", true],
			["RotationPutOff", true],
		]);
	});

	test("a replacement that cannot be kept is harmless as long as the current signer lives", () => {
		const { harmlessUntil, overdueAt } = stuck(
			"a next signer that is broken is made again",
		);
		expect([harmlessUntil, overdueAt]).toEqual([END.a, overdue(MADE.a, END.a)]);
		expect(
			stuck("when everybody has read it, the spread is confirmed"),
		).not.toHaveProperty("harmlessUntil");
	});

	test("the rows come by every phase, every step and every reason", () => {
		const seen = (what: (decision: Decision) => string | undefined) =>
			[...new Set(rows.map(([, , decision]) => what(decision)))]
				.filter((one) => one !== undefined)
				.sort();
		expect(seen(({ phase }) => phase)).toEqual([
			...["Publish", "Retire", "Sign", "Spread", "Steady"],
		]);
		expect(seen(({ step }) => step)).toEqual([
			"certify current by previous until a's end",
			"certify next by current until a's end",
			"confirm",
			"make current",
			"make current, certified by current, distrusting all others",
			"make current, certified by previous, distrusting all others",
			"make current, lost",
			"make next",
			"make next, certified by current",
			"make next, certified by previous",
			"promote",
			"retire",
		]);
	});

	test("no plan holds a private key", () => {
		for (const [, one] of rows)
			expect(JSON.stringify(decided(one))).not.toContain("key:");
	});

	test("a signer lives as long as the spec says, and what certifies it no longer than who does", () => {
		const now = renewal(a.authority.facts);
		const { step } = decided({ signers: steady, now });
		expect(step).toMatchObject({
			commonName: "etcd client CA",
			organization: "sample",
			validity: validityFor(LIFE, now),
			cross: {
				by: "current",
				validity: { notBefore: validityFor(LIFE, now).notBefore },
			},
		});
		expect(step?.do === "make" && step.cross?.validity.notAfter).toBe(END.a);
	});

	test("a request counts as answered with the signer that is made for it, whatever it is made for", () => {
		const requests = { rotate: "a drill", compromised: "stolen" };
		const { step } = decided({
			signers: { ...steady, answered: { compromised: "stolen" } },
			now: END.a,
			spec: asked(requests),
		});
		expect(step?.do === "make" && step.answered).toEqual(requests);
	});
});

describe("the CA of which it matters who has loaded it", () => {
	test.each<[string, Signers, string | undefined]>([
		["is none while nothing is replaced", steady, undefined],
		["is none while a chain helps", publish, undefined],
		[
			"is the next one where none does",
			emergency,
			b.authority.facts.fingerprint,
		],
		["is the new one in Spread", spread, b.authority.facts.fingerprint],
		["is none in Retire", retire, undefined],
		[
			"is none that cannot be read",
			{ ...spread, current: { unreadable: "junk" } },
			undefined,
		],
	])("%s", (_, signers, expected) => {
		expect(spreading(signers, soon)?.fingerprint).toBe(expected);
	});

	test("is the next one once its chain has expired", () => {
		expect(spreading(publish, END.a - 1)).toBeUndefined();
		expect(spreading(publish, END.a)).toBe(b.authority.facts);
	});
});

describe("after a step the Secret holds", () => {
	const made = generation(MADE.c, b.authority);
	const make = (as: "current" | "next", distrust: boolean): Step => ({
		...{ do: "make", as, distrust, lost: false },
		answered: { rotate: "a drill" },
		...{ commonName: "etcd client CA", organization: "sample" },
		validity: validityFor(LIFE, MADE.c),
	});
	const certify = (of: "current" | "next"): Step => ({
		...{ do: "certify", of },
		cross: { by: "previous", validity: a.authority.facts },
	});
	/** In short: which generation is where. */
	const where = ({ current, next, ...signers }: Signers) => {
		const name = (facts: CertificateFacts | undefined) =>
			Object.entries({ a: a.authority, b: b.authority, c: made.authority })
				.filter(([, one]) => one.facts.keyIdentifier === facts?.keyIdentifier)
				.map(([letter]) => letter)[0];
		const { previous } = signers;
		return {
			current: "facts" in current ? name(current.facts) : undefined,
			next: "facts" in next ? name(next.facts) : undefined,
			nextCross: name(signers.nextCross),
			cross: name(signers.cross),
			previous: previous && name(previous.facts),
			previousKey: previous?.pair !== undefined,
			trusted: signers.trusted.map(name).join(""),
			answered: signers.answered.rotate,
		};
	};
	const none = {
		...{ current: undefined, next: undefined, nextCross: undefined },
		...{ cross: undefined, previous: undefined, previousKey: false },
		...{ answered: undefined },
	};
	const at = MADE.b + HOUR;
	test.each<
		[string, Signers, Step | undefined, number, ReturnType<typeof where>]
	>([
		[
			"make next: the next one beside the current one, both trusted",
			retire,
			make("next", false),
			at,
			{
				...none,
				...{ current: "b", next: "c", nextCross: "c", cross: "b" },
				...{ trusted: "abc", answered: "a drill" },
			},
		],
		[
			"make next instead of a broken one: that is trusted no longer, for it has signed nothing",
			{ ...publish, next: broken(b.authority) },
			make("next", false),
			at,
			{
				...none,
				...{ current: "a", next: "c", nextCross: "c" },
				...{ trusted: "ac", answered: "a drill" },
			},
		],
		[
			"make current: it, and nothing to wait for",
			emptySigners(),
			make("current", false),
			at,
			{
				...none,
				...{ current: "c", cross: "c", trusted: "c", answered: "a drill" },
			},
		],
		[
			"make current, distrusting: it alone, and of its predecessor no key",
			spread,
			make("current", true),
			at,
			{
				...none,
				...{ current: "c", cross: "c", previous: "b" },
				...{ trusted: "c", answered: "a drill" },
			},
		],
		[
			"promote: the next one as the current one, and its predecessor as the one that everybody trusts",
			publish,
			{ do: "promote" },
			at,
			{
				...none,
				...{ current: "b", cross: "b", previous: "a", previousKey: true },
				trusted: "ab",
			},
		],
		[
			"promote while the spread before is not confirmed: everybody trusts who they trusted before",
			{
				...spread,
				next: made.authority,
				...(made.cross && { nextCross: made.cross }),
			},
			{ do: "promote" },
			at,
			{
				...none,
				...{ current: "c", cross: "c", previous: "a", previousKey: true },
				trusted: "ab",
			},
		],
		[
			"promote when that has expired: the last current one",
			{
				...spread,
				next: made.authority,
				trusted: [...spread.trusted, made.authority.facts],
			},
			{ do: "promote" },
			END.a + 1,
			{
				...none,
				...{ current: "c", previous: "b", previousKey: true },
				trusted: "abc",
			},
		],
		[
			"promote after a broken one: no key that is not its",
			{ ...publish, current: broken(a.authority) },
			{ do: "promote" },
			at,
			{
				...none,
				...{ current: "b", cross: "b", previous: "a" },
				trusted: "ab",
			},
		],
		[
			"promote after a lost one: the newest of what was trusted",
			{
				...emergency,
				next: made.authority,
				trusted: [a.authority.facts, b.authority.facts, made.authority.facts],
			},
			{ do: "promote" },
			at,
			{ ...none, ...{ current: "c", previous: "b", trusted: "abc" } },
		],
		[
			"confirm: no former key",
			spread,
			{ do: "confirm" },
			at,
			{ ...none, ...{ current: "b", cross: "b", trusted: "ab" } },
		],
		[
			"retire: what has not expired",
			retire,
			{ do: "retire" },
			END.a + 1,
			{ ...none, ...{ current: "b", trusted: "b" } },
		],
		[
			"no step: what has not expired, either",
			retire,
			undefined,
			END.a + 1,
			{ ...none, ...{ current: "b", trusted: "b" } },
		],
		[
			"no step while another one spreads: bundles as they are, for who has loaded them would have to do so again",
			spread,
			undefined,
			END.a + 1,
			{
				...none,
				...{ current: "b", previous: "a", previousKey: true },
				trusted: "ab",
			},
		],
		[
			"make current, distrusting one that cannot be read: of the newest that was trusted, to wait for who trusts it",
			{ ...retire, current: missing },
			make("current", true),
			at,
			{
				...none,
				...{ current: "c", cross: "c", previous: "b" },
				...{ trusted: "c", answered: "a drill" },
			},
		],
		[
			"make current where nobody knows what was there: itself, to wait for whoever trusts that",
			emptySigners(),
			{ ...make("current", false), lost: true } as Step,
			at,
			{
				...none,
				...{ current: "c", cross: "c", previous: "c" },
				...{ trusted: "c", answered: "a drill" },
			},
		],
		[
			"certify current: its cross-certificate",
			withoutChain,
			certify("current"),
			at,
			{
				...none,
				...{ current: "b", cross: "b", previous: "a", previousKey: true },
				trusted: "ab",
			},
		],
		[
			"certify next: the next one's",
			withoutCross,
			certify("next"),
			at,
			{
				...none,
				...{ current: "a", next: "b", nextCross: "b", trusted: "ab" },
			},
		],
		[
			"no step in the middle of life: the same",
			spread,
			undefined,
			at,
			{
				...none,
				...{ current: "b", cross: "b", previous: "a", previousKey: true },
				trusted: "ab",
			},
		],
	])("%s", (_, before, step, now, expected) => {
		const copy = structuredClone(before);
		const after = advance(
			before,
			step,
			step?.do === "make"
				? made
				: step?.do === "certify" && b.cross
					? { cross: b.cross }
					: undefined,
			now,
		);
		expect(where(after)).toEqual(expected);
		expect(before).toEqual(copy);
	});

	test("a step that makes something does not go without it", () => {
		expect(() => advance(steady, make("next", false), undefined, NOW)).toThrow(
			"without what it makes",
		);
	});

	test("one more generation, the newest being the next one while there is one", () => {
		expect(newest(publish)).toBe(b.authority);
		expect(newest(steady)).toBe(a.authority);
		expect(newest(emptySigners())).toBeUndefined();
		expect(generationOf(a.authority.facts)).toBe(
			a.authority.facts.commonName.slice(-8),
		);
	});
});

describe("a phase", () => {
	const waiting = (waits: Wait[], more: Partial<Rotation>): Rotation => ({
		...{ domain: "client", phase: "Spread", waits },
		...more,
	});
	const obstacle = { ...unread, obstacle: true };
	const until = { harmlessUntil: NOW + 8 * HOUR, overdueAt: NOW + 6 * HOUR };
	test.each<[string, Rotation, number, boolean, boolean]>([
		["that waits for nobody is fine", waiting([], {}), LIFE, false, false],
		[
			"that waits for who may come by himself has 15 minutes",
			waiting([unread], until),
			15 * MINUTE,
			false,
			false,
		],
		[
			"that has waited longer needs a person",
			waiting([unread], until),
			15 * MINUTE + 1,
			true,
			false,
		],
		[
			"that has little time gives a quarter of it",
			waiting([unread], { ...until, harmlessUntil: NOW + 8 * MINUTE }),
			2 * MINUTE + 1,
			true,
			false,
		],
		[
			"in which harm is done already gives as long as a kubelet takes",
			waiting([unread], { harmlessUntil: NOW - 1, overdueAt: NOW - 1 }),
			2 * MINUTE,
			false,
			false,
		],
		[
			"in which it is done for longer is too late",
			waiting([unread], { harmlessUntil: NOW - 1, overdueAt: NOW - 1 }),
			2 * MINUTE + 1,
			true,
			true,
		],
		[
			"with an obstacle needs a person at once",
			waiting([unread, obstacle], until),
			0,
			true,
			false,
		],
		[
			"in its last quarter is nearly too late",
			waiting([obstacle], until),
			6 * HOUR,
			true,
			true,
		],
	])("%s", (_, rotation, after, blocked, overdue) => {
		expect(standing(rotation, NOW, NOW + after)).toEqual({ blocked, overdue });
	});
});

describe("times", () => {
	test("of what was made together are spread", () => {
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

	test("of renewal come 10 % of a life earlier at most, and by 1/2 and 2/3 of it at the latest", () => {
		for (let index = 0; index < 1000; index++) {
			const { facts } = generation(NOW).authority;
			const name = `tenant-${index}`;
			const part = (at: number) => (at - NOW) / LIFE;
			const signer = part(signerRenewalTime(name, "client", facts));
			expect(signer).toBeGreaterThan(1 / 2 - 0.1001);
			expect(signer).toBeLessThanOrEqual(1 / 2);
			const leaf = part(leafRenewalTime(name, "client", facts));
			expect(leaf).toBeGreaterThan(2 / 3 - 0.1001);
			expect(leaf).toBeLessThanOrEqual(2 / 3);
		}
	});

	test("of a certificate begin five minutes back, in whole seconds, and stay inside its signer's", () => {
		expect(BACKDATE).toBe(5 * MINUTE);
		expect(validityFor(HOUR, NOW + 999)).toEqual({
			notBefore: NOW - BACKDATE,
			notAfter: NOW + HOUR,
		});
		const signer = { notBefore: NOW, notAfter: NOW + HOUR };
		expect(validityFor(2 * HOUR, NOW, signer)).toEqual(signer);
		expect(issuedAt(validityFor(HOUR, NOW))).toBe(NOW);
	});
});
