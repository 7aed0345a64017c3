/**
 * Who accepts which certificate, and until when, if nothing is done any more. Pure: signatures have been verified before.
 *
 * A chain is accepted as RFC 5280, section 6, has it, in as much as certificates of ours can differ: each is signed by
 * the next one's key, the last by a CA that the verifier trusts, and none is out of its dates, that CA included, as Go
 * and OpenSSL see it.
 */
import type { Domain } from "./lifetimes.ts";
import type { CertificateFacts } from "./pki.ts";
import { generationOf, type Signers } from "./rotation.ts";

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

/** Whether the issuer's key made the certificate's signature. */
export type Signed = (
	certificate: CertificateFacts,
	issuer: CertificateFacts,
) => boolean;

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
	signed: Signed,
): CertificateFacts[][] {
	if (!leaf) return [];
	const issuers = (one: CertificateFacts, list: CertificateFacts[]) =>
		list.filter(
			(issuer) =>
				issuer.isCA && issuer.subject === one.issuer && signed(one, issuer),
		);
	return [
		...issuers(leaf, trusted).map((anchor) => [leaf, anchor]),
		...issuers(leaf, others).flatMap((cross) =>
			issuers(cross, trusted).map((anchor) => [leaf, cross, anchor]),
		),
	];
}

/** When a chain is no longer accepted by who trusts these, or since when it is not. */
export function acceptedUntil(
	chain: CertificateFacts[],
	trusted: CertificateFacts[],
	signed: Signed,
	now: number,
): End {
	const ways = paths(chain, trusted, signed).map((path) => ({
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
	domain: Domain | "core";
	/** Ids of the certificates that are refused. */
	certificates: string[];
	/** Who refuses them; nobody where there is nothing to refuse. */
	refusedBy: string[];
	/** What happens, to whom, and because of what. */
	message: string;
}

const everybody: Record<Domain, string> = {
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
	signed: Signed,
	now: number,
): Break[] {
	const found = new Map<string, Break & { domain: Domain; because: string }>();
	const add = (
		id: string,
		domain: Domain,
		at: number,
		because: string,
		who?: string,
	) => {
		const key = `${domain} ${at} ${because}`;
		const known = found.get(key) ?? {
			at,
			already: at <= now,
			domain,
			certificates: [],
			refusedBy: [],
			message: "",
			because,
		};
		if (!known.certificates.includes(id)) known.certificates.push(id);
		if (who !== undefined && !known.refusedBy.includes(who))
			known.refusedBy.push(who);
		found.set(key, known);
	};
	for (const { id, domain, chain, trouble } of presented) {
		if (trouble !== undefined) {
			add(id, domain, now, `${id} ${trouble}`);
			continue;
		}
		for (const { who, trusted } of verifiers.filter(
			(one) => one.domain === domain,
		)) {
			const { at, by } = acceptedUntil(chain, trusted, signed, now);
			const whole = by && by.fingerprint === chain[0]?.fingerprint;
			add(
				id,
				domain,
				at,
				reasonOf(id, chain, by, now),
				whole ? everybody[domain] : who,
			);
		}
	}
	return [...found.values()]
		.map(({ because, ...one }) => ({
			...one,
			message: tell(one, one.domain, because),
		}))
		.sort((a, b) => a.at - b.at);
}

/** Of a certificate of which nothing is known but its end: what breaks then, at the latest. */
export const expiry = (
	id: string,
	domain: Domain,
	notAfter: number,
	now: number,
): Break => {
	const already = notAfter <= now;
	const one: Break = {
		at: notAfter,
		already,
		domain,
		certificates: [id],
		refusedBy: [everybody[domain]],
		message: "",
	};
	const because = `${id} ${already ? "has expired" : "expires"}`;
	return { ...one, message: tell(one, domain, because) };
};

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

/** The generation of a certificate's issuer: what its common name ends with. */
export const issuerOf = ({ issuer }: CertificateFacts): string =>
	/CN=[^,+]*?([0-9a-f]{8})(?:[,+]|$)/.exec(issuer)?.[1] ?? issuer;

function tell(
	{ certificates, refusedBy }: Break,
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
	if (previous) return [previous.facts];
	if ("facts" in current) return [current.facts];
	return "facts" in next
		? trusted.filter((one) => one.fingerprint !== next.facts.fingerprint)
		: trusted;
}
