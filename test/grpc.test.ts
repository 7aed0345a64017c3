/** gRPC's framing of messages, and its trailers. */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
	CompressedError,
	isTimeout,
	MessageReader,
	prefix,
	readTrailers,
	trailers,
} from "../grpc.ts";
import { bytesOf } from "./http2wire.ts";

/** What a reader was told, and the messages that it made. */
function read(slack: number, chunks: Uint8Array[]) {
	const begun: [length: number, missing: number][] = [];
	const messages: Uint8Array[] = [];
	let progress: Uint8Array = new Uint8Array(0);
	const reader = new MessageReader({
		slack,
		onBegin: (length, missing) => {
			begun.push([length, missing]);
			progress = new Uint8Array(0);
		},
		onProgress: (bytes, start, filled) => {
			const seen = bytes.subarray(start, filled);
			// It only becomes more.
			expect(Buffer.compare(seen.subarray(0, progress.length), progress)).toBe(
				0,
			);
			progress = seen.slice();
		},
		onMessage: (bytes, start, end) => {
			expect(start).toBe(slack + 5);
			expect(bytes.subarray(slack, start)).toEqual(prefix(end - start));
			messages.push(bytes.slice(start, end));
		},
	});
	for (const chunk of chunks) {
		const copy = chunk.slice();
		reader.push(copy);
		// A transport may use its buffer again.
		copy.fill(0xff);
	}
	return { reader, begun, messages };
}

describe("messages", () => {
	/** Around the size of which room is made at first. */
	const length = fc.oneof(
		fc.nat({ max: 20 }),
		fc.integer({ min: 65_500, max: 65_560 }),
		fc.nat({ max: 200_000 }),
	);

	test("come out as they went in, in whatever pieces", () => {
		fc.assert(
			fc.property(
				fc.array(length, { maxLength: 5 }),
				fc.array(fc.oneof(fc.nat({ max: 9 }), fc.nat({ max: 70_000 }))),
				fc.nat({ max: 7 }),
				(lengths, cuts, slack) => {
					const sent = lengths.map((length, number) =>
						new Uint8Array(length).map((_, at) => at * 7 + number),
					);
					const all = bytesOf(
						...sent.flatMap((one) => [prefix(one.length), one]),
					);
					const chunks: Uint8Array[] = [];
					let at = 0;
					for (const cut of cuts) {
						chunks.push(all.subarray(at, at + cut));
						at += cut;
					}
					chunks.push(all.subarray(at));
					const { reader, begun, messages } = read(slack, chunks);
					expect(messages.length).toBe(sent.length);
					for (const [index, message] of messages.entries())
						expect(Buffer.compare(message, sent[index] as Uint8Array)).toBe(0);
					expect(begun.map(([length]) => length)).toEqual(lengths);
					expect(reader.incomplete).toBe(false);
				},
			),
			{ numRuns: 200 },
		);
	});

	test("tell at their beginning what is missing of them", () => {
		const { reader, begun } = read(0, [
			bytesOf(prefix(10), new Uint8Array(4)),
			bytesOf(new Uint8Array(6), prefix(3), new Uint8Array(3), prefix(100_000)),
		]);
		expect(begun).toEqual([
			[10, 6],
			[3, 0],
			[100_000, 100_000],
		]);
		expect(reader.incomplete).toBe(true);
	});

	test("that are only claimed take no memory", () => {
		const before = process.memoryUsage();
		const readers = Array.from({ length: 500 }, () =>
			read(0, [prefix(2 ** 32 - 1), new Uint8Array(1000)]),
		);
		const after = process.memoryUsage();
		expect(after.rss - before.rss).toBeLessThan(100e6);
		// Nor does the collector think that they do.
		expect(after.arrayBuffers - before.arrayBuffers).toBeLessThan(100e6);
		expect(readers.every(({ reader }) => reader.incomplete)).toBe(true);
	});

	test("that are compressed are refused: no encoding was agreed on", () => {
		expect(() => read(0, [bytesOf([1, 0, 0, 0, 0])])).toThrow(CompressedError);
	});
});

describe("trailers", () => {
	test("tell a code, and what was wrong in any words", () => {
		fc.assert(
			fc.property(
				fc.integer({ min: 1, max: 16 }),
				fc.string({ unit: fc.constantFrom(..."%41~ \n\0\u007fé€🙂") }),
				(code, message) => {
					const fields = trailers(code, message);
					const text = fields.find(([name]) => name === "grpc-message")?.[1];
					expect(text).toMatch(/^[ -~]*$/);
					expect(decodeURIComponent(text ?? "")).toBe(message);
					expect(readTrailers(fields)).toEqual({ code, message });
				},
			),
		);
		expect(readTrailers(trailers(0, ""))).toEqual({ code: 0, message: "" });
	});

	test("that are not well encoded are taken as they are, and none is no status", () => {
		const of = (message: string) =>
			readTrailers([
				["grpc-status", "5"],
				["grpc-message", message],
			]).message;
		expect(of("100%")).toBe("100%");
		expect(of("%zz%41")).toBe("%zzA");
		for (const status of ["", "x", "-1", "123"])
			expect(readTrailers([["grpc-status", status]]).code).toBe(2);
	});
});

test("timeouts are those of the specification", () => {
	for (const good of ["1n", "99999999H", "20S", "3M", "4m", "5u"])
		expect([good, isTimeout(good)]).toEqual([good, true]);
	for (const bad of ["", "1", "H", "123456789S", "-1S", "1s", "1.5S", "1S "])
		expect([bad, isTimeout(bad)]).toEqual([bad, false]);
});
