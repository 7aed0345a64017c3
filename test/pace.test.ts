import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { BURST, Pace, REFILL_MS } from "../pace.ts";

/** Spends as fast as it may from then on, and returns when. */
function spendAll(pace: Pace, key: string, from: number, until: number) {
	const at: number[] = [];
	for (let now = from; now < until; ) {
		const wait = pace.wait(key, now);
		if (wait === 0) {
			pace.spend(key, now);
			at.push(now);
		}
		now += Math.max(wait, 1);
	}
	return at;
}

describe("whoever writes as fast as it may", () => {
	test("writes a burst, and then as often as tokens come", () => {
		const at = spendAll(new Pace(), "a", 0, 200_000);
		expect(at.slice(0, BURST)).toEqual(
			Array.from({ length: BURST }, (_, index) => index),
		);
		for (const [index, one] of at.slice(BURST).entries())
			expect(Math.abs(one - (index + 1) * REFILL_MS)).toBeLessThan(5);
		expect(at.length).toBeGreaterThan(140);
	});

	test("has the whole burst again after a rest, and never more", () => {
		const pace = new Pace();
		spendAll(pace, "a", 0, 10_000);
		const rested = 1_000_000;
		expect(spendAll(pace, "a", rested, rested + 1_000)).toHaveLength(BURST);
	});

	test("does not slow down others, and is forgotten", () => {
		const pace = new Pace();
		spendAll(pace, "a", 0, 1_000);
		expect(pace.wait("a", 1_000)).toBeGreaterThan(0);
		expect(pace.wait("b", 1_000)).toBe(0);
		pace.forget("a");
		expect(pace.wait("a", 1_000)).toBe(0);
	});
});

test("that there are no tokens left is told once, and again only after half of them were back", () => {
	const pace = new Pace();
	const told: number[] = [];
	for (let now = 0; now < 600_000; now += 100)
		if (
			// Whoever fights rests in between.
			(now < 100_000 || now > 300_000) &&
			pace.wait("a", now) === 0 &&
			pace.spend("a", now)
		)
			told.push(now);
	expect(told).toHaveLength(2);
	expect(told[0]).toBeLessThan(6_000);
	expect(told[1]).toBeGreaterThan(300_000);
});

test("in no time there are more than a burst and what came meanwhile", () => {
	fc.assert(
		fc.property(
			fc.array(fc.nat(3_000), { minLength: 1, maxLength: 400 }),
			(gaps) => {
				const pace = new Pace();
				const at: number[] = [];
				let now = 0;
				for (const gap of gaps) {
					now += gap;
					if (pace.wait("a", now) > 0) continue;
					pace.spend("a", now);
					at.push(now);
				}
				for (const [first, from] of at.entries())
					for (const [last, to] of at.entries())
						if (last >= first)
							expect(last - first + 1).toBeLessThanOrEqual(
								BURST + (to - from) / REFILL_MS + 1e-6,
							);
			},
		),
		{ numRuns: 50 },
	);
});
