/** The API server's clock, followed through the dates of its answers. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import fc from "fast-check";
import { Clock } from "../clock.ts";
import { Kube, loadKubeConfig, type RequestReport } from "../kube.ts";
import {
	type ControlPlane,
	startControlPlane,
} from "./cluster/controlplane.ts";
import { FIRST_BUILD } from "./harness.ts";

const SECOND = 1_000;
const HOUR = 3_600_000;
const YEAR = 365 * 24 * HOUR;
const EPOCH = Date.UTC(2026, 0, 1);
/** Half of the longest answer that counts, and half a second of the header's. */
const ERROR = 5.5 * SECOND;
const NEGLIGIBLE = 30 * SECOND;

/** An API server and a machine, whose clocks are set by hand. */
class World {
	/** What goes on and is never set. */
	time = EPOCH;
	/** How far our clock is ahead of that, and the API server's. */
	ours: number;
	theirs = 0;
	readonly clock: Clock;

	constructor(ours: number) {
		this.ours = ours;
		this.clock = new Clock(
			() => this.time + this.ours,
			() => this.time - EPOCH + 12_345,
		);
	}

	/** An answer that takes `seconds`, and is dated after the share `at` of them, or wrongly. */
	answer({ seconds, at, odd = 0 }: Answer & { odd?: number }) {
		const dated = this.time + this.theirs + seconds * at * SECOND + odd;
		this.time += seconds * SECOND;
		this.clock.observe(new Date(dated).toUTCString(), seconds);
	}

	/** Answers with time in between, so that they do not come at whole seconds. */
	answers(all: (Answer & { pause: number })[]) {
		for (const one of all) {
			this.time += one.pause;
			this.answer(one);
		}
	}

	/** Right where there is a skew to speak of; our own clock where there is none. */
	expectRight() {
		const { skewMs } = this.clock;
		const skew = Math.abs(this.ours - this.theirs);
		expect(Number.isSafeInteger(skewMs)).toBeTrue();
		if (skew > NEGLIGIBLE + ERROR) expect(skewMs).not.toBe(0);
		if (skew < NEGLIGIBLE - ERROR) expect(skewMs).toBe(0);
		const error = Math.abs(this.clock.now() - this.time - this.theirs);
		expect(error).toBeLessThanOrEqual(skewMs === 0 ? skew : ERROR + 1);
	}
}

interface Answer {
	seconds: number;
	at: number;
}

const skew = fc.integer({ min: -YEAR, max: YEAR });
const answer = fc.record({
	// Not longer than what counts.
	seconds: fc.double({ min: 0, max: 10, noNaN: true }),
	at: fc.double({ min: 0, max: 1, noNaN: true }),
	pause: fc.integer({ min: 0, max: 100_000 }),
});
const answers = fc.array(answer, { minLength: 3, maxLength: 20 });

describe("now()", () => {
	test("is the API server's time from the third answer on, unless our clock is near it", () => {
		fc.assert(
			fc.property(skew, answers, (skew, all) => {
				const world = new World(skew);
				world.answers(all);
				world.expectRight();
			}),
		);
	});

	test("is our own clock's while that is less than 30 s off, on either side", () => {
		for (const [skew, corrected] of [
			[29, 0],
			[-29, 0],
			[31, 31],
			[-31, -31],
		] as const) {
			const world = new World(skew * SECOND);
			world.time += 500;
			for (let i = 0; i < 3; i++) world.answer({ seconds: 0, at: 0 });
			expect(world.clock.skewMs).toBe(corrected * SECOND);
			expect(world.clock.now()).toBe(world.time + (skew - corrected) * SECOND);
		}
	});

	test("is our own clock's before the third answer", () => {
		const world = new World(HOUR);
		for (const skew of [0, 0, HOUR]) {
			world.answer({ seconds: 0, at: 0 });
			expect(Math.round(world.clock.skewMs / SECOND)).toBe(skew / SECOND);
		}
	});

	test("does not follow a single odd answer, whenever it comes", () => {
		fc.assert(
			fc.property(skew, answers, skew, fc.nat(), (skew, all, odd, where) => {
				const world = new World(skew);
				const index = where % (all.length + 1);
				world.answers(all.slice(0, index));
				world.answer({ seconds: 0, at: 0, odd });
				world.answers(all.slice(index));
				world.expectRight();
			}),
		);
	});

	test("goes on when our clock is set, before any further answer", () => {
		fc.assert(
			fc.property(skew, answers, skew, (before, all, after) => {
				const world = new World(before);
				world.answers(all);
				world.ours = after;
				world.expectRight();
			}),
		);
	});

	test("follows the API server's clock by the third answer after that was set", () => {
		fc.assert(
			fc.property(
				skew,
				answers,
				skew,
				fc.array(answer, { minLength: 3, maxLength: 3 }),
				(ours, before, theirs, three) => {
					const world = new World(ours);
					world.answers(before);
					world.theirs = theirs;
					world.answers(three);
					world.expectRight();
				},
			),
		);
	});

	test("is not touched by what is no date, and by answers that took too long", () => {
		const junk = fc.oneof(
			fc.string(),
			fc.constantFrom(
				null,
				undefined,
				"2026-01-01T00:00:00Z",
				"Thu, 01 Foo 2026 00:00:00 GMT",
				"Thu, 01 Jan 2026 00:00:00 +0900",
			),
		);
		const date = new Date(EPOCH - HOUR).toUTCString();
		const useless = fc.oneof(
			fc.tuple(junk, fc.double({ min: 0, max: 10, noNaN: true })),
			fc.tuple(
				fc.constant(date),
				fc.oneof(
					fc.double({ min: 10.001, noNaN: true }),
					fc.double({ max: -0.001, noNaN: true }),
					fc.constant(Number.NaN),
				),
			),
		);
		fc.assert(
			fc.property(
				skew,
				answers,
				fc.array(useless, { minLength: 5 }),
				(skew, all, others) => {
					const world = new World(skew);
					for (const [date, seconds] of others)
						world.clock.observe(date, seconds);
					expect(world.clock.skewMs).toBe(0);
					world.answers(all);
					const before = world.clock.now();
					for (const [date, seconds] of others)
						world.clock.observe(date, seconds);
					expect(world.clock.now()).toBe(before);
				},
			),
		);
	});
});

describe("the real API server", () => {
	let cluster: ControlPlane;
	beforeAll(async () => {
		cluster = await startControlPlane();
	}, FIRST_BUILD);
	afterAll(() => cluster?.stop());

	test("dates its good answers, and a controller with a wrong clock knows what time it is", async () => {
		for (const off of [HOUR, -HOUR, 0]) {
			const wall = () => Date.now() + off;
			const clock = new Clock(wall, () => performance.now());
			const reports: RequestReport[] = [];
			const kube = new Kube(loadKubeConfig(cluster.kubeconfig), {
				fieldManager: "test",
				onRequest(report) {
					reports.push(report);
					clock.observe(report.date, report.seconds);
				},
			});
			await kube.list("ConfigMap", "default");
			await kube.list("Secret", "default");
			expect(clock.skewMs).toBe(0);
			const watch = new AbortController();
			const listed = Promise.withResolvers<void>();
			const watching = Promise.withResolvers<void>();
			const follow = kube.follow("ConfigMap", {
				namespace: "kube-system",
				signal: watch.signal,
				onSync: () => listed.resolve(),
				onEvent: () => watching.resolve(),
			});
			await listed.promise;
			await kube.apply({
				apiVersion: "v1",
				kind: "ConfigMap",
				metadata: { name: "seen", namespace: "kube-system" },
				data: { off: `${off}` },
			} as Parameters<typeof kube.apply>[0]);
			await watching.promise;
			watch.abort();
			await follow;
			expect(Math.abs(clock.now() - Date.now())).toBeLessThan(2 * SECOND);
			expect(Math.round(clock.skewMs / 10_000)).toBe(off / 10_000);
			expect(reports.map(({ verb }) => verb)).toContain("watch");
			for (const { code, date } of reports)
				if (code < 300) expect(date).toMatch(/ GMT$/);
		}
	}, 30_000);
});
