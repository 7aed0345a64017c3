/**
 * What the gateway relies on in Bun's node:tls. Where a test fails after an upgrade of Bun, the gateway has to be looked
 * at; where one says that the gateway must do something itself, it may no longer have to.
 */
import {
	afterAll,
	afterEach,
	beforeAll,
	describe,
	expect,
	test,
} from "bun:test";
import { constants, X509Certificate } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect as connectTCP, createServer as createTCP } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
	type ConnectionOptions,
	connect,
	createServer,
	type Server,
	type TLSSocket,
	type TlsOptions,
} from "node:tls";
import { distrust, type Peer, peerOf } from "../gateway/credentials.ts";
import { until } from "./harness.ts";
import { CA, type Issued, issue, leaf } from "./issue.ts";

let dir = "";
let a: Issued, b: Issued, forged: Issued, serving: Issued, nextServing: Issued;
let server: Issued, nextServer: Issued, client: Issued, other: Issued;
/** The authority b, certified by a. */
let cross: Issued;
const versions = ["-tls1_2", "-tls1_3"];

beforeAll(async () => {
	dir = await mkdtemp(join(tmpdir(), "etcdproxy-tls-"));
	[a, b, forged, serving, nextServing] = await Promise.all([
		issue(dir, "ca-a", { extensions: CA }),
		issue(dir, "ca-b", { extensions: CA }),
		issue(dir, "forged", { subject: "/CN=ca-a", extensions: CA }),
		issue(dir, "ca-serving", { extensions: CA }),
		issue(dir, "ca-next-serving", { extensions: CA }),
	]);
	const names = "DNS:localhost,IP:127.0.0.1,IP:::1";
	const extensions = leaf("serverAuth", names);
	const usage = leaf("clientAuth");
	[server, nextServer, client, other, cross] = await Promise.all([
		issue(dir, "server", { extensions, issuer: serving }),
		issue(dir, "next-server", { extensions, issuer: nextServing }),
		issue(dir, "client", { extensions: usage, issuer: a }),
		issue(dir, "other", { extensions: usage, issuer: b }),
		issue(dir, "cross", {
			subject: "/CN=ca-b",
			extensions: CA,
			issuer: a,
			keyFile: b.keyFile,
		}),
	]);
});

const cleanups: (() => void)[] = [];
afterEach(() => {
	for (const cleanup of cleanups.splice(0)) cleanup();
});
afterAll(() => rm(dir, { recursive: true, force: true }));

/** What a server has seen of a client. */
type Seen =
	| { error: string; peer: Peer | undefined; socket: TLSSocket }
	| {
			alpn: string | false | null;
			protocol: string | null;
			reused: boolean;
			peer: Peer | undefined;
			socket: TLSSocket;
	  };

interface Listener {
	server: Server;
	port: number;
	/** In the order of arrival. */
	seen: Seen[];
	options: TlsOptions;
}

/** A server as the gateway has it. */
async function listen(
	changes: TlsOptions = {},
	onSocket: (socket: TLSSocket) => void = (socket) => socket.end(),
): Promise<Listener> {
	const options: TlsOptions = {
		cert: server.cert,
		key: server.key,
		ca: a.cert,
		requestCert: true,
		rejectUnauthorized: true,
		ALPNProtocols: ["h2"],
		minVersion: "TLSv1.2",
		...changes,
	};
	const seen: Seen[] = [];
	const listener = createServer(options);
	listener.on("secureConnection", (socket) => {
		socket.on("error", () => undefined);
		seen.push({
			alpn: socket.alpnProtocol,
			protocol: socket.getProtocol(),
			reused: socket.isSessionReused(),
			peer: peerOf(socket),
			socket,
		});
		onSocket(socket);
	});
	listener.on("tlsClientError", (error: NodeJS.ErrnoException, socket) => {
		const { code = error.message } = error;
		seen.push({ error: code, peer: peerOf(socket), socket });
	});
	const sockets = new Set<{ destroy(): void }>();
	listener.on("connection", (socket) => sockets.add(socket));
	await new Promise<void>((resolve) =>
		listener.listen(0, "127.0.0.1", resolve),
	);
	cleanups.push(() => {
		for (const socket of sockets) socket.destroy();
		listener.close();
	});
	return { server: listener, port: portOf(listener), seen, options };
}

function portOf(listener: Pick<Server, "address">): number {
	const address = listener.address();
	if (typeof address !== "object" || !address) throw new Error("not listening");
	return address.port;
}

/** openssl s_client, which ends when the server ends the connection. @returns its output and what the server saw */
async function openssl(
	{ port, seen }: Listener,
	args: string[],
): Promise<{ output: string; saw: Seen }> {
	const before = seen.length;
	const child = Bun.spawn(
		[
			...["openssl", "s_client", "-connect", `127.0.0.1:${port}`],
			...["-CAfile", serving.certFile, ...args],
		],
		// Its input stays open: at its end it would go.
		{ stdin: "pipe", stdout: "pipe", stderr: "pipe" },
	);
	const [stdout, stderr] = await Promise.all([
		child.stdout.text(),
		child.stderr.text(),
	]);
	await child.exited;
	const saw = await until(() => seen[before], "the server has seen the client");
	return { output: stdout + stderr, saw };
}

const show = ({ certFile, keyFile }: Issued) => [
	...["-cert", certFile, "-key", keyFile],
];
const h2 = ["-alpn", "h2"];
const errorOf = (saw: Seen) => ("error" in saw ? saw.error : "none");

describe.each(versions)("a server, %s", (version) => {
	test("verifies the client's certificate, and leaves only one without usages to the gateway", async () => {
		const extensions = leaf("clientAuth");
		const [both, expired, self, lookalike, serverOnly, none] =
			await Promise.all([
				issue(dir, "both", {
					extensions: leaf("serverAuth,clientAuth"),
					issuer: a,
				}),
				issue(dir, "expired", { extensions, issuer: a, days: -1 }),
				issue(dir, "self", { extensions: ["extendedKeyUsage=clientAuth"] }),
				issue(dir, "lookalike", { extensions, issuer: forged }),
				issue(dir, "server-only", {
					extensions: leaf("serverAuth"),
					issuer: a,
				}),
				issue(dir, "none", { extensions: leaf(""), issuer: a }),
			]);
		const listener = await listen();
		const verdict = async (shown: Issued | undefined) => {
			const args = [...h2, version, ...(shown ? show(shown) : [])];
			return errorOf((await openssl(listener, args)).saw);
		};
		expect(await verdict(client)).toBe("none");
		expect(await verdict(both)).toBe("none");
		expect(await verdict(other)).toBe("UNABLE_TO_VERIFY_LEAF_SIGNATURE");
		expect(await verdict(lookalike)).toBe("UNABLE_TO_VERIFY_LEAF_SIGNATURE");
		expect(await verdict(self)).toBe("DEPTH_ZERO_SELF_SIGNED_CERT");
		expect(await verdict(expired)).toBe("CERT_HAS_EXPIRED");
		expect(await verdict(serverOnly)).toBe("INVALID_PURPOSE");
		expect(await verdict(undefined)).toBe(
			"ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE",
		);
		expect(await verdict(none)).toBe("none");
		expect(distrust(listener.seen.at(-1)?.peer, a.cert, Date.now())).toBe(
			"the certificate CN=none has no extended key usage clientAuth",
		);
	});

	test("tells whose certificate it was that it has refused", async () => {
		const listener = await listen();
		const { saw } = await openssl(listener, [...h2, version, ...show(other)]);
		expect(errorOf(saw)).toBe("UNABLE_TO_VERIFY_LEAF_SIGNATURE");
		expect(distrust(saw.peer, a.cert, Date.now())).toBe(
			"the certificate CN=other is not signed by any CA of the bundle",
		);
	});

	test("takes a new certificate and a new bundle for new connections, and leaves the others open", async () => {
		const listener = await listen({}, (socket) => {
			socket.on("data", (chunk) => socket.write(chunk));
		});
		const tls = version === "-tls1_3" ? "TLSv1.3" : "TLSv1.2";
		const dial = (shown: Issued, ca: string) =>
			dialTLS(listener.port, {
				...{ ca, cert: shown.cert, key: shown.key },
				...{ minVersion: tls, maxVersion: tls },
			});
		const before = await dial(client, serving.cert);
		expect(await echo(before.socket, "one")).toBe("one");
		listener.server.setSecureContext({
			...listener.options,
			cert: nextServer.cert,
			key: nextServer.key,
			ca: b.cert,
		});
		expect(await echo(before.socket, "two")).toBe("two");
		expect((await dial(other, serving.cert)).error).toBe(
			"UNABLE_TO_VERIFY_LEAF_SIGNATURE",
		);
		const after = await dial(other, nextServing.cert);
		expect(await echo(after.socket, "three")).toBe("three");
		// The old client takes its handshake for done; it is the server that then ends it.
		const refused = await dial(client, nextServing.cert);
		await closed(refused.socket);
		expect(errorOf(listener.seen.at(-1) as Seen)).toBe(
			"UNABLE_TO_VERIFY_LEAF_SIGNATURE",
		);
		// What is left to the gateway: connections of the old bundle.
		const [first] = listener.seen;
		expect(first && distrust(peerOf(first.socket), b.cert, Date.now())).toBe(
			"the certificate CN=client is not signed by any CA of the bundle",
		);
	});

	test("a new context replaces cert, key, ca and the lowest version, and keeps ALPN and the demand for a certificate", async () => {
		const listener = await listen({ minVersion: "TLSv1.3" });
		listener.server.setSecureContext({
			cert: nextServer.cert,
			key: nextServer.key,
			ca: b.cert,
		});
		const args = [...h2, version];
		const { saw } = await openssl(listener, [...args, ...show(other)]);
		expect("alpn" in saw && saw.alpn).toBe("h2");
		expect(errorOf((await openssl(listener, args)).saw)).toBe(
			"ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE",
		);
		const http1 = ["-alpn", "http/1.1", version, ...show(other)];
		expect(errorOf((await openssl(listener, http1)).saw)).toBe(
			"ERR_SSL_NO_APPLICATION_PROTOCOL",
		);
	});

	test("what cannot be a context is thrown, and the old one stays", async () => {
		const listener = await listen();
		const attempt = (cert: string, key: string) => () =>
			listener.server.setSecureContext({ ...listener.options, cert, key });
		expect(attempt(server.cert, client.key)).toThrow("KEY_VALUES_MISMATCH");
		expect(attempt("x", server.key)).toThrow("NO_START_LINE");
		const { saw } = await openssl(listener, [...h2, version, ...show(client)]);
		expect(errorOf(saw)).toBe("none");
	});

	test("resumes a session only as long as the bundle is the same, and then knows the client as before", async () => {
		const listener = await listen({ ca: a.cert + b.cert });
		const session = join(dir, `session${version}.pem`);
		const common = [...h2, version];
		const first = await openssl(listener, [
			...[...common, ...show(other), "-cert_chain", cross.certFile],
			...["-sess_out", session],
		]);
		expect(errorOf(first.saw)).toBe("none");
		const resume = [...common, "-sess_in", session];
		const { saw: resumed } = await openssl(listener, resume);
		expect("reused" in resumed && resumed.reused).toBe(true);
		expect(resumed.peer).toEqual(first.saw.peer as Peer);
		listener.server.setSecureContext({ ...listener.options, ca: a.cert });
		expect(errorOf((await openssl(listener, resume)).saw)).toBe(
			"ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE",
		);
	});

	test("resumes no session with SSL_OP_NO_TICKET, also after a new context", async () => {
		const secureOptions = constants.SSL_OP_NO_TICKET;
		const listener = await listen({ secureOptions });
		const session = join(dir, `no-session${version}.pem`);
		for (const round of ["first", "after a new context"]) {
			const args = [...h2, version, ...show(client)];
			await openssl(listener, [...args, "-sess_out", session]);
			if (await Bun.file(session).exists()) {
				const { saw } = await openssl(listener, [...args, "-sess_in", session]);
				expect([round, "reused" in saw && saw.reused]).toEqual([round, false]);
			}
			listener.server.setSecureContext(listener.options);
		}
	});

	test("gives the intermediates that a client has sent, of use or not", async () => {
		const listener = await listen();
		const sent = join(dir, "sent.pem");
		await writeFile(sent, forged.cert + cross.cert);
		const { saw } = await openssl(listener, [
			...[...h2, version, ...show(other), "-cert_chain", sent],
		]);
		const der = ({ cert }: Issued) => new X509Certificate(cert).raw;
		expect(saw.peer?.certificate).toEqual(der(other));
		expect(saw.peer?.intermediates.slice(0, 2)).toEqual([
			der(forged),
			der(cross),
		]);
		expect(distrust(saw.peer, a.cert, Date.now())).toBeUndefined();
	});

	test("an expired cross-certificate does no harm when the bundle has the authority itself", async () => {
		const expired = await issue(dir, "cross-expired", {
			...{ subject: "/CN=ca-b", extensions: CA, days: -1 },
			...{ issuer: a, keyFile: b.keyFile },
		});
		const args = [
			...[...h2, version, ...show(other), "-cert_chain", expired.certFile],
		];
		const both = await listen({ ca: a.cert + b.cert });
		expect(errorOf((await openssl(both, args)).saw)).toBe("none");
		const one = await listen();
		expect(errorOf((await openssl(one, args)).saw)).toBe("CERT_HAS_EXPIRED");
	});

	test("trusts an authority that is not self-signed only with allowPartialTrustChain", async () => {
		const args = [...h2, version, ...show(other)];
		const strict = await listen({ ca: cross.cert });
		expect(errorOf((await openssl(strict, args)).saw)).toBe(
			"UNABLE_TO_GET_ISSUER_CERT",
		);
		const partial = await listen({
			ca: cross.cert,
			allowPartialTrustChain: true,
		});
		expect(errorOf((await openssl(partial, args)).saw)).toBe("none");
	});
});

describe("a server", () => {
	test("lets a client without ALPN through, which the gateway must turn away, and refuses one without h2", async () => {
		const listener = await listen();
		const { saw } = await openssl(listener, show(client));
		expect("alpn" in saw && saw.alpn).toBe(false);
		const http1 = await openssl(listener, [
			...[...show(client), "-alpn", "http/1.1"],
		]);
		expect(errorOf(http1.saw)).toBe("ERR_SSL_NO_APPLICATION_PROTOCOL");
		expect(http1.output).toContain("alert number 120");
	});

	test("refuses TLS 1.1 with an alert, by its minVersion and without one", async () => {
		for (const listener of [
			await listen(),
			await listen({ minVersion: undefined }),
		]) {
			const { saw, output } = await openssl(listener, [
				...[...h2, "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"],
			]);
			expect(errorOf(saw)).toBe("ERR_SSL_UNSUPPORTED_PROTOCOL");
			expect(output).toContain("alert number 70");
		}
	});

	test("refuses renegotiation", async () => {
		const listener = await listen({}, () => undefined);
		const child = Bun.spawn(
			[
				...["openssl", "s_client", "-connect", `127.0.0.1:${listener.port}`],
				...["-tls1_2", ...h2, ...show(client)],
			],
			{ stdin: "pipe", stdout: "ignore", stderr: "pipe" },
		);
		await until(() => listener.seen[0], "the handshake");
		child.stdin.write("R\n");
		child.stdin.flush();
		expect(await child.stderr.text()).toContain("no renegotiation");
	});

	test("takes a bundle up to its first damaged certificate for the whole: it is to get none", async () => {
		const damaged = b.cert.slice(0, b.cert.length / 2);
		const listener = await listen({ ca: a.cert + damaged });
		const { saw } = await openssl(listener, [...h2, ...show(client)]);
		expect(errorOf(saw)).toBe("none");
	});

	test("a handshake that does not end is told, and closed only by the gateway", async () => {
		const listener = await listen({ handshakeTimeout: 100 });
		const silent = connectTCP(listener.port, "127.0.0.1");
		let ended = false;
		silent.on("error", () => undefined).once("close", () => (ended = true));
		// The header of a record of 512 bytes, and then a byte now and then, buy no time.
		silent.write(Buffer.from("1603010200", "hex"));
		const drip = setInterval(() => silent.write("\x01"), 20);
		const saw = await until(() => listener.seen[0], "the timeout");
		clearInterval(drip);
		expect(errorOf(saw)).toBe("ERR_TLS_HANDSHAKE_TIMEOUT");
		await Bun.sleep(300);
		expect([ended, saw.socket.destroyed]).toEqual([false, false]);
		saw.socket.destroy();
		await until(() => ended, "the connection is closed");
	});

	test("every other failure of a handshake closes its connection, whatever the gateway does", async () => {
		const listener = await listen();
		let open = 0;
		listener.server.on("connection", (socket) => {
			open++;
			socket.once("close", () => open--);
		});
		await openssl(listener, [...h2, ...show(other)]);
		const plain = connectTCP(listener.port, "127.0.0.1");
		plain.on("error", () => undefined).write("GET / HTTP/1.1\r\n\r\n");
		await until(() => listener.seen.length === 2 && open === 0, "all closed");
		expect(listener.seen.map(errorOf)).toEqual([
			"UNABLE_TO_VERIFY_LEAF_SIGNATURE",
			"ERR_SSL_HTTP_REQUEST",
		]);
	});

	test("a connection can be destroyed before its handshake", async () => {
		const listener = await listen();
		let remote: string | undefined;
		listener.server.prependListener("connection", (socket) => {
			remote = socket.remoteAddress;
			socket.destroy();
		});
		const { error } = await dialTLS(listener.port, {
			...{ ca: serving.cert, cert: client.cert, key: client.key },
		});
		expect(error).toBe("ECONNRESET");
		expect(remote).toBe("127.0.0.1");
		await until(() => listener.seen.length > 0, "the server tells");
		expect(listener.seen.map(errorOf)).toEqual(["ECONNRESET"]);
	});
});

/** A connection by node:tls, settled: connected, or failed with this code. */
async function dialTLS(
	port: number,
	options: ConnectionOptions,
): Promise<{ socket: TLSSocket; error?: string }> {
	const socket = connect({
		host: "127.0.0.1",
		port,
		ALPNProtocols: ["h2"],
		minVersion: "TLSv1.2",
		...options,
	});
	cleanups.push(() => socket.destroy());
	return new Promise((resolve) => {
		socket.once("secureConnect", () => resolve({ socket }));
		socket.on("error", (error: NodeJS.ErrnoException) =>
			resolve({ socket, error: error.code ?? error.message }),
		);
	});
}

const echo = (socket: TLSSocket, text: string) =>
	new Promise<string>((resolve) => {
		socket.once("data", (chunk) => resolve(String(chunk)));
		socket.write(text);
	});

const closed = (socket: TLSSocket) =>
	new Promise<void>((resolve) => {
		socket.once("close", () => resolve());
		socket.resume();
	});

describe("a client", () => {
	const mine = () => ({
		ca: serving.cert,
		cert: client.cert,
		key: client.key,
	});
	/** The error of connecting, or "connected". */
	const outcome = async (port: number, options: ConnectionOptions = {}) => {
		const { socket, error } = await dialTLS(port, { ...mine(), ...options });
		return error ?? `${socket.authorized ? "" : "un"}authorized`;
	};

	test("verifies the server's certificate and name, also when the name is an address", async () => {
		const { port } = await listen();
		expect(await outcome(port)).toBe("authorized");
		expect(await outcome(port, { servername: "localhost" })).toBe("authorized");
		expect(await outcome(port, { servername: "elsewhere.example" })).toBe(
			"ERR_TLS_CERT_ALTNAME_INVALID",
		);
		expect(await outcome(port, { ca: nextServing.cert })).toBe(
			"UNABLE_TO_VERIFY_LEAF_SIGNATURE",
		);
		expect(await outcome(port, { ca: nextServing.cert + serving.cert })).toBe(
			"authorized",
		);
		// RFC 6066 section 3: an address is no server name. Given as such it throws instead of being left out.
		expect(() => connect({ port, servername: "127.0.0.1" })).toThrow(
			"ServerName to an IP address is not permitted",
		);
	});

	test("an address must be in the certificate as an address", async () => {
		const issuer = serving;
		const usage = "serverAuth";
		const [name, text, expired, wrong] = await Promise.all([
			issue(dir, "name", { extensions: leaf(usage, "DNS:localhost"), issuer }),
			issue(dir, "text", { extensions: leaf(usage, "DNS:127.0.0.1"), issuer }),
			issue(dir, "late", {
				...{ extensions: leaf(usage, "IP:127.0.0.1"), issuer, days: -1 },
			}),
			issue(dir, "no-server", {
				...{ extensions: leaf("clientAuth", "IP:127.0.0.1"), issuer },
			}),
		]);
		const to = async ({ cert, key }: Issued) =>
			outcome((await listen({ cert, key })).port);
		expect(await to(name)).toBe("ERR_TLS_CERT_ALTNAME_INVALID");
		expect(await to(text)).toBe("ERR_TLS_CERT_ALTNAME_INVALID");
		expect(await to(expired)).toBe("CERT_HAS_EXPIRED");
		expect(await to(wrong)).toBe("INVALID_PURPOSE");
	});

	test("reaches an IPv6 address by its certificate's", async () => {
		const listener = createServer({ cert: server.cert, key: server.key });
		await new Promise<void>((resolve) => listener.listen(0, "::1", resolve));
		cleanups.push(() => listener.close());
		expect(await outcome(portOf(listener), { host: "::1" })).toBe("authorized");
	});

	test("a server without ALPN is connected to, and must be turned away by what alpnProtocol says", async () => {
		const { port } = await listen({ ALPNProtocols: [] });
		const { socket } = await dialTLS(port, mine());
		expect(socket.alpnProtocol).toBe(false);
		const other = await listen({ ALPNProtocols: ["http/1.1"] });
		expect(await outcome(other.port)).toBe(
			"ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
		);
	});

	test("a pair that does not match throws at once", () => {
		expect(() => connect({ port: 1, ...mine(), key: other.key })).toThrow(
			"KEY_VALUES_MISMATCH",
		);
	});

	test("a peer that is silent or closes at once: the one waits, the other is an error", async () => {
		const silent = createTCP(() => undefined);
		await new Promise<void>((resolve) =>
			silent.listen(0, "127.0.0.1", resolve),
		);
		cleanups.push(() => silent.close());
		const pending = outcome(portOf(silent), { timeout: 50 });
		// No option ends it: the dialler needs a timer of its own.
		expect(await Promise.race([pending, Bun.sleep(300)])).toBeUndefined();
		const closing = createTCP((socket) => socket.destroy());
		await new Promise<void>((resolve) =>
			closing.listen(0, "127.0.0.1", resolve),
		);
		cleanups.push(() => closing.close());
		expect(await outcome(portOf(closing))).toBe("ECONNRESET");
	});
});

describe("flow control", () => {
	const CHUNK = 65_536;
	/** A client that can be stopped and let go on like a process. */
	const stoppable = ({ port }: Listener, stdin: "pipe" | Blob) => {
		const child = Bun.spawn(
			[
				...["openssl", "s_client", "-quiet", ...h2, ...show(client)],
				...["-connect", `127.0.0.1:${port}`],
			],
			{ stdin, stdout: "ignore", stderr: "ignore" },
		);
		cleanups.push(() => child.kill("SIGKILL"));
		return child;
	};
	/** Awaits that a number has been the same for 300 ms. */
	const settled = async (value: () => number) => {
		let last = -1;
		let since = performance.now();
		return until(() => {
			if (value() !== last) since = performance.now();
			last = value();
			return performance.now() - since > 300 && last >= 0;
		}, "it stays the same");
	};

	test("write returns false while the peer does not read, then drain; what is unsent is counted and told", async () => {
		const listener = await listen({}, () => undefined);
		const child = stoppable(listener, "pipe");
		const { socket } = await until(() => listener.seen[0], "the handshake");
		child.kill("SIGSTOP");
		let drains = 0;
		let done = 0;
		let written = 0;
		const fill = () => {
			while (written < 1000) {
				written++;
				const more = socket.write(Buffer.alloc(CHUNK), () => done++);
				if (!more) return;
			}
		};
		socket.on("drain", () => {
			drains++;
			fill();
		});
		fill();
		await settled(() => written);
		// What the two kernels hold; the rest waits here.
		expect(written).toBeLessThan(500);
		expect(socket.writableLength).toBeGreaterThan(0);
		expect(socket.writableLength).toBeLessThanOrEqual(2 * CHUNK);
		expect(done).toBeLessThan(written);
		expect(socket.writableNeedDrain).toBe(true);
		const before = drains;
		child.kill("SIGCONT");
		await until(() => done === 1000, "all is sent");
		expect(socket.writableLength).toBe(0);
		expect(drains).toBeGreaterThan(before);
	});

	test("whoever does not heed it has all of it in memory, counted by writableLength; destroy ends it with close, which alone can be relied on", async () => {
		const listener = await listen({}, () => undefined);
		const child = stoppable(listener, "pipe");
		const { socket } = await until(() => listener.seen[0], "the handshake");
		child.kill("SIGSTOP");
		let answered = 0;
		for (let index = 0; index < 400; index++)
			socket.write(Buffer.alloc(CHUNK), () => answered++);
		await settled(() => answered);
		expect(answered).toBeLessThan(200);
		expect(socket.writableLength).toBe((400 - answered) * CHUNK);
		let isClosed = false;
		socket.once("close", () => {
			isClosed = true;
		});
		// The callbacks of the writes are called or not: https://github.com/oven-sh/bun/pull/43250
		socket.destroy();
		await until(() => isClosed, "it is closed");
	});

	test("end waits for a peer that does not read, however long", async () => {
		const listener = await listen({}, () => undefined);
		const child = stoppable(listener, "pipe");
		const { socket } = await until(() => listener.seen[0], "the handshake");
		child.kill("SIGSTOP");
		for (let index = 0; index < 400; index++) socket.write(Buffer.alloc(CHUNK));
		let isClosed = false;
		socket.once("close", () => {
			isClosed = true;
		});
		socket.end();
		await Bun.sleep(300);
		expect(isClosed).toBe(false);
		child.kill("SIGCONT");
		await until(() => isClosed, "it is closed");
	});

	test("pause stops reading from the kernel but for what is read already, resume gives all", async () => {
		let got = 0;
		const limit = 2_000_000;
		const listener = await listen({}, (socket) => {
			socket.on("data", (chunk: Buffer) => {
				const first = got < limit && got + chunk.length >= limit;
				got += chunk.length;
				if (first) socket.pause();
			});
		});
		const size = 64 * 1024 * 1024;
		stoppable(listener, new Blob([new Uint8Array(size)]));
		const { socket } = await until(() => listener.seen[0], "the handshake");
		await until(() => got >= limit, "something has come");
		await settled(() => socket.bytesRead);
		expect(socket.bytesRead).toBeLessThan(limit + 2 * 1024 * 1024);
		const paused = got;
		await Bun.sleep(100);
		expect(got).toBe(paused);
		socket.resume();
		await until(() => got === size, "all has come");
	});
});
