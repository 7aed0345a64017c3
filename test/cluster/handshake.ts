/**
 * Connections to proxies with given certificates, made and judged by openssl. As a program, in the cluster's network:
 * how long a certificate is accepted: `bun handshake.ts HOST CA CERT KEY ADDRESS...` opens a connection to each address,
 * says "open", tries new ones all the time, and says as JSON when each of the old was closed and each new one refused.
 */
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** What a client has. PEM. */
export interface Credentials {
	bundle: string;
	/** The leaf, and what is handed out behind it. */
	certificate: string;
	key: string;
}

/** ISO times, by address. */
export interface Refusal {
	closed: Record<string, string>;
	refused: Record<string, string>;
}

/** A handshake is over after that on the busiest machine. */
const HANDSHAKE_MS = 20_000;
const PAUSE_MS = 250;
/** LENIENT=1 for certificates without key identifiers, as those of 2018. */
const strict = Bun.env.LENIENT ? [] : ["-x509_strict"];

/** The connection preface, SETTINGS, and a PING, which only a client is answered who has been accepted: RFC 9113, 3.4, 6.5, 6.7. */
const hello = Buffer.concat([
	Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
	Buffer.from("000000040000000000", "hex"),
	Buffer.from("0000080600000000000000000000000000", "hex"),
]);
/** How an answered PING begins. */
const pong = Buffer.from("000008060100000000", "hex");

/**
 * One connection to port 2379 at an address.
 * @param host what the server's certificate must name
 * @param opened called as soon as both sides have accepted each other; the connection stays open until it resolves
 * @returns undefined after that, else why it did not come to it, as openssl says
 */
export async function connect(
	{ bundle, certificate, key }: Credentials,
	host: string,
	address: string,
	opened: (closed: Promise<unknown>) => Promise<unknown> | undefined = () =>
		undefined,
): Promise<string | undefined> {
	const dir = await mkdtemp(join(tmpdir(), "etcdproxy-handshake-"));
	const file = async (name: string, text: string) => {
		const path = join(dir, name);
		await writeFile(path, text, { mode: 0o600 });
		return path;
	};
	const [ca, leaf, keyFile] = await Promise.all([
		file("ca", bundle),
		file("leaf", certificate),
		file("key", key),
	]);
	const more = certificate.replace(/^[\s\S]*?-----END CERTIFICATE-----\n?/, "");
	const chain =
		more.trim() === "" ? [] : ["-cert_chain", await file("chain", more)];
	const child = Bun.spawn(
		[
			...["openssl", "s_client", "-connect", `${address}:2379`],
			...["-servername", host, "-verify_hostname", host, "-alpn", "h2"],
			...["-CAfile", ca, "-verify_return_error", ...strict, "-quiet"],
			...["-cert", leaf, "-key", keyFile, ...chain],
		],
		{ stdin: "pipe", stdout: "pipe", stderr: "pipe" },
	);
	const timer = setTimeout(() => child.kill(), HANDSHAKE_MS);
	try {
		child.stdin.write(hello);
		await child.stdin.flush();
		let answer = Buffer.alloc(0);
		for await (const chunk of child.stdout) {
			answer = Buffer.concat([answer, chunk]);
			if (!answer.includes(pong)) continue;
			clearTimeout(timer);
			await opened(child.exited);
			return undefined;
		}
		const errors = await child.stderr.text();
		return errors.trim().split("\n").slice(-6).join(" | ") || "no answer";
	} catch (error) {
		return (error as Error).message;
	} finally {
		clearTimeout(timer);
		child.kill();
		await child.exited;
		await rm(dir, { recursive: true, force: true });
	}
}

async function main(): Promise<void> {
	const [host = "", ca = "", leaf = "", keyFile = "", ...addresses] =
		process.argv.slice(2);
	const [bundle, certificate, key] = await Promise.all(
		[ca, leaf, keyFile].map((path) => readFile(path, "utf8")),
	);
	const credentials = { bundle, certificate, key } as Credentials;
	const report: Refusal = { closed: {}, refused: {} };
	const now = () => new Date().toISOString();
	let open = 0;
	const allOpen = Promise.withResolvers<void>();
	const ends = addresses.map(async (address) => {
		const refusal = await connect(credentials, host, address, (closed) => {
			if (++open === addresses.length) allOpen.resolve();
			return closed;
		});
		if (refusal !== undefined) throw new Error(`${address}: ${refusal}`);
		report.closed[address] = now();
	});
	await Promise.race([allOpen.promise, Promise.all(ends)]);
	console.log("open");
	await Promise.all(
		addresses.map(async (address) => {
			while ((await connect(credentials, host, address)) === undefined)
				await Bun.sleep(PAUSE_MS);
			report.refused[address] = now();
		}),
	);
	await Promise.all(ends);
	console.log(JSON.stringify(report));
}

if (import.meta.main)
	main().catch((error: Error) => {
		console.log(JSON.stringify({ crashed: error.message }));
		process.exitCode = 1;
	});
