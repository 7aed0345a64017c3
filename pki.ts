/**
 * X.509 in the profile of RFC 5280: reading facts, issuing, bundling. No clock
 * is read: every date is an argument, in milliseconds since the epoch. The only
 * effect is the randomness of keys and serial numbers.
 */
import { createHash, createPrivateKey, createPublicKey } from "node:crypto";
import { isIPv4, isIPv6 } from "node:net";
import * as asn1js from "asn1js";
import * as pkijs from "pkijs";

/** A certificate and its private key, as PEM texts (RFC 7468). */
export interface KeyPair {
	/** The certificate first; what completes its chain may follow. */
	certificate: string;
	/** PKCS #8 */
	key: string;
}

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

type Octets = Uint8Array<ArrayBuffer>;
type Attribute = { type: string; text: string };

const P256 = { name: "ECDSA", namedCurve: "P-256" };
const COMMON_NAME = "2.5.4.3";
const ORGANIZATION = "2.5.4.10";
/** Those of RFC 4514 section 3 that certificates of clusters have. */
const ATTRIBUTES = new Map([
	[COMMON_NAME, "CN"],
	[ORGANIZATION, "O"],
	["2.5.4.11", "OU"],
	["2.5.4.6", "C"],
	["2.5.4.7", "L"],
	["2.5.4.8", "ST"],
]);
const SERVER_AUTH = "1.3.6.1.5.5.7.3.1";
const CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";
/** Tags of GeneralName, RFC 5280 section 4.2.1.6 */
const DNS_NAME = 2;
const IP_ADDRESS = 7;
/** From UTCTime's first year to GeneralizedTime's last. */
const ENCODABLE: Validity = {
	notBefore: Date.UTC(1950, 0),
	notAfter: Date.UTC(9999, 11, 31, 23, 59, 59),
};
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
	const readable = (base64: string) => {
		factsOf(base64);
		return base64;
	};
	const [subject] = read(certificate, readable);
	const [signer] = read(issuer, readable);
	return signatures.get(`${subject}|${signer}`);
}

/**
 * One PEM text of the certificates that are not expired at `now`, each once,
 * the oldest first: the same text for the same set in any order, "" for none.
 */
export function bundle(certificates: CertificateFacts[], now: number): string {
	const order = (a: CertificateFacts, b: CertificateFacts) =>
		a.notBefore - b.notBefore || (a.fingerprint < b.fingerprint ? -1 : 1);
	const valid = certificates.filter(({ notAfter }) => now <= notAfter);
	const unique = new Map(valid.map((facts) => [facts.fingerprint, facts]));
	const sorted = [...unique.values()].sort(order);
	return sorted.map(({ pem }) => pem).join("");
}

/** Reads every certificate of a PEM text, or throws an UnreadableError. */
function read<T>(pem: string, each: (base64: string) => T): [T, ...T[]] {
	const [preface = "", ...blocks] = pem.split("-----BEGIN ");
	const decoded = blocks.map((block, index) => {
		const where = `certificate ${index + 1} of ${blocks.length}`;
		const [, label, base64 = ""] = PEM_BLOCK.exec(block) ?? [];
		if (label !== "CERTIFICATE")
			throw new UnreadableError(`${where}: ${label ?? "damaged PEM"}`);
		try {
			return each(base64.replace(/\s/g, ""));
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

/** By base64. A decoded certificate takes 45 kB, its facts 3 kB: few of the former are kept. */
const decoded = new Remembered(64, (base64) => {
	const der = Uint8Array.fromBase64(base64, { lastChunkHandling: "strict" });
	return { x509: readDER(der), der };
});
const facts = new Remembered(4096, (base64) => {
	const { x509, der } = decoded.get(base64);
	return extractFacts(x509, der);
});
const factsOf = (base64: string) => facts.get(base64);
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
	const altName = find(x509, pkijs.id_SubjectAltName, pkijs.AltName);
	const altNames = (tag: number) =>
		altName?.altNames
			.filter(({ type }) => type === tag)
			.map(({ value }) => value) ?? [];
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
		dnsNames: altNames(DNS_NAME),
		ipAddresses: altNames(IP_ADDRESS).map((ip) =>
			decodeIP(ip.valueBlock.valueHexView),
		),
		fingerprint: sha256(der).toHex(),
		keyIdentifier: keyIdentifierOf(subjectPublicKeyInfo).toHex(),
		pem: encodePEM("CERTIFICATE", der),
	};
}

/** @throws UnreadableError, since a malformed extension is no absent one */
function find<T>(x509: pkijs.Certificate, id: string, type: new () => T) {
	const found = x509.extensions?.find(({ extnID }) => extnID === id);
	if (!found) return undefined;
	const value: unknown = found.parsedValue;
	if (value instanceof type && !("parsingError" in (value as object)))
		return value;
	throw new UnreadableError(`malformed extension ${id}`);
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

function readKey(pem: string) {
	try {
		return createPrivateKey(pem);
	} catch {
		// without the cause: no error may carry a part of a key
		throw new UnreadableError("private key: not an unencrypted key in PEM");
	}
}

/** RFC 7093 section 2 method 4 */
function keyIdentifierOf(publicKey: pkijs.PublicKeyInfo): Octets {
	return sha256(new Uint8Array(publicKey.toSchema().toBER()));
}

function sha256(octets: Uint8Array): Octets {
	return new Uint8Array(createHash("sha256").update(octets).digest());
}

/** RFC 7468 section 2: lines of 64 characters */
function encodePEM(label: string, der: Octets): string {
	const lines = der.toBase64().replace(/.{64}(?=.)/g, "$&\n");
	return `-----BEGIN ${label}-----\n${lines}\n-----END ${label}-----\n`;
}

/**
 * A self-signed CA with a new key. The beginning of its key identifier ends its
 * common name, so that no generation has the subject of another.
 * @throws RangeError for names and dates that cannot be encoded
 */
export async function issueCA(profile: {
	commonName: string;
	organization: string;
	validity: Validity;
}): Promise<KeyPair> {
	const validity = within(ENCODABLE, profile.validity);
	const { key, ...keys } = await generateKeys();
	const generation = keys.keyIdentifier.toHex().slice(0, 8);
	const commonName = `${profile.commonName} ${generation}`;
	const self = { ...keys, name: encodeName(commonName, profile.organization) };
	// path length 1 leaves room for a cross-certificate
	return { certificate: await issue(self, self, validity, authority(1)), key };
}

/**
 * A cross-certificate: the subject and the key of another CA, certified by
 * `signer`. Who trusts only the signer accepts the leaves of the other CA when
 * they bring it along.
 * @throws RangeError when the validity is not inside the signer's
 * @throws UnreadableError
 */
export async function crossSign(args: {
	signer: KeyPair;
	subject: string;
	validity: Validity;
}): Promise<string> {
	const { signer, validity } = await readSigner(args.signer, args.validity);
	const [subject] = read(args.subject, (base64) =>
		identityOf(decoded.get(base64).x509),
	);
	return issue(subject, signer, validity, authority(0));
}

/**
 * A leaf with a new key and one purpose.
 * @throws RangeError when the validity is not inside the signer's, and for
 * names that cannot be encoded
 * @throws UnreadableError when the signer is unreadable or not whole
 */
export async function issueLeaf(args: {
	signer: KeyPair;
	commonName: string;
	organization?: string;
	usage: "serverAuth" | "clientAuth";
	dnsNames?: string[];
	ipAddresses?: string[];
	validity: Validity;
}): Promise<KeyPair> {
	const { dnsNames = [], ipAddresses = [] } = args;
	const { signer, validity } = await readSigner(args.signer, args.validity);
	const name = encodeName(args.commonName, args.organization);
	const purpose = args.usage === "serverAuth" ? SERVER_AUTH : CLIENT_AUTH;
	const altNames = [
		...dnsNames.map((dnsName) => implicit(DNS_NAME, encodeDNSName(dnsName))),
		...ipAddresses.map((address) => implicit(IP_ADDRESS, encodeIP(address))),
	];
	const extensions = [
		// empty, because DER encodes no DEFAULT: cA FALSE (X.690 section 11.5)
		extension(pkijs.id_BasicConstraints, sequence(), true),
		extension(pkijs.id_KeyUsage, bits(0b1000_0000), true), // digitalSignature
		extension(
			pkijs.id_ExtKeyUsage,
			sequence(new asn1js.ObjectIdentifier({ value: purpose })),
		),
	];
	if (altNames.length > 0)
		extensions.push(extension(pkijs.id_SubjectAltName, sequence(...altNames)));
	const { key, ...keys } = await generateKeys();
	const subject = { ...keys, name };
	const certificate = await issue(subject, signer, validity, extensions);
	// nothing is handed out that its verifiers would not accept
	if (!(await verifies(certificate, args.signer.certificate)))
		throw new UnreadableError("signer: its signature does not verify");
	return { certificate, key };
}

/** Who a certificate is about, and who issues it. */
interface Identity {
	name: pkijs.RelativeDistinguishedNames;
	publicKey: pkijs.PublicKeyInfo;
	keyIdentifier: Octets;
}

interface Signer extends Identity {
	privateKey: CryptoKey;
}

function identityOf(x509: pkijs.Certificate): Identity {
	const { subject: name, subjectPublicKeyInfo: publicKey } = x509;
	// as stated in the certificate, however computed (RFC 5280 4.2.1.1)
	const stated = find(x509, pkijs.id_SubjectKeyIdentifier, asn1js.OctetString);
	const keyIdentifier =
		stated?.valueBlock.valueHexView.slice() ?? keyIdentifierOf(publicKey);
	return { name, publicKey, keyIdentifier };
}

async function readSigner(
	{ certificate, key }: KeyPair,
	wanted: Validity,
): Promise<{ signer: Signer; validity: Validity }> {
	const [{ facts, ...identity }] = read(certificate, (base64) => ({
		...identityOf(decoded.get(base64).x509),
		facts: factsOf(base64),
	}));
	if (!facts.isCA) throw new UnreadableError("signer: not a CA");
	if (!keyMatches(facts, key))
		throw new UnreadableError("signer: key of another certificate");
	const pkcs8 = readKey(key).export({ type: "pkcs8", format: "der" });
	const privateKey = await crypto.subtle
		.importKey("pkcs8", pkcs8, P256, false, ["sign"])
		.catch(() => {
			throw new UnreadableError("signer: key is not ECDSA P-256");
		});
	return {
		signer: { ...identity, privateKey },
		validity: within(facts, wanted),
	};
}

async function generateKeys() {
	const { subtle } = crypto;
	const pair = await subtle.generateKey(P256, true, ["sign", "verify"]);
	const pkcs8 = await subtle.exportKey("pkcs8", pair.privateKey);
	const publicKey = new pkijs.PublicKeyInfo();
	await publicKey.importKey(pair.publicKey);
	return {
		publicKey,
		keyIdentifier: keyIdentifierOf(publicKey),
		privateKey: pair.privateKey,
		key: encodePEM("PRIVATE KEY", new Uint8Array(pkcs8)),
	};
}

/** Signs a certificate. Everything that all of them have in common is here. */
async function issue(
	subject: Identity,
	issuer: Signer,
	validity: Validity,
	extensions: pkijs.Extension[],
): Promise<string> {
	const serial = crypto.getRandomValues(new Uint8Array(16)).toHex();
	const ski = new asn1js.OctetString({ valueHex: subject.keyIdentifier });
	const aki = sequence(implicit(0, issuer.keyIdentifier));
	const x509 = new pkijs.Certificate({
		version: 2, // v3
		serialNumber: asn1js.Integer.fromBigInt(BigInt(`0x${serial}`)),
		issuer: issuer.name,
		notBefore: encodeTime(validity.notBefore),
		notAfter: encodeTime(validity.notAfter),
		subject: subject.name,
		subjectPublicKeyInfo: subject.publicKey,
		extensions: [
			...extensions,
			extension(pkijs.id_SubjectKeyIdentifier, ski),
			extension(pkijs.id_AuthorityKeyIdentifier, aki),
		],
	});
	await x509.sign(issuer.privateKey, "SHA-256");
	const der = new Uint8Array(x509.toSchema(true).toBER());
	decoded.put(der.toBase64(), { x509, der });
	return encodePEM("CERTIFICATE", der);
}

/** The extensions of a CA. */
function authority(pathLength: number): pkijs.Extension[] {
	const cA = new asn1js.Boolean({ value: true });
	const pathLen = new asn1js.Integer({ value: pathLength });
	return [
		extension(pkijs.id_BasicConstraints, sequence(cA, pathLen), true),
		extension(pkijs.id_KeyUsage, bits(0b0000_0110), true), // keyCertSign, cRLSign
	];
}

function extension(extnID: string, value: asn1js.BaseBlock, critical = false) {
	return new pkijs.Extension({ extnID, critical, extnValue: value.toBER() });
}

function sequence(...value: asn1js.BaseBlock[]): asn1js.Sequence {
	return new asn1js.Sequence({ value });
}

/** [tagNumber] IMPLICIT */
function implicit(tagNumber: number, valueHex: Octets): asn1js.Primitive {
	return new asn1js.Primitive({
		idBlock: { tagClass: 3, tagNumber },
		valueHex,
	});
}

/** A named bit list ends with a one bit (X.690 section 11.2.2). */
function bits(octet: number): asn1js.BitString {
	const unusedBits = Math.log2(octet & -octet);
	return new asn1js.BitString({ valueHex: Uint8Array.of(octet), unusedBits });
}

/** O, then CN, each an RDN of its own: pkijs would make one set of them. */
function encodeName(commonName: string, organization?: string) {
	const attribute = (type: string, value: string) => {
		// ub-common-name and ub-organization-name count characters
		if (value === "" || [...value].length > 64)
			throw new RangeError(`not of 1 to 64 characters: "${value}"`);
		const id = new asn1js.ObjectIdentifier({ value: type });
		const text = new asn1js.Utf8String({ value });
		return new asn1js.Set({ value: [sequence(id, text)] });
	};
	const names = [attribute(COMMON_NAME, commonName)];
	if (organization !== undefined)
		names.unshift(attribute(ORGANIZATION, organization));
	return pkijs.RelativeDistinguishedNames.fromBER(sequence(...names).toBER());
}

function encodeDNSName(name: string): Octets {
	if (!/^(\*\.)?[a-z\d-]+(\.[a-z\d-]+)*$/i.test(name))
		throw new RangeError(`not a DNS name: "${name}"`);
	return new TextEncoder().encode(name);
}

/** 4 octets or 16, RFC 5280 section 4.2.1.6 */
function encodeIP(address: string): Octets {
	const octets = (ipv4: string) => Uint8Array.from(ipv4.split("."), Number);
	if (isIPv4(address)) return octets(address);
	// a zone ("%eth0") means something on one machine only
	if (!isIPv6(address) || address.includes("%"))
		throw new RangeError(`not an IP address: "${address}"`);
	const plain = address.replace(/\d+(\.\d+){3}$/, (ipv4) =>
		octets(ipv4).toHex().replace(/^.{4}/, "$&:"),
	);
	const missing = 8 - plain.split(":").filter(Boolean).length;
	const groups = plain.replace("::", `:${"0:".repeat(missing)}`).split(":");
	const hex = groups.filter(Boolean).map((group) => group.padStart(4, "0"));
	return Uint8Array.fromHex(hex.join(""));
}

/** UTCTime through 2049, then GeneralizedTime: RFC 5280 section 4.1.2.5 */
function encodeTime(milliseconds: number): pkijs.Time {
	const value = new Date(milliseconds);
	return new pkijs.Time({ type: value.getUTCFullYear() < 2050 ? 0 : 1, value });
}

/** The wanted validity in whole seconds: RFC 5280 encodes no fractions. */
function within(limits: Validity, wanted: Validity): Validity {
	const notBefore = Math.floor(wanted.notBefore / 1000) * 1000;
	const notAfter = Math.floor(wanted.notAfter / 1000) * 1000;
	if (
		limits.notBefore <= notBefore &&
		notBefore <= notAfter &&
		notAfter <= limits.notAfter
	)
		return { notBefore, notAfter };
	const print = ({ notBefore, notAfter }: Validity) =>
		`${new Date(notBefore).toISOString()}/${new Date(notAfter).toISOString()}`;
	throw new RangeError(`validity ${print(wanted)} not within ${print(limits)}`);
}
