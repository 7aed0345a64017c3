/** What a tenant of the gateway does, and what it should get: etcd without revisions, and with nobody else in it. */
import { expect } from "bun:test";
import fc from "fast-check";
import { LEASE_MAX } from "../etcd.ts";
import type { EtcdClient } from "./grpcclient.ts";
import type { Plain } from "./protobuf.ts";

export const everything = { key: "\0", range_end: "\0" };

/** A tenant's keys, as they should be. */
export class Model {
	readonly keys = new Map<string, Plain>();
	readonly leases = new Set<string>();
	/** As a watch of everything, with prev_kv, is told of them. */
	readonly events: Plain[] = [];

	/** In order. */
	range({ key, range_end }: Plain): Plain[] {
		const isIn = (one: string) =>
			range_end === undefined
				? one === key
				: one >= String(key) && (range_end === "\0" || one < String(range_end));
		const names = [...this.keys.keys()].filter(isIn).sort();
		return names.map((name) => this.keys.get(name) as Plain);
	}

	put({ key = "", value = "", lease = "0" }: Plain): void {
		const before = this.keys.get(String(key));
		const kv: Plain = {
			key,
			version: String(Number(before?.version ?? 0) + 1),
			...(value !== "" && { value }),
			...(lease !== "0" && { lease }),
		};
		this.keys.set(String(key), kv);
		this.events.push({ kv, ...(before && { prev_kv: before }) });
	}

	delete(range: Plain): Plain[] {
		const gone = this.range(range);
		for (const prev_kv of gone) {
			const { key = "" } = prev_kv;
			this.keys.delete(String(key));
			this.events.push({ type: 1, kv: { key }, prev_kv });
		}
		return gone;
	}

	revoke(ID: string): boolean {
		const had = this.leases.delete(ID);
		for (const key of had ? this.attached(ID) : []) this.delete({ key });
		return had;
	}

	attached(ID: string): string[] {
		return this.range(everything)
			.filter(({ lease }) => lease === ID)
			.map(({ key }) => String(key));
	}
}

/** Without revisions and headers. */
export function bare(value: unknown): unknown {
	if (Array.isArray(value)) return value.map(bare);
	if (typeof value !== "object" || value === null) return value;
	return Object.fromEntries(
		Object.entries(value)
			.filter(([name]) => name !== "header" && !name.endsWith("_revision"))
			.map(([name, part]) => [name, bare(part)]),
	);
}

export type Act =
	| { act: "put"; key: string; value: string; lease?: string }
	| { act: "range"; range: Plain; stream: boolean }
	| { act: "count"; range: Plain }
	| { act: "delete"; range: Plain }
	/** If there are none of `compared`: put the first key of `range`; otherwise delete it all. */
	| { act: "txn"; compared: Plain; range: Plain; value: string }
	| { act: "grant" | "revoke" | "leases"; ID: string };

const key = fc.oneof(
	fc.constantFrom("a", "b", "c"),
	fc.constantFrom(
		...["\0", "/", "0", "0/a", "t/a", "/t0/a", "/t/a", "../t0/a", "/t0"],
		...["\xff", "\xff\xff", "\x01", "a\0", "t", "/tt/a"],
	),
);
const value = fc.constantFrom("v", "w", "/t0/a");
const range: fc.Arbitrary<Plain> = fc
	.record(
		{
			key,
			range_end: fc.oneof(fc.constantFrom("\0", "\0", "\xff\xff\xff"), key),
		},
		{ requiredKeys: ["key"] },
	)
	.map((range): Plain => range);
const ID = fc.constantFrom("1", "2", "3", String(LEASE_MAX));
const is = <Name extends Act["act"]>(name: Name) => fc.constant(name);

export const anyAct: fc.Arbitrary<Act> = fc.oneof<fc.WeightedArbitrary<Act>[]>(
	{
		weight: 6,
		arbitrary: fc.record(
			{ act: is("put"), key, value, lease: ID },
			{ requiredKeys: ["act", "key", "value"] },
		),
	},
	{
		weight: 4,
		arbitrary: fc.record({ act: is("range"), range, stream: fc.boolean() }),
	},
	{ weight: 1, arbitrary: fc.record({ act: is("count"), range }) },
	{ weight: 2, arbitrary: fc.record({ act: is("delete"), range }) },
	{
		weight: 3,
		arbitrary: fc.record({ act: is("txn"), compared: range, range, value }),
	},
	{
		weight: 5,
		arbitrary: fc.record({
			act: fc.constantFrom("grant", "grant", "revoke", "leases", "leases"),
			ID,
		}),
	},
);

const some = (name: string, kvs: Plain[]): Plain =>
	kvs.length > 0 ? { [name]: kvs } : {};
const count = (name: string, kvs: Plain[]): Plain =>
	kvs.length > 0 ? { [name]: String(kvs.length) } : {};
const ranged = (kvs: Plain[]): Plain => ({
	...some("kvs", kvs),
	...count("count", kvs),
});

/** Does it, through the client and in the model. @throws Error of bun:test unless the answer is the model's */
export async function perform(
	{ client, model }: { client: EtcdClient; model: Model },
	act: Act,
): Promise<void> {
	const answers = async (rpc: string, request: Plain, expected: Plain) => {
		const { code, message, responses } = await client.call(rpc, request);
		expect([rpc, request, code, message]).toEqual([rpc, request, 0, ""]);
		expect([rpc, request, bare(responses)]).toEqual([rpc, request, [expected]]);
	};
	switch (act.act) {
		case "put": {
			const { key, value } = act;
			const { lease = "0" } = act;
			const own = model.leases.has(lease) ? lease : "0";
			const before = model.range({ key });
			model.put({ key, value, lease: own });
			const request = { key, value, lease: own, prev_kv: true };
			return answers("KV/Put", request, {
				...(before[0] && { prev_kv: before[0] }),
			});
		}
		case "range": {
			const found = ranged(model.range(act.range));
			if (!act.stream) return answers("KV/Range", act.range, found);
			const { responses } = await client.call("KV/RangeStream", act.range);
			const parts = responses.map((part) => part.range_response as Plain);
			const kvs = parts.flatMap((part) => (part.kvs ?? []) as Plain[]);
			const whole = { ...some("kvs", kvs), ...count("count", kvs) };
			expect([act.range, bare(whole)]).toEqual([act.range, found]);
			expect(parts.at(-1)?.count).toEqual(found.count as string);
			return;
		}
		case "count": {
			const request = { ...act.range, count_only: true };
			return answers(
				"KV/Range",
				request,
				count("count", model.range(act.range)),
			);
		}
		case "delete": {
			const gone = model.delete(act.range);
			const request = { ...act.range, prev_kv: true };
			return answers("KV/DeleteRange", request, {
				...count("deleted", gone),
				...some("prev_kvs", gone),
			});
		}
		case "txn":
			return answers("KV/Txn", ...txn(model, act));
		case "grant": {
			const { code } = await client.call("Lease/LeaseGrant", {
				ID: act.ID,
				TTL: "600",
			});
			expect(code).toBe(model.leases.has(act.ID) ? 9 : 0);
			model.leases.add(act.ID);
			return;
		}
		case "revoke": {
			const had = model.revoke(act.ID);
			const { code } = await client.call("Lease/LeaseRevoke", { ID: act.ID });
			expect(code).toBe(had ? 0 : 5);
			return;
		}
		case "leases":
			return leases(client, model, act.ID);
	}
}

/** @returns the request, and its response */
function txn(
	model: Model,
	{ compared, range, value }: Act & { act: "txn" },
): [request: Plain, response: Plain] {
	const { key = "" } = range;
	const reading: Plain = { request_range: range };
	const request: Plain = {
		// A version of 0 is that of a key that is not there.
		compare: [{ ...compared, version: "0" }],
		success: [
			...[reading, { request_put: { key, value } }],
			{ request_txn: { success: [reading] } },
		],
		failure: [reading, { request_delete_range: range }],
	};
	const found = { response_range: ranged(model.range(range)) };
	if (model.range(compared).length > 0) {
		const gone = count("deleted", model.delete(range));
		return [request, { responses: [found, { response_delete_range: gone }] }];
	}
	model.put({ key, value });
	const inner = {
		succeeded: true,
		responses: [{ response_range: ranged(model.range(range)) }],
	};
	const responses = [found, { response_put: {} }, { response_txn: inner }];
	return [request, { succeeded: true, responses }];
}

async function leases(
	client: EtcdClient,
	model: Model,
	ID: string,
): Promise<void> {
	const { leases = [] } = await client.ok("Lease/LeaseLeases", {});
	expect((leases as Plain[]).map((lease) => lease.ID).sort()).toEqual(
		[...model.leases].sort(),
	);
	const request = { ID, keys: true };
	const { keys = [], TTL } = await client.ok("Lease/LeaseTimeToLive", request);
	expect((keys as string[]).toSorted()).toEqual(model.attached(ID));
	const alive = await client.ok("Lease/LeaseKeepAlive", { ID });
	expect([TTL !== "-1", alive.TTL]).toEqual(
		model.leases.has(ID) ? [true, "600"] : [false, undefined],
	);
}
