/**
 * The replacement of a signer, phase by phase (README.md, Certificates). Pure.
 *
 * What makes it safe is that the next signer is certified by one that everybody is known to trust: its leaves, handed
 * out with that cross-certificate, are accepted by whoever has loaded either of the two. The phases see to it that
 * nobody depends on the cross-certificate when it ends.
 */

import { certifier, lostCross } from "./certifier.ts";
import type { Spec } from "./etcdstorage.ts";
import {
	type Domain,
	issuedAt,
	partOfLife,
	signerRenewalTime,
	validityChanged,
	validityFor,
} from "./lifetimes.ts";
import type { CertificateFacts, Validity } from "./pki.ts";
import {
	type Authority,
	generationOf,
	isValid,
	newest,
	type SignerProfile,
	type Signers,
	type Step,
	signing,
	unusable,
	without,
} from "./signers.ts";

/**
 * `Publish`: the next signer is being written into every bundle. `Sign`: it is the current one, and leaves are being
 * issued by it. `Spread`: who verifies is being brought to load the new bundle. `Retire`: all have, and the former CA
 * stays trusted until it expires. `Steady`: nothing is under way.
 */
export type Phase = "Steady" | "Publish" | "Sign" | "Spread" | "Retire";
export const phases: readonly Phase[] = [
	"Steady",
	"Publish",
	"Sign",
	"Spread",
	"Retire",
];

/** Somebody that a phase waits for. */
export interface Wait {
	/** The object: `Deployment api/apiserver`. */
	who: string;
	/** In CamelCase, for conditions and metrics: `ConsumerForbidden`. */
	reason: string;
	/** What is waited for; of an obstacle, also the way out. */
	message: string;
	/** Whether it does not pass by itself: a person must do something. */
	obstacle: boolean;
}

/** How far the newest CA of a domain has got, and its certificates. Each list names who is behind. */
export interface Reach {
	/** Bundles that have carried an older CA, and do not carry the newest. */
	unwritten: Wait[];
	/** Secrets that have held a certificate, and do not hold one of the current signer. */
	undelivered: Wait[];
	/** Who verifies, and is not known to have loaded the CA that `spreading` names. */
	unread: Wait[];
	/** Whether something of the domain has been handed out: then somebody trusts a CA, also when it is not known which. */
	handedOut: boolean;
}

/** A domain's phase, and what is to be done in it now. */
export interface Rotation {
	domain: Domain;
	phase: Phase;
	/** The newest CA's, as it ends its common name; undefined for one that is still to be made. */
	generation?: string;
	step?: Step;
	/** Why the step is taken. */
	reason?: string;
	waits: Wait[];
	/** When the phase ends or changes by itself; undefined when others decide. */
	nextStepAt?: number;
	/** Until when nobody is hurt by waiting; undefined when nothing is waited for. */
	harmlessUntil?: number;
	/** From then on, waiting is an error. */
	overdueAt?: number;
}

/** Of a domain's leaves: those that somebody can be using. */
export interface LiveLeaf extends Validity {
	signedBySigner: boolean;
}

/** Publishing waits for a bundle that cannot be written no longer than this part of the old signer's life. */
const PUBLISH_UNTIL = 3 / 4;
/**
 * Without a cross-certificate, publishing waits no longer than this part of a leaf's life, or of what was left of it when
 * the next CA was made: of a leaf that nobody could renew, little may be.
 */
const LAST_MOMENT = 9 / 10;
/** Where nobody can tell who has read a bundle, they are waited for so long, should the former CA have expired before. */
const UNKNOWN_PATIENCE = 24 * 3_600_000;
/** By age there are three at once; more are asked for, and each of them stays trusted until it expires. */
export const MOST_TRUSTED = 32;
/** The last part of the time in which waiting is harmless; then it is an error. */
const OVERDUE = 1 / 4;

/** The CA of which it matters now who has loaded it; undefined when it does not. Finding out costs requests. */
export function spreading(
	signers: Signers,
	now: number,
): CertificateFacts | undefined {
	const { next, nextCross, current, previous } = signers;
	if ("facts" in next) return isValid(nextCross, now) ? undefined : next.facts;
	return previous && "facts" in current ? current.facts : undefined;
}

/**
 * What is to be done with a domain's signers now, and what is waited for.
 * @param leaves the domain's certificates that are in use, as far as they can be seen
 */
export function rotate(
	spec: Spec,
	domain: Domain,
	signers: Signers,
	reach: Reach,
	leaves: LiveLeaf[],
	now: number,
): Rotation {
	const requests = spec.requests[domain];
	const { current, next, answered } = signers;
	const make = (
		as: "current" | "next",
		reason: string,
		more: Partial<Pick<SignerProfile, "distrust" | "lost">> = {},
	): Rotation => {
		const { distrust = false, lost = false } = more;
		const validity = validityFor(spec.validity.signing, now);
		const cross = certifier(signers, validity, now);
		return {
			domain,
			phase: as === "next" ? "Publish" : distrust || lost ? "Sign" : "Steady",
			reason,
			waits: [],
			step: {
				do: "make",
				as,
				distrust,
				lost,
				answered: requests,
				commonName: `etcd ${domain} CA`,
				organization: spec.name,
				validity,
				...(cross && { cross }),
			},
		};
	};

	const known = signers.trusted.length > 0 || "facts" in current;
	const { compromised } = requests;
	if (
		known &&
		compromised !== undefined &&
		compromised !== answered.compromised
	)
		return make("current", `compromised: ${compromised}`, { distrust: true });

	if (!("missing" in next)) {
		const broken = unusable(next, now);
		if (broken !== undefined || !("facts" in next))
			return make("next", `next signer ${broken}`);
		const published = publish(domain, signers, next, reach, leaves, now);
		const cross = lostCross(signers, "next", now);
		return cross
			? {
					...published,
					phase: "Publish",
					step: { do: "certify", of: "next", cross },
					reason: WITHOUT_CROSS,
				}
			: published;
	}
	const broken = unusable(current, now);
	if (broken !== undefined || !("facts" in current)) {
		const reason = broken ?? "not there";
		const trusted =
			"facts" in current || signers.trusted.some((one) => isValid(one, now));
		if (trusted) return make("next", reason);
		// Where nothing was there before, or is any more, nobody has to be waited for.
		return make("current", reason, { lost: reach.handedOut });
	}
	const asked =
		validityChanged(current.facts, spec.validity.signing) ??
		(requests.rotate !== undefined && requests.rotate !== answered.rotate
			? `requested: ${requests.rotate}`
			: undefined);
	const aged =
		now >= signerRenewalTime(spec.name, domain, current.facts)
			? "past 1/2 of its life"
			: undefined;
	const crowded = signers.trusted.length >= MOST_TRUSTED;
	const due = crowded ? aged : (asked ?? aged);
	if (due !== undefined && !mustWait(current, signers.previous, now))
		return make("next", due);
	const settled = settle(spec, domain, signers, current, reach, leaves, now);
	if (settled.step) return settled;
	const cross = lostCross(signers, "current", now);
	if (cross)
		return {
			...settled,
			step: { do: "certify", of: "current", cross },
			reason: WITHOUT_CROSS,
		};
	if (asked === undefined) return settled;
	const wait = crowded
		? tooMany(domain, asked)
		: putOff(domain, asked, current, settled);
	return { ...settled, waits: [...settled.waits, wait] };
}

const WITHOUT_CROSS = "cross-certificate not there";

const tooMany = (domain: Domain, due: string): Wait => ({
	who: `${domain} CA`,
	reason: "TooManyCAs",
	message: `another ${domain} CA (${due}) is made only when one of the ${MOST_TRUSTED} that are trusted has expired; who asks for so many?`,
	obstacle: true,
});

/** It waits no longer than for those who are waited for anyhow. */
const putOff = (
	domain: Domain,
	due: string,
	{ facts }: Authority,
	{ waits }: Rotation,
): Wait => ({
	who: `${domain} CA`,
	reason: "RotationPutOff",
	message: `another ${domain} CA (${due}) is made when all who verify have loaded CA ${generationOf(facts)}, or its predecessor has expired`,
	obstacle: waits.some((one) => one.obstacle),
});

/** A rotation whose step cannot be kept: it stays where it was, which is harmless as long as the current signer lives. */
export function held(
	{ step, reason, ...rest }: Rotation,
	signers: Signers,
	now: number,
): Rotation {
	if (!step) return { ...rest, ...(reason !== undefined && { reason }) };
	const ca = newest(signers)?.facts;
	const able = signing(signers, now)?.facts;
	const replaces = step.do === "make" || step.do === "promote";
	return {
		...rest,
		phase: phaseBefore(step, signers, rest.phase, now),
		...(ca && { generation: generationOf(ca) }),
		...(able && replaces && urgency(able, able.notAfter)),
	};
}

function phaseBefore(
	step: Step,
	{ current, next, previous, trusted }: Signers,
	phase: Phase,
	now: number,
): Phase {
	if (step.do === "certify") return phase;
	if (!("missing" in next)) return "Publish";
	if (previous) return "Spread";
	const others = without(trusted, current);
	return step.do === "retire" || others.some((one) => now <= one.notAfter)
		? "Retire"
		: "Steady";
}

/**
 * Whether the replacement after this one has to wait. As long as not everybody is known to trust the current signer, the
 * next one must be certified by the previous. Where that ends long before the current one, those who have loaded the
 * current one would be left without either: then it is better to wait for that end, and to be certified by the current.
 */
const mustWait = (
	{ facts }: Authority,
	previous: Signers["previous"],
	now: number,
) =>
	previous !== undefined &&
	now < previous.facts.notAfter &&
	previous.facts.notAfter <= partOfLife(facts, PUBLISH_UNTIL);

function publish(
	domain: Domain,
	signers: Signers,
	next: Authority,
	reach: Reach,
	leaves: LiveLeaf[],
	now: number,
): Rotation {
	const chained = isValid(signers.nextCross, now);
	const able = signing(signers, now);
	// Without the chain, who is behind is cut off by the next step; nobody can be who is not let in today.
	const lastMoment =
		leaves.length === 0
			? now
			: Math.min(...leaves.map((leaf) => lastMomentOf(leaf, next.facts)));
	const { nextCross, trusted } = signers;
	const [forced, harmlessUntil] =
		nextCross && chained && able
			? [partOfLife(able.facts, PUBLISH_UNTIL), nextCross.notAfter]
			: [
					lastMoment,
					// Who has only one of the former is cut off with it, too.
					Math.min(
						lastMoment,
						...without(trusted, next)
							.map((one) => one.notAfter)
							.filter((end) => now <= end),
					),
				];
	const waits = [...reach.unwritten, ...(chained ? [] : reach.unread)];
	const known = { domain, generation: generationOf(next.facts) };
	if (waits.length > 0 && now < forced)
		return {
			...known,
			phase: "Publish",
			waits,
			nextStepAt: forced,
			...urgency(next.facts, harmlessUntil),
		};
	const reason =
		waits.length === 0
			? "the new CA is in every bundle"
			: leaves.length === 0
				? "no certificate is in use"
				: "it could wait no longer";
	return { ...known, phase: "Sign", step: { do: "promote" }, reason, waits };
}

function lastMomentOf(leaf: Validity, next: CertificateFacts): number {
	const left = leaf.notAfter - issuedAt(next);
	return Math.max(
		partOfLife(leaf, LAST_MOMENT),
		Math.floor(issuedAt(next) + left * LAST_MOMENT),
	);
}

/** @param ca the one whose coming or replacement is waited for: the time to wait began with it */
function urgency(ca: CertificateFacts, harmlessUntil: number) {
	const from = issuedAt(ca);
	return {
		harmlessUntil,
		overdueAt: harmlessUntil - Math.max(0, harmlessUntil - from) * OVERDUE,
	};
}

/** The phases after the new signer has become current. */
function settle(
	spec: Spec,
	domain: Domain,
	signers: Signers,
	current: Authority,
	reach: Reach,
	leaves: LiveLeaf[],
	now: number,
): Rotation {
	const { previous, trusted } = signers;
	const known = { domain, generation: generationOf(current.facts) };
	const others = without(trusted, current);
	const living = others.filter((one) => now <= one.notAfter);
	const firstEnd = Math.min(...living.map((one) => one.notAfter));
	const phase = living.length > 0 ? "Retire" : "Steady";
	const unsigned = leaves.filter((leaf) => !leaf.signedBySigner);
	if (previous && (unsigned.length > 0 || reach.undelivered.length > 0)) {
		const ends = [current.facts, ...unsigned].map((one) => one.notAfter);
		return {
			...known,
			phase: "Sign",
			waits: reach.undelivered,
			...(reach.undelivered.length > 0 &&
				urgency(current.facts, Math.min(firstEnd, ...ends))),
		};
	}
	if (previous)
		return {
			...known,
			...spread(signers, current, previous.facts, others, reach, now),
		};
	if (living.length < others.length)
		return {
			...known,
			phase,
			step: { do: "retire" },
			reason: "the former CA has expired",
			waits: [],
		};
	return {
		...known,
		phase,
		waits: [],
		nextStepAt: Math.min(
			firstEnd,
			signerRenewalTime(spec.name, domain, current.facts),
		),
	};
}

/**
 * Whether all who verify are known to have loaded the current CA.
 * @param previous the newest of which it is known
 * @param others the CAs that are trusted beside the current one
 */
function spread(
	{ cross }: Signers,
	{ facts }: Authority,
	previous: CertificateFacts,
	others: CertificateFacts[],
	reach: Reach,
	now: number,
): Omit<Rotation, "domain"> {
	const waits = [...reach.unwritten, ...reach.unread];
	const guesses = waits.every((one) => one.reason.endsWith("Unknown"));
	const lost = previous.fingerprint === facts.fingerprint;
	const over = lost || now >= previous.notAfter;
	const patience = Math.min(
		issuedAt(facts) + UNKNOWN_PATIENCE,
		partOfLife(facts, 1 / 4),
	);
	if (waits.length === 0 || (over && guesses && now >= patience))
		return {
			phase: others.some((one) => now <= one.notAfter) ? "Retire" : "Steady",
			step: { do: "confirm" },
			reason:
				waits.length === 0
					? "all who verify have loaded the new CA"
					: "the former CA has expired, and nobody else is known to need the new one",
			waits: [],
		};
	const distrusted = !others.some(
		(one) => one.fingerprint === previous.fingerprint,
	);
	const chained = isValid(cross, now) && cross?.issuer === previous.subject;
	// Without the chain who is behind is cut off already, and a CA that must not be trusted does harm while it is.
	const harmless = over || (!distrusted && chained);
	const end = lost ? issuedAt(facts) : previous.notAfter;
	return {
		phase: "Spread",
		waits,
		...(over || distrusted
			? guesses && { nextStepAt: Math.max(end, patience) }
			: { nextStepAt: end }),
		...urgency(facts, harmless ? end : issuedAt(facts)),
	};
}

/** How long a kubelet may take to bring a changed file to a pod. */
const DELIVERY = 2 * 60_000;
/** How long somebody who may come by himself is waited for before a person is told, at most. */
const PATIENCE = 15 * 60_000;

/**
 * Whether a person must do something about a phase (`blocked`), and whether it is nearly, or really, too late.
 * @param since when the phase was entered
 */
export function standing(
	{ waits, harmlessUntil = Number.POSITIVE_INFINITY, overdueAt }: Rotation,
	since: number,
	now: number,
): { blocked: boolean; overdue: boolean } {
	const patience =
		harmlessUntil > since
			? Math.min(PATIENCE, (harmlessUntil - since) / 4)
			: DELIVERY;
	const blocked =
		waits.some((one) => one.obstacle) ||
		(waits.length > 0 && now - since > patience);
	return { blocked, overdue: blocked && now >= (overdueAt ?? now + 1) };
}
