/**
 * From Secrets to facts, and from a plan to certificates: the two ways between what lies in the cluster and the core.
 */
import type { Domain } from "./lifetimes.ts";
import {
	type Data,
	type Material,
	readAnswered,
	secretText,
} from "./manifests.ts";
import type { CertificateFacts } from "./pki.ts";
import * as pki from "./pki.ts";
import type { CoreCredentials } from "./problems.ts";
import {
	type Leaf,
	leafDomain,
	type Observed,
	type Plan,
} from "./reconcile.ts";
import { MOST_TRUSTED } from "./rotation.ts";
import {
	type Authority,
	advance,
	type Cross,
	type Found,
	isValid,
	type Made,
	type Signers,
	type Step,
} from "./signers.ts";

/** What a domain has after a visit. */
export interface Issued {
	signers: Material["signers"][Domain];
	leaves: Material["leaves"];
}

/** Both domains' together. */
export const materialOf = (
	{ client, serving }: Record<Domain, Issued>,
	coreCA: string,
): Material => ({
	signers: { client: client.signers, serving: serving.signers },
	leaves: { ...serving.leaves, ...client.leaves },
	coreCA,
});

/** Makes what the plan asks for in a domain, and keeps the rest. */
export async function issue(
	domain: Domain,
	plan: Plan,
	observed: Observed,
	now: number,
): Promise<Issued> {
	const { step } = plan.rotations[domain];
	const before = observed.signers[domain];
	const after = advance(before, step, await make(step, before), now);
	const { current, cross } = after;
	const leaves: Material["leaves"] = {};
	for (const [id, found] of Object.entries(observed.leaves)) {
		if (leafDomain(id) !== domain) continue;
		const due = plan.leaves.find((one) => one.id === id);
		// Nothing was issued for want of a signer: what is there stays as it is, and what is not there must wait.
		if (!due && !("pair" in found)) continue;
		let leaf = found as Leaf;
		if (due) {
			if (!("pair" in current)) throw new Error(`${id}: due without a signer`);
			const pair = await pki.issueLeaf({ ...due, signer: current.pair });
			const facts = pki.parseFirst(pair.certificate);
			leaf = {
				pair,
				facts,
				keyMatches: true,
				chain: facts.pem,
				signedBySigner: true,
			};
		}
		// With the cross-certificate, who still trusts only the signer's predecessor accepts the leaf, too.
		const certificate = leaf.signedBySigner
			? leaf.facts.pem + (cross?.pem ?? "")
			: leaf.chain;
		leaves[id] = {
			pair: { certificate, key: leaf.pair.key },
			facts: leaf.facts,
		};
	}
	const signers = { ...after, bundle: pki.bundle(after.trusted) };
	return { signers, leaves };
}

async function make(
	step: Step | undefined,
	present: Signers,
): Promise<Made | undefined> {
	if (step?.do === "certify") {
		const subject = present[step.of];
		if (!("pair" in subject)) throw new Error(`no ${step.of} signer`);
		return { cross: await certify(subject.pair, step.cross, present) };
	}
	if (step?.do !== "make") return undefined;
	const pair = await pki.issueCA(step);
	const authority = {
		pair,
		facts: pki.parseFirst(pair.certificate),
		keyMatches: true,
	};
	if (!step.cross) return { authority };
	return { authority, cross: await certify(pair, step.cross, present) };
}

async function certify(
	subject: pki.KeyPair,
	{ by, validity }: Cross,
	present: Signers,
): Promise<CertificateFacts> {
	const signer = present[by];
	if (!signer || !("pair" in signer) || !signer.pair)
		throw new Error(`no ${by} signer to certify another one`);
	const { certificate } = subject;
	return pki.parseFirst(
		await pki.crossSign({
			signer: signer.pair,
			subject: certificate,
			validity,
		}),
	);
}

/** What cannot be read is a fact like any other; what went wrong otherwise is an error. */
function readable<T>(read: () => T): T | { unreadable: string } {
	try {
		return read();
	} catch (error) {
		if (error instanceof pki.UnreadableError)
			return { unreadable: error.message };
		throw error;
	}
}

/** The pair in two keys of a Secret, as in https://kubernetes.io/docs/concepts/configuration/secret/#tls-secrets */
function readPair(
	secret: Data | undefined,
	of: "tls" | "next" | "previous" = "tls",
): Found<Authority> {
	const certificate = secret && secretText(secret, `${of}.crt`);
	const key = (secret && secretText(secret, `${of}.key`)) ?? "";
	if (!certificate && !key) return { missing: true };
	return readable(() => {
		const facts = pki.parseFirst(certificate ?? "");
		const pair = { certificate: facts.pem, key };
		return { pair, facts, keyMatches: pki.keyMatches(facts, key) };
	});
}

/** The certificates of a PEM text; undefined without any, and where one of them is damaged. */
export function readBundle(
	pem: string | undefined,
): CertificateFacts[] | undefined {
	const found = readable(() => (pem ? pki.parseCertificates(pem) : undefined));
	return found && "unreadable" in found ? undefined : found;
}

/**
 * @param secret the domain's signer Secret, if it is there
 * @param copy our ConfigMap with a copy of the domain's bundle: what is trusted, where the Secret does not tell
 * @param carried CAs that verifiers are known to trust, where neither does
 */
export function observeSigners(
	domain: Domain,
	secret: Data | undefined,
	copy: Data | undefined,
	now: number,
	carried: CertificateFacts[] = [],
): Signers {
	const text = (key: string) => secret && secretText(secret, key);
	const one = (key: string) => readBundle(text(key))?.[0];
	const current = readPair(secret);
	const next = readPair(secret, "next");
	const cross = one("cross.crt");
	const nextCross = one("next-cross.crt");
	const bundle =
		[text("ca-bundle.crt"), copy?.data?.[`${domain}-ca.crt`]]
			.map((pem) => readBundle(pem))
			.find((found) => found !== undefined) ?? carried;
	const isKnown = (facts: CertificateFacts) =>
		[current, next].some(
			(found) =>
				"facts" in found && found.facts.fingerprint === facts.fingerprint,
		);
	// That it is there tells that the spread is not confirmed. Damaged, it can only be one of the others; the key may be
	// gone on purpose.
	const previous =
		one("previous.crt") ??
		(text("previous.crt") === undefined
			? undefined
			: bundle
					.filter((facts) => !isKnown(facts))
					.toSorted((a, b) => b.notBefore - a.notBefore)[0]);
	const previousPair = readPair(secret, "previous");
	const signers: Signers = {
		current,
		next,
		trusted: [...bundle],
		answered: readAnswered(domain, secret, copy),
		...(cross && { cross }),
		...(nextCross && { nextCross }),
		...(previous && {
			previous: {
				facts: previous,
				...("pair" in previousPair &&
					previousPair.keyMatches && { pair: previousPair.pair }),
			},
		}),
	};
	const trusted = [
		// The key of one that is to be trusted no longer is not kept.
		...(signers.previous?.pair ? [signers.previous] : []),
		...[current, next].filter((found) => "facts" in found),
	];
	for (const { facts } of trusted)
		if (
			facts.isCA &&
			isValid(facts, now) &&
			!signers.trusted.some((one) => one.fingerprint === facts.fingerprint)
		)
			signers.trusted.push(facts);
	return signers;
}

/**
 * Of the CAs in some bundles, those whose key has signed a certificate that we hand out: nobody else can have made them. A
 * CA that somebody has put there is not among them. Whoever may write a target makes its own API server trust whom he
 * likes, for that reads no other; but what is believed here gets into all targets.
 * @param secret of a leaf, with what is handed out behind it
 * @param bundles PEM, as they lie where others may write, too
 */
export async function provenCAs(
	secret: Data | undefined,
	bundles: string[],
): Promise<CertificateFacts[]> {
	const chain = readBundle(secret && secretText(secret, "tls.crt"));
	if (!chain) return [];
	const carried = bundles.flatMap((pem) => readBundle(pem) ?? []);
	const proven: CertificateFacts[] = [];
	for (const ca of new Map(carried.map((one) => [one.pem, one])).values()) {
		const signed = (one: CertificateFacts) =>
			one.issuer === ca.subject && pki.verifies(one.pem, ca.pem);
		// Its name and public key are known to all: with another's signature it is not what our key has made.
		if (!ca.isCA || !(await signed(ca))) continue;
		const others = chain.filter((one) => one.fingerprint !== ca.fingerprint);
		if ((await Promise.all(others.map(signed))).includes(true)) proven.push(ca);
	}
	return proven;
}

/** More client CAs than a ConfigMap ever gets from us. */
const TOO_MANY = 2 * MOST_TRUSTED;

/**
 * Our ConfigMap with as many client CAs as are needed. Once a client certificate had expired, the Go controller of 2018
 * added a CA at every visit, of which nothing was handed out: up to a megabyte of them, more than a Secret can hold.
 * @param secrets all that hold client certificates; undefined where not all of them are known
 */
export async function withoutUnused(
	copy: Data | undefined,
	secrets: Data[] | undefined,
): Promise<Data | undefined> {
	const pem = copy?.data?.["client-ca.crt"];
	const crowded = (readBundle(pem) ?? []).length > TOO_MANY;
	if (!copy || !pem || !secrets || !crowded) return copy;
	const used = await Promise.all(secrets.map((one) => provenCAs(one, [pem])));
	const data = { ...copy.data, "client-ca.crt": pki.bundle(used.flat()) };
	return { ...copy, data };
}

export async function observeLeaf(
	secret: Data | undefined,
	{ current }: Signers,
): Promise<Found<Leaf>> {
	// Placeholders of the type kubernetes.io/tls carry both keys with empty values.
	const found = readPair(secret);
	if (!("facts" in found)) return found;
	const signedBySigner =
		"facts" in current &&
		found.facts.issuer === current.facts.subject &&
		(await pki.verifies(found.facts.pem, current.facts.pem));
	const chain = (secret && secretText(secret, "tls.crt")) ?? "";
	return { ...found, chain, signedBySigner };
}

const present = <T extends object>(found: Found<T>) =>
	"missing" in found ? { unreadable: "no certificate" } : found;

export function observeCore(
	ca: Data | undefined,
	secret: Data | undefined,
): CoreCredentials {
	return {
		...(ca && {
			ca: {
				object: ca,
				certificates: readable(() =>
					pki.parseCertificates(ca.data?.["ca.crt"] ?? ""),
				),
			},
		}),
		...(secret && {
			client: {
				object: secret,
				certificate: present(readPair(secret)),
			},
		}),
	};
}
