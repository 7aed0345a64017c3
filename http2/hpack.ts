/**
 * HPACK (RFC 7541), the compression of HTTP/2's header fields. Every decoder keeps a table of the fields that came
 * before, and its encoder the same one: after the first request of a client most fields are one octet, an index.
 * The decoder is strict, for it reads what tenants send, and its work is linear in the octets that it is given.
 */

/** One header field; names are lower case on the wire (RFC 9113 section 8.2). One character is one octet (Latin-1). */
export type Header = [name: string, value: string];

/** A broken header block: a connection error COMPRESSION_ERROR (RFC 9113 section 4.3). */
export class CompressionError extends Error {
	override name = "CompressionError";
}

/** Octets; what every connection begins with, and what our encoder uses at most. */
const TABLE_SIZE = 4096;
/** What a field takes besides its octets: https://www.rfc-editor.org/rfc/rfc7541#section-4.1 */
const OVERHEAD = 32;
const MAX_INTEGER = 2 ** 31 - 1;

/** https://www.rfc-editor.org/rfc/rfc7541#appendix-A, from index 1 */
const STATIC_TABLE = (
	":authority|:method=GET|:method=POST|:path=/|:path=/index.html|:scheme=http|:scheme=https|:status=200|:status=204|" +
	":status=206|:status=304|:status=400|:status=404|:status=500|accept-charset|accept-encoding=gzip, deflate|" +
	"accept-language|accept-ranges|accept|access-control-allow-origin|age|allow|authorization|cache-control|" +
	"content-disposition|content-encoding|content-language|content-length|content-location|content-range|content-type|" +
	"cookie|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range|if-unmodified-since|" +
	"last-modified|link|location|max-forwards|proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after|" +
	"server|set-cookie|strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate"
)
	.split("|")
	.map((field): Header => {
		const [name = "", value = ""] = field.split("=");
		return [name, value];
	});
const FIRST_DYNAMIC = STATIC_TABLE.length + 1;

/**
 * The length of the Huffman code of each octet and of EOS, from "a" for 5 bits to "z" for 30. That is all of
 * https://www.rfc-editor.org/rfc/rfc7541#appendix-B, since the code is canonical: sorted by length, then by octet.
 */
const CODE_LENGTHS =
	"isxxxxxxxtzxxzxxxxxxxxzxxxxxxxxxbffhibdgffdgdbbbaaabbbbbbbcdkbhfibccccccccccccccccccccccdcdioijb" +
	"kabababbbaccbbbabcbaabccccckgjixprpprrrsrssssststtrstssssqrsrsstrqprrssqsrrtqrssqqrqsrssprrrsrrs" +
	"vvporsruvvvwwvtuoqvwwvwtqqvvxwwwptpqrqqsrruuttvsvwvvwwwwwxwwwwwvz";
const EOS = 256;

// The Huffman decoder goes four bits at a time. A step is the state that follows and, above it:
const STATE = 0x1ff;
/** A bit: a string may end here, at most seven bits of EOS are left. */
const PADDING = 1 << 9;
/** Where the bit is that says whether a symbol is complete. */
const COMPLETE = 10;
/** Where the symbol begins. */
const SYMBOL = 16;
/** The state after EOS, which must not be sent; nothing leads out of it. */
const REFUSED = 256;
/** Indexed by state * 16 + bits. */
const STEPS = huffmanSteps();
/** Where short Huffman strings are written before they become strings. */
const SCRATCH = new Uint8Array(1024);

/** The states are the inner nodes of the code's tree, numbered from the root level by level. */
function huffmanSteps(): Uint32Array {
	/** By the length of their codes. */
	const symbols: number[][] = [];
	for (let symbol = 0; symbol <= EOS; symbol++) {
		const length = CODE_LENGTHS.charCodeAt(symbol) - 92;
		symbols[length] ??= [];
		symbols[length].push(symbol);
	}
	/** The steps by one bit: of state n at 2n and 2n + 1. Of each level the first are symbols, the others nodes. */
	const bits = new Uint32Array(2 * (REFUSED + 1)).fill(REFUSED);
	let at = 0;
	let nodes = 0;
	for (let depth = 1; depth <= 30; depth++) {
		const end = 2 * (nodes + 1);
		for (const symbol of symbols[depth] ?? [])
			if (symbol !== EOS)
				bits[at++] = (symbol << SYMBOL) | (1 << COMPLETE) | PADDING;
		while (at < end && nodes < REFUSED - 1)
			bits[at++] = ++nodes | (at === end && depth < 8 ? PADDING : 0);
	}
	// No code is shorter than five bits: one symbol at most is complete in a step.
	const steps = new Uint32Array(16 * (REFUSED + 1));
	for (let state = 0; state <= REFUSED; state++) {
		const row = 16 * state;
		steps[row] = state;
		for (let width = 1; width < 16; width *= 2)
			for (let index = width - 1; index >= 0; index--) {
				const step = steps[row + index] as number;
				const symbol = step & ~(STATE | PADDING);
				const next = 2 * (step & STATE);
				steps[row + 2 * index + 1] = symbol | (bits[next + 1] as number);
				steps[row + 2 * index] = symbol | (bits[next] as number);
			}
	}
	return steps;
}

function latin1(bytes: Uint8Array, start: number, end: number): string {
	// One native call; a loop of String.fromCharCode is slower from four characters on.
	return Buffer.prototype.toString.call(bytes, "latin1", start, end);
}

/** https://www.rfc-editor.org/rfc/rfc7541#section-5.2 */
function huffman(bytes: Uint8Array, start: number, end: number): string {
	const most = Math.ceil(((end - start) * 8) / 5);
	const out = most < SCRATCH.length ? SCRATCH : new Uint8Array(most + 1);
	let step = PADDING;
	let length = 0;
	for (let at = start; at < end; at++) {
		const octet = bytes[at] as number;
		step = STEPS[((step & STATE) << 4) | (octet >> 4)] as number;
		// Written over by the next unless a symbol is complete.
		out[length] = step >> SYMBOL;
		length += (step >> COMPLETE) & 1;
		step = STEPS[((step & STATE) << 4) | (octet & 15)] as number;
		out[length] = step >> SYMBOL;
		length += (step >> COMPLETE) & 1;
	}
	if (!(step & PADDING))
		throw new CompressionError(
			(step & STATE) === REFUSED
				? "EOS in a string"
				: "a string's padding is wrong",
		);
	return latin1(out, 0, length);
}

const NONE: Header = ["", ""];

/** The dynamic table: https://www.rfc-editor.org/rfc/rfc7541#section-2.3.2. A ring, the oldest entry evicted first. */
class Table {
	readonly #ring: Header[];
	readonly #mask: number;
	#count = 0;
	#size = 0;
	/** Octets; to be changed by `resize`. */
	maxSize: number;
	/** Entries that ever were inserted: the number of the next one. */
	inserted = 0;

	/** @param capacity octets that maxSize never exceeds */
	constructor(capacity: number, maxSize: number) {
		let length = 1;
		while (length * OVERHEAD < capacity) length *= 2;
		this.#ring = new Array<Header>(length).fill(NONE);
		this.#mask = length - 1;
		this.maxSize = maxSize;
	}

	resize(octets: number): void {
		this.maxSize = octets;
		this.#shrink(octets);
	}

	/** @param index 0 is the newest entry */
	entry(index: number): Header | undefined {
		if (index >= this.#count) return undefined;
		return this.#ring[(this.inserted - 1 - index) & this.#mask];
	}

	/** An entry that is larger than the table just empties it: https://www.rfc-editor.org/rfc/rfc7541#section-4.4 */
	insert(header: Header): void {
		const size = sizeOf(header);
		this.#shrink(this.maxSize - size);
		if (size > this.maxSize) return;
		this.#ring[this.inserted++ & this.#mask] = header;
		this.#count++;
		this.#size += size;
	}

	#shrink(size: number): void {
		while (this.#count > 0 && this.#size > size) {
			const place = (this.inserted - this.#count) & this.#mask;
			const header = this.#ring[place] as Header;
			// Not to be kept alive by its old place.
			this.#ring[place] = NONE;
			this.#count--;
			this.#size -= sizeOf(header);
			this.evicted(header);
		}
	}

	/** For those who know more about an entry. */
	evicted(_header: Header): void {}
}

function sizeOf(header: Header): number {
	return header[0].length + header[1].length + OVERHEAD;
}

/** Of one direction of one connection. After a CompressionError it is of no more use. */
export class Decoder {
	readonly #table: Table;
	readonly #tableSize: number;
	readonly #maxListSize: number;
	#bytes: Uint8Array = SCRATCH;
	#at = 0;
	#end = 0;

	/**
	 * @param tableSize our SETTINGS_HEADER_TABLE_SIZE, octets. Less than 4096 is for peers that know it from the first
	 * request on; others use 4096 until they have read our SETTINGS.
	 * @param maxListSize octets, RFC 9113 SETTINGS_MAX_HEADER_LIST_SIZE: name + value + 32 each
	 */
	constructor(tableSize = TABLE_SIZE, maxListSize = 16_384) {
		this.#table = new Table(tableSize, Math.min(tableSize, TABLE_SIZE));
		this.#tableSize = tableSize;
		this.#maxListSize = maxListSize;
	}

	/**
	 * Decodes one complete header block buffer[start, end). The tuples may be those of the table: not to be modified.
	 * @returns undefined when the list is over maxListSize; the dynamic table is kept in step all the same
	 * @throws CompressionError; on an empty name, too, though that is a malformed request rather than a broken block
	 */
	decode(buffer: Uint8Array, start: number, end: number): Header[] | undefined {
		this.#bytes = buffer;
		this.#at = start;
		this.#end = end;
		const headers: Header[] = [];
		let size = 0;
		let begun = false;
		while (this.#at < end) {
			const octet = buffer[this.#at++] as number;
			if (octet >> 5 === 1) {
				this.#resize(this.#integer(octet, 0x1f), begun);
				continue;
			}
			begun = true;
			const header =
				octet >= 0x80
					? this.#field(this.#integer(octet, 0x7f))
					: this.#literal(octet);
			size += sizeOf(header);
			if (size <= this.#maxListSize) headers.push(header);
		}
		this.#bytes = SCRATCH;
		return size <= this.#maxListSize ? headers : undefined;
	}

	/** https://www.rfc-editor.org/rfc/rfc7541#section-6.3 */
	#resize(octets: number, begun: boolean): void {
		if (begun)
			throw new CompressionError("a table size update within a header block");
		if (octets > this.#tableSize)
			throw new CompressionError(`a table of ${octets} octets`);
		this.#table.resize(octets);
	}

	/** A field by its index: https://www.rfc-editor.org/rfc/rfc7541#section-2.3.3 */
	#field(index: number): Header {
		const header =
			index < FIRST_DYNAMIC
				? STATIC_TABLE[index - 1]
				: this.#table.entry(index - FIRST_DYNAMIC);
		if (!header) throw new CompressionError(`no field has index ${index}`);
		return header;
	}

	/** With incremental indexing, without, or never indexed: https://www.rfc-editor.org/rfc/rfc7541#section-6.2 */
	#literal(octet: number): Header {
		const indexed = octet >= 0x40;
		const index = this.#integer(octet, indexed ? 0x3f : 0x0f);
		const name = index > 0 ? this.#field(index)[0] : this.#string();
		if (name === "") throw new CompressionError("a field without a name");
		const header: Header = [name, this.#string()];
		if (indexed) this.#table.insert(header);
		return header;
	}

	/** https://www.rfc-editor.org/rfc/rfc7541#section-5.1. @param prefix the bits that belong to the integer */
	#integer(octet: number, prefix: number): number {
		let value = octet & prefix;
		if (value < prefix) return value;
		for (let shift = 0; shift <= 28; shift += 7) {
			const next = this.#octet();
			value += (next & 0x7f) * 2 ** shift;
			if (value > MAX_INTEGER) break;
			if (next < 0x80) return value;
		}
		throw new CompressionError("an integer of over 31 bits or five octets");
	}

	#string(): string {
		const octet = this.#octet();
		const length = this.#integer(octet, 0x7f);
		const start = this.#at;
		if (length > this.#end - start)
			throw new CompressionError("a header block is truncated");
		this.#at = start + length;
		return octet < 0x80
			? latin1(this.#bytes, start, this.#at)
			: huffman(this.#bytes, start, this.#at);
	}

	#octet(): number {
		if (this.#at >= this.#end)
			throw new CompressionError("a header block is truncated");
		return this.#bytes[this.#at++] as number;
	}
}

/** The fields of one name: their indexes in the static table, or their numbers in a dynamic one. */
interface Name {
	latest: number;
	/** By value. */
	readonly values: Map<string, number>;
}

function remember(
	names: Map<string, Name>,
	[name, value]: Header,
	index: number,
): void {
	const known = names.get(name);
	if (known) {
		known.latest = index;
		known.values.set(value, index);
	} else names.set(name, { latest: index, values: new Map([[value, index]]) });
}

const STATIC_NAMES = new Map<string, Name>();
// Backwards, so that a name alone is sent as the first index that has it, as the RFC's examples do.
STATIC_TABLE.toReversed().forEach((header, index) => {
	remember(STATIC_NAMES, header, STATIC_TABLE.length - index);
});

/** Another value with every request: they would only drive the others out of the table. */
const UNINDEXED = new Set(["grpc-timeout", "grpc-message", "content-length"]);

/** A table in which fields can be looked up. No field is in it twice, and none is inserted that does not fit. */
class SearchableTable extends Table {
	readonly names = new Map<string, Name>();

	override insert(header: Header): void {
		super.insert(header);
		remember(this.names, header, this.inserted - 1);
	}

	override evicted([name, value]: Header): void {
		const values = this.names.get(name)?.values;
		values?.delete(value);
		if (values?.size === 0) this.names.delete(name);
	}
}

/** Of one direction of one connection. Its strings are not Huffman coded: we rather save time than octets. */
export class Encoder {
	readonly #table = new SearchableTable(TABLE_SIZE, TABLE_SIZE);
	#allowed = TABLE_SIZE;
	/** The peer has not been told yet that the table is smaller. */
	#reduced = false;

	/**
	 * The peer's SETTINGS_HEADER_TABLE_SIZE, octets; we never use more than 4096. A change is told at the start of the
	 * next block: https://www.rfc-editor.org/rfc/rfc7541#section-4.2
	 */
	set tableSize(octets: number) {
		this.#allowed = Math.min(octets, TABLE_SIZE);
		if (this.#allowed >= this.#table.maxSize) return;
		this.#table.resize(this.#allowed);
		this.#reduced = true;
	}

	/**
	 * Appends the header block of these headers to `out` at `offset`. The caller guarantees room: see maxEncodedLength.
	 * Fields in a table are sent as an index; others are added to the dynamic table, unless their value changes with
	 * every request (grpc-timeout, grpc-message, content-length) or they do not fit into it. A character that is no
	 * octet is sent as "?".
	 * @returns the offset after it
	 */
	encode(headers: readonly Header[], out: Uint8Array, offset: number): number {
		const table = this.#table;
		let at = offset;
		if (this.#reduced || this.#allowed > table.maxSize) {
			// One block does not tell both: Go's decoder takes a second update only where the first has emptied the table.
			if (!this.#reduced) table.resize(this.#allowed);
			this.#reduced = false;
			at = putInteger(out, at, 0x20, 0x1f, table.maxSize);
		}
		for (const header of headers) {
			const [name, value] = header;
			const fixed = STATIC_NAMES.get(name);
			const index = fixed?.values.get(value);
			if (index !== undefined) {
				out[at++] = 0x80 | index;
				continue;
			}
			const known = table.names.get(name);
			const number = known?.values.get(value);
			const newest = FIRST_DYNAMIC + table.inserted - 1;
			if (number !== undefined) {
				at = putInteger(out, at, 0x80, 0x7f, newest - number);
				continue;
			}
			const indexed = !UNINDEXED.has(name) && sizeOf(header) <= table.maxSize;
			const nameIndex = fixed?.latest ?? (known ? newest - known.latest : 0);
			at = indexed
				? putInteger(out, at, 0x40, 0x3f, nameIndex)
				: putInteger(out, at, 0, 0x0f, nameIndex);
			if (nameIndex === 0) at = putString(out, at, name);
			at = putString(out, at, value);
			// A tuple of its own: the caller may use his for something else.
			if (indexed) table.insert([name, value]);
		}
		return at;
	}
}

/** Octets that Encoder.encode may need for these headers, at most. */
export function maxEncodedLength(headers: readonly Header[]): number {
	// A table size update; for each field an octet, and two lengths.
	let length = 3;
	for (const header of headers)
		length += header[0].length + header[1].length + 13;
	return length;
}

function putInteger(
	out: Uint8Array,
	offset: number,
	flags: number,
	prefix: number,
	value: number,
): number {
	out[offset] = flags | Math.min(value, prefix);
	let at = offset + 1;
	if (value < prefix) return at;
	let rest = value - prefix;
	for (; rest >= 0x80; rest >>>= 7) out[at++] = (rest & 0x7f) | 0x80;
	out[at++] = rest;
	return at;
}

function putString(out: Uint8Array, offset: number, text: string): number {
	let at = putInteger(out, offset, 0, 0x7f, text.length);
	for (let index = 0; index < text.length; index++) {
		const code = text.charCodeAt(index);
		out[at++] = code <= 0xff ? code : 0x3f;
	}
	return at;
}
