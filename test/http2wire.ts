/** HTTP/2 by hand: frames made and read without the code under test, and a session whose transport is a variable. */
import { Decoder } from "../http2/hpack.ts";
import {
	type Header,
	Session,
	type SessionOptions,
	type Stream,
	type StreamEvents,
	type Transport,
} from "../http2.ts";

export const DATA = 0;
export const HEADERS = 1;
export const PRIORITY = 2;
export const RST_STREAM = 3;
export const SETTINGS = 4;
export const PUSH_PROMISE = 5;
export const PING = 6;
export const GOAWAY = 7;
export const WINDOW_UPDATE = 8;
export const CONTINUATION = 9;
/** Flags; END_STREAM is ACK. */
export const END_STREAM = 1;
export const END_HEADERS = 4;
export const PADDED = 8;

export const PREFACE = new TextEncoder().encode(
	"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
);

/** The octet at a place of the body of a stream: another one for each stream. */
export const octet = (seed: number, at: number) =>
	(seed * 31 + at * 7 + (at >> 8)) & 255;

export function body(seed: number, length: number): Uint8Array {
	const bytes = new Uint8Array(length);
	for (let at = 0; at < length; at++) bytes[at] = octet(seed, at);
	return bytes;
}

export interface Frame {
	type: number;
	flags: number;
	id: number;
	payload: Uint8Array;
}

export const bytesOf = (...parts: (Uint8Array | number[])[]) => {
	const bytes = new Uint8Array(
		parts.reduce((sum, part) => sum + part.length, 0),
	);
	let at = 0;
	for (const part of parts) {
		bytes.set(part, at);
		at += part.length;
	}
	return bytes;
};

export const u32 = (value: number) => [
	value >>> 24,
	(value >>> 16) & 255,
	(value >>> 8) & 255,
	value & 255,
];

export const frame = (
	type: number,
	flags: number,
	id: number,
	payload: Uint8Array | number[] = [],
) => bytesOf([...u32(payload.length).slice(1), type, flags], u32(id), payload);

export const settings = (...pairs: [id: number, value: number][]) =>
	frame(
		SETTINGS,
		0,
		0,
		pairs.flatMap(([id, value]) => [0, id, ...u32(value)]),
	);
export const settingsAck = () => frame(SETTINGS, END_STREAM, 0);
export const windowUpdate = (id: number, increment: number) =>
	frame(WINDOW_UPDATE, 0, id, u32(increment));
export const reset = (id: number, code: number) =>
	frame(RST_STREAM, 0, id, u32(code));
export const data = (
	id: number,
	bytes: Uint8Array | number[] | number,
	flags = 0,
) =>
	frame(
		DATA,
		flags,
		id,
		typeof bytes === "number" ? new Uint8Array(bytes) : bytes,
	);
export const goaway = (lastId: number, code = 0) =>
	frame(GOAWAY, 0, 0, [...u32(lastId), ...u32(code)]);

/** Literals without indexing, not Huffman coded: a block that leaves no trace in any table. */
export function block(headers: Header[]): Uint8Array {
	const string = (text: string) => {
		const bytes = new TextEncoder().encode(text);
		const { length } = bytes;
		const prefix: number[] = [];
		if (length < 127) prefix.push(length);
		else {
			prefix.push(127);
			let rest = length - 127;
			for (; rest >= 128; rest >>>= 7) prefix.push((rest & 127) | 128);
			prefix.push(rest);
		}
		return bytesOf(prefix, bytes);
	};
	return bytesOf(
		...headers.flatMap(([name, value]) => [[0], string(name), string(value)]),
	);
}

export const REQUEST: Header[] = [
	[":method", "POST"],
	[":scheme", "http"],
	[":path", "/"],
	[":authority", "localhost"],
];
export const RESPONSE: Header[] = [[":status", "200"]];
export const TRAILERS: Header[] = [["grpc-status", "0"]];

export const headers = (id: number, fields: Header[], flags = END_HEADERS) =>
	frame(HEADERS, flags, id, block(fields));
export const request = (id: number, flags = 0) =>
	headers(id, REQUEST, END_HEADERS | flags);

/** Frames one after another. @throws Error when the last is not complete */
export function framesOf(bytes: Uint8Array): Frame[] {
	const frames: Frame[] = [];
	const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
	for (let at = 0; at < bytes.length; ) {
		const length = view.getUint32(at) >>> 8;
		const end = at + 9 + length;
		if (end > bytes.length) throw new Error("a frame is not complete");
		frames.push({
			type: view.getUint8(at + 3),
			flags: view.getUint8(at + 4),
			id: view.getUint32(at + 5),
			payload: bytes.slice(at + 9, end),
		});
		at = end;
	}
	return frames;
}

/** A frame in few words: "DATA 1 +5 END", "RST_STREAM 3 8", "WINDOW_UPDATE 0 10". */
export function words({ type, flags, id, payload }: Frame): string {
	const view = new DataView(payload.buffer, payload.byteOffset);
	const end = flags & END_STREAM ? " END" : "";
	const ack = flags & END_STREAM ? " ACK" : "";
	switch (type) {
		case DATA:
			return `DATA ${id} +${payload.length}${end}`;
		case HEADERS:
			return `HEADERS ${id}${end}`;
		case RST_STREAM:
			return `RST_STREAM ${id} ${view.getUint32(0)}`;
		case SETTINGS:
			return `SETTINGS${ack}`;
		case PING:
			return `PING${ack}`;
		case GOAWAY:
			return `GOAWAY ${view.getUint32(0)} ${view.getUint32(4)}`;
		case WINDOW_UPDATE:
			return `WINDOW_UPDATE ${id} ${view.getUint32(0)}`;
		default:
			return `${type} ${id} +${payload.length}`;
	}
}

/** What an owner was told of a stream. */
export class Told implements StreamEvents {
	readonly log: string[] = [];
	readonly headers: Header[][] = [];
	bytes = 0;
	/** Called before each event is noted. */
	readonly #also: (event: string) => void;

	constructor(also: (event: string) => void = () => {}) {
		this.#also = also;
	}

	onHeaders(fields: Header[], ended: boolean): void {
		this.headers.push(fields);
		this.#tell(`headers${ended ? " END" : ""}`);
	}
	onData(bytes: Uint8Array, ended: boolean): void {
		this.bytes += bytes.length;
		this.#tell(`data +${bytes.length}${ended ? " END" : ""}`);
	}
	onReset(code: number, unprocessed: boolean): void {
		this.#tell(`reset ${code}${unprocessed ? " unprocessed" : ""}`);
	}
	onDrain(): void {
		this.#tell("drain");
	}
	#tell(event: string): void {
		this.log.push(event);
		this.#also(event);
	}
}

export interface WireOptions
	extends Omit<SessionOptions, "role" | "transport"> {
	role?: "server" | "client";
	/** SETTINGS of the peer. */
	settings?: [id: number, value: number][];
	/** The transport takes what it is given only when `take` is called. */
	slow?: boolean;
	/** Do not begin the connection. */
	raw?: boolean;
}

/** A session, with the test as its peer. */
export class Wire {
	readonly session: Session;
	/** Of the requests that came, by stream id. */
	readonly streams = new Map<number, Stream>();
	readonly told = new Map<number, Told>();
	/** Calls of the transport and of the session's events, in their order. */
	readonly calls: string[] = [];
	/** Bytes written to the transport, ever. */
	written = 0;
	readonly #slow: boolean;
	#out: Uint8Array[] = [];
	#done: (() => void) | undefined;
	readonly #decoder = new Decoder(4096, 1 << 20);

	constructor(options: WireOptions = {}) {
		const {
			role = "server",
			settings: pairs = [],
			raw,
			slow,
			...rest
		} = options;
		this.#slow = slow === true;
		const transport: Transport = {
			write: (bytes, done) => {
				if (this.#done) throw new Error("a write before the last was done");
				this.calls.push("write");
				this.written += bytes.length;
				this.#out.push(bytes);
				this.#done = done;
				if (!this.#slow) queueMicrotask(() => this.take());
			},
			end: () => this.calls.push("end"),
		};
		this.session = new Session({
			role,
			transport,
			onStream: (stream) => {
				const told = new Told();
				this.streams.set(stream.id, stream);
				this.told.set(stream.id, told);
				return told;
			},
			onPong: () => this.calls.push("pong"),
			onGoaway: () => this.calls.push("goaway"),
			onClose: (error) => this.calls.push(`close ${error ?? ""}`.trim()),
			...rest,
		});
		if (raw) return;
		if (role === "server") this.receive(PREFACE);
		this.receive(settings(...pairs), settingsAck());
	}

	/** The transport is done with what it was given. */
	take(): void {
		const done = this.#done;
		this.#done = undefined;
		done?.();
	}

	receive(...parts: Uint8Array[]): void {
		this.session.receive(bytesOf(...parts));
	}

	/** What the session has sent since the last time. */
	async sent(): Promise<Frame[]> {
		await settled();
		const bytes = bytesOf(...this.#out);
		this.#out = [];
		const start = bytes[0] === PREFACE[0] && bytes[1] === PREFACE[1];
		return framesOf(start ? bytes.subarray(PREFACE.length) : bytes);
	}

	/** The same in words, without the settings and windows of the beginning. */
	async said(): Promise<string[]> {
		return (await this.sent())
			.map(words)
			.filter((text) => !/^(SETTINGS|WINDOW_UPDATE 0 2147418112)/.test(text));
	}

	/** The fields of a HEADERS frame; of each, once and in their order. */
	fields({ payload }: Frame): Header[] {
		return this.#decoder.decode(payload, 0, payload.length) ?? [];
	}

	stream(id: number): Stream {
		const stream = this.streams.get(id);
		if (!stream) throw new Error(`no stream ${id}`);
		return stream;
	}

	log(id: number): string[] | undefined {
		return this.told.get(id)?.log;
	}
}

/** All that was to happen in this turn of the event loop has happened. */
export const settled = () =>
	new Promise<void>((resolve) => setImmediate(resolve));
