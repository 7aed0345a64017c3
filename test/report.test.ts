import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { issue } from "../certificates.ts";
import type { EtcdStorage, Spec } from "../etcdstorage.ts";
import { signerRenewalTime } from "../lifetimes.ts";
import type { Observation } from "../observe.ts";
import { parseCertificates } from "../pki.ts";
import { decide, type Observed } from "../reconcile.ts";
import {
	type CertsReport,
	type Planned,
	planned,
	plannedByStatus,
	plannedOnly,
	type Report,
	type Seen,
	type Shown,
	type Surroundings,
	shown,
	shownByStatus,
	shownCore,
	shownOnly,
} from "../report.ts";
import { generationOf, type Wait } from "../rotation.ts";
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

const nobody = { unwritten: [], undelivered: [], unread: [] };
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
	const material = await issue(plan, observed, "", now);
	const { client, serving } = material.signers;
	return {
		signers: { client, serving },
		reach: observed.reach,
		leaves: Object.fromEntries(
			Object.entries(material.leaves).map(([id, { pair, facts }]) => [
				id,
				{
					pair,
					facts,
					keyMatches: true,
					chain: pair.certificate,
					signedBySigner: true,
				},
			]),
		),
	};
}

function see(observed: Observed, now: number, wanted = spec): Seen {
	const observation: Observation = {
		observed,
		fillable: wanted.targets,
		targets: new Map(),
		signerSecrets: { client: undefined, serving: undefined },
		coreCA: "",
		coreTrouble: undefined,
		problems: [],
		restart: undefined,
	};
	const plan = decide(wanted, NAMESPACE, observed, now);
	return {
		storage,
		spec: wanted,
		namespace: NAMESPACE,
		observation,
		plan,
		now,
	};
}

/** Everything written that ought to be. */
function around({ observation }: Seen): Surroundings {
	const { signers, leaves } = observation.observed;
	return {
		bundles: [
			{
				domain: "client",
				object: "ConfigMap storage/x-ca-cert",
				key: "client-ca.crt",
				authorities: signers.client.trusted,
				unknown: false,
			},
			{
				domain: "serving",
				object: "ConfigMap api/ca",
				key: "serving-ca.crt",
				authorities: signers.serving.trusted,
				unknown: false,
			},
		],
		proxies: { pods: ["Pod storage/p-1"], behind: [] },
		chains: new Map(
			Object.entries(leaves).flatMap(([id, leaf]) =>
				"chain" in leaf ? [[id, parseCertificates(leaf.chain)] as const] : [],
			),
		),
		signed: (one, issuer) => one.issuer === issuer.subject,
		problems: [],
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

describe("plan", () => {
	test("of nothing is all that there is to be", () => {
		const report = planned(see(nothing(), NOW), [], []);
		expect(report.rotations).toMatchObject([
			{ domain: "client", step: "make-current", reason: "not there" },
			{ domain: "serving", step: "make-current", reason: "not there" },
		]);
		expect(report.issue).toEqual([
			{ certificate: CLIENT, reason: "not there" },
			{ certificate: "server", reason: "not there" },
		]);
		expect(report.certificates).toEqual([]);
	});

	test("tells when each certificate is renewed, as the controller does", async () => {
		const seen = see(await visited(nothing(), NOW), NOW);
		const { certificates, rotations, issue } = planned(seen, [], []);
		expect(issue).toEqual([]);
		expect(certificates.map((one) => one.certificate)).toEqual([
			"client-signer",
			"serving-signer",
			"server",
			CLIENT,
		]);
		const { current } = seen.observation.observed.signers.client;
		if (!("facts" in current)) throw new Error("no signer");
		const due = signerRenewalTime("x", "client", current.facts);
		expect(Date.parse(certificates[0]?.renewalTime ?? "")).toBe(
			Math.floor(due / 1000) * 1000,
		);
		expect(rotations[0]?.nextStepAt).toBe(
			certificates[0]?.renewalTime as string,
		);
	});

	test("tells whom a phase waits for, since when, and until when that is harmless", async () => {
		const { observed, asked, later } = await spreading();
		const seen = see(observed, later, asked);
		const current = observed.signers.serving.current;
		const generation = "facts" in current ? generationOf(current.facts) : "";
		seen.storage = {
			...storage,
			status: {
				certificates: [
					{
						name: "serving-signer",
						notBefore: "",
						notAfter: "",
						renewalTime: "",
						rotation: {
							generation,
							phase: "Spread",
							since: "2026-11-24T00:00:00Z",
							reason: "",
						},
					},
				],
			},
		};
		expect(planned(seen, [], []).rotations[1]).toEqual({
			domain: "serving",
			phase: "Spread",
			generation,
			since: "2026-11-24T00:00:00Z",
			waits: [wait],
			blocked: true,
			overdue: false,
			nextStepAt: "2026-12-23T12:00:00Z",
			harmlessUntil: "2026-12-23T12:00:00Z",
		});
	});

	test("without the right to read is what the controller has said", () => {
		const said: EtcdStorage = {
			...storage,
			status: {
				conditions: [
					{
						type: "RotationBlocked",
						status: "True",
						reason: "ConsumerStuck",
						message: "serving CA 0c13da83, phase Spread: stuck",
						observedGeneration: 1,
						lastTransitionTime: "",
					},
				],
				certificates: [
					{
						name: "serving-signer",
						notBefore: "2026-11-23T11:55:00Z",
						notAfter: "2026-12-23T12:00:00Z",
						renewalTime: "2026-12-07T12:00:00Z",
						rotation: {
							generation: "0c13da83",
							phase: "Spread",
							since: "2026-11-23T12:00:00Z",
							reason: "every certificate is of the new CA",
							waitingFor: [`ConsumerStuck: ${wait.message}`],
							nextStepAt: "2026-12-23T12:00:00Z",
						},
					},
					{
						name: "client/api/x-signer",
						notBefore: "2026-11-23T11:55:00Z",
						notAfter: "2026-12-13T12:00:00Z",
						renewalTime: "2026-12-03T12:00:00Z",
					},
				],
			},
		};
		const report = plannedByStatus(said, NAMESPACE);
		expect(report).toMatchObject({
			source: "status",
			rotations: [
				{
					domain: "serving",
					phase: "Spread",
					blocked: true,
					waits: [{ reason: "ConsumerStuck", message: wait.message }],
				},
			],
			problems: [{ reason: "ConsumerStuck", person: true }],
			certificates: [
				{ certificate: "serving-signer" },
				{ certificate: "client/api/x-signer" },
			],
		});
		const certs = shownByStatus(said, NAMESPACE, NOW);
		expect(
			certs.domains.map(({ domain, phase, certificates }) => [
				domain,
				phase,
				certificates.map((one) => one.certificate),
			]),
		).toEqual([
			["client", "unknown", ["client/api/x-signer"]],
			["serving", "Spread", ["serving-signer"]],
		]);
		expect(certs.breaks).toEqual([
			{
				at: "2026-12-13T12:00:00Z",
				already: false,
				domain: "client",
				certificates: ["client/api/x-signer"],
				refusedBy: ["every proxy"],
				message: "client/api/x-signer expires: it is refused by every proxy",
			},
		]);
	});
});

describe("certs", () => {
	test("shows the chain of a CA that is being replaced, and who trusts whom", async () => {
		const { observed, asked, later } = await spreading();
		const seen = see(observed, later, asked);
		const { current, previous } = observed.signers.serving;
		const ca = "facts" in current ? generationOf(current.facts) : "";
		const former = previous ? generationOf(previous.facts) : "";
		const [client, serving] = shown(seen, around(seen)).domains;
		expect(client?.verifiers).toEqual([
			{
				who: "Pod storage/p-1",
				trusts: [client?.generation ?? ""],
				behind: false,
			},
		]);
		expect(serving).toEqual({
			domain: "serving",
			phase: "Spread",
			generation: ca,
			authorities: [
				{
					generation: ca,
					role: "current",
					subject: `CN=etcd serving CA ${ca},O=x`,
					notBefore: "2026-11-25T11:55:00Z",
					notAfter: "2026-12-25T12:00:00Z",
					leftPercent: 100,
					renewalTime: expect.stringMatching(/^2026-12-(07|08|09|10)T/),
				},
				{
					generation: former,
					role: "previous",
					subject: `CN=etcd serving CA ${former},O=x`,
					notBefore: "2026-11-23T11:55:00Z",
					notAfter: "2026-12-23T12:00:00Z",
					leftPercent: 93,
				},
			],
			crossCertificates: [
				{
					generation: ca,
					by: former,
					handedOut: true,
					notBefore: "2026-11-25T11:55:00Z",
					notAfter: "2026-12-23T12:00:00Z",
					leftPercent: 100,
				},
			],
			certificates: [
				{
					certificate: "server",
					object: "Secret storage/x-server-cert",
					signedBy: ca,
					chain: [`${ca} by ${former}`],
					notBefore: "2026-11-25T11:55:00Z",
					notAfter: "2026-12-15T12:00:00Z",
					leftPercent: 100,
					renewalTime: expect.stringMatching(/^2026-12-(06|07|08)T/),
				},
			],
			bundles: [
				{
					object: "ConfigMap api/ca",
					key: "serving-ca.crt",
					generations: [former, ca],
				},
			],
			verifiers: [
				{ who: "Deployment api/one", trusts: [former, ca], behind: false },
				{
					who: "Deployment api/two",
					trusts: [former],
					behind: true,
					message: wait.message,
				},
			],
		});
	});

	test("says when who is behind is cut off, if that is before the certificate expires", async () => {
		const { observed, asked, later } = await spreading();
		// As if it had been renewed shortly before the former CA's end.
		const now = later + 25 * DAY;
		const plan = decide(asked, NAMESPACE, observed, now);
		const material = await issue(plan, observed, "", now);
		const { pair, facts } = material.leaves.server ?? {};
		if (!pair || !facts) throw new Error("no certificate");
		const seen = see(observed, now, asked);
		const more = around(seen);
		more.chains.set("server", parseCertificates(pair.certificate));
		const [ca, former] = shown(seen, more).domains[1]?.authorities ?? [];
		expect(
			shown(seen, more)
				.breaks.filter((one) => one.domain === "serving")
				.map(({ at, message }) => [at, message]),
		).toEqual([
			[
				"2026-12-23T12:00:00Z",
				`the cross-certificate of CA ${ca?.generation} by CA ${former?.generation} ends: the endpoint is refused by Deployment api/two, not known to have loaded CA ${ca?.generation}`,
			],
			[
				"2026-12-25T12:00:00Z",
				"server expires: the endpoint is refused by every API server",
			],
		]);
	});

	test("says of what is not there what that means", () => {
		const seen = see(nothing(), NOW);
		const report = shown(seen, {
			...around(seen),
			bundles: [],
			proxies: { pods: undefined, behind: [] },
		});
		expect(report.domains.map((one) => one.trouble)).toEqual([
			"the current signer is not there",
			"the current signer is not there",
		]);
		expect(report.breaks.map(({ message }) => message).sort()).toEqual([
			"client/api/cert is not there: API servers that start cannot connect",
			"server is not there: proxies that start cannot serve",
		]);
	});

	test("says when no proxy can speak to the core any longer", () => {
		const facts = (until: number) => ({
			notBefore: NOW - DAY,
			notAfter: NOW + until * DAY,
		});
		const { breaks } = shownCore(
			[
				{ certificate: "core-client", object: "Secret s/c", facts: facts(5) },
				{ certificate: "core-ca", object: "ConfigMap s/ca", facts: facts(-1) },
				{ certificate: "core-ca", object: "ConfigMap s/ca", facts: facts(3) },
			],
			NOW,
		);
		expect(breaks.map(({ at, message }) => [at, message])).toEqual([
			[
				"2026-11-26T12:00:00Z",
				"the last CA of the core etcd expires: no endpoint works (ConfigMap s/ca)",
			],
			[
				"2026-11-28T12:00:00Z",
				"the proxies' certificate for the core etcd expires: no endpoint works (Secret s/c)",
			],
		]);
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
					const seen = see(observed, now, wanted);
					const plan: Report<Planned> = {
						now: "2026-11-23T12:00:00Z",
						notes: [],
						etcdStorages: [planned(seen, [], [])],
					};
					const certs: CertsReport = {
						now: "2026-11-23T12:00:00Z",
						notes: [],
						core: shownCore([], now),
						etcdStorages: [shown(seen, around(seen))],
					};
					const text = [
						JSON.stringify(plan),
						planText(plan, true),
						JSON.stringify(certs),
						certsText(certs),
					].join("\n");
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
			["A", ">N", "B"],
			[
				["longer", "1", "x"],
				["s", "22", ""],
			],
		),
	).toEqual(["A        N  B", "longer   1  x", "s       22"]);
});

describe("as text", () => {
	const calm = {
		name: "calm",
		endpoint: "https://etcd-calm.storage.svc:2379",
		source: "cluster" as const,
	};
	const rotation = {
		domain: "client" as const,
		phase: "Steady",
		generation: "107e2539",
		waits: [],
		blocked: false,
		overdue: false,
		nextStepAt: "2026-12-07T07:59:45Z",
	};
	const quiet: Planned = {
		...calm,
		rotations: [
			rotation,
			{ ...rotation, domain: "serving", generation: "63b30851" },
		],
		issue: [],
		objects: [],
		problems: [],
		certificates: [
			{
				certificate: "client-signer",
				notAfter: "2026-12-23T18:49:00Z",
				renewalTime: "2026-12-07T07:59:45Z",
			},
		],
	};
	const busy: Planned = {
		...calm,
		name: "busy",
		endpoint: "https://etcd-busy.storage.svc:2379",
		rotations: [
			{
				...rotation,
				generation: "6f715b2d",
				phase: "Publish",
				step: "make-next",
				reason: "past 1/2 of its life",
			},
			{
				...rotation,
				domain: "serving",
				phase: "Spread",
				generation: "0c13da83",
				waits: [wait],
				blocked: true,
				nextStepAt: "2026-12-23T18:49:02Z",
				harmlessUntil: "2026-12-23T18:49:02Z",
			},
		],
		issue: [{ certificate: "server", reason: "past 2/3 of its life" }],
		restart: "Deployment api/one",
		objects: [
			{ object: "Secret storage/busy-server-cert", change: "configure" },
		],
		problems: [
			{
				reason: "TargetMissing",
				message: "Secret api/cert is not there",
				person: true,
			},
		],
		certificates: [
			{
				certificate: "client/api/x-signer",
				notAfter: "2026-12-23T18:49:00Z",
				renewalTime: "2026-12-10T00:00:00Z",
			},
		],
	};
	const report = <T>(...etcdStorages: T[]): Report<T> => ({
		now: "2026-11-23T12:00:00Z",
		notes: [],
		etcdStorages,
	});

	test("plan tells first who needs somebody, and of whom there is nothing to tell no more than a line", () => {
		expect(planText(report(busy, quiet), false).split("\n")).toEqual([
			"2026-11-23 12:00:00Z, by the API server's clock",
			"2 EtcdStorages: 1 needs a person, 1 with something to be done now, 1 waiting for somebody",
			"",
			"ETCDSTORAGE  DOMAIN   PHASE    CA        NOW                         NEXT STEP",
			"busy         client   Publish  6f715b2d  make the next CA            2026-12-07 07:59:45Z (in 13d 19h)",
			"busy         serving  Spread   0c13da83  blocked: ConsumerStuck, +2  2026-12-23 18:49:02Z (in 30d 6h)",
			"calm         client   Steady   107e2539  nothing                     2026-12-07 07:59:45Z (in 13d 19h)",
			"calm         serving  Steady   63b30851  nothing                     2026-12-07 07:59:45Z (in 13d 19h)",
			"",
			"busy: https://etcd-busy.storage.svc:2379",
			"  now",
			"    client CA: make the next CA (past 1/2 of its life)",
			"    issue server (past 2/3 of its life)",
			"    restart Deployment api/one",
			"    configure Secret storage/busy-server-cert",
			"  waits for",
			`    serving: ConsumerStuck: ${wait.message} [a person must act]`,
			"    serving: harmless until 2026-12-23 18:49:02Z (in 30d 6h)",
			"  wrong",
			"    TargetMissing: Secret api/cert is not there [a person must act]",
			"  next",
			"    2026-12-07 07:59:45Z  in 13d 19h  client CA: phase Publish ends, or changes",
			"    2026-12-10 00:00:00Z  in 16d 12h  client/api/x-signer is renewed; it would expire 2026-12-23 18:49:00Z",
			"    2026-12-23 18:49:02Z  in 30d 6h   serving CA: phase Spread ends, or changes",
			"",
			"What is to be done now is done by a running controller within a minute. If it stays: is one running, and what does its log say?",
			"",
		]);
	});

	test("plan of one EtcdStorage tells when each certificate is renewed", () => {
		expect(planText(report(quiet), true).split("\n")).toEqual([
			"2026-11-23 12:00:00Z, by the API server's clock",
			"1 EtcdStorage: 0 need a person, 0 with something to be done now, 0 waiting for somebody",
			"",
			"ETCDSTORAGE  DOMAIN   PHASE   CA        NOW      NEXT STEP",
			"calm         client   Steady  107e2539  nothing  2026-12-07 07:59:45Z (in 13d 19h)",
			"calm         serving  Steady  63b30851  nothing  2026-12-07 07:59:45Z (in 13d 19h)",
			"",
			"calm: https://etcd-calm.storage.svc:2379",
			"  now",
			"    nothing",
			"  next",
			"    2026-12-07 07:59:45Z  in 13d 19h  client-signer is replaced; it would expire 2026-12-23 18:49:00Z",
			"",
		]);
	});

	test("plan and certs say so where there is nothing", () => {
		const text =
			"2026-11-23 12:00:00Z, by the API server's clock\nNOTE: not permitted: x\nThere are no EtcdStorages.\n";
		const none = { ...report<never>(), notes: ["not permitted: x"] };
		expect(planText(none, false)).toBe(text);
		expect(certsText({ ...none, core: { certificates: [], breaks: [] } })).toBe(
			text,
		);
	});

	test("certs shows the whole of one EtcdStorage, what breaks when before all else", () => {
		expect(certsText(certs()).split("\n")).toEqual([
			"2026-11-23 12:00:00Z, by the API server's clock",
			"",
			"calm: https://etcd-calm.storage.svc:2379",
			"",
			"  What breaks when, if nothing is done any more",
			"    AT                              WHAT",
			"    2026-11-22 12:00:00Z !  1d ago  server is certified by no CA that is trusted: the endpoint is refused by API servers that start with ConfigMap other/ca",
			"    2026-12-20 12:00:00Z    in 27d  the proxies' certificate for the core etcd expires: no endpoint works (Secret storage/core)",
			"",
			"  CAs",
			"    CA        DOMAIN   PHASE   ROLE      FROM                  UNTIL                 LEFT",
			"    0c13da83  serving  Spread  current   2026-11-20 12:00:00Z  2026-12-20 12:00:00Z  27d, 90%",
			"    725772c5  serving  Spread  previous  2026-11-20 12:00:00Z  2026-12-20 12:00:00Z  27d, 90%",
			"",
			"  Cross-certificates: who trusts only the one accepts the other's certificates",
			"    OF CA     BY CA     DOMAIN   USE         FROM                  UNTIL                 LEFT",
			"    0c13da83  725772c5  serving  handed out  2026-11-20 12:00:00Z  2026-12-20 12:00:00Z  27d, 90%",
			"",
			"  Certificates",
			"    CERTIFICATE  BY CA     CROSS BY  FROM                  UNTIL                 LEFT",
			"    server       0c13da83  725772c5  2026-11-20 12:00:00Z  2026-12-20 12:00:00Z  27d, 90%",
			"",
			"  Renewed, if the controller lives",
			"    CERTIFICATE          RENEWAL",
			"    serving CA 0c13da83  2026-12-05 12:00:00Z  in 12d",
			"    server               2026-12-08 12:00:00Z  in 15d",
			"",
			"  Bundles: who reads one trusts these CAs",
			"    BUNDLE              KEY             CAS",
			"    ConfigMap api/ca    serving-ca.crt  725772c5, 0c13da83",
			"    ConfigMap other/ca  serving-ca.crt  is damaged",
			"",
			"  Who verifies, and is known to trust",
			"    WHO                 DOMAIN   CAS",
			"    Deployment api/one  serving  725772c5, 0c13da83",
			"    Deployment api/two  serving  725772c5            BEHIND",
			`    ${wait.message}`,
			"",
			"The core etcd's, on which all endpoints depend",
			"  CERTIFICATE  OBJECT               UNTIL                 LEFT",
			"  core-client  Secret storage/core  2026-12-20 12:00:00Z  27d, 90%",
			"",
		]);
	});

	const life = {
		notBefore: "2026-11-20T12:00:00Z",
		notAfter: "2026-12-20T12:00:00Z",
		leftPercent: 90,
	};
	const chain: Shown = {
		...calm,
		domains: [
			{
				domain: "serving",
				phase: "Spread",
				generation: "0c13da83",
				authorities: [
					{
						generation: "0c13da83",
						role: "current",
						subject: "CN=etcd serving CA 0c13da83,O=calm",
						renewalTime: "2026-12-05T12:00:00Z",
						...life,
					},
					{
						generation: "725772c5",
						role: "previous",
						subject: "CN=etcd serving CA 725772c5,O=calm",
						...life,
					},
				],
				crossCertificates: [
					{ generation: "0c13da83", by: "725772c5", handedOut: true, ...life },
				],
				certificates: [
					{
						certificate: "server",
						object: "Secret storage/calm-server-cert",
						signedBy: "0c13da83",
						chain: ["0c13da83 by 725772c5"],
						renewalTime: "2026-12-08T12:00:00Z",
						...life,
					},
				],
				bundles: [
					{
						object: "ConfigMap api/ca",
						key: "serving-ca.crt",
						generations: ["725772c5", "0c13da83"],
					},
					{
						object: "ConfigMap other/ca",
						key: "serving-ca.crt",
						generations: [],
						trouble: "is damaged",
					},
				],
				verifiers: [
					{
						who: "Deployment api/one",
						trusts: ["725772c5", "0c13da83"],
						behind: false,
					},
					{
						who: "Deployment api/two",
						trusts: ["725772c5"],
						behind: true,
						message: wait.message,
					},
				],
			},
		],
		breaks: [
			{
				at: "2026-11-22T12:00:00Z",
				already: true,
				domain: "serving",
				certificates: ["server"],
				refusedBy: ["API servers that start with ConfigMap other/ca"],
				message:
					"server is certified by no CA that is trusted: the endpoint is refused by API servers that start with ConfigMap other/ca",
			},
		],
		problems: [],
	};
	const certs = (...more: Shown[]): CertsReport => ({
		...report(chain, ...more),
		core: {
			certificates: [
				{ certificate: "core-client", object: "Secret storage/core", ...life },
			],
			breaks: [
				{
					at: "2026-12-20T12:00:00Z",
					already: false,
					domain: "core",
					certificates: ["core-client"],
					refusedBy: ["the core etcd"],
					message:
						"the proxies' certificate for the core etcd expires: no endpoint works (Secret storage/core)",
				},
			],
		},
	});

	test("certs of several EtcdStorages begins with what breaks first", () => {
		const other = { ...chain, name: "other", breaks: [] };
		expect(certsText(certs(other)).split("\n").slice(0, 7)).toEqual([
			"2026-11-23 12:00:00Z, by the API server's clock",
			"",
			"What breaks first, if nothing is done any more",
			"  AT                              ETCDSTORAGE  WHAT",
			`  2026-11-22 12:00:00Z !  1d ago  calm         ${chain.breaks[0]?.message}`,
			"  2026-12-20 12:00:00Z    in 27d  all          the proxies' certificate for the core etcd expires: no endpoint works (Secret storage/core)",
			"",
		]);
	});

	test("what others have written cannot command the terminal", () => {
		const evil = structuredClone(busy);
		evil.problems = [
			{ reason: "X", message: "\u001b[2Jgone\nnext\u202e", person: false },
		];
		const text = planText(report(evil), true);
		expect(text).toContain("    X: \\u{001b}[2Jgone\\u{000a}next\\u{202e}\n");
	});

	test("an EtcdStorage whose spec is invalid, or that is being deleted, has its line", () => {
		const invalid = plannedOnly(storage, NAMESPACE, {
			problems: (["CertificatesReady", "Deployed"] as const).map(
				(condition) => ({
					condition,
					reason: "InvalidSpec",
					message: "spec.replicas 0 must be a whole number",
					userError: true,
				}),
			),
		});
		const leaving = plannedOnly(storage, NAMESPACE, {
			objects: [{ object: "EtcdStorage x", change: "delete" }],
		});
		expect(planText(report(invalid, leaving), false).split("\n")).toEqual([
			"2026-11-23 12:00:00Z, by the API server's clock",
			"2 EtcdStorages: 1 needs a person, 1 with something to be done now, 0 waiting for somebody",
			"",
			"ETCDSTORAGE  DOMAIN  PHASE  CA  NOW          NEXT STEP",
			"x            -       -      -   InvalidSpec  -",
			"x            -       -      -   see below    -",
			"",
			"x: https://etcd-x.storage.svc:2379",
			"  now",
			"    nothing",
			"  wrong",
			"    InvalidSpec: spec.replicas 0 must be a whole number [a person must act]",
			"",
			"x: https://etcd-x.storage.svc:2379",
			"  now",
			"    delete EtcdStorage x",
			"",
			"What is to be done now is done by a running controller within a minute. If it stays: is one running, and what does its log say?",
			"",
		]);
		expect(
			shownOnly(
				storage,
				NAMESPACE,
				[
					{
						condition: "Deployed",
						reason: "InvalidSpec",
						message: "spec.replicas 0",
						userError: true,
					},
				],
				NOW,
			).problems,
		).toEqual([
			{ reason: "InvalidSpec", message: "spec.replicas 0", person: true },
		]);
	});
});
