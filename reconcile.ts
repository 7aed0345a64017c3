/**
 * The core: which certificates are due for one EtcdStorage, and why. Pure: no await, no clock, no random, no I/O.
 *
 * Every decision is made from the certificates themselves and `now` (milliseconds since the epoch), never from notes
 * about them, so that a restarted controller or a new leader decides the same; and every decision carries its reason.
 */
import { formatDuration, type Spec } from "./etcdstorage.ts";
import type { CertificateFacts, KeyPair, Validity } from "./pki.ts";

/** `client`: who may speak to the proxies. `serving`: who the proxies are. Two trust domains that share nothing. */
export type Domain = "client" | "serving";
export const domains: readonly Domain[] = ["client", "serving"];

/**
 * Where the replacement of a signer has got to (pki.md, rule 2). `Publish`: the next signer is being written into every
 * bundle. `Sign`: it is the current one, and leaves are being issued by it. `Spread`: who verifies is being brought to
 * load the new bundle. `Retire`: all have, and the former CA stays until it expires. `Steady`: nothing is under way.
 */
export type Phase = "Steady" | "Publish" | "Sign" | "Spread" | "Retire";

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
		const crossSign =
			"facts" in found ? crossValidity(found, validity, now) : undefined;
		signers[domain] = validity;
		plan.signers.push({
			domain,
			reason: reason ?? "not there",
			keep: "facts" in found ? found.bundle : [],
			commonName: `etcd ${domain} CA`,
			organization: spec.name,
			validity,
			...(crossSign && { crossSign }),
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

/**
 * When the successor's cross-certificate is valid; undefined for a signer that cannot certify one, being broken or
 * expired. One that is not valid yet can: when our own clock is behind, everybody else trusts it already.
 */
function crossValidity(
	signer: Signer,
	successor: Validity,
	now: number,
): Validity | undefined {
	const { facts, keyMatches } = signer;
	if (!keyMatches || !facts.isCA || now >= facts.notAfter) return undefined;
	const notBefore = Math.max(successor.notBefore, facts.notBefore);
	const notAfter = Math.min(successor.notAfter, facts.notAfter);
	return notBefore < notAfter ? { notBefore, notAfter } : undefined;
}

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
