/**
 * What `etcdproxy-controller plan` and `etcdproxy-controller certs` say, as values: the fields of their JSON, which are an
 * interface to others, and what tables.ts prints. Pure. Of certificates they carry names and dates; never a key, nor PEM.
 */

import { unnamed } from "./consumers.ts";
import type { Write } from "./drykube.ts";
import {
	type EtcdStorage,
	type EtcdStorageStatus,
	formatTime,
	readSpec,
	type Spec,
} from "./etcdstorage.ts";
import {
	type Domain,
	domains,
	issuedAt,
	leafRenewalTime,
	signerRenewalTime,
} from "./lifetimes.ts";
import { refText } from "./objects.ts";
import type { Observation } from "./observe.ts";
import type { CertificateFacts } from "./pki.ts";
import { leafDomain, type Plan } from "./reconcile.ts";
import { spreading } from "./rotation.ts";
import {
	type Authority,
	type Found,
	generationOf,
	type Step,
} from "./signers.ts";
import {
	type EventNote,
	nextVisit,
	type Outcome,
	type Problem,
	status,
} from "./status.ts";
import {
	type Break,
	breaks,
	issuerOf,
	knownToAll,
	type Verifier,
} from "./trust.ts";

/** RFC 3339 in UTC, to the second. */
type Time = string;

/** Both commands' JSON. */
export interface Report<T> {
	/** By the API server's clock, where ours is another. */
	now: Time;
	/** How far ours is off, where it is. */
	note?: string;
	etcdStorages: T[];
}

/** What a visit to one EtcdStorage would do now, and what its status would be then: with renewals, and what comes next when. */
export interface Planned {
	name: string;
	/** Whether a person has to do something: conditions and events say what. */
	person: boolean;
	/** In the replacement of a CA, see `Step` in rotation.ts. */
	steps: { domain: Domain; step: Step["do"]; reason: string }[];
	/** Certificates; a CA is a `client-signer` or `serving-signer`. */
	issued: { id: string; reason: string }[];
	/** In order, in the words of the controller's log: `Secret api/etcd-client-cert configured`. */
	written: string[];
	/** What a person would be told besides. */
	events: EventNote[];
	/** Absent where the EtcdStorage is being deleted. A CA that would be made has the generation `new`. */
	status?: EtcdStorageStatus;
	/** When the controller looks again, at the latest. */
	nextVisit?: Time;
}

const PAST: Record<Write["verb"], string> = {
	create: "created",
	apply: "configured",
	patch: "patched",
};

/**
 * @param namespace the controller's
 * @param did what came of the dry run; without an outcome where the EtcdStorage is being deleted
 */
export function planned(
	storage: EtcdStorage,
	namespace: string,
	did: { outcome?: Outcome; writes: Write[]; events: EventNote[] },
	now: number,
): Planned {
	const { outcome, writes, events } = did;
	const written = writes.map(
		({ verb, object }) =>
			outcome?.written.find((line) => line.startsWith(`${object} `)) ??
			`${object} ${PAST[verb]}`,
	);
	const plan: Planned = {
		...{ name: storage.metadata.name, person: false, steps: [], issued: [] },
		// To take fields over from somebody else takes two writes.
		written: [...new Set(written)],
		events,
	};
	if (!outcome) return plan;
	const after = status(storage, namespace, readSpec(storage), outcome, now);
	// A CA that is made in a dry run is forgotten: the controller makes another.
	for (const { name, rotation } of after.certificates ?? [])
		if (rotation && outcome.issued.some((one) => one.id === name))
			rotation.generation = "new";
	return {
		...plan,
		person:
			outcome.problems.some((one) => one.userError) ||
			isTrue(after, "RotationBlocked"),
		steps: outcome.rotations.flatMap(({ domain, step, reason = "" }) =>
			step ? { domain, step: step.do, reason } : [],
		),
		issued: outcome.issued,
		status: after,
		nextVisit: formatTime(now + nextVisit(outcome, now, 1)),
	};
}

const isTrue = ({ conditions = [] }: EtcdStorageStatus, type: string) =>
	conditions.some((one) => one.type === type && one.status === "True");

/** A certificate as it is. */
export interface ShownCertificate {
	/** `CA 0c13da83`, `server`, `client/<namespace>/<secret>`; of the core etcd's: the object that holds it. */
	id: string;
	domain: Domain | "core";
	/**
	 * Of a CA: `current` issues certificates, `next` will, `previous` is what everybody is known to trust, `trusted` is only
	 * trusted. `cross` is the current CA certified by another, handed out behind certificates, as `next cross` will be.
	 */
	role: string;
	/** The generations of its issuer and, of what is handed out behind it, of their issuers. */
	by: string[];
	notBefore?: Time;
	notAfter?: Time;
	/** Of its life, in percent; 0 when it has expired. */
	leftPercent?: number;
	renewalTime?: Time;
	/** Why it is of no use. */
	trouble?: string;
}

/** Who verifies one domain's certificates. */
export interface ShownVerifier {
	domain: Domain;
	who: string;
	/** Generations of the CAs that are known to be trusted, not those that may be. */
	trusts: string[];
	/** `behind`: not known to have loaded the newest CA. `not asked`: it does not matter yet, or no more. */
	state?: "behind" | "not asked";
	/** What is waited for. */
	message?: string;
}

/** The certificates of one EtcdStorage. */
export interface Certs {
	name: string;
	phases: Partial<Record<Domain, string>>;
	problems: string[];
	/** What breaks when, if nothing is done any more; the earliest first. */
	breaks: (Omit<Break, "at"> & { at: Time })[];
	certificates: ShownCertificate[];
	verifiers: ShownVerifier[];
}

/** The JSON of `certs`. */
export interface CertsReport extends Report<Certs> {
	/** What the proxies of all have for the core etcd: without it, no endpoint works. */
	core: ShownCertificate[];
}

// An invalid spec is a problem of two conditions.
const problemTexts = (problems: Problem[]) => [
	...new Set(problems.map(({ reason, message }) => `${reason}: ${message}`)),
];

/** Where the spec does not say what there should be. */
export const unshown = (name: string, problems: Problem[]): Certs => ({
	...{ name, phases: {}, problems: problemTexts(problems) },
	...{ breaks: [], certificates: [], verifiers: [] },
});

/** What `certs` is made from. */
export interface Seen {
	spec: Spec;
	observation: Observation;
	rotations: Plan["rotations"];
	/** Who starts now, by the bundle that he would read. */
	starting: Verifier[];
	/** By id, as handed out; none where it cannot be read. */
	chains: Map<string, CertificateFacts[]>;
	now: number;
}

export function shown(seen: Seen): Certs {
	const { spec, observation, rotations, chains, now } = seen;
	const { coreTrouble, problems, observed } = observation;
	const leaves = Object.entries(observed.leaves).map(([id, leaf]) => {
		const trouble = troubleOf(leaf, "certificate");
		const chain = chains.get(id) ?? [];
		return { id, domain: leafDomain(id), chain, ...(trouble && { trouble }) };
	});
	const verifiers = domains.flatMap((domain) => verifiersOf(seen, domain));
	return {
		name: spec.name,
		phases: {
			client: rotations.client.phase,
			serving: rotations.serving.phase,
		},
		problems: problemTexts([
			...(coreTrouble ? [coreTrouble] : []),
			...problems,
		]),
		breaks: breaks(leaves, verifiers, now).map((one) => ({
			...one,
			at: formatTime(one.at),
		})),
		certificates: [
			...domains.flatMap((domain) => authorities(seen, domain)),
			...leaves.map(({ chain, ...one }): ShownCertificate => {
				const [leaf] = chain;
				const dates = leaf && {
					...life(leaf, now),
					renewalTime: formatTime(leafRenewalTime(spec.name, one.domain, leaf)),
				};
				return {
					...one,
					role: "leaf",
					by: [...new Set(chain.map(issuerOf))],
					...dates,
				};
			}),
		],
		verifiers: verifiers.map(({ trusted, ...one }) => ({
			...one,
			trusts: trusted.map(generationOf),
		})),
	};
}

/** A certificate's dates. */
export const life = (facts: CertificateFacts, now: number) => {
	const whole = Math.max(1, facts.notAfter - issuedAt(facts));
	const left = Math.min(1, Math.max(0, facts.notAfter - now) / whole);
	return {
		notBefore: formatTime(facts.notBefore),
		notAfter: formatTime(facts.notAfter),
		leftPercent: Math.floor(left * 100),
	};
};

/** Why a pair is of no use to anybody, whatever its dates. */
function troubleOf(
	found: Found<{ keyMatches: boolean }>,
	what: string,
): string | undefined {
	if ("missing" in found) return "is not there";
	if ("unreadable" in found) return `is unreadable: ${found.unreadable}`;
	return found.keyMatches ? undefined : `has the key of another ${what}`;
}

/** The CAs that are there, or ought to be, each once; then cross-certificates. */
function authorities(
	{ observation, spec, now }: Seen,
	domain: Domain,
): ShownCertificate[] {
	const { current, next, previous, trusted, cross, nextCross } =
		observation.observed.signers[domain];
	const pair = (role: string, found: Found<Authority>) => ({
		role,
		facts: "facts" in found ? found.facts : undefined,
		trouble: troubleOf(found, "CA"),
	});
	const rows = [
		...("missing" in next ? [] : [pair("next", next)]),
		pair("current", current),
		{ role: "previous", facts: previous?.facts, trouble: undefined },
		...trusted.map((facts) => ({ role: "trusted", facts, trouble: undefined })),
		{ role: "next cross", facts: nextCross, trouble: undefined },
		{ role: "cross", facts: cross, trouble: undefined },
	];
	const told = rows.map(({ facts }) => facts?.fingerprint);
	return rows
		.filter(({ facts, trouble }, index) =>
			facts ? told.indexOf(facts.fingerprint) === index : trouble,
		)
		.map(({ role, facts, trouble }) => ({
			...{ id: "CA", domain, role, by: [] },
			...(facts && {
				id: `CA ${generationOf(facts)}`,
				by: [issuerOf(facts)],
				...life(facts, now),
			}),
			...(facts &&
				role === "current" && {
					renewalTime: formatTime(signerRenewalTime(spec.name, domain, facts)),
				}),
			...(trouble && { trouble }),
		}));
}

/** Those that run, as far as the controller asks them, and those that start. */
function verifiersOf(
	{ spec, observation, starting, now }: Seen,
	domain: Domain,
): (Verifier & Pick<ShownVerifier, "state" | "message">)[] {
	const signers = observation.observed.signers[domain];
	const reach = observation.observed.reach[domain];
	const certain = knownToAll(signers);
	const spread = spreading(signers, now) !== undefined;
	const behind = (spread ? reach.unread : []).map(({ who, message }) => ({
		domain,
		who: who.startsWith("ConfigMap ") ? `API servers with ${who}` : who,
		trusted: certain,
		state: "behind" as const,
		message,
	}));
	const whoever = domain === "client" ? "proxies" : "API servers";
	const bundles = spec.targets.filter(({ kind }) => kind === "ConfigMap");
	const others =
		domain === "serving" && spec.consumers.length > 0
			? [
					...spec.consumers.map(refText),
					...unnamed(bundles, spec.consumers).map(
						(one) => `API servers with ${refText(one)}`,
					),
				].filter((who) => !behind.some((one) => one.who === who))
			: behind.length > 0
				? []
				: [`${whoever} that run`];
	// Where a bundle lacks the CA, it is not known who has been asked.
	const asked = spread && reach.unwritten.length === 0;
	return [
		...behind,
		...others.map((who) => ({
			domain,
			who,
			trusted: asked ? signers.trusted : certain,
			...(!asked && { state: "not asked" as const }),
		})),
		...starting.filter((one) => one.domain === domain),
	];
}
