/** The rules of HTTP/2 as http2.ts keeps them, frame by frame, and what it withstands. Real peers: http2peers.test.ts. */
import { heapStats } from "bun:jsc";
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { ErrorCode, type Session, type Stream } from "../http2.ts";
import {
	block,
	bytesOf,
	CONTINUATION,
	DATA,
	data,
	END_HEADERS,
	END_STREAM,
	type Frame,
	frame,
	goaway,
	HEADERS,
	headers,
	PADDED,
	PING,
	PREFACE,
	PRIORITY,
	PUSH_PROMISE,
	REQUEST,
	RESPONSE,
	request,
	reset,
	SETTINGS,
	settings,
	settingsAck,
	settled,
	Told,
	TRAILERS,
	u32,
	Wire,
	windowUpdate,
	words,
} from "./http2wire.ts";

// Some take seconds on a machine that does other things as well.
setDefaultTimeout(30_000);

const INITIAL_WINDOW_SIZE = 4;
const MAX_WINDOW = 2 ** 31 - 1;
const ping = (byte = 0) => frame(PING, 0, 0, new Uint8Array(8).fill(byte));
const pong = () => frame(PING, END_STREAM, 0, new Uint8Array(8));

/** A client session with some requests under way. */
async function client(
	requests: number,
	also: (event: string) => void = () => {},
) {
	const wire = new Wire({ role: "client" });
	const told = Array.from({ length: requests }, () => new Told(also));
	const streams = told.map((events) => wire.session.request(REQUEST, events));
	await wire.sent();
	return { wire, told, streams };
}

describe("what is sent", () => {
	test("waits for the stream's window, and goes on as far as it opens", async () => {
		const wire = new Wire({ settings: [[INITIAL_WINDOW_SIZE, 10]] });
		wire.receive(request(1, END_STREAM));
		wire.stream(1).data(new Uint8Array(10));
		wire.stream(1).data(new Uint8Array(15), true);
		expect(await wire.said()).toEqual(["DATA 1 +10"]);
		expect(wire.stream(1).pending).toBe(15);
		wire.receive(windowUpdate(1, 5));
		expect(await wire.said()).toEqual(["DATA 1 +5"]);
		expect(wire.log(1)).toEqual([]);
		wire.receive(windowUpdate(1, 100));
		expect(await wire.said()).toEqual(["DATA 1 +10 END"]);
		expect(wire.log(1)).toEqual(["drain"]);
		expect(wire.session.size).toBe(0);
	});

	test.each([60_000, 10_000])(
		"waits for the connection's window, which all streams share, in chunks of %i",
		async (size) => {
			const wire = new Wire({ settings: [[INITIAL_WINDOW_SIZE, 1 << 20]] });
			wire.receive(request(1, END_STREAM), request(3, END_STREAM));
			for (let written = 0; written < 60_000; written += size)
				for (const id of [1, 3]) wire.stream(id).data(new Uint8Array(size));
			const sent = (frames: Frame[]) =>
				frames
					.filter(({ type }) => type === DATA)
					.reduce((sum, { payload }) => sum + payload.length, 0);
			expect(sent(await wire.sent())).toBe(65_535);
			expect(wire.stream(1).pending + wire.stream(3).pending).toBe(54_465);
			wire.receive(windowUpdate(0, 54_465));
			expect(sent(await wire.sent())).toBe(54_465);
		},
	);

	test("stops and goes on when INITIAL_WINDOW_SIZE changes, also when the window falls below 0", async () => {
		const wire = new Wire({ settings: [[INITIAL_WINDOW_SIZE, 100]] });
		wire.receive(request(1, END_STREAM));
		wire.stream(1).data(new Uint8Array(80));
		wire.stream(1).data(new Uint8Array(200));
		expect(await wire.said()).toEqual(["DATA 1 +80", "DATA 1 +20"]);
		wire.receive(settings([INITIAL_WINDOW_SIZE, 30]));
		expect(wire.stream(1).window).toBe(-70);
		wire.receive(windowUpdate(1, 70));
		expect(await wire.said()).toEqual([]);
		wire.receive(windowUpdate(1, 1));
		expect(await wire.said()).toEqual(["DATA 1 +1"]);
		wire.receive(
			settings([INITIAL_WINDOW_SIZE, 40], [INITIAL_WINDOW_SIZE, 60]),
		);
		expect(await wire.said()).toEqual(["DATA 1 +30"]);
	});

	test("stops when the window falls below 0 just before its turn", async () => {
		const wire = new Wire({ slow: true });
		wire.receive(request(1, END_STREAM));
		wire.stream(1).data(new Uint8Array(10_000));
		await wire.sent();
		wire.stream(1).data(new Uint8Array(90_000));
		wire.receive(settings([INITIAL_WINDOW_SIZE, 5_000]));
		wire.take();
		expect(await wire.said()).toEqual([]);
		wire.receive(windowUpdate(1, 5_001));
		wire.take();
		expect(await wire.said()).toEqual(["DATA 1 +1"]);
	});

	test("needs no window for an end without data", async () => {
		const wire = new Wire({ settings: [[INITIAL_WINDOW_SIZE, 0]] });
		wire.receive(request(1, END_STREAM), request(3, END_STREAM));
		wire.stream(1).data(new Uint8Array(0), true);
		wire.stream(3).headers(TRAILERS, true);
		expect(await wire.said()).toEqual(["DATA 1 +0 END", "HEADERS 3 END"]);
	});

	test("ends with trailers after all data, and with nothing after them", async () => {
		const wire = new Wire({ settings: [[INITIAL_WINDOW_SIZE, 10]] });
		wire.receive(request(1, END_STREAM));
		const stream = wire.stream(1);
		stream.headers(RESPONSE);
		stream.data(new Uint8Array(25));
		stream.headers(TRAILERS, true);
		stream.data(new Uint8Array(1));
		stream.headers(TRAILERS, true);
		expect(await wire.said()).toEqual(["HEADERS 1", "DATA 1 +10"]);
		wire.receive(windowUpdate(1, 10));
		expect(await wire.said()).toEqual(["DATA 1 +10"]);
		wire.receive(windowUpdate(1, 100));
		expect(await wire.said()).toEqual(["DATA 1 +5", "HEADERS 1 END"]);
		expect(wire.log(1)).toEqual(["drain"]);
		expect([stream.closed, wire.session.size]).toEqual([true, 0]);
	});

	test("is no more after a reset, whatever was waiting", async () => {
		for (const ending of ["trailers", "data", "none"]) {
			const wire = new Wire({ settings: [[INITIAL_WINDOW_SIZE, 0]] });
			wire.receive(request(1, END_STREAM), request(3, END_STREAM));
			for (const id of [1, 3]) {
				wire.stream(id).data(new Uint8Array(100), ending === "data");
				if (ending === "trailers") wire.stream(id).headers(TRAILERS, true);
			}
			// Both are about to be sent when they are reset, one from either side.
			wire.receive(windowUpdate(1, 1000), windowUpdate(3, 1000), reset(1, 8));
			wire.stream(3).reset(ErrorCode.INTERNAL_ERROR);
			wire.stream(3).data(new Uint8Array(1));
			wire.stream(3).headers(TRAILERS, true);
			wire.stream(3).grant(10);
			expect(await wire.said()).toEqual(["RST_STREAM 3 2"]);
			expect([wire.log(1), wire.log(3)]).toEqual([["reset 8"], []]);
			expect(wire.stream(1).pending + wire.stream(3).pending).toBe(0);
			expect(wire.session.size).toBe(0);
		}
	});

	test("is one frame of each stream in turn, however many there are", async () => {
		const wire = new Wire({
			slow: true,
			settings: [[INITIAL_WINDOW_SIZE, 1 << 30]],
		});
		wire.receive(windowUpdate(0, 1 << 30));
		const ids = Array.from({ length: 10 }, (_, index) => 2 * index + 1);
		for (const id of ids) {
			wire.receive(request(id, END_STREAM));
			wire.stream(id).data(new Uint8Array(200_000));
		}
		const sent: number[] = [];
		while (ids.some((id) => wire.stream(id).pending > 0)) {
			const frames = await wire.sent();
			expect(frames.length).toBeLessThan(20);
			for (const { type, id } of frames) if (type === DATA) sent.push(id);
			const counts = ids.map((one) => sent.filter((id) => id === one).length);
			expect(Math.max(...counts) - Math.min(...counts)).toBeLessThanOrEqual(1);
			wire.take();
		}
		expect(sent.length).toBeGreaterThan(100);
	});

	test("is not overtaken by what others begin to send, however many there are", async () => {
		const wire = new Wire({
			slow: true,
			maxConcurrentStreams: 10_000,
			settings: [[INITIAL_WINDOW_SIZE, 1 << 30]],
		});
		wire.receive(windowUpdate(0, 1 << 30), request(1, END_STREAM));
		wire.stream(1).data(new Uint8Array(500_000));
		for (let id = 3; id < 3_000; ) {
			await wire.sent();
			// More than goes out at once, in each turn.
			for (let count = 0; count < 70; count++, id += 2) {
				wire.receive(request(id, END_STREAM));
				wire.stream(id).data(new Uint8Array(1_000));
			}
			wire.take();
		}
		expect(wire.stream(1).pending).toBeLessThan(400_000);
	});

	test("is a header block in CONTINUATION frames where it is longer than a frame", async () => {
		const wire = new Wire();
		wire.receive(request(1, END_STREAM), request(3, END_STREAM));
		const long: [string, string] = ["x-long", "v".repeat(40_000)];
		wire.stream(1).headers([...RESPONSE, long], true);
		wire.stream(3).headers(RESPONSE, true);
		const frames = (await wire.sent()).filter(({ id }) => id > 0);
		expect(
			frames.map(({ type, flags, id, payload }) => [
				type,
				flags,
				id,
				payload.length <= 16_384,
			]),
		).toEqual([
			[HEADERS, END_STREAM, 1, true],
			[CONTINUATION, 0, 1, true],
			[CONTINUATION, END_HEADERS, 1, true],
			[HEADERS, END_STREAM | END_HEADERS, 3, true],
		]);
		const [one, two, three] = frames;
		const joined = bytesOf(
			...[one, two, three].map((each) => each?.payload ?? []),
		);
		expect(wire.fields({ ...(one as Frame), payload: joined })).toEqual([
			...RESPONSE,
			long,
		]);
	});

	test("is compressed with the table that the peer allows, also when it was smaller for a moment", async () => {
		const wire = new Wire();
		wire.receive(...[1, 3, 5].map((id) => request(id, END_STREAM)));
		const fields: [string, string][] = [...RESPONSE, ["x", "y"]];
		const payload = async (id: number) => {
			wire.stream(id).headers(fields);
			return (await wire.sent()).find((one) => one.id === id) as Frame;
		};
		expect(wire.fields(await payload(1))).toEqual(fields);
		expect((await payload(3)).payload).toEqual(new Uint8Array([0x88, 0xbe]));
		wire.receive(settings([1, 0], [1, 100]));
		const after = await payload(5);
		// The first thing it says is that the table has been emptied.
		expect(after.payload[0]).toBe(0x20);
		expect(wire.fields(after)).toEqual(fields);
	});

	test("goes out once per turn, and again only when the transport has taken it", async () => {
		const wire = new Wire({ slow: true });
		wire.receive(request(1), ping(), ping());
		wire.stream(1).headers(RESPONSE);
		expect(await wire.said()).toEqual(["PING ACK", "PING ACK", "HEADERS 1"]);
		wire.receive(ping());
		expect(await wire.said()).toEqual([]);
		wire.take();
		expect(await wire.said()).toEqual(["PING ACK"]);
		expect(wire.calls).toEqual(["write", "write"]);
	});

	test("waits as pending, no more than was written, for as long as the transport takes nothing", async () => {
		const wire = new Wire({
			slow: true,
			settings: [[INITIAL_WINDOW_SIZE, 1 << 30]],
		});
		wire.receive(windowUpdate(0, 1 << 30), request(1, END_STREAM));
		await wire.sent();
		for (let count = 0; count < 100; count++)
			wire.stream(1).data(new Uint8Array(10_000));
		expect(await wire.said()).toEqual([]);
		expect(wire.stream(1).pending).toBeGreaterThan(1_000_000 - 100_000);
		expect(wire.stream(1).pending).toBeLessThanOrEqual(1_000_000);
		expect(wire.log(1)).toEqual([]);
		for (let turn = 0; turn < 20; turn++) {
			wire.take();
			await settled();
		}
		expect(wire.log(1)).toEqual(["drain"]);
	});
});

describe("what is received", () => {
	test("is the same in single bytes, in pairs, and in one piece", async () => {
		const bytes = bytesOf(
			PREFACE,
			settings([INITIAL_WINDOW_SIZE, 1000]),
			settingsAck(),
			request(1),
			data(1, 30_000 % 16_384),
			frame(0xfa, 0, 0, new Uint8Array(100)),
			data(1, 0),
			data(1, 5, END_STREAM),
			ping(),
			headers(3, REQUEST, 0),
			frame(CONTINUATION, END_HEADERS, 3, block([["x", "y"]])),
		);
		const told = async (step: number) => {
			const wire = new Wire({ raw: true });
			for (let at = 0; at < bytes.length; at += step)
				wire.session.receive(bytes.slice(at, at + step));
			return [await wire.said(), wire.log(1), [...wire.streams.keys()]];
		};
		const whole = await told(bytes.length);
		expect(whole).toEqual([
			["PING ACK"],
			["data +13616", "data +5 END"],
			[1, 3],
		]);
		for (const step of [1, 2, 7, 8, 9, 10, 100])
			expect(await told(step)).toEqual(whole);
	});

	test("is granted by the owner alone, stream by stream", async () => {
		const wire = new Wire({ initialWindow: 100 });
		wire.receive(request(1), data(1, 60));
		expect(wire.stream(1).granted).toBe(40);
		expect(await wire.said()).toEqual([]);
		wire.stream(1).grant(25);
		wire.stream(1).grant(0);
		wire.stream(1).grant(-5);
		expect(wire.stream(1).granted).toBe(65);
		expect(await wire.said()).toEqual(["WINDOW_UPDATE 1 25"]);
		wire.stream(1).grant(MAX_WINDOW);
		expect(wire.stream(1).granted).toBe(MAX_WINDOW);
		wire.receive(data(1, 65), data(1, 5, END_STREAM));
		expect(wire.log(1)).toEqual(["data +60", "data +65", "data +5 END"]);
		await wire.sent();
		wire.stream(1).grant(5);
		expect(await wire.said()).toEqual([]);
	});

	test("beyond what was granted is an error of that stream alone", async () => {
		const wire = new Wire({ initialWindow: 100 });
		wire.receive(
			request(1),
			request(3),
			data(1, 100),
			data(3, 101),
			data(1, 0),
		);
		expect(wire.log(3)).toEqual(["reset 3"]);
		expect(wire.log(1)).toEqual(["data +100"]);
		expect(await wire.said()).toEqual(["RST_STREAM 3 3"]);
	});

	test("may be as much as the default window until the peer has read our SETTINGS", async () => {
		const wire = new Wire({ raw: true, initialWindow: 100 });
		wire.receive(PREFACE, settings(), ...[1, 3, 5].map((id) => request(id)));
		for (const id of [1, 3])
			wire.receive(...[1, 2, 3, 4].map(() => data(id, 16_383)), data(id, 3));
		wire.receive(data(3, 1), settingsAck(), data(5, 100), request(7));
		expect([wire.told.get(1)?.bytes, wire.log(3)?.at(-1)]).toEqual([
			65_535,
			"reset 3",
		]);
		wire.receive(data(5, 1), data(7, 101));
		expect(await wire.said()).toEqual(
			[3, 5, 7].map((id) => `RST_STREAM ${id} 3`),
		);
		expect([wire.stream(1).closed, wire.stream(1).granted]).toEqual([
			false,
			-65_435,
		]);
	});

	test("is granted up to 2^31-1, which includes what our SETTINGS grant", async () => {
		const wire = new Wire({ raw: true, initialWindow: MAX_WINDOW - 10 });
		wire.receive(PREFACE, settings(), request(1));
		wire.stream(1).grant(100);
		expect(await wire.said()).toEqual(["WINDOW_UPDATE 1 10"]);
		wire.receive(settingsAck());
		expect(wire.stream(1).granted).toBe(MAX_WINDOW);
	});

	test("may end without data although our SETTINGS have reduced the window below 0", async () => {
		const wire = new Wire({ raw: true, initialWindow: 100 });
		wire.receive(PREFACE, settings(), request(1), data(1, 200), settingsAck());
		expect(wire.stream(1).granted).toBe(-100);
		wire.receive(data(1, 0), data(1, 0, END_STREAM));
		expect(wire.log(1)).toEqual(["data +200", "data +0 END"]);
		expect(await wire.said()).toEqual([]);
	});

	test("is granted again as far as it is padding", async () => {
		const wire = new Wire({ initialWindow: 100 });
		const padded = frame(DATA, PADDED, 1, [3, 7, 7, 0, 0, 0]);
		wire.receive(request(1), padded);
		expect(wire.log(1)).toEqual(["data +2"]);
		expect(wire.stream(1).granted).toBe(98);
		expect(await wire.said()).toEqual(["WINDOW_UPDATE 1 4"]);
	});

	test("is held up by no other stream: the connection's window stays open", async () => {
		const wire = new Wire({ initialWindow: MAX_WINDOW });
		const chunk = data(1, 16_384);
		wire.receive(request(1));
		await wire.sent();
		let granted = 65_535 + 2_147_418_112;
		const million = new Uint8Array(64 * chunk.length);
		for (let at = 0; at < million.length; at += chunk.length)
			million.set(chunk, at);
		for (let count = 0; count < 1100; count++) {
			wire.session.receive(million);
			granted -= 64 * 16_384;
			if (count % 100 === 0)
				wire.stream(1).grant(MAX_WINDOW - wire.stream(1).granted);
		}
		for (const { type, id, payload } of await wire.sent())
			if (type === 8 && id === 0)
				granted += new DataView(payload.buffer).getUint32(0);
		expect(granted).toBeGreaterThan(2 ** 30 - 2 ** 21);
		expect(wire.session.closed).toBeFalse();
	});

	test("may have the reserved bits set, which mean nothing", async () => {
		const wire = new Wire({ settings: [[INITIAL_WINDOW_SIZE, 0]] });
		const bit = 2 ** 31;
		wire.receive(request(1 + bit, END_STREAM), windowUpdate(1 + bit, 5 + bit));
		wire.receive(windowUpdate(bit, 5 + bit), ping());
		wire.stream(1).data(new Uint8Array(10));
		expect(await wire.said()).toEqual(["PING ACK", "DATA 1 +5"]);
	});

	test("in frames of two CONTINUATIONs is one header block", () => {
		const bytes = block(REQUEST);
		const wire = new Wire();
		wire.receive(
			frame(HEADERS, END_STREAM, 1, bytes.subarray(0, 5)),
			frame(CONTINUATION, 0, 1, bytes.subarray(5, 6)),
			frame(CONTINUATION, END_HEADERS, 1, bytes.subarray(6)),
		);
		expect([...wire.streams.keys()]).toEqual([1]);
		expect(wire.stream(1).remoteEnded).toBeTrue();
	});

	test("is not a request when it is malformed, which is an error of that stream alone", async () => {
		const without = (name: string) => REQUEST.filter(([one]) => one !== name);
		const malformed: [string, string][][] = [
			without(":method"),
			without(":scheme"),
			without(":path"),
			[...REQUEST, [":path", "/"]],
			[...REQUEST, [":status", "200"]],
			[...REQUEST, [":protocol", "websocket"]],
			[["a", "b"], ...REQUEST],
			[...without(":path"), [":path", ""]],
			[...REQUEST, ["Upper", "case"]],
			[...REQUEST, ["sp ace", ""]],
			[...REQUEST, ["col:on", ""]],
			[...REQUEST, ["connection", "close"]],
			[...REQUEST, ["transfer-encoding", "chunked"]],
			[...REQUEST, ["te", "gzip"]],
			[...REQUEST, ["a", "b\r\nc: d"]],
			[...REQUEST, ["a", "\0"]],
			[...REQUEST, ["content-length", "-1"]],
			[...REQUEST, ["content-length", "1"], ["content-length", "1"]],
		];
		for (const fields of malformed) {
			const wire = new Wire();
			wire.receive(headers(1, fields), request(3));
			expect([fields, await wire.said()]).toEqual([fields, ["RST_STREAM 1 1"]]);
			expect([...wire.streams.keys()]).toEqual([3]);
		}
		const fine: [string, string][] = [
			["te", "trailers"],
			["x!#$%&'*+-.^_`|~9", " v\t"],
		];
		const wire = new Wire();
		wire.receive(headers(1, [...REQUEST, ...fine]));
		expect(await wire.said()).toEqual([]);
		expect(wire.streams.size).toBe(1);
	});

	test("has to be as long as content-length says", async () => {
		const length = (value: string): [string, string][] => [
			...REQUEST,
			["content-length", value],
		];
		const wire = new Wire();
		wire.receive(
			...[headers(1, length("5")), data(1, 3), data(1, 2, END_STREAM)],
			...[headers(3, length("5")), data(3, 6)],
			...[headers(5, length("5")), data(5, 4, END_STREAM)],
			...[
				headers(7, length("5")),
				data(7, 4),
				headers(7, TRAILERS, END_STREAM | END_HEADERS),
			],
			headers(9, length("5"), END_STREAM | END_HEADERS),
			headers(11, length("0"), END_STREAM | END_HEADERS),
		);
		expect(await wire.said()).toEqual(
			[3, 5, 7, 9].map((id) => `RST_STREAM ${id} 1`),
		);
		expect(wire.log(1)).toEqual(["data +3", "data +2 END"]);
		expect(wire.log(11)).toEqual([]);
	});

	test("as trailers has to end the stream, and to have no pseudo-fields", async () => {
		const wire = new Wire();
		wire.receive(request(1), request(3), request(5));
		wire.receive(
			headers(1, TRAILERS),
			headers(3, RESPONSE, END_STREAM | END_HEADERS),
		);
		wire.receive(headers(5, TRAILERS, END_STREAM | END_HEADERS));
		expect(await wire.said()).toEqual(["RST_STREAM 1 1", "RST_STREAM 3 1"]);
		expect(wire.log(5)).toEqual(["headers END"]);
	});

	test("as a response may come after informational ones", async () => {
		const { wire, told } = await client(4);
		wire.receive(
			headers(1, [[":status", "103"]]),
			headers(1, [[":status", "100"]]),
		);
		wire.receive(
			headers(1, RESPONSE),
			data(1, 3),
			headers(1, TRAILERS, END_STREAM | END_HEADERS),
		);
		expect(told[0]?.log).toEqual(["headers", "data +3", "headers END"]);
		expect(told[0]?.headers[0]).toEqual(RESPONSE);
		wire.receive(headers(3, [["x", "y"]]));
		expect(told[1]?.log).toEqual(["reset 1"]);
		wire.receive(headers(5, [[":status", "100"]], END_STREAM | END_HEADERS));
		expect(told[2]?.log).toEqual(["reset 1"]);
		wire.receive(data(7, 1));
		expect(told[3]?.log).toEqual(["reset 1"]);
	});

	test("over the list size is refused stream by stream, and leaves the tables in step", async () => {
		const wire = new Wire();
		const indexed = bytesOf([0x40, 1, 0x61, 1, 0x62]); // a: b, added to the table
		const long = block([
			...REQUEST,
			["x", "y".repeat(15_000)],
			["x", "y".repeat(2_000)],
		]);
		wire.receive(
			frame(HEADERS, 0, 1, long.subarray(0, 16_000)),
			frame(
				CONTINUATION,
				END_HEADERS,
				1,
				bytesOf(long.subarray(16_000), indexed),
			),
			frame(HEADERS, END_HEADERS, 3, bytesOf(block(REQUEST), [0x80 | 62])),
		);
		expect(await wire.said()).toEqual(["RST_STREAM 1 11"]);
		expect([...wire.streams.keys()]).toEqual([3]);
	});

	test("on a stream that we have given up is passed over, its header blocks still decoded", async () => {
		const wire = new Wire();
		wire.receive(request(1), request(3));
		wire.stream(3).reset(ErrorCode.CANCEL);
		expect(await wire.said()).toEqual(["RST_STREAM 3 8"]);
		const indexed = bytesOf([0x40, 1, 0x61, 1, 0x62]);
		wire.receive(
			data(3, 1000),
			windowUpdate(3, 10),
			frame(HEADERS, END_HEADERS | END_STREAM, 3, indexed),
			reset(3, 8),
			frame(HEADERS, END_HEADERS, 5, bytesOf(block(REQUEST), [0x80 | 62])),
		);
		expect(await wire.said()).toEqual([]);
		expect(wire.log(3)).toEqual([]);
		expect(wire.session.size).toBe(2);
	});

	test("on a stream that has ended in good order is answered with a reset", async () => {
		const wire = new Wire();
		wire.receive(request(1, END_STREAM), request(3));
		wire.stream(1).headers(RESPONSE, true);
		await wire.sent();
		wire.receive(data(1, 1), windowUpdate(1, 1), reset(1, 8));
		expect(await wire.said()).toEqual(["RST_STREAM 1 5"]);
		expect([wire.log(1), wire.session.closed]).toEqual([[], false]);
	});

	test("ends a client's stream when the response does, the request being of no more use", async () => {
		const { wire, told, streams } = await client(2);
		streams[0]?.data(new Uint8Array(100_000), true);
		await wire.sent();
		wire.receive(
			headers(1, RESPONSE),
			headers(1, TRAILERS, END_STREAM | END_HEADERS),
			reset(1, 0),
		);
		expect(told[0]?.log).toEqual(["headers", "headers END"]);
		expect(await wire.said()).toEqual(["RST_STREAM 1 0"]);
		expect([
			streams[0]?.closed,
			streams[0]?.pending,
			wire.session.size,
		]).toEqual([true, 0, 1]);
	});

	test("ends a server's stream when the response does, the request being of no more use", async () => {
		const wire = new Wire();
		wire.receive(request(1));
		wire.stream(1).headers([...RESPONSE, ...TRAILERS], true);
		expect(await wire.said()).toEqual(["HEADERS 1 END", "RST_STREAM 1 0"]);
		wire.receive(data(1, 10), data(1, 10, END_STREAM));
		expect(wire.log(1)).toEqual([]);
		expect(await wire.said()).toEqual([]);
	});

	test("is told as unprocessed where the peer has said so", async () => {
		const { wire, told } = await client(4);
		wire.receive(
			reset(1, ErrorCode.REFUSED_STREAM),
			reset(3, ErrorCode.CANCEL),
		);
		wire.receive(goaway(5));
		expect(told.map(({ log }) => log)).toEqual([
			["reset 7 unprocessed"],
			["reset 8"],
			[],
			["reset 7 unprocessed"],
		]);
		wire.session.disconnected();
		expect(told[2]?.log).toEqual(["reset 8"]);
		// What a server has begun to work on is its own affair.
		const server = new Wire();
		server.receive(request(1), reset(1, ErrorCode.REFUSED_STREAM), goaway(0));
		expect(server.log(1)).toEqual(["reset 7"]);
		expect(server.calls).not.toContain("goaway");
	});

	test.each([
		["DATA on stream 0", data(0, 1), 1],
		["DATA on a stream that has not been opened", data(5, 1), 1],
		["DATA on a stream that only the server could open", data(2, 1), 1],
		["HEADERS on stream 0", headers(0, REQUEST), 1],
		["HEADERS on an even stream", headers(2, REQUEST), 1],
		["HEADERS on a stream that has ended", bytesOf(reset(1, 8), request(1)), 5],
		[
			"HEADERS on a stream that was passed over",
			bytesOf(request(5), request(3)),
			5,
		],
		[
			"a header block that is interrupted",
			bytesOf(headers(3, REQUEST, 0), ping()),
			1,
		],
		[
			"a header block continued on another stream",
			bytesOf(headers(3, REQUEST, 0), frame(CONTINUATION, 4, 5)),
			1,
		],
		["a CONTINUATION of nothing", frame(CONTINUATION, 4, 1), 1],
		["a header block that is broken", frame(HEADERS, 4, 3, [0x80]), 9],
		["a frame of over 16,384 bytes", bytesOf([0, 0x40, 1, DATA, 0], u32(1)), 6],
		[
			"padding that is longer than its frame",
			frame(DATA, PADDED, 1, [5, 0, 0, 0, 0]),
			1,
		],
		["a padded frame without a pad length", frame(DATA, PADDED, 1), 6],
		[
			"HEADERS too short for their priority",
			frame(HEADERS, 0x24, 3, [0, 0, 0, 0]),
			6,
		],
		["PRIORITY of 4 bytes", frame(PRIORITY, 0, 1, [0, 0, 0, 0]), 6],
		["PRIORITY on stream 0", frame(PRIORITY, 0, 0, [0, 0, 0, 0, 0]), 1],
		["RST_STREAM on stream 0", reset(0, 8), 1],
		["RST_STREAM on a stream that has not been opened", reset(7, 8), 1],
		["RST_STREAM of 3 bytes", frame(3, 0, 1, [0, 0, 0]), 6],
		["SETTINGS on a stream", frame(SETTINGS, 0, 1), 1],
		["SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, [0, 0, 0, 0, 0]), 6],
		[
			"an acknowledgement with settings",
			frame(SETTINGS, 1, 0, [0, 4, 0, 0, 0, 0]),
			6,
		],
		["ENABLE_PUSH 2", settings([2, 2]), 1],
		["INITIAL_WINDOW_SIZE 2^31", settings([4, 2 ** 31]), 3],
		["MAX_FRAME_SIZE 16,383", settings([5, 16_383]), 1],
		["MAX_FRAME_SIZE 2^24", settings([5, 2 ** 24]), 1],
		[
			"INITIAL_WINDOW_SIZE that makes a window too large",
			bytesOf(windowUpdate(1, MAX_WINDOW - 65_535), settings([4, 65_536])),
			3,
		],
		["PUSH_PROMISE", frame(PUSH_PROMISE, 4, 1, [0, 0, 0, 2]), 1],
		["PING of 7 bytes", frame(PING, 0, 0, [0, 0, 0, 0, 0, 0, 0]), 6],
		["PING on a stream", frame(PING, 0, 1, new Uint8Array(8)), 1],
		["GOAWAY on a stream", frame(7, 0, 1, new Uint8Array(8)), 1],
		["GOAWAY of 7 bytes", frame(7, 0, 0, new Uint8Array(7)), 6],
		["WINDOW_UPDATE of 3 bytes", frame(8, 0, 0, [0, 0, 1]), 6],
		["WINDOW_UPDATE by 0", windowUpdate(0, 0), 1],
		["WINDOW_UPDATE beyond 2^31-1", windowUpdate(0, MAX_WINDOW), 3],
		[
			"WINDOW_UPDATE on a stream that has not been opened",
			windowUpdate(3, 1),
			1,
		],
	])("as %s ends the connection with GOAWAY", async (_, bytes, code) => {
		const wire = new Wire();
		wire.receive(request(1));
		await wire.sent();
		wire.receive(bytes, ping());
		const said = await wire.said();
		expect(said.at(-1)).toMatch(new RegExp(`^GOAWAY \\d+ ${code}$`));
		expect(said).not.toContain("PING ACK");
		expect(wire.session.closed).toBeTrue();
		expect(wire.calls.at(-1)).toBe("end");
	});

	test.each([
		["WINDOW_UPDATE by 0", windowUpdate(1, 0), 1],
		["WINDOW_UPDATE beyond 2^31-1", windowUpdate(1, MAX_WINDOW), 3],
		["DATA after the end", bytesOf(data(1, 0, END_STREAM), data(1, 1)), 5],
		[
			"trailers after the end",
			bytesOf(data(1, 0, END_STREAM), headers(1, TRAILERS, 5)),
			5,
		],
	])(
		"as %s on a stream ends the stream and no other",
		async (_, bytes, code) => {
			const wire = new Wire();
			wire.receive(request(1), bytes, request(3), ping());
			expect(await wire.said()).toEqual([`RST_STREAM 1 ${code}`, "PING ACK"]);
			expect(wire.log(1)?.at(-1)).toBe(`reset ${code}`);
			expect([...wire.streams.keys()]).toEqual([1, 3]);
		},
	);

	test.each([
		["ENABLE_PUSH 1", "client" as const, settings([2, 1])],
		["a pushed stream", "client" as const, headers(2, RESPONSE)],
		[
			"a response that nobody asked for",
			"client" as const,
			headers(1, RESPONSE),
		],
	])("by a client as %s ends the connection", async (_, role, bytes) => {
		const wire = new Wire({ role });
		wire.receive(bytes);
		expect((await wire.said()).at(-1)).toMatch(/^GOAWAY 0 1$/);
	});

	test("at the beginning has to be the preface, then SETTINGS", async () => {
		for (const bytes of [
			new TextEncoder().encode("GET / HTTP/1.1\r\n"),
			bytesOf(PREFACE, ping()),
			bytesOf(PREFACE, settingsAck()),
			bytesOf(PREFACE, request(1)),
		]) {
			const wire = new Wire({ raw: true });
			wire.receive(bytes);
			expect((await wire.said()).at(-1)).toBe("GOAWAY 0 1");
			expect(wire.streams.size).toBe(0);
		}
	});
});

describe("streams", () => {
	test("over the limit are refused, and there is room again when one has ended", async () => {
		const wire = new Wire({ maxConcurrentStreams: 2 });
		wire.receive(request(1), request(3), request(5, END_STREAM));
		expect(await wire.said()).toEqual(["RST_STREAM 5 7"]);
		wire.receive(reset(1, 8), request(7));
		expect(await wire.said()).toEqual([]);
		expect([...wire.streams.keys()]).toEqual([1, 3, 7]);
	});

	test("of a client are available as far as the peer allows", async () => {
		const wire = new Wire({ role: "client", settings: [[3, 1]] });
		expect(wire.session.available).toBeTrue();
		const stream = wire.session.request(REQUEST, new Told());
		expect(wire.session.available).toBeFalse();
		expect(() => wire.session.request(REQUEST, new Told())).toThrow();
		stream.reset(ErrorCode.CANCEL);
		expect(wire.session.available).toBeTrue();
		wire.receive(goaway(0));
		expect(wire.session.available).toBeFalse();
	});

	test("of a client are not available while a megabyte of requests has not been taken", async () => {
		const wire = new Wire({ role: "client", slow: true });
		await wire.sent();
		let requests = 0;
		while (wire.session.available && requests < 100_000) {
			wire.session.request([...REQUEST, ["x", "y".repeat(1_000)]], new Told());
			requests++;
		}
		// A field that repeats is one octet: what counts is bytes.
		expect(requests).toBeGreaterThan(10_000);
		expect(requests).toBeLessThan(100_000);
		wire.take();
		await settled();
		expect(wire.session.available).toBeTrue();
	});

	test("are each told once that the connection is gone, before the session is", () => {
		const calls: string[] = [];
		const wire = new Wire({
			role: "client",
			onClose: (error) => calls.push(`close ${error}`),
		});
		const streams: Stream[] = [];
		for (const number of [0, 1, 2, 3])
			streams.push(
				wire.session.request(
					REQUEST,
					new Told((event) => {
						calls.push(`${number} ${event}`);
						// Whoever resets a stream is not told of it any more.
						if (number === 1) streams[2]?.reset(ErrorCode.CANCEL);
					}),
				),
			);
		wire.session.disconnected("gone");
		wire.session.disconnected("again");
		expect(calls).toEqual([
			"0 reset 8",
			"1 reset 8",
			"3 reset 8",
			"close gone",
		]);
		expect([
			wire.session.size,
			wire.session.closed,
			wire.session.available,
		]).toEqual([0, true, false]);
	});

	test("that GOAWAY ends are each told once, also when one's owner resets another", async () => {
		const streams: (Stream | undefined)[] = [];
		const {
			wire,
			told,
			streams: all,
		} = await client(3, (event) => {
			if (event.startsWith("reset")) streams[2]?.reset(ErrorCode.CANCEL);
		});
		streams.push(...all);
		wire.receive(goaway(0));
		expect(told.map(({ log }) => log.length)).toEqual([1, 1, 0]);
		await settled();
		expect(wire.calls.filter((call) => call !== "write")).toEqual([
			"goaway",
			"close",
			"end",
		]);
	});
});

describe("an owner may, when it is told something,", () => {
	/** A server whose owner does something at the first event of the first stream. */
	async function during(
		act: (session: Session, stream: Stream) => void,
		...parts: Uint8Array[]
	) {
		const calls: string[] = [];
		let acted = false;
		const wire: Wire = new Wire({
			onStream: (stream) =>
				new Told((event) => {
					calls.push(`${stream.id} ${event}`);
					if (!acted) act(wire.session, stream);
					acted = true;
				}),
			onClose: (error) => calls.push(`close ${error ?? ""}`),
		});
		wire.receive(...parts);
		return { said: await wire.said(), calls, wire };
	}
	const both = [
		request(1),
		request(3),
		data(1, 5),
		data(1, 6, END_STREAM),
		data(3, 7, END_STREAM),
		request(5),
		data(5, 8),
	];

	test("reset the stream", async () => {
		const { said, calls } = await during(
			(_, stream) => stream.reset(8),
			...both,
		);
		expect(calls).toEqual(["1 data +5", "3 data +7 END", "5 data +8"]);
		expect(said).toEqual(["RST_STREAM 1 8"]);
	});

	test("answer it completely", async () => {
		const { said, calls } = await during(
			(_, stream) => {
				stream.headers(RESPONSE);
				stream.data(new Uint8Array(3));
				stream.headers(TRAILERS, true);
			},
			...both,
		);
		expect(calls).toEqual(["1 data +5", "3 data +7 END", "5 data +8"]);
		expect(said).toEqual([
			"HEADERS 1",
			"DATA 1 +3",
			"HEADERS 1 END",
			"RST_STREAM 1 0",
		]);
	});

	test("close the session", async () => {
		const { said, calls } = await during(
			(session) => session.close(0, "enough"),
			...both,
		);
		expect(calls).toEqual([
			"1 data +5",
			"1 reset 8",
			"3 reset 8",
			"close enough",
		]);
		expect(said).toEqual(["GOAWAY 3 0"]);
	});

	test("say that the transport is gone", async () => {
		const { said, calls } = await during(
			(session) => session.disconnected(),
			...both,
		);
		expect(calls).toEqual(["1 data +5", "1 reset 8", "3 reset 8", "close "]);
		expect(said).toEqual([]);
	});

	test("throw: the connection ends, the error is not lost", async () => {
		const wire: Wire = new Wire({
			onStream: () => {
				throw new Error("a mistake");
			},
		});
		expect(() => wire.receive(request(1), request(3))).toThrow("a mistake");
		expect((await wire.said()).at(-1)).toBe("GOAWAY 1 2");
		expect(wire.calls).toContain("close internal error");
	});

	test("write more when all has gone out", async () => {
		let rounds = 0;
		const wire: Wire = new Wire({
			settings: [[INITIAL_WINDOW_SIZE, 100]],
			onStream: (stream) =>
				new Told(() => stream.data(new Uint8Array(150), ++rounds === 3)),
		});
		wire.receive(request(1), data(1, 1, END_STREAM));
		const said = await wire.said();
		for (let round = 0; round < 5; round++) {
			wire.receive(windowUpdate(1, 100));
			said.push(...(await wire.said()));
		}
		expect(rounds).toBe(4);
		expect(said).toEqual([
			"DATA 1 +100",
			"DATA 1 +50",
			"DATA 1 +50",
			"DATA 1 +100",
			"DATA 1 +100",
			"DATA 1 +50 END",
		]);
	});
});

describe("the end of a connection", () => {
	test("in good order is announced, made final, and comes with that of the last stream", async () => {
		const wire = new Wire();
		wire.receive(request(1));
		wire.session.goaway(false);
		wire.session.ping();
		expect(await wire.said()).toEqual([`GOAWAY ${MAX_WINDOW} 0`, "PING"]);
		// This request was under way.
		wire.receive(request(3, END_STREAM), pong());
		expect(wire.calls.filter((call) => call !== "write")).toEqual(["pong"]);
		wire.session.goaway(true);
		expect(await wire.said()).toEqual(["GOAWAY 3 0"]);
		// This one was not: passed over, but the tables stay in step, and nobody says anything else about it.
		wire.receive(
			frame(HEADERS, 4, 5, bytesOf(block(REQUEST), [0x40, 1, 0x61, 1, 0x62])),
			data(5, 100),
			headers(5, TRAILERS, 5),
		);
		wire.session.goaway(true);
		expect(await wire.said()).toEqual(["GOAWAY 3 0"]);
		wire.stream(3).headers(RESPONSE, true);
		await settled();
		expect(wire.session.closed).toBeFalse();
		wire.receive(frame(HEADERS, 5, 1, [0x80 | 62]));
		expect(wire.log(1)).toEqual(["headers END"]);
		wire.stream(1).headers(RESPONSE, true);
		expect((await wire.said()).at(-1)).toBe("HEADERS 1 END");
		expect(wire.calls.slice(-3)).toEqual(["write", "close", "end"]);
	});

	test("tells a stream its end before the session", async () => {
		const { wire, told } = await client(1, () => wire.calls.push("told"));
		wire.calls.length = 0;
		wire.receive(goaway(1), headers(1, RESPONSE, END_STREAM | END_HEADERS));
		await settled();
		expect(told[0]?.log).toEqual(["headers END"]);
		expect(wire.calls.filter((call) => call !== "write")).toEqual([
			"goaway",
			"told",
			"close",
			"end",
		]);
	});

	test("with an error lets the peer read what was written, and why", async () => {
		const wire = new Wire({ slow: true });
		wire.receive(request(1));
		await wire.sent();
		wire.stream(1).headers(RESPONSE);
		wire.session.close(ErrorCode.ENHANCE_YOUR_CALM, "enough");
		wire.session.close(ErrorCode.NO_ERROR, "again");
		wire.receive(ping());
		await settled();
		expect(wire.calls).toEqual(["write", "close enough"]);
		wire.take();
		expect(
			(await wire.sent()).map((one) => [
				words(one),
				new TextDecoder().decode(one.payload.slice(8)),
			]),
		).toEqual([
			["HEADERS 1", ""],
			["GOAWAY 1 11", "enough"],
		]);
		expect(wire.calls).toEqual(["write", "close enough", "write"]);
		wire.take();
		await settled();
		expect(wire.calls.at(-1)).toBe("end");
		expect(wire.log(1)).toEqual(["reset 8"]);
	});

	test("is silent when the transport is gone", async () => {
		const wire = new Wire({ slow: true });
		wire.receive(request(1), ping());
		wire.session.disconnected();
		wire.stream(1).headers(RESPONSE);
		wire.session.ping();
		wire.session.goaway(true);
		wire.session.close(0, "");
		wire.take();
		expect(await wire.said()).toEqual([]);
		expect(wire.calls).toEqual(["close"]);
	});

	test("is no end of the other connections' buffers: an idle session keeps none", async () => {
		Bun.gc(true);
		const before = heapStats();
		const wires: Wire[] = [];
		for (let count = 0; count < 1_000; count++) {
			const wire = new Wire();
			wire.receive(request(1, END_STREAM));
			wire.stream(1).data(new Uint8Array(60_000), true);
			await wire.sent();
			wires.push(wire);
		}
		wires.forEach((wire) => {
			wire.streams.clear();
			wire.told.clear();
		});
		Bun.gc(true);
		const after = heapStats();
		const each =
			(after.heapSize +
				after.extraMemorySize -
				before.heapSize -
				before.extraMemorySize) /
			1_000;
		expect(each).toBeLessThan(20_000);
	});
});

/** Bytes on the heap, with those of buffers. */
function heap(): number {
	Bun.gc(true);
	const { heapSize, extraMemorySize } = heapStats();
	return heapSize + extraMemorySize;
}

describe("a flood", () => {
	const MEGABYTE = 1 << 20;
	/** What the heap may differ by for other reasons; a leak of these floods would be tens of megabytes. */
	const LITTLE = 4 * MEGABYTE;
	/** Some 64 KB of a frame, or of frames with ascending stream ids. */
	function chunks(make: (id: number) => Uint8Array): () => Uint8Array {
		let id = 101;
		return () => {
			const parts: Uint8Array[] = [];
			for (let length = 0; length < 65_536; id += 2) {
				const part = make(id);
				length += part.length;
				parts.push(part);
			}
			return bytesOf(...parts);
		};
	}

	/** @returns how the session is after so many bytes, or after its end */
	async function flood(
		wire: Wire,
		make: (id: number) => Uint8Array,
		bytes = 8 * MEGABYTE,
	) {
		const next = chunks(make);
		const before = heap();
		let most = 0;
		let received = 0;
		let told = 0;
		for (let round = 0; received < bytes && !wire.session.closed; round++) {
			const chunk = next();
			wire.session.receive(chunk);
			received += chunk.length;
			for (const { log } of wire.told.values()) told += log.length;
			wire.told.clear();
			wire.streams.clear();
			await settled();
			if (round % 32 === 0) most = Math.max(most, heap() - before);
		}
		return { received, told, grown: Math.max(most, heap() - before) };
	}

	const answered: [string, (id: number) => Uint8Array][] = [
		["PING", () => ping()],
		["SETTINGS", () => settings()],
		["padding", () => frame(DATA, PADDED, 1, [0])],
		["requests that are malformed", (id) => headers(id, [])],
		["windows by 0", (id) => bytesOf(request(id), windowUpdate(id, 0))],
		["requests over the limit", (id) => request(id)],
	];
	test.each(answered)(
		"of %s whose answers are not read ends the connection, before they take a megabyte",
		async (_, make) => {
			const wire = new Wire({ slow: true, maxConcurrentStreams: 1 });
			wire.receive(request(1));
			await wire.sent();
			const { received, grown } = await flood(wire, make);
			expect(wire.calls.at(-1)).toMatch(/not read/);
			expect(received).toBeLessThan(2 * MEGABYTE);
			expect(grown).toBeLessThan(LITTLE);
		},
	);

	test("of requests whose refusals are not read ends the connection as well", async () => {
		const wire: Wire = new Wire({
			slow: true,
			onStream: (stream) => {
				stream.headers([...RESPONSE, ...TRAILERS], true);
				return new Told();
			},
		});
		const { grown } = await flood(wire, (id) => request(id, END_STREAM));
		expect(wire.calls.at(-1)).toMatch(/not read/);
		expect(grown).toBeLessThan(LITTLE);
	});

	test.each([
		...answered.map(
			([what, make]) => [`${what}, which is read`, make] as const,
		),
		["empty DATA", () => data(1, 0)] as const,
		[
			"PRIORITY",
			(id: number) => frame(PRIORITY, 0, id, [0, 0, 0, 0, 9]),
		] as const,
		["windows of one byte", () => windowUpdate(1, 1)] as const,
		["frames of an unknown type", () => frame(99, 0, 1, [1, 2, 3])] as const,
		["GOAWAY", () => goaway(0)] as const,
		["resets of a stream that has ended", () => reset(5, 8)] as const,
		["PING that acknowledges nothing", () => pong()] as const,
	])("of %s takes no memory, and the connection lives on", async (_, make) => {
		const wire = new Wire({ maxConcurrentStreams: 3 });
		wire.receive(request(1), request(3), request(5), reset(5, 8));
		await wire.sent();
		const take = chunks(make);
		const before = heap();
		for (let received = 0; received < 2 * MEGABYTE; ) {
			const chunk = take();
			received += chunk.length;
			wire.session.receive(chunk);
			await wire.sent();
		}
		wire.told.clear();
		wire.streams.clear();
		expect(heap() - before).toBeLessThan(LITTLE);
		expect(wire.session.closed).toBeFalse();
		expect(wire.calls).not.toContain("pong");
		wire.receive(ping(7));
		expect(await wire.said()).toEqual(["PING ACK"]);
	});

	test("is not what it looks like when all streams end with an error at once", async () => {
		const wire = new Wire({ slow: true, maxConcurrentStreams: 2_000 });
		for (let id = 1; id < 4_000; id += 2) wire.receive(request(id, END_STREAM));
		await wire.sent();
		for (const [id, stream] of wire.streams)
			stream.headers(
				[...RESPONSE, ["grpc-message", `${id}`.padEnd(150)]],
				true,
			);
		wire.receive(ping());
		wire.take();
		expect((await wire.said()).length).toBe(2_001);
		expect(wire.session.closed).toBeFalse();
	});

	test("of requests that are reset at once leaves nothing behind, and ends no connection", async () => {
		const wire = new Wire();
		const before = heap();
		let told = 0;
		for (let id = 1; id < 100_000; ) {
			const parts: Uint8Array[] = [];
			for (let count = 0; count < 500; count++, id += 2)
				parts.push(request(id), reset(id, ErrorCode.CANCEL));
			wire.receive(...parts);
			for (const { log } of wire.told.values()) {
				expect(log).toEqual(["reset 8"]);
				told++;
			}
			wire.told.clear();
			wire.streams.clear();
		}
		expect(told).toBe(50_000);
		expect(await wire.said()).toEqual([]);
		expect(heap() - before).toBeLessThan(LITTLE);
		expect([wire.session.closed, wire.session.size]).toEqual([false, 0]);
	});

	test("of requests that are reset while their answers wait leaves nothing of these", async () => {
		const wire = new Wire({ slow: true });
		wire.receive(windowUpdate(0, MAX_WINDOW - 65_535));
		await wire.sent();
		const before = heap();
		for (let id = 1; id < 20_000; id += 2) {
			wire.receive(request(id, END_STREAM));
			wire.stream(id).data(new Uint8Array(65_535));
			wire.receive(reset(id, ErrorCode.CANCEL));
			wire.streams.clear();
			wire.told.clear();
		}
		expect(heap() - before).toBeLessThan(LITTLE);
		expect(wire.session.size).toBe(0);
	});

	test("of CONTINUATION ends the connection at 64 KB", async () => {
		for (const size of [0, 1, 100, 16_384]) {
			const wire = new Wire();
			const chunk = bytesOf(
				...Array.from({ length: 10 }, () =>
					frame(CONTINUATION, 0, 1, new Uint8Array(size).fill(0x82)),
				),
			);
			wire.receive(frame(HEADERS, 0, 1, [0x82]));
			let received = 0;
			for (; !wire.session.closed && received < MEGABYTE; received += 10 * size)
				wire.session.receive(chunk);
			expect(received).toBeLessThan(65_536 + 10 * 16_384);
			expect(await wire.said()).toEqual(["GOAWAY 0 11"]);
		}
	});

	test("of header fields, few octets each, is refused without being kept (HPACK bomb)", async () => {
		const wire = new Wire();
		const field = block([["x", "y".repeat(3_900)]]);
		field[0] = 0x40; // added to the table
		const before = heap();
		wire.receive(
			frame(HEADERS, 4, 1, bytesOf(block(REQUEST), field)),
			frame(HEADERS, 0, 3, new Uint8Array(16_000).fill(0x80 | 62)),
			frame(CONTINUATION, 0, 3, new Uint8Array(16_000).fill(0x80 | 62)),
			frame(CONTINUATION, 4, 3, new Uint8Array(16_000).fill(0x80 | 62)),
		);
		expect(await wire.said()).toEqual(["RST_STREAM 3 11"]);
		expect([...wire.streams.keys()]).toEqual([1]);
		expect(heap() - before).toBeLessThan(LITTLE);
	});

	test("of windows of one byte is answered with one frame per turn, and what waits stays with its owner", async () => {
		const wire = new Wire({ settings: [[INITIAL_WINDOW_SIZE, 0]] });
		wire.receive(request(1, END_STREAM));
		wire.stream(1).data(new Uint8Array(100_000));
		for (let turn = 1; turn <= 50; turn++) {
			wire.receive(...Array.from({ length: 1_000 }, () => windowUpdate(1, 1)));
			expect(await wire.said()).toEqual(["DATA 1 +1000"]);
			expect(wire.stream(1).pending).toBe(100_000 - turn * 1_000);
		}
	});

	test("of frames that never end takes no more than one frame", () => {
		const before = heap();
		const wires = Array.from({ length: 100 }, () => new Wire());
		for (const wire of wires)
			for (let count = 0; count < 100; count++) {
				const whole = frame(99, 0, 0, new Uint8Array(16_384));
				wire.session.receive(whole.slice(0, 100));
				wire.session.receive(whole.slice(100, -1));
				wire.session.receive(whole.slice(-1));
				if (count === 99) wire.session.receive(whole.slice(0, -1));
			}
		expect((heap() - before) / wires.length).toBeLessThan(60_000);
	});
});
