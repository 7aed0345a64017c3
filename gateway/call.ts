/** One RPC of a tenant: from its connection through policy and codec to the core, and back. */

import {
	Code,
	completeFields,
	LEASE_MAX,
	partToTenant,
	type ServedMethod,
	SLACK,
	Status,
	type Tenant,
	toCore,
	toTenant,
	watchChange,
} from "../etcd.ts";
import {
	CompressedError,
	free,
	isLarge,
	isTimeout,
	MessageReader,
	prefix,
	RESPONSE_HEADERS,
	readTrailers,
	trailers,
} from "../grpc.ts";
import {
	ErrorCode,
	type Header,
	type Stream,
	type StreamEvents,
} from "../http2.ts";
import type { Budget, Holder } from "./budget.ts";
import type { Core } from "./core.ts";

/** What is not yet read by the tenant of one call, before the core is asked for more of it. */
const MAX_PENDING = 256 * 1024;
/** Large responses are worked on in pieces of at least as much. */
const PART_BYTES = 64 * 1024;
/** A stream's first window, ours and the core's: messages up to this size need no reservation. */
export const INITIAL_WINDOW = 65_535;
/** How often a call that the core has not begun to work on is made again. */
const MAX_ATTEMPTS = 3;

/** What a call needs to know of where it came from. */
export interface CallContext {
	/** What it came by, for the budget. */
	connection: object;
	tenant: Tenant;
	core: Core;
	budget: Budget;
	maxRequestBytes: number;
	/** Asks for room for one more watch. */
	addWatch(): boolean;
	removeWatches(count: number): void;
	/** A number from 1 to LEASE_MAX. */
	freshLease(): number;
	sent(bytes: number): void;
	received(bytes: number): void;
	/** Something that was not expected, to be told to the operator. */
	onBug(error: unknown, method: ServedMethod): void;
	/** Once, when the tenant has got its end. */
	onEnd(method: ServedMethod, code: number, call: Call): void;
}

interface Parts {
	done: Uint8Array[];
	/** Of all of them. */
	length: number;
	/** Where in the message they end. */
	end: number;
}

/** Also the tenant's side of it, as StreamEvents; the core's side is `#core`. */
export class Call implements StreamEvents, Holder {
	readonly method: ServedMethod;
	readonly started = performance.now();
	readonly #context: CallContext;
	readonly #client: Stream;
	readonly #metadata: Header[] = [];
	readonly #requests: MessageReader;
	#responses: MessageReader;
	#core: Stream | undefined;
	/** Of a unary call: kept until the core has answered, in case it has to be sent again. */
	#request: { bytes: Uint8Array; start: number; end: number } | undefined;
	#attempts = 0;
	#answered = false;
	/** The code that it ended with; the tenant may still have to read. */
	#ended: number | undefined;
	#told = false;
	/** The budget expects an answer. */
	#expected = false;
	/** Bytes of messages on their way in. */
	#requestBytes = 0;
	#responseBytes = 0;
	/** What the budget knows of. */
	#held = 0;
	/** Bytes that the core may send once the tenant has read what there is. */
	#owed = 0;
	#watches = 0;
	/** Of a large response, what has come so far. */
	#parts: Parts | undefined;
	/** Large responses of which pieces may still have to be sent. */
	readonly #sending: Uint8Array[] = [];
	/** The budget that ended it, if one did. */
	overBudget: "request_bytes" | "bytes_in_flight" | "watches" | undefined;

	constructor(
		context: CallContext,
		method: ServedMethod,
		client: Stream,
		headers: Header[],
	) {
		this.#context = context;
		this.method = method;
		this.#client = client;
		for (const header of headers) {
			const [name, value] = header;
			// Nothing else is the core's business, least of all an etcd token.
			if (name === "hasleader" && value === "true") this.#metadata.push(header);
			if (name === "grpc-timeout" && isTimeout(value))
				this.#metadata.push(header);
		}
		this.#requests = new MessageReader({
			slack: 0,
			onBegin: (length, missing) => this.#requestBegins(length, missing),
			onMessage: (bytes, start, end) => this.#onRequest(bytes, start, end),
		});
		this.#responses = this.#responseReader();
	}

	/** What goes both ways is connected before there is a message. */
	start(): void {
		if (this.method.kind !== "bidi") return;
		try {
			this.#connect();
		} catch (error) {
			this.#fail(error);
		}
	}

	get owner(): object {
		return this.#context.connection;
	}

	get waiting(): number {
		return (
			this.#client.pending +
			(this.#core?.pending ?? 0) +
			this.#client.granted +
			(this.#core?.granted ?? 0)
		);
	}

	// From the tenant.

	onHeaders(): void {
		// Trailers of a request mean nothing in gRPC but its end, which onData tells, too.
		this.onData(new Uint8Array(0), true);
	}

	onData(bytes: Uint8Array, ended: boolean): void {
		if (this.#ended !== undefined) return;
		this.#context.received(bytes.length);
		try {
			this.#requests.push(bytes);
			if (ended) this.#requestsEnd();
		} catch (error) {
			this.#fail(error);
		}
	}

	onReset(): void {
		this.#core?.reset(ErrorCode.CANCEL);
		this.#end(Code.CANCELLED);
	}

	onDrain(): void {
		const owed = this.#owed;
		this.#owed = 0;
		if (owed > 0) this.#allow(owed);
		this.#settle();
	}

	#requestBegins(length: number, missing: number): void {
		const { maxRequestBytes, budget } = this.#context;
		const most = Math.min(maxRequestBytes, budget.max);
		if (length > most)
			throw this.#over(
				"request_bytes",
				`a request of ${length} bytes; up to ${most} are taken`,
			);
		const more = missing - this.#client.granted;
		if (more > 0)
			this.#reserve(length, () => {
				this.#requestBytes += length;
				this.#client.grant(more);
			});
		else if (missing > 0) {
			this.#requestBytes += length;
			this.#settle();
		}
	}

	#onRequest(bytes: Uint8Array, start: number, end: number): void {
		if (this.method.kind === "bidi") {
			if (this.method.watch && watchChange("request", bytes, start, end) > 0) {
				if (!this.#context.addWatch())
					throw this.#over(
						"watches",
						"too many watches on one connection; see --max-watches of the gateway",
					);
				this.#watches++;
			}
			this.#core?.data(this.#translate(bytes, start, end));
			this.#requestBytes = 0;
			this.#allowRequests();
			this.#settle();
			return;
		}
		if (this.#request)
			throw new Status(Code.INTERNAL, "more than one message in a unary call");
		this.#request = { bytes, start, end };
	}

	/** Of a stream: as fast as the core takes them. */
	#allowRequests(): void {
		const more = INITIAL_WINDOW - this.#client.granted;
		if (more > INITIAL_WINDOW / 2 && this.#core?.pending === 0)
			this.#client.grant(more);
	}

	#requestsEnd(): void {
		if (this.#requests.incomplete)
			throw new Status(Code.INTERNAL, "the request ends within a message");
		if (this.method.kind === "bidi") {
			this.#core?.data(NOTHING, true);
			return;
		}
		if (!this.#request)
			throw new Status(Code.INTERNAL, "a unary call without a message");
		this.#connect();
	}

	// To the core.

	#connect(): void {
		const { budget } = this.#context;
		if (this.method.kind !== "bidi" && !this.#expected) {
			this.#expected = budget.expect();
			if (!this.#expected)
				throw this.#over(
					"bytes_in_flight",
					"too much is under way; see --max-bytes-in-flight of the gateway",
				);
		}
		const member = this.#context.core.pick();
		if (!member)
			throw new Status(
				Code.UNAVAILABLE,
				// By these words etcd's client knows that nothing was sent, so that it may repeat a write, too:
				// https://github.com/etcd-io/etcd/blob/v3.7.3/client/v3/retry.go#L85. The reason is in the gateway's log.
				"there is no connection available",
			);
		this.#attempts++;
		const request = this.#request;
		const bytes =
			request && this.#translate(request.bytes, request.start, request.end);
		const stream = member.request(
			this.method.instead?.path ?? this.method.path,
			this.#metadata,
			{
				onHeaders: (headers, ended) => {
					if (ended) this.#onTrailers(headers);
				},
				onData: (bytes, ended) => this.#onResponseData(bytes, ended),
				onReset: (code, unprocessed) => this.#onCoreReset(code, unprocessed),
				onDrain: () => {
					if (this.method.kind === "bidi") this.#allowRequests();
					this.#settle();
				},
			},
		);
		this.#core = stream;
		if (bytes) stream.data(bytes, true);
	}

	#translate(bytes: Uint8Array, start: number, end: number): Uint8Array {
		const { tenant, freshLease } = this.#context;
		return toCore(this.method, tenant, bytes, start, end, freshLease());
	}

	// From the core.

	#responseReader(): MessageReader {
		return new MessageReader({
			slack: SLACK,
			onBegin: (length, missing) => this.#responseBegins(length, missing),
			onProgress: (bytes, start, filled) => this.#onPart(bytes, start, filled),
			onMessage: (bytes, start, end) => this.#onResponse(bytes, start, end),
		});
	}

	#onResponseData(bytes: Uint8Array, ended: boolean): void {
		if (this.#ended !== undefined) return;
		try {
			this.#responses.push(bytes);
			if (ended)
				throw new Status(Code.INTERNAL, "the core's answer has no status");
		} catch (error) {
			this.#fail(error);
		}
	}

	#responseBegins(length: number, missing: number): void {
		if (this.method.kind !== "bidi") {
			this.#forgetRequest();
			this.#settle();
		}
		const core = this.#core as Stream;
		const more = missing - core.granted - this.#owed;
		if (more <= 0) return;
		this.#reserve(length, () => {
			this.#responseBytes += length;
			this.#allow(more);
		});
	}

	/** Lets the core send more, now or once the tenant has read. */
	#allow(bytes: number): void {
		const most = this.#context.budget.tight ? 0 : MAX_PENDING;
		if (this.#client.pending > most) this.#owed += bytes;
		else this.#core?.grant(bytes);
	}

	/** A large response is rewritten as it comes in: all at once, it would hold up everybody else. */
	#onPart(bytes: Uint8Array, start: number, filled: number): void {
		const from = this.#parts?.end ?? start;
		if (this.method.watch || filled - from < PART_BYTES) return;
		const end = completeFields(bytes, from, filled);
		if (end - from < PART_BYTES) return;
		const { tenant } = this.#context;
		const part = partToTenant(this.method, tenant, bytes, from, end);
		this.#parts ??= { done: [], length: 0, end };
		this.#parts.done.push(part);
		this.#parts.length += part.length;
		this.#parts.end = end;
	}

	#onResponse(bytes: Uint8Array, start: number, end: number): void {
		const { tenant, removeWatches } = this.#context;
		if (
			this.method.watch &&
			this.#watches > 0 &&
			watchChange("response", bytes, start, end) < 0
		) {
			this.#watches--;
			removeWatches(1);
		}
		const pieces = this.#parts
			? this.#joined(this.#parts, bytes, end)
			: [toTenant(this.method, tenant, bytes, start, end)];
		this.#parts = undefined;
		if (!this.#answered) {
			this.#answered = true;
			this.#client.headers(RESPONSE_HEADERS);
		}
		for (const piece of pieces) {
			this.#context.sent(piece.length);
			this.#client.data(piece);
		}
		if (isLarge(bytes)) this.#sending.push(bytes);
		this.#responseBytes = 0;
		this.#settle();
		// Streams go on; a unary call has had its one message.
		if (this.method.kind === "unary") return;
		const core = this.#core as Stream;
		const more = INITIAL_WINDOW - core.granted - this.#owed;
		if (more > INITIAL_WINDOW / 2 && !this.#responses.incomplete)
			this.#allow(more);
	}

	/** A large response: gRPC's prefix, its parts, and what was not in a part yet. */
	#joined(
		{ done, length, end: from }: Parts,
		bytes: Uint8Array,
		end: number,
	): Uint8Array[] {
		const { tenant } = this.#context;
		const last = partToTenant(this.method, tenant, bytes, from, end);
		return [prefix(length + last.length), ...done, last];
	}

	#onTrailers(headers: Header[]): void {
		if (this.#ended !== undefined) return;
		const { code, message } = readTrailers(headers);
		// Its number was drawn, and somebody has it already: another one.
		if (
			code === Code.FAILED_PRECONDITION &&
			message === "etcdserver: lease already exists" &&
			this.#repeatable
		)
			this.#again();
		else this.#finish(code, message);
	}

	#onCoreReset(code: number, unprocessed: boolean): void {
		if (this.#ended !== undefined) return;
		if (unprocessed && this.#repeatable) this.#again();
		else
			this.#finish(
				code === ErrorCode.ENHANCE_YOUR_CALM
					? Code.RESOURCE_EXHAUSTED
					: Code.UNAVAILABLE,
				"etcdproxy: the connection to the core etcd was lost",
			);
	}

	get #repeatable(): boolean {
		return this.#request !== undefined && this.#attempts < MAX_ATTEMPTS;
	}

	/** It is answered: not to be sent again, and nothing to hold on to while room for the answer is waited for. */
	#forgetRequest(): void {
		this.#request = undefined;
		this.#requestBytes = 0;
		if (this.#expected) this.#context.budget.arrived();
		this.#expected = false;
	}

	#again(): void {
		this.#responses = this.#responseReader();
		try {
			this.#connect();
		} catch (error) {
			this.#fail(error);
		}
	}

	// The end.

	/** The gateway ends: what a client takes up again elsewhere ends now, the rest may finish. */
	drain(): void {
		if (this.method.kind === "bidi" && this.#ended === undefined)
			this.#stop(Code.UNAVAILABLE, "etcdserver: server stopped");
	}

	cut(): void {
		this.overBudget ??= "bytes_in_flight";
		this.#stop(
			Code.RESOURCE_EXHAUSTED,
			"etcdproxy: nothing was sent or read for a while, and others wait for room",
		);
	}

	#stop(code: number, message: string): void {
		this.#core?.reset(ErrorCode.CANCEL);
		// After a part of a message, only a reset is understood; gRPC knows this code as RESOURCE_EXHAUSTED.
		if (this.#client.pending > 0) {
			this.#client.reset(
				code === Code.RESOURCE_EXHAUSTED
					? ErrorCode.ENHANCE_YOUR_CALM
					: ErrorCode.REFUSED_STREAM,
			);
			this.#end(code);
		} else this.#finish(code, message);
	}

	#fail(error: unknown): void {
		if (this.#ended !== undefined) return;
		this.#core?.reset(ErrorCode.CANCEL);
		if (error instanceof Status) this.#finish(error.code, error.message);
		else if (error instanceof CompressedError)
			this.#finish(
				Code.UNIMPLEMENTED,
				"etcdproxy: messages are compressed, which is not supported",
			);
		else {
			// A bug costs its call, and not all the others.
			this.#context.onBug(error, this.method);
			this.#finish(Code.INTERNAL, "etcdproxy: internal error");
		}
	}

	#finish(code: number, message: string): void {
		const last = trailers(code, message);
		this.#client.headers(
			this.#answered ? last : [...RESPONSE_HEADERS, ...last],
			true,
		);
		this.#end(code);
	}

	/** Ended, whatever else happens; of what ends in good order, the tenant may still have to read. */
	#end(code: number): void {
		if (this.#ended === undefined) {
			this.#context.removeWatches(this.#watches);
			this.#watches = 0;
			this.#context.budget.forget(this);
			this.#forgetRequest();
			this.#parts = undefined;
			this.#responseBytes = 0;
			this.#responses.abandon();
		}
		this.#ended = code;
		this.#settle();
	}

	#over(budget: NonNullable<Call["overBudget"]>, message: string): Status {
		this.overBudget = budget;
		return new Status(Code.RESOURCE_EXHAUSTED, `etcdproxy: ${message}`);
	}

	// Bytes.

	/** @throws Status when there will never be room */
	#reserve(bytes: number, resume: () => void): void {
		const { budget } = this.#context;
		const reserved = budget.reserve(bytes, this, () => {
			this.#held += bytes;
			resume();
		});
		if (!reserved)
			throw this.#over(
				"bytes_in_flight",
				`an answer of ${bytes} bytes; up to ${budget.max} are passed on: ask for fewer keys at once (limit), or raise --max-bytes-in-flight of the gateway`,
			);
	}

	/** Tells the budget what is held now, and the owner when all is over. */
	#settle(): void {
		const { pending } = this.#client;
		const held =
			this.#requestBytes +
			this.#responseBytes +
			pending +
			(this.#core?.pending ?? 0);
		if (held !== this.#held) {
			this.#held = held;
			this.#context.budget.hold(held, this);
		}
		if (pending > 0) return;
		for (const message of this.#sending) free(message);
		this.#sending.length = 0;
		if (this.#ended === undefined || this.#told) return;
		this.#told = true;
		this.#context.onEnd(this.method, this.#ended, this);
	}
}

const NOTHING = new Uint8Array(0);

/** A tenant's lease id, drawn. */
export const drawLease = () => 1 + Math.floor(Math.random() * LEASE_MAX);
