/**
 * Certificates without cryptography: facts, and who has signed what. Thousands are made in a millisecond, and whether
 * one verifies is known for every instant. Keys are texts that can be looked for.
 */
import type { CertificateFacts, KeyPair, Validity } from "../pki.ts";
import type { LeafPlan } from "../reconcile.ts";
import type { Authority, Cross, Made, Signers, Step } from "../signers.ts";

/** How private keys look here, wherever they lie. */
export const KEY = /key:[0-9a-f]+/g;

/** Answers that are kept: the same few are asked for again and again. */
const REMEMBERED = 2000;

interface Signed {
	facts: CertificateFacts;
	/** The key that has signed it. */
	signedBy: string;
}

export class Issuer {
	readonly #byPem = new Map<string, Signed>();
	readonly #texts = new Map<string, CertificateFacts[] | undefined>();
	readonly #windows = new Map<string, Validity[]>();
	/** Makes serial numbers, and so the jitter, those of this run. */
	readonly #seed: number;
	#count = 0;

	constructor(seed: number) {
		this.#seed = seed;
	}

	/** A CA, and its cross-certificate where the step asks for one. */
	authority(
		step: Extract<Step, { do: "make" }>,
		signers: Signers,
	): { authority: Authority; cross?: CertificateFacts } {
		const keyIdentifier = this.#next();
		const commonName = `${step.commonName} ${keyIdentifier.slice(0, 8)}`;
		const subject = `CN=${commonName},O=${step.organization}`;
		const facts = this.#sign(keyIdentifier, {
			...{ subject, issuer: subject, commonName, keyIdentifier, isCA: true },
			...step.validity,
		});
		const authority = { facts, pair: pairOf(facts), keyMatches: true };
		if (!step.cross) return { authority };
		return { authority, cross: this.#certify(facts, step.cross, signers) };
	}

	#certify(
		{ subject, commonName, keyIdentifier }: CertificateFacts,
		{ by, validity }: Cross,
		{ current, previous }: Signers,
	): CertificateFacts {
		const signer =
			by === "previous" ? previous?.pair : "pair" in current && current.pair;
		if (!signer) throw new Error(`no ${by} signer with a key`);
		const issuer = this.#of(signer.certificate).facts.subject;
		return this.#sign(keyOf(signer), {
			...{ subject, issuer, commonName, keyIdentifier, isCA: true },
			...validity,
		});
	}

	/** What a step makes. */
	made(step: Step | undefined, signers: Signers): Made | undefined {
		if (step?.do === "make") return this.authority(step, signers);
		if (step?.do !== "certify") return undefined;
		const subject = signers[step.of];
		if (!("facts" in subject)) throw new Error(`no ${step.of} signer`);
		return { cross: this.#certify(subject.facts, step.cross, signers) };
	}

	leaf(signer: KeyPair, plan: LeafPlan): { facts: CertificateFacts } & KeyPair {
		const facts = this.#sign(keyOf(signer), {
			subject: `CN=${plan.commonName}`,
			issuer: this.#of(signer.certificate).facts.subject,
			commonName: plan.commonName,
			keyIdentifier: this.#next(),
			isCA: false,
			extendedKeyUsages: [plan.usage],
			dnsNames: plan.dnsNames,
			ipAddresses: plan.ipAddresses,
			...plan.validity,
		});
		return { facts, ...pairOf(facts) };
	}

	/** The certificates of a text; undefined where something else is in it. */
	read(text: string): readonly CertificateFacts[] | undefined {
		if (this.#texts.has(text)) return this.#texts.get(text);
		const found = pems(text).map((pem) => this.#byPem.get(pem)?.facts);
		const known = found.filter((facts) => facts !== undefined);
		const whole = known.length === found.length ? known : undefined;
		if (this.#texts.size > REMEMBERED) this.#texts.clear();
		this.#texts.set(text, whole);
		return whole;
	}

	/** Whether the CA's key has made the certificate's signature, and the names fit. */
	isSignedBy(facts: CertificateFacts, ca: CertificateFacts): boolean {
		return (
			facts.issuer === ca.subject &&
			this.#of(facts.pem).signedBy === ca.keyIdentifier
		);
	}

	/**
	 * When a verifier with this bundle accepts this chain: one window per path, from the leaf over at most one
	 * cross-certificate (its path length is 0) to a CA of the bundle, as RFC 5280, 6.1.
	 */
	windows(chain: string, bundle: string): Validity[] {
		const key = `${chain}|${bundle}`;
		const known = this.#windows.get(key);
		if (known) return known;
		const [leaf, ...others] = this.read(chain) ?? [];
		const anchors = this.read(bundle) ?? [];
		const paths: CertificateFacts[][] = [];
		if (!leaf) return [];
		for (const anchor of anchors) {
			if (this.#issued(leaf, anchor)) paths.push([leaf, anchor]);
			for (const cross of others)
				if (this.#issued(leaf, cross) && this.#issued(cross, anchor))
					paths.push([leaf, cross, anchor]);
		}
		const found = paths.map((path) => ({
			notBefore: Math.max(...path.map((one) => one.notBefore)),
			notAfter: Math.min(...path.map((one) => one.notAfter)),
		}));
		if (this.#windows.size > REMEMBERED) this.#windows.clear();
		this.#windows.set(key, found);
		return found;
	}

	#issued(facts: CertificateFacts, ca: CertificateFacts): boolean {
		return ca.isCA && this.isSignedBy(facts, ca);
	}

	#sign(
		signedBy: string,
		facts: Partial<CertificateFacts> &
			Pick<
				CertificateFacts,
				"subject" | "issuer" | "commonName" | "keyIdentifier" | "isCA"
			> &
			Validity,
	): CertificateFacts {
		const fingerprint = this.#next();
		const whole = {
			...{ extendedKeyUsages: [], dnsNames: [], ipAddresses: [] },
			serial: `${this.#seed.toString(16)}${fingerprint}`,
			...facts,
			fingerprint,
			pem: `${fingerprint}\n`,
		};
		this.#byPem.set(whole.pem, { facts: whole, signedBy });
		return whole;
	}

	#of(pem: string): Signed {
		const found = this.#byPem.get(pem);
		if (!found) throw new Error(`no certificate: ${pem}`);
		return found;
	}

	/** Told apart by the first eight digits, as generations are. */
	#next(): string {
		this.#count++;
		return this.#count.toString(16).padStart(8, "0");
	}
}

const pems = (text: string) => text.split(/(?<=\n)/).filter((pem) => pem);

const pairOf = (facts: CertificateFacts): KeyPair => ({
	certificate: facts.pem,
	key: `key:${facts.keyIdentifier}`,
});

const keyOf = ({ key }: KeyPair) => key.slice("key:".length);

/** Whether a private key belongs to a certificate. */
export const matches = (facts: CertificateFacts, key: string) =>
	key === `key:${facts.keyIdentifier}`;
