/** http2.ts against itself, through a line that cuts and delays, and against bytes that nobody in their right mind sends. */
import { heapStats } from "bun:jsc";
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
	ErrorCode,
	type Header,
	Session,
	type Stream,
	type StreamEvents,
	type Transport,
} from "../http2.ts";
import {
	block,
	bytesOf,
	CONTINUATION,
	DATA,
	END_HEADERS,
	END_STREAM,
	type Frame,
	frame,
	framesOf,
	GOAWAY,
	HEADERS,
	octet,
	PREFACE,
	REQUEST,
	RESPONSE,
	RST_STREAM,
	SETTINGS,
	settled,
	TRAILERS,
	WINDOW_UPDATE,
	words,
} from "./http2wire.ts";

/** Seconds for each property; a few hundred runs without it. */
const FUZZ_SECONDS = Number(process.env.FUZZ_SECONDS ?? 0);
const runs = (count: number): fc.Parameters<unknown> =>
	FUZZ_SECONDS > 0
		? {
				numRuns: Number.POSITIVE_INFINITY,
				interruptAfterTimeLimit: FUZZ_SECONDS * 1_000,
				markInterruptAsFailure: false,
			}
		: { numRuns: count };
const TIMEOUT = FUZZ_SECONDS * 1_000 + 60_000;

/** mulberry32: what the steps of one run are drawn from, so that a seed is enough to repeat it. */
function random(seed: number): (below: number) => number {
	let state = seed;
	return (below) => {
		state = (state + 0x6d2b79f5) | 0;
		let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
		mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
		return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
	};
}

/** One direction of a connection: takes bytes, and gives them on in other pieces, later. */
class Line implements Transport {
	#waiting: Uint8Array[] = [];
	#written:
		| { bytes: Uint8Array; copy: Uint8Array; done: () => void }
		| undefined;
	ended = false;
	/** Everything that was ever written. */
	readonly record: Uint8Array[] = [];

	write(bytes: Uint8Array, done: () => void): void {
		if (this.#written) throw new Error("a write before the last was done");
		if (this.ended) throw new Error("a write after the end");
		const copy = bytes.slice();
		this.#written = { bytes, copy, done };
		this.#waiting.push(copy);
		this.record.push(copy);
	}
	end(): void {
		this.ended = true;
	}

	get idle(): boolean {
		return this.#waiting.length === 0 && !this.#written;
	}

	/** The session may write again. */
	take(): void {
		const written = this.#written;
		if (!written) return;
		if (!written.bytes.every((byte, at) => byte === written.copy[at]))
			throw new Error("bytes were changed before they were taken");
		this.#written = undefined;
		written.done();
	}

	/** Gives the other side up to so many bytes, in memory that is used for something else afterwards. */
	deliver(session: Session, length: number): void {
		const [first] = this.#waiting;
		if (!first) return;
		const piece = first.slice(0, length);
		if (length >= first.length) this.#waiting.shift();
		else this.#waiting[0] = first.subarray(length);
		session.receive(piece);
		piece.fill(0xee);
	}
}

interface Side {
	chunks: number[];
	/** Whether the last chunk ends the stream, or something after it. */
	endsWithData: boolean;
	/** Grants what has come at once, or some time. */
	eager: boolean;
}

interface StreamPlan {
	request: Side;
	response: Side;
	/** The response does not wait for the request's end. */
	early: boolean;
	/** Who gives up, after so many of his steps. */
	reset: { by: "client" | "server"; after: number } | undefined;
}

interface Plan {
	streams: StreamPlan[];
	windows: { client: number; server: number };
	maxStreams: number;
	/** After so many steps the server goes away. */
	goaway: number | undefined;
	seed: number;
}

const chunk = fc.oneof(
	{ weight: 3, arbitrary: fc.nat(100) },
	{ weight: 2, arbitrary: fc.nat(20_000) },
	{ weight: 1, arbitrary: fc.nat(150_000) },
);
const side: fc.Arbitrary<Side> = fc.record({
	chunks: fc.array(chunk, { maxLength: 6 }),
	endsWithData: fc.boolean(),
	eager: fc.boolean(),
});
const windowSize = fc.constantFrom(
	1,
	100,
	16_384,
	65_535,
	1 << 20,
	2 ** 31 - 1,
);
const plan: fc.Arbitrary<Plan> = fc.record({
	streams: fc.array(
		fc.record({
			request: side,
			response: side,
			early: fc.boolean(),
			reset: fc.option(
				fc.record({
					by: fc.constantFrom("client" as const, "server" as const),
					after: fc.nat(8),
				}),
				{ nil: undefined, freq: 3 },
			),
		}),
		{ minLength: 1, maxLength: 12 },
	),
	windows: fc.record({ client: windowSize, server: windowSize }),
	maxStreams: fc.constantFrom(1, 3, 100),
	goaway: fc.option(fc.nat(200), { nil: undefined, freq: 4 }),
	seed: fc.nat(),
});

/** One side of one stream: writes by its plan, and checks what comes against the other's. */
class Party implements StreamEvents {
	stream: Stream | undefined;
	readonly #who: "client" | "server";
	readonly #index: number;
	readonly #plan: StreamPlan;
	readonly #own: Side;
	readonly #other: Side;
	received = 0;
	#sent = 0;
	#step = 0;
	#headersSent: boolean;
	#headersReceived: boolean;
	#owed = 0;
	/** How what comes has ended, if it has. */
	end: "good" | "reset" | "unprocessed" | undefined;
	/** We have reset it ourselves: nothing may come any more. */
	gaveUp = false;
	done = false;

	constructor(who: "client" | "server", index: number, streamPlan: StreamPlan) {
		this.#who = who;
		this.#index = index;
		this.#plan = streamPlan;
		const { request, response } = streamPlan;
		this.#own = who === "client" ? request : response;
		this.#other = who === "client" ? response : request;
		this.#headersSent = who === "client";
		this.#headersReceived = who === "server";
	}

	onHeaders(headers: Header[], ended: boolean): void {
		this.#check(`headers ${headers.join()}`);
		if (this.#headersReceived && !ended) throw new Error("headers twice");
		this.#headersReceived = true;
		if (ended) this.#ended();
	}
	onData(bytes: Uint8Array, ended: boolean): void {
		this.#check("data");
		if (!this.#headersReceived) throw new Error("data before headers");
		for (let at = 0; at < bytes.length; at++)
			if (bytes[at] !== octet(this.#index, this.received + at))
				throw new Error(`a wrong octet at ${this.received + at}`);
		// The smallest windows are for the beginning; byte by byte, nothing would come to an end.
		if (this.received < 10) this.#owed += 5_000;
		this.received += bytes.length;
		if (this.#other.eager) this.stream?.grant(bytes.length);
		else this.#owed += bytes.length;
		if (ended) this.#ended();
	}
	onReset(code: number, unprocessed: boolean): void {
		// A server may have had the whole request, and still hear that nobody waits for the response.
		if (this.gaveUp || (this.end !== undefined && this.#who === "client"))
			throw new Error(`reset ${code} after the end`);
		if (this.end === "reset") throw new Error("reset twice");
		this.end = unprocessed ? "unprocessed" : "reset";
		this.done = true;
	}

	#check(event: string): void {
		if (this.end || this.gaveUp) throw new Error(`${event} after the end`);
	}
	#ended(): void {
		this.end = "good";
		if (this.#who === "client") this.done = true;
	}

	grant(): void {
		this.stream?.grant(this.#owed);
		this.#owed = 0;
	}

	/** The next thing to do, if there is one that need not wait. */
	act(): void {
		const { stream } = this;
		if (!stream || this.done || this.gaveUp) return;
		const { reset, early } = this.#plan;
		if (reset?.by === this.#who && this.#step >= reset.after) {
			this.gaveUp = true;
			stream.reset(ErrorCode.CANCEL);
			return;
		}
		if (this.#who === "server" && !early && this.end === undefined) return;
		this.#step++;
		if (!this.#headersSent) {
			this.#headersSent = true;
			stream.headers(RESPONSE);
			return;
		}
		const { chunks, endsWithData } = this.#own;
		const length = chunks[this.#sent];
		const last = this.#sent >= chunks.length - 1;
		if (length !== undefined) {
			const before = chunks
				.slice(0, this.#sent)
				.reduce((sum, each) => sum + each, 0);
			this.#sent++;
			const bytes = new Uint8Array(length);
			for (let at = 0; at < length; at++)
				bytes[at] = octet(this.#index, before + at);
			const pending = stream.pending;
			stream.data(bytes, last && endsWithData);
			if (stream.pending > pending + length) throw new Error("pending grew");
			if (last && endsWithData) this.done = true;
			return;
		}
		if (this.#who === "server" && !endsWithData) stream.headers(TRAILERS, true);
		else stream.data(new Uint8Array(0), true);
		this.done = true;
	}

	/** How much the other side was to send. */
	get expected(): number {
		return this.#other.chunks.reduce((sum, each) => sum + each, 0);
	}
}

async function play({ streams, windows, maxStreams, goaway, seed }: Plan) {
	const draw = random(seed);
	const toServer = new Line();
	const toClient = new Line();
	const closed: (string | undefined)[] = [];
	const clients = streams.map(
		(each, index) => new Party("client", index, each),
	);
	const servers: Party[] = [];
	const client = new Session({
		role: "client",
		transport: toServer,
		initialWindow: windows.client,
		onClose: (error) => closed.push(error),
	});
	const server = new Session({
		role: "server",
		transport: toClient,
		initialWindow: windows.server,
		maxConcurrentStreams: maxStreams,
		onClose: (error) => closed.push(error),
		onStream: (stream, headers, ended) => {
			const index = Number(headers.find(([name]) => name === "x-index")?.[1]);
			const party = new Party("server", index, streams[index] as StreamPlan);
			party.stream = stream;
			servers[index] = party;
			if (ended) party.end = "good";
			return party;
		},
	});
	let opened = 0;
	let steps = 0;
	const open = () => {
		const party = clients[opened];
		if (!party || !client.available) return;
		// Padded for header blocks of all sizes.
		const fields: Header[] = [
			...REQUEST,
			["x-index", String(opened)],
			["x-pad", "p".repeat(draw(3) === 0 ? draw(15_000) : 0)],
		];
		opened++;
		party.stream = client.request(fields, party);
	};
	const parties = () => [...clients, ...servers.filter(Boolean)];
	const anyone = () => {
		const all = parties();
		return all[draw(all.length)] as Party;
	};
	const sizes = [1, 5, 9, 100, 16_384, 1 << 20];
	const moves = [
		open,
		() => anyone().act(),
		() => anyone().act(),
		() => anyone().grant(),
		() => toServer.take(),
		() => toClient.take(),
		() => toServer.deliver(server, 1 + draw(sizes[draw(6)] as number)),
		() => toClient.deliver(client, 1 + draw(sizes[draw(6)] as number)),
		() => toServer.deliver(server, 1 << 20),
		() => toClient.deliver(client, 1 << 20),
		() => (draw(10) === 0 ? server : client).ping(),
	];
	const step = async () => {
		moves[draw(moves.length)]?.();
		// Some steps are in one turn of the event loop, some are not.
		if (draw(2) === 0) await null;
		if (steps++ === goaway) server.goaway(true);
	};
	for (let count = 0; count < 300; count++) await step();
	if (goaway !== undefined && steps <= goaway) server.goaway(true);

	/** Everything that can still happen, happens. */
	let progress = -1;
	for (let quiet = 0; quiet < 3; ) {
		open();
		for (const party of parties()) {
			for (let count = 0; count < 10; count++) party.act();
			party.grant();
		}
		for (let count = 0; count < 20; count++) {
			toServer.take();
			toClient.take();
			await null;
			toServer.deliver(server, 1 << 20);
			toClient.deliver(client, 1 << 20);
			await null;
		}
		await settled();
		const now = parties().reduce(
			(sum, each) => sum + each.received + (each.done ? 1 : 0),
			opened,
		);
		const idle = now === progress && toServer.idle && toClient.idle;
		quiet = idle ? quiet + 1 : 0;
		progress = now;
	}
	return {
		client,
		server,
		clients,
		servers,
		opened,
		closed,
		toServer,
		toClient,
	};
}

describe("two sessions, and a line between them that cuts and delays at will,", () => {
	test(
		"give every stream exactly what was sent, in order, with one end",
		async () => {
			await fc.assert(
				fc.asyncProperty(plan, async (planned) => {
					const { client, server, clients, servers, opened, closed, ...lines } =
						await play(planned);
					if (planned.goaway === undefined) {
						expect(opened).toBe(planned.streams.length);
						expect(closed).toEqual([]);
					} else {
						expect(closed).toEqual([undefined, undefined]);
						expect(lines.toServer.ended && lines.toClient.ended).toBeTrue();
					}
					expect([client.size, server.size]).toEqual([0, 0]);
					planned.streams
						.slice(0, opened)
						.forEach(({ reset, early }, index) => {
							const one = clients[index] as Party;
							const other = servers[index];
							expect(one.stream?.closed).toBeTrue();
							expect(one.stream?.pending).toBe(0);
							if (one.end === "unprocessed") {
								expect(other).toBeUndefined();
								expect(one.received).toBe(0);
								return;
							}
							expect(one.received).toBeLessThanOrEqual(one.expected);
							if (other)
								expect(other.received).toBeLessThanOrEqual(other.expected);
							// Everybody has heard of an end, or made it.
							expect(one.end !== undefined || one.gaveUp).toBeTrue();
							if (reset) return;
							expect([index, one.end]).toEqual([index, "good"]);
							expect(one.received).toBe(one.expected);
							if (early) return;
							expect(other?.end).toBe("good");
							expect(other?.received).toBe(other?.expected);
						});
				}),
				runs(150),
			);
		},
		TIMEOUT,
	);
});

/** What a session may say, whatever it is told. @throws Error at the first frame that it may not */
function checkGrammar(frames: Frame[], closed: boolean): void {
	const ended = new Map<number, "end" | "reset">();
	let open = 0;
	frames.forEach((one, index) => {
		const fail = (why: string) => {
			throw new Error(
				`${why}: ${frames
					.slice(0, index + 1)
					.map(words)
					.slice(-8)}`,
			);
		};
		const { type, flags, id, payload } = one;
		if (payload.length > 16_384) fail("a frame too long");
		if (index === 0 && type !== SETTINGS) fail("no SETTINGS at the beginning");
		if (open !== 0 && (type !== CONTINUATION || id !== open))
			fail("a header block interrupted");
		if (type === HEADERS || type === CONTINUATION)
			open = flags & END_HEADERS ? 0 : id;
		if (type === GOAWAY && !closed) fail("GOAWAY, and it goes on");
		if (id === 0 || (type === WINDOW_UPDATE && ended.get(id) === "end")) return;
		if (type === CONTINUATION) return;
		const before = ended.get(id);
		// NO_ERROR after the end of a response: the rest of the request is of no use.
		if (before === "end" && type === RST_STREAM) ended.set(id, "reset");
		else if (before) {
			// A stream that has ended may be used once more by a peer who does not care: he is told so.
			if (type !== RST_STREAM || payload[3] !== ErrorCode.STREAM_CLOSED)
				fail("a frame on a stream that has ended");
		} else if (type === RST_STREAM) ended.set(id, "reset");
		else if ((type === DATA || type === HEADERS) && flags & END_STREAM)
			ended.set(id, "end");
	});
}

const anyId = fc.oneof(
	{ weight: 6, arbitrary: fc.constantFrom(1, 3, 5, 7, 9) },
	{ weight: 1, arbitrary: fc.constantFrom(0, 2, 4, 101, 2 ** 31 - 1) },
);
const fieldList: fc.Arbitrary<Header[]> = fc.oneof(
	fc.constantFrom(REQUEST, RESPONSE, TRAILERS),
	fc.array(
		fc.tuple(
			fc.constantFrom(
				":method",
				":path",
				":status",
				"x",
				"te",
				"X",
				"content-length",
				"connection",
			),
			fc.constantFrom("", "POST", "/", "200", "103", "trailers", "5", "\n"),
		),
		{ maxLength: 6 },
	),
);
const octets = (maxLength: number) => fc.uint8Array({ maxLength });
/** Frames that mean something, more or less. */
const likelyFrame = fc.oneof(
	{
		weight: 5,
		arbitrary: fc
			.tuple(fc.constantFrom(4, 5, 4, 5, 0, 1, 0x0c, 0x24), anyId, fieldList)
			.map(([flags, id, fields]) => frame(HEADERS, flags, id, block(fields))),
	},
	{
		weight: 5,
		arbitrary: fc
			.tuple(fc.constantFrom(0, 0, 1, 8, 9), anyId, octets(50))
			.map(([flags, id, bytes]) => frame(DATA, flags, id, bytes)),
	},
	fc
		.tuple(anyId, fc.nat(20))
		.map(([id, code]) => frame(RST_STREAM, 0, id, [0, 0, 0, code])),
	fc
		.tuple(anyId, octets(4))
		.map(([id, bytes]) => frame(WINDOW_UPDATE, 0, id, bytes)),
	fc
		.tuple(anyId, fc.constantFrom(1, 1000, 65_535))
		.map(([id, by]) => frame(WINDOW_UPDATE, 0, id, [0, 0, by >> 8, by & 255])),
	fc
		.tuple(fc.constantFrom(1, 2, 3, 4, 5, 6, 7), octets(4))
		.map(([id, bytes]) => frame(SETTINGS, 0, 0, bytesOf([0, id], bytes))),
	fc
		.tuple(fc.constantFrom(1, 100, 65_535))
		.map(([size]) =>
			frame(SETTINGS, 0, 0, [0, 4, 0, 0, size >> 8, size & 255]),
		),
	fc.constant(frame(SETTINGS, END_STREAM, 0)),
	fc.constant(frame(6, 0, 0, new Uint8Array(8))),
	fc.tuple(anyId, octets(12)).map(([id, bytes]) => frame(GOAWAY, 0, id, bytes)),
	fc
		.tuple(fc.constantFrom(0, 4), anyId, octets(100))
		.map(([flags, id, bytes]) => frame(CONTINUATION, flags, id, bytes)),
	fc
		.tuple(fc.nat(255), fc.nat(255), anyId, octets(100))
		.map(([type, flags, id, bytes]) => frame(type, flags, id, bytes)),
	fc
		.tuple(anyId, octets(200))
		.map(([id, bytes]) => frame(HEADERS, 4, id, bytes)),
);

/** An owner who does this and that, at random. */
class Whim implements StreamEvents {
	readonly #draw: (below: number) => number;
	stream: Stream | undefined;
	#over = false;

	constructor(draw: (below: number) => number) {
		this.#draw = draw;
	}
	onHeaders(): void {
		this.#act();
	}
	onData(): void {
		this.#act();
	}
	onReset(): void {
		if (this.#over) throw new Error("reset twice");
		this.#over = true;
		this.#act();
	}
	onDrain(): void {
		this.#act();
	}
	#act(): void {
		const { stream } = this;
		switch (this.#draw(8)) {
			case 0:
				stream?.headers(RESPONSE);
				break;
			case 1:
				stream?.data(new Uint8Array(this.#draw(100_000)));
				break;
			case 2:
				stream?.headers(TRAILERS, true);
				break;
			case 3:
				stream?.data(new Uint8Array(this.#draw(10)), true);
				break;
			case 4:
				stream?.reset(ErrorCode.CANCEL);
				break;
			default:
				stream?.grant(this.#draw(1_000));
		}
	}
}

describe("a session", () => {
	const input = fc.record({
		frames: fc.array(likelyFrame, { maxLength: 60 }),
		/** Changes of single octets, by place. */
		flips: fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 4 }),
		cut: fc.constantFrom(1, 7, 50, 1 << 20),
		seed: fc.nat(),
	});

	test.each(["server", "client"] as const)(
		"as a %s never throws, whatever it is sent, and says nothing that it may not",
		async (role) => {
			let closes = 0;
			await fc.assert(
				fc.asyncProperty(input, async ({ frames, flips, cut, seed }) => {
					const draw = random(seed);
					const line = new Line();
					let closed = 0;
					const session = new Session({
						role,
						transport: line,
						maxConcurrentStreams: 3,
						onStream: (stream) => {
							const whim = new Whim(draw);
							whim.stream = stream;
							return whim;
						},
						onClose: () => closed++,
					});
					if (role === "client")
						for (let count = 0; count < 4; count++) {
							const whim = new Whim(draw);
							whim.stream = session.request(REQUEST, whim);
						}
					const bytes = bytesOf(frame(SETTINGS, 0, 0), ...frames);
					for (const [place, value] of flips)
						if (bytes.length > 9)
							bytes[9 + (place % (bytes.length - 9))] = value;
					const whole = role === "server" ? bytesOf(PREFACE, bytes) : bytes;
					for (let at = 0; at < whole.length; at += cut) {
						const piece = whole.slice(at, at + cut);
						session.receive(piece);
						piece.fill(0xee);
						if (draw(3) === 0) line.take();
						if (draw(3) === 0) await null;
						expect(session.size).toBeLessThanOrEqual(4);
					}
					if (session.closed) closes++;
					session.disconnected();
					expect([closed, session.size]).toEqual([1, 0]);
					const said = bytesOf(...line.record);
					checkGrammar(
						framesOf(role === "client" ? said.subarray(24) : said),
						session.closed,
					);
				}),
				runs(1_500),
			);
			// It is no test if hardly anything, or everything, is broken.
			expect(closes).toBeGreaterThan(10);
		},
		TIMEOUT,
	);

	test(
		"makes nothing of random bytes",
		async () => {
			Bun.gc(true);
			const before = heapStats();
			await fc.assert(
				fc.property(fc.uint8Array({ maxLength: 2_000 }), (bytes) => {
					for (const start of [[], PREFACE, bytesOf(PREFACE, frame(4, 0, 0))]) {
						const session = new Session({
							role: "server",
							transport: new Line(),
							onStream: () => new Whim(random(1)),
						});
						session.receive(bytesOf(start, bytes));
						expect(session.size).toBeLessThanOrEqual(100);
					}
				}),
				runs(500),
			);
			Bun.gc(true);
			const after = heapStats();
			expect(
				after.heapSize +
					after.extraMemorySize -
					before.heapSize -
					before.extraMemorySize,
			).toBeLessThan(8 << 20);
		},
		TIMEOUT,
	);
});
