import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import type { EtcdStorage, EtcdStorageStatus, Spec } from "../etcdstorage.ts";
import type * as pki from "../pki.ts";
import { events, nextVisit, type Outcome, status } from "../status.ts";

const HOUR = 3_600_000;
const NOW = Date.UTC(2026, 10, 23, 12);
const NAMESPACE = "kube-apiserver-storage";
const spec: Spec = {
	name: "sample",
	replicas: 3,
	targets: [],
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
