/**
 * The API server as a few verbs. The only importer of @kubernetes/client-node,
 * and of that only the credentials.
 *
 * Transport: Bun's `fetch` over one HTTP/2 connection. Bun 1.4.5 against a Go
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
import { existsSync, readFileSync } from "node:fs";
import type { RequestOptions } from "node:https";
import { homedir } from "node:os";
import { delimiter, dirname, join, resolve } from "node:path";
// Not the package's root: a binary with --bytecode starts in 33 ms, not 55, and 2 MB smaller.
import { KubeConfig } from "@kubernetes/client-node/dist/config.js";

/** The kinds this client knows: API version, plural as in the URL, scope. */
export const kinds = {
	EtcdStorage: resource("etcd.xmudrii.com/v1alpha1", "etcdstorages", false),
	Deployment: resource("apps/v1", "deployments"),
	Service: resource("v1", "services"),
	ConfigMap: resource("v1", "configmaps"),
	Secret: resource("v1", "secrets"),
	Event: resource("v1", "events"),
	Lease: resource("coordination.k8s.io/v1", "leases"),
};
export type Kind = keyof typeof kinds;

export interface OwnerReference {
	apiVersion: string;
	kind: string;
	name: string;
	uid: string;
	controller?: boolean;
	blockOwnerDeletion?: boolean;
}

export interface ManagedFieldsEntry {
	manager: string;
	operation: "Apply" | "Update";
	apiVersion: string;
	time?: string;
	subresource?: string;
	fieldsType: string;
	fieldsV1?: object;
}

export interface ObjectMeta {
	name: string;
	namespace?: string;
	uid?: string;
	resourceVersion?: string;
	generation?: number;
	creationTimestamp?: string;
	deletionTimestamp?: string;
	labels?: Record<string, string>;
	annotations?: Record<string, string>;
	finalizers?: string[];
	ownerReferences?: OwnerReference[];
	managedFields?: ManagedFieldsEntry[];
}

/** What every object has; concrete types extend it. */
export interface KubeObject {
	apiVersion: string;
	kind: string;
	metadata: ObjectMeta;
}

export interface Ref {
	apiVersion: string;
	kind: string;
	namespace?: string;
	name: string;
}

/** One object or, without a name, all of a kind (in a namespace). */
export type Target = Omit<Ref, "name"> & { name?: string };

/** The API server's account of a failure (`v1.Status`). */
export interface Status {
	code?: number;
	reason?: string;
	message?: string;
	details?: { retryAfterSeconds?: number };
}

/** `patch Secret apps/etcd-client-cert: Forbidden: <the server's message>` */
export class ApiError extends Error {
	/** The HTTP status; 0 when there was no answer, or none that can be read. */
	readonly code: number;
	/** The server's CamelCase reason; "Unreachable" or "Malformed" with code 0. */
	readonly reason: string;
	readonly retryAfterMs: number | undefined;
	readonly verb: string;
	readonly ref: Target;

	constructor(verb: string, ref: Target, status: Status, cause?: unknown) {
		const { code = 0, reason = `HTTP ${code}`, message = "", details } = status;
		const where = [ref.namespace, ref.name].filter(Boolean).join("/");
		const what = [verb, ref.kind, where].filter(Boolean).join(" ");
		super(`${what}: ${reason}: ${message}`, { cause });
		this.name = "ApiError";
		this.code = code;
		this.reason = reason;
		const seconds = details?.retryAfterSeconds;
		this.retryAfterMs = seconds ? seconds * 1000 : undefined;
		this.verb = verb;
		this.ref = ref;
	}
}

export interface RequestReport {
	verb: string;
	kind: string;
	/** The HTTP status; 0 when there was no answer. */
	code: number;
	/** Until the headers of the answer. */
	seconds: number;
}

export interface KubeOptions {
	/** Owner of the fields this client writes, and its User-Agent. */
	fieldManager: string;
	/** How long a request may take; 30 000 unless told. */
	requestTimeoutMs?: number;
	/** Silence on a watch after which to ask for a sign of life; 12 000 unless told. */
	pingMs?: number;
	/** Called after every attempt of every request. */
	onRequest?(report: RequestReport): void;
}

export interface Follow<T> {
	namespace?: string;
	/** A complete list, first and whenever events were missed: what is not in it is gone. */
	onSync(objects: T[]): void;
	onEvent(type: "ADDED" | "MODIFIED" | "DELETED", object: T): void;
	/** Why it was interrupted; told once for as long as the reason stays the same. */
	onRestart?(reason: string): void;
	signal: AbortSignal;
}

interface Call {
	verb: keyof typeof methods;
	target: Target;
	query?: Record<string, string>;
	subresource?: "status" | undefined;
	body?: object;
	contentType?: string;
	timeoutMs?: number;
	signal?: AbortSignal;
}

/** What a request needs of the kubeconfig: PEM texts, and headers as Authorization. */
interface Credentials {
	tls: Bun.TLSOptions;
	headers: Record<string, string>;
}

interface Connection {
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

interface List<T> {
	metadata: { resourceVersion: string; continue?: string };
	items: T[];
}

interface WatchEvent<T> {
	type: "ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK";
	object: T;
}

/** What `fetch` throws: `code` is Bun's, or a number of the DOM's. */
type NetworkError = Error & { code?: string | number };

interface RawKubeConfig {
	users?: { name: string; user?: { tokenFile?: string } }[];
}

const SERVICE_ACCOUNT_TOKEN =
	"/var/run/secrets/kubernetes.io/serviceaccount/token";
const MERGE_PATCH = "application/merge-patch+json";
const JSON_PATCH = "application/json-patch+json";
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
	delete: "DELETE",
};

/**
 * The verbs reject with `ApiError`. Credentials are read for every request, as
 * tokens and certificates rotate. Where the server says "later" (Retry-After)
 * and repeating is safe, they try three times within the request's timeout.
 */
export class Kube {
	#config: KubeConfig;
	readonly #options: KubeOptions;
	#credentials: Promise<Credentials> | undefined;
	#connection: Connection | undefined;

	constructor(config: KubeConfig, options: KubeOptions) {
		this.#config = config;
		this.#options = options;
	}

	/** Resolves to undefined where there is no such object. */
	get<T extends KubeObject>(ref: Ref): Promise<T | undefined> {
		return this.#request<T>({ verb: "get", target: ref }).catch(unlessGone);
	}

	/** An object that exists already is a 409 "AlreadyExists". */
	create<T extends KubeObject>(object: T): Promise<T> {
		return this.#request({
			verb: "create",
			target: refTo(object),
			body: object,
			query: this.#author(),
		});
	}

	/**
	 * Server-side apply: the given fields become ours, whoever owned them, and a
	 * missing object is created. `metadata.resourceVersion`, where given, must be
	 * that of the stored object (else 409 "Conflict"), but does not keep a missing
	 * one from being created; `metadata.uid` does (409; 422 where another is stored).
	 * https://kubernetes.io/docs/reference/using-api/server-side-apply/
	 */
	apply<T extends KubeObject>(
		object: T,
		{ subresource }: { subresource?: "status" } = {},
	): Promise<T> {
		return this.#request({
			verb: "apply",
			target: refTo(object),
			subresource,
			query: { ...this.#author(), force: "true" },
			contentType: "application/apply-patch+yaml",
			body: object,
		});
	}

	/** JSON merge patch (RFC 7386) or JSON patch (RFC 6902). */
	patch<T extends KubeObject>(
		ref: Ref,
		patch: object,
		type: "merge" | "json",
	): Promise<T> {
		return this.#request({
			verb: "patch",
			target: ref,
			query: this.#author(),
			contentType: type === "merge" ? MERGE_PATCH : JSON_PATCH,
			body: patch,
		});
	}

	/** What is gone already is no error. */
	async delete(
		ref: Ref,
		preconditions?: { uid?: string; resourceVersion?: string },
	): Promise<void> {
		const body = { apiVersion: "v1", kind: "DeleteOptions", preconditions };
		await this.#request({ verb: "delete", target: ref, body }).catch(
			unlessGone,
		);
	}

	/**
	 * Lists, then watches, until the signal is aborted. Every failure is told and
	 * tried again with backoff; rejects only with what a callback throws.
	 * https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
	 */
	async follow<T extends KubeObject>(
		kind: Kind,
		options: Follow<T>,
	): Promise<void> {
		const { namespace, signal } = options;
		const target = {
			apiVersion: kinds[kind].apiVersion,
			kind,
			...(namespace && { namespace }),
		};
		let version: string | undefined;
		let failures = 0;
		let told = "";
		while (!signal.aborted) {
			let retryAfterMs = 0;
			try {
				if (version === undefined) {
					const { items, metadata } = await this.#list<T>(target, signal);
					if (signal.aborted) return;
					options.onSync(items);
					version = metadata.resourceVersion;
				}
				for await (const { type, object } of this.#watch<T>(
					target,
					version,
					signal,
				)) {
					if (signal.aborted) return;
					if (type !== "BOOKMARK") options.onEvent(type, object);
					version = object.metadata.resourceVersion;
					failures = 0;
					told = "";
				}
			} catch (error) {
				if (!(error instanceof ApiError)) throw error;
				if (signal.aborted) return;
				if (error.message !== told) options.onRestart?.(error.message);
				told = error.message;
				retryAfterMs = error.retryAfterMs ?? 0;
				// Knocking at a closed door costs nobody anything, and it opens unannounced: never wait long.
				if (error.code === 0) failures = Math.min(failures, 3);
				// After any answer but "later" only a list can tell where to go on: the version may be
				// compacted (410), or from a future that a restored backup has undone (504).
				else if (error.code !== 429) version = undefined;
			}
			const backoff = Math.min(200 * 2 ** failures++, 30_000);
			await sleep(
				Math.max(backoff * (0.5 + Math.random() / 2), retryAfterMs),
				signal,
			);
		}
	}

	async #list<T extends KubeObject>(
		target: Target,
		signal: AbortSignal,
	): Promise<List<T>> {
		const items: T[] = [];
		const query: Record<string, string> = { limit: "500" };
		for (;;) {
			const page = await this.#request<List<T>>({
				verb: "list",
				target,
				query,
				signal,
			});
			// In a list the items come without their kind.
			const { apiVersion, kind } = target;
			items.push(...page.items.map((item) => ({ ...item, apiVersion, kind })));
			if (!page.metadata.continue) return { metadata: page.metadata, items };
			query.continue = page.metadata.continue;
		}
	}

	/** One watch: over when the server ends it, anything else is thrown. */
	async *#watch<T extends KubeObject>(
		target: Target,
		resourceVersion: string,
		signal: AbortSignal,
	): AsyncGenerator<WatchEvent<T>> {
		const timeoutSeconds = 300 + Math.floor(Math.random() * 300);
		const query = {
			watch: "true",
			allowWatchBookmarks: "true",
			resourceVersion,
			timeoutSeconds: `${timeoutSeconds}`,
		};
		const call: Call = { verb: "watch", target, query, signal };
		const connection = await this.#connect(call);
		const overdue = AbortSignal.timeout((timeoutSeconds + 30) * 1000);
		const pingMs = this.#options.pingMs ?? 12_000;
		const pings = setInterval(() => this.#ping(connection, pingMs), pingMs);
		try {
			const end = AbortSignal.any([signal, connection.lost.signal, overdue]);
			const response = await this.#exchange(call, connection, end);
			for await (const line of lines(response.body)) {
				connection.heardAt = performance.now();
				yield parseEvent<T>(call, line);
			}
		} catch (cause) {
			throw this.#failure(call, connection, cause);
		} finally {
			clearInterval(pings);
		}
	}

	/**
	 * A connection can die without either end being told (a lost node, a forgotten
	 * NAT entry), and a watch only listens. Any answer to this is a sign of life;
	 * without one `#failure` hangs up. Should the watch be on another connection
	 * than the requests (HTTP/1.1, or a GOAWAY came in between), it is `overdue`
	 * that ends it.
	 */
	async #ping(connection: Connection, timeoutMs: number): Promise<void> {
		if (performance.now() - connection.heardAt < timeoutMs) return;
		const target = { apiVersion: "v1", kind: "" };
		await this.#request({ verb: "ping", target, timeoutMs }).catch((error) => {
			if (!(error instanceof ApiError)) throw error;
		});
	}

	async #request<T>(call: Call): Promise<T> {
		const { requestTimeoutMs = 30_000 } = this.#options;
		const timeoutMs = call.timeoutMs ?? requestTimeoutMs;
		const end = performance.now() + timeoutMs;
		const once = call.verb === "create" || call.contentType === JSON_PATCH;
		for (let tries = 1; ; tries++) {
			const connection = await this.#connect(call);
			const signals = [AbortSignal.timeout(timeoutMs)];
			if (call.signal) signals.push(call.signal);
			const signal = AbortSignal.any(signals);
			try {
				const response = await this.#exchange(call, connection, signal);
				return (await response.json()) as T;
			} catch (cause) {
				const error = this.#failure(call, connection, cause);
				const { retryAfterMs = Number.POSITIVE_INFINITY } = error;
				const tooLate = performance.now() + retryAfterMs > end;
				if (once || tries === 3 || tooLate) throw error;
				await sleep(retryAfterMs, call.signal);
			}
		}
	}

	/** Sends the call; an answer other than 2xx is thrown. The body is still to come. */
	async #exchange(
		call: Call,
		connection: Connection,
		signal: AbortSignal,
	): Promise<Response> {
		const { body, contentType = "application/json" } = call;
		const url = `${this.#server()}${pathOf(call)}?${new URLSearchParams(call.query)}`;
		const started = performance.now();
		let code = 0;
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
		try {
			const response = await send().catch((error) => {
				if (!NO_HTTP2.includes(error.code)) throw error;
				connection.protocol = "http1.1";
				return send();
			});
			code = response.status;
			connection.heardAt = performance.now();
			if (!response.ok) throw await refusal(call, response);
			return response;
		} finally {
			this.#options.onRequest?.({
				verb: call.verb,
				kind: call.target.kind,
				code,
				seconds: (performance.now() - started) / 1000,
			});
		}
	}

	/** The connection that goes with the credentials as they are now. */
	async #connect(call: Call): Promise<Connection> {
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

	/** Who writes, and that unknown fields are refused instead of dropped. */
	#author(): Record<string, string> {
		return {
			fieldManager: this.#options.fieldManager,
			fieldValidation: "Strict",
		};
	}

	#hangUp(connection: Connection, reason: string): void {
		if (this.#connection === connection) this.#connection = undefined;
		connection.lost.abort(new Error(reason));
		connection.session.close();
	}

	/** The error to throw for what a request threw; hangs up where the network is to blame. */
	#failure(call: Call, connection: Connection, cause: unknown): ApiError {
		if (cause instanceof ApiError) {
			// A copy reads tokens and runs exec plugins anew: the ones it has cached are refused.
			if (cause.code === 401) this.#config = copy(this.#config);
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

/**
 * Where the API server is and who we are there.
 * @param path of a kubeconfig; without one the Pod's ServiceAccount, where it is
 * mounted, else the files in KUBECONFIG, else ~/.kube/config
 * @throws Error naming the file that is missing or unfit, or the way out
 */
export function loadKubeConfig(path?: string): KubeConfig {
	if (!path && existsSync(SERVICE_ACCOUNT_TOKEN)) {
		const config = new KubeConfig();
		config.loadFromCluster();
		return config;
	}
	const usual = process.env.KUBECONFIG || join(homedir(), ".kube", "config");
	const files = path ? [path] : usual.split(delimiter).filter(existsSync);
	const [config, ...others] = files.map(readKubeConfig);
	if (!config)
		throw new Error(
			`no kubeconfig: ${usual} does not exist and this is not a Pod with a ServiceAccount; set --kubeconfig or KUBECONFIG`,
		);
	for (const other of others)
		config.mergeConfig(other, !!config.currentContext);
	if (!config.getCurrentCluster())
		throw new Error(
			`kubeconfig ${files.join(delimiter)}: no current context with a cluster; see kubectl config get-contexts, kubectl config use-context`,
		);
	return config;
}

function readKubeConfig(file: string): KubeConfig {
	const config = new KubeConfig();
	try {
		config.loadFromFile(file);
		// client-node knows this key of kubectl's only by another name.
		const raw = Bun.YAML.parse(readFileSync(file, "utf8")) as RawKubeConfig;
		for (const { name, user } of raw.users ?? []) {
			if (!user?.tokenFile) continue;
			const tokenFile = resolve(dirname(file), user.tokenFile);
			Object.assign(config.getUser(name) ?? {}, {
				authProvider: { name: "tokenFile", config: { tokenFile } },
			});
		}
	} catch (error) {
		// The first line only: the others quote the file, which may hold keys.
		const [reason] = (error as Error).message.split("\n");
		throw new Error(`kubeconfig ${file}: ${reason}`);
	}
	return config;
}

/** What a request needs of the kubeconfig; files, tokens and exec plugins are read by client-node. */
async function readCredentials(config: KubeConfig): Promise<Credentials> {
	const options: RequestOptions = {};
	await config.applyToHTTPSOptions(options);
	const { ca, cert, key, servername, rejectUnauthorized } = options;
	const pem = { ca, cert, key, serverName: servername };
	const given = Object.entries(pem).filter(([, value]) => value);
	const tls = Object.fromEntries(
		given.map(([name, value]) => [name, String(value)]),
	);
	return {
		tls: { ...tls, rejectUnauthorized: rejectUnauthorized ?? true },
		headers: { ...(options.headers as Record<string, string>) },
	};
}

function pathOf({ verb, target, subresource }: Call): string {
	if (verb === "ping") return "/version";
	const { apiVersion, kind, namespace, name = "" } = target;
	const group = `/${apiVersion.includes("/") ? "apis" : "api"}/${apiVersion}/`;
	const { plural, namespaced } = kinds[kind as Kind];
	const path = namespaced && namespace ? ["namespaces", namespace] : [];
	path.push(plural);
	if (!["list", "watch", "create"].includes(verb)) path.push(name);
	if (subresource) path.push(subresource);
	// Names come from users, and the API server decodes a path before it splits it: none may lead to another resource.
	if (path.some((part) => /^\.{0,2}$|[/%]/.test(part))) {
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

/** For `catch`: turns a missing object, but not a missing kind, into undefined. */
function unlessGone(error: unknown): undefined {
	if (error instanceof ApiError && error.reason === "NotFound")
		return undefined;
	throw error;
}

function explain({ name, code, message }: NetworkError): string {
	if (name === "TimeoutError") return "no answer in time";
	if (typeof code !== "string") return message;
	if (code.includes("REFUSED")) return "connection refused";
	return /CERT|SIGNATURE|ISSUER/.test(code)
		? `certificate refused (${code})`
		: code;
}

/** The lines of a stream, however it is cut into chunks. */
async function* lines(
	stream: ReadableStream<Uint8Array> | null,
): AsyncGenerator<string> {
	const decoder = new TextDecoder();
	let rest = "";
	for await (const chunk of stream ?? []) {
		const [first = "", ...others] = decoder
			.decode(chunk, { stream: true })
			.split("\n");
		rest += first;
		for (const other of others) {
			yield rest;
			rest = other;
		}
	}
	if (rest) yield rest;
}

function parseEvent<T extends KubeObject>(
	call: Call,
	line: string,
): WatchEvent<T> {
	const event = JSON.parse(line) as
		| WatchEvent<T>
		| { type: "ERROR"; object: Status };
	if (event.type === "ERROR")
		throw new ApiError(call.verb, call.target, event.object);
	if (!event.object?.metadata?.resourceVersion)
		throw new SyntaxError("no watch event");
	return event;
}

const refTo = ({ apiVersion, kind, metadata }: KubeObject): Target => ({
	apiVersion,
	kind,
	name: metadata.name,
	...(metadata.namespace && { namespace: metadata.namespace }),
});

function copy(config: KubeConfig): KubeConfig {
	const copied = new KubeConfig();
	copied.loadFromOptions(config);
	return copied;
}

function resource(apiVersion: string, plural: string, namespaced = true) {
	return { apiVersion, plural, namespaced };
}

/** Resolves after the time, or at once when the signal is aborted. */
function sleep(ms: number, signal?: AbortSignal): Promise<void> {
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
