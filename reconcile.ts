/**
 * The core: what is due for one EtcdStorage, and what to say about it. Pure: no await, no clock, no random, no I/O.
 *
 * observe -> decide -> issue -> manifests -> apply -> status: this file holds `decide`, `status` and `nextVisit`.
 * Every decision is made from the certificates themselves and `now` (milliseconds since the epoch), never from notes
 * about them, so that a restarted controller or a new leader decides the same; and every decision carries its reason.
 */
import {
	type CertificateStatus,
	type Condition,
	type EtcdStorage,
	type EtcdStorageStatus,
	formatDuration,
	type Spec,
	type TargetStatus,
} from "./etcdstorage.ts";
import type { CertificateFacts, KeyPair, Validity } from "./pki.ts";

/** `client`: who may speak to the proxies. `serving`: who the proxies are. Two trust domains that share nothing. */
export type Domain = "client" | "serving";
export const domains: readonly Domain[] = ["client", "serving"];

/** notBefore lies this far back, for verifiers whose clock is behind. */
export const BACKDATE = 5 * 60_000;
const JITTER = 0.1;
const SIGNER_RENEWAL = 1 / 2;
const LEAF_RENEWAL = 2 / 3;

/** A key pair as it was found: absent, of no use, or the facts about it. */
export type Found<T> = { missing: true } | { unreadable: string } | T;

export interface Signer {
	pair: KeyPair;
	facts: CertificateFacts;
	keyMatches: boolean;
	/** The predecessor's certificate for this signer: present until the predecessor has expired. */
	cross?: CertificateFacts;
	/** Every CA of this domain that is to be trusted, this one included. */
	bundle: CertificateFacts[];
}

export interface Leaf {
	pair: KeyPair;
	facts: CertificateFacts;
	keyMatches: boolean;
	/** Whether the domain's current signer made its signature. */
	signedBySigner: boolean;
}

export interface Observed {
	signers: Record<Domain, Found<Signer>>;
	/** By id: `server`, and `client/<namespace>/<name>` for each Secret that can be filled. */
	leaves: Record<string, Found<Leaf>>;
}

export interface SignerPlan {
	domain: Domain;
	/** Why a new signer is to be made. */
	reason: string;
	/** Set when the current signer is still good enough to certify the next one (see pki.md, rule 2). */
	crossSign?: Validity;
	/** Certificates that stay trusted beside the new one. */
	keep: CertificateFacts[];
	commonName: string;
	organization: string;
	validity: Validity;
}

export interface LeafPlan {
	id: string;
	domain: Domain;
	reason: string;
	commonName: string;
	usage: "serverAuth" | "clientAuth";
	dnsNames: string[];
	ipAddresses: string[];
	validity: Validity;
}

export interface Plan {
	signers: SignerPlan[];
	leaves: LeafPlan[];
}

/** Which certificates are due, and why. An empty plan means that every certificate may stay. */
export function decide(
	spec: Spec,
	namespace: string,
	observed: Observed,
	now: number,
): Plan {
	const plan: Plan = { signers: [], leaves: [] };
	const signers = {} as Record<Domain, Validity>;
	for (const domain of domains) {
		const found = observed.signers[domain];
		const reason = signerDue(spec, domain, found, now);
		if (reason === undefined && "facts" in found) {
			signers[domain] = found.facts;
			continue;
		}
		const validity = validityFor(spec.validity.signing, now);
		const usable =
			"facts" in found && isUsable(found, now) ? found.facts : undefined;
		signers[domain] = validity;
		plan.signers.push({
			domain,
			reason: reason ?? "not there",
			keep: "facts" in found ? found.bundle : [],
			commonName: `etcd ${domain} CA`,
			organization: spec.name,
			validity,
			...(usable && {
				crossSign: {
					notBefore: Math.max(validity.notBefore, usable.notBefore),
					notAfter: Math.min(validity.notAfter, usable.notAfter),
				},
			}),
		});
	}
	for (const [id, found] of Object.entries(observed.leaves)) {
		const domain: Domain = id === "server" ? "serving" : "client";
		const profile = leafProfile(spec, namespace, domain);
		const replaced = plan.signers.some((signer) => signer.domain === domain);
		const reason = leafDue(
			spec,
			domain,
			found,
			replaced ? undefined : signers[domain],
			profile,
			now,
		);
		if (reason !== undefined)
			plan.leaves.push({
				id,
				domain,
				reason,
				...profile,
				validity: validityFor(spec.validity[domain], now, signers[domain]),
			});
	}
	return plan;
}

/** A usable signer can certify its successor; one that is lost, broken or out of its dates cannot. */
const isUsable = (signer: Signer, now: number) =>
	signer.keyMatches &&
	signer.facts.isCA &&
	signer.facts.notBefore <= now &&
	now < signer.facts.notAfter;

function signerDue(
	spec: Spec,
	domain: Domain,
	found: Found<Signer>,
	now: number,
): string | undefined {
	if ("missing" in found) return "not there";
	if ("unreadable" in found) return `unreadable: ${found.unreadable}`;
	const { facts } = found;
	if (!facts.isCA) return "not a CA";
	if (!found.keyMatches) return "key does not match";
	return (
		outOfDates(facts, now) ??
		validityChanged(facts, spec.validity.signing) ??
		(now >= signerRenewalTime(spec, domain, facts)
			? "past 1/2 of its life"
			: undefined)
	);
}

type LeafProfile = Pick<
	LeafPlan,
	"commonName" | "usage" | "dnsNames" | "ipAddresses"
>;

function leafProfile(
	spec: Spec,
	namespace: string,
	domain: Domain,
): LeafProfile {
	if (domain === "client")
		return {
			commonName: spec.name,
			usage: "clientAuth",
			dnsNames: [],
			ipAddresses: [],
		};
	const host = `etcd-${spec.name}`;
	return {
		commonName: host,
		usage: "serverAuth",
		dnsNames: [
			host,
			`${host}.${namespace}`,
			`${host}.${namespace}.svc`,
			`${host}.${namespace}.svc.cluster.local`,
			"localhost", // for kubectl port-forward
		],
		ipAddresses: ["127.0.0.1"],
	};
}

/** @param signer the dates of the signer that stays; undefined when it is being replaced */
function leafDue(
	spec: Spec,
	domain: Domain,
	found: Found<Leaf>,
	signer: Validity | undefined,
	profile: LeafProfile,
	now: number,
): string | undefined {
	if ("missing" in found) return "not there";
	if ("unreadable" in found) return `unreadable: ${found.unreadable}`;
	const { facts } = found;
	if (!found.keyMatches) return "key does not match";
	if (signer === undefined || !found.signedBySigner) return "signer replaced";
	const names = difference(
		[...profile.dnsNames, ...profile.ipAddresses],
		[...facts.dnsNames, ...facts.ipAddresses],
	);
	if (names !== undefined) return names;
	if (facts.commonName !== profile.commonName)
		return `common name is "${facts.commonName}"`;
	if (facts.extendedKeyUsages.join() !== profile.usage)
		return `extended key usage is ${facts.extendedKeyUsages.join() || "missing"}`;
	if (facts.isCA) return "is a CA";
	return (
		outOfDates(facts, now) ??
		validityChanged(facts, spec.validity[domain], signer) ??
		(now >= leafRenewalTime(spec, domain, facts)
			? "past 2/3 of its life"
			: undefined)
	);
}

function difference(wanted: string[], found: string[]): string | undefined {
	const missing = wanted.filter((name) => !found.includes(name));
	if (missing.length > 0) return `SAN missing: ${missing.join(", ")}`;
	const extra = found.filter((name) => !wanted.includes(name));
	return extra.length > 0 ? `SAN not wanted: ${extra.join(", ")}` : undefined;
}

function outOfDates(facts: Validity, now: number): string | undefined {
	if (now >= facts.notAfter) return "expired";
	return facts.notBefore > now ? "not valid yet" : undefined;
}

/** The certificate's dates show which validity it was issued with: notBefore + BACKDATE is when that happened. */
function validityChanged(
	facts: Validity,
	validity: number,
	signer?: Validity,
): string | undefined {
	const wanted = notAfterFor(facts.notBefore, validity, signer);
	return Math.abs(wanted - facts.notAfter) < 1000
		? undefined
		: `validity changed from ${formatDuration(life(facts))} to ${formatDuration(wanted - facts.notBefore - BACKDATE)}`;
}

/** X.509 dates have whole seconds (RFC 5280, 4.1.2.5). A leaf never begins before its signer or outlives it. */
export function validityFor(
	validity: number,
	now: number,
	signer?: Validity,
): Validity {
	const notBefore = Math.max(
		Math.floor((now - BACKDATE) / 1000) * 1000,
		signer?.notBefore ?? Number.NEGATIVE_INFINITY,
	);
	return { notBefore, notAfter: notAfterFor(notBefore, validity, signer) };
}

const notAfterFor = (notBefore: number, validity: number, signer?: Validity) =>
	Math.min(
		notBefore + BACKDATE + Math.floor(validity / 1000) * 1000,
		signer?.notAfter ?? Number.POSITIVE_INFINITY,
	);

/** Without the backdating: a certificate's life begins when it is issued. */
const life = (facts: Validity) => facts.notAfter - facts.notBefore - BACKDATE;

function renewalTime(
	spec: Spec,
	domain: Domain,
	facts: CertificateFacts,
	fraction: number,
): number {
	const jitter = hash01(`${spec.name}/${domain}/${facts.serial}`) * JITTER;
	return Math.floor(
		facts.notBefore + BACKDATE + life(facts) * (fraction - jitter),
	);
}

/** When a leaf is renewed: at 2/3 of its life, up to 10 % of it earlier, so that what was made together is not renewed together. */
export const leafRenewalTime = (
	spec: Spec,
	domain: Domain,
	facts: CertificateFacts,
) => renewalTime(spec, domain, facts, LEAF_RENEWAL);

/** When a signer is replaced: at 1/2 of its life, likewise a little earlier, so that a leaf always has room for its own life. */
export const signerRenewalTime = (
	spec: Spec,
	domain: Domain,
	facts: CertificateFacts,
) => renewalTime(spec, domain, facts, SIGNER_RENEWAL);

/** FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/) mapped to [0, 1): a jitter that every replica agrees on. */
export function hash01(text: string): number {
	let hash = 0x811c9dc5;
	for (const byte of new TextEncoder().encode(text))
		hash = Math.imul(hash ^ byte, 0x01000193);
	// FNV's high bits mix slowly over short texts that differ at their end; one more round (murmur3's) spreads them.
	hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
	hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
	return ((hash ^ (hash >>> 16)) >>> 0) / 2 ** 32;
}

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
		ok: boolean,
		reason: string,
		message: string,
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

	const deployed = deployedCondition(storage, namespace, outcome);
	const certificates = certificatesCondition(outcome);
	const conditions = [
		condition("CertificatesReady", ...certificates),
		condition("Deployed", ...deployed),
		condition(
			"Ready",
			...((certificates[0]
				? deployed[0]
					? [true, "Ready", `serving ${endpoint(storage, namespace)}`]
					: deployed
				: certificates) as [boolean, string, string]),
		),
	];
	if ("warnings" in spec)
		conditions.push(
			spec.warnings.length > 0
				? condition(
						"ValidityWarning",
						true,
						"NotAsWritten",
						`${spec.warnings.join(". ")}.`,
					)
				: condition(
						"ValidityWarning",
						false,
						"AsWritten",
						"certificates are issued with the validities of the spec",
					),
		);

	const list: CertificateStatus[] = outcome.certificates.map((one) => ({
		name: one.id,
		notBefore: iso(one.facts.notBefore),
		notAfter: iso(one.facts.notAfter),
		renewalTime: iso(one.renewalTime),
	}));
	return {
		observedGeneration: generation,
		...("name" in spec && { endpoint: endpoint(storage, namespace) }),
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

export const endpoint = (storage: EtcdStorage, namespace: string) =>
	`https://etcd-${storage.metadata.name}.${namespace}.svc:2379`;

function certificatesCondition(outcome: Outcome): [boolean, string, string] {
	const problems = outcome.problems.filter(
		(one) => one.condition === "CertificatesReady",
	);
	const [first] = problems;
	if (first)
		return [
			false,
			first.reason,
			problems.map((one) => one.message).join(" | "),
		];
	return [
		true,
		"CertificatesIssued",
		`${outcome.certificates.length} certificates are valid and delivered`,
	];
}

function deployedCondition(
	storage: EtcdStorage,
	namespace: string,
	outcome: Outcome,
): [boolean, string, string] {
	const problems = outcome.problems.filter(
		(one) => one.condition === "Deployed",
	);
	const [first] = problems;
	if (first)
		return [
			false,
			first.reason,
			problems.map((one) => one.message).join(" | "),
		];
	const name = storage.metadata.name;
	const { available, ready, wanted } = outcome.availability ?? {
		available: false,
		ready: 0,
		wanted: 0,
	};
	if (available)
		return [
			true,
			"Deployed",
			`Deployment ${namespace}/etcd-${name} is available and Service ${namespace}/etcd-${name} is there`,
		];
	return [
		false,
		"DeploymentNotAvailable",
		`Deployment ${namespace}/etcd-${name} has ${ready} of ${wanted} replicas ready; see: kubectl -n ${namespace} describe pods -l apiserver=${name}`,
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
