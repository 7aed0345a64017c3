/** etcd's messages as somebody else reads and writes them: protobufjs, with the descriptors of etcd's own Go packages. */
import protobuf from "protobufjs";
import "protobufjs/ext/descriptor.js";
import { binaries } from "./cluster/binaries.ts";

/** A message: bytes as latin1, 64-bit numbers in decimal, enums as numbers. What is absent or a default is not there. */
export interface Plain {
	[field: string]: Value;
}
export type Value = string | number | boolean | Plain | Value[];

export interface FieldDescription {
	name: string;
	number: number;
	type: string;
	typeName?: string;
	cardinality: "optional" | "repeated";
	oneof?: string;
	packed?: boolean;
}

/** What etcddescribe prints: test/cluster/go/etcd/etcddescribe. */
export interface Description {
	services: {
		name: string;
		methods: {
			path: string;
			input: string;
			output: string;
			clientStreaming: boolean;
			serverStreaming: boolean;
		}[];
	}[];
	messages: Record<string, FieldDescription[]>;
}

export interface Protobuf {
	description: Description;
	/** The messages' fields; `type` is a full name such as "etcdserverpb.PutRequest". */
	fields(type: string): FieldDescription[];
	encode(type: string, message: Plain): Uint8Array;
	/** @throws when protobufjs does not take it */
	decode(type: string, bytes: Uint8Array): Plain;
}

export async function etcdProtobuf(): Promise<Protobuf> {
	const { etcddescribe } = await binaries(["etcddescribe"]);
	const description: Description = await Bun.$`${etcddescribe}`.json();
	const set = await Bun.$`${etcddescribe} --descriptors`.arrayBuffer();
	const root = protobuf.Root.fromDescriptor(new Uint8Array(set), {
		keepCase: true,
	});
	root.resolveAll();

	const fields = (type: string) => {
		const found = description.messages[type];
		if (!found) throw new Error(`etcddescribe does not know ${type}`);
		return found;
	};
	/** With bytes in place of latin1, or the other way round. */
	const mapBytes = (
		type: string,
		message: Record<string, unknown>,
		map: (value: unknown) => unknown,
	): Record<string, unknown> => {
		const mapped: Record<string, unknown> = {};
		for (const field of fields(type)) {
			const value = message[field.name];
			if (value === undefined) continue;
			const one = (value: unknown) => {
				if (field.type === "message" && field.typeName)
					return mapBytes(
						field.typeName,
						value as Record<string, unknown>,
						map,
					);
				return field.type === "bytes" ? map(value) : value;
			};
			mapped[field.name] = Array.isArray(value) ? value.map(one) : one(value);
		}
		return mapped;
	};

	return {
		description,
		fields,
		encode(type, message) {
			const Type = root.lookupType(type);
			const object = mapBytes(type, message, (text) =>
				Buffer.from(String(text), "latin1"),
			);
			return new Uint8Array(Type.encode(Type.fromObject(object)).finish());
		},
		decode(type, bytes) {
			const Type = root.lookupType(type);
			const object = Type.toObject(Type.decode(bytes), { longs: String });
			return mapBytes(type, object, (value) =>
				Buffer.from(value as Uint8Array).toString("latin1"),
			) as Plain;
		},
	};
}

// On the wire, well or badly formed.

/** A varint of a number of up to 64 bits; negative ones as etcd's int64. @param padding superfluous bytes */
export function varint(value: number | bigint, padding = 0): number[] {
	let rest = BigInt.asUintN(64, BigInt(value));
	const bytes: number[] = [];
	while (rest >= 0x80n) {
		bytes.push(Number(rest & 0x7fn) | 0x80);
		rest >>= 7n;
	}
	bytes.push(Number(rest));
	for (let i = 0; i < padding; i++) {
		bytes.push((bytes.pop() ?? 0) | 0x80);
		bytes.push(0);
	}
	return bytes;
}

export const latin1 = (text: string): number[] => [
	...Buffer.from(text, "latin1"),
];
export const tag = (number: number, wireType: number) =>
	varint(BigInt(number) * 8n + BigInt(wireType));
/** A field that is a varint. */
export const int = (number: number, value: number | bigint) => [
	...tag(number, 0),
	...varint(value),
];
/** A field with a length: text as latin1, or a message. */
export const len = (number: number, content: string | number[]) => {
	const bytes = typeof content === "string" ? latin1(content) : content;
	return [...tag(number, 2), ...varint(bytes.length), ...bytes];
};
