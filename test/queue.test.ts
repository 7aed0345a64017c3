import { expect, jest, test } from "bun:test";
import fc from "fast-check";
import { Queue } from "../queue.ts";

/** Work that ends when it is told to, and what has happened so far. */
class Bench {
	readonly begun: string[] = [];
	readonly errors: { key: string; error: unknown; retryMs: number }[] = [];
	readonly running = new Map<
		string,
		PromiseWithResolvers<number | undefined>
	>();
	most = 0;
	readonly queue: Queue;

	constructor(concurrency = 2) {
		this.queue = new Queue({
			concurrency,
			work: (key) => {
				if (this.running.has(key)) throw new Error(`${key} is worked on twice`);
				this.begun.push(key);
				const work = Promise.withResolvers<number | undefined>();
				this.running.set(key, work);
				this.most = Math.max(this.most, this.running.size);
				return work.promise;
			},
			onError: (key, error, retryMs) =>
				this.errors.push({ key, error, retryMs }),
		});
	}

	/** Ends the work on a key, and lets the queue take notice. */
	async end(key: string, again?: number): Promise<void> {
		this.running.get(key)?.resolve(again);
		this.running.delete(key);
		await settled();
	}

	async fail(key: string): Promise<void> {
		this.running.get(key)?.reject(new Error("out of order"));
		this.running.delete(key);
		await settled();
	}
}

const settled = () => new Promise((resolve) => setImmediate(resolve));

test("a key that is added many times is worked on once", async () => {
	const bench = new Bench(1);
	for (const key of ["a", "b", "b", "b"]) bench.queue.add(key);
	expect(bench.queue.depth).toBe(1);
	await bench.end("a");
	await bench.end("b");
	expect(bench.begun).toEqual(["a", "b"]);
});

test("a key that is added while it is worked on is worked on again afterwards, never at the same time", async () => {
	const bench = new Bench();
	bench.queue.add("a");
	bench.queue.add("a");
	bench.queue.add("a");
	expect(bench.begun).toEqual(["a"]);
	await bench.end("a");
	expect(bench.begun).toEqual(["a", "a"]);
	await bench.end("a");
	expect(bench.begun).toEqual(["a", "a"]);
});

test("keys are worked on in the order in which they came, as many at once as allowed", async () => {
	const bench = new Bench(3);
	for (const key of "abcde") bench.queue.add(key);
	expect(bench.begun.join("")).toBe("abc");
	await bench.end("b");
	expect(bench.begun.join("")).toBe("abcd");
	await bench.end("a");
	expect(bench.begun.join("")).toBe("abcde");
	expect(bench.most).toBe(3);
});

test("a busy key does not hold up those behind it", async () => {
	const bench = new Bench(2);
	bench.queue.add("a");
	bench.queue.add("a");
	bench.queue.add("b");
	expect(bench.begun).toEqual(["a", "b"]);
});

test("depth and age tell what waits, and since when", async () => {
	const bench = new Bench(1);
	expect([bench.queue.depth, bench.queue.age]).toEqual([0, 0]);
	bench.queue.add("a");
	bench.queue.add("b");
	await Bun.sleep(500);
	bench.queue.add("c");
	expect(bench.queue.depth).toBe(2);
	expect(bench.queue.age).toBeGreaterThan(0.4);
	await bench.end("a");
	expect(bench.queue.depth).toBe(1);
	expect(bench.queue.age).toBeLessThan(0.4);
	await bench.end("b");
	expect([bench.queue.depth, bench.queue.age]).toEqual([0, 0]);
});

test("a key is worked on again when its work said so, and sooner when it is added before", async () => {
	const bench = new Bench();
	bench.queue.add("a");
	await bench.end("a", 30);
	expect(bench.begun).toHaveLength(1);
	await Bun.sleep(60);
	expect(bench.begun).toHaveLength(2);
	await bench.end("a", 60_000);
	bench.queue.add("a");
	expect(bench.begun).toHaveLength(3);
});

test("a wait beyond 24 days is a wait, not an instant", async () => {
	const bench = new Bench();
	bench.queue.add("a");
	await bench.end("a", 1e12);
	await Bun.sleep(20);
	expect(bench.begun).toHaveLength(1);
	await bench.queue.stop();
});

test("failures are told and retried ever later, up to half a minute; success makes the next retry soon again", async () => {
	jest.useFakeTimers();
	try {
		const bench = new Bench();
		const failOnce = async () => {
			bench.running.get("a")?.reject(new Error("out of order"));
			bench.running.delete("a");
			for (let turn = 0; turn < 5; turn++) await Promise.resolve();
			const { retryMs = Number.NaN } = bench.errors.at(-1) ?? {};
			return retryMs;
		};
		bench.queue.add("a");
		for (let failures = 0; failures < 14; failures++) {
			const wait = Math.min(250 * 2 ** failures, 30_000);
			const retryMs = await failOnce();
			expect(retryMs).toBeGreaterThanOrEqual(wait * 0.75);
			expect(retryMs).toBeLessThanOrEqual(wait * 1.25);
			expect(bench.begun).toHaveLength(failures + 1);
			jest.advanceTimersByTime(retryMs + 1);
			expect(bench.begun).toHaveLength(failures + 2);
		}
		bench.running.get("a")?.resolve(undefined);
		bench.running.delete("a");
		for (let turn = 0; turn < 5; turn++) await Promise.resolve();
		bench.queue.add("a");
		expect(await failOnce()).toBeLessThanOrEqual(250 * 1.25);
		expect(bench.errors[0]).toMatchObject({
			key: "a",
			error: new Error("out of order"),
		});
	} finally {
		jest.useRealTimers();
	}
});

test("work that throws instead of rejecting is a failure like any other", async () => {
	const errors: unknown[] = [];
	const queue = new Queue({
		concurrency: 1,
		work: () => {
			throw new Error("at once");
		},
		onError: (_, error) => errors.push(error),
	});
	queue.add("a");
	await settled();
	expect(errors).toEqual([new Error("at once")]);
	await queue.stop();
});

test("the retries of a thousand failing keys are spread", async () => {
	const retries: number[] = [];
	const queue = new Queue({
		concurrency: 1000,
		work: () => Promise.reject(new Error("no")),
		onError: (_, __, retryMs) => retries.push(retryMs),
	});
	for (let key = 0; key < 1000; key++) queue.add(`${key}`);
	await settled();
	await queue.stop();
	expect(retries).toHaveLength(1000);
	expect(new Set(retries.map(Math.round)).size).toBeGreaterThan(50);
});

test("stopping begins nothing new and waits for what runs", async () => {
	const bench = new Bench(1);
	bench.queue.add("a");
	bench.queue.add("b");
	let stopped = false;
	const stop = bench.queue.stop().then(() => {
		stopped = true;
	});
	bench.queue.add("c");
	await settled();
	expect(stopped).toBeFalse();
	await bench.end("a", 1);
	await stop;
	await Bun.sleep(10);
	expect(bench.begun).toEqual(["a"]);
	expect(bench.queue.depth).toBe(0);
});

test("a failure after the stop is told and not retried", async () => {
	const bench = new Bench(1);
	bench.queue.add("a");
	const stop = bench.queue.stop();
	await bench.fail("a");
	await stop;
	expect(bench.errors).toHaveLength(1);
	await Bun.sleep(400);
	expect(bench.begun).toEqual(["a"]);
});

test("whatever happens, no key is lost, worked on twice at once, or worked on more often than it was added", async () => {
	const key = fc.constantFrom("a", "b", "c", "d", "e");
	const step = fc.oneof(
		fc.record({ kind: fc.constant("add" as const), key }),
		fc.record({ kind: fc.constant("end" as const), key }),
	);
	await fc.assert(
		fc.asyncProperty(
			fc.array(step, { maxLength: 40 }),
			fc.integer({ min: 1, max: 4 }),
			async (steps, concurrency) => {
				const bench = new Bench(concurrency);
				const added = new Map<string, number>();
				/** Keys that were added and not begun since. */
				const owed = new Set<string>();
				const notice = (from: number) => {
					for (const begun of bench.begun.slice(from)) owed.delete(begun);
				};
				for (const { kind, key } of steps) {
					const from = bench.begun.length;
					if (kind === "add") {
						owed.add(key);
						added.set(key, (added.get(key) ?? 0) + 1);
						bench.queue.add(key);
					} else await bench.end(key);
					notice(from);
				}
				while (bench.running.size > 0) {
					const from = bench.begun.length;
					for (const running of [...bench.running.keys()])
						await bench.end(running);
					notice(from);
				}
				expect([...owed]).toEqual([]);
				expect(bench.most).toBeLessThanOrEqual(concurrency);
				for (const [key, times] of added)
					expect(
						bench.begun.filter((one) => one === key).length,
					).toBeLessThanOrEqual(times);
			},
		),
		{ numRuns: 200 },
	);
});
