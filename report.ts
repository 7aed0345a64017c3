/**
 * What `etcdproxy-controller plan` and `etcdproxy-controller certs` say, as values: the fields of their JSON, which are an
 * interface to others, and what tables.ts prints. Pure. Of certificates they carry names and dates; never a key, nor PEM.
 */
import {
	type CertificateStatus,
	type EtcdStorage,
	endpoint,
	type Spec,
} from "./etcdstorage.ts";
import {
	type Domain,
	domains,
	issuedAt,
	leafRenewalTime,
	signerRenewalTime,
} from "./lifetimes.ts";
import { names } from "./manifests.ts";
import type { Observation } from "./observe.ts";
import type { CertificateFacts, Validity } from "./pki.ts";
import { type Leaf, leafDomain, type Plan } from "./reconcile.ts";
import {
	type Authority,
	type Found,
	generationOf,
	newest,
	type Rotation,
	type Signers,
	spreading,
	standing,
	type Wait,
} from "./rotation.ts";
import type { Problem } from "./status.ts";
import {
	type Break,
	breaks,
	expiry,
	issuerOf,
	knownToAll,
	type Presented,
	type Signed,
	type Verifier,
} from "./trust.ts";

/** RFC 3339 in UTC, to the second. */
type Time = string;

export const time = (ms: number): Time =>
	`${new Date(ms).toISOString().slice(0, 19)}Z`;
/** Absent where there is no such time. */
const optional = <K extends string>(key: K, ms: number | undefined) =>
	(ms === undefined || !Number.isFinite(ms) ? {} : { [key]: time(ms) }) as {
		[key in K]?: Time;
	};

/** Both commands' JSON. */
export interface Report<T> {
	/** By the API server's clock, where ours is another. */
	now: Time;
	/** What could not be read for want of a right, and what else limits what is said. */
	notes: string[];
	etcdStorages: T[];
}

/** Something that is wrong. */
export interface Trouble {
	reason: string;
	message: string;
	/** Whether only a person can mend it. */
	person: boolean;
}

/** An object that a visit would change, and how. */
export interface Change {
	/** `Secret api/etcd-client-cert` */
	object: string;
	change: "create" | "configure" | "replace" | "clean" | "delete";
}

export interface PlannedRotation {
	domain: Domain;
	phase: string;
	/** The newest CA's; absent where it is still to be made. */
	generation?: string;
	since?: Time;
	/** What would be done now: `make-current`, `make-next`, `promote`, `confirm` or `retire`, see rotation.ts. */
	step?: string;
	/** Of the step. */
	reason?: string;
	waits: Wait[];
	/** It waits for a person. */
	blocked: boolean;
	/** It is nearly, or really, too late. */
	overdue: boolean;
	/** When something happens by itself. */
	nextStepAt?: Time;
	/** Until when waiting hurts nobody. */
	harmlessUntil?: Time;
}

/** What would be done for one EtcdStorage now, and when next. */
export interface Planned {
	name: string;
	endpoint: string;
	/** `cluster`: decided now, as the controller does. `status`: what the controller has said last; `objects` and `issue` are not known. */
	source: "cluster" | "status";
	rotations: PlannedRotation[];
	/** Certificates that would be issued now. */
	issue: { certificate: string; reason: string }[];
	/** The consumer that would be restarted now. */
	restart?: string;
	objects: Change[];
	problems: Trouble[];
	certificates: { certificate: string; notAfter: Time; renewalTime: Time }[];
}

const trouble = ({ reason, message, userError }: Problem): Trouble => ({
	reason,
	message,
	person: userError,
});

export const troubles = (problems: Problem[]): Trouble[] => [
	// An invalid spec is a problem of two conditions.
	...new Map(problems.map((one) => [one.message, trouble(one)])).values(),
];

const empty = (
	name: string,
	namespace: string,
	source: Planned["source"],
): Planned => ({
	name,
	endpoint: endpoint(name, namespace),
	source,
	rotations: [],
	issue: [],
	objects: [],
	problems: [],
	certificates: [],
});

/** Where nothing can be decided: an invalid spec, an EtcdStorage that is being deleted. */
export const plannedOnly = (
	storage: EtcdStorage,
	namespace: string,
	more: { problems?: Problem[]; objects?: Change[] },
): Planned => ({
	...empty(storage.metadata.name, namespace, "cluster"),
	problems: troubles(more.problems ?? []),
	objects: more.objects ?? [],
});

/** Everything about one EtcdStorage at one moment. */
export interface Seen {
	storage: EtcdStorage;
	spec: Spec;
	/** The controller's. */
	namespace: string;
	observation: Observation;
	plan: Plan;
	now: number;
}

/**
 * @param objects what a visit would write
 * @param problems all that it would find
 */
export function planned(
	{ storage, spec, namespace, observation, plan, now }: Seen,
	objects: Change[],
	problems: Problem[],
): Planned {
	const { signers, leaves } = observation.observed;
	const certificates: Planned["certificates"] = [];
	for (const domain of domains) {
		const shown = newest(signers[domain])?.facts;
		if (shown)
			certificates.push({
				certificate: `${domain}-signer`,
				notAfter: time(shown.notAfter),
				renewalTime: time(signerRenewalTime(spec.name, domain, shown)),
			});
	}
	for (const [id, found] of Object.entries(leaves))
		if ("facts" in found)
			certificates.push({
				certificate: id,
				notAfter: time(found.facts.notAfter),
				renewalTime: time(
					leafRenewalTime(spec.name, leafDomain(id), found.facts),
				),
			});
	return {
		...empty(spec.name, namespace, "cluster"),
		rotations: domains.map((domain) =>
			plannedRotation(plan.rotations[domain], storage, now),
		),
		issue: plan.leaves.map(({ id, reason }) => ({ certificate: id, reason })),
		...(observation.restart && {
			restart: `${observation.restart.kind} ${observation.restart.namespace}/${observation.restart.name}`,
		}),
		objects,
		problems: troubles(problems),
		certificates,
	};
}

function plannedRotation(
	rotation: Rotation,
	{ status }: EtcdStorage,
	now: number,
): PlannedRotation {
	const { domain, phase, generation, step, reason, waits } = rotation;
	const before = status?.certificates?.find(
		(one) => one.name === `${domain}-signer`,
	)?.rotation;
	const noted = Date.parse(before?.since ?? "");
	const known =
		before?.phase === phase &&
		before.generation === generation &&
		!Number.isNaN(noted);
	return {
		domain,
		phase,
		...(generation && { generation }),
		...(known && { since: time(noted) }),
		...(step && {
			step: step.do === "make" ? `make-${step.as}` : step.do,
		}),
		...(reason && { reason }),
		waits,
		...standing(rotation, known ? noted : now, now),
		...optional("nextStepAt", rotation.nextStepAt),
		...optional("harmlessUntil", rotation.harmlessUntil),
	};
}

/** What the controller has said last, for who may not read what it decides from. */
export function plannedByStatus(
	storage: EtcdStorage,
	namespace: string,
): Planned {
	const { certificates = [], conditions = [] } = storage.status ?? {};
	const blocked = conditions.some(
		(one) => one.type === "RotationBlocked" && one.status === "True",
	);
	const overdue = conditions.some((one) => one.reason === "RotationOverdue");
	return {
		...empty(storage.metadata.name, namespace, "status"),
		rotations: domains.flatMap((domain) => {
			const rotation = certificates.find(
				(one) => one.name === `${domain}-signer`,
			)?.rotation;
			return rotation ? [rotationSaid(domain, rotation, blocked, overdue)] : [];
		}),
		problems: conditions
			.filter(
				({ type, status }) =>
					(type === "RotationBlocked" && status === "True") ||
					((type === "CertificatesReady" || type === "Deployed") &&
						status === "False"),
			)
			.map(({ type, reason, message }) => ({
				reason,
				message,
				person: type === "RotationBlocked",
			})),
		certificates: certificates.map(({ name, notAfter, renewalTime }) => ({
			certificate: name,
			notAfter,
			renewalTime,
		})),
	};
}

function rotationSaid(
	domain: Domain,
	rotation: NonNullable<CertificateStatus["rotation"]>,
	blocked: boolean,
	overdue: boolean,
): PlannedRotation {
	const { phase, generation, since, nextStepAt, waitingFor = [] } = rotation;
	return {
		domain,
		phase,
		generation,
		since,
		waits: waitingFor.map((text) => {
			const [, reason = "", message = text] = /^(\w+): (.*)$/s.exec(text) ?? [];
			return { who: "", reason, message, obstacle: blocked };
		}),
		blocked: blocked && waitingFor.length > 0,
		overdue: overdue && waitingFor.length > 0,
		...(nextStepAt !== undefined && { nextStepAt }),
	};
}

interface Life {
	notBefore: Time;
	notAfter: Time;
	/** Of its life, in percent; 0 when it has expired. */
	leftPercent: number;
}

const life = (facts: Validity, now: number): Life => ({
	notBefore: time(facts.notBefore),
	notAfter: time(facts.notAfter),
	leftPercent: Math.floor(
		Math.min(
			1,
			Math.max(0, facts.notAfter - now) /
				Math.max(1, facts.notAfter - issuedAt(facts)),
		) * 100,
	),
});

export interface ShownAuthority extends Life {
	generation: string;
	/** `current` signs certificates, `next` will, `previous` is what everybody is known to trust, `trusted` is only trusted. */
	role: "current" | "next" | "previous" | "trusted";
	subject: string;
	renewalTime?: Time;
	/** Why it cannot sign. */
	trouble?: string;
}

/** One CA's key and name, certified by another. */
export interface ShownCross extends Life {
	generation: string;
	/** The generation of who certifies it. */
	by: string;
	/** Whether it is behind certificates that are in use; else it waits for its CA to sign. */
	handedOut: boolean;
}

export interface ShownCertificate extends Partial<Life> {
	certificate: string;
	/** `Secret api/etcd-client-cert` */
	object: string;
	signedBy?: string;
	/** What is handed out behind it: `77aa01bc by 1f3a9c02`. */
	chain?: string[];
	renewalTime?: Time;
	trouble?: string;
}

export interface ShownBundle {
	/** `ConfigMap api/etcd-serving-ca` */
	object: string;
	key: string;
	generations: string[];
	trouble?: string;
}

export interface ShownVerifier {
	who: string;
	/** Generations that are known to be trusted. */
	trusts: string[];
	/** Not known to have loaded the newest CA. */
	behind: boolean;
	message?: string;
}

export interface ShownDomain {
	domain: Domain;
	phase: string;
	generation?: string;
	/** Why there is no signer that certificates can be issued with. */
	trouble?: string;
	authorities: ShownAuthority[];
	crossCertificates: ShownCross[];
	certificates: ShownCertificate[];
	bundles: ShownBundle[];
	verifiers: ShownVerifier[];
}

export interface ShownBreak {
	at: Time;
	/** It has happened. */
	already: boolean;
	/** `core`: the proxies' own credentials. */
	domain: Domain | "core";
	certificates: string[];
	refusedBy: string[];
	message: string;
}

/** The JSON of `certs`. */
export interface CertsReport extends Report<Shown> {
	/** What all of them depend on. */
	core: {
		/** `core-client`: the proxies' certificate for the core etcd. `core-ca`: the CAs of the core. */
		certificates: ({ certificate: string; object: string } & Life)[];
		breaks: ShownBreak[];
	};
}

/** The certificates of one EtcdStorage as they are. */
export interface Shown {
	name: string;
	endpoint: string;
	/** `cluster`: read now. `status`: the dates that the controller has told; who trusts whom is not known. */
	source: "cluster" | "status";
	domains: ShownDomain[];
	/** If nothing is done any more, the earliest first; with the source `status`, at the latest. */
	breaks: ShownBreak[];
	problems: Trouble[];
}

/** A bundle as it lies in the cluster. */
export interface Bundle {
	domain: Domain;
	object: string;
	key: string;
	/** Why it is of no use; it then counts as one without any CA. */
	trouble?: string;
	authorities: CertificateFacts[];
	/** It could not be read: nothing is known of it. */
	unknown: boolean;
}

/** A pod that verifies clients. */
export interface Proxies {
	/** Who lives, `Pod ns/name`; undefined when they may not be listed. */
	pods: string[] | undefined;
	/** Those that are not known to have loaded the bundle as it is. */
	behind: Wait[];
}

/** A certificate of the core etcd's side. */
export interface CoreCertificate {
	certificate: "core-client" | "core-ca";
	object: string;
	facts: Validity;
}

/** What `certs` reads beyond what a visit does. */
export interface Surroundings {
	bundles: Bundle[];
	proxies: Proxies;
	/** By id, the whole chain as it is handed out. */
	chains: Map<string, CertificateFacts[]>;
	signed: Signed;
	problems: Problem[];
}

export function shown(seen: Seen, around: Surroundings): Shown {
	const { spec, namespace, now } = seen;
	const presented = domains.flatMap((domain) =>
		leavesOf(seen, domain).map(([id, leaf]) =>
			present(id, domain, leaf, around.chains.get(id) ?? []),
		),
	);
	const verifiers = domains.flatMap((domain) =>
		verifiersOf(seen, around, domain),
	);
	return {
		name: spec.name,
		endpoint: endpoint(spec.name, namespace),
		source: "cluster",
		domains: domains.map((domain) =>
			shownDomain(
				seen,
				around,
				domain,
				presented,
				verifiers.filter((one) => one.domain === domain),
			),
		),
		breaks: breaks(presented, verifiers, around.signed, now).map((one) => ({
			...one,
			at: time(one.at),
		})),
		problems: troubles(around.problems),
	};
}

const leavesOf = ({ observation }: Seen, domain: Domain) =>
	Object.entries(observation.observed.leaves).filter(
		([id]) => leafDomain(id) === domain,
	);

function present(
	id: string,
	domain: Domain,
	leaf: Found<Leaf>,
	chain: CertificateFacts[],
): Presented {
	const trouble =
		"missing" in leaf
			? "is not there"
			: "unreadable" in leaf
				? `is unreadable: ${leaf.unreadable}`
				: leaf.keyMatches
					? undefined
					: "has the key of another certificate";
	return { id, domain, chain, ...(trouble && { trouble }) };
}

/** Somebody who verifies, and how he is shown. */
interface Verifying extends Verifier {
	shown?: ShownVerifier;
}

function verifiersOf(
	{ spec, observation, now }: Seen,
	{ bundles, proxies }: Surroundings,
	domain: Domain,
): Verifying[] {
	const signers = observation.observed.signers[domain];
	const reach = observation.observed.reach[domain];
	const certain = knownToAll(signers);
	const loaded = bundles
		.filter((one) => one.domain === domain && !one.unknown)
		.flatMap((one) => one.authorities);
	const generation = newest(signers);
	const verifying = (
		who: string,
		trusted: CertificateFacts[],
		wait?: Wait,
		lacks?: string,
	): Verifying => ({
		domain,
		who: lacks ? `${who}, not known to have loaded ${lacks}` : who,
		trusted,
		shown: {
			who,
			trusts: generations(trusted),
			behind: wait !== undefined,
			...(wait && { message: wait.message }),
		},
	});
	const starting = bundles
		.filter((one) => one.domain === domain && !one.unknown)
		.map(
			(one): Verifying => ({
				domain,
				who: `${domain === "client" ? "proxies" : "API servers"} that start with ${one.object}`,
				trusted: one.authorities,
			}),
		);
	if (domain === "client") {
		const pods = (proxies.pods ?? []).filter(
			(pod) => !proxies.behind.some((wait) => wait.who === pod),
		);
		return [
			...proxies.behind.map((wait) =>
				verifying(wait.who, certain, wait, "the present bundle"),
			),
			...pods.map((pod) => verifying(pod, loaded)),
			...(pods.length + proxies.behind.length === 0
				? [verifying("proxies that run", certain)]
				: []),
			...starting,
		];
	}
	const asked = spreading(signers, now);
	const lacks = generation
		? `CA ${generationOf(generation.facts)}`
		: "the next CA";
	// Nobody is asked before every bundle is written.
	const waits = asked ? [...reach.unwritten, ...reach.unread] : [];
	const named = spec.consumers.map((one) => {
		const who = `${one.kind} ${one.namespace}/${one.name}`;
		const early: Wait = {
			who,
			reason: "ConsumerWaiting",
			message: `${who} is asked as soon as every bundle is written`,
			obstacle: false,
		};
		const wait =
			waits.find((wait) => wait.who === who) ??
			(asked && reach.unwritten.length > 0 ? early : undefined);
		return wait
			? verifying(who, certain, wait, lacks)
			: verifying(who, asked ? signers.trusted : certain);
	});
	const others = waits
		.filter((wait) => !named.some((one) => one.shown?.who === wait.who))
		.map((wait) =>
			verifying(`API servers with ${wait.who}`, certain, wait, lacks),
		);
	return [
		...named,
		...others,
		...(named.length + others.length === 0
			? [verifying("API servers that run", certain)]
			: []),
		...starting,
	];
}

const generations = (list: CertificateFacts[]) => list.map(generationOf);

function shownDomain(
	seen: Seen,
	around: Surroundings,
	domain: Domain,
	presented: Presented[],
	verifiers: Verifying[],
): ShownDomain {
	const { spec, namespace, observation, plan, now } = seen;
	const signers = observation.observed.signers[domain];
	const { phase, generation } = plan.rotations[domain];
	const { current, cross, nextCross } = signers;
	const why = unusable(current);
	const crosses: [CertificateFacts | undefined, boolean][] = [
		[cross, true],
		[nextCross, false],
	];
	return {
		domain,
		phase,
		...(generation && { generation }),
		...(why && { trouble: why }),
		authorities: authorities(signers, spec, domain, now),
		crossCertificates: crosses.flatMap(([facts, handedOut]) =>
			facts
				? [
						{
							generation: generationOf(facts),
							by: issuerOf(facts),
							handedOut,
							...life(facts, now),
						},
					]
				: [],
		),
		certificates: presented
			.filter((one) => one.domain === domain)
			.map((one) => shownCertificate(one, spec, namespace, now)),
		bundles: around.bundles
			.filter((one) => one.domain === domain)
			.map(({ object, key, authorities: list, trouble: why }) => ({
				object,
				key,
				generations: generations(list),
				...(why && { trouble: why }),
			})),
		verifiers: verifiers.flatMap((one) => one.shown ?? []),
	};
}

function unusable(found: Found<Authority>): string | undefined {
	if ("missing" in found) return "the current signer is not there";
	if ("unreadable" in found)
		return `the current signer is unreadable: ${found.unreadable}`;
	return undefined;
}

function authorities(
	{ current, next, previous, trusted }: Signers,
	spec: Spec,
	domain: Domain,
	now: number,
): ShownAuthority[] {
	const list: ShownAuthority[] = [];
	const told = new Set<string>();
	const add = (
		role: ShownAuthority["role"],
		facts: CertificateFacts,
		why?: string,
	) => {
		if (told.has(facts.fingerprint)) return;
		told.add(facts.fingerprint);
		list.push({
			generation: generationOf(facts),
			role,
			subject: facts.subject,
			...life(facts, now),
			...(role === "current" && {
				renewalTime: time(signerRenewalTime(spec.name, domain, facts)),
			}),
			...(why && { trouble: why }),
		});
	};
	const pair = (role: "current" | "next", found: Found<Authority>) => {
		if ("facts" in found)
			add(
				role,
				found.facts,
				found.keyMatches ? undefined : "its key does not match",
			);
	};
	pair("next", next);
	pair("current", current);
	if (previous) add("previous", previous.facts);
	for (const facts of trusted) add("trusted", facts);
	return list;
}

function shownCertificate(
	{ id, domain, chain: [leaf, ...others], trouble: why }: Presented,
	spec: Spec,
	namespace: string,
	now: number,
): ShownCertificate {
	return {
		certificate: id,
		object:
			domain === "serving"
				? `Secret ${namespace}/${names.serverCert(spec.name)}`
				: `Secret ${id.slice("client/".length)}`,
		...(leaf && {
			signedBy: issuerOf(leaf),
			chain: others.map((one) => `${generationOf(one)} by ${issuerOf(one)}`),
			renewalTime: time(leafRenewalTime(spec.name, domain, leaf)),
			...life(leaf, now),
		}),
		...(why && { trouble: why }),
	};
}

/** The credentials that the proxies of all EtcdStorages have for the core: without them, they serve nobody. */
export function shownCore(
	core: CoreCertificate[],
	now: number,
): CertsReport["core"] {
	const kinds = ["core-client", "core-ca"] as const;
	const ends = kinds.flatMap((certificate): Break[] => {
		const [last] = core
			.filter((one) => one.certificate === certificate)
			.sort((a, b) => b.facts.notAfter - a.facts.notAfter);
		if (!last) return [];
		const at = last.facts.notAfter;
		const client = certificate === "core-client";
		const what = client
			? "the proxies' certificate for the core etcd"
			: "the last CA of the core etcd";
		return [
			{
				at,
				already: at <= now,
				domain: "core",
				certificates: [certificate],
				refusedBy: [client ? "the core etcd" : "every proxy"],
				message: `${what} ${at <= now ? "has expired" : "expires"}: no endpoint works (${last.object})`,
			},
		];
	});
	return {
		certificates: core.map(({ certificate, object, facts }) => ({
			certificate,
			object,
			...life(facts, now),
		})),
		breaks: ends
			.sort((a, b) => a.at - b.at)
			.map((one) => ({ ...one, at: time(one.at) })),
	};
}

/** The dates that the controller has told, for who may not read the certificates. */
export function shownByStatus(
	storage: EtcdStorage,
	namespace: string,
	now: number,
): Shown {
	const { name } = storage.metadata;
	const { certificates = [] } = storage.status ?? {};
	const isSigner = (id: string) =>
		domains.some((domain) => id === `${domain}-signer`);
	const ends = certificates
		.filter((one) => !isSigner(one.name))
		.map((one) => ({ id: one.name, at: Date.parse(one.notAfter) }))
		.filter(({ at }) => !Number.isNaN(at))
		.map(({ id, at }) => expiry(id, leafDomain(id), at, now))
		.sort((a, b) => a.at - b.at);
	return {
		name,
		endpoint: endpoint(name, namespace),
		source: "status",
		domains: domains.map((domain) => {
			const signer = certificates.find(
				(one) => one.name === `${domain}-signer`,
			)?.rotation;
			return {
				domain,
				phase: signer?.phase ?? "unknown",
				...(signer && { generation: signer.generation }),
				authorities: [],
				crossCertificates: [],
				bundles: [],
				verifiers: [],
				certificates: certificates
					.filter((one) =>
						isSigner(one.name)
							? one.name === `${domain}-signer`
							: leafDomain(one.name) === domain,
					)
					.map(({ name: id, notBefore, notAfter, renewalTime }) => ({
						certificate: id,
						object: "",
						notBefore,
						notAfter,
						renewalTime,
					})),
			};
		}),
		breaks: ends.map((one) => ({ ...one, at: time(one.at) })),
		problems: [],
	};
}

/** Where a spec that cannot be acted on says of nothing what it should be. */
export const shownOnly = (
	storage: EtcdStorage,
	namespace: string,
	problems: Problem[],
	now: number,
): Shown => ({
	...shownByStatus(storage, namespace, now),
	problems: troubles(problems),
});
