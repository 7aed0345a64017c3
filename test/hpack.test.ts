/** HPACK against RFC 7541's examples, against other implementations, and against what a tenant might send. */

import { heapStats } from "bun:jsc";
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { connect, type Socket } from "node:net";
import fc from "fast-check";
import {
	CompressionError,
	Decoder,
	Encoder,
	type Header,
	maxEncodedLength,
} from "../http2/hpack.ts";

const bytes = (hex: string) => Uint8Array.fromHex(hex.replaceAll(" ", ""));
const join = (...parts: (Uint8Array | number[])[]) =>
	Uint8Array.from(parts.flatMap((part) => [...part]));

function decode(decoder: Decoder, block: Uint8Array): Header[] | undefined {
	return decoder.decode(block, 0, block.length);
}

/** A list's block, checked to lie where it was asked to and within the room that was promised to suffice. */
function encode(encoder: Encoder, headers: readonly Header[]): Uint8Array {
	const room = maxEncodedLength(headers);
	const out = new Uint8Array(room + 20).fill(0xaa);
	const end = encoder.encode(headers, out, 10);
	expect(end - 10).toBeLessThanOrEqual(room);
	const around = join(out.subarray(0, 10), out.subarray(end));
	expect(around.every((octet) => octet === 0xaa)).toBeTrue();
	return out.slice(10, end);
}

/** The dynamic table, newest entry first, by asking for every index until there is no such. */
function contents(decoder: Decoder): Header[] {
	const entries: Header[] = [];
	for (;;) {
		const block = join([0xff], integer(62 + entries.length - 127));
		const one = 62 + entries.length;
		try {
			const list = decode(decoder, one < 127 ? join([0x80 | one]) : block);
			entries.push(...(list ?? []));
		} catch (error) {
			expect(error).toEqual(new CompressionError(`no field has index ${one}`));
			return entries;
		}
	}
}

/** The octets of an integer after its prefix, with as many superfluous ones as told. */
function integer(rest: number, padding = 0): number[] {
	if (rest >= 0x80)
		return [(rest & 0x7f) | 0x80, ...integer(rest >>> 7, padding)];
	return padding > 0 ? [rest | 0x80, ...integer(0, padding - 1)] : [rest];
}

const sizeOf = ([name, value]: Header) => name.length + value.length + 32;
const total = (headers: Header[]) =>
	headers.reduce((sum, header) => sum + sizeOf(header), 0);

describe("the examples of RFC 7541, appendix C", () => {
	test("C.1: an integer in its prefix, and one that is longer", () => {
		const decoder = new Decoder();
		const field = (length: number) =>
			join(
				[0x40, 1, 0x61, 0x7f],
				integer(length - 127),
				Array(length).fill(98),
			);
		// 10 - 32 < 1: nothing fits. 1337 = 32 + 1 + 1304.
		decode(decoder, join(bytes("2a"), bytes("40 01 61 00")));
		expect(contents(decoder)).toEqual([]);
		decode(decoder, join(bytes("3f 9a 0a"), field(1304)));
		expect(contents(decoder)).toEqual([["a", "b".repeat(1304)]]);
		decode(decoder, field(1305));
		expect(contents(decoder)).toEqual([]);
	});

	test.each([
		[
			"C.2.1: a literal that is indexed",
			"400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
			[["custom-key", "custom-header"]],
			[["custom-key", "custom-header"]],
		],
		[
			"C.2.2: a literal that is not indexed",
			"040c 2f73 616d 706c 652f 7061 7468",
			[[":path", "/sample/path"]],
			[],
		],
		[
			"C.2.3: a literal that is never indexed",
			"1008 7061 7373 776f 7264 0673 6563 7265 74",
			[["password", "secret"]],
			[],
		],
		["C.2.4: an indexed field", "82", [[":method", "GET"]], []],
	] as [string, string, Header[], Header[]][])(
		"%s",
		(_, block, list, table) => {
			const decoder = new Decoder();
			expect(decode(decoder, bytes(block))).toEqual(list);
			expect(contents(decoder)).toEqual(table);
		},
	);

	const get: Header[] = [
		[":method", "GET"],
		[":scheme", "http"],
		[":path", "/"],
		[":authority", "www.example.com"],
	];
	const authority: Header = [":authority", "www.example.com"];
	const noCache: Header = ["cache-control", "no-cache"];
	const custom: Header = ["custom-key", "custom-value"];
	const requests: Example[] = [
		{ list: get, table: [authority], size: 57 },
		{ list: [...get, noCache], table: [noCache, authority], size: 110 },
		{
			list: [
				[":method", "GET"],
				[":scheme", "https"],
				[":path", "/index.html"],
				authority,
				custom,
			],
			table: [custom, noCache, authority],
			size: 164,
		},
	];
	const cache: Header = ["cache-control", "private"];
	const date: Header = ["date", "Mon, 21 Oct 2013 20:13:21 GMT"];
	const later: Header = ["date", "Mon, 21 Oct 2013 20:13:22 GMT"];
	const location: Header = ["location", "https://www.example.com"];
	const gzip: Header = ["content-encoding", "gzip"];
	const cookie: Header = [
		"set-cookie",
		"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
	];
	const status = (code: string): Header => [":status", code];
	const responses: Example[] = [
		{
			list: [status("302"), cache, date, location],
			table: [location, date, cache, status("302")],
			size: 222,
		},
		{
			list: [status("307"), cache, date, location],
			table: [status("307"), location, date, cache],
			size: 222,
		},
		{
			list: [status("200"), cache, later, location, gzip, cookie],
			table: [cookie, gzip, later],
			size: 215,
		},
	];
	interface Example {
		list: Header[];
		table: Header[];
		size: number;
	}
	const plainRequests = [
		"828684410f7777772e6578616d706c652e636f6d",
		"828684be58086e6f2d6361636865",
		"828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
	];
	const plainResponses = [
		"4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e17687474" +
			"70733a2f2f7777772e6578616d706c652e636f6d",
		"4803333037c1c0bf",
		"88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a" +
			"4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31",
	];

	test.each([
		["C.3: requests", 4096, requests, plainRequests],
		[
			"C.4: requests with Huffman code",
			4096,
			requests,
			[
				"828684418cf1e3c2e5f23a6ba0ab90f4ff",
				"828684be5886a8eb10649cbf",
				"828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
			],
		],
		["C.5: responses, with evictions", 256, responses, plainResponses],
		[
			"C.6: responses with Huffman code, with evictions",
			256,
			responses,
			[
				"488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae" +
					"82ae43d3",
				"4883640effc1c0bf",
				"88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960" +
					"d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
			],
		],
	] as [string, number, Example[], string[]][])(
		"%s",
		(_, tableSize, examples, blocks) => {
			const decoder = new Decoder(tableSize);
			for (const [index, { list, table, size }] of examples.entries()) {
				expect(decode(decoder, bytes(blocks[index] ?? ""))).toEqual(list);
				expect(contents(decoder)).toEqual(table);
				expect(total(contents(decoder))).toBe(size);
			}
		},
	);

	test("C.3 and C.5: the encoder makes the same octets", () => {
		const client = new Encoder();
		for (const [index, { list }] of requests.entries())
			expect(encode(client, list).toHex()).toBe(plainRequests[index] ?? "");
		const server = new Encoder();
		server.tableSize = 256;
		for (const [index, { list }] of responses.entries())
			expect(encode(server, list).toHex()).toBe(
				(index === 0 ? "3fe101" : "") + plainResponses[index],
			);
	});
});

test("every octet is decoded from its Huffman code, as Go's golang.org/x/net/http2/hpack has it", () => {
	const all = Uint8Array.fromBase64(
		"/8f//Y///+L///4////k///+X///5v///n///+j//+r////z///6f///q////9///+v///7P///t///+7///7////w////H///8v////v///z/" +
			"///T///9f///2////f///+P///5////r///+1P4/n/r/yr8f6/r+/n/f0suwAImWm3HXn7n3//IP+/8/9Q3b1/BhxY8mXNn0adWvZt3b+HHl+c" +
			"/3/3//w/+f/kX/9HGSQss05unWimo9faxCbe/jz69//7/n/7/9////z//m//9L//n//6P//T//9T//1f//s//+t//9r//7f//3P//u///e///r" +
			"//+////Z///b//6///4P//7v//w///i///H//+T//uf/+x//+X//2f//zf//n///v//9r//u//9P//t//+5//+j//9P//e///V//7v//vf//4f" +
			"/9///3///1///s//8H//h//+D//xf//t//+H//93//7//+r//4v//j//+T//+H//y///N///H///g///4f/+v//j//8///8v//o///2f//8X//" +
			"/H///yf//97///v///8v//+P//+3//l//4///+b///wf//+H///n///8X//+X//k//8v///R///0////7///4////J///5f/+z///P//t//83/" +
			"/0//+f//0f//z//+r//6///93//+////T///X///q///p///1///+b///s///7f///P///6P///T///6v///X////3///s///9v///u///9///" +
			"/w///7vw==",
	);
	const block = join([0x00, 1, 0x61, 0xff], integer(all.length - 127), all);
	const expected = String.fromCharCode(...Array(256).keys());
	expect(decode(new Decoder(), block)).toEqual([["a", expected]]);
});

describe("what is broken is a CompressionError", () => {
	const truncated = /truncated/;
	const padding = /padding/;
	const over = /over 31 bits or five octets/;
	test.each([
		["index 0", "80", /index 0$/],
		["an index beyond the static table", "be", /index 62$/],
		["a name's index beyond the table", "7e 00", /index 62$/],
		["the same, not indexed", "0f 2f 00", /index 62$/],
		["an index of 2^31 - 1", "ff 80 ff ff ff 07", /index 2147483647$/],
		["an integer of 2^31", "ff 81 ff ff ff 07", over],
		["an integer of 2^32 + 1", "ff 82 ff ff ff 0f", over],
		["an integer of 35 bits", "ff ff ff ff ff 7f", over],
		["an integer of six octets", "ff 80 80 80 80 80 00", over],
		["a string's length of 2^31", "00 7f 81 ff ff ff 07", over],
		["a table size of 2^31", "3f e1 ff ff ff 07", over],
		["an index that is cut off", "ff", truncated],
		["an index that is cut off later", "ff 80 80", truncated],
		["a table size that is cut off", "3f", truncated],
		["no name", "40", truncated],
		["a name's length that is cut off", "40 7f", truncated],
		["a name that is cut off", "40 03 61 62", truncated],
		["no value", "40 01 61", truncated],
		["no value of an indexed name", "41", truncated],
		["a value that is cut off", "40 01 61 03 62 62", truncated],
		["a Huffman value that is cut off", "40 01 61 82 07", truncated],
		["padding of eight bits", "41 81 ff", padding],
		["padding of eleven bits", "41 82 07 ff", padding],
		["padding of 27 bits", "41 84 07 ff ff ff", padding],
		["padding that is not all ones", "41 81 00", padding],
		["padding whose last bit is no one", "41 81 06", padding],
		["a code that is cut off", "41 81 fe", padding],
		["a code that is cut off after 24 bits", "41 83 ff ff fd", padding],
		["EOS", "41 84 ff ff ff ff", /EOS/],
		["EOS after a symbol", "41 85 07 ff ff ff ff", /EOS/],
		["EOS before a symbol", "41 85 ff ff ff fc 1f", /EOS/],
		["EOS in a name", "40 84 ff ff ff ff 00", /EOS/],
		["a table size over the limit", "3f e2 1f", /table of 4097/],
		["a table size after a field", "82 20", /within a header block/],
		["a table size after a literal", "41 00 3f e1 1f", /within/],
		["an empty name", "40 00 01 61", /without a name/],
		["an empty name in Huffman code", "00 80 01 61", /without a name/],
	])("%s", (_, hex, message) => {
		const block = bytes(hex);
		const run = () => decode(new Decoder(), block);
		expect(run).toThrow(CompressionError);
		expect(run).toThrow(message);
		// What lies behind the block is none of it.
		const within = join(block, new Uint8Array(64));
		const decoder = new Decoder();
		expect(() => decoder.decode(within, 0, block.length)).toThrow(message);
	});

	test.each([
		["nothing", "", []],
		["the last of the static table", "bd", [["www-authenticate", ""]]],
		[
			"an integer with zeros up to its fifth octet",
			"0f 80 80 80 80 00 01 61",
			[["accept-charset", "a"]],
		],
		["padding of seven bits", "41 84 00 00 00 7f", [[":authority", "00000"]]],
		["no padding", "41 85 00 00 00 00 00", [[":authority", "00000000"]]],
		["an empty value", "41 00", [[":authority", ""]]],
		["an empty Huffman value", "41 80", [[":authority", ""]]],
		["a table size at the limit", "3f e1 1f 82", [[":method", "GET"]]],
		["two table sizes", "20 3f e1 1f 82", [[":method", "GET"]]],
		["a table size alone", "20", []],
	] as [string, string, Header[]][])("but not %s", (_, hex, list) => {
		expect(decode(new Decoder(), bytes(hex))).toEqual(list);
	});
});

describe("the decoder", () => {
	const literal = (name: string, value: string) =>
		encode(new Encoder(), [[name, value]]);

	test("passes a list of exactly the limit", () => {
		const decoder = new Decoder(4096, 3 * 42);
		const list: Header[] = Array(3).fill([":method", "GET"]);
		expect(decode(decoder, bytes("82 82 82"))).toEqual(list);
		expect(decode(decoder, bytes("82 82 82 82"))).toBeUndefined();
	});

	test("keeps its table in step through a list that is over the limit", () => {
		const decoder = new Decoder(4096, 100);
		const encoder = new Encoder();
		const list: Header[] = [
			["a", "1".repeat(60)],
			["b", "2"],
			["c", "3".repeat(60)],
		];
		expect(decode(decoder, encode(encoder, list))).toBeUndefined();
		expect(decode(decoder, encode(encoder, list.slice(2)))).toEqual([
			["c", "3".repeat(60)],
		]);
		expect(contents(decoder)).toEqual(list.toReversed());
	});

	test("finds faults behind the limit", () => {
		const decoder = new Decoder(4096, 41);
		expect(() => decode(decoder, bytes("82 80"))).toThrow(CompressionError);
	});

	test("refuses a small block that refers to something large again and again", () => {
		const decoder = new Decoder();
		decode(decoder, literal("a", "b".repeat(4000)));
		const bomb = new Uint8Array(65_536).fill(0xbe);
		expect(decode(decoder, bomb)).toBeUndefined();
		expect(decode(decoder, bomb.subarray(0, 4))).toHaveLength(4);
	});

	test("may be told a name by an entry that is evicted for the new one", () => {
		const decoder = new Decoder(64);
		decode(decoder, literal("name", "first"));
		const second = bytes("7e 02 6f 6b");
		expect(decode(decoder, second)).toEqual([["name", "ok"]]);
		expect(contents(decoder)).toEqual([["name", "ok"]]);
	});

	test("empties its table for an entry that is larger than it", () => {
		const decoder = new Decoder(64);
		decode(decoder, literal("a", "b"));
		const large: Header = ["c", "d".repeat(32)];
		const block = join(bytes("40 01 63 20"), Array(32).fill(0x64));
		expect(decode(decoder, block)).toEqual([large]);
		expect(contents(decoder)).toEqual([]);
		decode(decoder, literal("c", "d".repeat(31)));
		expect(contents(decoder)).toEqual([["c", "d".repeat(31)]]);
	});

	test("fills its table to the last octet", () => {
		const decoder = new Decoder(3 * 33);
		const names = ["a", "b", "c", "d"];
		const tables = names.map((name) => {
			decode(decoder, literal(name, ""));
			return contents(decoder)
				.map(([name]) => name)
				.join("");
		});
		expect(tables).toEqual(["a", "ba", "cba", "dcb"]);
	});

	test("evicts when its table is made smaller, and not when it grows", () => {
		const decoder = new Decoder();
		for (const name of ["a", "b", "c"]) decode(decoder, literal(name, ""));
		decode(decoder, join([0x3f], integer(66 - 31)));
		expect(contents(decoder).map(([name]) => name)).toEqual(["c", "b"]);
		decode(decoder, bytes("3f e1 1f"));
		expect(contents(decoder).map(([name]) => name)).toEqual(["c", "b"]);
		decode(decoder, bytes("20"));
		expect(contents(decoder)).toEqual([]);
	});

	test("begins with 4096 octets where more are allowed, for the peer does not know yet", () => {
		const decoder = new Decoder(8192, 1_000_000);
		const names = Array.from({ length: 300 }, (_, at) =>
			String.fromCharCode(33 + (at % 94), 33 + Math.floor(at / 94)),
		);
		const fill = () => {
			for (const name of names)
				decode(decoder, join(bytes("40 02"), Buffer.from(name), [0]));
			const filled = contents(decoder).map(([name]) => name);
			expect(filled).toEqual(names.toReversed().slice(0, filled.length));
			return filled.length;
		};
		expect(fill()).toBe(Math.floor(4096 / 34));
		decode(decoder, join([0x3f], integer(8192 - 31)));
		expect(fill()).toBe(Math.floor(8192 / 34));
		expect(() => decode(decoder, join([0x3f], integer(8193 - 31)))).toThrow(
			"a table of 8193 octets",
		);
	});

	test("gives the same tuple for the same entry", () => {
		const decoder = new Decoder();
		const [first] = decode(decoder, literal("a", "b")) ?? [];
		const [second] = decode(decoder, bytes("be")) ?? [];
		expect(second).toBe(first as Header);
	});

	test("lets go of what is evicted", async () => {
		const decoders = Array.from({ length: 50 }, () => new Decoder());
		const entries = decoders.map((decoder) => {
			const [header] = decode(decoder, literal("a", "b")) ?? [];
			decode(decoder, literal("c", "d".repeat(4060)));
			return new WeakRef(header as Header);
		});
		await new Promise((resolve) => setImmediate(resolve));
		Bun.gc(true);
		const alive = entries.filter((entry) => entry.deref()).length;
		expect(alive).toBeLessThan(5);
		expect(contents(decoders[0] as Decoder)).toHaveLength(1);
	});

	test("lets go of the buffer that a block was in", async () => {
		const decoders = Array.from({ length: 50 }, () => new Decoder());
		const buffers = decoders.map((decoder) => {
			const block = literal("a", "b");
			decode(decoder, block);
			return new WeakRef(block);
		});
		await new Promise((resolve) => setImmediate(resolve));
		Bun.gc(true);
		const alive = buffers.filter((buffer) => buffer.deref()).length;
		expect(alive).toBeLessThan(5);
		expect(contents(decoders[0] as Decoder)).toHaveLength(1);
	});

	test("decodes long strings, of Huffman code, too", () => {
		const plain = join(
			[0, 1, 0x61, 0x7f],
			integer(60_000 - 127),
			Array(60_000).fill(0xe4),
		);
		const coded = join(
			[0, 1, 0x61, 0xff],
			integer(40_000 - 127),
			Array(40_000).fill(0),
		);
		const decoder = new Decoder(4096, 100_000);
		expect(decode(decoder, plain)).toEqual([["a", "ä".repeat(60_000)]]);
		expect(decode(decoder, coded)).toEqual([["a", "0".repeat(64_000)]]);
	});
});

describe("the encoder", () => {
	const again = (encoder: Encoder, list: Header[]) => {
		const first = encode(encoder, list).toHex();
		return [first, encode(encoder, list).toHex()];
	};

	test("sends a gRPC response in one octet per field from the second time on", () => {
		const [first, second] = again(new Encoder(), [
			[":status", "200"],
			["content-type", "application/grpc"],
			["grpc-status", "0"],
		]);
		expect(first).toHaveLength(2 * (1 + 2 + 16 + 2 + 11 + 2));
		expect(second).toBe("88bfbe");
	});

	test.each(["grpc-timeout", "grpc-message", "content-length"])(
		"never puts %s into the table",
		(name) => {
			const encoder = new Encoder();
			const list: Header[] = [[name, "1"]];
			const [first, second] = again(encoder, list);
			expect(second).toBe(first as string);
			expect((first ?? "").slice(0, 2)).toMatch(/^0/);
			const decoder = new Decoder();
			expect(decode(decoder, bytes(first ?? ""))).toEqual(list);
			expect(contents(decoder)).toEqual([]);
		},
	);

	test("sends a name that is in a table as an index", () => {
		const encoder = new Encoder();
		encode(encoder, [["name", "1"]]);
		expect(encode(encoder, [["name", "2"]])).toEqual(bytes("7e 01 32"));
		expect(encode(encoder, [["name", "3"]])).toEqual(bytes("7e 01 33"));
		expect(encode(encoder, [[":status", "201"]])).toEqual(
			bytes("48 03 32 30 31"),
		);
	});

	test("puts a field into its table that just fits", () => {
		const [, second] = again(new Encoder(), [["b", "c".repeat(4096 - 33)]]);
		expect(second).toBe("be");
	});

	test("does not empty its table for a field that does not fit", () => {
		const encoder = new Encoder();
		const decoder = new Decoder();
		const large: Header = ["b", "c".repeat(4096 - 32)];
		for (const list of [[["a", "b"]], [large], [["a", "b"]]] as Header[][])
			expect(decode(decoder, encode(encoder, list))).toEqual(list);
		expect(contents(decoder)).toEqual([["a", "b"]]);
		expect(encode(encoder, [["a", "b"]])).toEqual(bytes("be"));
	});

	test("tells of a smaller table at the start of the next block, once", () => {
		const encoder = new Encoder();
		encode(encoder, [["a", "b"]]);
		encoder.tableSize = 100;
		expect(encode(encoder, [["a", "b"]])).toEqual(bytes("3f 45 be"));
		expect(encode(encoder, [["a", "b"]])).toEqual(bytes("be"));
		encoder.tableSize = 33;
		expect(encode(encoder, [["a", "b"]])).toEqual(
			bytes("3f 02 00 01 61 01 62"),
		);
	});

	test("tells of a larger table, and where it was smaller in between, of that in a block before", () => {
		const encoder = new Encoder();
		encode(encoder, [["a", "b"]]);
		for (const size of [200, 0, 100, 4096]) encoder.tableSize = size;
		const list: Header[] = [["a", "b"]];
		expect(encode(encoder, list)).toEqual(bytes("20 00 01 61 01 62"));
		expect(encode(encoder, list)).toEqual(bytes("3f e1 1f 40 01 61 01 62"));
		expect(encode(encoder, list)).toEqual(bytes("be"));
		encoder.tableSize = 100;
		expect(encode(encoder, list)).toEqual(bytes("3f 45 be"));
		encoder.tableSize = 65_536;
		expect(encode(encoder, list)).toEqual(bytes("3f e1 1f be"));
	});

	test("never uses more than 4096 octets, and then has nothing to tell", () => {
		const encoder = new Encoder();
		const decoder = new Decoder();
		for (const size of [4096, 65_536, 2 ** 32 - 1]) encoder.tableSize = size;
		expect(encode(encoder, [[":status", "200"]])).toEqual(bytes("88"));
		for (let one = 0; one < 500; one++)
			expect(decode(decoder, encode(encoder, [["name", `${one}`]]))).toEqual([
				["name", `${one}`],
			]);
		expect(total(contents(decoder))).toBeLessThanOrEqual(4096);
		expect(encode(encoder, [["name", "499"]])).toEqual(bytes("be"));
	});

	test("keeps a field although the caller uses the tuple for another one", () => {
		const encoder = new Encoder();
		const decoder = new Decoder(64);
		encoder.tableSize = 64;
		const header: Header = ["a", "b"];
		decode(decoder, encode(encoder, [header]));
		header[0] = "c";
		for (const list of [[["d", "e"]], [["a", "b"]]] as Header[][])
			expect(decode(decoder, encode(encoder, list))).toEqual(list);
	});

	test("sends a character that is no octet as a question mark, not as another octet", () => {
		const block = encode(new Encoder(), [["a", "\u010a\u00ff\u2028"]]);
		expect(decode(new Decoder(), block)).toEqual([["a", "?\u00ff?"]]);
	});

	test("keeps nothing of what it has evicted", () => {
		const encoder = new Encoder();
		const maps = () => {
			Bun.gc(true);
			return heapStats().objectTypeCounts.Map ?? 0;
		};
		const before = maps();
		for (let one = 0; one < 10_000; one++)
			encode(encoder, [[`name-${one}`, "value"]]);
		expect(maps() - before).toBeLessThan(4096 / 32 + 20);
		expect(encode(encoder, [["name-9999", "value"]])).toEqual(bytes("be"));
	});
});

/** Few names and values, so that they come again; some that are as good as the table. */
const name = fc.oneof(
	{ weight: 8, arbitrary: fc.constantFrom("a", "b", ":status", ":path") },
	{
		weight: 1,
		arbitrary: fc.constantFrom("te", "grpc-timeout", "content-length"),
	},
	{ weight: 1, arbitrary: fc.string({ minLength: 1, unit: "binary-ascii" }) },
);
const latin1 = fc
	.uint8Array({ maxLength: 40 })
	.map((octets) => String.fromCharCode(...octets));
const value = fc.oneof(
	{ weight: 8, arbitrary: fc.constantFrom("", "0", "200", "/") },
	{ weight: 3, arbitrary: latin1 },
	{
		weight: 1,
		arbitrary: fc.integer({ min: 0, max: 5000 }).map((n) => "v".repeat(n)),
	},
);
const list = fc.array(fc.tuple(name, value), { maxLength: 12 });
const tableSize = fc.oneof(
	fc.constantFrom(0, 31, 32, 33, 34, 100, 4095, 4096, 5000),
	fc.nat(200),
);

/** Of RFC 7541 appendix B: one code of each length, and a few of the short ones. */
const CODES = new Map([
	["0", "00000"],
	["a", "00011"],
	[" ", "010100"],
	["-", "010110"],
	[":", "1011100"],
	["&", "11111000"],
	["!", "1111111000"],
	["'", "11111111010"],
	["#", "111111111010"],
	["\u0000", "1111111111000"],
	["^", "11111111111100"],
	["<", "111111111111100"],
	["\\", "1111111111111110000"],
	["\u0080", "11111111111111100110"],
	["\u0099", "111111111111111011100"],
	["\u0081", "1111111111111111010010"],
	["\u0001", "11111111111111111011000"],
	["\u0009", "111111111111111111101010"],
	["\u00c7", "1111111111111111111101100"],
	["\u00c0", "11111111111111111111100000"],
	["\u00cb", "111111111111111111111011110"],
	["\u0002", "1111111111111111111111100010"],
	["\u000a", "111111111111111111111111111100"],
]);

const STATIC: [index: number, header: Header][] = [
	[2, [":method", "GET"]],
	[4, [":path", "/"]],
	[5, [":path", "/index.html"]],
	[8, [":status", "200"]],
	[28, ["content-length", ""]],
	[61, ["www-authenticate", ""]],
];

interface Field {
	header: Header;
	form: "indexed" | "incremental" | "without" | "never";
	nameByIndex: boolean;
	nameCoded: boolean;
	valueCoded: boolean;
	/** Superfluous octets of integers. */
	padding: number;
}

/** An encoder that does everything that RFC 7541 allows, and nothing to be fast. */
class Peer {
	/** Newest first. */
	table: Header[] = [];
	#size = 4096;

	encode(sizes: number[], fields: Field[]): Uint8Array {
		const octets: number[] = [];
		for (const size of sizes) {
			this.#size = size;
			this.#evict(0);
			octets.push(...this.#integer(0x20, 0x1f, size, 0));
		}
		for (const field of fields) octets.push(...this.#field(field));
		return join(octets);
	}

	#field({ header, form, nameByIndex, padding, ...coded }: Field): number[] {
		const [name, value] = header;
		const dynamic = this.table.map((header, at): [number, Header] => [
			62 + at,
			header,
		]);
		const known = [...STATIC, ...dynamic].filter(([, [one]]) => one === name);
		const same = known.find(([, [, one]]) => one === value);
		if (form === "indexed" && same)
			return this.#integer(0x80, 0x7f, same[0], padding);
		const index = nameByIndex ? (known.at(-1)?.[0] ?? 0) : 0;
		const octets = [
			...(form === "without" || form === "never"
				? this.#integer(form === "never" ? 0x10 : 0, 0x0f, index, padding)
				: this.#integer(0x40, 0x3f, index, padding)),
			...(index === 0 ? this.#string(name, coded.nameCoded, padding) : []),
			...this.#string(value, coded.valueCoded, padding),
		];
		if (form === "without" || form === "never") return octets;
		this.#evict(sizeOf(header));
		if (sizeOf(header) <= this.#size) this.table.unshift(header);
		return octets;
	}

	#evict(room: number): void {
		while (this.table.length > 0 && total(this.table) > this.#size - room)
			this.table.pop();
	}

	#integer(flags: number, prefix: number, value: number, padding: number) {
		if (value < prefix) return [flags | value];
		return [flags | prefix, ...integer(value - prefix, padding)];
	}

	#string(text: string, coded: boolean, padding: number): number[] {
		const codes = [...text].map((char) => CODES.get(char));
		if (!coded || codes.includes(undefined))
			return [
				...this.#integer(0, 0x7f, text.length, padding),
				...Array.from(text, (char) => char.charCodeAt(0)),
			];
		const bits = codes.join("");
		const octets = bits
			.padEnd(Math.ceil(bits.length / 8) * 8, "1")
			.match(/.{8}/g);
		return [
			...this.#integer(0x80, 0x7f, octets?.length ?? 0, padding),
			...(octets ?? []).map((octet) => Number.parseInt(octet, 2)),
		];
	}
}

const peerBlock = fc.record({
	sizes: fc.array(
		fc.oneof(fc.constantFrom(0, 33, 34, 66, 4096), fc.nat(4096)),
		{ maxLength: 2 },
	),
	fields: fc.array(
		fc.record({
			header: fc.tuple(
				name,
				fc.oneof(
					value,
					fc.string({ unit: fc.constantFrom(...CODES.keys()), maxLength: 100 }),
				),
			),
			form: fc.constantFrom(
				...(["indexed", "indexed", "incremental", "without", "never"] as const),
			),
			nameByIndex: fc.boolean(),
			nameCoded: fc.boolean(),
			valueCoded: fc.boolean(),
			padding: fc.oneof(fc.constant(0), fc.nat(3)),
		}),
		{ maxLength: 10 },
	),
});

describe("whatever comes", () => {
	test("what the encoder sends is what the decoder reads, through all changes of the table's size", () => {
		fc.assert(
			fc.property(
				fc.array(
					fc.record({ sizes: fc.array(tableSize, { maxLength: 2 }), list }),
					{ maxLength: 30 },
				),
				(blocks) => {
					const encoder = new Encoder();
					const decoder = new Decoder(4096, 1_000_000);
					let size = 4096;
					for (const { sizes, list } of blocks) {
						for (const one of sizes) encoder.tableSize = size = one;
						expect(decode(decoder, encode(encoder, list))).toEqual(list);
						expect(total(contents(decoder))).toBeLessThanOrEqual(size);
					}
				},
			),
			{ numRuns: 300 },
		);
	});

	test("every way in which a peer may put a list is read alike", () => {
		fc.assert(
			fc.property(fc.array(peerBlock, { maxLength: 30 }), (blocks) => {
				const peer = new Peer();
				const decoder = new Decoder(4096, 1_000_000);
				for (const { sizes, fields } of blocks) {
					const block = peer.encode(sizes, fields);
					const list = fields.map(({ header }) => header);
					expect(decode(decoder, block)).toEqual(list);
					expect(contents(decoder)).toEqual(peer.table);
				}
			}),
			{ numRuns: 300 },
		);
	});

	const block = fc.oneof(
		fc.uint8Array({ maxLength: 200 }),
		// Octets that lead further than others.
		fc
			.array(
				fc.constantFrom(
					0,
					1,
					2,
					0x0f,
					0x20,
					0x3f,
					0x40,
					0x61,
					0x7f,
					0x80,
					0x82,
					0xbe,
					0xff,
				),
			)
			.map((octets) => join(octets)),
		// A good block with a bad octet.
		fc.tuple(list, fc.nat(), fc.nat(255)).map(([list, at, octet]) => {
			const block = encode(new Encoder(), list);
			if (block.length > 0) block[at % block.length] = octet;
			return block;
		}),
	);

	/** What becomes of a block: its list, or the fault that was found. */
	const outcome = (
		decoder: Decoder,
		...block: [Uint8Array, number, number]
	) => {
		try {
			return decoder.decode(...block) ?? "too large";
		} catch (error) {
			expect(error).toBeInstanceOf(CompressionError);
			return (error as CompressionError).message;
		}
	};

	test("octets are a list or a CompressionError, and those around the block do not matter", () => {
		fc.assert(
			fc.property(
				fc.array(block, { maxLength: 5 }),
				fc.uint8Array({ maxLength: 10 }),
				fc.uint8Array({ maxLength: 10 }),
				(blocks, before, after) => {
					const decoder = new Decoder();
					const other = new Decoder();
					for (const block of blocks) {
						const within = join(before, block, after);
						const copy = within.slice();
						const end = before.length + block.length;
						const result = outcome(decoder, within, before.length, end);
						expect(outcome(other, block, 0, block.length)).toEqual(result);
						expect(within).toEqual(copy);
						if (typeof result === "string" && result !== "too large") return;
						expect(total(contents(decoder))).toBeLessThanOrEqual(4096);
					}
				},
			),
			{ numRuns: 3000 },
		);
	});

	test("a block that is cut off is a shorter list or a CompressionError", () => {
		fc.assert(
			fc.property(list, (list) => {
				const whole = encode(new Encoder(), list);
				for (let end = 0; end < Math.min(whole.length, 300); end++) {
					const result = outcome(new Decoder(4096, 1_000_000), whole, 0, end);
					if (typeof result === "string") expect(result).toMatch(/truncated/);
					else expect(result).toEqual(list.slice(0, result.length));
				}
			}),
		);
	});
});

/**
 * A server of node:http2: answers a request by the fields that it has received, as JSON, and sends those of x-... back
 * as a header and as a trailer. Every tenth request it changes the size of its table.
 */
const SERVER = `
const server = require("node:http2").createServer();
const sizes = [0, 4096, 100, 300, 65536, 64];
let requests = 0;
server.on("stream", (stream, _, __, raw) => {
	const pairs = raw.flatMap((name, at) => at % 2 ? [] : [[name, raw[at + 1]]]);
	const own = Object.fromEntries(pairs.filter(([name]) => /^x-/.test(name)));
	const status = pairs.find(([name]) => name === "x-status")?.[1] ?? 200;
	stream.respond({ ":status": status, ...own }, { waitForTrailers: true });
	stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0", ...own }));
	stream.end(JSON.stringify(pairs));
	if (++requests % 10 === 0)
		stream.session.settings({ headerTableSize: sizes[(requests / 10) % sizes.length] });
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
`;

const HEADERS = 1;
const SETTINGS = 4;

function frame(type: number, flags: number, id: number, payload: Uint8Array) {
	const head = Buffer.alloc(9);
	head.writeUIntBE(payload.length, 0, 3);
	head.set([type, flags], 3);
	head.writeUInt32BE(id, 5);
	return Buffer.concat([head, payload]);
}

interface Answer {
	headers: Header[][];
	body: string;
	/** Of the header blocks, octets. */
	sizes: number[];
}

/** As little of an HTTP/2 client as there must be around HPACK: one request after the other. */
class Client {
	readonly #encoder = new Encoder();
	readonly #decoder: Decoder;
	readonly #socket: Socket;
	#rest = Buffer.alloc(0);
	#id = -1;
	#answer: Answer = { headers: [], body: "", sizes: [] };
	#answered: PromiseWithResolvers<Answer> = Promise.withResolvers();
	/** The sizes of its table that the server has told. */
	readonly tableSizes: number[] = [];

	constructor(port: number, tableSize: number) {
		this.#decoder = new Decoder(tableSize);
		this.#socket = connect(port, "127.0.0.1");
		this.#socket.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
		const setting = bytes("00 01 00 00 00 00");
		new DataView(setting.buffer).setUint32(2, tableSize);
		this.#socket.write(frame(SETTINGS, 0, 0, setting));
		this.#socket.on("data", (chunk: Buffer) => {
			try {
				this.#receive(chunk);
			} catch (error) {
				this.#answered.reject(error);
			}
		});
		this.#socket.on("close", () =>
			this.#answered.reject(new Error("the connection ended")),
		);
	}

	/** @returns the answer, and the size of the request's header block in octets */
	async request(list: Header[]): Promise<[Answer, number]> {
		this.#answer = { headers: [], body: "", sizes: [] };
		this.#answered = Promise.withResolvers();
		this.#id += 2;
		const block = encode(this.#encoder, list);
		// END_HEADERS and END_STREAM.
		this.#socket.write(frame(HEADERS, 0x5, this.#id, block));
		return [await this.#answered.promise, block.length];
	}

	close(): void {
		this.#socket.destroy();
	}

	#receive(chunk: Buffer): void {
		this.#rest = Buffer.concat([this.#rest, chunk]);
		while (this.#rest.length >= 9) {
			const end = 9 + this.#rest.readUIntBE(0, 3);
			if (this.#rest.length < end) return;
			const [type = 0, flags = 0] = this.#rest.subarray(3);
			this.#frame(type, flags, this.#rest.subarray(9, end));
			this.#rest = this.#rest.subarray(end);
		}
	}

	#frame(type: number, flags: number, payload: Buffer): void {
		if (type === SETTINGS && !(flags & 1)) {
			for (let at = 0; at < payload.length; at += 6)
				if (payload.readUInt16BE(at) === 1)
					this.tableSizes.push(payload.readUInt32BE(at + 2));
			const size = this.tableSizes.at(-1);
			if (size !== undefined) this.#encoder.tableSize = size;
			this.#socket.write(frame(SETTINGS, 1, 0, new Uint8Array()));
		}
		if (type === 0) this.#answer.body += payload.toString();
		if (type === HEADERS) {
			// END_HEADERS, neither padding nor priority.
			expect(flags & ~1).toBe(0x4);
			this.#answer.headers.push(decode(this.#decoder, payload) ?? []);
			this.#answer.sizes.push(payload.length);
		}
		if (type <= HEADERS && flags & 1) this.#answered.resolve(this.#answer);
		if (type === 3 || type === 7)
			this.#answered.reject(
				new Error(`frame ${type} with error ${payload.toHex()}`),
			);
	}
}

const node = Bun.which("node");
describe.each([
	// Bun 1.4.5 does not heed the size that we ask for.
	["Bun's", process.execPath, [4096]],
	...(node ? [["Node's", node, [4096, 256, 0]]] : []),
] as [string, string, number[]][])(
	"%s node:http2",
	(_, runtime, tableSizes) => {
		let server: Bun.Subprocess<"ignore", "pipe", "inherit">;
		let port = 0;
		beforeAll(async () => {
			server = Bun.spawn([runtime, "-e", SERVER], { stdout: "pipe" });
			for await (const line of server.stdout) {
				port = Number(Buffer.from(line).toString());
				break;
			}
		});
		afterAll(() => server.kill());

		const pseudo: Header[] = [
			[":method", "POST"],
			[":scheme", "http"],
			[":path", "/etcdserverpb.KV/Put"],
			[":authority", "localhost"],
		];
		/** Spaces around a value are not a receiver's to keep: RFC 9113 section 8.2.1. */
		const visible = fc
			.string({
				unit: fc.constantFrom(..."abz09AZ-_.~!#$&'*+^`|<>=?/: "),
				minLength: 1,
				maxLength: 60,
			})
			.map((text) => `<${text}>`);
		const own = fc.uniqueArray(
			fc.tuple(
				fc.constantFrom(..."abcdefghij").map((letter) => `x-${letter}`),
				fc.oneof(fc.constantFrom("1", "2", "3"), visible),
			),
			{ selector: ([name]) => name, maxLength: 8 },
		);

		test.each(tableSizes)(
			"reads what we send, and we read what it sends in a table of %d octets",
			async (tableSize) => {
				const client = new Client(port, tableSize);
				try {
					// First something that only an index can make shorter, in both directions.
					const long: Header[] = [...pseudo, ["x-a", "a".repeat(60)]];
					const [first, ...more] = [
						await client.request(long),
						await client.request(long),
						await client.request(long),
					];
					const [answer, octets] = more.at(-1) ?? first;
					expect(octets).toBe(5);
					expect(answer.sizes[1]).toBeLessThan(tableSize > 0 ? 4 : 70);
					for (const list of fc.sample(own, { numRuns: 200, seed: 7541 })) {
						const sent: Header[] = [...pseudo, ...list];
						const [{ headers, body }] = await client.request(sent);
						expect(JSON.parse(body)).toEqual(sent);
						expect(headers).toHaveLength(2);
						for (const received of headers)
							expect(
								received.filter(([name]) => name.startsWith("x-")),
							).toEqual(list);
						expect(headers[0]).toContainEqual([":status", "200"]);
						expect(headers[1]).toContainEqual(["grpc-status", "0"]);
					}
					expect(client.tableSizes.length).toBeGreaterThanOrEqual(19);
				} finally {
					client.close();
				}
			},
		);

		test("has the same static table", async () => {
			const client = new Client(port, 4096);
			try {
				const names = contentsOfStaticTable()
					.slice(14)
					.map(([name]) => name);
				// Not for any request: RFC 9113 sections 8.2.2 and 8.3.1, or with a meaning of its own.
				const excluded = [
					"transfer-encoding",
					"host",
					"content-length",
					"expect",
				];
				for (const name of names.filter((name) => !excluded.includes(name))) {
					const sent: Header[] = [...pseudo, [name, "1"]];
					const [{ body }] = await client.request(sent);
					expect(JSON.parse(body)).toEqual(sent);
				}
				for (const path of ["/", "/index.html"])
					for (const scheme of ["http", "https"]) {
						const sent: Header[] = [
							[":method", "GET"],
							[":scheme", scheme],
							[":path", path],
							[":authority", "localhost"],
							["accept-encoding", "gzip, deflate"],
						];
						const [{ body }] = await client.request(sent);
						expect(JSON.parse(body)).toEqual(sent);
						// All but the authority are one octet.
						expect(encode(new Encoder(), sent)).toHaveLength(4 + 2 + 9);
					}
				for (const status of ["200", "206", "400", "404", "500"]) {
					const sent: Header[] = [...pseudo, ["x-status", status]];
					const [{ headers }] = await client.request(sent);
					expect(headers[0]?.[0]).toEqual([":status", status]);
				}
			} finally {
				client.close();
			}
		});
	},
);

function contentsOfStaticTable(): Header[] {
	return Array.from({ length: 61 }, (_, at) => {
		const [header] = decode(new Decoder(), join([0x80 | (at + 1)])) ?? [];
		return header as Header;
	});
}
