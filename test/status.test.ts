import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { EtcdStorage, EtcdStorageStatus, Spec } from "../etcdstorage.ts";
import { domains } from "../lifetimes.ts";
import type * as pki from "../pki.ts";
import type { Rotation, Wait } from "../rotation.ts";
import { events, nextVisit, type Outcome, status } from "../status.ts";

const HOUR = 3_600_000;
const NOW = Date.UTC(2026, 10, 23, 12);
const NAMESPACE = "kube-apiserver-storage";
const spec: Spec = {
	name: "sample",
	replicas: 3,
	targets: [],
	consumers: [],
	requests: { client: {}, serving: {} },
	validity: { signing: 730 * HOUR, serving: 730 * HOUR, client: 730 * HOUR },
	warnings: [],
};

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
	rotations: [],
	stepped: false,
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

const GENERATION = "0a1b2c3d";
const waiting: Wait = {
	who: "Deployment api/one",
	reason: "ConsumerRollingOut",
	message: "Deployment api/one is rolling out",
	obstacle: false,
};
const obstacle: Wait = {
	who: "Deployment api/two",
	reason: "ConsumerForbidden",
	message: "Deployment api/two may not be restarted; let it",
	obstacle: true,
};
const rotation = (more: Partial<Rotation> = {}): Rotation => ({
	domain: "serving",
	phase: "Steady",
	generation: GENERATION,
	waits: [],
	...more,
});
/** The certificate that the rotation is about. */
const signer = (domain: Rotation["domain"] = "serving") => ({
	id: `${domain}-signer`,
	domain,
	facts: { notBefore: NOW, notAfter: NOW + HOUR } as pki.CertificateFacts,
	renewalTime: NOW + HOUR / 2,
});
/** The status after a visit that found a domain's replacement so. */
const rotating = (
	more: Partial<Rotation>,
	before?: EtcdStorageStatus,
	now = NOW,
) => {
	const one = rotation(more);
	const found = outcome({
		certificates: [signer(one.domain)],
		rotations: [one],
	});
	return status(storage(before), NAMESPACE, spec, found, now);
};
const conditionOf = (result: EtcdStorageStatus, type: string) => {
	const found = result.conditions?.find((one) => one.type === type);
	return found && `${found.status} ${found.reason}: ${found.message}`;
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

	test("stays deployed as long as one of its proxies is ready, and is not once none is", () => {
		const deployed = status(storage(), NAMESPACE, spec, outcome(), NOW);
		const later = (ready: number) => {
			const availability = { available: false, ready, wanted: 3 };
			const now = outcome({ availability });
			const after = status(storage(deployed), NAMESPACE, spec, now, NOW + HOUR);
			const { reason, message } =
				after.conditions?.find((one) => one.type === "Deployed") ?? {};
			return `${reason}: ${message}; ${events(deployed, after, []).length} events`;
		};
		expect(later(2)).toEndWith("with 2 of 3 replicas ready; 0 events");
		expect(later(2)).toStartWith("Deployed: ");
		expect(later(0)).toStartWith("DeploymentNotAvailable: ");
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

describe("the status of a signer's replacement", () => {
	const shown = (result: EtcdStorageStatus) =>
		result.certificates?.find((one) => one.name === "serving-signer")?.rotation;

	test("tells phase, reason, whom it waits for, and when it goes on by itself", () => {
		const result = rotating({
			phase: "Publish",
			reason: "requested: audit",
			waits: [waiting, obstacle],
			nextStepAt: NOW + HOUR,
		});
		expect(shown(result)).toEqual({
			generation: GENERATION,
			phase: "Publish",
			since: "2026-11-23T12:00:00Z",
			reason: "requested: audit",
			waitingFor: [
				`ConsumerRollingOut: ${waiting.message}`,
				`ConsumerForbidden: ${obstacle.message}`,
			],
			nextStepAt: "2026-11-23T13:00:00Z",
		});
	});

	test.each<[string, Partial<Rotation>, Partial<Rotation>, boolean, string]>([
		[
			"goes on",
			{ phase: "Publish", reason: "past 1/2 of its life" },
			{ phase: "Publish" },
			true,
			"past 1/2 of its life",
		],
		[
			"is another one",
			{ phase: "Publish", reason: "past 1/2 of its life" },
			{ phase: "Sign" },
			false,
			"certificates are being issued by the new CA",
		],
		[
			"is that of another CA",
			{ phase: "Publish", reason: "past 1/2 of its life" },
			{ phase: "Publish", generation: "ffffffff" },
			false,
			"a new CA is being written into every bundle",
		],
		[
			"is another one, with a reason",
			{ phase: "Publish" },
			{ phase: "Sign", reason: "it could wait no longer" },
			false,
			"it could wait no longer",
		],
	])(
		"counts from when the phase began, also where it %s",
		(_, first, second, same, reason) => {
			const before = rotating(first);
			expect(shown(rotating(second, before, NOW + HOUR))).toMatchObject({
				since: same ? "2026-11-23T12:00:00Z" : "2026-11-23T13:00:00Z",
				reason,
			});
		},
	);

	test("counts from now where the former status is no date", () => {
		const before = rotating({ phase: "Spread" });
		for (const one of before.certificates ?? [])
			if (one.rotation) one.rotation.since = "yesterday";
		const after = rotating({ phase: "Spread" }, before, NOW + HOUR);
		expect(shown(after)?.since).toBe("2026-11-23T13:00:00Z");
	});

	test("is no news while nothing happens", () => {
		const more = { phase: "Spread" as const, waits: [obstacle], nextStepAt: 0 };
		const before = rotating(more);
		expect(rotating(more, before, NOW + HOUR)).toEqual(before);
	});

	const overdue = {
		harmlessUntil: NOW + 2 * HOUR,
		overdueAt: NOW + HOUR,
	};
	const MINUTE = 60_000;
	test.each<[string, Partial<Rotation>, number, string, string]>([
		["nobody is waited for", {}, HOUR, "False NotBlocked", "True "],
		[
			"somebody comes by himself",
			{ waits: [waiting], ...overdue },
			14 * MINUTE,
			"False NotBlocked",
			"True ",
		],
		[
			"somebody should have come by himself",
			{ waits: [waiting], ...overdue },
			16 * MINUTE,
			"True ConsumerRollingOut",
			"True ",
		],
		[
			"there is less time than usual to come",
			{ waits: [waiting], harmlessUntil: NOW + 4 * MINUTE },
			2 * MINUTE,
			"True ConsumerRollingOut",
			"True ",
		],
		[
			"a person must do something",
			{ waits: [waiting, obstacle], ...overdue },
			0,
			"True ConsumerForbidden",
			"True ",
		],
		[
			"a person should have done something",
			{ waits: [obstacle], ...overdue },
			HOUR,
			"True ConsumerForbidden",
			"False RotationOverdue",
		],
		[
			"it is too late",
			{ waits: [obstacle], ...overdue },
			3 * HOUR,
			"True ConsumerForbidden",
			"False RotationOverdue",
		],
		[
			"somebody comes by himself, too late",
			{ waits: [waiting], ...overdue },
			HOUR,
			"True ConsumerRollingOut",
			"False RotationOverdue",
		],
		[
			"all have come, late",
			{ ...overdue },
			3 * HOUR,
			"False NotBlocked",
			"True ",
		],
	])(
		"says, where %s, who is to act",
		(_, more, later, blocked, certificates) => {
			const before = rotating({ phase: "Spread", ...more });
			const after = rotating({ phase: "Spread", ...more }, before, NOW + later);
			expect(conditionOf(after, "RotationBlocked")).toStartWith(blocked);
			expect(conditionOf(after, "CertificatesReady")).toStartWith(certificates);
			const ready = certificates.startsWith("True")
				? "True Ready"
				: certificates;
			expect(conditionOf(after, "Ready")).toStartWith(ready);
		},
	);

	test("names in RotationBlocked the CA, the phase, the way out, and until when it is harmless for whom", () => {
		const message = conditionOf(
			rotating({ phase: "Spread", waits: [obstacle], ...overdue }),
			"RotationBlocked",
		);
		expect(message).toBe(
			`True ConsumerForbidden: serving CA ${GENERATION}, phase Spread: ${obstacle.message}. Harmless until 2026-11-23T14:00:00Z; then API servers that have not loaded the new CA no longer accept the endpoint`,
		);
		const client = rotating({
			...{ domain: "client", phase: "Spread", waits: [obstacle] },
			...overdue,
		});
		expect(conditionOf(client, "RotationBlocked")).toEndWith(
			"then API servers are refused by proxies that do not trust the new CA",
		);
	});

	test("tells of both domains, and of other troubles beside what is overdue", () => {
		const late = { phase: "Spread" as const, waits: [obstacle], ...overdue };
		const found = outcome({
			certificates: domains.map(signer),
			rotations: domains.map((domain) => rotation({ domain, ...late })),
			problems: [problem],
		});
		const result = status(storage(), NAMESPACE, spec, found, NOW + HOUR);
		const blocked = conditionOf(result, "RotationBlocked");
		expect(blocked).toMatch(/: client CA .* \| serving CA /);
		const certificates = conditionOf(result, "CertificatesReady");
		expect(certificates).toStartWith("False RotationOverdue: client CA ");
		expect(certificates).toEndWith(` | ${problem.message}`);
	});

	test("is left out where nothing is known about signers", () => {
		const result = status(storage(), NAMESPACE, spec, outcome(), NOW);
		expect(conditionOf(result, "RotationBlocked")).toBeUndefined();
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
		issued: Outcome["issued"] = [],
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

	const next = (
		phase: Rotation["phase"],
		generation = "ffffffff",
		waits: Wait[] = [],
	) => rotating({ phase, generation, waits });
	test.each<
		[string, EtcdStorageStatus | undefined, EtcdStorageStatus, string[]]
	>([
		["a first CA: nothing", undefined, rotating({}), []],
		["no change: nothing", rotating({}), rotating({}), []],
		["a new CA", rotating({}), next("Publish"), ["Publish"]],
		["the next phase", next("Publish"), next("Sign"), ["Sign"]],
		["the same phase: nothing", next("Sign"), next("Sign"), []],
		["the end", next("Retire"), next("Steady"), ["Done"]],
		[
			"phases that a dead controller passed",
			next("Publish"),
			next("Retire"),
			["Sign", "Spread", "Retire"],
		],
		[
			"a whole replacement that nobody lived to tell of",
			rotating({}),
			next("Steady"),
			["Publish", "Sign", "Spread", "Retire", "Done"],
		],
		[
			"a CA that is replaced before it was current",
			next("Publish"),
			next("Publish", "eeeeeeee"),
			["Publish"],
		],
		[
			"a CA that is replaced while it spreads",
			next("Spread"),
			next("Sign", "eeeeeeee"),
			["Publish", "Sign"],
		],
		["a phase that came back: nothing", next("Spread"), next("Sign"), []],
		[
			"a CA that replaces a compromised one, which is not published before",
			rotating({}),
			rotating({
				...{ phase: "Sign", generation: "ffffffff" },
				reason: "compromised: laptop",
			}),
			["Sign"],
		],
	])("tell of phases once each: %s", (_, before, after, phases) => {
		// That of a first status is about other things.
		const news = told(before, after).filter((one) => /Rotation/.test(one));
		expect(news).toEqual(phases.map((phase) => `Normal Rotation${phase}`));
	});

	test("of a phase tell why, and whom it waits for; of one that has passed, what it was", () => {
		const messages = events(
			next("Publish"),
			next("Spread", "ffffffff", [obstacle]),
			[],
		)
			.filter(({ reason }) => /^Rotation(Sign|Spread)$/.test(reason))
			.map(({ message }) => message);
		expect(messages).toEqual([
			"serving CA ffffffff: certificates are being issued by the new CA",
			`serving CA ffffffff: every certificate is of the new CA; ConsumerForbidden: ${obstacle.message}`,
		]);
	});

	test("tell once that a replacement waits for a person, and once that it no longer does", () => {
		const before = rotating({ phase: "Spread" });
		const blocked = rotating({ phase: "Spread", waits: [obstacle] }, before);
		const free = rotating({ phase: "Spread" }, blocked);
		expect(told(before, blocked)).toEqual(["Warning RotationBlocked"]);
		expect(told(blocked, blocked)).toEqual([]);
		expect(told(blocked, free)).toEqual(["Normal RotationUnblocked"]);
	});

	test("tell what was issued and why, in one event", () => {
		expect(
			events(healthy, healthy, [
				{ id: "server", reason: "signer replaced" },
				{ id: "client/a/b", reason: "not there" },
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
		expect(nextVisit(outcome({ certificates: due(NOW + 3) }), NOW, 0.5)).toBe(
			1_000,
		);
	});
	test("comes when a phase ends by itself", () => {
		const ending = (nextStepAt: number) =>
			outcome({ rotations: [rotation({ phase: "Retire", nextStepAt })] });
		expect(nextVisit(ending(NOW + 12_345), NOW, 0.5)).toBe(12_346);
		expect(nextVisit(ending(Number.POSITIVE_INFINITY), NOW, 0)).toBe(30_000);
	});
	test("comes later and later where every visit takes a step: somebody takes them back", () => {
		const after = (steps: number) =>
			nextVisit(outcome({ stepped: true }), NOW, 0.5, steps);
		// Two domains take three steps each.
		expect(after(6)).toBeLessThan(100);
		for (let steps = 8; steps < 30; steps++) {
			expect(after(steps + 1)).toBeGreaterThanOrEqual(after(steps));
			expect(after(steps)).toBeLessThanOrEqual(40_000);
		}
		expect(after(20)).toBeGreaterThan(30_000);
	});
	test("comes at once after a step of a replacement: the next may be possible", () => {
		const wait = nextVisit(outcome({ stepped: true }), NOW, 0.5);
		expect(wait).toBeGreaterThan(0);
		expect(wait).toBeLessThanOrEqual(1_000);
	});
	test.each<[string, Wait[], number]>([
		["who comes by himself", [waiting], 5_000],
		["a person", [obstacle], 40_000],
		["both", [obstacle, waiting], 5_000],
		["nobody", [], 40_000],
	])(
		"of a phase that waits for %s comes soon enough, and not often",
		(_, waits, most) => {
			const wait = nextVisit(
				outcome({ rotations: [rotation({ phase: "Spread", waits })] }),
				NOW,
				0.99,
			);
			expect(wait).toBeGreaterThan(most * 0.7);
			expect(wait).toBeLessThanOrEqual(most);
		},
	);
	test("is never hot, whatever is overdue", () => {
		const instant = fc.oneof(
			fc.integer({ min: NOW - 1000 * HOUR, max: NOW }),
			fc.constantFrom(NOW, NOW - 1, Number.NEGATIVE_INFINITY),
		);
		fc.assert(
			fc.property(
				instant,
				instant,
				fc.constantFrom<Wait[]>([], [waiting], [obstacle]),
				fc.double({ min: 0, max: 0.999, noNaN: true }),
				(renewalTime, past, waits, random) => {
					const overdue = outcome({
						certificates: due(renewalTime),
						problems: [problem],
						rotations: domains.map((domain) =>
							rotation({
								...{ domain, waits, nextStepAt: past },
								...{ harmlessUntil: past, overdueAt: past },
							}),
						),
					});
					// What was due has been tried in this visit: the polls go on as ever.
					expect(nextVisit(overdue, NOW, random)).toBeGreaterThanOrEqual(3_750);
				},
			),
		);
	});
});
