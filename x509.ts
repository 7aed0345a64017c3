/**
 * Certificates as they are: the facts in X.509 (RFC 5280), read with pkijs. What
 * cannot be read is an error, never a wrong fact.
 */
import {
	createHash,
	createPrivateKey,
	createPublicKey,
	X509Certificate,
} from "node:crypto";
import * as asn1js from "asn1js";
import * as pkijs from "pkijs";

/** The first and the last instant of a certificate's life. */
export interface Validity {
	notBefore: number;
	notAfter: number;
}

/** What a certificate says, for decisions and for people. */
export interface CertificateFacts extends Validity {
	/** RFC 4514: "CN=client CA 1f3a9c02,O=sample-apiserver" */
	subject: string;
	issuer: string;
	/** lower-case hexadecimal */
	serial: string;
	/** the most specific one, "" when absent */
	commonName: string;
	isCA: boolean;
	/** "serverAuth", "clientAuth" or a dotted object identifier */
	extendedKeyUsages: string[];
	dnsNames: string[];
	ipAddresses: string[];
	/** SHA-256 of the DER, hexadecimal */
	fingerprint: string;
	/** SHA-256 of the SubjectPublicKeyInfo, shared by a CA's cross-certificate */
	keyIdentifier: string;
	/** this one certificate */
	pem: string;
}

/** Input is not what it should be. The message quotes only labels of PEM. */
export class UnreadableError extends Error {
	override name = "UnreadableError";
}

export type Octets = Uint8Array<ArrayBuffer>;
type Attribute = { type: string; text: string };

export const COMMON_NAME = "2.5.4.3";
export const ORGANIZATION = "2.5.4.10";
/** Those of RFC 4514 section 3 that certificates of clusters have. */
const ATTRIBUTES = new Map([
	[COMMON_NAME, "CN"],
	[ORGANIZATION, "O"],
	["2.5.4.11", "OU"],
	["2.5.4.6", "C"],
	["2.5.4.7", "L"],
	["2.5.4.8", "ST"],
]);
export const SERVER_AUTH = "1.3.6.1.5.5.7.3.1";
export const CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";
/** Tags of GeneralName, RFC 5280 section 4.2.1.6 */
export const DNS_NAME = 2;
export const IP_ADDRESS = 7;
/** What follows "-----BEGIN "; an END left over had its BEGIN damaged. */
const PEM_BLOCK =
	/^([A-Z\d ]*)-----([A-Za-z\d+/=\s]*)-----END \1-----(?!.*-----END )/s;

/**
 * The facts of each certificate in a PEM text, in its order. Text around the
 * blocks is explanation and ignored.
 * @throws UnreadableError unless it holds certificates, and nothing else
 */
export function parseCertificates(pem: string): CertificateFacts[] {
	return read(pem, factsOf);
}

/**
 * The facts of the first certificate in a PEM text. What follows it only has to be certificates: whoever may write the
 * text could fill it with a megabyte of them, over which pkijs sits for a minute.
 * @throws UnreadableError unless it holds certificates, and nothing else
 */
export function parseFirst(pem: string): CertificateFacts {
	const [first] = read<CertificateFacts | X509Certificate>(
		pem,
		(base64, index) =>
			index === 0
				? factsOf(base64)
				: new X509Certificate(Buffer.from(base64, "base64")),
	);
	return first as CertificateFacts;
}

/**
 * Whether a private key (PKCS #8, SEC 1, PKCS #1) belongs to a certificate, in
 * a chain to the first one.
 * @throws UnreadableError
 */
export function keyMatches(
	certificate: CertificateFacts | string,
	keyPem: string,
): boolean {
	const [facts] =
		typeof certificate === "string"
			? read(certificate, factsOf)
			: [certificate];
	const publicKey = createPublicKey(readKey(keyPem));
	const spki = publicKey.export({ type: "spki", format: "der" });
	return sha256(spki).toHex() === facts.keyIdentifier;
}

/**
 * Whether the issuer's key made a certificate's signature, RSA or ECDSA. Names
 * and dates are not looked at.
 * @throws UnreadableError
 */
export async function verifies(
	certificate: string,
	issuer: string,
): Promise<boolean> {
	return signatures.get(signatureKey(certificate, issuer));
}

/** For the one who has just made the signature: it need not be verified again. */
export function rememberSignature(certificate: string, issuer: string): void {
	signatures.put(signatureKey(certificate, issuer), Promise.resolve(true));
}

function signatureKey(certificate: string, issuer: string): string {
	const readable = (base64: string) => {
		factsOf(base64);
		return base64;
	};
	const [subject] = read(certificate, readable);
	const [signer] = read(issuer, readable);
	return `${subject}|${signer}`;
}

/** One PEM text of the certificates, each once, the oldest first: the same text for the same set in any order, "" for none. */
export function bundle(certificates: CertificateFacts[]): string {
	const order = (a: CertificateFacts, b: CertificateFacts) =>
		a.notBefore - b.notBefore || (a.fingerprint < b.fingerprint ? -1 : 1);
	const unique = new Map(
		certificates.map((facts) => [facts.fingerprint, facts]),
	);
	const sorted = [...unique.values()].sort(order);
	return sorted.map(({ pem }) => pem).join("");
}

/** Reads every certificate of a PEM text, or throws an UnreadableError. */
export function read<T>(
	pem: string,
	each: (base64: string, index: number) => T,
): [T, ...T[]] {
	const [preface = "", ...blocks] = pem.split("-----BEGIN ");
	const decoded = blocks.map((block, index) => {
		const where = `certificate ${index + 1} of ${blocks.length}`;
		const [, label, base64 = ""] = PEM_BLOCK.exec(block) ?? [];
		if (label !== "CERTIFICATE")
			throw new UnreadableError(`${where}: ${label ?? "damaged PEM"}`);
		try {
			return each(base64.replace(/\s/g, ""), index);
		} catch (error) {
			// asn1js and pkijs meet damage with errors of every kind
			const known = error instanceof UnreadableError;
			const reason = known ? error.message : "not an X.509 certificate";
			throw new UnreadableError(`${where}: ${reason}`);
		}
	});
	const [first, ...rest] = decoded;
	if (preface.includes("-----END ") || first === undefined)
		throw new UnreadableError("no certificate, or damaged PEM");
	return [first, ...rest];
}

/**
 * The latest answers of a costly pure function: pkijs takes milliseconds for a
 * certificate, and the same ones are read at nearly every look at the cluster.
 */
class Remembered<T> {
	readonly #known = new Map<string, T>();
	readonly #most: number;
	readonly #compute: (key: string) => T;

	constructor(most: number, compute: (key: string) => T) {
		this.#most = most;
		this.#compute = compute;
	}

	get(key: string): T {
		const value = this.#known.get(key) ?? this.#compute(key);
		this.put(key, value);
		return value;
	}

	put(key: string, value: T): void {
		this.#known.delete(key);
		this.#known.set(key, value);
		const [oldest] = this.#known.keys();
		if (this.#known.size > this.#most && oldest) this.#known.delete(oldest);
	}
}

/** Octets. Those of clusters have one or two thousand; of the largest, pkijs takes half a second to read. */
const LARGEST = 8192;

/** By base64. A decoded certificate takes 45 kB, its facts 3 kB: few of the former are kept. */
export const decoded = new Remembered(64, (base64) => {
	if (base64.length > (LARGEST / 3) * 4)
		throw new UnreadableError(`larger than ${LARGEST / 1024} KiB`);
	const der = Uint8Array.fromBase64(base64, { lastChunkHandling: "strict" });
	return { x509: readDER(der), der };
});
const facts = new Remembered(4096, (base64) => {
	const { x509, der } = decoded.get(base64);
	return extractFacts(x509, der);
});
export const factsOf = (base64: string) => facts.get(base64);
const signatures = new Remembered(4096, async (both) => {
	const [certificate = "", issuer = ""] = both.split("|");
	const { x509 } = decoded.get(certificate);
	// pkijs throws when the signature has not even the shape of the key's
	return x509.verify(decoded.get(issuer).x509).catch(() => false);
});

/**
 * pkijs skips what it does not expect, and its February has 31 days. Since DER
 * has one encoding only, whatever it misread encodes differently.
 */
function readDER(der: Octets): pkijs.Certificate {
	const x509 = pkijs.Certificate.fromBER(der);
	if (Buffer.compare(der, new Uint8Array(x509.toSchema(true).toBER())) !== 0)
		throw new UnreadableError("malformed, or not DER");
	return x509;
}

function extractFacts(x509: pkijs.Certificate, der: Octets): CertificateFacts {
	const { serialNumber, notBefore, notAfter, subjectPublicKeyInfo } = x509;
	const subject = decodeName(x509.subject);
	const constraints = find(
		x509,
		pkijs.id_BasicConstraints,
		pkijs.BasicConstraints,
	);
	const usage = find(x509, pkijs.id_ExtKeyUsage, pkijs.ExtKeyUsage);
	const altNames = alternativeNames(x509);
	const ofType = (tag: number) =>
		altNames.filter(({ type }) => type === tag).map(({ octets }) => octets);
	return {
		subject: formatName(subject),
		issuer: formatName(decodeName(x509.issuer)),
		// the leading zero octet is only the sign of a positive INTEGER
		serial: serialNumber.valueBlock.valueHexView
			.toHex()
			.replace(/^00(?=.)/, ""),
		notBefore: notBefore.value.getTime(),
		notAfter: notAfter.value.getTime(),
		commonName:
			subject.flat().findLast(({ type }) => type === COMMON_NAME)?.text ?? "",
		isCA: constraints?.cA ?? false,
		extendedKeyUsages: usage?.keyPurposes.map(formatPurpose) ?? [],
		// IA5String, which is ASCII
		dnsNames: ofType(DNS_NAME).map((name) =>
			Buffer.from(name).toString("latin1"),
		),
		ipAddresses: ofType(IP_ADDRESS).map(decodeIP),
		fingerprint: sha256(der).toHex(),
		keyIdentifier: keyIdentifierOf(subjectPublicKeyInfo).toHex(),
		pem: encodePEM("CERTIFICATE", der),
	};
}

/** @throws UnreadableError, since a malformed extension is no absent one */
export function find<T>(
	x509: pkijs.Certificate,
	id: string,
	type: new () => T,
) {
	const found = x509.extensions?.find(({ extnID }) => extnID === id);
	if (!found) return undefined;
	const value: unknown = found.parsedValue;
	if (value instanceof type && !("parsingError" in (value as object)))
		return value;
	throw new UnreadableError(`malformed extension ${id}`);
}

/** Type and content of the primitive ones. Without pkijs, whose schema for them takes longer than all the rest. */
function alternativeNames(x509: pkijs.Certificate) {
	const id = pkijs.id_SubjectAltName;
	const found = x509.extensions?.find(({ extnID }) => extnID === id);
	if (!found) return [];
	const { result } = asn1js.fromBER(found.extnValue.valueBlock.valueHexView);
	if (!(result instanceof asn1js.Sequence) || result.error)
		throw new UnreadableError(`malformed extension ${id}`);
	return result.valueBlock.value.flatMap((name) => {
		if (name.idBlock.tagClass !== 3)
			throw new UnreadableError(`malformed extension ${id}`);
		return name instanceof asn1js.Primitive
			? [{ type: name.idBlock.tagNumber, octets: name.valueBlock.valueHexView }]
			: [];
	});
}

/** RDN by RDN, because pkijs forgets where one ends. */
function decodeName(name: pkijs.RelativeDistinguishedNames): Attribute[][] {
	const children = (block: asn1js.BaseBlock) =>
		block instanceof asn1js.Constructed ? block.valueBlock.value : [];
	const sequence = asn1js.fromBER(name.valueBeforeDecode).result;
	return children(sequence).map((set) =>
		children(set).map((schema) => {
			const { type, value } = new pkijs.AttributeTypeAndValue({ schema });
			return value instanceof asn1js.BaseStringBlock && ATTRIBUTES.has(type)
				? { type, text: value.getValue() }
				: { type, text: `#${value.valueBeforeDecodeView.toHex()}` };
		}),
	);
}

/** RFC 4514 section 2. Control characters are escaped for the sake of logs. */
function formatName(names: Attribute[][]): string {
	const hexPairs = (control: string) =>
		Buffer.from(control).toHex().replace(/../g, "\\$&");
	const format = ({ type, text }: Attribute) => {
		const name = ATTRIBUTES.get(type);
		if (!name) return `${type}=${text}`;
		const escaped = text.replace(/^[ #]|[",+;<>\\]| $/g, "\\$&");
		return `${name}=${escaped.replace(/\p{Cc}/gu, hexPairs)}`;
	};
	return names
		.map((set) => set.map(format).join("+"))
		.reverse()
		.join(",");
}

function formatPurpose(id: string): string {
	if (id === SERVER_AUTH) return "serverAuth";
	return id === CLIENT_AUTH ? "clientAuth" : id;
}

/** IPv6 as in RFC 5952, which is how the URL standard prints it. */
function decodeIP(octets: Uint8Array): string {
	if (octets.length === 4) return octets.join(".");
	if (octets.length !== 16)
		throw new UnreadableError(`IP address of ${octets.length} octets`);
	const groups = octets.toHex().replace(/.{4}(?=.)/g, "$&:");
	return new URL(`http://[${groups}]`).hostname.slice(1, -1);
}

export function readKey(pem: string) {
	try {
		return createPrivateKey(pem);
	} catch {
		// without the cause: no error may carry a part of a key
		throw new UnreadableError("private key: not an unencrypted key in PEM");
	}
}

/** RFC 7093 section 2 method 4 */
export function keyIdentifierOf(publicKey: pkijs.PublicKeyInfo): Octets {
	return sha256(new Uint8Array(publicKey.toSchema().toBER()));
}

function sha256(octets: Uint8Array): Octets {
	return new Uint8Array(createHash("sha256").update(octets).digest());
}

/** RFC 7468 section 2: lines of 64 characters */
export function encodePEM(label: string, der: Octets): string {
	const lines = der.toBase64().replace(/.{64}(?=.)/g, "$&\n");
	return `-----BEGIN ${label}-----\n${lines}\n-----END ${label}-----\n`;
}
