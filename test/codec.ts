/** Messages sent through the codec, in the middle of other bytes, with what is thrown as text. */
import {
	methods,
	type ServedMethod,
	Status,
	tenant,
	toCore,
	toTenant,
} from "../etcd.ts";
import { PREFIX, URL } from "./etcdmodel.ts";
import type { Protobuf } from "./protobuf.ts";

/** The lease that a LeaseGrant without an ID gets. */
export const DRAWN = 77;
export const sample = tenant(PREFIX, URL);

export function served(rpc: string): ServedMethod {
	const method = [...methods.values()].find(({ path }) => path.endsWith(rpc));
	if (!method || "refused" in method) throw new Error(`${rpc} is not served`);
	return method;
}

/** A gRPC message's content. */
export function unframed(bytes: Uint8Array): Uint8Array {
	const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
	if (view.getUint8(0) !== 0 || view.getUint32(1) !== bytes.length - 5)
		throw new Error("not framed as gRPC frames messages");
	return bytes.subarray(5);
}

/** Within other bytes, which are none of the codec's business. */
export function surrounded(content: Iterable<number>) {
	const bytes = Uint8Array.from(content);
	const buffer = new Uint8Array(bytes.length + 25).fill(0xaa);
	buffer.set(bytes, 15);
	return { buffer, start: 15, end: 15 + bytes.length };
}

export function coreBytes(rpc: string, content: Iterable<number>): Uint8Array {
	const { buffer, start, end } = surrounded(content);
	const before = Buffer.from(buffer);
	const out = toCore(served(rpc), sample, buffer, start, end, DRAWN);
	if (!before.equals(buffer)) throw new Error("the request was written to");
	return unframed(out);
}

export function tenantBytes(
	rpc: string,
	content: Iterable<number>,
): Uint8Array {
	const { buffer, start, end } = surrounded(content);
	const out = unframed(toTenant(served(rpc), sample, buffer, start, end));
	const around = [...buffer.subarray(0, start - 5), ...buffer.subarray(end)];
	if (around.length !== 20 || around.some((byte) => byte !== 0xaa))
		throw new Error("written to what is around the message");
	return out;
}

/** The messages of an RPC, by their full names. */
export function types(
	protobuf: Protobuf,
	rpc: string,
): { input: string; output: string } {
	const { path } = served(rpc);
	for (const { methods } of protobuf.description.services)
		for (const method of methods) if (method.path === path) return method;
	throw new Error(`etcd has no ${path}`);
}

/** What is thrown, as "code: message". */
export function refusal(attempt: () => unknown): string {
	try {
		attempt();
	} catch (error) {
		if (!(error instanceof Status)) throw error;
		return `${error.code}: ${error.message}`;
	}
	return "taken";
}
