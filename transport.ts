/**
 * Requests to the API server: connection, credentials, time limits, retries.
 *
 * It is Bun's `fetch` over one HTTP/2 connection. Bun 1.4.5 against a Go
 * TLS server on the same two cores, 2800 requests of 2-3 kB, client's CPU and
 * TCP connections in brackets:
 *
 *     at once  fetch, HTTP/2          fetch, HTTP/1.1           node:http2
 *     10       14 400/s (0.13 s, 1)   14 600/s (0.10 s, 10)     6 100/s (0.36 s, 1)
 *     200      16 900/s (0.12 s, 1)    1 000/s (1.12 s, 804)    5 800/s (0.37 s, 1)
 *
 * A GOAWAY, with which an API server spreads its clients, costs no request with
 * fetch, and every further one with node:http2 (unless one dials anew oneself).
 * A `FetchSession` shares no connection with another: a new one is the way out
 * of a dead connection, and the way to a renewed client certificate.
 */
import {
	type Credentials,
	type KubeConfig,
	readCredentials,
	renewed,
} from "./kubeconfig.ts";
import {
	ApiError,
	type Kind,
	kinds,
	type Status,
	type Target,
} from "./objects.ts";

export interface RequestReport {
	verb: string;
	kind: string;
	/** The HTTP status; 0 when there was no answer. */
	code: number;
	/** Until the headers of the answer. */
	seconds: number;
	/** The API server's clock: the `Date` header of an answer that is its own, and good. */
	date?: string;
}

export interface TransportOptions {
	/** Owner of the fields this client writes, and its User-Agent. */
	fieldManager: string;
	/** How long a request may take; 30 000 unless told. */
	requestTimeoutMs?: number;
	/** Silence on a watch after which to ask for a sign of life; 12 000 unless told. */
	pingMs?: number;
	/** Asked right before every write, again before it is repeated: the reason why there must be none now. */
	fence?(): string | undefined;
	/** Called after every attempt of every request. */
	onRequest?(report: RequestReport): void;
}

export interface Call {
	verb: keyof typeof methods;
	target: Target;
	query?: Record<string, string>;
	/** `proxy/PATH`: answered by the pod itself. */
	subresource?: "status" | `proxy/${string}` | undefined;
	body?: object;
	contentType?: string;
	timeoutMs?: number;
	signal?: AbortSignal;
}

export interface Connection {
	session: Bun.FetchSession;
	headers: Record<string, string>;
	/** The TLS material that the session was made with. */
	identity: string;
	/** Behind a proxy, or with --disable-http2-serving, there is no HTTP/2. */
	protocol: "http2" | "http1.1";
	/** When the server was last heard, by performance.now(). */
	heardAt: number;
	/** Aborted when the server no longer answers on this connection. */
	lost: AbortController;
}

/** What `fetch` throws: `code` is Bun's, or a number of the DOM's. */
type NetworkError = Error & { code?: string | number };

export const JSON_PATCH = "application/json-patch+json";
/** Without HTTP/2 a server chooses HTTP/1.1 all the same, or breaks off (Go). */
const NO_HTTP2 = ["HTTP2Unsupported", "EPROTO"];
const methods = {
	get: "GET",
	list: "GET",
	watch: "GET",
	ping: "GET",
	create: "POST",
	apply: "PATCH",
	patch: "PATCH",
};

/**
 * Credentials are read for every request, as tokens and certificates rotate.
 * Where the server says "later" (Retry-After) and repeating is safe, it is tried
 * three times within the request's timeout.
 */
export class Transport {
	#config: KubeConfig;
	readonly #options: TransportOptions;
	#credentials: Promise<Credentials> | undefined;
	#connection: Connection | undefined;

	constructor(config: KubeConfig, options: TransportOptions) {
		this.#config = config;
		this.#options = options;
	}

	async request<T>(call: Call): Promise<T> {
		const { requestTimeoutMs = 30_000 } = this.#options;
		const timeoutMs = call.timeoutMs ?? requestTimeoutMs;
		const end = performance.now() + timeoutMs;
		const once = call.verb === "create" || call.contentType === JSON_PATCH;
		for (let tries = 1; ; tries++) {
			const connection = await this.connect(call);
			// A session that is closed leaves its requests to wait for their own timeouts.
			const signals = [AbortSignal.timeout(timeoutMs), connection.lost.signal];
			if (call.signal) signals.push(call.signal);
			const signal = AbortSignal.any(signals);
			try {
				const response = await this.exchange(call, connection, signal);
				return (await response.json()) as T;
			} catch (cause) {
				const error = this.failure(call, connection, cause);
				const { retryAfterMs = Number.POSITIVE_INFINITY } = error;
				const tooLate = performance.now() + retryAfterMs > end;
				if (once || tries === 3 || tooLate) throw error;
				await sleep(retryAfterMs, call.signal);
			}
		}
	}

	/** @throws ApiError with the reason "Fenced" */
	#checkFence({ verb, target }: Call): void {
		if (methods[verb] === "GET") return;
		const message = this.#options.fence?.();
		if (message !== undefined)
			throw new ApiError(verb, target, { reason: "Fenced", message });
	}

	/** Sends the call; an answer other than 2xx is thrown. The body is still to come. */
	async exchange(
		call: Call,
		connection: Connection,
		signal: AbortSignal,
	): Promise<Response> {
		const { body, contentType = "application/json" } = call;
		const url = `${this.#server()}${pathOf(call)}?${new URLSearchParams(call.query)}`;
		const started = performance.now();
		let code = 0;
		let date: string | null = null;
		const send = () =>
			fetch(url, {
				method: methods[call.verb],
				headers: {
					...connection.headers,
					"User-Agent": this.#options.fieldManager,
					Accept: "application/json",
					...(body && { "Content-Type": contentType }),
				},
				...(body && { body: JSON.stringify(body) }),
				session: connection.session,
				protocol: connection.protocol,
				redirect: "manual",
				signal,
			});
		this.#checkFence(call);
		try {
			const response = await send().catch((error) => {
				if (!NO_HTTP2.includes(error.code)) throw error;
				connection.protocol = "http1.1";
				this.#checkFence(call);
				return send();
			});
			code = response.status;
			connection.heardAt = performance.now();
			if (!response.ok) throw await refusal(call, response);
			// Handed through from a pod, it would be the clock of another machine.
			if (!call.subresource?.startsWith("proxy/"))
				date = response.headers.get("date");
			return response;
		} finally {
			this.#options.onRequest?.({
				verb: call.verb,
				kind: call.target.kind,
				code,
				seconds: (performance.now() - started) / 1000,
				...(date !== null && { date }),
			});
		}
	}

	/** The connection that goes with the credentials as they are now. */
	async connect(call: Call): Promise<Connection> {
		// Many requests at once start one exec plugin, not many.
		this.#credentials ??= readCredentials(this.#config).finally(() => {
			this.#credentials = undefined;
		});
		const { tls, headers } = await this.#credentials.catch((cause) => {
			const message =
				cause instanceof SyntaxError
					? "the exec plugin's output is no ExecCredential"
					: cause.message;
			throw new ApiError(call.verb, call.target, {
				reason: "NoCredentials",
				message,
			});
		});
		const identity = JSON.stringify(tls);
		if (this.#connection?.identity !== identity) {
			if (this.#connection)
				this.#hangUp(this.#connection, "its credentials have changed");
			const proxy = this.#config.getCurrentCluster()?.proxyUrl;
			const session = new Bun.FetchSession({ tls, proxy });
			this.#connection = {
				session,
				headers,
				identity,
				protocol: "http2",
				heardAt: performance.now(),
				lost: new AbortController(),
			};
		}
		return Object.assign(this.#connection, { headers });
	}

	#server(): string {
		return this.#config.getCurrentCluster()?.server ?? "";
	}

	/**
	 * A connection can die without either end being told (a lost node, a forgotten
	 * NAT entry), and a watch only listens. Any answer to this is a sign of life;
	 * without one `failure` hangs up. Should the watch be on another connection
	 * than the requests (HTTP/1.1, or a GOAWAY came in between), it is `overdue`
	 * that ends it.
	 */
	async ping(connection: Connection, timeoutMs: number): Promise<void> {
		if (performance.now() - connection.heardAt < timeoutMs) return;
		const target = { apiVersion: "v1", kind: "" };
		await this.request({ verb: "ping", target, timeoutMs }).catch((error) => {
			if (!(error instanceof ApiError)) throw error;
		});
	}

	#hangUp(connection: Connection, reason: string): void {
		if (this.#connection === connection) this.#connection = undefined;
		connection.lost.abort(new Error(reason));
		connection.session.close();
	}

	/** The error to throw for what a request threw; hangs up where the network is to blame. */
	failure(call: Call, connection: Connection, cause: unknown): ApiError {
		if (cause instanceof ApiError) {
			// A copy reads tokens and runs exec plugins anew: the ones it has cached are refused.
			if (cause.code === 401) this.#config = renewed(this.#config);
			return cause;
		}
		// No cause here, nor its message: they quote the text, which may be a Secret's.
		if (cause instanceof SyntaxError)
			return new ApiError(call.verb, call.target, {
				reason: "Malformed",
				message: "the answer is not what the API server sends",
			});
		const why = explain(cause as NetworkError);
		const message = `${this.#server()}: ${why}`;
		if (!call.signal?.aborted) this.#hangUp(connection, why);
		return new ApiError(
			call.verb,
			call.target,
			{ reason: "Unreachable", message },
			cause,
		);
	}
}

function pathOf({ verb, target, subresource }: Call): string {
	if (verb === "ping") return "/version";
	const { apiVersion, kind, namespace, name = "" } = target;
	const group = `/${apiVersion.includes("/") ? "apis" : "api"}/${apiVersion}/`;
	const { plural, namespaced } = kinds[kind as Kind];
	const path = namespaced && namespace ? ["namespaces", namespace] : [];
	path.push(plural);
	if (!["list", "watch", "create"].includes(verb)) path.push(name);
	if (subresource) path.push(...subresource.split("/"));
	// Names come from users, and the API server decodes a path before it splits it: none may lead to another resource.
	// What follows a colon is a pod's port.
	if (path.some((part) => /^\.{0,2}(:|$)|[/%]/.test(part))) {
		const message = "a name must not be empty, . or .., nor contain / or %";
		throw new ApiError(verb, target, { code: 400, reason: "Invalid", message });
	}
	return group + path.map(encodeURIComponent).join("/");
}

async function refusal(call: Call, response: Response): Promise<ApiError> {
	const isStatus = response.headers.get("content-type")?.includes("json");
	const status: Status = isStatus
		? ((await response.json()) as Status)
		: { message: response.statusText };
	const header = Number(response.headers.get("retry-after"));
	const retryAfterSeconds = header || status.details?.retryAfterSeconds || 0;
	return new ApiError(call.verb, call.target, {
		...status,
		code: response.status,
		details: { retryAfterSeconds },
	});
}

function explain({ name, code, message }: NetworkError): string {
	if (name === "TimeoutError") return "no answer in time";
	if (typeof code !== "string") return message;
	if (code.includes("REFUSED")) return "connection refused";
	return /CERT|SIGNATURE|ISSUER/.test(code)
		? `certificate refused (${code})`
		: code;
}

/** Resolves after the time, or at once when the signal is aborted. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
	return new Promise((resolve) => {
		const done = () => {
			clearTimeout(timer);
			signal?.removeEventListener("abort", done);
			resolve();
		};
		const timer = setTimeout(done, ms);
		signal?.addEventListener("abort", done);
	});
}
