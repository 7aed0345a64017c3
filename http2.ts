/**
 * HTTP/2 (RFC 9113) as gRPC needs it, server and client, over any transport of bytes. Pure.
 * Not node:http2: that costs ten times the CPU per request, and buffers without bound what a peer does not read.
 * What is received is granted stream by stream, by whoever has room for it; the connection's own window is never what
 * holds anybody up, so that one stream which waits does not stop the others (RFC 9113 section 5.2.2).
 */
import {
	ConnectionError,
	checkPriority,
	checkSize,
	checkWindow,
	DEFAULT_WINDOW,
	ErrorCode,
	Flag,
	FrameReader,
	FrameType,
	get31,
	get32,
	MAX_WINDOW,
	protocolError,
	readSettings,
	Setting,
} from "./http2/frames.ts";
import { FrameWriter, type Transport } from "./http2/framewriter.ts";
import { CompressionError, type Header } from "./http2/hpack.ts";
import { MAX_HEADER_LIST_SIZE, Messages } from "./http2/messages.ts";
import type { Stream, StreamEvents } from "./http2/stream.ts";
import { Streams } from "./http2/streams.ts";

export { ErrorCode } from "./http2/frames.ts";
export type { Transport } from "./http2/framewriter.ts";
export type { Header } from "./http2/hpack.ts";
export type { Stream, StreamEvents } from "./http2/stream.ts";

const MAX_CONCURRENT_STREAMS = 100;
/** Bytes in answers that a client makes us give (PING, SETTINGS, resets, windows) and does not read. */
const MAX_UNREAD = 1 << 18;
/** The same for each of its streams: they may all end with an error at once. */
const MAX_UNREAD_PER_STREAM = 128;
/** Bytes in requests that a server does not read: there is no point in making more. */
const MAX_UNSENT = 1 << 20;

export interface SessionOptions {
	role: "server" | "client";
	transport: Transport;
	/** Streams that the peer may have open, default 100; of no use to a client. */
	maxConcurrentStreams?: number;
	/** Bytes a peer may send on a new stream before it is granted more, default 65,535. */
	initialWindow?: number;
	/** Server: a request has come. @returns who is told the rest of it */
	onStream?(stream: Stream, headers: Header[], ended: boolean): StreamEvents;
	/** What `ping` asked for has come. */
	onPong?(): void;
	/** Client: the peer wants no more requests on this connection. */
	onGoaway?(): void;
	/**
	 * Once; the streams have been told before. The transport is ended when it has taken what there was to send; whoever
	 * does not want to wait for that, or for the peer to end its side, destroys it.
	 * @param error undefined when it ended in good order
	 */
	onClose?(error: string | undefined): void;
}

/** One connection. */
export class Session {
	readonly #options: SessionOptions;
	readonly #server: boolean;
	readonly #reader: FrameReader;
	readonly #writer: FrameWriter;
	readonly #streams: Streams;
	readonly #messages: Messages;
	readonly #maxUnread: number;
	#settingsReceived = false;
	#peerMaxStreams = Number.POSITIVE_INFINITY;
	/** Received DATA, of which the connection's window has not been told yet. */
	#consumed = 0;
	/** PINGs of ours that have not been answered. */
	#pings = 0;
	#goawayReceived = false;
	#ended = false;
	#finished = false;

	constructor(options: SessionOptions) {
		this.#options = options;
		this.#server = options.role === "server";
		const initialWindow = options.initialWindow ?? DEFAULT_WINDOW;
		const maxStreams = options.maxConcurrentStreams ?? MAX_CONCURRENT_STREAMS;
		this.#maxUnread = MAX_UNREAD + maxStreams * MAX_UNREAD_PER_STREAM;
		this.#reader = new FrameReader(
			this.#server,
			(type, flags, id, bytes, start, end) =>
				this.#onFrame(type, flags, id, bytes, start, end),
		);
		this.#writer = new FrameWriter(options.transport, () =>
			this.#streams.sender.fill(),
		);
		this.#streams = new Streams(this.#server, initialWindow, this.#writer, () =>
			this.#endIfDrained(),
		);
		this.#messages = new Messages(this.#streams, {
			server: this.#server,
			maxStreams,
			onStream: (stream, headers, ended) =>
				options.onStream?.(stream, headers, ended),
		});
		if (!this.#server) this.#writer.preface();
		this.#writer.settings([
			[Setting.INITIAL_WINDOW_SIZE, initialWindow],
			[Setting.MAX_HEADER_LIST_SIZE, MAX_HEADER_LIST_SIZE],
			this.#server
				? [Setting.MAX_CONCURRENT_STREAMS, maxStreams]
				: [Setting.ENABLE_PUSH, 0],
		]);
		this.#writer.windowUpdate(0, MAX_WINDOW - DEFAULT_WINDOW);
	}

	/** Open streams. */
	get size(): number {
		return this.#streams.size;
	}

	/** Nothing is read any more, and nothing new is sent. */
	get closed(): boolean {
		return this.#ended;
	}

	/** Whether `request` may be called now. */
	get available(): boolean {
		return (
			!this.#ended &&
			!this.#goawayReceived &&
			this.#streams.available &&
			this.#streams.size < this.#peerMaxStreams &&
			this.#writer.length < MAX_UNSENT
		);
	}

	/** Client: begins a request. @throws Error unless `available` */
	request(headers: Header[], events: StreamEvents): Stream {
		if (!this.available) throw new Error("no request can be made now");
		const stream = this.#streams.request();
		stream.events = events;
		stream.headers(headers);
		return stream;
	}

	/** `onPong` follows. */
	ping(): void {
		if (this.#ended) return;
		this.#pings++;
		this.#writer.ping();
	}

	/**
	 * Server: no further streams. First to be announced (`final` false), since requests may be under way, then, after a
	 * `ping` has come back, made final: https://www.rfc-editor.org/rfc/rfc9113#section-6.8. Ends when the last stream does.
	 */
	goaway(final: boolean): void {
		if (this.#ended) return;
		if (final) this.#streams.finalize();
		this.#writer.goaway(
			this.#streams.final ? this.#streams.lastId : MAX_WINDOW,
			ErrorCode.NO_ERROR,
			"",
		);
		this.#endIfDrained();
	}

	/** Ends the connection with a reason, all streams with it. @param code of ErrorCode */
	close(code: number, reason: string): void {
		if (this.#ended) return;
		this.#writer.goaway(this.#streams.lastId, code, reason);
		this.#end(reason);
	}

	/** Bytes from the peer, in whatever pieces. @throws what the owner's events throw, after the connection's end */
	receive(chunk: Uint8Array): void {
		if (this.#ended) return;
		try {
			this.#reader.push(chunk);
		} catch (error) {
			if (error instanceof ConnectionError)
				this.close(error.code, error.message);
			else if (error instanceof CompressionError)
				this.close(ErrorCode.COMPRESSION_ERROR, error.message);
			else {
				this.close(ErrorCode.INTERNAL_ERROR, "internal error");
				throw error;
			}
		}
	}

	/** The transport is gone. @param error undefined when the peer just went */
	disconnected(error?: string): void {
		this.#ended = true;
		this.#reader.stop();
		this.#writer.abandon();
		this.#finish(error);
	}

	#onFrame(
		type: number,
		flags: number,
		id: number,
		bytes: Uint8Array,
		start: number,
		end: number,
	): void {
		const { open } = this.#messages;
		if (open !== 0 && (type !== FrameType.CONTINUATION || id !== open))
			throw protocolError("a header block is interrupted");
		if (!this.#settingsReceived) {
			if (type !== FrameType.SETTINGS || flags & Flag.ACK)
				throw protocolError("the first frame is not SETTINGS");
			this.#settingsReceived = true;
		}
		switch (type) {
			case FrameType.DATA:
				this.#consume(end - start);
				this.#messages.data(flags, id, bytes, start, end);
				break;
			case FrameType.HEADERS:
				this.#messages.headers(flags, id, bytes, start, end);
				break;
			case FrameType.CONTINUATION:
				this.#messages.continuation(flags, bytes, start, end);
				break;
			case FrameType.PRIORITY:
				checkPriority(id, bytes, start, end);
				break;
			case FrameType.RST_STREAM:
				this.#onReset(id, bytes, start, end);
				break;
			case FrameType.SETTINGS:
				this.#onSettings(flags, id, bytes, start, end);
				break;
			case FrameType.PUSH_PROMISE:
				throw protocolError("PUSH_PROMISE");
			case FrameType.PING:
				this.#onPing(flags, id, bytes, start, end);
				break;
			case FrameType.GOAWAY:
				this.#onGoaway(id, bytes, start, end);
				break;
			case FrameType.WINDOW_UPDATE:
				this.#onWindowUpdate(id, bytes, start, end);
				break;
			// Unknown types are ignored: https://www.rfc-editor.org/rfc/rfc9113#section-4.1
		}
		if (this.#server && this.#writer.length > this.#maxUnread)
			throw new ConnectionError(
				ErrorCode.ENHANCE_YOUR_CALM,
				"answers are asked for and not read",
			);
	}

	#onReset(id: number, bytes: Uint8Array, start: number, end: number): void {
		checkSize(end - start === 4, "RST_STREAM", end - start);
		const stream = this.#streams.known(id, "RST_STREAM");
		if (!stream) return;
		const code = get32(bytes, start);
		const refused = !this.#server && code === ErrorCode.REFUSED_STREAM;
		this.#streams.lose(stream, code, refused);
	}

	#onSettings(
		flags: number,
		id: number,
		bytes: Uint8Array,
		start: number,
		end: number,
	): void {
		const length = end - start;
		if (id !== 0) throw protocolError("SETTINGS on a stream");
		if (flags & Flag.ACK) {
			checkSize(length === 0, "an acknowledgement of SETTINGS", length);
			this.#streams.settingsAcked();
			return;
		}
		const settings = readSettings(bytes, start, end);
		const { headerTableSizes, maxStreams, initialWindow, push } = settings;
		if (!this.#server && push) throw protocolError("ENABLE_PUSH by a server");
		for (const size of headerTableSizes) this.#writer.headerTableSize = size;
		if (maxStreams !== undefined) this.#peerMaxStreams = maxStreams;
		if (initialWindow !== undefined) this.#streams.resizeWindows(initialWindow);
		this.#writer.settingsAck();
	}

	#onPing(
		flags: number,
		id: number,
		bytes: Uint8Array,
		start: number,
		end: number,
	): void {
		if (id !== 0) throw protocolError("PING on a stream");
		checkSize(end - start === 8, "PING", end - start);
		if (!(flags & Flag.ACK)) this.#writer.pingAck(bytes, start);
		else if (this.#pings > 0) {
			this.#pings--;
			this.#options.onPong?.();
		}
	}

	#onGoaway(id: number, bytes: Uint8Array, start: number, end: number): void {
		if (id !== 0) throw protocolError("GOAWAY on a stream");
		checkSize(end - start >= 8, "GOAWAY", end - start);
		// To a server it says nothing: we push no streams.
		if (this.#server) return;
		this.#goawayReceived = true;
		const lastId = get31(bytes, start);
		this.#streams.loseAfter(lastId, ErrorCode.REFUSED_STREAM, true);
		this.#options.onGoaway?.();
		this.#endIfDrained();
	}

	#onWindowUpdate(
		id: number,
		bytes: Uint8Array,
		start: number,
		end: number,
	): void {
		checkSize(end - start === 4, "WINDOW_UPDATE", end - start);
		const increment = get31(bytes, start);
		if (id === 0) {
			if (increment === 0) throw protocolError("WINDOW_UPDATE by 0");
			this.#streams.sender.window += increment;
			checkWindow(this.#streams.sender.window);
			this.#writer.schedule();
			return;
		}
		const stream = this.#streams.known(id, "WINDOW_UPDATE");
		if (!stream) return;
		stream.window += increment;
		if (increment === 0) this.#streams.fail(stream, ErrorCode.PROTOCOL_ERROR);
		else if (stream.window > MAX_WINDOW)
			this.#streams.fail(stream, ErrorCode.FLOW_CONTROL_ERROR);
		else this.#streams.sender.wake(stream);
	}

	#consume(length: number): void {
		this.#consumed += length;
		if (this.#consumed < MAX_WINDOW / 2) return;
		this.#writer.windowUpdate(0, this.#consumed);
		this.#consumed = 0;
	}

	/** After the last stream, of which its owner may still have to be told: hence not at once. */
	#endIfDrained(): void {
		const last = this.#server ? this.#streams.final : this.#goawayReceived;
		if (last && this.#streams.size === 0) queueMicrotask(() => this.#end());
	}

	/** No more streams, no more reading; what is in the buffer still goes out. */
	#end(error?: string): void {
		if (this.#ended) return;
		this.#ended = true;
		this.#reader.stop();
		this.#finish(error);
		this.#writer.end();
	}

	#finish(error: string | undefined): void {
		this.#streams.loseAfter(0, ErrorCode.CANCEL, false);
		if (this.#finished) return;
		this.#finished = true;
		this.#options.onClose?.(error);
	}
}
