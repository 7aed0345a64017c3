import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { anyScript, anyValidity } from "./lifetimeacts.ts";
import { DAY, HOUR } from "./lifetimecluster.ts";
import { live } from "./lifetimemodel.ts";

const RUNS = Number(process.env.RUNS ?? 40);
const TIMEOUT_MS = 60_000 + 2000 * RUNS;
const YEAR = 365 * DAY;

describe("ten years", () => {
	test(
		"hold the laws",
		() => {
			let visits = 0;
			const tally = new Map<string, number>();
			fc.assert(
				fc.property(
					anyScript(
						anyValidity([20 * DAY, 5 * YEAR], [4 * DAY, YEAR]),
						YEAR / 2,
						60,
					),
					(script) => {
						const life = live(script, 10 * YEAR);
						visits += life.visits;
						for (const [what, count] of life.tally)
							tally.set(what, (tally.get(what) ?? 0) + count);
					},
				),
				{ numRuns: RUNS, includeErrorInReport: true },
			);
			console.log(visits, Object.fromEntries(tally));
			expect(visits).toBeGreaterThan(0);
		},
		TIMEOUT_MS,
	);
});
void HOUR;
