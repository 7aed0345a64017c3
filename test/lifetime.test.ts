import { afterAll, describe, expect, test } from "bun:test";
import fc from "fast-check";
import { leafRenewalTime, signerRenewalTime } from "../lifetimes.ts";
import {
	type Act,
	anyScript,
	anyValidity,
	type Script,
	type Setting,
} from "./lifetimeacts.ts";
import { DAY, HOUR, MINUTE } from "./lifetimecluster.ts";
import { type Lifetime, live } from "./lifetimemodel.ts";
import { Issuer } from "./lifetimepki.ts";

/** Lives in each test of any life; a long run has thousands. */
const RUNS = Number(process.env.RUNS ?? 5);
const TIMEOUT_MS = 120_000 + 10_000 * RUNS;
const YEAR = 365 * DAY;

const tally = new Map<string, number>();
afterAll(() => {
	if (process.env.RUNS)
		for (const [what, count] of [...tally].sort())
			console.log(`${String(count).padStart(9)} ${what}`);
});

/** @throws Violation, and where there is more writing than there can be cause for */
function hold(script: Script, length: number): Lifetime {
	const life = live(script, length);
	for (const [what, count] of life.tally)
		tally.set(what, (tally.get(what) ?? 0) + count);
	tally.set("visits", (tally.get("visits") ?? 0) + life.visits);
	const acts = script.acts.length + 1;
	// A signer is replaced after 2/5 of its life at the earliest, or because something has happened to it.
	const replaced = length / (0.39 * life.shortest.signing) + 2 * acts;
	// Twice by two controllers at once. A leaf of a signer that is about to end lives ever shorter, twenty times at most.
	const bounds: Record<string, number> = {
		Secret: 2 * (length / (0.56 * life.shortest.leaf) + 20 * (replaced + acts)),
		signer: 5 * replaced + 3 * acts,
		ConfigMap: 2 * (3 * replaced + 3 * acts),
		Deployment: 2 * (3 * replaced + 3 * acts),
	};
	for (const [object, writes] of life.writes) {
		const [kind = ""] = object.split(" ");
		const bound = bounds[object.endsWith("-signer") ? "signer" : kind];
		expect([object, writes, writes <= (bound ?? 0)]).toEqual([
			object,
			writes,
			true,
		]);
	}
	return life;
}

describe("the laws hold at every instant of", () => {
	const any = (
		validity: fc.Arbitrary<Setting["validity"]>,
		length: number,
		longest: number,
	) =>
		fc.assert(
			fc.property(anyScript(validity, longest, 50), (script) => {
				hold(script, length);
			}),
			{ numRuns: RUNS, includeErrorInReport: true },
		);

	test(
		"ten years, with certificates of days to years",
		() =>
			any(
				anyValidity([20 * DAY, 5 * YEAR], [4 * DAY, YEAR]),
				10 * YEAR,
				YEAR / 2,
			),
		TIMEOUT_MS,
	);

	test(
		"a hundred days, with certificates of hours",
		() =>
			any(
				anyValidity([12 * HOUR, 4 * DAY], [4 * HOUR, DAY]),
				100 * DAY,
				5 * DAY,
			),
		TIMEOUT_MS,
	);
});

describe("the laws hold when", () => {
	const willing: Setting["apiServers"] = [
		{ named: true, permission: "restart", replicas: 2 },
	];
	const deaf: Setting["apiServers"] = [
		{ named: true, permission: "none", replicas: 1 },
		{ named: false, permission: "restart", replicas: 1 },
	];
	const lost: Act = { do: "damage", domain: "serving", what: "Secret" };
	const keyLost: Act = { do: "damage", domain: "serving", what: "tls.key" };
	const nextLost: Act = { do: "damage", domain: "serving", what: "next.key" };
	const rotated: Act = { do: "rotate", domain: "serving" };
	const stolen: Act = { do: "compromised", domain: "serving" };
	const stolenClient: Act = { do: "compromised", domain: "client" };
	const stuck: Act = { do: "stick", api: 0, on: true };
	const forbidden = (of: "bundle" | "leaf"): Act => ({
		...{ do: "health", api: 0, of, health: "forbidden" },
	});
	const crash: Act = { do: "crash", controller: 0, downMs: 1000 };

	test.each<
		[string, number, Setting["apiServers"], [days: number, act: Act][]]
	>([
		[
			"the signer is lost, and consumers can be restarted",
			Number.POSITIVE_INFINITY,
			willing,
			[[1, lost]],
		],
		["the signer is lost, and consumers cannot", 3.5, deaf, [[1, lost]]],
		[
			"one that is lost is lost again",
			Number.POSITIVE_INFINITY,
			willing,
			[
				[1, lost],
				[0, lost],
				[0, lost],
			],
		],
		[
			"the signer's key is lost while a consumer is stuck",
			20,
			willing,
			[
				[1, stuck],
				[1, rotated],
				[1, keyLost],
			],
		],
		[
			"the next signer's key is lost while it is published",
			20,
			willing,
			[
				[1, forbidden("bundle")],
				[1, rotated],
				[1, nextLost],
			],
		],
		[
			"the client CA is lost, and a Secret cannot be written",
			3.9,
			willing,
			[
				[1, forbidden("leaf")],
				[1, { do: "damage", domain: "client", what: "Secret" }],
				[30, { do: "heal" }],
			],
		],
		[
			"a Secret cannot be written while the client CA is replaced",
			Number.POSITIVE_INFINITY,
			willing,
			[
				[1, forbidden("leaf")],
				[0, { do: "rotate", domain: "client" }],
				[2, { do: "heal" }],
			],
		],
		[
			"a bundle cannot be written for two lives of a CA",
			20,
			willing,
			[
				[1, forbidden("bundle")],
				[40, { do: "heal" }],
			],
		],
		[
			"a consumer is stuck for two lives of a CA",
			20,
			willing,
			[
				[1, stuck],
				[40, { do: "heal" }],
			],
		],
		[
			"a replacement is asked for while nobody knows who reads",
			20,
			deaf,
			[
				[1, rotated],
				[1, rotated],
				[1, rotated],
			],
		],
		[
			"a signer is compromised",
			1,
			willing,
			[
				[1, stolen],
				[1, stolenClient],
			],
		],
		[
			"a signer is compromised whose readers cannot be restarted",
			1,
			deaf,
			[
				[1, stolen],
				[20, stolenClient],
			],
		],
		[
			"a signer is compromised in the middle of its replacement",
			2,
			willing,
			[
				[1, stuck],
				[1, rotated],
				[0.001, stolen],
			],
		],
		[
			"nobody is there for a third of a life",
			3.9,
			willing,
			[[1, { do: "outage", lives: 0.3 }]],
		],
		[
			"nobody is there for longer than all validities",
			3.9,
			deaf,
			[[1, { do: "outage", lives: 1.3 }]],
		],
		[
			"the validity is halved, and doubled again",
			20,
			deaf,
			[
				[9, { do: "validity", of: "signing", factor: 0.5 }],
				[4, { do: "validity", of: "signing", factor: 4 }],
			],
		],
		[
			"a controller crashes after each of its writes",
			Number.POSITIVE_INFINITY,
			willing,
			Array.from({ length: 12 }, (): [number, Act] => [-1, crash]),
		],
		[
			"two controllers work at once with caches that lag",
			2,
			deaf,
			[
				[0.1, { do: "second", on: true }],
				[0, { do: "lag", controller: 0, ms: 20_000 }],
				[0, { do: "lag", controller: 1, ms: 20_000 }],
				[1, rotated],
				[1, stolen],
			],
		],
	])(
		"%s: nobody is cut off for %p days",
		(_, unharmed, apiServers, acts) => {
			const validity = { signing: 20 * DAY, serving: 4 * DAY, client: 4 * DAY };
			for (const proxies of ["gateway", "etcd"] as const)
				expect(
					hold(
						{
							setting: { seed: 1, proxies, replicas: 2, apiServers, validity },
							acts: acts.map(([days, act]) => ({
								when: days < 0 ? { writes: 1, ms: 0 } : { ms: days * DAY },
								act,
							})),
						},
						60 * DAY,
					).unharmedMs / DAY,
				).toBeGreaterThanOrEqual(unharmed - 0.01);
		},
		TIMEOUT_MS,
	);
});

describe("ten years without an incident", () => {
	const setting = (more: Partial<Setting>): Setting => ({
		seed: 1,
		proxies: "gateway",
		replicas: 2,
		apiServers: [
			{ named: true, permission: "restart", replicas: 2 },
			{ named: true, permission: "restart", replicas: 1 },
		],
		validity: { signing: 90 * DAY, serving: 30 * DAY, client: 10 * DAY },
		...more,
	});

	test.each(["gateway", "etcd"] as const)(
		"need no excuse, and few writes (%s)",
		(proxies) => {
			const { tally, writes } = hold(
				{ setting: setting({ proxies }), acts: [] },
				10 * YEAR,
			);
			expect([...tally.keys()]).toEqual(["pairs"]);
			// 90 days are replaced after 36 to 45: 81 to 101 times.
			for (const domain of ["client", "serving"]) {
				const count = writes.get(`Secret own/${domain}-signer`) ?? 0;
				// It is made, promoted, confirmed, and its predecessor retired.
				expect(count).toBeGreaterThan(4 * 81 - 10);
				expect(count).toBeLessThan(4 * 102 + 2);
			}
			// One restart for each serving CA.
			const restarts = writes.get("Deployment api0/apiserver") ?? 0;
			expect(restarts).toBeGreaterThan(80);
			expect(restarts).toBeLessThan(102);
		},
		TIMEOUT_MS,
	);

	test(
		"cut off only who is named and nobody restarts, and not before the time that is told",
		() => {
			const { tally, writes } = hold(
				{
					setting: setting({
						apiServers: [
							{ named: false, permission: "none", replicas: 1 },
							{ named: true, permission: "restart", replicas: 1 },
						],
					}),
					acts: [],
				},
				10 * YEAR,
			);
			expect([...tally.keys()].sort()).toEqual([
				"pairs",
				"told of as behind, and harmless no longer",
			]);
			// Nobody knows who reads it: the successor waits for the end of the former CA, which comes at half of a life.
			const count = writes.get("Secret own/serving-signer") ?? 0;
			expect(count).toBeGreaterThan(160);
			expect(count).toBeLessThan(4 * 102 + 2);
		},
		TIMEOUT_MS,
	);
});

describe("a thousand tenants that are made in one minute", () => {
	const life = 100 * HOUR;
	const now = Date.UTC(2026, 10, 23, 12);
	/** How many at most come together in so long a time. */
	const most = (times: number[], ms: number) =>
		Math.max(
			...times.map(
				(from) => times.filter((at) => at >= from && at < from + ms).length,
			),
		);
	const facts = (index: number) => {
		const made = new Issuer(index).authority(
			{
				...{ do: "make", as: "current", answered: {} },
				...{ distrust: false, lost: false },
				...{ commonName: "CA", organization: "O" },
				validity: { notBefore: now, notAfter: now + life },
			},
			{
				current: { missing: true },
				next: { missing: true },
				trusted: [],
				answered: {},
			},
		);
		return made.authority.facts;
	};

	test.each([
		["leaves", leafRenewalTime],
		["signers", signerRenewalTime],
	])("do not renew their %s together", (_, renewalTime) => {
		const times = Array.from({ length: 1000 }, (_, index) =>
			renewalTime(`tenant-${index}`, "serving", facts(index)),
		);
		// Ten hours of jitter: 100 in an hour and less than two in a minute if they were spread evenly.
		expect(most(times, HOUR)).toBeLessThan(150);
		expect(most(times, MINUTE)).toBeLessThan(12);
		expect(Math.max(...times) - Math.min(...times)).toBeGreaterThan(
			0.09 * life,
		);
	});
});
