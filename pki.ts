/**
 * Issuing X.509 certificates in the profile of RFC 5280, and reading them (see
 * x509.ts). No clock is read: every date is an argument, in milliseconds since
 * the epoch. The only effect is the randomness of keys and serial numbers.
 */
import { isIPv4, isIPv6 } from "node:net";
import * as asn1js from "asn1js";
import * as pkijs from "pkijs";
import {
	CLIENT_AUTH,
	COMMON_NAME,
	DNS_NAME,
	decoded,
	encodePEM,
	factsOf,
	find,
	IP_ADDRESS,
	keyIdentifierOf,
	keyMatches,
	type Octets,
	ORGANIZATION,
	read,
	readKey,
	rememberSignature,
	SERVER_AUTH,
	UnreadableError,
	type Validity,
} from "./x509.ts";

export {
	bundle,
	type CertificateFacts,
	keyMatches,
	parseCertificates,
	parseFirst,
	UnreadableError,
	type Validity,
	verifies,
} from "./x509.ts";

/** A certificate and its private key, as PEM texts (RFC 7468). */
export interface KeyPair {
	/** The certificate first; what completes its chain may follow. */
	certificate: string;
	/** PKCS #8 */
	key: string;
}

const P256 = { name: "ECDSA", namedCurve: "P-256" };
/** From UTCTime's first year to GeneralizedTime's last. */
const ENCODABLE: Validity = {
	notBefore: Date.UTC(1950, 0),
	notAfter: Date.UTC(9999, 11, 31, 23, 59, 59),
};
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
	rememberSignature(certificate, args.signer.certificate);
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
	// it is read back at once
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
