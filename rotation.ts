/**
 * The replacement of a signer, phase by phase (pki.md, rules 2, 3 and 6). Pure.
 *
 * What makes it safe is that the next signer is certified by one that everybody is known to trust: its leaves, handed
 * out with that cross-certificate, are accepted by whoever has loaded either of the two. The phases see to it that
 * nobody depends on the cross-certificate when it ends.
 */

import type { Requests, Spec } from "./etcdstorage.ts";
import {
	type Domain,
	issuedAt,
	outOfDates,
	partOfLife,
	signerRenewalTime,
	validityChanged,
	validityFor,
} from "./lifetimes.ts";
import type { CertificateFacts, KeyPair, Validity } from "./pki.ts";

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

/** A key pair as it was found: absent, of no use, or the facts about it. */
export type Found<T> = { missing: true } | { unreadable: string } | T;

/** A CA with its private key. */
export interface Authority {
	pair: KeyPair;
	facts: CertificateFacts;
	keyMatches: boolean;
}

/** What a domain's signer Secret holds. */
export interface Signers {
	/** It signs leaves. */
	current: Found<Authority>;
	/** Phase Publish: it will. */
	next: Found<Authority>;
	/** The next signer's certificate by one that everybody trusts. */
	nextCross?: CertificateFacts;
	/** The current signer's, handed out behind its leaves. */
	cross?: CertificateFacts;
	/**
	 * While it is not known that everybody trusts the current signer: the newest one of which it is known. Without the
	 * key where that was lost or is not to be used any more.
	 */
	previous?: { facts: CertificateFacts; pair?: KeyPair };
	/** Every CA of the domain that is not retired: what goes into bundles. */
	trusted: CertificateFacts[];
	/** The requests that this state already is the answer to. */
	answered: Requests;
}

/** How far the newest CA of a domain has got, and its certificates. Each list names who is behind. */
export interface Reach {
	/** Bundles that have carried an older CA, and do not carry the newest. */
	unwritten: Wait[];
	/** Secrets that have held a certificate, and do not hold one of the current signer. */
	undelivered: Wait[];
	/** Who verifies, and is not known to have loaded the CA that `spreading` names. */
	unread: Wait[];
}

/** A change of what the signer Secret holds. */
export type Step =
	| ({ do: "make"; as: "current" | "next" } & SignerProfile)
	| { do: "promote" }
	| { do: "confirm" }
	| { do: "retire" };

interface SignerProfile {
	commonName: string;
	organization: string;
	validity: Validity;
	/** Which of the present signers certifies the new one, and for how long; absent when none can. */
	cross?: { by: "current" | "previous"; validity: Validity };
	/** Nothing that was trusted before is trusted any longer. */
	distrust: boolean;
	answered: Requests;
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
/** Without a cross-certificate, publishing waits no longer than this part of a leaf's life. */
const LAST_MOMENT = 9 / 10;
/** Where nobody can tell who has read a bundle, they are waited for so long, should the former CA have expired before. */
const UNKNOWN_PATIENCE = 24 * 3_600_000;
/** The last part of the time in which waiting is harmless; then it is an error. */
const OVERDUE = 1 / 4;

/** How a CA's common name ends: the beginning of its key identifier. */
export const generationOf = (facts: CertificateFacts) =>
	facts.keyIdentifier.slice(0, 8);

/** The one that is or will be current; undefined when there is none that can be read. */
export function newest({ current, next }: Signers): Authority | undefined {
	if ("facts" in next) return next;
	return "facts" in current ? current : undefined;
}

/** Why an authority cannot sign; undefined when it can. */
function unusable(found: Found<Authority>, now: number): string | undefined {
	if ("missing" in found) return "not there";
	if ("unreadable" in found) return `unreadable: ${found.unreadable}`;
	if (!found.facts.isCA) return "not a CA";
	if (!found.keyMatches) return "key does not match";
	return outOfDates(found.facts, now);
}

/** The current signer, if it can sign leaves. */
export const signing = (
	{ current }: Signers,
	now: number,
): Authority | undefined =>
	"facts" in current && unusable(current, now) === undefined
		? current
		: undefined;

/** The CA of which it matters now who has loaded it; undefined when it does not. Finding out costs requests. */
export function spreading(
	signers: Signers,
	now: number,
): CertificateFacts | undefined {
	const { next, nextCross, current, previous } = signers;
	if ("facts" in next) return isValid(nextCross, now) ? undefined : next.facts;
	return previous && "facts" in current ? current.facts : undefined;
}

const isValid = (facts: CertificateFacts | undefined, now: number) =>
	facts !== undefined && now < facts.notAfter;

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
		distrust = false,
	): Rotation => ({
		domain,
		phase: as === "next" ? "Publish" : distrust ? "Sign" : "Steady",
		reason,
		waits: [],
		step: {
			do: "make",
			as,
			distrust,
			answered: requests,
			commonName: `etcd ${domain} CA`,
			organization: spec.name,
			...certified(spec, signers, now),
		},
	});

	const known = signers.trusted.length > 0 || "facts" in current;
	const { compromised } = requests;
	if (
		known &&
		compromised !== undefined &&
		compromised !== answered.compromised
	)
		return make("current", `compromised: ${compromised}`, true);

	if (!("missing" in next)) {
		const broken = unusable(next, now);
		return broken === undefined && "facts" in next
			? publish(domain, signers, next, reach, leaves, now)
			: make("next", `next signer ${broken}`);
	}
	const broken = unusable(current, now);
	// Where nothing was there before, nobody has to be waited for.
	if (broken !== undefined || !("facts" in current))
		return make(
			known || leaves.length > 0 ? "next" : "current",
			broken ?? "not there",
		);
	const due =
		validityChanged(current.facts, spec.validity.signing) ??
		(requests.rotate !== undefined && requests.rotate !== answered.rotate
			? `requested: ${requests.rotate}`
			: undefined) ??
		(now >= signerRenewalTime(spec.name, domain, current.facts)
			? "past 1/2 of its life"
			: undefined);
	if (due !== undefined && !mustWait(current, signers.previous, now))
		return make("next", due);
	return settle(spec, domain, signers, current, reach, leaves, now);
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

/** The dates of a new signer, and who certifies it: the newest one that everybody is known to trust. */
function certified(
	spec: Spec,
	{ current, previous }: Signers,
	now: number,
): Pick<SignerProfile, "validity" | "cross"> {
	const validity = validityFor(spec.validity.signing, now);
	const able = (by: "current" | "previous", one: Signers["previous"]) => {
		if (!one?.pair || !one.facts.isCA || now >= one.facts.notAfter)
			return undefined;
		const both = within(validity, one.facts);
		return both.notBefore < both.notAfter ? { by, validity: both } : undefined;
	};
	// One that is not valid yet is able: when our own clock is behind, everybody else trusts it already.
	const own =
		"facts" in current && current.keyMatches
			? able("current", current)
			: undefined;
	const cross = able("previous", previous) ?? own;
	return { validity, ...(cross && { cross }) };
}

const within = (inner: Validity, outer: Validity): Validity => ({
	notBefore: Math.max(inner.notBefore, outer.notBefore),
	notAfter: Math.min(inner.notAfter, outer.notAfter),
});

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
			: Math.min(...leaves.map((leaf) => partOfLife(leaf, LAST_MOMENT)));
	const { nextCross, trusted } = signers;
	const [forced, harmlessUntil] =
		nextCross && chained && able
			? [partOfLife(able.facts, PUBLISH_UNTIL), nextCross.notAfter]
			: [
					lastMoment,
					// Who has only one of the former is cut off with it, too.
					Math.min(
						lastMoment,
						...without(trusted, next).map((one) => one.notAfter),
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

/** @param newest the CA whose coming is waited for: the time to wait began with it */
function urgency(newest: CertificateFacts, harmlessUntil: number) {
	const from = issuedAt(newest);
	return {
		harmlessUntil,
		overdueAt: harmlessUntil - Math.max(0, harmlessUntil - from) * OVERDUE,
	};
}

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
	const others = trusted.filter(
		(one) => one.fingerprint !== current.facts.fingerprint,
	);
	const firstEnd = Math.min(...others.map((one) => one.notAfter));
	const unsigned = leaves.filter((leaf) => !leaf.signedBySigner);
	if (previous && (unsigned.length > 0 || reach.undelivered.length > 0))
		return {
			...known,
			phase: "Sign",
			waits: reach.undelivered,
			...(reach.undelivered.length > 0 &&
				urgency(
					current.facts,
					Math.min(
						firstEnd,
						current.facts.notAfter,
						...unsigned.map((leaf) => leaf.notAfter),
					),
				)),
		};
	if (previous) {
		const distrusted = !others.some(
			(one) => one.fingerprint === previous.facts.fingerprint,
		);
		const over = now >= previous.facts.notAfter;
		const waits = [...reach.unwritten, ...reach.unread];
		const guesses = waits.every((one) => one.reason.endsWith("Unknown"));
		const issued = issuedAt(current.facts);
		// Without the chain who is behind is cut off already, and a CA that must not be trusted does harm while it is.
		const chained =
			isValid(signers.cross, now) &&
			signers.cross?.issuer === previous.facts.subject;
		const harmless = over || (!distrusted && chained);
		const patience = Math.min(
			issued + UNKNOWN_PATIENCE,
			partOfLife(current.facts, 1 / 4),
		);
		if (waits.length === 0 || (over && guesses && now >= patience))
			return {
				...known,
				phase: others.some((one) => now <= one.notAfter) ? "Retire" : "Steady",
				step: { do: "confirm" },
				reason:
					waits.length === 0
						? "all who verify have loaded the new CA"
						: "the former CA has expired, and nobody else is known to need the new one",
				waits: [],
			};
		return {
			...known,
			phase: "Spread",
			waits,
			...(over || distrusted
				? guesses && {
						nextStepAt: Math.max(previous.facts.notAfter, patience),
					}
				: { nextStepAt: previous.facts.notAfter }),
			...urgency(current.facts, harmless ? previous.facts.notAfter : issued),
		};
	}
	if (now > firstEnd)
		return {
			...known,
			phase: others.some((one) => now <= one.notAfter) ? "Retire" : "Steady",
			step: { do: "retire" },
			reason: "the former CA has expired",
			waits: [],
		};
	return {
		...known,
		phase: others.length > 0 ? "Retire" : "Steady",
		waits: [],
		nextStepAt: Math.min(
			firstEnd,
			signerRenewalTime(spec.name, domain, current.facts),
		),
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

/**
 * What the signer Secret is to hold after a step; without one, what it holds without what has expired.
 * @param made for the step `make`: the new signer, and its cross-certificate if the step asks for one
 */
export function advance(
	signers: Signers,
	step: Step | undefined,
	made: { authority: Authority; cross?: CertificateFacts } | undefined,
	now: number,
): Signers {
	const after = { ...signers };
	switch (step?.do) {
		case "make": {
			if (!made) throw new Error("a step without what it makes");
			const { authority, cross } = made;
			const former = signing(signers, now) ?? newest(signers);
			after.answered = step.answered;
			after.trusted = step.distrust
				? [authority.facts]
				: // A next signer that nobody has used is not missed.
					[...without(signers.trusted, signers.next), authority.facts];
			if (step.as === "next") {
				after.next = authority;
				set(after, "nextCross", cross);
				break;
			}
			after.current = authority;
			after.next = { missing: true };
			set(after, "cross", cross);
			set(after, "nextCross", undefined);
			set(after, "previous", former && { facts: former.facts });
			break;
		}
		case "promote": {
			after.current = signers.next;
			after.next = { missing: true };
			set(after, "cross", signers.nextCross);
			set(after, "nextCross", undefined);
			set(after, "previous", anchor(signers, now));
			break;
		}
		case "confirm":
			set(after, "previous", undefined);
			break;
	}
	after.trusted = after.trusted.filter((one) => now <= one.notAfter);
	if (!isValid(after.cross, now)) set(after, "cross", undefined);
	return after;
}

/** The newest signer that everybody trusts, now that the next one becomes current. */
function anchor(
	{ current, previous, next, trusted }: Signers,
	now: number,
): Signers["previous"] {
	if (previous && now < previous.facts.notAfter) return previous;
	if ("facts" in current)
		return {
			facts: current.facts,
			...(current.keyMatches && { pair: current.pair }),
		};
	const newestOther = without(trusted, next).sort(
		(a, b) => b.notBefore - a.notBefore,
	)[0];
	return newestOther ? { facts: newestOther } : previous;
}

const without = (list: CertificateFacts[], found: Found<Authority>) =>
	"facts" in found
		? list.filter((one) => one.fingerprint !== found.facts.fingerprint)
		: [...list];

/** Sets, or removes: with exactOptionalPropertyTypes the one is not the other. */
function set<K extends "cross" | "nextCross" | "previous">(
	signers: Signers,
	key: K,
	value: Signers[K] | undefined,
): void {
	if (value === undefined) delete signers[key];
	else signers[key] = value as Signers[K];
}
