/** gRPC over HTTP/2, the part that is not HTTP/2: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. Pure. */
import type { Header } from "./http2.ts";

/** Length of a message's prefix: a flag (compressed or not) and the message's length, 4 octets. */
export const PREFIX = 5;
/**
 * As much of a message is made room for at first, about a stream's first window: no length that is only claimed, or that
 * waits to be let through, takes memory, nor makes the garbage collector believe so.
 */
const FIRST_PART = 65_536;

export interface MessageReaderOptions {
	/** Bytes to leave free before each message. */
	slack: number;
	/**
	 * A message begins.
	 * @param missing bytes of it, prefix included, that have not come yet
	 * @throws to end it; nothing more is read
	 */
	onBegin(length: number, missing: number): void;
	/** More of a message that is not complete yet has come: bytes[start, filled), which may be changed. */
	onProgress?(bytes: Uint8Array, start: number, filled: number): void;
	/** A message is complete: bytes[start, end), which belong to the callee, with the prefix and the slack before start. */
	onMessage(bytes: Uint8Array, start: number, end: number): void;
}

/** Puts messages together from the DATA of a stream. */
export class MessageReader {
	readonly #options: MessageReaderOptions;
	readonly #prefix = new Uint8Array(PREFIX);
	#prefixLength = 0;
	#message: Uint8Array | undefined;
	/** Of the complete message, with prefix and slack. */
	#length = 0;
	#filled = 0;

	constructor(options: MessageReaderOptions) {
		this.#options = options;
	}

	/** Whether a message has begun and is not complete. */
	get incomplete(): boolean {
		return this.#prefixLength > 0;
	}

	/** Nothing more is wanted: what has come of a message is freed. Not to be called by what this calls. */
	abandon(): void {
		if (this.#message) free(this.#message);
		this.#message = undefined;
		this.#prefixLength = 0;
	}

	/** @throws CompressedError; what onBegin and onMessage throw */
	push(bytes: Uint8Array): void {
		let at = 0;
		while (at < bytes.length) {
			if (!this.#message) {
				while (this.#prefixLength < PREFIX && at < bytes.length)
					this.#prefix[this.#prefixLength++] = bytes[at++] as number;
				if (this.#prefixLength < PREFIX) return;
				this.#begin(bytes.length - at);
			}
			at += this.#fill(bytes, at);
		}
	}

	#begin(available: number): void {
		const [compressed = 0, a = 0, b = 0, c = 0, d = 0] = this.#prefix;
		if (compressed !== 0) throw new CompressedError();
		const length = a * 2 ** 24 + ((b << 16) | (c << 8) | d);
		this.#options.onBegin(length, Math.max(0, length - available));
		const { slack } = this.#options;
		this.#length = slack + PREFIX + length;
		this.#message = allocate(Math.min(this.#length, FIRST_PART));
		this.#message.set(this.#prefix, slack);
		this.#filled = slack + PREFIX;
	}

	#fill(bytes: Uint8Array, from: number): number {
		let message = this.#message as Uint8Array;
		if (this.#filled === message.length && this.#filled < this.#length) {
			this.#message = allocate(this.#length);
			this.#message.set(message);
			message = this.#message;
		}
		const taken = Math.min(bytes.length - from, message.length - this.#filled);
		message.set(
			from === 0 && taken === bytes.length
				? bytes
				: bytes.subarray(from, from + taken),
			this.#filled,
		);
		this.#filled += taken;
		const { slack, onProgress, onMessage } = this.#options;
		const start = slack + PREFIX;
		if (this.#filled < this.#length) onProgress?.(message, start, this.#filled);
		else {
			this.#message = undefined;
			this.#prefixLength = 0;
			onMessage(message, start, message.length);
		}
		return taken;
	}
}

/** Not filled with zeros: of a large message, all at once, that would hold up others. */
const allocate = (length: number): Uint8Array => Buffer.allocUnsafeSlow(length);

/**
 * Gives the memory of a large piece of bytes back at once, when nobody looks at it any more. The garbage collector does so,
 * too, but while 128 MiB are in use it lets another 500 MiB come together first.
 */
export function free(bytes: Uint8Array): void {
	if (isLarge(bytes) && bytes.length === bytes.buffer.byteLength)
		(bytes.buffer as ArrayBuffer).transfer(0);
}

export const isLarge = ({ length }: Uint8Array) => length > FIRST_PART;

/** What comes before a message. */
export function prefix(length: number): Uint8Array {
	const bytes = new Uint8Array(PREFIX);
	new DataView(bytes.buffer).setUint32(1, length);
	return bytes;
}

/** A compressed message, though no encoding was agreed on. */
export class CompressedError extends Error {}

/** The headers of every response. */
export const RESPONSE_HEADERS: Header[] = [
	[":status", "200"],
	["content-type", "application/grpc"],
];

const OK: Header[] = [["grpc-status", "0"]];

/** What ends a stream. */
export function trailers(code: number, message: string): Header[] {
	if (code === 0) return OK;
	return [
		["grpc-status", String(code)],
		["grpc-message", percentEncode(message)],
	];
}

/** What ends a stream, read. A response without a status is one by something that is not a gRPC server. */
export function readTrailers(headers: Header[]): {
	code: number;
	message: string;
} {
	let code = 2;
	let message = "the response has no grpc-status";
	for (const [name, value] of headers)
		if (name === "grpc-status" && /^\d{1,2}$/.test(value)) {
			code = Number(value);
			message = "";
		}
	for (const [name, value] of headers)
		if (name === "grpc-message" && code !== 0) message = percentDecode(value);
	return { code, message };
}

/** Whether a value of grpc-timeout is one. */
export const isTimeout = (value: string) => /^\d{1,8}[HMSmun]$/.test(value);

const encoder = new TextEncoder();

function percentEncode(text: string): string {
	if (/^[ -$&-~]*$/.test(text)) return text;
	let encoded = "";
	for (const byte of encoder.encode(text))
		encoded +=
			byte >= 0x20 && byte <= 0x7e && byte !== 0x25
				? String.fromCharCode(byte)
				: `%${byte.toString(16).toUpperCase().padStart(2, "0")}`;
	return encoded;
}

/** What is not well encoded stays as it is, as the specification asks. */
function percentDecode(text: string): string {
	if (!text.includes("%")) return text;
	const bytes: number[] = [];
	for (let at = 0; at < text.length; at++) {
		const hex = /^%([0-9a-fA-F]{2})/.exec(text.slice(at, at + 3))?.[1];
		bytes.push(hex ? Number.parseInt(hex, 16) : text.charCodeAt(at));
		if (hex) at += 2;
	}
	return new TextDecoder().decode(new Uint8Array(bytes));
}

/** https://grpc.github.io/grpc/core/md_doc_statuscodes.html */
export const Code = {
	OK: 0,
	CANCELLED: 1,
	UNKNOWN: 2,
	INVALID_ARGUMENT: 3,
	DEADLINE_EXCEEDED: 4,
	NOT_FOUND: 5,
	ALREADY_EXISTS: 6,
	PERMISSION_DENIED: 7,
	RESOURCE_EXHAUSTED: 8,
	FAILED_PRECONDITION: 9,
	ABORTED: 10,
	OUT_OF_RANGE: 11,
	UNIMPLEMENTED: 12,
	INTERNAL: 13,
	UNAVAILABLE: 14,
	DATA_LOSS: 15,
	UNAUTHENTICATED: 16,
} as const;
export type Code = (typeof Code)[keyof typeof Code];

/** How a call ends. */
export class Status extends Error {
	override readonly name = "Status";
	readonly code: Code;

	constructor(code: Code, message: string) {
		super(message);
		this.code = code;
	}
}
