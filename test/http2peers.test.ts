/** http2.ts with others: the conformance tests of h2spec, and node:http2 of Node and of Bun, as client and as server. */
import {
	afterAll,
	beforeAll,
	describe,
	expect,
	setDefaultTimeout,
	test,
} from "bun:test";
import { connect, createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { overSocket } from "../gateway/socket.ts";
import {
	ErrorCode,
	type Header,
	Session,
	type SessionOptions,
	type Stream,
	type StreamEvents,
} from "../http2.ts";
import { binaries } from "./cluster/binaries.ts";
import { removeFolder, run, until, workFolder } from "./cluster/processes.ts";
import { FIRST_BUILD } from "./harness.ts";
import { body, octet, REQUEST, RESPONSE, TRAILERS } from "./http2wire.ts";

// Some take seconds on a machine that does other things as well.
setDefaultTimeout(60_000);

/** What a stream's owner lets wait before it grants more. */
const MAX_PENDING = 100_000;
const NOTHING = new Uint8Array(0);
const soon = { timeout: 20_000, interval: 5 };

/** A server of ours over plain TCP, and what it sees. */
class Ours {
	readonly sessions: Session[] = [];
	readonly streams: {
		path: string;
		stream: Stream;
		log: string[];
		/** Goes on with the answer to "/source". */
		pour: () => void;
	}[] = [];
	readonly closed: (string | undefined)[] = [];
	pongs = 0;
	/** The most that ever waited on one stream. */
	mostPending = 0;
	readonly #options: Partial<SessionOptions>;
	readonly #server: Server;
	readonly #sockets = new Set<Socket>();

	constructor(options: Partial<SessionOptions> = {}) {
		this.#options = options;
		this.#server = createServer((socket) => this.#accept(socket));
	}

	async listen(): Promise<number> {
		await new Promise<void>((resolve) =>
			this.#server.listen(0, "127.0.0.1", resolve),
		);
		return this.port;
	}

	get port(): number {
		const address = this.#server.address();
		return typeof address === "object" && address ? address.port : 0;
	}

	stop(): void {
		for (const socket of this.#sockets) socket.destroy();
		this.#server.close();
	}

	#accept(socket: Socket): void {
		this.#sockets.add(socket);
		const session = new Session({
			role: "server",
			transport: overSocket(socket),
			maxConcurrentStreams: 1_000,
			onStream: (stream, headers, ended) =>
				this.#answer(stream, headers, ended),
			onPong: () => {
				this.pongs++;
			},
			onClose: (error) => this.closed.push(error),
			...this.#options,
		});
		this.sessions.push(session);
		socket.on("data", (chunk: Buffer) => session.receive(chunk));
		socket.on("error", () => {});
		socket.on("close", () => {
			this.#sockets.delete(socket);
			session.disconnected();
		});
	}

	#answer(stream: Stream, headers: Header[], ended: boolean): StreamEvents {
		const value = (name: string) =>
			headers.find(([one]) => one === name)?.[1] ?? "";
		const path = value(":path");
		const log: string[] = [];
		let owed = 0;
		const write = (bytes: Uint8Array) => {
			stream.data(bytes);
			this.mostPending = Math.max(this.mostPending, stream.pending);
		};
		const end = () => {
			if (path === "/hold") return;
			if (path === "/") write(body(0, 1_000));
			stream.headers(TRAILERS, true);
		};
		const source = body(Number(value("x-seed")), Number(value("x-length")));
		let sourced = 0;
		const pour = () => {
			while (stream.pending < MAX_PENDING && sourced < source.length) {
				write(source.subarray(sourced, sourced + 30_000));
				sourced += 30_000;
			}
			if (sourced >= source.length) end();
		};
		this.streams.push({ path, stream, log, pour });
		if (path === "/headers")
			stream.headers([...RESPONSE, ["x-long", "v".repeat(40_000)]]);
		else stream.headers(RESPONSE);
		if (path === "/source") {
			if (value("x-begin") !== "later") pour();
		} else if (ended) end();
		return {
			onHeaders: () => end(),
			onData: (bytes, last) => {
				if (path === "/reset") {
					stream.reset(ErrorCode.INTERNAL_ERROR);
					return;
				}
				if (path === "/echo") write(bytes.slice());
				owed += bytes.length;
				if (stream.pending < MAX_PENDING) {
					stream.grant(owed);
					owed = 0;
				}
				if (last && path !== "/source") end();
			},
			onReset: (code) => log.push(`reset ${code}`),
			onDrain: () => {
				log.push("drain");
				if (path === "/source") pour();
				stream.grant(owed);
				owed = 0;
			},
		};
	}
}

describe("h2spec", () => {
	let h2spec = "";
	beforeAll(async () => {
		({ h2spec } = await binaries(["h2spec"]));
	}, FIRST_BUILD);

	test("finds nothing to object to, also in its strict tests", async () => {
		const ours = new Ours();
		const port = await ours.listen();
		const text = await run([
			h2spec,
			...["--strict", "--host=127.0.0.1", `--port=${port}`],
			"--timeout=2",
		]);
		ours.stop();
		expect(text.trim().split("\n").at(-1)).toBe(
			"146 tests, 146 passed, 0 skipped, 0 failed",
		);
	});
});

const runtimes = [
	["Bun", process.execPath],
	["Node", Bun.which("node")],
] as const;

let folder = "";
beforeAll(async () => {
	folder = await workFolder();
	const built = await Bun.build({
		entrypoints: [join(import.meta.dir, "http2peer.ts")],
		target: "node",
		outdir: folder,
		naming: "peer.mjs",
	});
	if (!built.success) throw new AggregateError(built.logs);
}, 30_000);
afterAll(() => removeFolder(folder));

interface Outcome {
	status?: number;
	bytes: number;
	wrong: number;
	trailer?: string;
	error?: string;
}
const to = (path: string): Header[] => [
	...REQUEST.filter(([name]) => name !== ":path"),
	[":path", path],
];
const whole = (bytes: number): Outcome => ({
	status: 200,
	bytes,
	wrong: -1,
	trailer: "0",
});

for (const [runtime, program] of runtimes) {
	const peer = (...args: string[]) =>
		Bun.spawn([program ?? "", join(folder, "peer.mjs"), ...args], {
			stdin: "pipe",
			stdout: "pipe",
			stderr: "inherit",
		});

	describe.skipIf(program === null)(`a client in ${runtime}`, () => {
		/** Runs a scenario; at each line that it says, `step`. @returns what its last line says */
		async function scenario<T>(
			ours: Ours,
			name: string,
			settings: object = {},
			step: (
				line: string,
				go: () => void,
				child: Bun.Subprocess,
			) => Promise<void> = async () => {},
		): Promise<T> {
			const port = await ours.listen();
			const child = peer(
				"client",
				String(port),
				name,
				JSON.stringify(settings),
			);
			try {
				let last = "";
				let text = "";
				const decoder = new TextDecoder();
				for await (const chunk of child.stdout) {
					text += decoder.decode(chunk, { stream: true });
					const lines = text.split("\n");
					text = lines.pop() ?? "";
					for (const line of lines) {
						last = line;
						const go = () => {
							child.stdin.write("go\n");
							child.stdin.flush();
						};
						await step(line, go, child);
					}
				}
				expect(await child.exited).toBe(0);
				return JSON.parse(last);
			} finally {
				child.kill();
				ours.stop();
			}
		}

		const lengths = Array.from({ length: 80 }, (_, seed) =>
			Math.floor((seed ** 3 * 3) / 5),
		);

		test.each([
			[1_000, 65_535],
			[16_384, 16_384],
			[65_535, 65_535],
			[1 << 20, 1_000],
			[2 ** 31 - 1, 1 << 20],
		])(
			"with windows of %i bytes gets 80 echoes at once, from windows of %i",
			async (initialWindowSize, initialWindow) => {
				const ours = new Ours({ initialWindow });
				const outcomes = await scenario<Outcome[]>(ours, "echo", {
					initialWindowSize,
				});
				expect(outcomes).toEqual(lengths.map(whole));
				expect(ours.sessions.map(({ size }) => size)).toEqual([0]);
			},
		);

		test("gets 60 echoes of a megabyte at once", async () => {
			const ours = new Ours();
			const outcomes = await scenario<Outcome[]>(ours, "large");
			expect(outcomes).toEqual(outcomes.map(() => whole(1_000_000)));
			expect(outcomes).toHaveLength(60);
			// As much as was let wait, and what came within one window.
			expect(ours.mostPending).toBeLessThan(MAX_PENDING + 65_536);
		});

		test("gets its pings answered", async () => {
			const payloads = await scenario(new Ours(), "ping");
			expect(payloads).toEqual(
				[0, 1, 2, 3, 4].map((count) => `payload${count}`),
			);
		});

		test("is refused a request of 40 KB of headers, and no other one", async () => {
			const { long, short } = await scenario<Record<string, Outcome>>(
				new Ours(),
				"longHeaders",
			);
			expect(long?.error).toBe("reset 11");
			expect(short).toEqual(whole(10));
		});

		test("gets response headers of 40 KB", async () => {
			expect(await scenario(new Ours(), "longResponse")).toEqual(40_000);
		});

		test("may cancel 5,000 streams on one connection", async () => {
			const ours = new Ours();
			const { cancelled, after } = await scenario<{
				cancelled: number;
				after: Outcome;
			}>(ours, "cancels");
			expect(cancelled).toBe(5_000);
			expect(after).toEqual(whole(10));
			expect(ours.sessions).toHaveLength(1);
			const held = ours.streams.filter(({ path }) => path === "/hold");
			expect(held).toHaveLength(5_000);
			expect(held.filter(({ log }) => log.join() !== "reset 8")).toEqual([]);
		});

		test("learns that its stream was reset", async () => {
			const outcome = await scenario<Outcome>(new Ours(), "reset");
			expect(outcome.error).toBe("reset 2");
		});

		test("that does not read one stream gets the others, and that one later", async () => {
			const ours = new Ours();
			const { others, bytes } = await scenario<{
				others: Outcome[];
				bytes: number;
			}>(ours, "stalled", { initialWindowSize: 16_384 }, async (line, go) => {
				if (line !== "stalled") return;
				const stalled = ours.streams.find(({ path }) => path === "/source");
				expect(stalled?.stream.pending).toBeGreaterThan(0);
				expect(stalled?.stream.pending).toBeLessThan(MAX_PENDING + 30_000);
				go();
			});
			expect(others).toEqual(others.map(() => whole(100_000)));
			expect(bytes).toBe(5_000_000);
		});

		test("that reads nothing at all makes no more wait than its streams' owners let", async () => {
			const ours = new Ours();
			const windows = { initialWindowSize: 1 << 30 };
			await scenario(ours, "deaf", windows, async (line, go, child) => {
				if (line !== "deaf") return;
				await until("requests", async () => ours.streams.length === 10, soon);
				child.kill("SIGSTOP");
				for (const { pour } of ours.streams) pour();
				const pending = () =>
					ours.streams.reduce((sum, { stream }) => sum + stream.pending, 0);
				await until(
					"nothing more goes out",
					async () => {
						const before = pending();
						await Bun.sleep(200);
						return before > 0 && pending() === before;
					},
					soon,
				);
				expect(pending()).toBeLessThan(10 * (MAX_PENDING + 30_000));
				// Nobody else is held up.
				const other = peer("client", String(ours.port), "ping");
				expect(await other.exited).toBe(0);
				child.kill("SIGCONT");
				go();
			});
		});

		test("finishes what is under way when the server goes away", async () => {
			const ours = new Ours({
				onPong: () => ours.sessions[0]?.goaway(true),
			});
			const { outcomes, goaways } = await scenario<{
				outcomes: Outcome[];
				goaways: number;
			}>(ours, "drain", {}, async (line) => {
				if (line !== "draining") return;
				await until("requests come", async () => ours.streams.length > 0, soon);
				ours.sessions[0]?.goaway(false);
				ours.sessions[0]?.ping();
			});
			expect(outcomes).toEqual(outcomes.map(() => whole(200_000)));
			expect(goaways).toBeGreaterThan(0);
			expect(ours.closed).toEqual([undefined]);
		});
	});

	describe.skipIf(program === null)(`a server in ${runtime}`, () => {
		interface Reply extends Outcome {
			headers: Header[];
			unprocessed?: boolean;
		}

		/** A client of ours at a server of its own. */
		async function using(
			options: Partial<SessionOptions>,
			settings: object,
			act: (
				session: Session,
				socket: Socket,
				closed: Promise<string | undefined>,
			) => Promise<void>,
		): Promise<void> {
			const child = peer("server", JSON.stringify(settings));
			try {
				const reader = child.stdout.getReader();
				const first = new TextDecoder().decode((await reader.read()).value);
				const port = Number(/port (\d+)/.exec(first)?.[1]);
				const socket = connect(port, "127.0.0.1");
				await new Promise((resolve) => socket.once("connect", resolve));
				let close = (_: string | undefined) => {};
				const closed = new Promise<string | undefined>((resolve) => {
					close = resolve;
				});
				const session = new Session({
					role: "client",
					transport: overSocket(socket),
					onClose: close,
					...options,
				});
				socket.on("data", (chunk: Buffer) => session.receive(chunk));
				socket.on("error", () => {});
				socket.on("close", () => session.disconnected("gone"));
				await act(session, socket, closed);
				socket.destroy();
			} finally {
				child.kill();
			}
		}

		/** Sends as the server reads, and reads with a grant for each piece. */
		function request(
			session: Session,
			path: string,
			seed: number,
			length: number,
			more: Header[] = [],
			also: (stream: Stream, event: string) => void = () => {},
		): Promise<Reply> {
			return new Promise((resolve) => {
				const reply: Reply = { bytes: 0, wrong: -1, headers: [] };
				const sent = body(seed, length);
				let at = 0;
				const pour = () => {
					while (stream.pending === 0 && at < length) {
						stream.data(sent.subarray(at, at + 50_021));
						at += 50_021;
					}
					if (at >= length) stream.data(NOTHING, true);
				};
				const stream: Stream = session.request(
					[...to(path), ["x-seed", String(seed)], ...more],
					{
						onHeaders: (headers, ended) => {
							if (reply.status === undefined) {
								reply.headers = headers;
								reply.status = Number(headers[0]?.[1]);
							}
							const status = headers.find(([name]) => name === "grpc-status");
							if (status) reply.trailer = status[1];
							also(stream, "headers");
							if (ended) resolve(reply);
						},
						onData: (bytes) => {
							for (let index = 0; index < bytes.length; index++)
								if (bytes[index] !== octet(seed, reply.bytes + index))
									if (reply.wrong < 0) reply.wrong = reply.bytes + index;
							reply.bytes += bytes.length;
							stream.grant(bytes.length);
							also(stream, "data");
						},
						onReset: (code, unprocessed) => {
							reply.error = `reset ${code}`;
							reply.unprocessed = unprocessed;
							resolve(reply);
						},
						onDrain: pour,
					},
				);
				pour();
			});
		}
		const result = ({ headers: _, ...rest }: Reply): Outcome => rest;

		test.each([
			[1_000, 65_535],
			[16_384, 16_384],
			[65_535, 1 << 20],
			[1 << 20, 1_000],
		])(
			"with windows of %i bytes echoes 80 bodies at once, to windows of %i",
			async (initialWindowSize, initialWindow) => {
				const lengths = Array.from({ length: 80 }, (_, seed) =>
					Math.floor((seed ** 3 * 3) / 5),
				);
				await using(
					{ initialWindow },
					{ initialWindowSize },
					async (session) => {
						const replies = await Promise.all(
							lengths.map((length, seed) =>
								request(session, "/echo", seed, length),
							),
						);
						expect(replies.map(result)).toEqual(lengths.map(whole));
						expect(session.size).toBe(0);
					},
				);
			},
		);

		test("sends 60 bodies of a megabyte at once", async () => {
			await using({}, {}, async (session) => {
				const replies = await Promise.all(
					Array.from({ length: 60 }, (_, seed) =>
						request(session, "/source", seed, 0, [["x-length", "1000000"]]),
					),
				);
				expect(replies.map(result)).toEqual(
					replies.map(() => whole(1_000_000)),
				);
			});
		});

		test("sends headers of 12 KB, and gets ours of 40 KB", async () => {
			await using({}, { maxHeaderListSize: 100_000 }, async (session) => {
				const { headers } = await request(session, "/headers", 0, 0, [
					["x-length", "12000"],
					["x-long", "v".repeat(40_000)],
				]);
				expect(headers.find(([name]) => name === "x-long")?.[1]).toHaveLength(
					12_000,
				);
			});
		});

		test("sends headers that are too long: an error of that stream alone", async () => {
			await using({}, {}, async (session) => {
				const long = await request(session, "/headers", 0, 0, [
					["x-length", "40000"],
				]);
				expect(long.error).toBe("reset 11");
				expect(result(await request(session, "/echo", 1, 10))).toEqual(
					whole(10),
				);
			});
		});

		test("answers pings", async () => {
			let pongs = 0;
			await using(
				{
					onPong: () => {
						pongs++;
					},
				},
				{},
				async (session) => {
					for (let count = 0; count < 3; count++) session.ping();
					await until("pongs", async () => pongs === 3, soon);
				},
			);
			expect(pongs).toBe(3);
		});

		test("may reset, refuse, or be told a reset", async () => {
			await using({}, {}, async (session) => {
				const [reset, refused, early] = await Promise.all([
					request(session, "/reset", 0, 200_000),
					request(session, "/refuse", 0, 0),
					request(session, "/early", 0, 500_000),
				]);
				expect([reset.error, reset.unprocessed]).toEqual(["reset 2", false]);
				// Bun answers with an empty body without headers instead, which is no response.
				expect([refused.error, refused.unprocessed]).toEqual(
					runtime === "Bun" ? ["reset 1", false] : ["reset 7", true],
				);
				expect([early.status, early.trailer, early.error]).toEqual([
					200,
					"5",
					undefined,
				]);
				// Ours, in the middle of a body.
				let seen = 0;
				request(
					session,
					"/source",
					0,
					0,
					[["x-length", "1000000"]],
					(stream, event) => {
						if (event === "data" && ++seen === 3)
							stream.reset(ErrorCode.CANCEL);
					},
				);
				await until("some data", async () => seen === 3, soon);
				expect(result(await request(session, "/echo", 1, 100_000))).toEqual(
					whole(100_000),
				);
				expect(seen).toBe(3);
				expect(session.size).toBe(0);
			});
		});

		test("that goes away finishes what is under way, and the session ends well", async () => {
			let goaways = 0;
			await using(
				{
					onGoaway: () => {
						goaways++;
					},
				},
				{},
				async (session, _, closed) => {
					const under = Array.from({ length: 10 }, (_, seed) =>
						request(session, "/echo", seed, 300_000),
					);
					const last = request(session, "/goaway", 0, 100_000);
					expect((await Promise.all(under)).map(result)).toEqual(
						under.map(() => whole(300_000)),
					);
					expect((await last).trailer).toBe("0");
					expect(await closed).toBeUndefined();
					expect([session.available, goaways > 0]).toEqual([false, true]);
				},
			);
		});

		test("of which a stream is not read sends the others", async () => {
			await using({}, {}, async (session) => {
				let stalled = 0;
				session.request([...to("/source"), ["x-length", "5000000"]], {
					onHeaders: () => {},
					onData: (bytes) => {
						stalled += bytes.length;
					},
					onReset: () => {},
				});
				const replies = await Promise.all(
					Array.from({ length: 20 }, (_, seed) =>
						request(session, "/echo", seed, 100_000),
					),
				);
				expect(replies.map(result)).toEqual(replies.map(() => whole(100_000)));
				expect(stalled).toBe(65_535);
			});
		});
	});
}
