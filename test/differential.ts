/**
 * The same script of operations against the gateway and against an etcd of its own, answer by answer. Revisions and leases
 * are named in a script, and in what is compared: a revision by the number of the script's write that it belongs to.
 */
import {
	CLUSTER_ID,
	LAST_LEASE,
	MEMBER_ID,
	PREFIX,
	PREFIX_END,
} from "./etcdmodel.ts";
import type {
	EtcdClient,
	EtcdStream,
	Metadata,
	Outcome,
} from "./grpcclient.ts";
import type { Plain, Protobuf, Value } from "./protobuf.ts";
import { type Op, OUTSIDE, type Script } from "./scripts.ts";

/** What the gateway makes of all leases that cannot be: allowed to differ, where an answer repeats it. */
const NO_SUCH_LEASE = String(LAST_LEASE + 1n);

const REVISIONS = [
	"revision",
	"min_mod_revision",
	"max_mod_revision",
	"min_create_revision",
	"max_create_revision",
	"create_revision",
	"mod_revision",
	"start_revision",
];
const LEASES = ["lease", "ID"];

const TIMEOUT_MS = 5_000;

/** Of a script that names more than it has. */
const NEVER_GRANTED = "4242";

interface Watcher {
	start: number;
}

/** A watch stream of one side. */
class Watching {
	readonly stream: EtcdStream;
	readonly log: Plain[] = [];
	readonly live = new Map<string, Watcher>();
	#changed = Promise.withResolvers<void>();
	ended = false;

	constructor(stream: EtcdStream) {
		this.stream = stream;
		this.#read().catch((error: unknown) => this.#changed.reject(error));
	}

	async #read(): Promise<void> {
		for (;;) {
			const response = await this.stream.next();
			if (response) this.log.push(response);
			else this.ended = true;
			this.#changed.resolve();
			this.#changed = Promise.withResolvers();
			if (this.ended) return;
		}
	}

	/** The first response from `from` on that is as wanted. @throws Missing after a while, or when the stream has ended */
	async find(
		what: string,
		from: number,
		wanted: (response: Plain) => boolean,
		timeoutMs = TIMEOUT_MS,
	): Promise<Plain> {
		const end = performance.now() + timeoutMs;
		for (;;) {
			const found = this.log.slice(from).find(wanted);
			if (found) return found;
			const left = end - performance.now();
			if (this.ended || left < 0)
				throw new Missing(`${what}; the log: ${text(this.log)}`);
			await Promise.race([this.#changed.promise, Bun.sleep(left)]);
		}
	}
}

class Missing extends Error {}

/** One of the two that are compared. */
export class Side {
	readonly name: "gateway" | "etcd";
	readonly client: EtcdClient;
	/** The etcd itself. */
	readonly direct: EtcdClient;
	readonly #protobuf: Protobuf;
	/** Revisions of the script's writes. */
	readonly writes: number[] = [];
	/** The last revision that has been seen. */
	current = 0;
	/** Others write at the same time: there may be later ones. */
	disturbed = false;
	compacted = 0;
	readonly slots = new Map<string, string>();
	readonly #slotOf = new Map<string, string>();
	readonly streams = new Map<number, Watching>();

	constructor(
		name: Side["name"],
		client: EtcdClient,
		direct: EtcdClient,
		protobuf: Protobuf,
	) {
		this.name = name;
		this.client = client;
		this.direct = direct;
		this.#protobuf = protobuf;
	}

	/** No keys, no leases, no memory. */
	async clear(): Promise<void> {
		for (const { stream } of this.streams.values()) stream.cancel();
		this.streams.clear();
		this.slots.clear();
		this.#slotOf.clear();
		this.writes.length = 0;
		this.compacted = 0;
		const { leases = [] } = await this.client.ok("Lease/LeaseLeases", {});
		for (const { ID = "0" } of leases as Plain[])
			await this.client.ok("Lease/LeaseRevoke", { ID });
		const { header } = await this.direct.ok(
			"KV/DeleteRange",
			this.name === "gateway"
				? { key: `${PREFIX}\0`, range_end: PREFIX_END }
				: { key: "\0", range_end: "\0" },
		);
		this.current = Number((header as Plain).revision);
	}

	/** What the script says, in this side's revisions and leases. */
	resolve(message: Plain): Plain {
		const resolved: Plain = {};
		for (const [name, value] of Object.entries(message))
			resolved[name] = this.#resolveField(name, value);
		return resolved;
	}

	#resolveField(name: string, value: Value): Value {
		if (Array.isArray(value))
			return value.map((one) => this.#resolveField("", one));
		if (typeof value === "object") return this.resolve(value);
		if (REVISIONS.includes(name)) {
			// What is in the future must not become the past meanwhile.
			const far = this.disturbed && name === "revision" && value === "next";
			return String(this.revision(far ? "far" : String(value)));
		}
		return LEASES.includes(name) ? this.lease(String(value)) : value;
	}

	/** @param name "@2": of the write number 2, counted round; "next", "far", or a number */
	revision(name: string): number {
		if (name === "next") return this.current + 1;
		if (name === "far") return this.current + 1e9;
		const { writes } = this;
		if (!name.startsWith("@")) return Number(name);
		return writes[Number(name.slice(1)) % (writes.length || 1)] ?? 0;
	}

	/** @param name "#slot", or a number */
	lease(name: string): string {
		if (!name.startsWith("#")) return name;
		return this.slots.get(name.slice(1)) ?? NEVER_GRANTED;
	}

	granted(slot: string, id: string): void {
		this.slots.set(slot, id);
		this.#slotOf.set(id, `#${slot}`);
	}

	/** Notes a header's revision. @returns whether it is later than all before */
	saw({ revision = "0" }: Plain): boolean {
		const later = Number(revision) > this.current;
		if (later) this.current = Number(revision);
		return later;
	}

	/** A message as it is compared. */
	normalised(type: string, message: Plain): Plain {
		const plain: Plain = {};
		for (const field of this.#protobuf.fields(type)) {
			const value = message[field.name];
			if (value === undefined) continue;
			const one = (value: Value): Value =>
				field.type === "message" && field.typeName
					? this.normalised(field.typeName, value as Plain)
					: this.#normalisedField(field.name, value, type);
			plain[field.name] = Array.isArray(value) ? value.map(one) : one(value);
		}
		return unordered(type, plain);
	}

	#normalisedField(name: string, value: Value, type: string): Value {
		if (type === "etcdserverpb.ResponseHeader") {
			if (name === "revision") return this.#since(Number(value));
			if (name === "raft_term" || this.name === "etcd") return "";
			const own = name === "cluster_id" ? CLUSTER_ID : MEMBER_ID;
			return value === own ? "" : `not the tenant's: ${value}`;
		}
		if (REVISIONS.includes(name) || name === "compact_revision") {
			const write = this.writes.indexOf(Number(value));
			return write < 0 ? `not of a write: ${value}` : `@${write}`;
		}
		if (!LEASES.includes(name)) return value;
		const id = String(value);
		const slot = this.#slotOf.get(id);
		if (slot) return slot;
		const outside =
			this.name === "gateway" ? id === NO_SUCH_LEASE : isOutside(id);
		return outside ? "outside" : id;
	}

	/** The last write up to a revision. */
	#since(revision: number): string {
		return `@${this.writes.findLastIndex((write) => write <= revision)}`;
	}

	/**
	 * What a stream's watches were told: by their ids, with the events between two other things put together, since a batch
	 * may be made at any time. Progress is not among it, but has to be true.
	 */
	told(stream: number): Record<string, Plain[]> {
		const told: Record<string, Plain[]> = {};
		/** By the watches' ids: up to which write there is nothing more to come. */
		const past = new Map<string, number>();
		for (const response of this.streams.get(stream)?.log ?? []) {
			const { created, canceled, watch_id = "0" } = response;
			const id = String(watch_id);
			told[id] ??= [];
			const list = told[id] as Plain[];
			const plain = this.normalised("etcdserverpb.WatchResponse", response);
			const { header, events } = plain as { header: Plain; events?: Plain[] };
			const at = number(header.revision);
			if (created || canceled) {
				list.push(plain);
				if (created) past.set(id, -1);
				if (canceled) past.delete(id);
			} else if (events) {
				const writes = events.map(({ kv }) =>
					number((kv as Plain).mod_revision),
				);
				const last = list.at(-1);
				if (last && "together" in last)
					(last.together as Plain[]).push(...events);
				else list.push({ together: [...events] });
				if (
					Math.max(...writes) > at ||
					Math.min(...writes) <= (past.get(id) ?? -1)
				)
					list.push({ problem: `not at ${at} after ${past.get(id)}`, writes });
			} else {
				for (const each of id === "-1" ? past.keys() : [id])
					if ((past.get(each) ?? -1) > at)
						list.push({ problem: `progress of ${at} after ${past.get(each)}` });
					else past.set(each, at);
			}
		}
		return told;
	}
}

/** Of a write as it is named. */
const number = (name: Value | undefined) => Number(String(name).slice(1));

const isOutside = (id: string) => BigInt(id) < 0n || BigInt(id) > LAST_LEASE;

/** Lists that etcd gives in no particular order, and what is left of a lease. */
function unordered(type: string, plain: Plain): Plain {
	const { leases, keys, TTL, grantedTTL } = plain;
	if (type === "etcdserverpb.LeaseLeasesResponse" && leases)
		plain.leases = (leases as Plain[]).map((lease) => lease.ID ?? "").sort();
	if (type !== "etcdserverpb.LeaseTimeToLiveResponse") return plain;
	if (keys) plain.keys = (keys as string[]).toSorted();
	const left = Number(TTL);
	const granted = Number(grantedTTL);
	if (left > 0 && left <= granted && left > granted - 50) plain.TTL = "some";
	return plain;
}

/** Shortened, for people. */
const text = (value: unknown): string =>
	JSON.stringify(value, (_, part) =>
		typeof part === "string" && part.length > 50
			? `${part.slice(0, 10)}... ${part.length}`
			: part,
	);

/** Two sides, and scripts run on both. */
export class Comparison {
	readonly #gateway: Side;
	readonly #etcd: Side;
	/** What etcd has answered, how often. */
	readonly tally = new Map<string, number>();

	constructor(gateway: Side, etcd: Side) {
		this.#gateway = gateway;
		this.#etcd = etcd;
	}

	/** No keys, no leases. */
	async clear(): Promise<void> {
		await this.#both((side) => side.clear());
	}

	get #sides(): [Side, Side] {
		return [this.#gateway, this.#etcd];
	}

	async #both<T>(act: (side: Side) => Promise<T>): Promise<[T, T]> {
		return (await Promise.all(this.#sides.map(act))) as [T, T];
	}

	/** @throws Error that says where the two differ */
	async run({ noise, ops }: Script): Promise<void> {
		await this.clear();
		const disturbed = noise === "all the time";
		this.#gateway.disturbed = disturbed;
		const noisy = disturbed ? this.#keepNoisy() : undefined;
		try {
			for (const [at, op] of ops.entries()) {
				const key = OUTSIDE[at % OUTSIDE.length] as string;
				if (noise === "between operations") await this.#noise([key]);
				await this.#run(op);
			}
			await this.#end();
		} finally {
			this.#gateway.disturbed = false;
			await noisy;
		}
	}

	async #keepNoisy(): Promise<void> {
		const { direct } = this.#gateway;
		for (let at = 0; this.#gateway.disturbed; at++) {
			const key = OUTSIDE[at % OUTSIDE.length] as string;
			await direct.ok("KV/Put", { key, value: String(at) });
			await Bun.sleep(1);
		}
	}

	async #end(): Promise<void> {
		for (const stream of this.#etcd.streams.keys()) {
			await this.#sync(stream);
			const [gateway, etcd] = this.#sides.map((side) => side.told(stream));
			same(`what stream ${stream} was told`, gateway, etcd);
		}
		await this.#call("KV/Range", { key: "\0", range_end: "\0" });
		await this.#call("Lease/LeaseLeases", {});
		for (const slot of this.#etcd.slots.keys())
			await this.#call("Lease/LeaseTimeToLive", { ID: `#${slot}`, keys: true });
	}

	async #run(op: Op): Promise<void> {
		switch (op.op) {
			case "call":
				return this.#call(op.rpc, op.request, op.metadata);
			case "grant":
				return this.#grant(op);
			case "keepAlive":
				return this.#call(
					"Lease/LeaseKeepAlive",
					op.leases.map((ID) => ({ ID })),
				);
			case "noise":
				return this.#noise(op.keys);
			case "compact":
				return this.#compact(op.revision);
			case "watch":
				return this.#watch(op.stream, op.request);
			case "cancel":
				return this.#cancel(op.stream, op.id);
			case "sync":
				return this.#sync(op.stream);
		}
	}

	async #noise(keys: string[]): Promise<void> {
		const { direct } = this.#gateway;
		for (const key of keys) {
			const { header } = await direct.ok("KV/Put", { key, value: "noise" });
			this.#gateway.saw(header as Plain);
		}
	}

	async #call(
		rpc: string,
		requests: Plain | Plain[],
		metadata: Metadata = {},
	): Promise<void> {
		const answers = await this.#both((side) => {
			const resolved = [requests]
				.flat()
				.map((request) => side.resolve(request));
			return side.client.call(rpc, resolved, metadata);
		});
		const [gateway, etcd] = answers;
		const name = rpc.split("/").at(-1);
		this.#count(`${name} ${etcd.code ? etcd.message : "OK"}`);
		if (isMatterOfOrder(rpc, requests, gateway, etcd)) {
			this.#count("Txn refused for another one of its faults");
			return;
		}
		const headers = answers.map(({ responses }) => headerOf(responses));
		const [later, wrote] = this.#sides.map((side, index) =>
			side.saw(headers[index] ?? {}),
		);
		if (!this.#gateway.disturbed)
			same(`whether ${rpc} ${text(requests)} wrote`, later, wrote);
		if (wrote)
			for (const [index, side] of this.#sides.entries())
				side.writes.push(Number(headers[index]?.revision));
		const { output } = this.#etcd.client.method(rpc);
		const [ours, theirs] = this.#sides.map((side, index) => {
			const { code, message, responses = [] } = answers[index] ?? {};
			const plain = responses.map((one) => side.normalised(output, one));
			return { code, message, responses: assembled(output, plain) };
		});
		same(`${rpc} ${text(requests)}`, ours, theirs);
	}

	#count(what: string): void {
		this.tally.set(what, (this.tally.get(what) ?? 0) + 1);
	}

	async #grant({ slot, TTL, ID }: Op & { op: "grant" }): Promise<void> {
		const answers = await this.#both((side) =>
			side.client.call("Lease/LeaseGrant", { TTL, ...(ID && { ID }) }),
		);
		const [, { code, message }] = answers;
		this.#count(`LeaseGrant ${code ? message : "OK"}`);
		const plain = this.#sides.map((side, index) => {
			const { code, message, responses = [] } = answers[index] ?? {};
			const [response] = responses;
			if (response) side.granted(slot, String(response.ID));
			const type = "etcdserverpb.LeaseGrantResponse";
			return [code, message, response && side.normalised(type, response)];
		});
		same(`LeaseGrant ${TTL} ${ID}`, plain[0], plain[1]);
	}

	async #compact(name: string): Promise<void> {
		for (const stream of this.#etcd.streams.keys()) await this.#sync(stream);
		await this.#both(async (side) => {
			const revision = side.revision(name);
			if (revision <= side.compacted || revision > side.current) return;
			await side.direct.ok("KV/Compact", { revision: String(revision) });
			side.compacted = revision;
		});
	}

	async #watch(number: number, request: Plain): Promise<void> {
		const ids = await this.#both(async (side) => {
			let watching = side.streams.get(number);
			if (!watching) {
				watching = new Watching(side.client.open("Watch/Watch"));
				side.streams.set(number, watching);
			}
			const { log, stream, live } = watching;
			const create_request = side.resolve(request);
			const start = Number(create_request.start_revision ?? 0);
			const from = log.length;
			stream.send({ create_request });
			const created = await watching.find(
				`${side.name}: created, for ${text(request)}`,
				from,
				({ created }) => created === true,
			);
			const { canceled = false, cancel_reason = "OK" } = created;
			const id = String(created.watch_id ?? "0");
			if (canceled) return { id, canceled: cancel_reason };
			if (start <= 0 || start >= side.compacted) {
				live.set(id, { start });
				return { id, canceled };
			}
			const isCancel = ({ canceled, watch_id = "0" }: Plain) =>
				canceled === true && watch_id === id;
			await watching.find("compacted", from, isCancel);
			// To etcd it is still there, though it tells nothing any more.
			const again = log.length;
			stream.send({ cancel_request: { watch_id: id } });
			await watching.find("cancelled", again, isCancel);
			return { id, canceled: "compacted" };
		});
		this.#count(`Watch ${ids[1].canceled || "OK"}`);
		same(`the id of a watch ${text(request)}`, ids[0], ids[1]);
	}

	async #cancel(number: number, id: string): Promise<void> {
		await this.#sync(number);
		await this.#both(async (side) => {
			const watching = side.streams.get(number);
			if (!watching) return;
			const { log, stream, live } = watching;
			const from = log.length;
			stream.send({ cancel_request: { watch_id: id } });
			if (!live.delete(id)) return;
			await watching.find(
				`${side.name}: ${id} is cancelled`,
				from,
				({ canceled, watch_id = "0" }) => canceled === true && watch_id === id,
			);
		});
	}

	/** Asks for progress until it is told. */
	async #sync(number: number): Promise<void> {
		const started = (side: Side) =>
			[...(side.streams.get(number)?.live.values() ?? [])].map(
				({ start }) => start - side.current,
			);
		const ahead = Math.max(...started(this.#etcd));
		// Watches that begin in the far future hear nothing, not even of progress.
		if (ahead > 1e6 || ahead === Number.NEGATIVE_INFINITY) return;
		if (ahead > 0) await this.#call("KV/Put", { key: "sync" });
		await this.#both(async (side) => {
			const watching = side.streams.get(number) as Watching;
			const { log, stream } = watching;
			const from = log.length;
			const end = performance.now() + TIMEOUT_MS;
			for (;;) {
				stream.send({ progress_request: {} });
				const told = await watching
					.find(
						`${side.name}: progress`,
						from,
						({ watch_id, header, created }) =>
							!created &&
							watch_id === "-1" &&
							Number((header as Plain).revision) >= side.current,
						20,
					)
					.catch((error: unknown) => {
						if (!(error instanceof Missing)) throw error;
						if (watching.ended || performance.now() > end) throw error;
						return undefined;
					});
				if (told) return;
			}
		});
	}
}

function headerOf(responses: Plain[]): Plain {
	for (const { header, range_response } of responses) {
		const found = header ?? (range_response as Plain | undefined)?.header;
		if (found) return found as Plain;
	}
	return {};
}

/** Of several faults of a Txn, the gateway sees first that a key or an operation is not there. */
function isMatterOfOrder(
	rpc: string,
	request: Value,
	gateway: Outcome,
	etcd: Outcome,
): boolean {
	return (
		rpc === "KV/Txn" &&
		etcd.code !== 0 &&
		gateway.message !== etcd.message &&
		/: key (is not provided|not found)$/.test(gateway.message) &&
		lacksSomething(request)
	);
}

const lacksSomething = (value: Value): boolean => {
	if (typeof value !== "object") return false;
	const parts = Object.values(value);
	const empty = !Array.isArray(value) && parts.length === 0;
	return (
		empty || ("key" in value && value.key === "") || parts.some(lacksSomething)
	);
};

/** A RangeStream's parts may be cut differently: keys are longer in the core. */
function assembled(type: string, responses: Plain[]): Plain[] {
	if (type !== "etcdserverpb.RangeStreamResponse") return responses;
	const parts = responses.map((one) => one.range_response as Plain);
	const kvs = parts.flatMap((part) => (part.kvs ?? []) as Plain[]);
	return [Object.assign({}, ...parts, { kvs })];
}

function same(what: string, gateway: unknown, etcd: unknown): void {
	if (Bun.deepEquals(gateway, etcd, true)) return;
	throw new Error(
		`${what}\n  the gateway: ${text(gateway)}\n  etcd:        ${text(etcd)}`,
	);
}
