/** Clients of the gateway: etcd's own, driven by commands, and one that breaks the rules of HTTP/2 and of good manners. */
import { readFileSync } from "node:fs";
import { type ConnectionOptions, connect, type TLSSocket } from "node:tls";
import { Decoder } from "../http2/hpack.ts";
import type { Header } from "../http2.ts";
import { binaries } from "./cluster/binaries.ts";
import { until } from "./cluster/processes.ts";
import type { Endpoint, Gateway } from "./dataplane.ts";
import type { Json } from "./harness.ts";
import {
	bytesOf,
	DATA,
	data,
	END_HEADERS,
	END_STREAM,
	type Frame,
	frame,
	framesOf,
	GOAWAY,
	HEADERS,
	headers,
	PING,
	PREFACE,
	RST_STREAM,
	SETTINGS,
	settings,
	settingsAck,
	u32,
	windowUpdate,
} from "./http2wire.ts";
import { len } from "./protobuf.ts";

/** What etcd's client says that went wrong. */
export class ScriptError extends Error {
	/** gRPC's name of the code. */
	readonly code: string;

	constructor({ code, message }: { code: string; message: string }) {
		super(message);
		this.code = code;
	}
}

/** A process of etcd's Go client, with one connection: test/cluster/go/etcd/etcdscript. */
export class Script {
	readonly #child: Bun.Subprocess<"pipe", "pipe", "ignore">;
	readonly #waiting = new Map<number, (answer: Json) => void>();
	readonly #watches = new Map<string, Json[]>();
	#next = 0;

	private constructor(child: Bun.Subprocess<"pipe", "pipe", "ignore">) {
		this.#child = child;
		void this.#read();
	}

	static async start(endpoint: Endpoint, ...flags: string[]): Promise<Script> {
		const { etcdscript } = await binaries(["etcdscript"]);
		const child = Bun.spawn(
			[
				etcdscript,
				`--endpoint=${endpoint.url}`,
				`--cacert=${endpoint.caFile}`,
				`--cert=${endpoint.certFile}`,
				`--key=${endpoint.keyFile}`,
				...flags,
			],
			{ stdin: "pipe", stdout: "pipe", stderr: "ignore" },
		);
		return new Script(child);
	}

	/** @throws ScriptError */
	async run(op: string, request: object = {}): Promise<Json> {
		const id = this.#next++;
		const answer = await new Promise<Json>((resolve) => {
			this.#waiting.set(id, resolve);
			this.#child.stdin.write(
				`${JSON.stringify({ ...request, op, id, async: true })}\n`,
			);
			this.#child.stdin.flush();
		});
		if (answer.error) throw new ScriptError(answer.error);
		return answer.ok;
	}

	/** The code of what is expected to fail, and its words. */
	async failure(op: string, request: object = {}): Promise<string> {
		return this.run(op, request).then(
			() => "OK",
			(error) => `${error.code}: ${error.message}`,
		);
	}

	/** Creates a watch. @returns the lines that it writes, which become more */
	async watch(tag: string, request: object): Promise<Json[]> {
		const lines: Json[] = [];
		this.#watches.set(tag, lines);
		await this.run("watch", { ...request, tag });
		return lines;
	}

	signal(signal: NodeJS.Signals): void {
		this.#child.kill(signal);
	}

	async stop(): Promise<void> {
		this.#child.kill("SIGKILL");
		await this.#child.exited;
	}

	async #read(): Promise<void> {
		const decoder = new TextDecoder();
		let text = "";
		for await (const chunk of this.#child.stdout) {
			text += decoder.decode(chunk, { stream: true });
			if (!text.includes("\n")) continue;
			const lines = text.split("\n");
			text = lines.pop() ?? "";
			for (const line of lines) this.#onLine(JSON.parse(line));
		}
		for (const resolve of this.#waiting.values())
			resolve({ error: { code: "Ended", message: "etcdscript has ended" } });
	}

	#onLine(line: Json): void {
		if (line.watch !== undefined) this.#watches.get(line.watch)?.push(line);
		else this.#waiting.get(line.id)?.(line);
		this.#waiting.delete(line.id);
	}
}

/** The events in the lines of a watch, as "key@revision". */
export const eventsIn = (lines: Json[]): string[] =>
	lines
		.flatMap((line) => line.response?.events ?? [])
		.map(({ kv }) => `${kv.key}@${kv.mod_revision}`);

/** A stream of the client below, and what has come on it. */
export interface RawStream {
	bytes: number;
	headers: Header[];
	/** The code of a RST_STREAM. */
	reset: number | undefined;
	ended: boolean;
}

export interface RawOptions {
	/** Of each stream, default 65,535. */
	window?: number;
	/** Of the connection, beyond what it always has. */
	connectionWindow?: number;
	tls?: ConnectionOptions;
}

/** HTTP/2 by hand: it opens and closes windows as it is told, and by itself only answers PINGs and SETTINGS. */
export class Raw {
	readonly socket: TLSSocket;
	readonly streams = new Map<number, RawStream>();
	/** The last GOAWAY's last stream and code. */
	goaway: { lastId: number; code: number } | undefined;
	/** SETTINGS have come. */
	ready = false;
	closed = false;
	/** Why the connection could not be made, or was lost. */
	error = "";
	readonly #decoder = new Decoder(4096, 1 << 20);
	#rest: Uint8Array = new Uint8Array(0);
	#nextId = 1;

	private constructor(gateway: Endpoint, options: RawOptions) {
		this.socket = connect({
			host: "127.0.0.1",
			port: Number(new URL(gateway.url).port),
			ca: readFileSync(gateway.caFile),
			cert: readFileSync(gateway.certFile),
			key: readFileSync(gateway.keyFile),
			ALPNProtocols: ["h2"],
			...options.tls,
		});
		this.socket.on("error", (error: NodeJS.ErrnoException) => {
			this.error ||= error.code ?? error.message;
		});
		this.socket.once("close", () => {
			this.closed = true;
		});
		this.socket.on("data", (chunk: Buffer) => this.#receive(chunk));
		this.send(PREFACE, settings([4, options.window ?? 65_535]));
		if (options.connectionWindow)
			this.send(windowUpdate(0, options.connectionWindow));
	}

	/** Resolves when the gateway has said its SETTINGS, or has closed the connection. */
	static async connect(
		gateway: Endpoint,
		options: RawOptions = {},
	): Promise<Raw> {
		const raw = new Raw(gateway, options);
		await until("the connection is made", async () => raw.ready || raw.closed);
		return raw;
	}

	/** Begins a call. @returns the stream's number */
	open(path: string, more: Header[] = []): number {
		const id = this.#nextId;
		this.#nextId += 2;
		this.streams.set(id, {
			bytes: 0,
			headers: [],
			reset: undefined,
			ended: false,
		});
		this.send(
			headers(id, [
				[":method", "POST"],
				[":scheme", "https"],
				[":path", path],
				[":authority", "localhost"],
				["content-type", "application/grpc"],
				["te", "trailers"],
				...more,
			]),
		);
		return id;
	}

	/** A whole call of one message. @returns the stream's number */
	call(path: string, message: number[], more: Header[] = []): number {
		const id = this.open(path, more);
		this.send(data(id, grpc(message), END_STREAM));
		return id;
	}

	send(...parts: Uint8Array[]): void {
		this.socket.write(bytesOf(...parts));
	}

	stream(id: number): RawStream {
		const stream = this.streams.get(id);
		if (!stream) throw new Error(`no stream ${id}`);
		return stream;
	}

	/** How a call has ended: "0", "8: words", "reset 11"; "" while it goes on. */
	status(id: number): string {
		const { reset, headers } = this.stream(id);
		if (reset !== undefined && reset !== 0) return `reset ${reset}`;
		const field = (wanted: string) =>
			headers.find(([name]) => name === wanted)?.[1];
		const code = field("grpc-status");
		const message = field("grpc-message");
		return `${code ?? ""}${message ? `: ${decodeURIComponent(message)}` : ""}`;
	}

	/** Awaits a call's end. @returns its status */
	ended(id: number, timeout = 30_000): Promise<string> {
		return until(
			`stream ${id} has ended`,
			async () => this.status(id) || (this.closed && "closed"),
			{ timeout, interval: 20 },
		);
	}

	destroy(): void {
		this.socket.destroy();
	}

	#receive(chunk: Uint8Array): void {
		const bytes = this.#rest.length > 0 ? bytesOf(this.#rest, chunk) : chunk;
		let end = 0;
		const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
		while (bytes.length - end >= 9) {
			const next = end + 9 + (view.getUint32(end) >>> 8);
			if (next > bytes.length) break;
			end = next;
		}
		this.#rest = bytes.slice(end);
		for (const one of framesOf(bytes.subarray(0, end))) this.#onFrame(one);
	}

	#onFrame({ type, flags, id, payload }: Frame): void {
		const view = new DataView(payload.buffer, payload.byteOffset);
		const stream = this.streams.get(id);
		if (type === SETTINGS && !(flags & END_STREAM)) {
			this.ready = true;
			this.send(settingsAck());
		} else if (type === PING && !(flags & END_STREAM))
			this.send(frame(PING, END_STREAM, 0, payload));
		else if (type === GOAWAY)
			this.goaway = { lastId: view.getUint32(0), code: view.getUint32(4) };
		else if (type === HEADERS) {
			if (!(flags & END_HEADERS)) throw new Error("CONTINUATION");
			const fields = this.#decoder.decode(payload, 0, payload.length) ?? [];
			stream?.headers.push(...fields);
		} else if (type === DATA && stream) stream.bytes += payload.length;
		else if (type === RST_STREAM && stream) stream.reset = view.getUint32(0);
		if (stream && (type === HEADERS || type === DATA) && flags & END_STREAM)
			stream.ended = true;
	}
}

/** A message behind gRPC's prefix. */
export const grpc = (message: number[]): Uint8Array =>
	bytesOf([0], u32(message.length), message);

export const RANGE = "/etcdserverpb.KV/Range";
export const PUT = "/etcdserverpb.KV/Put";
export const WATCH = "/etcdserverpb.Watch/Watch";

/** A RangeRequest of one key, or of all up to another. */
export const range = (key: string, end = ""): number[] => [
	...len(1, key),
	...(end ? len(2, end) : []),
];

/** A WatchRequest that creates one. */
export const watchCreate = (key: string, end = ""): number[] =>
	len(1, range(key, end));

/** Keys of so many bytes each, in transactions below etcd's limits. */
export async function fill(
	script: Script,
	folder: string,
	keys: number,
	size: number,
): Promise<void> {
	const value = "v".repeat(size);
	const step = Math.max(1, Math.min(100, Math.floor(1_000_000 / size)));
	for (let start = 0; start < keys; start += step) {
		const success = [];
		for (let key = start; key < Math.min(start + step, keys); key++)
			success.push({
				request_put: {
					key: `${folder}${String(key).padStart(5, "0")}`,
					value,
				},
			});
		await script.run("txn", { success });
	}
}

/** Megabytes of memory that a gateway has, and the most that it has ever had. */
export function memory({ child }: Gateway): { now: number; peak: number } {
	const status = readFileSync(`/proc/${child.pid}/status`, "utf8");
	const megabytes = (name: string) =>
		Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(status)?.[1]) / 1024;
	return { now: megabytes("VmRSS"), peak: megabytes("VmHWM") };
}

/** The quantile of some numbers. */
export function quantile(values: number[], q: number): number {
	const sorted = [...values].sort((a, b) => a - b);
	return sorted[Math.floor((sorted.length - 1) * q)] ?? Number.NaN;
}
