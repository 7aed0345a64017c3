/**
 * The gateway's certificates: read from files that change under it, and who is trusted because of them. Without pkijs,
 * whose memory a gateway has no use for.
 */
import {
	createHash,
	createPrivateKey,
	type KeyObject,
	X509Certificate,
} from "node:crypto";
import { readFile } from "node:fs/promises";
import type { DetailedPeerCertificate, TLSSocket } from "node:tls";

/** A certificate chain with its key and the authorities that the other side is verified with, all PEM. */
export interface Credentials {
	/**
	 * The leaf first. This, `key` and `ca` are written anew from what has been read: Bun's TLS takes a bundle up to its
	 * first damaged certificate for the whole, and is to get nothing that has not been looked at here.
	 */
	cert: string;
	/** PKCS #8 */
	key: string;
	ca: string;
	/** Of the leaf, in milliseconds since the epoch. */
	notBefore: number;
	notAfter: number;
	/** SHA-256 of `ca`, in hex. Of the file, too, where that holds nothing but certificates in lines of 64 characters. */
	caHash: string;
	/** SHA-256 of `cert`, `key` and `ca`, in hex. */
	hash: string;
}

type Kind = "cert" | "key" | "ca";

export interface File {
	path: string;
	content: string;
}

/** A sentence that names the file and what is wrong with it, and holds nothing of a key. */
export class CredentialsError extends Error {
	override name = "CredentialsError";
}

type Pair = Pick<Credentials, "cert" | "key" | "notBefore" | "notAfter">;

/**
 * @param now in milliseconds since the epoch
 * @throws CredentialsError unless each certificate of the chain can be read, the key is that of the first, each
 * certificate of the bundle can be read, and at least one of them has not expired. The leaf may have expired.
 */
export function parseCredentials(
	files: Record<Kind, File>,
	now: number,
): Credentials {
	return join(
		parsePair(files.cert, files.key),
		parseAuthorities(files.ca, now),
	);
}

function join(pair: Pair, ca: string): Credentials {
	const { cert, key } = pair;
	return { ...pair, ca, caHash: sha256(ca), hash: sha256(cert + key + ca) };
}

function parsePair(cert: File, key: File): Pair {
	const [leaf, ...others] = parseCertificates(cert);
	const privateKey = parseKey(key);
	if (!leaf.checkPrivateKey(privateKey))
		throw new CredentialsError(
			`${key.path}: the private key does not belong to the first certificate of ${cert.path}`,
		);
	return {
		cert: [leaf, ...others].map(String).join(""),
		key: privateKey.export({ type: "pkcs8", format: "pem" }).toString(),
		...validityOf(leaf),
	};
}

function parseAuthorities(file: File, now: number): string {
	const certificates = parseCertificates(file);
	const notAfter = Math.max(
		...certificates.map((one) => validityOf(one).notAfter),
	);
	if (notAfter < now)
		throw new CredentialsError(
			`${file.path}: all of its certificates have expired, the last at ${iso(notAfter)}`,
		);
	return certificates.map(String).join("");
}

/** What follows "-----BEGIN "; an END left over had its BEGIN damaged. */
const PEM_BLOCK =
	/^([A-Z\d ]*)-----([A-Za-z\d+/=\s]*)-----END \1-----(?!.*-----END )/s;

/** Text around the blocks is explanation (RFC 7468 section 2). @throws CredentialsError for anything but certificates */
function parseCertificates({
	path,
	content,
}: File): [X509Certificate, ...X509Certificate[]] {
	const [preface = "", ...blocks] = content.split("-----BEGIN ");
	const [first, ...rest] = blocks.map((block, index) => {
		const refuse = (reason: string) =>
			new CredentialsError(
				`${path}: certificate ${index + 1} of ${blocks.length}: ${reason}`,
			);
		const [, label, base64 = ""] = PEM_BLOCK.exec(block) ?? [];
		if (label === undefined) throw refuse("damaged or incomplete PEM");
		if (label !== "CERTIFICATE") throw refuse(`it is a ${label}`);
		const der = Buffer.from(base64, "base64");
		const certificate = readCertificate(der);
		// Bun reads a certificate that more bytes follow.
		if (certificate?.raw.length !== der.length)
			throw refuse("not an X.509 certificate");
		return certificate;
	});
	if (preface.includes("-----END ") || first === undefined)
		throw new CredentialsError(
			`${path}: ${content.trim() === "" ? "it is empty" : "no certificate in it, or damaged PEM"}`,
		);
	return [first, ...rest];
}

function readCertificate(der: Buffer): X509Certificate | undefined {
	try {
		return new X509Certificate(der);
	} catch {
		// OpenSSL's words tell nobody more than that it is none.
		return undefined;
	}
}

/** PKCS #8, SEC 1 or PKCS #1. */
function parseKey({ path, content }: File): KeyObject {
	try {
		return createPrivateKey(content);
	} catch {
		// Without the cause: no error may carry a part of a key.
		throw new CredentialsError(
			`${path}: ${
				content.trim() === ""
					? "it is empty"
					: content.includes("ENCRYPTED")
						? "the private key is encrypted; only one that is not can be used"
						: "no private key in PEM, or a damaged one"
			}`,
		);
	}
}

type Validity = Pick<Credentials, "notBefore" | "notAfter">;

const validityOf = (certificate: X509Certificate): Validity => ({
	notBefore: Date.parse(certificate.validFrom),
	notAfter: Date.parse(certificate.validTo),
});

/** Why a certificate is not valid now, after "it"; undefined when it is. */
function invalidity(
	{ notBefore, notAfter }: Validity,
	now: number,
): string | undefined {
	if (now < notBefore) return `is not valid before ${iso(notBefore)}`;
	return now <= notAfter ? undefined : `has expired at ${iso(notAfter)}`;
}

const sha256 = (text: string) =>
	createHash("sha256").update(text).digest("hex");
const iso = (milliseconds: number) => new Date(milliseconds).toISOString();

/** Between two looks at files that have changed, which shall give the same: whoever writes them has then finished. */
const SETTLE_MS = 50;
const SETTLE_ATTEMPTS = 20;

export interface CredentialFilesOptions {
	/**
	 * What is to be used has changed, and is in `current`. Not called for the first load. When it throws, that is an error
	 * to report, the old credentials stay, and the next look tries again.
	 */
	onLoad(
		credentials: Credentials,
		changed: { pair: boolean; ca: boolean },
	): void;
	/** Files are not used. The last good ones stay in use. Once per reason, and again after it was gone. */
	onError(error: CredentialsError): void;
	/** The files are used, but will not do: the certificate has expired or is not valid yet. Likewise. */
	onWarning?(message: string): void;
	/** Between two looks; 2000 unless told. */
	intervalMs?: number;
	/** In milliseconds since the epoch; the clock unless told. */
	now?(): number;
}

/**
 * Follows the three files. Their contents are compared, so no kind of change goes unnoticed: a kubelet's swap of a
 * symbolic link, a rename, a rewrite in place with the size and the time of before.
 *
 * The pair (`cert` and `key`) and the bundle (`ca`) come from different objects and are loaded each for itself, so that
 * a broken pair keeps no authority trusted. A pair whose certificate is not valid at the moment replaces the current one
 * only if it expires later: our clock may be wrong, but an old backup is no reason to give up a certificate that is good.
 * At the first load it is taken as it is, for there is no better one.
 */
export class CredentialFiles {
	current: Credentials | undefined;
	readonly #paths: Record<Kind, string>;
	readonly #options: CredentialFilesOptions;
	readonly #now: () => number;
	/** The contents of the last look, as a hash. */
	#seen = "";
	#problems = new Set<string>();
	#timer: NodeJS.Timeout | undefined;
	#stopped = false;
	#last: Promise<void> = Promise.resolve();

	constructor(paths: Record<Kind, string>, options: CredentialFilesOptions) {
		this.#paths = paths;
		this.#options = options;
		this.#now = options.now ?? Date.now;
	}

	/** What was wrong with the files at the last look, in sentences. */
	get problems(): readonly string[] {
		return [...this.#problems];
	}

	/** The first load. @throws CredentialsError */
	async load(): Promise<Credentials> {
		const files = await this.#read();
		const now = this.#now();
		const credentials = join(
			parsePair(files.cert(), files.key()),
			parseAuthorities(files.ca(), now),
		);
		this.current = credentials;
		this.#problems = new Set(this.#warn(credentials, now));
		return credentials;
	}

	/** Looks every `intervalMs` from now on, after the first load. */
	start(): void {
		this.#stopped = false;
		this.#schedule();
	}

	stop(): void {
		this.#stopped = true;
		clearTimeout(this.#timer);
	}

	/** Looks now. */
	poll(): Promise<void> {
		// After a look that is under way, which may have read a file too early.
		const look = this.#last.then(() => this.#look());
		// Its error is for whoever awaits it; the next look comes all the same.
		this.#last = look.catch(() => undefined);
		return look;
	}

	#schedule(): void {
		clearTimeout(this.#timer);
		if (this.#stopped) return;
		this.#timer = setTimeout(
			() => void this.poll().finally(() => this.#schedule()),
			this.#options.intervalMs ?? 2_000,
		);
	}

	async #look(): Promise<void> {
		const before = this.current;
		if (!before) throw new Error("a look before the first load");
		const problems: string[] = [];
		/** What is reported already is not reported again. */
		const attempt = <T>(action: () => T): T | undefined => {
			try {
				return action();
			} catch (error) {
				const { message } = error as Error;
				const known = this.#problems.has(message) || problems.includes(message);
				problems.push(message);
				if (!known)
					this.#options.onError(
						error instanceof CredentialsError
							? error
							: new CredentialsError(message),
					);
				return undefined;
			}
		};
		const files = await this.#read();
		if (this.#stopped) return;
		const now = this.#now();
		const pair = attempt(() => {
			const pair = parsePair(files.cert(), files.key());
			const invalid = invalidity(pair, now);
			if (
				invalid !== undefined &&
				pair.cert !== before.cert &&
				pair.notAfter <= before.notAfter
			)
				throw new CredentialsError(
					`${this.#paths.cert}: the certificate ${invalid}, and the one in use does not expire before it`,
				);
			return pair;
		});
		const ca = attempt(() => parseAuthorities(files.ca(), now));
		const next = join(pair ?? before, ca ?? before.ca);
		if (next.hash !== before.hash) {
			this.current = next;
			const changed = {
				pair: next.cert !== before.cert || next.key !== before.key,
				ca: next.ca !== before.ca,
			};
			attempt(() => {
				try {
					this.#options.onLoad(next, changed);
				} catch (error) {
					this.current = before;
					throw new CredentialsError(
						`${Object.values(this.#paths).join(", ")}: could not be put to use: ${(error as Error).message}`,
					);
				}
			});
		}
		problems.push(...this.#warn(this.current ?? before, now));
		this.#problems = new Set(problems);
	}

	/** @returns the warning, if there is one */
	#warn(credentials: Credentials, now: number): string[] {
		const invalid = invalidity(credentials, now);
		if (invalid === undefined) return [];
		const message = `${this.#paths.cert}: the certificate in use ${invalid}`;
		if (!this.#problems.has(message)) this.#options.onWarning?.(message);
		return [message];
	}

	/**
	 * The files as they were at one moment: the same when they are read again. Each throws a CredentialsError instead when
	 * it cannot be read.
	 */
	async #read(): Promise<Record<Kind, () => File>> {
		for (let attempt = 0; attempt < SETTLE_ATTEMPTS; attempt++) {
			const [cert, key, ca] = await Promise.all([
				readText(this.#paths.cert),
				readText(this.#paths.key),
				readText(this.#paths.ca),
			]);
			const seen = sha256(JSON.stringify([cert, key, ca]));
			if (seen === this.#seen)
				return { cert: opened(cert), key: opened(key), ca: opened(ca) };
			this.#seen = seen;
			await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
		}
		const busy = () => {
			throw new CredentialsError(
				`${Object.values(this.#paths).join(", ")}: they change all the time`,
			);
		};
		return { cert: busy, key: busy, ca: busy };
	}
}

type Text = File | { path: string; error: string };

async function readText(path: string): Promise<Text> {
	try {
		return { path, content: await readFile(path, "utf8") };
	} catch (error) {
		const { code, message } = error as NodeJS.ErrnoException;
		return {
			path,
			error:
				code === "ENOENT"
					? "there is no such file"
					: `cannot be read: ${code ?? message}`,
		};
	}
}

const opened = (text: Text) => (): File => {
	if ("content" in text) return text;
	throw new CredentialsError(`${text.path}: ${text.error}`);
};

/** What a TLS client has shown of itself, DER. */
export interface Peer {
	certificate: Buffer;
	/** In any order, and not all of them of use. */
	intermediates: Buffer[];
}

const CLIENT_AUTH = "1.3.6.1.5.5.7.3.2";
const MAX_SHOWN = 16;
/** Signatures from the leaf to an authority of the bundle. */
const MAX_DEPTH = 4;
/** 80 us each. */
const MAX_SIGNATURE_CHECKS = 32;

/** The certificates of a client, also of one that the handshake has refused; undefined without any, or once closed. */
export function peerOf(socket: TLSSocket): Peer | undefined {
	const chain: Buffer[] = [];
	// What comes with `true` is the leaf, then what was sent with it, then an authority of the bundle if that is known.
	let next: Partial<DetailedPeerCertificate> | undefined =
		socket.getPeerCertificate(true);
	while (next?.raw && chain.length < MAX_SHOWN) {
		chain.push(next.raw);
		next = next.issuerCertificate === next ? undefined : next.issuerCertificate;
	}
	const [certificate, ...intermediates] = chain;
	return certificate && { certificate, intermediates };
}

/**
 * Why a client is not trusted by a CA bundle now, for a log line; undefined when it is. Asked for connections that exist
 * when the bundle changes, and at each handshake, since TLS lets a certificate without extended key usages pass.
 * Path lengths and name constraints are left to TLS.
 * @param ca each certificate of the bundle is an authority of its own, self-signed or not
 * @param now in milliseconds since the epoch
 */
export function distrust(
	peer: Peer | undefined,
	ca: string,
	now: number,
): string | undefined {
	const leaf = peer && readCertificate(peer.certificate);
	if (!leaf) return "it showed no certificate, or one that cannot be read";
	const refuse = (reason: string) =>
		`the certificate ${nameOf(leaf)} ${reason}`;
	const invalid = invalidity(validityOf(leaf), now);
	if (invalid !== undefined) return refuse(invalid);
	if (!leaf.keyUsage?.includes(CLIENT_AUTH))
		return refuse("has no extended key usage clientAuth");

	let anchors: X509Certificate[];
	try {
		anchors = parseCertificates({ path: "CA bundle", content: ca });
	} catch (error) {
		return refuse(`cannot be verified: ${(error as Error).message}`);
	}
	const intermediates = peer.intermediates.flatMap(
		(der) => readCertificate(der) ?? [],
	);
	let checks = MAX_SIGNATURE_CHECKS;
	/** About the first authority that would be the one. */
	let almost: string | undefined;
	const leadsToAnchor = (subject: X509Certificate, depth: number): boolean =>
		depth <= MAX_DEPTH &&
		[...anchors, ...intermediates].some((issuer, index) => {
			if (!subject.checkIssued(issuer) || checks-- <= 0) return false;
			if (!isSignedBy(subject, issuer)) return false;
			const unfit = unfitness(issuer, now);
			if (unfit !== undefined) {
				almost ??= `is signed by ${nameOf(issuer)}, which ${unfit}`;
				return false;
			}
			return index < anchors.length || leadsToAnchor(issuer, depth + 1);
		});
	return leadsToAnchor(leaf, 1)
		? undefined
		: refuse(almost ?? "is not signed by any CA of the bundle");
}

/** Why a certificate cannot vouch for a client, after "it". */
function unfitness(issuer: X509Certificate, now: number): string | undefined {
	if (!issuer.ca) return "is no CA";
	// TLS as Bun and Go have it lets an authority's usages limit those of all below it.
	if (issuer.keyUsage && !issuer.keyUsage.includes(CLIENT_AUTH))
		return "is no CA of clients";
	return invalidity(validityOf(issuer), now);
}

function isSignedBy(subject: X509Certificate, issuer: X509Certificate) {
	try {
		return subject.verify(issuer.publicKey);
	} catch {
		// A kind of key that Bun does not know: nothing that it signs can be verified.
		return false;
	}
}

/** The subject in one line, its control characters escaped by OpenSSL. */
function nameOf(certificate: X509Certificate): string {
	const subject = certificate.subject?.replaceAll("\n", ",").slice(0, 200);
	return subject || `with serial number ${certificate.serialNumber}`;
}
