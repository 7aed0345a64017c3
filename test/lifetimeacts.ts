/** What can happen to a cluster in ten years: the commands of the model, as data that fast-check makes and shrinks. */
import fc from "fast-check";
import type { Domain } from "../lifetimes.ts";

export type Health = "ok" | "forbidden" | "immutable" | "missing";
/** What the controller may do with a consumer: restart it, look at it, neither. */
export type Permission = "restart" | "look" | "none";

export interface Setting {
	seed: number;
	/** The gateway takes up all files while it runs; etcd's proxy reads the CA at its start. */
	proxies: "gateway" | "etcd";
	replicas: number;
	apiServers: { named: boolean; permission: Permission; replicas: number }[];
	validity: { signing: number; serving: number; client: number };
}

/** When something happens: so long after the last act, or so long after the so-manieth write from then on. */
export type When = { ms: number } | { writes: number; ms: number };

export type Act =
	| { do: "nothing" }
	/** Between two writes, if one visit is under way. */
	| { do: "crash"; controller: number; downMs: number }
	/** A stop of the whole process that it does not notice: it goes on with what it was about to write. */
	| { do: "pause"; controller: number; ms: number }
	/** All controllers, long enough for certificates to end. */
	| { do: "outage"; lives: number }
	| { do: "second"; on: boolean }
	| { do: "skew"; controller: number; part: number }
	| { do: "lag"; controller: number; ms: number }
	/** Something is told once more. */
	| { do: "wake"; controller: number }
	/** A write fails; `done`: and was done all the same. */
	| { do: "fail"; writes: number; done: boolean }
	| { do: "health"; api: number; of: "bundle" | "leaf"; health: Health }
	| { do: "heal" }
	| { do: "consumer"; api: number; named: boolean; permission: Permission }
	| { do: "stick"; api: number; on: boolean }
	| { do: "restart"; api: number }
	| { do: "restartProcess"; api: number }
	| { do: "deleteProxy"; index: number }
	| { do: "damage"; domain: Domain; what: Damage }
	| { do: "delete"; what: "bundles" | "server" | "deployment" }
	| { do: "validity"; of: "signing" | "serving" | "client"; factor: number }
	| { do: "rotate"; domain: Domain }
	| { do: "compromised"; domain: Domain };

export const damages = [
	"Secret",
	...["tls.crt", "tls.key", "next.crt", "next.key", "next-cross.crt"],
	...["cross.crt", "previous.crt", "previous.key", "ca-bundle.crt"],
] as const;
export type Damage = (typeof damages)[number];

const domain = fc.constantFrom<Domain>("client", "serving");
const controller = fc.nat({ max: 1 });
const api = fc.nat({ max: 1 });
const permission = fc.constantFrom<Permission>(
	"restart",
	"restart",
	"look",
	"none",
);

/** As many small ones as great ones. */
const between = (min: number, max: number) =>
	fc
		.double({ min: Math.log(min), max: Math.log(max), noNaN: true })
		.map((log) => Math.round(Math.exp(log)));

const MINUTE = 60_000;
const DAY = 24 * 60 * MINUTE;

/** @param life of a signer; @param leaf of a leaf, in milliseconds: these are the orders of time */
export const anyValidity = (life: [number, number], leaf: [number, number]) =>
	fc.record({
		signing: between(...life),
		serving: between(...leaf),
		client: between(...leaf),
	});

export const anySetting = (
	validity: fc.Arbitrary<Setting["validity"]>,
): fc.Arbitrary<Setting> =>
	fc.record({
		seed: fc.nat(),
		proxies: fc.constantFrom<Setting["proxies"]>("gateway", "etcd"),
		replicas: fc.integer({ min: 1, max: 2 }),
		apiServers: fc.array(
			fc.record({
				named: fc.boolean(),
				permission,
				replicas: fc.integer({ min: 1, max: 2 }),
			}),
			{ minLength: 1, maxLength: 2 },
		),
		validity,
	});

const anyWhen = (longest: number): fc.Arbitrary<When> =>
	fc.oneof(
		{ weight: 2, arbitrary: fc.record({ ms: between(1000, longest) }) },
		{
			weight: 3,
			arbitrary: fc.record({
				writes: fc.integer({ min: 1, max: 8 }),
				ms: fc.oneof(fc.constant(0), between(1, 5 * MINUTE)),
			}),
		},
	);

const anyAct: fc.Arbitrary<Act> = fc.oneof(
	fc.constant<Act>({ do: "nothing" }),
	fc.record({
		do: fc.constant("crash" as const),
		controller,
		downMs: between(1000, DAY),
	}),
	fc.record({
		do: fc.constant("pause" as const),
		controller,
		ms: between(1, 30_000),
	}),
	fc.record({
		do: fc.constant("outage" as const),
		lives: fc.double({ min: 0.001, max: 2.5, noNaN: true }),
	}),
	fc.record({ do: fc.constant("second" as const), on: fc.boolean() }),
	fc.record({
		do: fc.constant("skew" as const),
		controller,
		part: fc.double({ min: -1, max: 1, noNaN: true }),
	}),
	fc.record({
		do: fc.constant("lag" as const),
		controller,
		ms: between(1, 30_000),
	}),
	fc.record({ do: fc.constant("wake" as const), controller }),
	fc.record({
		do: fc.constant("fail" as const),
		writes: fc.integer({ min: 1, max: 4 }),
		done: fc.boolean(),
	}),
	fc.record({
		do: fc.constant("health" as const),
		api,
		of: fc.constantFrom("bundle" as const, "leaf" as const),
		health: fc.constantFrom<Health>("ok", "forbidden", "immutable", "missing"),
	}),
	fc.constant<Act>({ do: "heal" }),
	fc.record({
		do: fc.constant("consumer" as const),
		api,
		named: fc.boolean(),
		permission,
	}),
	fc.record({ do: fc.constant("stick" as const), api, on: fc.boolean() }),
	fc.record({ do: fc.constant("restart" as const), api }),
	fc.record({ do: fc.constant("restartProcess" as const), api }),
	fc.record({
		do: fc.constant("deleteProxy" as const),
		index: fc.nat({ max: 1 }),
	}),
	fc.record({
		do: fc.constant("damage" as const),
		domain,
		what: fc.constantFrom(...damages),
	}),
	fc.record({
		do: fc.constant("delete" as const),
		what: fc.constantFrom(
			"bundles" as const,
			"server" as const,
			"deployment" as const,
		),
	}),
	fc.record({
		do: fc.constant("validity" as const),
		of: fc.constantFrom(
			"signing" as const,
			"serving" as const,
			"client" as const,
		),
		factor: between(10, 1000).map((hundredths) => hundredths / 100),
	}),
	fc.record({ do: fc.constant("rotate" as const), domain }),
	fc.record({ do: fc.constant("compromised" as const), domain }),
);

export interface Script {
	setting: Setting;
	acts: { when: When; act: Act }[];
}

/** @param longest between two acts, in milliseconds */
export const anyScript = (
	validity: fc.Arbitrary<Setting["validity"]>,
	longest: number,
	maxLength: number,
): fc.Arbitrary<Script> =>
	fc.record({
		setting: anySetting(validity),
		acts: fc.array(fc.record({ when: anyWhen(longest), act: anyAct }), {
			maxLength,
			size: "max",
		}),
	});
