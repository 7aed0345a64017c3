/** The streams of one connection, from their opening to their end: https://www.rfc-editor.org/rfc/rfc9113#section-5.1. Pure. */
import {
	checkWindow,
	DEFAULT_WINDOW,
	ErrorCode,
	MAX_WINDOW,
	protocolError,
} from "./frames.ts";
import type { FrameWriter } from "./framewriter.ts";
import { type Connection, Sender, Stream } from "./stream.ts";

export class Streams implements Connection {
	readonly writer: FrameWriter;
	readonly sender: Sender;
	readonly #server: boolean;
	readonly #onGone: () => void;
	readonly #open = new Map<number, Stream>();
	/** Client: of the next request. */
	#nextId = 1;
	/** Server: of the latest request. */
	#lastPeerId = 0;
	/** Server: the last stream that is served, once GOAWAY has named it. */
	#lastServed = MAX_WINDOW;
	/** The last stream that we gave up while the peer may have gone on sending. */
	#lastAbandoned = 0;
	/** Of new streams: what the peer lets us send, and we the peer. */
	#window = DEFAULT_WINDOW;
	readonly #granted: number;
	/** How much more than that the peer may send while it has not read our SETTINGS. */
	#slack: number;

	/**
	 * @param granted our SETTINGS_INITIAL_WINDOW_SIZE
	 * @param onGone told whenever a stream has ended, before its owner may be
	 */
	constructor(
		server: boolean,
		granted: number,
		writer: FrameWriter,
		onGone: () => void,
	) {
		this.#server = server;
		this.#granted = granted;
		this.#slack = Math.max(0, DEFAULT_WINDOW - granted);
		this.writer = writer;
		this.#onGone = onGone;
		this.sender = new Sender(writer, (stream) => this.localEnd(stream));
	}

	/** Open streams. */
	get size(): number {
		return this.#open.size;
	}

	/** Whether there is a number left for another request. */
	get available(): boolean {
		return this.#nextId < MAX_WINDOW;
	}

	/** Server: whether GOAWAY has named the last stream. */
	get final(): boolean {
		return this.#lastServed < MAX_WINDOW;
	}

	/** For GOAWAY, which never takes back what an earlier one said. */
	get lastId(): number {
		return Math.min(this.#lastPeerId, this.#lastServed);
	}

	/** Server: no request after those that have come. */
	finalize(): void {
		this.#lastServed = this.lastId;
	}

	/** Client: a stream for a request. */
	request(): Stream {
		const stream = this.#create(this.#nextId);
		this.#nextId += 2;
		return stream;
	}

	/** Server: the stream of a new request; undefined when none are served any more. */
	requested(id: number): Stream | undefined {
		this.#lastPeerId = id;
		if (id <= this.#lastServed) return this.#create(id);
		this.#lastAbandoned = id;
		return undefined;
	}

	get(id: number): Stream | undefined {
		return this.#open.get(id);
	}

	/** Whether a stream has not been opened yet, or never can be. */
	isIdle(id: number): boolean {
		const last = this.#server ? this.#lastPeerId : this.#nextId - 2;
		return (id & 1) === 0 || id > last;
	}

	/** Whether frames on a stream that is gone may have been under way when we gave it up. */
	wasAbandoned(id: number): boolean {
		return id <= this.#lastAbandoned;
	}

	/** The stream of a frame, if it is still open. @throws ConnectionError on one that never was */
	known(id: number, what: string): Stream | undefined {
		const stream = this.#open.get(id);
		if (!stream && this.isIdle(id))
			throw protocolError(`${what} on stream ${id}`);
		return stream;
	}

	/** The peer's SETTINGS_INITIAL_WINDOW_SIZE: https://www.rfc-editor.org/rfc/rfc9113#section-6.9.2. @throws ConnectionError */
	resizeWindows(size: number): void {
		const difference = size - this.#window;
		if (difference === 0) return;
		this.#window = size;
		for (const stream of this.#open.values()) {
			stream.window += difference;
			checkWindow(stream.window);
			this.sender.wake(stream);
		}
	}

	/** The peer has read our SETTINGS: https://www.rfc-editor.org/rfc/rfc9113#section-6.9.3 */
	settingsAcked(): void {
		this.#slack = 0;
	}

	/** Whether a DATA frame of this size, padding included, is more than was granted. */
	exceeds(stream: Stream, size: number): boolean {
		stream.granted -= size;
		// It may be below 0 without a fault of the peer's, by what it sent before it had read our SETTINGS.
		return size > 0 && stream.granted + this.#slack < 0;
	}

	/** The peer has sent all it will on a stream. */
	remoteEnd(stream: Stream): void {
		stream.remoteEnded = true;
		if (stream.localEnded) this.#forget(stream);
		// A complete response: the rest of the request is of no use.
		else if (!this.#server) this.abandon(stream, ErrorCode.NO_ERROR);
	}

	localEnd(stream: Stream): void {
		stream.localEnded = true;
		if (stream.remoteEnded) this.#forget(stream);
		// The same, seen from here: https://www.rfc-editor.org/rfc/rfc9113#section-8.1
		else if (this.#server) this.abandon(stream, ErrorCode.NO_ERROR);
	}

	abandon(stream: Stream, code: number): void {
		this.writer.reset(stream.id, code);
		if (!stream.remoteEnded)
			this.#lastAbandoned = Math.max(this.#lastAbandoned, stream.id);
		this.#forget(stream);
	}

	/** A stream error: https://www.rfc-editor.org/rfc/rfc9113#section-5.4.2 */
	fail(stream: Stream, code: number): void {
		this.abandon(stream, code);
		stream.events?.onReset(code, false);
	}

	/** The peer has reset a stream, or the connection is gone. */
	lose(stream: Stream, code: number, unprocessed: boolean): void {
		this.#forget(stream);
		stream.events?.onReset(code, unprocessed);
	}

	/** All streams after one that the peer names, or just all. */
	loseAfter(lastId: number, code: number, unprocessed: boolean): void {
		// Some may have been reset by their owners, when these were told of others.
		for (const stream of [...this.#open.values()])
			if (stream.id > lastId && !stream.closed)
				this.lose(stream, code, unprocessed);
	}

	#create(id: number): Stream {
		const stream = new Stream(this, id, this.#window, this.#granted);
		this.#open.set(id, stream);
		return stream;
	}

	#forget(stream: Stream): void {
		stream.close();
		this.#open.delete(stream.id);
		this.#onGone();
	}
}
