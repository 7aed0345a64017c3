import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { Cache } from "../cache.ts";
import type { KubeObject } from "../kube.ts";

const object = (name: string, version: number): KubeObject => ({
	apiVersion: "v1",
	kind: "ConfigMap",
	metadata: { name, resourceVersion: `${version}` },
});
const names = (objects: Iterable<KubeObject>) =>
	[...objects].map((one) => one.metadata.name).sort();

/** A cache that has seen these objects listed. */
function listed(...objects: KubeObject[]): Cache<KubeObject> {
	const cache = new Cache<KubeObject>();
	cache.replace(objects);
	return cache;
}

describe("a list", () => {
	test("makes the cache complete", () => {
		const cache = new Cache<KubeObject>();
		expect([cache.synced, cache.size]).toEqual([false, 0]);
		cache.replace([]);
		expect(cache.synced).toBeTrue();
	});

	test("tells what came, changed and went, and nothing of what stayed", () => {
		const cache = listed(
			object("stays", 1),
			object("changes", 2),
			object("goes", 3),
		);
		const changed = cache.replace([
			object("stays", 1),
			object("changes", 4),
			object("comes", 5),
		]);
		expect(names(changed)).toEqual(["changes", "comes", "goes"]);
		expect(names(cache.values())).toEqual(["changes", "comes", "stays"]);
	});

	test("leaves an unchanged object the very same, so that what was computed from it is kept", () => {
		const first = object("a", 1);
		const cache = listed(first);
		cache.replace([object("a", 1)]);
		expect(cache.get("a")).toBe(first);
	});

	test("from a restored backup, with older versions than before, is believed", () => {
		const cache = listed(object("a", 900));
		expect(names(cache.replace([object("a", 5)]))).toEqual(["a"]);
		expect(cache.get("a")?.metadata.resourceVersion).toBe("5");
	});
});

describe("an event", () => {
	test("adds, changes and removes", () => {
		const cache = listed();
		expect(cache.event("ADDED", object("a", 1))).toBeTrue();
		expect(cache.event("MODIFIED", object("a", 2))).toBeTrue();
		expect(cache.get("a")?.metadata.resourceVersion).toBe("2");
		expect(cache.event("DELETED", object("a", 3))).toBeTrue();
		expect(cache.get("a")).toBeUndefined();
	});

	test("that answers a write of our own tells nothing new", () => {
		const cache = listed(object("a", 1));
		cache.wrote(object("a", 2));
		expect(cache.event("MODIFIED", object("a", 2))).toBeFalse();
		expect(cache.event("MODIFIED", object("a", 3))).toBeTrue();
	});

	test("that is older than a write of our own does not undo it", () => {
		const cache = listed(object("a", 1));
		cache.wrote(object("a", 5));
		expect(cache.event("MODIFIED", object("a", 4))).toBeFalse();
		expect(cache.event("DELETED", object("a", 3))).toBeFalse();
		expect(cache.get("a")?.metadata.resourceVersion).toBe("5");
	});

	test("of a deletion of what is not known tells nothing new", () => {
		expect(listed().event("DELETED", object("a", 3))).toBeFalse();
	});

	test("compares versions as numbers, not as texts", () => {
		const cache = listed(object("a", 9));
		expect(cache.event("MODIFIED", object("a", 10))).toBeTrue();
		const large = `${2n ** 63n}`;
		const next = object("a", 0);
		next.metadata.resourceVersion = large;
		expect(cache.event("MODIFIED", next)).toBeTrue();
		const afterNext = object("a", 0);
		afterNext.metadata.resourceVersion = `${2n ** 63n + 1n}`;
		expect(cache.event("MODIFIED", afterNext)).toBeTrue();
	});
});

describe("the answer to a write of our own", () => {
	test("is seen before the watch brings it", () => {
		const cache = listed();
		cache.wrote(object("a", 7));
		expect(cache.get("a")?.metadata.resourceVersion).toBe("7");
	});

	test("that arrives after the watch has told of the object's end does not bring it back", () => {
		const cache = listed();
		cache.event("ADDED", object("a", 7));
		cache.event("DELETED", object("a", 8));
		cache.wrote(object("a", 7));
		expect(cache.get("a")).toBeUndefined();
	});
});

test("however late watch events and answers to writes arrive, the last state stands", () => {
	// A life of objects as the API server sees it: each step gets the next version.
	const step = fc.record({
		name: fc.constantFrom("a", "b", "c"),
		deleted: fc.boolean(),
		/** Whether it is our write, and after how many further steps its answer arrives. */
		ours: fc.boolean(),
		delay: fc.integer({ min: 0, max: 6 }),
		/** How many events the watch brings now; they keep their order. */
		brought: fc.integer({ min: 0, max: 3 }),
	});
	fc.assert(
		fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
			const cache = listed();
			const truth = new Map<string, KubeObject>();
			const events: Parameters<typeof cache.event>[] = [];
			const answers: { due: number; object: KubeObject }[] = [];
			const bring = (count: number) => {
				for (const event of events.splice(0, count)) cache.event(...event);
			};
			for (const [index, { name, deleted, ours, delay, brought }] of [
				...steps.entries(),
			]) {
				const now = object(name, index + 1);
				const known = truth.has(name);
				if (deleted && known) {
					events.push(["DELETED", now]);
					truth.delete(name);
				}
				if (!deleted) {
					events.push([known ? "MODIFIED" : "ADDED", now]);
					truth.set(name, now);
					if (ours) answers.push({ due: index + delay, object: now });
				}
				bring(brought);
				for (const answer of answers)
					if (answer.due === index) cache.wrote(answer.object);
			}
			for (const { due, object } of answers)
				if (due >= steps.length) cache.wrote(object);
			bring(events.length);
			const versions = (objects: Iterable<KubeObject>) =>
				[...objects]
					.map(({ metadata }) => `${metadata.name} ${metadata.resourceVersion}`)
					.sort();
			expect(versions(cache.values())).toEqual(versions(truth.values()));
		}),
		{ numRuns: 1000 },
	);
});
