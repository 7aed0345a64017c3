import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { issue } from "../certificates.ts";
import type { EtcdStorage, Spec } from "../etcdstorage.ts";
import { domains } from "../lifetimes.ts";
import { parseCertificates } from "../pki.ts";
import { decide, type Observed } from "../reconcile.ts";
import {
	type Certs,
	type CertsReport,
	type Planned,
	planned,
	type Report,
	type Seen,
	shown,
	unshown,
} from "../report.ts";
import type { Wait } from "../rotation.ts";
import { generationOf } from "../signers.ts";
import type { Outcome } from "../status.ts";
import { certsText, planText, span, table } from "../tables.ts";

const DAY = 86_400_000;
const NOW = Date.UTC(2026, 10, 23, 12);
const NAMESPACE = "storage";
const CLIENT = "client/api/cert";

const spec: Spec = {
	name: "x",
	replicas: 3,
	targets: [
		{ kind: "ConfigMap", name: "ca", namespace: "api" },
		{ kind: "Secret", name: "cert", namespace: "api" },
	],
	consumers: [
		{ kind: "Deployment", name: "one", namespace: "api" },
		{ kind: "Deployment", name: "two", namespace: "api" },
	],
	validity: { signing: 30 * DAY, serving: 20 * DAY, client: 20 * DAY },
	requests: { client: {}, serving: {} },
	warnings: [],
};
const storage = {
	apiVersion: "etcd.xmudrii.com/v1alpha1",
	kind: "EtcdStorage",
	metadata: { name: "x", generation: 1 },
} as EtcdStorage;

const nobody = { unwritten: [], undelivered: [], unread: [], handedOut: true };
const nothing = (): Observed => ({
	signers: {
		client: {
			current: { missing: true },
			next: { missing: true },
			trusted: [],
			answered: {},
		},
		serving: {
			current: { missing: true },
			next: { missing: true },
			trusted: [],
			answered: {},
		},
	},
	reach: { client: nobody, serving: nobody },
	leaves: { server: { missing: true }, [CLIENT]: { missing: true } },
});

/** One visit that succeeds with everything. */
async function visited(
	observed: Observed,
	now: number,
	wanted = spec,
): Promise<Observed> {
	const plan = decide(wanted, NAMESPACE, observed, now);
	const [client, serving] = await Promise.all([
		issue("client", plan, observed, now),
		issue("serving", plan, observed, now),
	]);
	return {
		signers: { client: client.signers, serving: serving.signers },
		reach: observed.reach,
		leaves: Object.fromEntries(
			Object.entries({ ...client.leaves, ...serving.leaves }).map(
				([id, { pair, facts }]) => [
					id,
					{
						pair,
						facts,
						keyMatches: true,
						chain: pair.certificate,
						signedBySigner: true,
					},
				],
			),
		),
	};
}

/** Everything written that ought to be. */
function see(observed: Observed, now: number, wanted = spec): Seen {
	const { signers, leaves } = observed;
	return {
		spec: wanted,
		observation: {
			observed,
			fillable: wanted.targets,
			targets: new Map(),
			signerSecrets: { client: undefined, serving: undefined },
			coreCA: "",
			coreTrouble: undefined,
			problems: [],
			unknown: [],
			restart: undefined,
		},
		rotations: decide(wanted, NAMESPACE, observed, now).rotations,
		starting: [
			{
				domain: "client",
				who: "proxies that start with ConfigMap storage/x-ca-cert",
				trusted: signers.client.trusted,
			},
			{
				domain: "serving",
				who: "API servers that start with ConfigMap api/ca",
				trusted: signers.serving.trusted,
			},
		],
		chains: new Map(
			Object.entries(leaves).flatMap(([id, leaf]) =>
				"chain" in leaf ? [[id, parseCertificates(leaf.chain)] as const] : [],
			),
		),
		now,
	};
}

const wait: Wait = {
	who: "Deployment api/two",
	reason: "ConsumerStuck",
	message:
		"Deployment api/two is paused, so that its pods are not restarted; go on with it: kubectl -n api rollout resume deployment/two",
	obstacle: true,
};

/** The serving CA is replaced: Spread, and one consumer is behind. */
async function spreading() {
	const before = await visited(nothing(), NOW);
	const asked: Spec = {
		...spec,
		requests: { ...spec.requests, serving: { rotate: "drill" } },
	};
	const later = NOW + 2 * DAY;
	const publish = await visited(before, later, asked);
	const sign = await visited(publish, later, asked);
	sign.reach.serving = { ...nobody, unread: [wait] };
	return { observed: sign, asked, later };
}

test("a plan is what the controller would log, and its status without CAs that are made up", async () => {
	const { observed, asked, later } = await spreading();
	const { rotations, leaves } = decide(asked, NAMESPACE, observed, later);
	const { current } = observed.signers.client;
	if (!("facts" in current)) throw new Error("no signer");
	const { facts } = current;
	const outcome: Outcome = {
		problems: [],
		issued: [
			{ id: "client-signer", reason: "past 1/2 of its life" },
			...leaves.map(({ id, reason }) => ({ id, reason })),
		],
		written: [
			"Secret storage/x-client-signer configured",
			"ConfigMap storage/x-ca-cert configured",
			"Deployment api/one restarted",
		],
		certificates: domains.map((domain) => ({
			...{ id: `${domain}-signer`, domain, facts, renewalTime: later + DAY },
		})),
		rotations: [
			{
				...rotations.client,
				step: { do: "promote" },
				reason: "the new CA is in every bundle",
				generation: "0badcafe",
			},
			rotations.serving,
		],
		stepped: true,
		targets: [],
	};
	const plan = planned(
		storage,
		NAMESPACE,
		{
			outcome,
			writes: [
				{ verb: "patch", object: "EtcdStorage x" },
				{ verb: "apply", object: "Secret storage/x-client-signer" },
				// One in which somebody else has a hand.
				{ verb: "patch", object: "ConfigMap storage/x-ca-cert" },
				{ verb: "apply", object: "ConfigMap storage/x-ca-cert" },
				{ verb: "patch", object: "Deployment api/one" },
				{ verb: "patch", object: "Secret other/former" },
			],
			events: [],
		},
		later,
	);
	expect(plan).toMatchObject({
		person: true,
		steps: [
			{
				domain: "client",
				step: "promote",
				reason: "the new CA is in every bundle",
			},
		],
		written: [
			"EtcdStorage x patched",
			"Secret storage/x-client-signer configured",
			"ConfigMap storage/x-ca-cert configured",
			"Deployment api/one restarted",
			"Secret other/former patched",
		],
		status: {
			certificates: [
				{ name: "client-signer", rotation: { generation: "new" } },
				{
					name: "serving-signer",
					rotation: {
						generation: rotations.serving.generation ?? "",
						phase: "Spread",
						waitingFor: [`ConsumerStuck: ${wait.message}`],
					},
				},
			],
		},
		nextVisit: "2026-11-25T12:00:00Z",
	});
	expect(planned(storage, NAMESPACE, { writes: [], events: [] }, NOW)).toEqual({
		...{ name: "x", person: false, steps: [], issued: [] },
		...{ written: [], events: [] },
	});
});

describe("certs", () => {
	test("shows the chain of a CA that is being replaced, and who trusts whom", async () => {
		const { observed, asked, later } = await spreading();
		const { current, previous } = observed.signers.serving;
		const ca = "facts" in current ? generationOf(current.facts) : "";
		const former = previous ? generationOf(previous.facts) : "";
		const report = shown(see(observed, later, asked));
		expect(report.phases).toEqual({ client: "Steady", serving: "Spread" });
		expect(
			report.certificates.filter(({ domain }) => domain === "serving"),
		).toEqual([
			{
				id: `CA ${ca}`,
				domain: "serving",
				role: "current",
				by: [ca],
				notBefore: "2026-11-25T11:55:00Z",
				notAfter: "2026-12-25T12:00:00Z",
				leftPercent: 100,
				renewalTime: expect.stringMatching(/^2026-12-(07|08|09|10)T/),
			},
			{
				id: `CA ${former}`,
				domain: "serving",
				role: "previous",
				by: [former],
				notBefore: "2026-11-23T11:55:00Z",
				notAfter: "2026-12-23T12:00:00Z",
				leftPercent: 93,
			},
			{
				id: `CA ${ca}`,
				domain: "serving",
				role: "cross",
				by: [former],
				notBefore: "2026-11-25T11:55:00Z",
				notAfter: "2026-12-23T12:00:00Z",
				leftPercent: 100,
			},
			{
				id: "server",
				domain: "serving",
				role: "leaf",
				by: [ca, former],
				notBefore: "2026-11-25T11:55:00Z",
				notAfter: "2026-12-15T12:00:00Z",
				leftPercent: 100,
				renewalTime: expect.stringMatching(/^2026-12-(06|07|08)T/),
			},
		]);
		expect(
			report.verifiers.filter(({ domain }) => domain === "serving"),
		).toEqual([
			{
				domain: "serving",
				who: "Deployment api/two",
				trusts: [former],
				state: "behind",
				message: wait.message,
			},
			{ domain: "serving", who: "Deployment api/one", trusts: [former, ca] },
			{
				domain: "serving",
				who: "API servers that start with ConfigMap api/ca",
				trusts: [former, ca],
			},
		]);
		expect(report.verifiers[0]).toMatchObject({
			...{ who: "proxies that run", state: "not asked" },
		});
	});

	test("takes nobody to trust the new CA before everybody could load it", async () => {
		const { observed, asked, later } = await spreading();
		const { previous } = observed.signers.serving;
		observed.reach.serving.unwritten = [
			{ ...wait, who: "ConfigMap other/ca", reason: "BundleNotWritten" },
		];
		expect(shown(see(observed, later, asked)).verifiers[3]).toEqual({
			domain: "serving",
			who: "Deployment api/one",
			trusts: previous ? [generationOf(previous.facts)] : [],
			state: "not asked",
		});
	});

	test("names those who read a bundle that no consumer is named for beside consumers", async () => {
		const { observed, asked, later } = await spreading();
		const target = {
			kind: "ConfigMap",
			name: "ca",
			namespace: "other",
		} as const;
		const targets = [...asked.targets, target];
		const serving = (wanted: typeof asked) =>
			shown(see(observed, later, wanted))
				.verifiers.filter(({ domain }) => domain === "serving")
				.map(({ who }) => who);
		const who = "API servers with ConfigMap other/ca";
		expect(serving({ ...asked, targets })).toContain(who);
		expect(serving(asked)).not.toContain(who);
		const consumer = {
			kind: "Deployment",
			name: "a",
			namespace: "other",
		} as const;
		const consumers = [...asked.consumers, consumer];
		expect(serving({ ...asked, targets, consumers })).not.toContain(who);
	});

	test("says when who is behind is cut off, if that is before the certificate expires", async () => {
		const { observed, asked, later } = await spreading();
		// As if it had been renewed shortly before the former CA's end.
		const now = later + 25 * DAY;
		const plan = decide(asked, NAMESPACE, observed, now);
		const { leaves } = await issue("serving", plan, observed, now);
		const { pair } = leaves.server ?? {};
		if (!pair) throw new Error("no certificate");
		const seen = see(observed, now, asked);
		seen.chains.set("server", parseCertificates(pair.certificate));
		const { breaks, certificates } = shown(seen);
		const ofRole = (role: string) =>
			certificates.find((one) => one.domain === "serving" && one.role === role)
				?.id;
		expect(
			breaks
				.filter((one) => one.domain === "serving")
				.map(({ at, message }) => [at, message]),
		).toEqual([
			[
				"2026-12-23T12:00:00Z",
				`the cross-certificate of ${ofRole("current")} by ${ofRole("previous")} ends: the endpoint is refused by Deployment api/two`,
			],
			[
				"2026-12-25T12:00:00Z",
				"server expires: the endpoint is refused by every API server",
			],
		]);
	});

	test("says of what is not there what that means", () => {
		const report = shown(see(nothing(), NOW));
		expect(
			report.certificates.map(({ id, domain, role, trouble }) =>
				[id, domain, role, trouble].join(" "),
			),
		).toEqual([
			"CA client current is not there",
			"CA serving current is not there",
			"server serving leaf is not there",
			"client/api/cert client leaf is not there",
		]);
		expect(report.breaks.map(({ message }) => message).sort()).toEqual([
			"client/api/cert is not there: API servers that start cannot connect",
			"server is not there: proxies that start cannot serve",
		]);
	});

	test("of an invalid spec says why, once", () => {
		const problems = (["CertificatesReady", "Deployed"] as const).map(
			(condition) => ({
				...{ condition, reason: "InvalidSpec", userError: true },
				message: "spec.replicas 0 must be a whole number",
			}),
		);
		expect(unshown("x", problems)).toEqual({
			name: "x",
			phases: {},
			problems: ["InvalidSpec: spec.replicas 0 must be a whole number"],
			...{ breaks: [], certificates: [], verifiers: [] },
		});
	});
});

test("no key and no certificate's text is in a report, whatever happens to the CAs", async () => {
	const steps = fc.constantFrom(
		"visit",
		"rotate",
		"compromise",
		"lose",
		"stall",
		"time",
	);
	await fc.assert(
		fc.asyncProperty(
			fc.array(steps, { minLength: 1, maxLength: 8 }),
			async (actions) => {
				let observed = await visited(nothing(), NOW);
				let now = NOW;
				const wanted = structuredClone(spec);
				for (const [index, action] of actions.entries()) {
					const { requests } = wanted;
					if (action === "rotate") requests.serving.rotate = `${index}`;
					if (action === "compromise") requests.client.compromised = `${index}`;
					if (action === "lose")
						observed.signers.client.current = { missing: true };
					if (action === "stall")
						observed.reach.serving = { ...nobody, unread: [wait] };
					if (action === "time") now += 8 * DAY;
					if (action === "visit")
						observed = await visited(observed, now, wanted);
					const certs: CertsReport = {
						now: "2026-11-23T12:00:00Z",
						core: [],
						etcdStorages: [shown(see(observed, now, wanted))],
					};
					const text = [JSON.stringify(certs), certsText(certs)].join("\n");
					expect(text).toContain("serving");
					expect(text).not.toMatch(/-----BEGIN|PRIVATE|MII|MIG/);
				}
			},
		),
		{ numRuns: 40 },
	);
}, 60_000);

test("a span is told by its two largest units", () => {
	expect(
		[0, 999, 61_000, 3_600_000, 90_000_000, 14 * DAY + 3.5 * 3_600_000].map(
			span,
		),
	).toEqual(["0s", "0s", "1m 1s", "1h", "1d 1h", "14d 3h"]);
	expect(span(-400 * DAY)).toBe("1y 35d");
});

test("a table's columns are as wide as they must be, and its lines end with their text", () => {
	expect(
		table(
			["A", "N", "B"],
			[
				["longer", "1", "x"],
				["s", "22", ""],
			],
		),
	).toEqual(["A       N   B", "longer  1   x", "s       22"]);
	expect(table(["A"], [])).toEqual([]);
});

describe("as text", () => {
	const condition = (type: string, status: string, message = "") =>
		({ type, status, reason: `${type}${status}`, message }) as NonNullable<
			NonNullable<Planned["status"]>["conditions"]
		>[number];
	const signer = (domain: string, generation: string, renewalTime: string) => ({
		name: `${domain}-signer`,
		notBefore: "2026-11-23T18:44:00Z",
		notAfter: "2026-12-23T18:49:00Z",
		renewalTime,
		rotation: {
			generation,
			phase: "Steady",
			since: "2026-11-23T12:00:00Z",
			reason: "no other CA is trusted",
			nextStepAt: renewalTime,
		},
	});
	const nobody = { steps: [], issued: [], written: [], events: [] };
	const quiet: Planned = {
		name: "calm",
		person: false,
		...nobody,
		status: {
			conditions: [
				condition("CertificatesReady", "True"),
				condition("Deployed", "True"),
				condition("Ready", "True"),
				condition("RotationBlocked", "False"),
			],
			certificates: [
				signer("client", "107e2539", "2026-12-07T07:59:45Z"),
				signer("serving", "63b30851", "2026-12-05T07:59:45Z"),
			],
		},
	};
	const busy = structuredClone(quiet);
	Object.assign(busy, {
		name: "busy",
		person: true,
		steps: [{ domain: "client", step: "make", reason: "past 1/2 of its life" }],
		issued: [{ id: "server", reason: "past 2/3 of its life" }],
		written: ["Secret storage/busy-server-cert configured"],
	});
	const blocked = `serving CA 63b30851, phase Spread: ${wait.message}. Harmless until 2026-12-23T18:49:02Z`;
	busy.status?.conditions?.splice(
		...[3, 1],
		condition("RotationBlocked", "True", blocked),
	);
	busy.status?.certificates?.forEach(({ rotation }, index) => {
		if (!rotation) return;
		rotation.phase = index === 0 ? "Publish" : "Spread";
		rotation.waitingFor =
			index === 0
				? ["BundleNotWritten: ConfigMap api/ca does not carry the CA"]
				: [`ConsumerStuck: ${wait.message}`];
	});
	const report = <T>(...etcdStorages: T[]): Report<T> => ({
		now: "2026-11-23T12:00:00Z",
		etcdStorages,
	});

	test("plan tells first who needs somebody, and of whom there is nothing to tell no more than a line", () => {
		expect(planText(report(busy, quiet)).split("\n")).toEqual([
			"2026-11-23 12:00:00Z, by the API server's clock",
			"EtcdStorages: 2, in need of a person: 1, to be written to now: 1",
			"",
			"ETCDSTORAGE  DOMAIN   PHASE    CA        NOW                            NEXT STEP",
			"busy         client   Publish  107e2539  make; waits: BundleNotWritten  2026-12-07 07:59:45Z (in 13d 19h)",
			"busy         serving  Spread   63b30851  blocked: ConsumerStuck         2026-12-05 07:59:45Z (in 11d 19h)",
			"calm         client   Steady   107e2539  nothing                        2026-12-07 07:59:45Z (in 13d 19h)",
			"calm         serving  Steady   63b30851  nothing                        2026-12-05 07:59:45Z (in 11d 19h)",
			"",
			"busy",
			"  now",
			"    client CA: make (past 1/2 of its life)",
			"    issue server (past 2/3 of its life)",
			"    Secret storage/busy-server-cert configured",
			"  to know",
			`    RotationBlockedTrue: ${blocked}`,
			"  waits for",
			"    BundleNotWritten: ConfigMap api/ca does not carry the CA",
			"  next",
			"    2026-12-05 07:59:45Z  in 11d 19h  serving-signer is renewed; it would expire 2026-12-23 18:49:00Z",
			"    2026-12-07 07:59:45Z  in 13d 19h  client-signer is renewed; it would expire 2026-12-23 18:49:00Z",
			"",
			"A running controller writes this within a minute, unless a write is refused, which nobody knows before. If it stays: kubectl describe etcdstorage, and the controller's log.",
			"",
		]);
	});

	test("plan of one EtcdStorage tells when each certificate is renewed", () => {
		expect(planText(report(quiet)).split("\n").slice(6)).toEqual([
			"",
			"calm",
			"  now",
			"    nothing",
			"  next",
			"    2026-12-05 07:59:45Z  in 11d 19h  serving-signer is renewed; it would expire 2026-12-23 18:49:00Z",
			"    2026-12-07 07:59:45Z  in 13d 19h  client-signer is renewed; it would expire 2026-12-23 18:49:00Z",
			"",
		]);
	});

	test("an EtcdStorage whose spec is invalid, or that is being deleted, has its line", () => {
		const invalid: Planned = {
			...{ name: "bad", person: true, ...nobody },
			status: { conditions: [condition("Deployed", "False", "no replicas")] },
		};
		const leaving: Planned = {
			...{ name: "gone", person: false, ...nobody },
			written: ["EtcdStorage gone patched"],
			events: [{ type: "Normal", reason: "DataRetained", message: "keys" }],
		};
		expect(planText(report(invalid, leaving)).split("\n").slice(3)).toEqual([
			"ETCDSTORAGE  DOMAIN  PHASE  CA  NOW            NEXT STEP",
			"bad          -       -      -   DeployedFalse  -",
			"gone         -       -      -   DataRetained   -",
			"",
			"bad",
			"  now",
			"    nothing",
			"  to know",
			"    DeployedFalse: no replicas",
			"",
			"gone",
			"  now",
			"    EtcdStorage gone patched",
			"  to know",
			"    DataRetained: keys",
			"",
			expect.stringMatching(/^A running controller writes this/),
			"",
		]);
	});

	test("plan and certs say so where there is nothing", () => {
		const text =
			"2026-11-23 12:00:00Z, by the API server's clock\nNOTE: a clock is wrong\nThere are no EtcdStorages.\n";
		const none = { ...report<never>(), note: "a clock is wrong" };
		expect(planText(none)).toBe(text);
		expect(certsText({ ...none, core: [] })).toBe(text);
	});

	const life = {
		notBefore: "2026-11-20T12:00:00Z",
		notAfter: "2026-12-20T12:00:00Z",
		leftPercent: 90,
	};
	const ca = { domain: "serving" as const, by: ["0c13da83"], ...life };
	const chain: Certs = {
		name: "calm",
		phases: { serving: "Spread" },
		problems: ["TargetMissing: Secret api/cert is not there"],
		breaks: [
			{
				at: "2026-11-22T12:00:00Z",
				already: true,
				domain: "serving",
				certificates: ["server"],
				refusedBy: ["API servers that start with ConfigMap other/ca"],
				message: "server is refused",
			},
		],
		certificates: [
			{
				id: "CA 0c13da83",
				role: "current",
				renewalTime: "2026-12-05T12:00:00Z",
				...ca,
			},
			{ id: "CA 725772c5", role: "previous", ...ca, by: ["725772c5"] },
			{ id: "CA 0c13da83", role: "cross", ...ca, by: ["725772c5"] },
			{
				id: "server",
				role: "leaf",
				...ca,
				by: ["0c13da83", "725772c5"],
				notAfter: "2026-11-22T12:00:00Z",
			},
			{
				id: "client/api/cert",
				domain: "client",
				role: "leaf",
				by: [],
				trouble: "is not there",
			},
		],
		verifiers: [
			{
				domain: "serving",
				who: "Deployment api/two",
				trusts: ["725772c5"],
				state: "behind",
				message: wait.message,
			},
			{
				domain: "serving",
				who: "Deployment api/one",
				trusts: ["725772c5", "0c13da83"],
			},
			{ domain: "serving", who: "API servers that start", trusts: [] },
		],
	};
	const certs = (...more: Certs[]): CertsReport => ({
		...report(chain, ...more),
		core: [
			{
				...{ id: "Secret storage/core", domain: "core", role: "core" },
				by: [],
				...life,
			},
		],
	});

	test("certs shows the whole of one EtcdStorage, what breaks when before all else", () => {
		expect(certsText(certs()).split("\n")).toEqual([
			"2026-11-23 12:00:00Z, by the API server's clock",
			"",
			"calm, serving CA: Spread",
			"  WRONG: TargetMissing: Secret api/cert is not there",
			"  What breaks when, if nothing is done any more",
			"    AT                              WHAT",
			"    2026-11-22 12:00:00Z !  1d ago  server is refused",
			"  Certificates",
			"    CERTIFICATE      DOMAIN   ROLE                BY CA               UNTIL                 LEFT      RENEWAL",
			"    CA 0c13da83      serving  current             0c13da83            2026-12-20 12:00:00Z  27d, 90%  in 12d",
			"    CA 725772c5      serving  previous            725772c5            2026-12-20 12:00:00Z  27d, 90%",
			"    CA 0c13da83      serving  cross               725772c5            2026-12-20 12:00:00Z  27d, 90%",
			"    server           serving  leaf                0c13da83, 725772c5  2026-11-22 12:00:00Z  expired",
			"    client/api/cert  client   leaf: is not there",
			"  Who verifies, and is known to trust",
			"    WHO                     DOMAIN   CAS",
			"    Deployment api/two      serving  725772c5            behind",
			"    Deployment api/one      serving  725772c5, 0c13da83",
			"    API servers that start  serving  none",
			`    ${wait.message}`,
			"",
			"The core etcd's; without them, no endpoint works",
			"  CERTIFICATE          DOMAIN  ROLE  BY CA  UNTIL                 LEFT      RENEWAL",
			"  Secret storage/core  core    core         2026-12-20 12:00:00Z  27d, 90%",
			"",
		]);
	});

	test("certs of several EtcdStorages begins with what breaks first", () => {
		const other = structuredClone(chain);
		other.name = "other";
		for (const one of other.breaks) one.at = "2026-11-21T12:00:00Z";
		expect(certsText(certs(other)).split("\n").slice(0, 7)).toEqual([
			"2026-11-23 12:00:00Z, by the API server's clock",
			"",
			"What breaks first, if nothing is done any more",
			"  AT                              ETCDSTORAGE  WHAT",
			"  2026-11-21 12:00:00Z !  2d ago  other        server is refused",
			"  2026-11-22 12:00:00Z !  1d ago  calm         server is refused",
			"",
		]);
	});

	test("what others have written cannot command the terminal", () => {
		const evil = { ...quiet, written: ["\u001b[2Jgone\nnext\u202e"] };
		expect(planText(report(evil))).toContain(
			"    \\u{001b}[2Jgone\\u{000a}next\\u{202e}\n",
		);
	});
});
