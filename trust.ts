/**
 * Who accepts which certificate, and until when, if nothing is done any more. Pure.
 *
 * A chain is accepted as RFC 5280, section 6, has it, in as much as certificates of ours can differ: each is signed by
 * the next one's key, the last by a CA that the verifier trusts, and none is out of its dates, that CA included, as Go
 * and OpenSSL see it.
 */
import { X509Certificate } from "node:crypto";
import type { Domain } from "./lifetimes.ts";
import type { CertificateFacts } from "./pki.ts";
import { generationOf, type Signers } from "./signers.ts";

/** What somebody shows to whoever verifies him. */
export interface Presented {
	/** As in status.certificates: `server`, `client/<namespace>/<secret>`. */
	id: string;
	domain: Domain;
	/** The leaf first. */
	chain: CertificateFacts[];
	/** Why it is of no use to anybody, whatever its dates: `is not there`. */
	trouble?: string;
}

/** Somebody who verifies one domain's certificates. */
export interface Verifier {
	domain: Domain;
	/** As it stands behind "refused by". */
	who: string;
	/** What he is known to trust, and nothing that he may trust. */
	trusted: CertificateFacts[];
}

/** The end of a chain's acceptance. */
export interface End {
	/** Milliseconds since the epoch. Not after `now`: it is not accepted. */
	at: number;
	/** The certificate whose date it is; undefined where no CA is trusted that the chain leads to. */
	by?: CertificateFacts;
}

/**
 * Every way from the leaf to a CA that is trusted. Over one cross-certificate at most: theirs is a path length of 0 (RFC
 * 5280, section 4.2.1.9).
 */
function paths(
	[leaf, ...others]: CertificateFacts[],
	trusted: CertificateFacts[],
): CertificateFacts[][] {
	if (!leaf) return [];
	const issuers = (one: CertificateFacts, list: CertificateFacts[]) =>
		list.filter(
			(issuer) =>
				issuer.isCA && issuer.subject === one.issuer && verifies(one, issuer),
		);
	return [
		...issuers(leaf, trusted).map((anchor) => [leaf, anchor]),
		...issuers(leaf, others).flatMap((cross) =>
			issuers(cross, trusted).map((anchor) => [leaf, cross, anchor]),
		),
	];
}

/** Whether the issuer's key made the certificate's signature. */
const verifies = (certificate: CertificateFacts, issuer: CertificateFacts) =>
	new X509Certificate(certificate.pem).verify(
		new X509Certificate(issuer.pem).publicKey,
	);

/** When a chain is no longer accepted by who trusts these, or since when it is not. */
export function acceptedUntil(
	chain: CertificateFacts[],
	trusted: CertificateFacts[],
	now: number,
): End {
	const ways = paths(chain, trusted).map((path) => ({
		// Of two that end together, the one that is nearer to the leaf.
		end: path.reduce((a, b) => (b.notAfter < a.notAfter ? b : a)),
		begin: path.reduce((a, b) => (b.notBefore > a.notBefore ? b : a)),
	}));
	let end: End = { at: now };
	for (;;) {
		const next = ways.find(
			(way) => way.begin.notBefore <= end.at && way.end.notAfter > end.at,
		)?.end;
		if (!next) break;
		end = { at: next.notAfter, by: next };
	}
	if (end.by) return end;
	const past = ways
		.map((way) => way.end)
		.filter((one) => one.notAfter <= now)
		.sort((a, b) => b.notAfter - a.notAfter)[0];
	if (past) return { at: past.notAfter, by: past };
	const early = ways
		.map((way) => way.begin)
		.sort((a, b) => a.notBefore - b.notBefore)[0];
	return early ? { at: now, by: early } : end;
}

/** Something that stops working at an instant, if nothing is done any more. */
export interface Break {
	/** Milliseconds since the epoch. */
	at: number;
	/** It has happened. */
	already: boolean;
	domain: Domain;
	/** Ids of the certificates that are refused. */
	certificates: string[];
	/** Who refuses them; nobody where there is nothing to refuse. */
	refusedBy: string[];
	/** What happens, to whom, and because of what. */
	message: string;
}

const EVERYBODY: Record<Domain, string> = {
	client: "every proxy",
	serving: "every API server",
};

/** What it means that there is nothing to show. */
const WITHOUT: Record<Domain, string> = {
	client: "API servers that start cannot connect",
	serving: "proxies that start cannot serve",
};

/**
 * What breaks when, the earliest first. Each certificate and each who verifies it appear together once: with the end of
 * their acceptance. What would come after that is not told.
 */
export function breaks(
	presented: Presented[],
	verifiers: Verifier[],
	now: number,
): Break[] {
	type Hit = { id: string; at: number; because: string; who?: string };
	const hits = presented.flatMap(({ id, domain, chain, trouble }): Hit[] =>
		trouble === undefined
			? verifiers
					.filter((one) => one.domain === domain)
					.map(({ who, trusted }) => {
						const { at, by } = acceptedUntil(chain, trusted, now);
						const leaf = by && by.fingerprint === chain[0]?.fingerprint;
						const because = reasonOf(id, chain, by, now);
						return { id, at, because, who: leaf ? EVERYBODY[domain] : who };
					})
			: [{ id, at: now, because: `${id} ${trouble}` }],
	);
	const together = Map.groupBy(hits, (hit) => `${hit.at} ${hit.because}`);
	return [...together.values()]
		.map((list) => {
			const certificates = [...new Set(list.map((one) => one.id))];
			const refusedBy = [...new Set(list.flatMap((one) => one.who ?? []))];
			const [{ id, at, because }] = list as [Hit];
			const { domain } = presented.find((one) => one.id === id) as Presented;
			return {
				at,
				already: at <= now,
				domain,
				certificates,
				refusedBy,
				message: tell(certificates, refusedBy, domain, because),
			};
		})
		.sort((a, b) => a.at - b.at);
}

/** What ends, or is missing. */
function reasonOf(
	id: string,
	[leaf, ...others]: CertificateFacts[],
	by: CertificateFacts | undefined,
	now: number,
): string {
	if (!by || !leaf) return `${id} is certified by no CA that is trusted`;
	const early = by.notBefore > now;
	const how = (ends: string, ended: string) =>
		early ? "is not valid yet" : by.notAfter <= now ? ended : ends;
	if (by.fingerprint === leaf.fingerprint)
		return `${id} ${how("expires", "has expired")}`;
	if (others.some((one) => one.fingerprint === by.fingerprint))
		return `the cross-certificate of CA ${generationOf(by)} by CA ${issuerOf(by)} ${how("ends", "has ended")}`;
	return `CA ${generationOf(by)} ${how("expires", "has expired")}`;
}

/** The generation of a certificate's issuer: what its common name ends with; the whole name of one that is not of ours. */
export const issuerOf = ({ issuer }: CertificateFacts): string =>
	/CN=[^,+]* ([0-9a-f]{8})(?:[,+]|$)/.exec(issuer)?.[1] ?? issuer;

function tell(
	certificates: string[],
	refusedBy: string[],
	domain: Domain,
	because: string,
): string {
	if (refusedBy.length === 0) return `${because}: ${WITHOUT[domain]}`;
	const [first = "", ...more] = certificates;
	const named = more.length === 0 && because.startsWith(`${first} `);
	const what =
		domain === "serving"
			? "the endpoint is"
			: named
				? "it is"
				: `${certificates.join(", ")} ${more.length > 0 ? "are" : "is"}`;
	return `${because}: ${what} refused by ${refusedBy.join("; ")}`;
}

/**
 * What everybody of a domain is known to trust, also who has not loaded the newest CA, or has not been asked for it.
 */
export function knownToAll({
	current,
	next,
	previous,
	trusted,
}: Signers): CertificateFacts[] {
	if (previous)
		return "facts" in current &&
			current.facts.fingerprint === previous.facts.fingerprint
			? []
			: [previous.facts];
	if ("facts" in current) return [current.facts];
	return "facts" in next
		? trusted.filter((one) => one.fingerprint !== next.facts.fingerprint)
		: trusted;
}
