/** Streams of an HTTP/2 connection, and how they share it to send: RFC 9113 sections 5.1 and 5.2. Pure. */
import { DEFAULT_WINDOW, MAX_FRAME_SIZE, MAX_WINDOW } from "./frames.ts";
import type { FrameWriter } from "./framewriter.ts";
import type { Header } from "./hpack.ts";

/** What a stream tells its owner. The bytes of onData are only valid during the call. */
export interface StreamEvents {
	onHeaders(headers: Header[], ended: boolean): void;
	onData(bytes: Uint8Array, ended: boolean): void;
	/**
	 * The stream ended otherwise than in good order: the last event, which a client never gets after `ended`.
	 * @param code of ErrorCode; CANCEL when the connection is gone
	 * @param unprocessed the peer has not begun to work on it: it may be repeated
	 */
	onReset(code: number, unprocessed: boolean): void;
	/** `pending` has come down to 0 (maybe the stream has ended with that), unless it never was more. */
	onDrain?(): void;
}

/** What a stream needs of its connection. */
export interface Connection {
	readonly writer: FrameWriter;
	readonly sender: Sender;
	/** All has been sent that our side sends. */
	localEnd(stream: Stream): void;
	/** Our side gives the stream up. @param code of ErrorCode, for the peer */
	abandon(stream: Stream, code: number): void;
}

/** One request and its response. */
export class Stream {
	readonly id: number;
	readonly #connection: Connection;
	events: StreamEvents | undefined;
	/** Bytes that the peer lets us send; below 0 after it has reduced its windows. */
	window: number;
	/** Bytes that we let the peer send. */
	granted: number;
	remoteEnded = false;
	localEnded = false;
	headersReceived = false;
	/** Of content-length, what has not come yet; -1 without one. */
	contentLeft = -1;
	/** Bytes written that are not yet in a frame. */
	pending = 0;
	readonly queue: Uint8Array[] = [];
	/** How far the first of the queue has been sent. */
	offset = 0;
	/** What follows the queue. */
	ending: Header[] | "data" | undefined;

	constructor(
		connection: Connection,
		id: number,
		window: number,
		granted: number,
	) {
		this.#connection = connection;
		this.id = id;
		this.window = window;
		this.granted = granted;
	}

	/** Nothing goes either way any more. */
	get closed(): boolean {
		return this.remoteEnded && this.localEnded;
	}

	/** A request's or a response's headers; with `end`, also trailers, after all data. Ignored when our side has ended. */
	headers(headers: Header[], end = false): void {
		if (this.localEnded || this.ending) return;
		if (this.pending > 0 && end) this.ending = headers;
		else {
			this.#connection.writer.headers(this.id, headers, end);
			if (end) this.#connection.localEnd(this);
		}
	}

	/** Bytes that are not changed any more by the caller. Ignored when our side has ended. */
	data(bytes: Uint8Array, end = false): void {
		if (this.localEnded || this.ending) return;
		this.#connection.sender.send(this, bytes, end);
	}

	/** Lets the peer send more on this stream. */
	grant(bytes: number): void {
		const increment = Math.min(bytes, MAX_WINDOW - this.granted);
		if (increment <= 0 || this.remoteEnded) return;
		this.granted += increment;
		this.#connection.writer.windowUpdate(this.id, increment);
	}

	/** Ends the stream both ways; its events end here. */
	reset(code: number): void {
		if (!this.closed) this.#connection.abandon(this, code);
	}

	/** For the connection: what has not been sent is not wanted any more. */
	close(): void {
		this.remoteEnded = true;
		this.localEnded = true;
		if (this.pending === 0) return;
		this.queue.length = 0;
		this.pending = 0;
		this.ending = undefined;
		this.#connection.sender.remove(this);
	}
}

/** Puts DATA of all streams into frames, as their windows and the connection's permit, one of each stream in turn. */
export class Sender {
	readonly #writer: FrameWriter;
	readonly #localEnd: (stream: Stream) => void;
	/** Bytes that the peer lets us send on all streams together. */
	window = DEFAULT_WINDOW;
	/** Streams with data and a window of their own, in the order of their turns. */
	readonly #ready = new Set<Stream>();

	/** @param localEnd told of a stream when all has been sent that was to be sent on it */
	constructor(writer: FrameWriter, localEnd: (stream: Stream) => void) {
		this.#writer = writer;
		this.#localEnd = localEnd;
	}

	send(stream: Stream, bytes: Uint8Array, end: boolean): void {
		const { length } = bytes;
		if (stream.pending === 0 && this.#fits(stream, length)) {
			if (length > 0 || end) this.#frame(stream, bytes, 0, length, end);
			if (end) this.#localEnd(stream);
			return;
		}
		if (end) stream.ending = "data";
		if (length === 0) return;
		stream.queue.push(bytes);
		stream.pending += length;
		this.wake(stream);
	}

	/** Whether bytes can go out as one frame now, and overtake nobody who waits. */
	#fits(stream: Stream, length: number): boolean {
		// An empty frame needs no window: https://www.rfc-editor.org/rfc/rfc9113#section-6.9.1
		if (length === 0) return true;
		return (
			length <= MAX_FRAME_SIZE &&
			length <= stream.window &&
			length <= this.window &&
			this.#ready.size === 0 &&
			!this.#writer.full
		);
	}

	/** A stream that may have become able to send. */
	wake(stream: Stream): void {
		if (stream.pending === 0 || stream.window <= 0) return;
		this.#ready.add(stream);
		this.#writer.schedule();
	}

	/** A stream that has ended. */
	remove(stream: Stream): void {
		this.#ready.delete(stream);
	}

	/** Frames for as much as is written at once. */
	fill(): void {
		// A stream that is added again meanwhile comes at the end of this loop.
		for (const stream of this.#ready) {
			if (this.window <= 0 || this.#writer.full) return;
			this.#ready.delete(stream);
			this.#sendNext(stream);
		}
	}

	#sendNext(stream: Stream): void {
		const [first] = stream.queue;
		// The peer may have reduced the window since.
		if (!first || stream.window <= 0) return;
		const from = stream.offset;
		const to = Math.min(
			first.length,
			from + Math.min(stream.window, this.window, MAX_FRAME_SIZE),
		);
		stream.pending -= to - from;
		const drained = stream.pending === 0;
		const { ending } = stream;
		this.#frame(stream, first, from, to, drained && ending === "data");
		stream.offset = to;
		if (to === first.length) {
			stream.queue.shift();
			stream.offset = 0;
		}
		if (!drained) {
			this.wake(stream);
			return;
		}
		if (ending) {
			if (ending !== "data") this.#writer.headers(stream.id, ending, true);
			this.#localEnd(stream);
		}
		stream.events?.onDrain?.();
	}

	#frame(
		stream: Stream,
		bytes: Uint8Array,
		from: number,
		to: number,
		end: boolean,
	): void {
		this.#writer.data(stream.id, bytes, from, to, end);
		stream.window -= to - from;
		this.window -= to - from;
	}
}
