/** The listener of one tenant: TLS, its connections, what they may ask, and their end. */
import { X509Certificate } from "node:crypto";
import {
	createServer,
	type SecureContextOptions,
	type Server,
	type TLSSocket,
} from "node:tls";
import {
	methods,
	type RefusedMethod,
	type ServedMethod,
	type Tenant,
	tenant as tenantOf,
	UNKNOWN_METHOD,
} from "../etcd.ts";
import { RESPONSE_HEADERS, trailers } from "../grpc.ts";
import {
	ErrorCode,
	type Header,
	Session,
	type Stream,
	type StreamEvents,
} from "../http2.ts";
import type { Log } from "../log.ts";
import { Budget } from "./budget.ts";
import { Call, type CallContext, drawLease, INITIAL_WINDOW } from "./call.ts";
import type { Core } from "./core.ts";
import {
	CredentialFiles,
	type Credentials,
	type CredentialsError,
	distrust,
	type Peer,
	peerOf,
} from "./credentials.ts";
import { codeName, type GatewayMetrics } from "./metrics.ts";
import { overSocket } from "./socket.ts";

/** A client that does not finish its TLS handshake. */
const HANDSHAKE_TIMEOUT_MS = 10_000;
/** A client that has been silent is asked for a sign of life, and given up one round later. */
const CLIENT_PING_MS = 30_000;
/** What a client has to answer that it knows of the end, then to close its connection. */
const GOAWAY_MS = 2_000;
const LINGER_MS = 5_000;

/** The same reason to refuse a client is logged once in this time, and not more reasons than these are remembered. */
const REFUSAL_LOG_MS = 10_000;
const MAX_REFUSALS = 100;

/** How much a tenant may ask of the gateway at once. */
export interface Budgets {
	maxConnections: number;
	/** Per connection. */
	maxStreams: number;
	/** Per connection. */
	maxWatches: number;
	maxRequestBytes: number;
	maxBytesInFlight: number;
}

export interface TenantOptions {
	/** For metrics and log lines. */
	name: string;
	/** Of all its keys, e.g. "/name/". */
	prefix: string;
	/** Where its clients reach it, for MemberList. */
	url: string;
	listen: { host: string; port: number };
	files: { cert: string; key: string; ca: string };
	budgets: Budgets;
}

interface Connection {
	session: Session;
	socket: TLSSocket;
	peer: Peer;
	calls: Set<Call>;
	watches: number;
	/** Of its certificate, epoch milliseconds. */
	notAfter: number;
	/** Bytes have come since the last round. */
	heard: boolean;
	/** It takes no new requests. */
	winding: boolean;
}

/** The listener of one tenant, its connections and its budgets. */
export class Listener {
	readonly name: string;
	readonly budget: Budget;
	readonly files: CredentialFiles;
	readonly #options: TenantOptions;
	readonly #core: Core;
	readonly #metrics: GatewayMetrics;
	readonly #log: Log;
	readonly #tenant: Tenant;
	readonly #connections = new Set<Connection>();
	/** With those that are still in their handshake. */
	#sockets = 0;
	/** When a reason to refuse a client was last logged. */
	#refusals: Record<string, number> = {};
	#server: Server | undefined;
	#clientCA: string | undefined;
	#draining = false;
	#drained: (() => void) | undefined;
	#pings: NodeJS.Timeout | undefined;

	constructor(
		options: TenantOptions,
		core: Core,
		metrics: GatewayMetrics,
		log: Log,
	) {
		this.name = options.name;
		this.#options = options;
		this.#core = core;
		this.#metrics = metrics;
		this.#log = log;
		this.#tenant = tenantOf(options.prefix, options.url);
		this.budget = new Budget(options.budgets.maxBytesInFlight);
		this.files = new CredentialFiles(options.files, {
			onLoad: (credentials, changed) => this.#onLoad(credentials, changed),
			onError: (error) => this.#onFileError(error),
			onWarning: (message) => log("WARN", message, options.name),
		});
	}

	get connections(): number {
		return this.#connections.size;
	}

	get streams(): number {
		return [...this.#connections].reduce(
			(sum, { calls }) => sum + calls.size,
			0,
		);
	}

	get watches(): number {
		return [...this.#connections].reduce((sum, one) => sum + one.watches, 0);
	}

	/**
	 * SHA-256, in hex, of the bundle that each connection there is has been verified with, and each new one will be;
	 * undefined before it listens.
	 */
	get clientCA(): string | undefined {
		return this.#clientCA;
	}

	/** Loads the files and listens. @returns the port @throws CredentialsError; Error when the address is in use */
	async listen(): Promise<number> {
		const credentials = await this.files.load();
		const server = createServer({
			...tlsContext(credentials),
			requestCert: true,
			rejectUnauthorized: true,
			ALPNProtocols: ["h2"],
			handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
			noDelay: true,
		});
		this.#server = server;
		server.on("connection", (socket) => {
			this.#sockets++;
			socket.once("close", () => this.#sockets--);
			if (this.#sockets <= this.#options.budgets.maxConnections) return;
			this.#metrics.cuts.inc({ tenant: this.name, budget: "connections" });
			socket.destroy();
		});
		server.on("tlsClientError", (error, socket) => {
			this.#refused(`TLS handshake: ${error.message}`);
			// Of one that does not end, Bun leaves that to us.
			socket.destroy();
		});
		server.on("secureConnection", (socket) => this.#onConnection(socket));
		const { host, port } = this.#options.listen;
		await new Promise<void>((resolve, reject) => {
			server.once("error", reject);
			server.listen(port, host, resolve);
		});
		this.#clientCA = credentials.caHash;
		this.files.start();
		this.#pings = setInterval(() => this.#pingAll(), CLIENT_PING_MS);
		const address = server.address();
		return typeof address === "object" && address ? address.port : port;
	}

	/** No new connections; what can be taken up elsewhere ends, the rest finishes. */
	async drain(timeoutMs: number): Promise<void> {
		this.#draining = true;
		this.#server?.close();
		for (const connection of this.#connections) this.#wind(connection);
		const timeout = setTimeout(() => this.#drained?.(), timeoutMs);
		await new Promise<void>((resolve) => {
			this.#drained = resolve;
			if (this.#connections.size === 0) resolve();
		});
		clearTimeout(timeout);
		const left = this.streams;
		if (left > 0)
			this.#log("WARN", `${left} requests did not end in time`, this.name);
		this.stop();
	}

	/** At once. */
	stop(): void {
		clearInterval(this.#pings);
		this.files.stop();
		this.#server?.close();
		for (const { socket } of this.#connections) socket.destroy();
	}

	#onConnection(socket: TLSSocket): void {
		// "close" follows, and says all there is to do.
		socket.on("error", () => undefined);
		const peer = peerOf(socket);
		const reason = this.#distrust(peer);
		if (!peer || reason !== undefined || socket.alpnProtocol !== "h2") {
			this.#refused(reason ?? "the client does not speak HTTP/2");
			socket.destroy();
			return;
		}
		socket.setNoDelay(true);
		const connection: Connection = {
			socket,
			peer,
			calls: new Set(),
			notAfter: Date.parse(new X509Certificate(peer.certificate).validTo),
			watches: 0,
			heard: true,
			winding: false,
			session: new Session({
				role: "server",
				transport: overSocket(socket),
				maxConcurrentStreams: this.#options.budgets.maxStreams,
				initialWindow: INITIAL_WINDOW,
				onStream: (stream, headers, ended) =>
					this.#onStream(connection, stream, headers, ended),
				onPong: () => {
					if (connection.winding) connection.session.goaway(true);
				},
				onClose: () => {
					const linger = setTimeout(() => socket.destroy(), LINGER_MS);
					socket.once("close", () => clearTimeout(linger));
				},
			}),
		};
		this.#connections.add(connection);
		socket.on("data", (chunk: Buffer) => {
			connection.heard = true;
			connection.session.receive(chunk);
		});
		socket.once("close", () => {
			connection.session.disconnected();
			this.#connections.delete(connection);
			if (this.#connections.size === 0) this.#drained?.();
		});
		if (this.#draining) this.#wind(connection);
	}

	#onStream(
		connection: Connection,
		stream: Stream,
		headers: Header[],
		ended: boolean,
	): StreamEvents {
		const path = headers.find(([name]) => name === ":path")?.[1] ?? "";
		const method = methods.get(path) ?? UNKNOWN_METHOD;
		if ("refused" in method) return this.#refuse(stream, method, path);
		const call = new Call(
			this.#callContext(connection),
			method,
			stream,
			headers,
		);
		connection.calls.add(call);
		call.start();
		if (ended) call.onHeaders();
		if (connection.winding) call.drain();
		return call;
	}

	#refuse(
		stream: Stream,
		{ code, refused }: RefusedMethod,
		path: string,
	): StreamEvents {
		const method = methods.has(path) ? path : "unknown";
		this.#metrics.refusals.inc({ tenant: this.name, method });
		stream.headers([...RESPONSE_HEADERS, ...trailers(code, refused)], true);
		return NOBODY;
	}

	#callContext(connection: Connection): CallContext {
		const { name } = this;
		const { budgets } = this.#options;
		const bytes = this.#metrics.bytes(name);
		return {
			connection,
			tenant: this.#tenant,
			core: this.#core,
			budget: this.budget,
			maxRequestBytes: budgets.maxRequestBytes,
			addWatch: () => {
				if (connection.watches >= budgets.maxWatches) return false;
				connection.watches++;
				return true;
			},
			removeWatches: (count) => {
				connection.watches -= count;
			},
			freshLease: drawLease,
			sent: (count) => {
				bytes.sent += count;
			},
			received: (count) => {
				bytes.received += count;
			},
			onBug: (error, { path }) =>
				this.#log("ERROR", `${path}: ${Bun.inspect(error)}`, name),
			onEnd: (method, code, call) => {
				connection.calls.delete(call);
				this.#count(method, code, call);
			},
		};
	}

	#count({ path, kind }: ServedMethod, code: number, call: Call): void {
		const [, service = "", method = ""] = path.split("/");
		const tenant = this.name;
		this.#metrics.requests.inc({
			tenant,
			service,
			method,
			code: codeName(code),
		});
		if (kind !== "bidi")
			this.#metrics.seconds.observe(
				{ tenant, method },
				(performance.now() - call.started) / 1000,
			);
		if (method === "Compact") this.#metrics.compactions.inc({ tenant });
		if (call.overBudget)
			this.#metrics.cuts.inc({ tenant, budget: call.overBudget });
	}

	/** Why a connection is not, or no longer, to be trusted; TLS itself has verified the chain when it was made. */
	#distrust(peer: Peer | undefined): string | undefined {
		const { ca = "" } = this.files.current ?? {};
		return peer ? distrust(peer, ca, Date.now()) : "it shows no certificate";
	}

	#onLoad(
		credentials: Credentials,
		changed: { pair: boolean; ca: boolean },
	): void {
		if (!this.#server) return;
		this.#server.setSecureContext(tlsContext(credentials));
		this.#metrics.reloads.inc({
			tenant: this.name,
			files: "server",
			result: "loaded",
		});
		this.#log(
			"INFO",
			`${[changed.pair && "serving certificate", changed.ca && "client CA bundle"].filter(Boolean).join(" and ")} reloaded`,
			this.name,
		);
		if (!changed.ca) return;
		for (const { peer, session } of [...this.#connections]) {
			const reason = this.#distrust(peer);
			if (reason === undefined) continue;
			this.#refused(reason);
			session.close(
				ErrorCode.NO_ERROR,
				"the client certificate is not trusted any more",
			);
		}
		this.#clientCA = credentials.caHash;
	}

	/** Nothing new on this connection: what can be taken up elsewhere ends, the rest finishes. */
	#wind(connection: Connection): void {
		const { session, socket, calls } = connection;
		connection.winding = true;
		// https://www.rfc-editor.org/rfc/rfc9113#section-6.8: announced first, for what is under way.
		session.goaway(false);
		session.ping();
		for (const call of [...calls]) call.drain();
		// Not waited for any longer: a client that is asleep has begun nothing new.
		const final = setTimeout(() => session.goaway(true), GOAWAY_MS);
		socket.once("close", () => clearTimeout(final));
	}

	#onFileError(error: CredentialsError): void {
		this.#metrics.reloads.inc({
			tenant: this.name,
			files: "server",
			result: "failed",
		});
		this.#log(
			"ERROR",
			`${error.message}; the old files stay in use`,
			this.name,
		);
	}

	#refused(reason: string): void {
		this.#metrics.handshakes.inc({ tenant: this.name });
		// A client that comes again and again is counted, and named now and then.
		const now = performance.now();
		const { [reason]: last = Number.NEGATIVE_INFINITY } = this.#refusals;
		if (now - last < REFUSAL_LOG_MS) return;
		if (Object.keys(this.#refusals).length >= MAX_REFUSALS) this.#refusals = {};
		this.#refusals[reason] = now;
		this.#log("WARN", `a client was refused: ${reason}`, this.name);
	}

	#pingAll(): void {
		for (const connection of this.#connections) {
			if (!connection.heard) connection.socket.destroy();
			// The client comes back with its renewed one.
			else if (connection.notAfter < Date.now() && !connection.winding)
				this.#wind(connection);
			else connection.session.ping();
			connection.heard = false;
		}
	}
}

const tlsContext = ({ cert, key, ca }: Credentials): SecureContextOptions => ({
	cert,
	key,
	ca,
	minVersion: "TLSv1.2",
	// As Go has it, and distrust(): each certificate of the bundle is an authority, self-signed or not.
	allowPartialTrustChain: true,
});

/** Nobody is told what else comes on a stream that was refused. */
const NOBODY: StreamEvents = {
	onHeaders: () => undefined,
	onData: () => undefined,
	onReset: () => undefined,
};
