/** The API server as a few verbs. */
import type { KubeConfig } from "./kubeconfig.ts";
import {
	ApiError,
	type Kind,
	type KubeObject,
	kinds,
	type Ref,
	type Status,
	type Target,
} from "./objects.ts";
import {
	type Call,
	JSON_PATCH,
	sleep,
	Transport,
	type TransportOptions,
} from "./transport.ts";

export { loadKubeConfig } from "./kubeconfig.ts";
export * from "./objects.ts";
export type { RequestReport } from "./transport.ts";
export type KubeOptions = TransportOptions;

export interface Follow<T> {
	namespace?: string;
	/** A complete list, first and whenever events were missed: what is not in it is gone. */
	onSync(objects: T[]): void;
	onEvent(type: "ADDED" | "MODIFIED" | "DELETED", object: T): void;
	/** Why it was interrupted; told once for as long as the reason stays the same. */
	onRestart?(reason: string): void;
	signal: AbortSignal;
}

interface List<T> {
	metadata: { resourceVersion: string; continue?: string };
	items: T[];
}

interface WatchEvent<T> {
	type: "ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK";
	object: T;
}

/** For a pod that is asked by way of the API server. */
const POD_TIMEOUT_MS = 5_000;
const MERGE_PATCH = "application/merge-patch+json";

/** The verbs reject with `ApiError`. */
export class Kube {
	readonly #options: KubeOptions;
	readonly #transport: Transport;

	constructor(config: KubeConfig, options: KubeOptions) {
		this.#options = options;
		this.#transport = new Transport(config, options);
	}

	/** Resolves to undefined where there is no such object. */
	get<T extends KubeObject>(ref: Ref): Promise<T | undefined> {
		return this.#transport
			.request<T>({ verb: "get", target: ref })
			.catch(unlessGone);
	}

	/** An object that exists already is a 409 "AlreadyExists". */
	create<T extends KubeObject>(object: T): Promise<T> {
		return this.#transport.request({
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
		return this.#transport.request({
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
		return this.#transport.request({
			verb: "patch",
			target: ref,
			query: this.#author(),
			contentType: type === "merge" ? MERGE_PATCH : JSON_PATCH,
			body: patch,
		});
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
					const { items, metadata } = await this.#list<T>(target, {}, signal);
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

	/** All of a kind in a namespace that carry the labels. */
	async list<T extends KubeObject>(
		kind: Kind,
		namespace: string,
		labelSelector = "",
	): Promise<T[]> {
		const { apiVersion } = kinds[kind];
		const query = { ...(labelSelector && { labelSelector }) };
		return (await this.#list<T>({ apiVersion, kind, namespace }, query)).items;
	}

	/**
	 * What a pod answers to a GET in plain HTTP, by way of the API server: JSON, of which nothing is checked.
	 * Rejects with the pod's own status where that is not 2xx, and with one of these that the API server or we give:
	 * 403 "Forbidden" (pods/proxy may not be asked), 404 "NotFound" (there is no such pod; a pod's own 404 has the reason
	 * "HTTP 404"), 400 (its address is not one of a pod), 503 (it cannot be reached), 504 "Timeout" (no answer within
	 * 5 s), 0 "Malformed" (no JSON), 0 "Unreachable" (the API server).
	 * https://kubernetes.io/docs/reference/generated/kubernetes-api/v1.37/#get-connect-proxy-path-pod-v1-core
	 * @param path without a slash before it
	 */
	async podProxy<T>(
		namespace: string,
		pod: string,
		port: number,
		path: string,
	): Promise<T> {
		const target = {
			apiVersion: kinds.Pod.apiVersion,
			kind: "Pod",
			namespace,
			name: `${pod}:${port}`,
		};
		// As a signal: a time limit of the transport would be taken for the API server's silence, and the connection given up.
		const signal = AbortSignal.timeout(POD_TIMEOUT_MS);
		try {
			return await this.#transport.request<T>({
				verb: "get",
				target,
				subresource: `proxy/${path}`,
				signal,
			});
		} catch (error) {
			const late = error instanceof ApiError && error.reason === "Unreachable";
			if (!late || !signal.aborted) throw error;
			const message = `no answer within ${POD_TIMEOUT_MS / 1000} s`;
			const status = { code: 504, reason: "Timeout", message };
			throw new ApiError("get", target, status, error);
		}
	}

	async #list<T extends KubeObject>(
		target: Target,
		selection: Record<string, string>,
		signal?: AbortSignal,
	): Promise<List<T>> {
		const items: T[] = [];
		const query: Record<string, string> = { ...selection, limit: "500" };
		for (;;) {
			const page = await this.#transport.request<List<T>>({
				verb: "list",
				target,
				query,
				...(signal && { signal }),
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
		const connection = await this.#transport.connect(call);
		const overdue = AbortSignal.timeout((timeoutSeconds + 30) * 1000);
		const pingMs = this.#options.pingMs ?? 12_000;
		const pings = setInterval(
			() => this.#transport.ping(connection, pingMs),
			pingMs,
		);
		try {
			const end = AbortSignal.any([signal, connection.lost.signal, overdue]);
			const response = await this.#transport.exchange(call, connection, end);
			for await (const line of lines(response.body)) {
				connection.heardAt = performance.now();
				yield parseEvent<T>(call, line);
			}
		} catch (cause) {
			throw this.#transport.failure(call, connection, cause);
		} finally {
			clearInterval(pings);
		}
	}

	/** Who writes, and that unknown fields are refused instead of dropped. */
	#author(): Record<string, string> {
		return {
			fieldManager: this.#options.fieldManager,
			fieldValidation: "Strict",
		};
	}
}

/** For `catch`: turns a missing object, but not a missing kind, into undefined. */
function unlessGone(error: unknown): undefined {
	if (error instanceof ApiError && error.reason === "NotFound")
		return undefined;
	throw error;
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
