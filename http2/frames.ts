/** Frames of HTTP/2, read from bytes in whatever pieces: https://www.rfc-editor.org/rfc/rfc9113#section-4. Pure. */

/** https://www.rfc-editor.org/rfc/rfc9113#section-7 */
export const ErrorCode = {
	NO_ERROR: 0,
	PROTOCOL_ERROR: 1,
	INTERNAL_ERROR: 2,
	FLOW_CONTROL_ERROR: 3,
	STREAM_CLOSED: 5,
	FRAME_SIZE_ERROR: 6,
	REFUSED_STREAM: 7,
	CANCEL: 8,
	COMPRESSION_ERROR: 9,
	ENHANCE_YOUR_CALM: 11,
} as const;

/** https://www.rfc-editor.org/rfc/rfc9113#section-6 */
export const FrameType = {
	DATA: 0,
	HEADERS: 1,
	PRIORITY: 2,
	RST_STREAM: 3,
	SETTINGS: 4,
	PUSH_PROMISE: 5,
	PING: 6,
	GOAWAY: 7,
	WINDOW_UPDATE: 8,
	CONTINUATION: 9,
} as const;

export const Flag = {
	END_STREAM: 0x1,
	ACK: 0x1,
	END_HEADERS: 0x4,
	PADDED: 0x8,
	PRIORITY: 0x20,
} as const;

/** https://www.rfc-editor.org/rfc/rfc9113#section-6.5.2 */
export const Setting = {
	HEADER_TABLE_SIZE: 1,
	ENABLE_PUSH: 2,
	MAX_CONCURRENT_STREAMS: 3,
	INITIAL_WINDOW_SIZE: 4,
	MAX_FRAME_SIZE: 5,
	MAX_HEADER_LIST_SIZE: 6,
} as const;

/** What a client begins with: https://www.rfc-editor.org/rfc/rfc9113#section-3.4 */
export const PREFACE = new TextEncoder().encode(
	"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
);
/** Of a frame, before its payload. */
export const FRAME_HEADER = 9;
/** What we take, and the least that a peer must take; larger ones of ours would only make other streams wait. */
export const MAX_FRAME_SIZE = 16_384;
export const MAX_WINDOW = 2 ** 31 - 1;
/** Of the connection, and of streams until a SETTINGS says otherwise. */
export const DEFAULT_WINDOW = 65_535;

/** The peer broke the protocol; the connection ends: https://www.rfc-editor.org/rfc/rfc9113#section-5.4.1 */
export class ConnectionError extends Error {
	readonly code: number;

	/** @param code of ErrorCode */
	constructor(code: number, message: string) {
		super(message);
		this.code = code;
	}
}

export const protocolError = (message: string) =>
	new ConnectionError(ErrorCode.PROTOCOL_ERROR, message);

/** @throws ConnectionError unless `valid` */
export function checkSize(valid: boolean, what: string, length: number): void {
	if (!valid)
		throw new ConnectionError(
			ErrorCode.FRAME_SIZE_ERROR,
			`${what} of ${length} bytes`,
		);
}

const byte = (bytes: Uint8Array, at: number) => bytes[at] as number;

export const get32 = (bytes: Uint8Array, at: number) =>
	((byte(bytes, at) << 24) |
		(byte(bytes, at + 1) << 16) |
		(byte(bytes, at + 2) << 8) |
		byte(bytes, at + 3)) >>>
	0;

/** Without the reserved bit. */
export const get31 = (bytes: Uint8Array, at: number) =>
	((byte(bytes, at) & 0x7f) << 24) |
	(byte(bytes, at + 1) << 16) |
	(byte(bytes, at + 2) << 8) |
	byte(bytes, at + 3);

export const get16 = (bytes: Uint8Array, at: number) =>
	(byte(bytes, at) << 8) | byte(bytes, at + 1);

export function put32(bytes: Uint8Array, at: number, value: number): void {
	bytes[at] = value >>> 24;
	bytes[at + 1] = value >>> 16;
	bytes[at + 2] = value >>> 8;
	bytes[at + 3] = value;
}

/** Where the payload of a padded frame ends: https://www.rfc-editor.org/rfc/rfc9113#section-6.1. @throws ConnectionError */
export function endOfPadded(
	bytes: Uint8Array,
	start: number,
	end: number,
): number {
	checkSize(end > start, "a padded frame", end - start);
	const padding = byte(bytes, start);
	if (padding >= end - start)
		throw protocolError("more padding than there is room for");
	return end - padding;
}

/** @throws ConnectionError when a window is too large: https://www.rfc-editor.org/rfc/rfc9113#section-6.9.1 */
export function checkWindow(window: number): void {
	if (window > MAX_WINDOW)
		throw new ConnectionError(
			ErrorCode.FLOW_CONTROL_ERROR,
			"a window of over 2^31-1",
		);
}

/**
 * A PRIORITY frame. Priorities mean nothing here, but have to be well-formed: RFC 9113 section 6.3.
 * @throws ConnectionError
 */
export function checkPriority(
	id: number,
	bytes: Uint8Array,
	start: number,
	end: number,
): void {
	if (id === 0) throw protocolError("PRIORITY without a stream");
	checkSize(end - start === 5, "PRIORITY", end - start);
	if (get31(bytes, start) === id)
		throw protocolError("a stream depends on itself");
}

/** What a SETTINGS frame says, as far as it matters here: https://www.rfc-editor.org/rfc/rfc9113#section-6.5.2 */
export interface PeerSettings {
	/** In their order: the smallest matters, too (https://www.rfc-editor.org/rfc/rfc7541#section-4.2). */
	headerTableSizes: number[];
	/** Whether streams may be pushed. */
	push?: boolean;
	maxStreams?: number;
	initialWindow?: number;
}

/** The payload of a SETTINGS frame; of what it says repeatedly, the last. @throws ConnectionError */
export function readSettings(
	bytes: Uint8Array,
	start: number,
	end: number,
): PeerSettings {
	checkSize((end - start) % 6 === 0, "SETTINGS", end - start);
	const settings: PeerSettings = { headerTableSizes: [] };
	for (let at = start; at < end; at += 6) {
		const value = get32(bytes, at + 2);
		switch (get16(bytes, at)) {
			case Setting.HEADER_TABLE_SIZE:
				settings.headerTableSizes.push(value);
				break;
			case Setting.ENABLE_PUSH:
				if (value > 1) throw protocolError(`ENABLE_PUSH ${value}`);
				settings.push = value === 1;
				break;
			case Setting.MAX_CONCURRENT_STREAMS:
				settings.maxStreams = value;
				break;
			case Setting.INITIAL_WINDOW_SIZE:
				checkWindow(value);
				settings.initialWindow = value;
				break;
			case Setting.MAX_FRAME_SIZE:
				if (value < MAX_FRAME_SIZE || value >= 2 ** 24)
					throw protocolError(`MAX_FRAME_SIZE ${value}`);
				break;
		}
	}
	return settings;
}

/** A frame; its payload is bytes[start, end), which are only valid during the call. */
export type OnFrame = (
	type: number,
	flags: number,
	id: number,
	bytes: Uint8Array,
	start: number,
	end: number,
) => void;

/** Cuts what comes from the peer into frames. */
export class FrameReader {
	readonly #onFrame: OnFrame;
	#prefaceLeft: number;
	/** A frame that has not come completely: its header, later all of it. */
	#partial: Uint8Array | undefined;
	#filled = 0;
	#stopped = false;

	/** @param preface whether what comes begins with a client's preface */
	constructor(preface: boolean, onFrame: OnFrame) {
		this.#onFrame = onFrame;
		this.#prefaceLeft = preface ? PREFACE.length : 0;
	}

	/** @throws ConnectionError, and what onFrame throws */
	push(chunk: Uint8Array): void {
		let at = this.#prefaceLeft > 0 ? this.#preface(chunk) : 0;
		if (this.#partial) at = this.#complete(this.#partial, chunk, at);
		while (chunk.length - at >= FRAME_HEADER && !this.#stopped) {
			const start = at;
			const end = start + FRAME_HEADER + payloadLength(chunk, start);
			if (end > chunk.length) break;
			at = end;
			this.#frame(chunk, start, end);
		}
		if (at < chunk.length && !this.#stopped) this.#keep(chunk, at);
	}

	/** No more frames, also not of what is being read. */
	stop(): void {
		this.#stopped = true;
		this.#partial = undefined;
	}

	#preface(chunk: Uint8Array): number {
		let at = 0;
		while (this.#prefaceLeft > 0 && at < chunk.length) {
			if (chunk[at] !== PREFACE[PREFACE.length - this.#prefaceLeft])
				throw protocolError("this is not HTTP/2");
			at++;
			this.#prefaceLeft--;
		}
		return at;
	}

	/** The rest of a chunk: no more than a frame, and a copy, for the transport may use its buffer again. */
	#keep(chunk: Uint8Array, from: number): void {
		const length =
			chunk.length - from < FRAME_HEADER ? 0 : payloadLength(chunk, from);
		this.#partial = new Uint8Array(FRAME_HEADER + length);
		this.#partial.set(chunk.subarray(from));
		this.#filled = chunk.length - from;
	}

	/** @returns how far the chunk has been used to complete the frame */
	#complete(partial: Uint8Array, chunk: Uint8Array, from: number): number {
		const to = Math.min(chunk.length, from + partial.length - this.#filled);
		partial.set(chunk.subarray(from, to), this.#filled);
		this.#filled += to - from;
		if (this.#filled < partial.length) return to;
		const length = payloadLength(partial, 0);
		if (partial.length < FRAME_HEADER + length) {
			this.#partial = new Uint8Array(FRAME_HEADER + length);
			this.#partial.set(partial);
			return this.#complete(this.#partial, chunk, to);
		}
		this.#partial = undefined;
		this.#frame(partial, 0, partial.length);
		return to;
	}

	#frame(bytes: Uint8Array, start: number, end: number): void {
		this.#onFrame(
			byte(bytes, start + 3),
			byte(bytes, start + 4),
			get31(bytes, start + 5),
			bytes,
			start + FRAME_HEADER,
			end,
		);
	}
}

function payloadLength(bytes: Uint8Array, at: number): number {
	const length = (byte(bytes, at) << 16) | get16(bytes, at + 1);
	checkSize(length <= MAX_FRAME_SIZE, "a frame", length);
	return length;
}
