/** Requests, responses and trailers, out of HEADERS, CONTINUATION and DATA frames: RFC 9113 sections 6.1, 6.2, 6.10. Pure. */
import {
	checkRequest,
	checkResponse,
	checkTrailers,
	isInformational,
	MALFORMED,
} from "./fields.ts";
import {
	ConnectionError,
	checkSize,
	ErrorCode,
	endOfPadded,
	Flag,
	get31,
	protocolError,
} from "./frames.ts";
import { Decoder, type Header } from "./hpack.ts";
import type { Stream, StreamEvents } from "./stream.ts";
import type { Streams } from "./streams.ts";

/** Our SETTINGS_MAX_HEADER_LIST_SIZE. */
export const MAX_HEADER_LIST_SIZE = 16_384;
/**
 * Header blocks are at most this long, in however many frames they come: enough for a list of the size above in the
 * longest Huffman codes there are.
 */
const MAX_HEADER_BLOCK = 65_536;

export interface MessagesOptions {
	server: boolean;
	/** Streams that the peer may have open. */
	maxStreams: number;
	/** Server: a request has come. @returns who is told the rest of it */
	onStream(
		stream: Stream,
		headers: Header[],
		ended: boolean,
	): StreamEvents | undefined;
}

export class Messages {
	readonly #options: MessagesOptions;
	readonly #streams: Streams;
	readonly #decoder = new Decoder(4096, MAX_HEADER_LIST_SIZE);
	/** A header block of which only a part has come. */
	#block: { id: number; ended: boolean; parts: Bytes } | undefined;

	constructor(streams: Streams, options: MessagesOptions) {
		this.#streams = streams;
		this.#options = options;
	}

	/** The stream on which a CONTINUATION has to follow, and nothing else; 0 when there is none. */
	get open(): number {
		return this.#block?.id ?? 0;
	}

	/** A HEADERS frame. @throws ConnectionError, CompressionError */
	headers(
		flags: number,
		id: number,
		bytes: Uint8Array,
		start: number,
		end: number,
	): void {
		if (this.#options.server ? (id & 1) === 0 : this.#streams.isIdle(id))
			throw protocolError(`HEADERS on stream ${id}`);
		let from = start;
		let to = end;
		if (flags & Flag.PADDED) {
			to = endOfPadded(bytes, start, end);
			from++;
		}
		if (flags & Flag.PRIORITY) {
			checkSize(to - from >= 5, "HEADERS with a priority", end - start);
			if (get31(bytes, from) === id)
				throw protocolError("a stream depends on itself");
			from += 5;
		}
		const ended = (flags & Flag.END_STREAM) !== 0;
		if (flags & Flag.END_HEADERS) this.#onBlock(id, ended, bytes, from, to);
		else {
			const parts = new Bytes();
			parts.append(bytes, from, to);
			this.#block = { id, ended, parts };
		}
	}

	/** A CONTINUATION frame. @throws ConnectionError, CompressionError */
	continuation(
		flags: number,
		bytes: Uint8Array,
		start: number,
		end: number,
	): void {
		const block = this.#block;
		if (!block) throw protocolError("CONTINUATION of nothing");
		const { id, ended, parts } = block;
		const complete = (flags & Flag.END_HEADERS) !== 0;
		// CVE-2024-27316 and its kind: a block without end.
		if (
			parts.length + end - start > MAX_HEADER_BLOCK ||
			(start === end && !complete)
		)
			throw new ConnectionError(
				ErrorCode.ENHANCE_YOUR_CALM,
				`a header block of over ${MAX_HEADER_BLOCK} bytes, or in empty frames`,
			);
		parts.append(bytes, start, end);
		if (!complete) return;
		this.#block = undefined;
		this.#onBlock(id, ended, parts.bytes, 0, parts.length);
	}

	/** A complete header block. */
	#onBlock(
		id: number,
		ended: boolean,
		bytes: Uint8Array,
		start: number,
		end: number,
	): void {
		// Decoded whatever becomes of the stream: the table must stay in step.
		const headers = this.#decoder.decode(bytes, start, end);
		const stream = this.#streams.get(id);
		if (stream) this.#onFields(stream, headers, ended);
		else if (this.#options.server && this.#streams.isIdle(id))
			this.#onRequest(id, headers, ended);
		else if (!this.#streams.wasAbandoned(id))
			// https://www.rfc-editor.org/rfc/rfc9113#section-5.1.1
			throw new ConnectionError(
				ErrorCode.STREAM_CLOSED,
				`HEADERS on stream ${id}, which has ended`,
			);
	}

	#onRequest(id: number, headers: Header[] | undefined, ended: boolean): void {
		const streams = this.#streams;
		const stream = streams.requested(id);
		if (!stream) return;
		stream.headersReceived = true;
		const length = headers ? checkRequest(headers) : MALFORMED;
		if (!headers) streams.fail(stream, ErrorCode.ENHANCE_YOUR_CALM);
		else if (streams.size > this.#options.maxStreams)
			streams.fail(stream, ErrorCode.REFUSED_STREAM);
		else if (length === MALFORMED || (ended && length > 0))
			streams.fail(stream, ErrorCode.PROTOCOL_ERROR);
		else {
			stream.contentLeft = length;
			stream.remoteEnded = ended;
			stream.events = this.#options.onStream(stream, headers, ended);
		}
	}

	/** A response, or trailers. */
	#onFields(
		stream: Stream,
		headers: Header[] | undefined,
		ended: boolean,
	): void {
		const trailers = stream.headersReceived;
		if (stream.remoteEnded) {
			this.#streams.fail(stream, ErrorCode.STREAM_CLOSED);
			return;
		}
		if (!headers) {
			this.#streams.fail(stream, ErrorCode.ENHANCE_YOUR_CALM);
			return;
		}
		const checked = trailers ? checkTrailers(headers) : checkResponse(headers);
		const informational = !trailers && isInformational(headers);
		if (
			checked === MALFORMED ||
			(trailers && (!ended || stream.contentLeft > 0)) ||
			(informational && ended)
		) {
			this.#streams.fail(stream, ErrorCode.PROTOCOL_ERROR);
			return;
		}
		if (informational) return;
		stream.headersReceived = true;
		if (ended) this.#streams.remoteEnd(stream);
		stream.events?.onHeaders(headers, ended);
	}

	/** A DATA frame. @throws ConnectionError */
	data(
		flags: number,
		id: number,
		bytes: Uint8Array,
		start: number,
		end: number,
	): void {
		const stream = this.#streams.known(id, "DATA");
		const padded = (flags & Flag.PADDED) !== 0;
		const from = padded ? start + 1 : start;
		const to = padded ? endOfPadded(bytes, start, end) : end;
		const ended = (flags & Flag.END_STREAM) !== 0;
		if (!stream) {
			if (!this.#streams.wasAbandoned(id))
				this.#streams.writer.reset(id, ErrorCode.STREAM_CLOSED);
			return;
		}
		const size = end - start;
		const code = this.#streams.exceeds(stream, size)
			? ErrorCode.FLOW_CONTROL_ERROR
			: checkData(stream, to - from, ended);
		if (code !== ErrorCode.NO_ERROR) {
			this.#streams.fail(stream, code);
			return;
		}
		if (ended) this.#streams.remoteEnd(stream);
		// Padding is nothing that anybody would grant again.
		else if (padded) stream.grant(size - (to - from));
		if (to > from || ended)
			stream.events?.onData(bytes.subarray(from, to), ended);
	}
}

/** @returns the stream error that DATA is, NO_ERROR when it is none */
function checkData(stream: Stream, length: number, ended: boolean): number {
	if (stream.remoteEnded) return ErrorCode.STREAM_CLOSED;
	if (!stream.headersReceived) return ErrorCode.PROTOCOL_ERROR;
	if (stream.contentLeft < 0) return ErrorCode.NO_ERROR;
	stream.contentLeft -= length;
	if (stream.contentLeft < 0 || (ended && stream.contentLeft > 0))
		return ErrorCode.PROTOCOL_ERROR;
	return ErrorCode.NO_ERROR;
}

/** Bytes that are put together from parts, however small: each is copied a few times at most. */
class Bytes {
	bytes = new Uint8Array(256);
	length = 0;

	append(part: Uint8Array, start: number, end: number): void {
		const length = this.length + end - start;
		if (length > this.bytes.length) {
			const larger = new Uint8Array(Math.max(length, 2 * this.bytes.length));
			larger.set(this.bytes.subarray(0, this.length));
			this.bytes = larger;
		}
		this.bytes.set(part.subarray(start, end), this.length);
		this.length = length;
	}
}
