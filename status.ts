/**
 * What is said about a visit: conditions, status, events; and when the next visit is due. Pure.
 */
import {
	type CertificateStatus,
	type Condition,
	type EtcdStorage,
	type EtcdStorageStatus,
	endpoint,
	formatTime,
	type RotationStatus,
	type Spec,
	type TargetStatus,
} from "./etcdstorage.ts";
import { type Domain, domains } from "./lifetimes.ts";
import type { CertificateFacts } from "./pki.ts";
import { type Phase, type Rotation, standing } from "./rotation.ts";

/** Something that keeps the EtcdStorage from being what its user asked for. The message names the object and the way out. */
export interface Problem {
	condition: "Deployed" | "CertificatesReady";
	/** What it is about, where that is one object: `Secret api/etcd-client-cert`. */
	object?: string;
	reason: string;
	message: string;
	/** True for what only a change by a person can mend; false for what may pass by itself. */
	userError: boolean;
}

/** What one visit found and did: the one value that log, metrics, events, status and the next visit are made from. */
export interface Outcome {
	problems: Problem[];
	/** What was issued in this visit. */
	issued: { id: string; reason: string }[];
	/** `Secret ns/name created`: what was written in this visit. */
	written: string[];
	certificates: {
		id: string;
		domain: Domain;
		facts: CertificateFacts;
		renewalTime: number;
	}[];
	/** Where the replacement of each domain's signer is. */
	rotations: Rotation[];
	/** Whether one of them took a step in this visit: then the next step may be possible at once. */
	stepped: boolean;
	/** Of the serving CA bundle. */
	bundleHash?: string;
	/** Targets that carry something of ours, or may. */
	targets: TargetStatus[];
	/** The Deployment's own words about itself. */
	availability?: { available: boolean; ready: number; wanted: number };
}

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
					: formatTime(now),
		};
	};

	const url = endpoint(storage.metadata.name, namespace);
	const rotations = outcome.rotations.map((rotation) =>
		judged(rotation, storage.status, now),
	);
	const certificates = certificatesCondition(outcome, rotations);
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
	if (rotations.length > 0)
		conditions.push(
			condition("RotationBlocked", ...blockedCondition(rotations)),
		);

	const list: CertificateStatus[] = outcome.certificates.map((one) => ({
		name: one.id,
		notBefore: formatTime(one.facts.notBefore),
		notAfter: formatTime(one.facts.notAfter),
		renewalTime: formatTime(one.renewalTime),
		...rotationStatus(
			rotations.find(({ domain }) => one.id === `${domain}-signer`),
		),
	}));
	return {
		observedGeneration: generation,
		...("name" in spec && { endpoint: url }),
		...(list.length > 0 && {
			certificates: list,
			nextExpiry: list.map((one) => one.notAfter).sort()[0] ?? "",
		}),
		...(outcome.bundleHash && { caBundleSHA256: outcome.bundleHash }),
		...(outcome.targets.length > 0 && { targets: outcome.targets }),
		conditions,
	};
}

/** A rotation with what only the former status tells: since when it is in its phase. */
interface Judged extends Rotation {
	since: number;
	blocked: boolean;
	overdue: boolean;
	shown: RotationStatus | undefined;
}

const REASONS: Record<Phase, string> = {
	Publish: "a new CA is being written into every bundle",
	Sign: "certificates are being issued by the new CA",
	Spread: "every certificate is of the new CA",
	Retire: "all who verify have loaded the new CA",
	Steady: "no other CA is trusted",
};

function judged(
	rotation: Rotation,
	before: EtcdStorageStatus | undefined,
	now: number,
): Judged {
	const { domain, phase, generation, waits, nextStepAt } = rotation;
	const old = rotationOf(before, domain);
	const same = old?.phase === phase && old.generation === generation;
	const since = same && isDate(old.since) ? Date.parse(old.since) : now;
	const shown = generation !== undefined && {
		generation,
		phase,
		since: formatTime(since),
		reason: rotation.reason ?? (same ? old.reason : REASONS[phase]),
		...(waits.length > 0 && {
			waitingFor: waits.map((one) => `${one.reason}: ${one.message}`),
		}),
		...(nextStepAt !== undefined &&
			Number.isFinite(nextStepAt) && { nextStepAt: formatTime(nextStepAt) }),
	};
	return {
		...rotation,
		since,
		...standing(rotation, since, now),
		shown: shown || undefined,
	};
}

const rotationOf = (before: EtcdStorageStatus | undefined, domain: Domain) =>
	before?.certificates?.find((one) => one.name === `${domain}-signer`)
		?.rotation;

const rotationStatus = (judged: Judged | undefined) =>
	judged?.shown && { rotation: judged.shown };

/** What happens to whom when the wait has lasted too long. */
const HARM: Record<Domain, string> = {
	client: "API servers are refused by proxies that do not trust the new CA",
	serving:
		"API servers that have not loaded the new CA no longer accept the endpoint",
};

function blockedMessage({
	domain,
	generation,
	phase,
	...rest
}: Judged): string {
	const { waits, harmlessUntil = Number.NaN } = rest;
	const messages = waits.map((one) => one.message).join("; ");
	const until = Number.isFinite(harmlessUntil)
		? `. Harmless until ${formatTime(harmlessUntil)}; then ${HARM[domain]}`
		: "";
	return `${domain} CA ${generation}, phase ${phase}: ${messages}${until}`;
}

function blockedCondition(rotations: Judged[]): Verdict {
	const blocked = rotations.filter((one) => one.blocked);
	const [first] = blocked.flatMap(({ waits }) => [
		...waits.filter((one) => one.obstacle),
		...waits,
	]);
	return first
		? [true, first.reason, blocked.map(blockedMessage).join(" | ")]
		: [false, "NotBlocked", "no replacement of a CA waits for a person"];
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

function certificatesCondition(outcome: Outcome, rotations: Judged[]): Verdict {
	const overdue = rotations.filter((one) => one.overdue).map(blockedMessage);
	if (overdue.length > 0) {
		const [, , more] = trouble(outcome, "CertificatesReady") ?? [];
		return [
			false,
			"RotationOverdue",
			[...overdue, ...(more ? [more] : [])].join(" | "),
		];
	}
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
	{ metadata: { name }, status }: EtcdStorage,
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
	// One that lacks a proxy serves on: a drained node is no failure.
	const wasDeployed = status?.conditions?.some(
		(one) => one.type === "Deployed" && one.status === "True",
	);
	if (wasDeployed && ready > 0)
		return [
			true,
			"Deployed",
			`Deployment ${object} serves with ${ready} of ${wanted} replicas ready`,
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
	issued: Outcome["issued"],
): EventNote[] {
	const notes: EventNote[] = [];
	if (issued.length > 0)
		notes.push({
			type: "Normal",
			reason: "CertificatesIssued",
			message: issued.map(({ id, reason }) => `${id} (${reason})`).join("; "),
		});
	notes.push(
		...domains.flatMap((domain) => phaseEvents(domain, before, after)),
	);
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
		if (condition.type === "RotationBlocked" && ok)
			note("Warning", "RotationBlocked");
		if (condition.type === "RotationBlocked" && !ok && old?.status === "True")
			note("Normal", "RotationUnblocked");
		if (condition.type === "ValidityWarning" && ok)
			note("Warning", "ValidityWarning");
	}
	return notes;
}

/** One for each phase that was entered, also for those that a controller did not live to tell of. */
function phaseEvents(
	domain: Domain,
	before: EtcdStorageStatus | undefined,
	after: EtcdStorageStatus,
): EventNote[] {
	const old = rotationOf(before, domain);
	const { generation, phase, reason, waitingFor } =
		rotationOf(after, domain) ?? {};
	// The first CA of all replaces none.
	if (!old || !generation) return [];
	const order: string[] = ["Publish", "Sign", "Spread", "Retire", "Steady"];
	const from =
		old.generation === generation
			? order.indexOf(old.phase) + 1
			: // One that replaces a compromised CA signs at once.
				Number(phase === "Sign" && !!reason?.startsWith("compromised"));
	return order.slice(from, order.indexOf(phase ?? "") + 1).map((entered) => ({
		type: "Normal",
		reason: `Rotation${entered === "Steady" ? "Done" : entered}`,
		message: `${domain} CA ${generation}: ${
			entered === phase
				? [reason, ...(waitingFor ?? [])].join("; ")
				: REASONS[entered as Phase]
		}`,
	}));
}

/** How often targets are read: they live where the controller may not watch. */
export const TARGET_POLL = 40_000;
/** How soon a signer's next step may be possible. */
const NEXT_STEP = 50;
/** More visits in a row with steps than two domains can take, mean that somebody takes back what we write. */
const USUAL_STEPS = 8;
/** How soon a target that could not be written is looked at again: "healed in seconds", yet no hot loop. */
export const BROKEN_TARGET_POLL = 5_000;

/**
 * Milliseconds until this EtcdStorage is to be looked at again although nothing has happened.
 * @param random in [0, 1): spreads the polls
 * @param steps visits in a row that took a step, this one included
 */
export function nextVisit(
	outcome: Outcome,
	now: number,
	random: number,
	steps = 1,
): number {
	if (outcome.stepped)
		return Math.min(
			NEXT_STEP * 2 ** Math.max(0, steps - USUAL_STEPS),
			TARGET_POLL,
		);
	const eager =
		outcome.problems.some((one) => one.userError) ||
		outcome.rotations.some(({ waits }) => waits.some((one) => !one.obstacle));
	const poll = eager ? BROKEN_TARGET_POLL : TARGET_POLL;
	const due = [
		...outcome.certificates.map((one) => one.renewalTime),
		...outcome.rotations.map(({ nextStepAt }) => nextStepAt ?? now),
		// What was due already has been tried in this visit.
	].filter((time) => time > now);
	return Math.max(
		1_000,
		Math.min(
			poll * (0.75 + 0.25 * random),
			...due.map((time) => time - now + 1),
		),
	);
}
