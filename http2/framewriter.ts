/** Frames of HTTP/2, put together into one buffer that goes out once per turn of the event loop. Pure. */
import {
	Flag,
	FRAME_HEADER,
	FrameType,
	MAX_FRAME_SIZE,
	PREFACE,
	put32,
} from "./frames.ts";
import { Encoder, type Header, maxEncodedLength } from "./hpack.ts";

/** How much DATA is put together before it is handed to the transport: a few TLS records. */
const FLUSH_BYTES = 65_536;
const NOTHING = new Uint8Array(0);
const encoder = new TextEncoder();

/** Bytes to the peer. */
export interface Transport {
	/** @param done called once the bytes are no longer needed and more may be written */
	write(bytes: Uint8Array, done: () => void): void;
	/** After what has been written. */
	end(): void;
}

export class FrameWriter {
	readonly #transport: Transport;
	readonly #fill: () => void;
	readonly #encoder = new Encoder();
	#buffer: Uint8Array = NOTHING;
	/** The buffer that the transport has. */
	#lent: Uint8Array = NOTHING;
	#length = 0;
	/** How much went out the last time: as much may be needed the next time. */
	#usual = 256;
	/** The transport has not yet taken what was written last. */
	#writing = false;
	#scheduled = false;
	#ending = false;
	#ended = false;
	readonly #flushNow = () => {
		this.#scheduled = false;
		this.#flush();
	};
	readonly #written = () => {
		this.#writing = false;
		this.#takeBack();
		// In a turn of its own, for a transport that is done at once, however much there is to write.
		this.schedule();
	};

	/** @param fill called before the buffer goes out, to put in what has waited for its turn */
	constructor(transport: Transport, fill: () => void) {
		this.#transport = transport;
		this.#fill = fill;
	}

	/** Bytes that the transport has not taken yet. */
	get length(): number {
		return this.#length;
	}

	/** Whether there is enough in the buffer for now: more DATA would only be in the way of what is more urgent. */
	get full(): boolean {
		return this.#length >= FLUSH_BYTES;
	}

	/** The peer's SETTINGS_HEADER_TABLE_SIZE. */
	set headerTableSize(octets: number) {
		this.#encoder.tableSize = octets;
	}

	preface(): void {
		const at = this.#reserve(PREFACE.length);
		this.#buffer.set(PREFACE, at);
		this.#length += PREFACE.length;
		this.schedule();
	}

	settings(settings: [id: number, value: number][]): void {
		let at = this.#frame(FrameType.SETTINGS, 0, 0, settings.length * 6);
		for (const [id, value] of settings) {
			this.#buffer[at] = id >> 8;
			this.#buffer[at + 1] = id;
			put32(this.#buffer, at + 2, value);
			at += 6;
		}
	}

	settingsAck(): void {
		this.#frame(FrameType.SETTINGS, Flag.ACK, 0, 0);
	}

	ping(): void {
		const at = this.#frame(FrameType.PING, 0, 0, 8);
		this.#buffer.fill(0, at, at + 8);
	}

	/** The answer to a PING with the payload bytes[start, start + 8). */
	pingAck(bytes: Uint8Array, start: number): void {
		const at = this.#frame(FrameType.PING, Flag.ACK, 0, 8);
		this.#buffer.set(bytes.subarray(start, start + 8), at);
	}

	goaway(lastId: number, code: number, reason: string): void {
		const text = encoder.encode(reason);
		const at = this.#frame(FrameType.GOAWAY, 0, 0, 8 + text.length);
		put32(this.#buffer, at, lastId);
		put32(this.#buffer, at + 4, code);
		this.#buffer.set(text, at + 8);
	}

	reset(id: number, code: number): void {
		const at = this.#frame(FrameType.RST_STREAM, 0, id, 4);
		put32(this.#buffer, at, code);
	}

	windowUpdate(id: number, increment: number): void {
		const at = this.#frame(FrameType.WINDOW_UPDATE, 0, id, 4);
		put32(this.#buffer, at, increment);
	}

	/** A header block, in CONTINUATION frames as well where it does not fit into one. */
	headers(id: number, headers: readonly Header[], end: boolean): void {
		const start = this.#reserve(FRAME_HEADER + maxEncodedLength(headers));
		const first = start + FRAME_HEADER;
		const length = this.#encoder.encode(headers, this.#buffer, first) - first;
		const flags = end ? Flag.END_STREAM : 0;
		if (length > MAX_FRAME_SIZE)
			this.#longHeaders(id, this.#buffer.slice(first, first + length), flags);
		else {
			this.#head(
				start,
				FrameType.HEADERS,
				flags | Flag.END_HEADERS,
				id,
				length,
			);
			this.#length = first + length;
			this.schedule();
		}
	}

	#longHeaders(id: number, block: Uint8Array, flags: number): void {
		for (let from = 0; from < block.length; from += MAX_FRAME_SIZE) {
			const part = block.subarray(from, from + MAX_FRAME_SIZE);
			const last = from + part.length === block.length;
			const at = this.#frame(
				from === 0 ? FrameType.HEADERS : FrameType.CONTINUATION,
				(from === 0 ? flags : 0) | (last ? Flag.END_HEADERS : 0),
				id,
				part.length,
			);
			this.#buffer.set(part, at);
		}
	}

	/** bytes[from, to), at most MAX_FRAME_SIZE. */
	data(
		id: number,
		bytes: Uint8Array,
		from: number,
		to: number,
		end: boolean,
	): void {
		const flags = end ? Flag.END_STREAM : 0;
		const at = this.#frame(FrameType.DATA, flags, id, to - from);
		const whole = to - from === bytes.length;
		this.#buffer.set(whole ? bytes : bytes.subarray(from, to), at);
	}

	/** What is written in one turn of the event loop goes out together. */
	schedule(): void {
		if (this.#scheduled || this.#writing || this.#ended) return;
		this.#scheduled = true;
		queueMicrotask(this.#flushNow);
	}

	/** Ends the transport once all has gone out. */
	end(): void {
		this.#ending = true;
		this.schedule();
	}

	/** The transport is gone. */
	abandon(): void {
		this.#ended = true;
		this.#buffer = NOTHING;
		this.#lent = NOTHING;
		this.#length = 0;
	}

	#flush(): void {
		if (this.#writing || this.#ended) return;
		this.#fill();
		if (this.#length > 0) {
			const bytes = this.#buffer.subarray(0, this.#length);
			// The transport keeps what it is given until it is done with it.
			this.#lent = this.#buffer;
			this.#buffer = NOTHING;
			this.#usual = Math.min(this.#length, FLUSH_BYTES);
			this.#length = 0;
			this.#writing = true;
			this.#transport.write(bytes, this.#written);
			return;
		}
		// Without traffic, none is kept: there may be many connections.
		this.#buffer = NOTHING;
		if (!this.#ending) return;
		this.#ended = true;
		this.#transport.end();
	}

	/** Large answers need large buffers again and again: to get these from the heap took most of the time. */
	#takeBack(): void {
		if (this.#lent.length > this.#buffer.length) {
			this.#lent.set(this.#buffer.subarray(0, this.#length));
			this.#buffer = this.#lent;
		}
		this.#lent = NOTHING;
	}

	/** Room for a frame, with its header written. @returns where the payload begins in `#buffer` */
	#frame(type: number, flags: number, id: number, length: number): number {
		const start = this.#reserve(FRAME_HEADER + length);
		this.#head(start, type, flags, id, length);
		this.#length = start + FRAME_HEADER + length;
		this.schedule();
		return start + FRAME_HEADER;
	}

	#head(
		at: number,
		type: number,
		flags: number,
		id: number,
		length: number,
	): void {
		const buffer = this.#buffer;
		buffer[at] = length >> 16;
		buffer[at + 1] = length >> 8;
		buffer[at + 2] = length;
		buffer[at + 3] = type;
		buffer[at + 4] = flags;
		put32(buffer, at + 5, id);
	}

	/** @returns where to write; `#buffer` may be another one after this */
	#reserve(length: number): number {
		const needed = this.#length + length;
		if (needed > this.#buffer.length) {
			const larger = new Uint8Array(
				Math.max(
					needed,
					this.#length === 0
						? this.#usual + FRAME_HEADER
						: 2 * this.#buffer.length,
				),
			);
			larger.set(this.#buffer.subarray(0, this.#length));
			this.#buffer = larger;
		}
		return this.#length;
	}
}
