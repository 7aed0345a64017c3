/** One call between a tenant and a core, both by hand: what is made again, and what becomes of what is not as it should be. */
import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import { readFile } from "node:fs/promises";
import { createServer, type Server, type TLSSocket } from "node:tls";
import { LEASE_MAX, methods, type ServedMethod, tenant } from "../etcd.ts";
import { Budget } from "../gateway/budget.ts";
import { Call } from "../gateway/call.ts";
import { Core } from "../gateway/core.ts";
import { overSocket } from "../gateway/socket.ts";
import { RESPONSE_HEADERS, trailers } from "../grpc.ts";
import { ErrorCode, type Header, Session, type Stream } from "../http2.ts";
import { Authority } from "./cluster/certificates.ts";
import { removeFolder, until, workFolder } from "./cluster/processes.ts";
import { grpc } from "./gatewayclient.ts";
import {
	bytesOf,
	DATA,
	data,
	END_HEADERS,
	END_STREAM,
	HEADERS,
	headers,
	RST_STREAM,
	reset,
	u32,
	Wire,
} from "./http2wire.ts";
import {
	etcdProtobuf,
	int,
	len,
	type Plain,
	type Protobuf,
} from "./protobuf.ts";

const RANGE = "/etcdserverpb.KV/Range";
const GRANT = "/etcdserverpb.Lease/LeaseGrant";
const WATCH = "/etcdserverpb.Watch/Watch";
const REQUESTS: Record<string, string> = {
	[RANGE]: "RangeRequest",
	[GRANT]: "LeaseGrantRequest",
};

type Request = { path: string; message: Plain };
/** What the core does with a call of which all has come. */
type Answer = (stream: Stream, request: Request) => void;

let dir: string;
let protobuf: Protobuf;
let server: Server;
let core: Core;
/** What the core was asked, and what it does next; the last of these again and again. */
let asked: Request[] = [];
let answers: Answer[] = [];

beforeAll(async () => {
	protobuf = await etcdProtobuf();
	dir = await workFolder();
	const authority = await Authority.create(dir, "ca");
	const { certFile, keyFile } = await authority.issue("core", {
		subject: "/",
		names: ["IP:127.0.0.1"],
	});
	const [ca, cert, key] = await Promise.all(
		[authority.certFile, certFile, keyFile].map((file) =>
			readFile(file, "utf8"),
		),
	);
	const credentials = { ca: `${ca}`, cert: `${cert}`, key: `${key}` };
	server = createServer({ ...credentials, ALPNProtocols: ["h2"] }, serve);
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
	const address = server.address();
	const port = typeof address === "object" ? address?.port : 0;
	core = new Core({
		endpoints: [`https://127.0.0.1:${port}`],
		credentials: () => credentials,
		keepaliveMs: 60_000,
		keepaliveTimeoutMs: 60_000,
		healthRequest: Uint8Array.from(len(1, "health")),
		onState: () => undefined,
	});
	core.start();
	await until("the core is connected", async () => core.healthy);
});
afterEach(() => {
	asked = [];
	answers = [];
});
afterAll(() => {
	core?.stop();
	server?.close();
	removeFolder(dir);
});

function serve(socket: TLSSocket): void {
	const session = new Session({
		role: "server",
		transport: overSocket(socket),
		onStream: (stream, fields) => {
			const path = fields.find(([name]) => name === ":path")?.[1] ?? "";
			let bytes = new Uint8Array(0);
			return {
				onHeaders: () => undefined,
				onData: (more, ended) => {
					bytes = bytesOf(bytes, more);
					if (!ended) return;
					const type = `etcdserverpb.${REQUESTS[path]}`;
					const message = protobuf.decode(type, bytes.subarray(5));
					if (message.key === "health") return respond({})(stream);
					asked.push({ path, message });
					const answer = answers.length > 1 ? answers.shift() : answers[0];
					answer?.(stream, { path, message });
				},
				onReset: () => undefined,
			};
		},
	});
	socket.on("data", (chunk: Buffer) => session.receive(chunk));
	socket.on("error", () => undefined);
	socket.once("close", () => session.disconnected());
}

const respond =
	(message: Plain, type = "RangeResponse") =>
	(stream: Stream): void => {
		stream.headers(RESPONSE_HEADERS);
		stream.data(grpc([...protobuf.encode(`etcdserverpb.${type}`, message)]));
		stream.headers(trailers(0, ""), true);
	};
const refuse =
	(code: number, message: string): Answer =>
	(stream) =>
		stream.headers([...RESPONSE_HEADERS, ...trailers(code, message)], true);
const resetBy =
	(code: number): Answer =>
	(stream) =>
		stream.reset(code);
/** As etcd grants what is asked for, unless it has it already. */
const grant =
	(taken: string[]): Answer =>
	(stream, { message }) =>
		taken.includes(`${message.ID}`)
			? refuse(9, "etcdserver: lease already exists")(stream, {
					path: GRANT,
					message,
				})
			: respond(
					{ ID: message.ID as string, TTL: "60" },
					"LeaseGrantResponse",
				)(stream);

/** A tenant's connection. */
class Tenant {
	readonly wire: Wire;
	readonly budget = new Budget(1 << 20);
	readonly ended: number[] = [];
	readonly bugs: unknown[] = [];
	watches = 0;
	leases: () => number = () => 1;
	#status = "";
	#messages: Uint8Array = new Uint8Array(0);

	constructor(path: string) {
		this.wire = new Wire({
			onStream: (stream, fields) => {
				const call = new Call(
					{
						connection: this,
						tenant: tenant("/t/", "https://localhost"),
						core,
						budget: this.budget,
						maxRequestBytes: 1 << 20,
						addWatch: () => ++this.watches > 0,
						removeWatches: (count) => {
							this.watches -= count;
						},
						freshLease: () => this.leases(),
						sent: () => undefined,
						received: () => undefined,
						onBug: (error) => this.bugs.push(error),
						onEnd: (_, code) => this.ended.push(code),
					},
					methods.get(path) as ServedMethod,
					stream,
					fields,
				);
				call.start();
				return call;
			},
		});
	}

	/** The end is told once, and nothing is left behind. */
	expectEnd(): void {
		expect(this.ended.length).toBe(1);
		expect([this.budget.used, this.budget.waiting]).toEqual([0, 0]);
		let calls = 0;
		while (this.budget.expect()) calls++;
		expect(calls).toBe((2 * this.budget.max) / 65_536);
		for (; calls > 0; calls--) this.budget.arrived();
	}

	/** Sends a request. @returns how the call ended, and its messages together */
	async call(...parts: Uint8Array[]): Promise<{
		status: string;
		messages: Uint8Array;
	}> {
		this.wire.receive(headers(1, REQUEST_HEADERS), ...parts);
		await until(
			"the call has ended",
			async () => {
				for (const frame of await this.wire.sent()) {
					if (frame.type === DATA)
						this.#messages = bytesOf(this.#messages, frame.payload);
					if (frame.type === RST_STREAM)
						this.#status ||= `reset ${frame.payload[3]}`;
					if (frame.type !== HEADERS) continue;
					const fields = this.wire.fields(frame);
					const field = (wanted: string) =>
						fields.find(([name]) => name === wanted)?.[1];
					if (field("grpc-status"))
						this.#status = `${field("grpc-status")} ${field("grpc-message") ?? ""}`;
				}
				return this.#status !== "";
			},
			{ interval: 5 },
		);
		this.expectEnd();
		return { status: this.#status.trim(), messages: this.#messages };
	}
}

const REQUEST_HEADERS: Header[] = [
	[":method", "POST"],
	[":scheme", "https"],
	[":path", "/"],
	[":authority", "localhost"],
];
const GET = grpc(len(1, "a"));
const last = (bytes: Uint8Array) => data(1, bytes, END_STREAM);
const get = (...parts: Uint8Array[]) =>
	new Tenant(RANGE).call(...(parts.length > 0 ? parts : [last(GET)]));

test("a lease whose number is taken is granted with another one", async () => {
	const tenant = new Tenant(GRANT);
	const numbers = [7, 7, LEASE_MAX];
	tenant.leases = () => numbers.shift() ?? 0;
	const taken: Answer = (stream, request) =>
		grant([`${request.message.ID}`])(stream, request);
	answers = [taken, taken, grant([])];
	const { status, messages } = await tenant.call(last(grpc(int(1, 60))));
	expect(status).toBe("0");
	expect(
		protobuf.decode("etcdserverpb.LeaseGrantResponse", messages.subarray(5)),
	).toEqual({ ID: String(LEASE_MAX), TTL: "60" });
	expect(new Set(asked.map(({ message }) => message.ID)).size).toBe(2);
});

test("after three numbers that are all taken, etcd's own words are the answer", async () => {
	answers = [refuse(9, "etcdserver: lease already exists")];
	const tenant = new Tenant(GRANT);
	expect((await tenant.call(last(grpc(int(1, 60))))).status).toBe(
		"9 etcdserver: lease already exists",
	);
	expect(asked.length).toBe(3);
});

test("what the core has not begun to work on is asked again, up to three times", async () => {
	answers = [
		resetBy(ErrorCode.REFUSED_STREAM),
		resetBy(ErrorCode.REFUSED_STREAM),
		respond({ count: "5" }),
	];
	expect((await get()).status).toBe("0");
	expect(asked.length).toBe(3);
	answers = [resetBy(ErrorCode.REFUSED_STREAM)];
	expect((await get()).status).toBe(
		"14 etcdproxy: the connection to the core etcd was lost",
	);
	expect(asked.length).toBe(6);
});

test("what it may have worked on is not", async () => {
	for (const [code, status] of [
		[ErrorCode.CANCEL, "14"],
		[ErrorCode.INTERNAL_ERROR, "14"],
		[ErrorCode.ENHANCE_YOUR_CALM, "8"],
	] as const) {
		asked = [];
		answers = [resetBy(code)];
		expect((await get()).status).toBe(
			`${status} etcdproxy: the connection to the core etcd was lost`,
		);
		expect(asked.length).toBe(1);
	}
});

test("of an answer that ends too early, nothing is passed on", async () => {
	const part = grpc(len(1, int(3, 5))).subarray(0, 7);
	answers = [
		(stream) => {
			stream.headers(RESPONSE_HEADERS);
			stream.data(part);
			stream.reset(ErrorCode.REFUSED_STREAM);
		},
	];
	const cut = await get();
	expect(cut.status).toStartWith("14 ");
	expect(cut.messages.length).toBe(0);
	// It had begun: asking again could do it twice.
	expect(asked.length).toBe(1);
	answers = [
		(stream) => {
			stream.headers(RESPONSE_HEADERS);
			stream.data(part, true);
		},
	];
	const { status, messages } = await get();
	expect(status).toBe("13 the core's answer has no status");
	expect(messages.length).toBe(0);
});

test("a key of somebody else in an answer is an internal error, and not shown", async () => {
	answers = [respond({ kvs: [{ key: "/other/a", value: "secret" }] })];
	const { status, messages } = await get();
	expect(status).toStartWith("13 ");
	expect(status).not.toContain("/other");
	expect(messages.length).toBe(0);
});

test("a request may come in any pieces, its end by itself", async () => {
	answers = [respond({ count: "5" })];
	const bytes = [...GET].map((byte) => data(1, [byte]));
	for (const parts of [
		[...bytes, data(1, [], END_STREAM)],
		[data(1, GET), headers(1, [["trailer", "1"]], END_HEADERS | END_STREAM)],
	])
		expect((await get(...parts)).status).toBe("0");
	expect(asked.map(({ message }) => message.key)).toEqual(["/t/a", "/t/a"]);
});

test("what is no request of gRPC is refused", async () => {
	const compressed = bytesOf([1], u32(3), len(1, "a"));
	expect((await get(data(1, [], END_STREAM))).status).toBe(
		"13 a unary call without a message",
	);
	expect((await get(last(GET.subarray(0, 7)))).status).toBe(
		"13 the request ends within a message",
	);
	expect((await get(last(bytesOf(GET, GET)))).status).toBe(
		"13 more than one message in a unary call",
	);
	expect((await get(last(compressed))).status).toBe(
		"12 etcdproxy: messages are compressed, which is not supported",
	);
	expect(asked).toEqual([]);
});

test("a client that gives up is not answered, and its end is told", async () => {
	answers = [() => undefined];
	const tenant = new Tenant(RANGE);
	tenant.wire.receive(headers(1, REQUEST_HEADERS), last(GET));
	await until("the core is asked", async () => asked.length === 1);
	tenant.wire.receive(reset(1, 8));
	expect(tenant.ended).toEqual([1]);
	expect(
		(await tenant.wire.said()).filter((one) => /^(DATA|HEAD)/.test(one)),
	).toEqual([]);
	tenant.expectEnd();
});

test("a client that gives up while its answer waits for room waits no longer", async () => {
	answers = [respond({ kvs: [{ key: "/t/a", value: "v".repeat(100_000) }] })];
	const tenant = new Tenant(RANGE);
	const other = { owner: {}, waiting: 0, cut: () => undefined };
	tenant.budget.hold(1_000_000, other);
	tenant.wire.receive(headers(1, REQUEST_HEADERS), last(GET));
	await until("it waits", async () => tenant.budget.waiting === 1, {
		interval: 5,
	});
	tenant.wire.receive(reset(1, 8));
	expect(tenant.budget.waiting).toBe(0);
	tenant.budget.hold(0, other);
	tenant.expectEnd();
});

test("watches are counted from their beginning to their end", async () => {
	const tenant = new Tenant(WATCH);
	const create = grpc(len(1, len(1, "a")));
	tenant.wire.receive(headers(1, REQUEST_HEADERS), data(1, create));
	tenant.wire.receive(data(1, create));
	expect(tenant.watches).toBe(2);
	tenant.wire.receive(reset(1, 8));
	expect(tenant.watches).toBe(0);
});

test("a bug costs the call in which it is, and is told", async () => {
	const tenant = new Tenant(GRANT);
	tenant.leases = () => {
		throw new TypeError("a bug");
	};
	const { status } = await tenant.call(last(grpc(int(1, 60))));
	expect(status).toBe("13 etcdproxy: internal error");
	expect(tenant.bugs.map(String)).toEqual(["TypeError: a bug"]);
});
