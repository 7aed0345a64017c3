/**
 * What is said about a visit: conditions, status, events; and when the next visit is due. Pure.
 */
import {
	type CertificateStatus,
	type Condition,
	type EtcdStorage,
	type EtcdStorageStatus,
	endpoint,
	type Spec,
	type TargetStatus,
} from "./etcdstorage.ts";
import type { CertificateFacts } from "./pki.ts";
import type { Domain } from "./reconcile.ts";

/** Something that keeps the EtcdStorage from being what its user asked for. The message names the object and the way out. */
export interface Problem {
	condition: "Deployed" | "CertificatesReady";
	reason: string;
	message: string;
	/** True for what only a change by a person can mend; false for what may pass by itself. */
	userError: boolean;
}

/** What one visit found and did: the one value that log, metrics, events, status and the next visit are made from. */
export interface Outcome {
	problems: Problem[];
	/** `server: past 2/3 of its life` and the like: what was issued in this visit, with its reason. */
	issued: string[];
	/** `Secret ns/name created`: what was written in this visit. */
	written: string[];
	certificates: {
		id: string;
		domain: Domain;
		facts: CertificateFacts;
		renewalTime: number;
	}[];
	/** When the first of the trusted CAs has expired, and leaves the bundle. */
	bundleExpiry: number;
	/** Targets that carry something of ours. */
	targets: TargetStatus[];
	/** The Deployment's own words about itself. */
	availability?: { available: boolean; ready: number; wanted: number };
}

const iso = (ms: number) => `${new Date(ms).toISOString().slice(0, 19)}Z`;

/** The whole status after a visit; equal to the one before when nothing that a user sees has changed. */
export function status(
	storage: EtcdStorage,
	namespace: string,
	spec: Spec | { invalid: string },
	outcome: Outcome,
	now: number,
): EtcdStorageStatus {
	const before = storage.status?.conditions ?? [];
	const generation = storage.metadata.generation ?? 0;
	const condition = (
		type: Condition["type"],
		...[ok, reason, message]: Verdict
	): Condition => {
		const value = ok ? "True" : "False";
		const old = before.find((one) => one.type === type);
		return {
			type,
			status: value,
			reason,
			message,
			observedGeneration: generation,
			lastTransitionTime:
				old?.status === value && isDate(old.lastTransitionTime)
					? old.lastTransitionTime
					: iso(now),
		};
	};

	const url = endpoint(storage.metadata.name, namespace);
	const certificates = certificatesCondition(outcome);
	const deployed = deployedCondition(storage, namespace, outcome);
	const serving: Verdict = [true, "Ready", `serving ${url}`];
	const ready = [certificates, deployed].find(([ok]) => !ok) ?? serving;
	const conditions = [
		condition("CertificatesReady", ...certificates),
		condition("Deployed", ...deployed),
		condition("Ready", ...ready),
	];
	if ("warnings" in spec)
		conditions.push(condition("ValidityWarning", ...validityWarning(spec)));

	const list: CertificateStatus[] = outcome.certificates.map((one) => ({
		name: one.id,
		notBefore: iso(one.facts.notBefore),
		notAfter: iso(one.facts.notAfter),
		renewalTime: iso(one.renewalTime),
	}));
	return {
		observedGeneration: generation,
		...("name" in spec && { endpoint: url }),
		...(list.length > 0 && {
			certificates: list,
			nextExpiry: list.map((one) => one.notAfter).sort()[0] ?? "",
		}),
		...(outcome.targets.length > 0 && { targets: outcome.targets }),
		conditions,
	};
}

const isDate = (text: unknown) =>
	typeof text === "string" && !Number.isNaN(Date.parse(text));

/** Status, reason and message of a condition. */
type Verdict = [ok: boolean, reason: string, message: string];

const validityWarning = ({ warnings }: Spec): Verdict =>
	warnings.length > 0
		? [true, "NotAsWritten", `${warnings.join(". ")}.`]
		: [
				false,
				"AsWritten",
				"certificates are issued with the validities of the spec",
			];

/** A condition is False for the first of its problems, and tells of all. */
function trouble(
	outcome: Outcome,
	condition: Problem["condition"],
): Verdict | undefined {
	const problems = outcome.problems.filter(
		(one) => one.condition === condition,
	);
	const messages = problems.map((one) => one.message).join(" | ");
	return problems[0] && [false, problems[0].reason, messages];
}

function certificatesCondition(outcome: Outcome): Verdict {
	const message = `${outcome.certificates.length} certificates are valid and delivered`;
	return (
		trouble(outcome, "CertificatesReady") ?? [
			true,
			"CertificatesIssued",
			message,
		]
	);
}

function deployedCondition(
	{ metadata: { name } }: EtcdStorage,
	namespace: string,
	outcome: Outcome,
): Verdict {
	const problem = trouble(outcome, "Deployed");
	if (problem) return problem;
	const object = `${namespace}/etcd-${name}`;
	const { available, ready, wanted } = outcome.availability ?? {
		available: false,
		ready: 0,
		wanted: 0,
	};
	if (available)
		return [
			true,
			"Deployed",
			`Deployment ${object} is available and Service ${object} is there`,
		];
	return [
		false,
		"DeploymentNotAvailable",
		`Deployment ${object} has ${ready} of ${wanted} replicas ready; see: kubectl -n ${namespace} describe pods -l apiserver=${name}`,
	];
}

/** An event that tells of a change of state. */
export interface EventNote {
	type: "Normal" | "Warning";
	reason: string;
	message: string;
}

/**
 * The events between two statuses: one per change of state, so that a controller that restarts repeats none of them.
 * EtcdStorageDeployed, EtcdStorageDeployFailure and CertificatesDeployFailure are the names of the 2018 controller.
 */
export function events(
	before: EtcdStorageStatus | undefined,
	after: EtcdStorageStatus,
	issued: string[],
): EventNote[] {
	const notes: EventNote[] = [];
	if (issued.length > 0)
		notes.push({
			type: "Normal",
			reason: "CertificatesIssued",
			message: issued.join("; "),
		});
	for (const condition of after.conditions ?? []) {
		const old = before?.conditions?.find((one) => one.type === condition.type);
		const same =
			old?.status === condition.status && old.reason === condition.reason;
		if (same) continue;
		const note = (type: EventNote["type"], reason: string) =>
			notes.push({ type, reason, message: condition.message });
		const ok = condition.status === "True";
		if (condition.type === "Deployed" && ok)
			note("Normal", "EtcdStorageDeployed");
		// Pods that are still starting are no failure; pods that were available and no longer are, are one.
		if (
			condition.type === "Deployed" &&
			!ok &&
			(condition.reason !== "DeploymentNotAvailable" || old?.status === "True")
		)
			note("Warning", "EtcdStorageDeployFailure");
		if (condition.type === "CertificatesReady" && ok && old !== undefined)
			note("Normal", "CertificatesReady");
		if (condition.type === "CertificatesReady" && !ok)
			note("Warning", "CertificatesDeployFailure");
		if (condition.type === "ValidityWarning" && ok)
			note("Warning", "ValidityWarning");
	}
	return notes;
}

/** How often targets are read: they live where the controller may not watch. */
export const TARGET_POLL = 40_000;
/** How soon a target that could not be written is looked at again: "healed in seconds", yet no hot loop. */
export const BROKEN_TARGET_POLL = 5_000;

/**
 * Milliseconds until this EtcdStorage is to be looked at again although nothing has happened.
 * @param random in [0, 1): spreads the polls
 */
export function nextVisit(
	outcome: Outcome,
	now: number,
	random: number,
): number {
	const poll = outcome.problems.some((one) => one.userError)
		? BROKEN_TARGET_POLL
		: TARGET_POLL;
	const due = Math.min(
		...outcome.certificates.map((one) => one.renewalTime),
		outcome.bundleExpiry,
	);
	return Math.max(
		1_000,
		Math.min(poll * (0.75 + 0.25 * random), due - now + 1),
	);
}
