/**
 * When certificates begin, are due for another, and end. Pure; times are milliseconds since the epoch.
 * X.509 dates have whole seconds (RFC 5280, 4.1.2.5).
 */
import { formatDuration } from "./etcdstorage.ts";
import type { CertificateFacts, Validity } from "./pki.ts";

/** `client`: who may speak to the proxies. `serving`: who the proxies are. Two trust domains that share nothing. */
export type Domain = "client" | "serving";
export const domains: readonly Domain[] = ["client", "serving"];

/** notBefore lies this far back, for verifiers whose clock is behind. */
export const BACKDATE = 5 * 60_000;
const JITTER = 0.1;
const SIGNER_RENEWAL = 1 / 2;
const LEAF_RENEWAL = 2 / 3;

/**
 * The dates of a certificate that is issued now.
 * @param signer a leaf never begins before its signer or outlives it
 */
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

/** When it was issued: a certificate's life begins there. */
export const issuedAt = (facts: Validity) => facts.notBefore + BACKDATE;
const life = (facts: Validity) => facts.notAfter - issuedAt(facts);
/** The instant at which this part of its life is over. */
export const partOfLife = (facts: Validity, part: number) =>
	Math.floor(issuedAt(facts) + life(facts) * part);

export function outOfDates(facts: Validity, now: number): string | undefined {
	if (now >= facts.notAfter) return "expired";
	return facts.notBefore > now ? "not valid yet" : undefined;
}

/** The certificate's dates show which validity it was issued with. */
export function validityChanged(
	facts: Validity,
	validity: number,
	signer?: Validity,
): string | undefined {
	const wanted = notAfterFor(facts.notBefore, validity, signer);
	return Math.abs(wanted - facts.notAfter) < 1000
		? undefined
		: `validity changed: from ${formatDuration(life(facts))} to ${formatDuration(wanted - issuedAt(facts))}`;
}

const renewalTime = (
	name: string,
	domain: Domain,
	facts: CertificateFacts,
	part: number,
) =>
	partOfLife(
		facts,
		part - hash01(`${name}/${domain}/${facts.serial}`) * JITTER,
	);

/**
 * When a leaf is renewed: at 2/3 of its life, up to 10 % of it earlier, so that what was made together is not renewed
 * together.
 * @param name the EtcdStorage's
 */
export const leafRenewalTime = (
	name: string,
	domain: Domain,
	facts: CertificateFacts,
) => renewalTime(name, domain, facts, LEAF_RENEWAL);

/** When a signer is replaced: at 1/2 of its life, likewise a little earlier, so that a leaf always has room for its own life. */
export const signerRenewalTime = (
	name: string,
	domain: Domain,
	facts: CertificateFacts,
) => renewalTime(name, domain, facts, SIGNER_RENEWAL);

const utf8 = new TextEncoder();

/** FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/) mapped to [0, 1): a jitter that every replica agrees on. */
export function hash01(text: string): number {
	let hash = 0x811c9dc5;
	for (const byte of utf8.encode(text))
		hash = Math.imul(hash ^ byte, 0x01000193);
	// FNV's high bits mix slowly over short texts that differ at their end; one more round (murmur3's) spreads them.
	hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
	hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
	return ((hash ^ (hash >>> 16)) >>> 0) / 2 ** 32;
}
