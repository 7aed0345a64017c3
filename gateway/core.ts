/** Connections to the members of the core etcd: checked, balanced, dialled again after a while. */
import { connect, type TLSSocket } from "node:tls";
import { Code } from "../etcd.ts";
import { free, prefix, readTrailers } from "../grpc.ts";
import {
	ErrorCode,
	type Header,
	Session,
	type Stream,
	type StreamEvents,
} from "../http2.ts";
import { overSocket } from "./socket.ts";

/** Between attempts to reach a member: doubled from one to the other, and drawn from the upper half. */
const BACKOFF_MS = { first: 100, last: 10_000 };
/** https://github.com/etcd-io/etcd/blob/v3.7.3/server/embed/etcd.go: --max-concurrent-streams has no limit unless told. */
const INITIAL_WINDOW = 65_535;
const DIAL_TIMEOUT_MS = 5_000;
const NO_HTTP2 = "it does not speak HTTP/2; is it an etcd's client port?";

export interface CoreOptions {
	/** https://host:port of the members. */
	endpoints: string[];
	/** Asked at every dial. PEM. */
	credentials(): { cert: string; key: string; ca: string };
	/** Between checks of a member. */
	keepaliveMs: number;
	/** How long a member may take to answer one. */
	keepaliveTimeoutMs: number;
	/** The message of a RangeRequest that anybody may make: https://github.com/etcd-io/etcd/blob/v3.7.3/server/etcdserver/api/etcdhttp/health.go */
	healthRequest: Uint8Array;
	onState(endpoint: string, state: MemberState, reason: string): void;
}

/** `unhealthy`: connected, but it cannot read consistently, as without a leader. */
export type MemberState = "disconnected" | "unhealthy" | "healthy";

export class Core {
	readonly members: readonly Member[];
	#turn = 0;

	constructor(options: CoreOptions) {
		this.members = options.endpoints.map((url) => new Member(url, options));
	}

	get healthy(): boolean {
		return this.members.some((member) => member.state === "healthy");
	}

	/** Why no member is healthy, for people. */
	get reason(): string {
		return this.members
			.map(({ url, reason }) => `${url}: ${reason || "takes no more requests"}`)
			.join("; ");
	}

	start(): void {
		for (const member of this.members) member.start();
	}

	stop(): void {
		for (const member of this.members) member.stop();
	}

	/**
	 * A connection for one call: to the healthy members in turn, else to any that is connected, which then answers itself
	 * what it can and cannot do.
	 */
	pick(): Member | undefined {
		const { members } = this;
		let fallback: Member | undefined;
		for (let tried = 0; tried < members.length; tried++) {
			this.#turn = (this.#turn + 1) % members.length;
			const member = members[this.#turn];
			if (!member?.available) continue;
			if (member.state === "healthy") return member;
			fallback ??= member;
		}
		return fallback;
	}
}

/** One member of the core, and the connection to it. */
export class Member {
	readonly url: string;
	readonly #options: CoreOptions;
	readonly #address: { host: string; port: number; authority: string };
	state: MemberState = "disconnected";
	reason = "not yet connected";
	#socket: TLSSocket | undefined;
	#session: Session | undefined;
	#timer: NodeJS.Timeout | undefined;
	#failures = 0;
	#stopped = false;
	/** Bytes have come since the last check. */
	#heard = false;

	constructor(url: string, options: CoreOptions) {
		this.url = url;
		this.#options = options;
		const { hostname, port, host } = new URL(url);
		this.#address = {
			host: hostname.replace(/^\[|\]$/g, ""),
			port: port === "" ? 443 : Number(port),
			authority: host,
		};
	}

	get available(): boolean {
		return this.#session?.available === true;
	}

	/** @param headers of gRPC, after those of HTTP. Only when `available`. */
	request(path: string, headers: Header[], events: StreamEvents): Stream {
		return (this.#session as Session).request(
			[
				[":method", "POST"],
				[":scheme", "https"],
				[":path", path],
				[":authority", this.#address.authority],
				["content-type", "application/grpc"],
				["te", "trailers"],
				["user-agent", "etcdproxy-gateway"],
				...headers,
			],
			events,
		);
	}

	start(): void {
		this.#dial();
	}

	stop(): void {
		this.#stopped = true;
		clearTimeout(this.#timer);
		this.#session?.close(ErrorCode.NO_ERROR, "the gateway ends");
	}

	#dial(): void {
		const { cert, key, ca } = this.#options.credentials();
		const { host, port } = this.#address;
		const socket = connect({
			host,
			port,
			// An address is no server name (RFC 6066 section 3); it is checked against the certificate all the same.
			...(/^[\d.]+$|:/.test(host) ? {} : { servername: host }),
			cert,
			key,
			ca,
			minVersion: "TLSv1.2",
			ALPNProtocols: ["h2"],
		});
		this.#socket = socket;
		let failure = "the connection was closed";
		const timeout = setTimeout(() => {
			failure = `no connection within ${DIAL_TIMEOUT_MS / 1000} s`;
			socket.destroy();
		}, DIAL_TIMEOUT_MS);
		socket.setNoDelay(true);
		socket.on("error", (error) => {
			failure = inWords(error, host);
		});
		socket.once("secureConnect", () => {
			clearTimeout(timeout);
			if (socket.alpnProtocol === "h2") return this.#connected(socket);
			failure = NO_HTTP2;
			socket.destroy();
		});
		socket.once("close", () => {
			clearTimeout(timeout);
			const session = this.#session;
			this.#lost(failure);
			session?.disconnected(failure);
		});
	}

	#connected(socket: TLSSocket): void {
		const session = new Session({
			role: "client",
			transport: overSocket(socket),
			initialWindow: INITIAL_WINDOW,
			onGoaway: () => this.#replace(session),
			onClose: (error) => {
				if (error !== undefined) socket.destroy(new Error(error));
			},
		});
		socket.on("data", (chunk: Buffer) => {
			this.#heard = true;
			session.receive(chunk);
			free(chunk);
		});
		this.#session = session;
		this.#check();
	}

	/** The member wants to be rid of this connection, whose calls go on: the next one now. */
	#replace(session: Session): void {
		if (this.#session !== session || this.#stopped) return;
		this.#session = undefined;
		this.#socket?.removeAllListeners("close");
		this.#socket?.once("close", () => session.disconnected());
		this.#set("disconnected", "the member closes its connections");
		clearTimeout(this.#timer);
		this.#dial();
	}

	#lost(reason: string): void {
		this.#session = undefined;
		this.#socket = undefined;
		clearTimeout(this.#timer);
		if (this.#stopped) return;
		this.#set("disconnected", reason);
		const limit = Math.min(
			BACKOFF_MS.last,
			BACKOFF_MS.first * 2 ** this.#failures++,
		);
		// Jitter, or all gateways would come at once to a member that has just started.
		const wait = limit * (0.5 + Math.random() / 2);
		this.#timer = setTimeout(() => this.#dial(), wait);
	}

	/** A consistent read now, and again after a while. One that is not answered ends the connection, unless others are. */
	#check(): void {
		const session = this.#session;
		const socket = this.#socket;
		if (!session || !socket) return;
		this.#heard = false;
		const finish = (state: MemberState, reason: string) => {
			clearTimeout(timeout);
			if (this.#session !== session) return;
			if (state === "healthy") this.#failures = 0;
			this.#set(state, reason);
			clearTimeout(this.#timer);
			this.#timer = setTimeout(
				() => this.#check(),
				// Anybody waiting for a member to come back waits no longer than needed.
				state === "healthy"
					? this.#options.keepaliveMs
					: Math.min(this.#options.keepaliveMs, 1_000),
			);
		};
		const ended = (headers: Header[]) => {
			const { code, message } = readTrailers(headers);
			const healthy =
				code !== Code.UNAVAILABLE &&
				code !== Code.DEADLINE_EXCEEDED &&
				code !== Code.UNKNOWN;
			finish(healthy ? "healthy" : "unhealthy", message);
		};
		const { healthRequest, keepaliveTimeoutMs } = this.#options;
		session.ping();
		// Without, when the member does not take what is sent: all the more it has to give a sign of life.
		const stream = session.available
			? this.request("/etcdserverpb.KV/Range", [], {
					onHeaders: (headers, end) => {
						if (end) ended(headers);
					},
					onData: () => undefined,
					onReset: (code) => finish("unhealthy", `stream reset (${code})`),
				})
			: undefined;
		stream?.data(prefix(healthRequest.length));
		stream?.data(healthRequest, true);
		const timeout = setTimeout(() => {
			stream?.reset(ErrorCode.CANCEL);
			const reason = `no answer within ${keepaliveTimeoutMs / 1000} s`;
			if (this.#heard) finish("unhealthy", reason);
			else socket.destroy(new Error(reason));
		}, keepaliveTimeoutMs);
	}

	#set(state: MemberState, reason: string): void {
		const changed = state !== this.state || reason !== this.reason;
		this.state = state;
		this.reason = reason;
		if (changed) this.#options.onState(this.url, state, reason);
	}
}

/** The member's certificate cannot be verified: https://docs.openssl.org/3.0/man1/openssl-verification-options/ */
const NOT_SIGNED = new Set([
	"DEPTH_ZERO_SELF_SIGNED_CERT",
	"SELF_SIGNED_CERT_IN_CHAIN",
	"UNABLE_TO_GET_ISSUER_CERT",
	"UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
	"UNABLE_TO_VERIFY_LEAF_SIGNATURE",
]);

/** Why there is no connection, after "it" or "its": OpenSSL's own words are for those who know its source. */
function inWords(
	{ code = "", message }: NodeJS.ErrnoException,
	host: string,
): string {
	if (NOT_SIGNED.has(code))
		return "its certificate is not signed by a CA of --cacert";
	switch (code) {
		case "ERR_TLS_CERT_ALTNAME_INVALID":
			return `its certificate is not for ${host}`;
		case "CERT_HAS_EXPIRED":
			return "its certificate has expired";
		case "CERT_NOT_YET_VALID":
			return "its certificate is not valid yet";
		case "ERR_SSL_WRONG_VERSION_NUMBER":
			return "it does not speak TLS";
		case "ECONNREFUSED":
			return "it refuses connections";
		case "ENOTFOUND":
			return `its name ${host} cannot be resolved`;
	}
	// https://www.rfc-editor.org/rfc/rfc8446#section-6.2
	const alert = /_ALERT_(.*)$/.exec(code)?.[1] ?? "";
	if (alert === "NO_APPLICATION_PROTOCOL") return NO_HTTP2;
	if (/CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED/.test(alert))
		return `it does not accept the client certificate of --cert (${alert.toLowerCase().replaceAll("_", " ")})`;
	return message;
}
