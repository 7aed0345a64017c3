/**
 * What the signer Secret of a trust domain holds, and what becomes of it step by step; when a step is due is decided in
 * rotation.ts. Pure.
 */
import type { Requests } from "./etcdstorage.ts";
import { outOfDates } from "./lifetimes.ts";
import type { CertificateFacts, KeyPair, Validity } from "./pki.ts";

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
	 * While it is not known that everybody trusts the current signer: the newest one of which it is known, or the current
	 * one itself where nobody knows that any more. Without the key where that was lost or is not to be used any more.
	 */
	previous?: { facts: CertificateFacts; pair?: KeyPair };
	/** Every CA of the domain that is not retired: what goes into bundles. One that has expired stays while another spreads. */
	trusted: CertificateFacts[];
	/** The requests that this state already is the answer to. */
	answered: Requests;
}

/** A change of what the signer Secret holds. */
export type Step =
	| ({ do: "make"; as: "current" | "next" } & SignerProfile)
	| { do: "certify"; of: "current" | "next"; cross: Cross }
	| { do: "promote" }
	| { do: "confirm" }
	| { do: "retire" };

/** Which of the present signers certifies another one, and for how long. */
export interface Cross {
	by: "current" | "previous";
	validity: Validity;
}

export interface SignerProfile {
	commonName: string;
	organization: string;
	validity: Validity;
	/** Absent when none can certify it. */
	cross?: Cross;
	/** Nothing that was trusted before is trusted any longer. */
	distrust: boolean;
	/** Somebody trusts another one, and nobody knows any more which. */
	lost: boolean;
	answered: Requests;
}

/** How a CA's common name ends: the beginning of its key identifier. */
export const generationOf = (facts: CertificateFacts) =>
	facts.keyIdentifier.slice(0, 8);

/** The one that is or will be current; undefined when there is none that can be read. */
export function newest({ current, next }: Signers): Authority | undefined {
	if ("facts" in next) return next;
	return "facts" in current ? current : undefined;
}

/** Why an authority cannot sign; undefined when it can. */
export function unusable(
	found: Found<Authority>,
	now: number,
): string | undefined {
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

/** Whether there is one that has not expired. */
export const isValid = (facts: CertificateFacts | undefined, now: number) =>
	facts !== undefined && now < facts.notAfter;

/** What a step makes: a new signer, a cross-certificate. */
export interface Made {
	authority?: Authority;
	cross?: CertificateFacts;
}

/**
 * What the signer Secret is to hold after a step; without one, what it holds without what has expired.
 * @param made what the step asks for
 */
export function advance(
	signers: Signers,
	step: Step | undefined,
	made: Made | undefined,
	now: number,
): Signers {
	const { authority, cross } = made ?? {};
	const isLiving = (one: CertificateFacts) => now <= one.notAfter;
	const after = { ...signers };
	switch (step?.do) {
		case "make": {
			if (!authority) throw new Error("a step without what it makes");
			const former =
				(signing(signers, now) ?? newest(signers))?.facts ??
				newestOther(signers) ??
				(step.lost ? authority.facts : undefined);
			after.answered = step.answered;
			after.trusted = step.distrust
				? [authority.facts]
				: // A next signer that nobody has used is not missed.
					[
						...without(signers.trusted, signers.next).filter(isLiving),
						authority.facts,
					];
			if (step.as === "next") {
				after.next = authority;
				set(after, "nextCross", cross);
				break;
			}
			after.current = authority;
			after.next = { missing: true };
			set(after, "cross", cross);
			set(after, "nextCross", undefined);
			set(after, "previous", former && { facts: former });
			break;
		}
		case "certify":
			set(after, step.of === "next" ? "nextCross" : "cross", cross);
			break;
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
	// Every other text of a bundle is one that nobody has loaded yet: who has loaded the newest CA would be waited for again.
	if (!after.previous && "missing" in after.next)
		after.trusted = after.trusted.filter(isLiving);
	if (!isValid(after.cross, now)) set(after, "cross", undefined);
	return after;
}

/** The newest signer that everybody trusts, now that the next one becomes current. */
function anchor(signers: Signers, now: number): Signers["previous"] {
	const { current, previous } = signers;
	if (previous && now < previous.facts.notAfter) return previous;
	if ("facts" in current)
		return {
			facts: current.facts,
			...(current.keyMatches && { pair: current.pair }),
		};
	const facts = newestOther(signers);
	return facts ? { facts } : previous;
}

const newestOther = ({ trusted, next }: Signers) =>
	without(trusted, next).sort((a, b) => b.notBefore - a.notBefore)[0];

/** The list without the one that was found. */
export const without = (list: CertificateFacts[], found: Found<Authority>) =>
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
