/**
 * From Secrets to facts, and from a plan to certificates: the two ways between what lies in the cluster and the core.
 */
import { type Data, type Material, secretText } from "./manifests.ts";
import type { CertificateFacts } from "./pki.ts";
import * as pki from "./pki.ts";
import type { CoreCredentials } from "./problems.ts";
import {
	type Domain,
	domains,
	type Found,
	type Leaf,
	type Observed,
	type Plan,
	type Signer,
	type SignerPlan,
} from "./reconcile.ts";

export const leafDomain = (id: string): Domain =>
	id === "server" ? "serving" : "client";

/** Makes what the plan asks for and keeps the rest. */
export async function issue(
	plan: Plan,
	observed: Observed,
	coreCA: string,
	now: number,
): Promise<Material> {
	const signer = async (domain: Domain) => {
		const found = observed.signers[domain];
		const due = plan.signers.find((one) => one.domain === domain);
		if (due) return issueSigner(due, found, now);
		if (!("pair" in found)) throw new Error(`${domain} signer: not due`);
		const { pair, facts, cross } = found;
		const trusted = found.bundle.filter((one) => now <= one.notAfter);
		return {
			pair,
			facts,
			...(cross && now <= cross.notAfter && { cross: cross.pem }),
			trusted,
			bundle: pki.bundle(trusted, now),
		};
	};
	const [client, serving] = await Promise.all(domains.map(signer));
	if (!client || !serving) throw new Error("a domain without a signer");
	const signers = { client, serving };

	const leaves: Material["leaves"] = {};
	for (const [id, found] of Object.entries(observed.leaves)) {
		const { pair, cross = "" } = signers[leafDomain(id)];
		const due = plan.leaves.find((one) => one.id === id);
		if (!due && !("pair" in found)) throw new Error(`${id}: not due`);
		const leaf = due
			? await pki.issueLeaf({ ...due, signer: pair })
			: undefined;
		const facts = leaf ? first(leaf.certificate) : (found as Leaf).facts;
		const key = leaf?.key ?? (found as Leaf).pair.key;
		// With the cross-certificate, who still trusts only the signer's predecessor accepts the leaf, too.
		leaves[id] = { pair: { certificate: facts.pem + cross, key }, facts };
	}
	return { signers, leaves, coreCA };
}

async function issueSigner(
	due: SignerPlan,
	predecessor: Found<Signer>,
	now: number,
): Promise<Material["signers"][Domain]> {
	const pair = await pki.issueCA(due);
	const facts = first(pair.certificate);
	const cross =
		due.crossSign && "pair" in predecessor
			? await pki.crossSign({
					signer: predecessor.pair,
					subject: pair.certificate,
					validity: due.crossSign,
				})
			: undefined;
	const trusted = [...due.keep, facts].filter((one) => now <= one.notAfter);
	return {
		pair,
		facts,
		...(cross && { cross }),
		trusted,
		bundle: pki.bundle(trusted, now),
	};
}

function first(pem: string): CertificateFacts {
	const [facts] = pki.parseCertificates(pem);
	if (!facts) throw new pki.UnreadableError("no certificate");
	return facts;
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

/** The pair in a Secret's two keys, as in https://kubernetes.io/docs/concepts/configuration/secret/#tls-secrets */
const readPair = (secret: Data) =>
	readable(() => {
		const facts = first(secretText(secret, "tls.crt") ?? "");
		const key = secretText(secret, "tls.key") ?? "";
		const pair = { certificate: facts.pem, key };
		return { pair, facts, keyMatches: pki.keyMatches(facts, key) };
	});

export function observeSigner(secret: Data): Found<Signer> {
	const found = readPair(secret);
	if ("unreadable" in found) return found;
	const others = (key: string): CertificateFacts[] => {
		const text = secretText(secret, key);
		const list = readable(() => (text ? pki.parseCertificates(text) : []));
		return "unreadable" in list ? [] : list;
	};
	const [cross] = others("cross.crt");
	const bundle = [...others("ca-bundle.crt"), found.facts];
	return { ...found, ...(cross && { cross }), bundle };
}

export async function observeLeaf(
	secret: Data | undefined,
	signer: Found<Signer>,
): Promise<Found<Leaf>> {
	if (!secret) return { missing: true };
	// Placeholders of the type kubernetes.io/tls carry both keys with empty values.
	if (!secretText(secret, "tls.crt") && !secretText(secret, "tls.key"))
		return { missing: true };
	const found = readPair(secret);
	if ("unreadable" in found) return found;
	const signedBySigner =
		"pair" in signer &&
		found.facts.issuer === signer.facts.subject &&
		(await pki.verifies(found.facts.pem, signer.facts.pem));
	return { ...found, signedBySigner };
}

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
			client: { object: secret, certificate: readPair(secret) },
		}),
	};
}
