/**
 * A gRPC client that has nothing in common with what it judges: node:http2 and protobufjs, mutual TLS. It neither
 * repeats a call nor looks into what it sends: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
 */
import { readFile } from "node:fs/promises";
import {
	type ClientHttp2Session,
	type ClientHttp2Stream,
	connect,
	constants,
	type IncomingHttpHeaders,
} from "node:http2";
import type { Endpoint } from "./dataplane.ts";
import type { Plain, Protobuf } from "./protobuf.ts";

/** How a call ended; a reset as gRPC reads it. */
export interface Outcome {
	code: number;
	message: string;
}

export interface Answer<Message> extends Outcome {
	responses: Message[];
}

export type Metadata = Record<string, string>;

/** https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#errors */
const CODE_OF_RESET: Record<number, number> = {
	[constants.NGHTTP2_REFUSED_STREAM]: 14,
	[constants.NGHTTP2_CANCEL]: 1,
	[constants.NGHTTP2_ENHANCE_YOUR_CALM]: 8,
	[constants.NGHTTP2_INADEQUATE_SECURITY]: 7,
};

const CALL_TIMEOUT_MS = 20_000;

/** A message behind its prefix. */
export function framed(message: Uint8Array): Buffer {
	const frame = Buffer.alloc(5 + message.length);
	frame.writeUInt32BE(message.length, 1);
	frame.set(message, 5);
	return frame;
}

/** One call. */
export class GrpcStream {
	readonly #stream: ClientHttp2Stream;
	readonly #ready: Uint8Array[] = [];
	#waiting: ((message: Uint8Array | undefined) => void)[] = [];
	#rest: Buffer = Buffer.alloc(0);
	#outcome: Outcome | undefined;
	/** How it ended. */
	readonly status: Promise<Outcome>;

	constructor(stream: ClientHttp2Stream) {
		this.#stream = stream;
		stream.on("data", (chunk: Buffer) => this.#onData(chunk));
		const last = (headers: IncomingHttpHeaders) => {
			const code = headers["grpc-status"];
			if (typeof code !== "string") return;
			this.#outcome = {
				code: Number(code),
				message: decodeURIComponent(String(headers["grpc-message"] ?? "")),
			};
		};
		stream.on("response", last);
		stream.on("trailers", last);
		let failure = "";
		stream.on("error", (error: Error) => {
			failure = error.message;
		});
		this.status = new Promise((resolve) => {
			stream.on("close", () => {
				const { rstCode = 0 } = stream;
				resolve(
					this.#outcome ?? {
						code: CODE_OF_RESET[rstCode] ?? 13,
						message: `reset with ${rstCode}: ${failure}`,
					},
				);
				for (const next of this.#waiting) next(undefined);
				this.#waiting = [];
			});
		});
	}

	#onData(chunk: Buffer): void {
		let rest =
			this.#rest.length > 0 ? Buffer.concat([this.#rest, chunk]) : chunk;
		while (rest.length >= 5) {
			const end = 5 + rest.readUInt32BE(1);
			if (rest.length < end) break;
			if (rest[0] !== 0) throw new Error("a compressed message");
			// A copy: the chunk is the connection's.
			const message = Uint8Array.from(rest.subarray(5, end));
			const next = this.#waiting.shift();
			if (next) next(message);
			else this.#ready.push(message);
			rest = rest.subarray(end);
		}
		this.#rest = Buffer.from(rest);
	}

	send(message: Uint8Array): void {
		this.#stream.write(framed(message));
	}

	/** Bytes that need not be a message. */
	sendRaw(bytes: Uint8Array): void {
		this.#stream.write(bytes);
	}

	/** No more messages. @param message the last one */
	end(message?: Uint8Array): void {
		if (message) this.#stream.end(framed(message));
		else this.#stream.end();
	}

	/** The next message, once it is there; undefined after the last one. */
	next(): Promise<Uint8Array | undefined> {
		const message = this.#ready.shift();
		if (message || this.#stream.closed) return Promise.resolve(message);
		return new Promise((resolve) => this.#waiting.push(resolve));
	}

	cancel(): void {
		this.#stream.close(constants.NGHTTP2_CANCEL);
	}

	/** All messages up to the end. */
	async rest(): Promise<Answer<Uint8Array>> {
		const responses: Uint8Array[] = [];
		for (;;) {
			const response = await this.next();
			if (!response) break;
			responses.push(response);
		}
		return { ...(await this.status), responses };
	}
}

/** One connection. */
export class GrpcClient {
	readonly #session: ClientHttp2Session;

	private constructor(session: ClientHttp2Session) {
		this.#session = session;
	}

	/** @throws Error of TLS or of the network */
	static async connect(endpoint: Endpoint): Promise<GrpcClient> {
		const [ca, cert, key] = await Promise.all(
			[endpoint.caFile, endpoint.certFile, endpoint.keyFile].map((file) =>
				readFile(file),
			),
		);
		const session = connect(endpoint.url, { ca, cert, key } as object);
		await new Promise<void>((resolve, reject) => {
			session.once("connect", () => resolve());
			session.once("error", reject);
		});
		// Streams tell of their own ends.
		session.on("error", () => undefined);
		return new GrpcClient(session);
	}

	get closed(): boolean {
		return this.#session.closed || this.#session.destroyed;
	}

	open(path: string, metadata: Metadata = {}): GrpcStream {
		return new GrpcStream(
			this.#session.request({
				":method": "POST",
				":path": path,
				"content-type": "application/grpc",
				te: "trailers",
				...metadata,
			}),
		);
	}

	/** A call whose request is known from the start; cancelled after a while. @param requests one, or for a stream any number */
	async call(
		path: string,
		requests: Uint8Array | Uint8Array[],
		metadata: Metadata = {},
	): Promise<Answer<Uint8Array>> {
		const stream = this.open(path, metadata);
		const all = [requests].flat();
		for (const request of all.slice(0, -1)) stream.send(request);
		stream.end(all.at(-1));
		const timeout = setTimeout(() => stream.cancel(), CALL_TIMEOUT_MS);
		const answer = await stream.rest();
		clearTimeout(timeout);
		return answer;
	}

	close(): void {
		this.#session.destroy();
	}
}

/** A stream of etcd's messages. */
export interface EtcdStream {
	send(message: Plain): void;
	end(): void;
	next(): Promise<Plain | undefined>;
	status: Promise<Outcome>;
	cancel(): void;
}

/** An etcd, or what passes for one. */
export class EtcdClient {
	readonly grpc: GrpcClient;
	readonly #protobuf: Protobuf;

	private constructor(grpc: GrpcClient, protobuf: Protobuf) {
		this.grpc = grpc;
		this.#protobuf = protobuf;
	}

	static async connect(
		endpoint: Endpoint,
		protobuf: Protobuf,
	): Promise<EtcdClient> {
		return new EtcdClient(await GrpcClient.connect(endpoint), protobuf);
	}

	/** The RPC whose path ends so, such as "KV/Range". */
	method(rpc: string) {
		for (const { methods } of this.#protobuf.description.services)
			for (const method of methods)
				if (method.path.endsWith(`.${rpc}`)) return method;
		throw new Error(`etcd has no ${rpc}`);
	}

	async call(
		rpc: string,
		requests: Plain | Plain[],
		metadata: Metadata = {},
	): Promise<Answer<Plain>> {
		const { path, input, output } = this.method(rpc);
		const encoded = [requests]
			.flat()
			.map((request) => this.#protobuf.encode(input, request));
		const answer = await this.grpc.call(path, encoded, metadata);
		const responses = answer.responses.map((bytes) =>
			this.#protobuf.decode(output, bytes),
		);
		return { ...answer, responses };
	}

	/** The response of a unary call. @throws Error unless it is OK */
	async ok(rpc: string, request: Plain): Promise<Plain> {
		const { code, message, responses } = await this.call(rpc, request);
		const [response] = responses;
		if (code === 0 && responses.length === 1 && response) return response;
		throw new Error(`${rpc} ${JSON.stringify(request)}: ${code}: ${message}`);
	}

	open(rpc: string, metadata: Metadata = {}): EtcdStream {
		const { path, input, output } = this.method(rpc);
		const stream = this.grpc.open(path, metadata);
		return {
			status: stream.status,
			send: (message) => stream.send(this.#protobuf.encode(input, message)),
			end: () => stream.end(),
			cancel: () => stream.cancel(),
			next: async () => {
				const bytes = await stream.next();
				return bytes && this.#protobuf.decode(output, bytes);
			},
		};
	}

	close(): void {
		this.grpc.close();
	}
}
