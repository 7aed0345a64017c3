/**
 * The core: which certificates are due for one EtcdStorage, and why. Pure: no await, no clock, no random, no I/O.
 *
 * Every decision is made from the certificates themselves and `now` (milliseconds since the epoch), never from notes
 * about them, so that a restarted controller or a new leader decides the same; and every decision carries its reason.
 */
import type { Spec } from "./etcdstorage.ts";
import {
	type Domain,
	domains,
	leafRenewalTime,
	outOfDates,
	validityChanged,
	validityFor,
} from "./lifetimes.ts";
import type { CertificateFacts, KeyPair, Validity } from "./pki.ts";
import {
	held,
	type LiveLeaf,
	type Reach,
	type Rotation,
	rotate,
} from "./rotation.ts";
import { type Found, type Signers, signing } from "./signers.ts";

export interface Leaf {
	pair: KeyPair;
	facts: CertificateFacts;
	keyMatches: boolean;
	/** PEM: as it lies there, with what is handed out behind it. */
	chain: string;
	/** Whether the domain's current signer made its signature. */
	signedBySigner: boolean;
}

export interface Observed {
	signers: Record<Domain, Signers>;
	/** How far the newest CA of each domain has got. */
	reach: Record<Domain, Reach>;
	/** By id: `server`, and `client/<namespace>/<name>` for each Secret that can be filled. */
	leaves: Record<string, Found<Leaf>>;
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
	rotations: Record<Domain, Rotation>;
	leaves: LeafPlan[];
}

export const leafDomain = (id: string): Domain =>
	id === "server" ? "serving" : "client";

/**
 * Which certificates are due, and why. Without steps and leaves, every certificate may stay.
 * @param stuck domains whose signers cannot be written: they stay as they are
 */
export function decide(
	spec: Spec,
	namespace: string,
	observed: Observed,
	now: number,
	stuck: Domain[] = [],
): Plan {
	const plan: Plan = {
		rotations: {} as Plan["rotations"],
		leaves: [],
	};
	for (const domain of domains) {
		const signers = observed.signers[domain];
		const found = Object.entries(observed.leaves).filter(
			([id]) => leafDomain(id) === domain,
		);
		const due = rotate(
			spec,
			domain,
			signers,
			observed.reach[domain],
			found.flatMap(([, leaf]) => liveLeaf(leaf, signers.trusted, now)),
			now,
		);
		const rotation = stuck.includes(domain) ? held(due, signers, now) : due;
		plan.rotations[domain] = rotation;
		const signer = leafSigner(signers, rotation, now);
		// Until the next signer is trusted, what is there must do.
		if (!signer) continue;
		const profile = leafProfile(spec, namespace, domain);
		for (const [id, leaf] of found) {
			const reason = leafDue(spec, domain, leaf, signer, profile, now);
			if (reason !== undefined)
				plan.leaves.push({
					id,
					domain,
					reason,
					...profile,
					validity: validityFor(spec.validity[domain], now, signer.validity),
				});
		}
	}
	return plan;
}

/** The certificate as somebody uses it; none if it is of no use to anybody. */
function liveLeaf(
	leaf: Found<Leaf>,
	trusted: CertificateFacts[],
	now: number,
): LiveLeaf[] {
	if (!("facts" in leaf) || !leaf.keyMatches) return [];
	const { facts, signedBySigner } = leaf;
	if (outOfDates(facts, now) !== undefined) return [];
	// No generation has the subject of another.
	return trusted.some((one) => one.subject === facts.issuer)
		? [{ ...facts, signedBySigner }]
		: [];
}

/** Who signs leaves after the rotation's step; undefined when nobody can. */
function leafSigner(
	signers: Signers,
	{ step }: Rotation,
	now: number,
): { validity: Validity; replaced: boolean } | undefined {
	if (step?.do === "make" && step.as === "current")
		return { validity: step.validity, replaced: true };
	if (step?.do === "promote" && "facts" in signers.next)
		return { validity: signers.next.facts, replaced: true };
	const current = signing(signers, now);
	return current && { validity: current.facts, replaced: false };
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

function leafDue(
	spec: Spec,
	domain: Domain,
	found: Found<Leaf>,
	signer: { validity: Validity; replaced: boolean },
	profile: LeafProfile,
	now: number,
): string | undefined {
	if ("missing" in found) return "not there";
	if ("unreadable" in found) return `unreadable: ${found.unreadable}`;
	const { facts } = found;
	if (!found.keyMatches) return "key does not match";
	if (signer.replaced || !found.signedBySigner) return "signer replaced";
	const names = difference(
		[...profile.dnsNames, ...profile.ipAddresses],
		[...facts.dnsNames, ...facts.ipAddresses],
	);
	if (names !== undefined) return names;
	if (facts.commonName !== profile.commonName)
		return `common name: is "${facts.commonName}"`;
	if (facts.extendedKeyUsages.join() !== profile.usage)
		return `extended key usage: is ${facts.extendedKeyUsages.join() || "missing"}`;
	if (facts.isCA) return "is a CA";
	return (
		outOfDates(facts, now) ??
		validityChanged(facts, spec.validity[domain], signer.validity) ??
		(now >= leafRenewalTime(spec.name, domain, facts)
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
