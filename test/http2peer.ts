/**
 * The other side of http2.ts in tests: node:http2, in Node or in Bun, as a process of its own.
 * `http2peer.ts server [SETTINGS]` says its port; `http2peer.ts client PORT SCENARIO [SETTINGS]` says what came of it.
 * SETTINGS is node:http2's, as JSON. Both speak HTTP/2 without TLS.
 */
import http2 from "node:http2";
import { body, octet } from "./http2wire.ts";

/** What a request of the "echo" scenarios got. */
interface Outcome {
	status: number | undefined;
	bytes: number;
	/** The first octet that is not the one it should be; -1 when all are. */
	wrong: number;
	trailer: string | undefined;
	/** Of the reset, or of the error. */
	error: string | undefined;
}

/** Settings take effect before the first request. */
function open(
	port: number,
	settings: http2.Settings,
): Promise<http2.ClientHttp2Session> {
	const session = http2.connect(`http://127.0.0.1:${port}`, {
		settings,
		maxSessionMemory: 1_000,
	});
	session.on("error", () => {});
	return new Promise((resolve) =>
		session.once("remoteSettings", () => resolve(session)),
	);
}

function send(
	session: http2.ClientHttp2Session,
	path: string,
	seed: number,
	length: number,
	headers: http2.OutgoingHttpHeaders = {},
): Promise<Outcome> {
	return new Promise((resolve) => {
		const stream = session.request({
			":method": "POST",
			":path": path,
			"x-seed": String(seed),
			...headers,
		});
		const outcome: Outcome = {
			status: undefined,
			bytes: 0,
			wrong: -1,
			trailer: undefined,
			error: undefined,
		};
		stream.on("response", (fields) => {
			outcome.status = fields[":status"];
		});
		stream.on("data", (chunk: Buffer) => {
			for (let at = 0; at < chunk.length && outcome.wrong < 0; at++)
				if (chunk[at] !== octet(seed, outcome.bytes + at))
					outcome.wrong = outcome.bytes + at;
			outcome.bytes += chunk.length;
		});
		stream.on("trailers", (fields) => {
			outcome.trailer = String(fields["grpc-status"]);
		});
		stream.on("error", (error) => {
			outcome.error = error.message;
		});
		stream.on("close", () => {
			if (stream.rstCode) outcome.error = `reset ${stream.rstCode}`;
			resolve(outcome);
		});
		const whole = body(seed, length);
		// In uneven pieces.
		for (let at = 0; at < length; at += 50_021)
			stream.write(whole.subarray(at, at + 50_021));
		stream.end();
	});
}

const scenarios: Record<
	string,
	(session: http2.ClientHttp2Session) => Promise<unknown>
> = {
	/** Many at once, from nothing to 300 KB. */
	echo: (session) =>
		Promise.all(
			Array.from({ length: 80 }, (_, seed) =>
				send(session, "/echo", seed, Math.floor((seed ** 3 * 3) / 5)),
			),
		),
	/** Many large ones at once. */
	large: (session) =>
		Promise.all(
			Array.from({ length: 60 }, (_, seed) =>
				send(session, "/echo", seed, 1_000_000),
			),
		),
	async ping(session) {
		const payloads: string[] = [];
		for (let count = 0; count < 5; count++)
			await new Promise<void>((resolve, reject) =>
				session.ping(Buffer.from(`payload${count}`), (error, _, payload) => {
					if (error) return reject(error);
					payloads.push(payload.toString());
					resolve();
				}),
			);
		return payloads;
	},
	/** Headers of 40 KB: too long for us to take; then the same connection goes on. */
	async longHeaders(session) {
		const long = await send(session, "/echo", 1, 10, {
			"x-long": "v".repeat(40_000),
		});
		const short = await send(session, "/echo", 2, 10, {
			"x-long": "v".repeat(10_000),
		});
		return { long, short };
	},
	async longResponse(session) {
		const stream = session.request({ ":path": "/headers" });
		const [fields] = await new Promise<[http2.IncomingHttpHeaders]>((resolve) =>
			stream.once("response", (headers) => resolve([headers])),
		);
		stream.close();
		return String(fields["x-long"]).length;
	},
	/** Watches that are cancelled as soon as they are there. */
	async cancels(session) {
		let cancelled = 0;
		for (let round = 0; round < 50; round++)
			await Promise.all(
				Array.from({ length: 100 }, () => {
					const stream = session.request(
						{ ":method": "POST", ":path": "/hold" },
						{ endStream: false },
					);
					return new Promise<void>((resolve) => {
						stream.on("error", () => {});
						stream.on("response", () => stream.close(8));
						stream.on("close", () => {
							cancelled++;
							resolve();
						});
					});
				}),
			);
		return { cancelled, after: await send(session, "/echo", 3, 10) };
	},
	/** The server resets what we ask for. */
	reset: (session) => send(session, "/reset", 0, 100_000),
	/** One stream that is not read, while others are. */
	async stalled(session) {
		const stalled = session.request({
			":method": "POST",
			":path": "/source",
			"x-length": "5000000",
		});
		await new Promise((resolve) => stalled.once("response", resolve));
		stalled.pause();
		const others = await Promise.all(
			Array.from({ length: 20 }, (_, seed) =>
				send(session, "/echo", seed, 100_000),
			),
		);
		process.stdout.write("stalled\n");
		await new Promise((resolve) => process.stdin.once("data", resolve));
		let bytes = 0;
		stalled.on("data", (chunk: Buffer) => {
			bytes += chunk.length;
		});
		stalled.resume();
		await new Promise((resolve) => stalled.once("end", resolve));
		return { others, bytes };
	},
	/** For a process that will be stopped. */
	async deaf(session) {
		session.setLocalWindowSize(1 << 30);
		for (let count = 0; count < 10; count++)
			session
				.request({
					":method": "POST",
					":path": "/source",
					"x-length": "5000000",
					"x-begin": "later",
				})
				.on("error", () => {});
		process.stdout.write("deaf\n");
		await new Promise((resolve) => process.stdin.once("data", resolve));
		return null;
	},
	/** The server goes away while there are requests under way. */
	async drain(session) {
		const under = Array.from({ length: 20 }, (_, seed) =>
			send(session, "/echo", seed, 200_000),
		);
		let goaways = 0;
		session.on("goaway", () => goaways++);
		const closed = new Promise((resolve) => session.once("close", resolve));
		process.stdout.write("draining\n");
		const outcomes = await Promise.all(under);
		await closed;
		return { outcomes, goaways };
	},
};

async function client(
	port: number,
	scenario: string,
	settings: http2.Settings,
) {
	const session = await open(port, settings);
	const run = scenarios[scenario];
	if (!run) throw new Error(`no scenario ${scenario}`);
	const result = await run(session);
	process.stdout.write(`${JSON.stringify(result)}\n`);
	session.destroy();
}

function answer(
	stream: http2.ServerHttp2Stream,
	headers: http2.IncomingHttpHeaders,
): void {
	stream.on("error", () => {});
	const respond = (more: http2.OutgoingHttpHeaders = {}) => {
		stream.respond({ ":status": 200, ...more }, { waitForTrailers: true });
		stream.on("wantTrailers", () =>
			stream.sendTrailers({ "grpc-status": "0" }),
		);
	};
	switch (headers[":path"]) {
		case "/echo":
			respond();
			stream.pipe(stream);
			return;
		case "/headers":
			respond({ "x-long": "v".repeat(Number(headers["x-length"])) });
			stream.end();
			return;
		case "/source":
			respond();
			stream.end(body(Number(headers["x-seed"]), Number(headers["x-length"])));
			return;
		case "/reset":
			respond();
			stream.write("begun");
			stream.once("data", () => stream.destroy(new Error("reset")));
			return;
		case "/refuse":
			stream.close(7);
			return;
		case "/early":
			// The response is complete while the request is not.
			stream.respond(
				{ ":status": 200, "grpc-status": "5" },
				{ endStream: true },
			);
			return;
		case "/goaway":
			respond();
			stream.resume();
			stream.session?.close();
			stream.on("end", () => stream.end());
			return;
		default:
			respond();
	}
}

function server(settings: http2.Settings): void {
	const listener = http2.createServer({ settings, maxSessionMemory: 1_000 });
	listener.on("stream", answer);
	listener.on("sessionError", () => {});
	let sessions = 0;
	listener.on("session", (session) => {
		sessions++;
		session.on("close", () => process.stdout.write(`closed ${sessions}\n`));
	});
	listener.listen(0, "127.0.0.1", () => {
		const address = listener.address();
		if (typeof address === "object")
			process.stdout.write(`port ${address?.port}\n`);
	});
}

async function main(): Promise<void> {
	const [role, ...rest] = process.argv.slice(2);
	const parse = (text = "{}"): http2.Settings => JSON.parse(text);
	if (role === "server") server(parse(rest[0]));
	else if (role === "client") {
		await client(Number(rest[0]), rest[1] ?? "", parse(rest[2]));
		process.exit(0);
	}
}

main().catch((error: Error) => {
	process.stderr.write(`${error.stack}\n`);
	process.exit(1);
});
