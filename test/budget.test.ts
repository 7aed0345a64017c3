/** The budget's decisions, one by one, and in any order that chance thinks of. */
import { afterEach, describe, expect, test } from "bun:test";
import fc from "fast-check";
import { Budget, type Holder } from "../gateway/budget.ts";

const STALL_MS = 10_000;
const SECOND = 1_000;

/** A call: it holds what it is given, and moves when the test moves it. */
class Call implements Holder {
	readonly name: string;
	readonly owner: object;
	readonly #room: Room;
	waiting = 0;
	held = 0;
	/** When it last began to hold something, or moved. */
	movedAt = 0;
	wasCut = false;

	constructor(room: Room, name: string, owner: object) {
		this.#room = room;
		this.name = name;
		this.owner = owner;
	}

	/** @returns whether it may wait for room */
	reserve(bytes: number): boolean {
		const ticket = `${this.name} ${bytes}`;
		this.#room.asked.push(ticket);
		const taken = this.#room.budget.reserve(bytes, this, () => {
			this.#room.served.push(ticket);
			if (this.held === 0) this.movedAt = this.#room.now;
			this.held += bytes;
		});
		if (!taken) this.#room.asked.pop();
		return taken;
	}

	hold(bytes: number): void {
		if (this.held === 0) this.movedAt = this.#room.now;
		this.held = bytes;
		this.#room.budget.hold(bytes, this);
	}

	move(): void {
		this.waiting++;
		this.movedAt = this.#room.now;
	}

	end(): void {
		const mine = (ticket: string) => ticket.startsWith(`${this.name} `);
		const { asked, served } = this.#room;
		this.#room.asked = [
			...asked.slice(0, served.length),
			...asked.slice(served.length).filter((ticket) => !mine(ticket)),
		];
		// As a call does it: nothing more is wanted, then nothing more is held.
		this.#room.budget.forget(this);
		this.hold(0);
	}

	cut(): void {
		this.#room.onCut(this);
		this.wasCut = true;
		this.end();
	}
}

/** A budget with a clock that the test turns. */
class Room {
	now = 0;
	readonly budget: Budget;
	readonly calls: Call[] = [];
	/** What was asked for and not given up, and what of that was granted, in the order of both. */
	asked: string[] = [];
	served: string[] = [];
	onCut: (call: Call) => void = () => undefined;

	constructor(max: number) {
		this.budget = new Budget(max, STALL_MS, () => this.now);
		rooms.push(this);
	}

	call(name: string, owner: object = {}): Call {
		const call = new Call(this, name, owner);
		this.calls.push(call);
		return call;
	}

	/** Time passes, and the budget looks every second. */
	pass(ms: number): void {
		for (const end = this.now + ms; this.now < end; ) {
			this.now += SECOND;
			this.budget.check();
		}
	}
}

const rooms: Room[] = [];
// Their timers end with what they wait for.
afterEach(() => {
	for (const { calls } of rooms.splice(0)) for (const call of calls) call.end();
});

describe("room", () => {
	test("is given at once while there is some, then in the order of asking", () => {
		const room = new Room(100);
		const [a, b, c, d] = ["a", "b", "c", "d"].map((name) =>
			room.call(name),
		) as [Call, Call, Call, Call];
		for (const call of [a, b, c]) call.reserve(60);
		// It would fit, but others were first.
		d.reserve(10);
		expect(room.served).toEqual(["a 60"]);
		expect(room.budget.waiting).toBe(3);
		a.end();
		expect(room.served).toEqual(["a 60", "b 60"]);
		b.end();
		expect(room.served).toEqual(["a 60", "b 60", "c 60", "d 10"]);
		expect(room.budget.used).toBe(70);
	});

	test("that nobody wants any more goes to the next", () => {
		const room = new Room(100);
		const [a, b, c] = ["a", "b", "c"].map((name) => room.call(name)) as [
			Call,
			Call,
			Call,
		];
		a.reserve(60);
		b.reserve(60);
		c.reserve(40);
		room.budget.forget(b);
		expect(room.served).toEqual(["a 60", "c 40"]);
	});

	test("for more than there ever is, is refused", () => {
		const room = new Room(100);
		expect(room.call("a").reserve(101)).toBe(false);
		expect(room.call("b").reserve(100)).toBe(true);
		expect(room.served).toEqual(["b 100"]);
	});

	test("is short when more than half is held", () => {
		const room = new Room(100);
		const call = room.call("a");
		call.hold(50);
		expect(room.budget.tight).toBe(false);
		call.hold(51);
		expect(room.budget.tight).toBe(true);
	});

	test("for new calls is there until twice as much is held, waited for or expected", () => {
		const window = 65_536;
		const room = new Room(4 * window);
		const { budget } = room;
		room.call("unasked").hold(5 * window);
		expect(budget.expect()).toBe(true);
		room.call("waiting").reserve(window);
		expect(budget.expect()).toBe(true);
		expect(budget.expect()).toBe(false);
		budget.arrived();
		expect(budget.expect()).toBe(true);
		expect(budget.expect()).toBe(false);
	});
});

describe("who stands still", () => {
	test("is cut after 10 s while another waits", () => {
		const room = new Room(100);
		const [still, waiting] = [room.call("still"), room.call("waiting")];
		still.reserve(100);
		waiting.reserve(1);
		room.pass(10 * SECOND);
		expect(still.wasCut).toBe(false);
		room.pass(SECOND);
		expect(still.wasCut).toBe(true);
		expect(room.served).toEqual(["still 100", "waiting 1"]);
	});

	test("stays while nobody waits, and counts from when somebody does", () => {
		const room = new Room(100);
		const [still, waiting] = [room.call("still"), room.call("waiting")];
		still.reserve(100);
		room.pass(60 * SECOND);
		waiting.reserve(1);
		room.pass(10 * SECOND);
		expect(still.wasCut).toBe(false);
		room.pass(SECOND);
		expect(still.wasCut).toBe(true);
	});

	test("stays while only the same connection waits", () => {
		const room = new Room(100);
		const owner = {};
		const [still, next] = [room.call("still", owner), room.call("next", owner)];
		still.reserve(100);
		next.reserve(100);
		room.pass(60 * SECOND);
		expect(still.wasCut).toBe(false);
	});

	test("takes with it what the same connection waits for, which would stand still next", () => {
		const room = new Room(100);
		const owner = {};
		const [still, next] = [room.call("still", owner), room.call("next", owner)];
		const other = room.call("other");
		still.reserve(100);
		next.reserve(100);
		other.reserve(100);
		room.pass(11 * SECOND);
		expect([still, next, other].map((call) => call.wasCut)).toEqual([
			true,
			true,
			false,
		]);
		expect(room.served).toEqual(["still 100", "other 100"]);
	});

	test("is cut also when nobody waits, if more has come unasked than there is room", () => {
		const room = new Room(100);
		const call = room.call("still");
		call.hold(101);
		room.pass(11 * SECOND);
		expect(call.wasCut).toBe(true);
		expect(room.budget.used).toBe(0);
	});
});

test("who moves is not cut, however slowly and however many wait", () => {
	const room = new Room(100);
	const slow = room.call("slow");
	slow.reserve(100);
	for (let index = 0; index < 10; index++) room.call(`${index}`).reserve(100);
	for (let round = 0; round < 20; round++) {
		room.pass(9 * SECOND);
		slow.move();
	}
	expect(slow.wasCut).toBe(false);
	expect(room.served).toEqual(["slow 100"]);
});

describe("in any order of events", () => {
	const MAX = 1_000;
	const call = fc.nat({ max: 7 });
	const bytes = fc.integer({ min: 1, max: MAX + 100 });
	const event = fc.oneof(
		fc.record({ do: fc.constant("reserve" as const), call, bytes }),
		// Unasked bytes, or that some have gone.
		fc.record({ do: fc.constant("hold" as const), call, bytes }),
		fc.record({ do: fc.constant("move" as const), call }),
		fc.record({ do: fc.constant("end" as const), call }),
		fc.record({
			do: fc.constant("pass" as const),
			seconds: fc.integer({ min: 1, max: 15 }),
		}),
	);

	/** Two calls a connection. */
	function play(
		events: (typeof event extends fc.Arbitrary<infer T> ? T : never)[],
		after: (room: Room) => void,
	): Room {
		const room = new Room(MAX);
		const owners = [{}, {}, {}, {}];
		for (let index = 0; index < 8; index++)
			room.call(`${index}`, owners[index >> 1] as object);
		room.onCut = (call) => {
			const { budget, now } = room;
			const othersWait = room.asked.slice(room.served.length).some((ticket) => {
				const waiting = room.calls[Number(ticket.split(" ")[0])] as Call;
				return waiting.owner !== call.owner;
			});
			// Either it stands still itself, or one of its connection does.
			const still = room.calls.some(
				({ owner, held, movedAt }) =>
					owner === call.owner && held > 0 && now - movedAt >= STALL_MS,
			);
			expect([still, othersWait || budget.used > MAX]).toEqual([true, true]);
		};
		for (const one of events) {
			if (one.do === "pass") room.pass(one.seconds * SECOND);
			else {
				const call = room.calls[one.call] as Call;
				if (one.do === "reserve") call.reserve(one.bytes);
				else if (one.do === "hold") call.hold(one.bytes);
				else call[one.do]();
			}
			after(room);
		}
		return room;
	}
	const check = (property: fc.IRawProperty<unknown>) =>
		fc.assert(property, { numRuns: 500 });

	test("the sum is right, the order kept, and nobody waits without need", () => {
		check(
			fc.property(fc.array(event, { maxLength: 60 }), (events) => {
				play(events, ({ budget, calls, asked, served }) => {
					const held = calls.reduce((sum, { held }) => sum + held, 0);
					expect(budget.used).toBe(held);
					expect(asked.slice(0, served.length)).toEqual(served);
					expect(budget.waiting).toBe(asked.length - served.length);
					const next = Number(asked[served.length]?.split(" ")[1] ?? MAX + 1);
					expect(budget.used + next).toBeGreaterThan(MAX);
				});
			}),
		);
	});

	test("reservations alone never exceed it", () => {
		const asked = event.filter((one) => one.do !== "hold");
		check(
			fc.property(fc.array(asked, { maxLength: 60 }), (events) => {
				play(events, ({ budget }) =>
					expect(budget.used).toBeLessThanOrEqual(MAX),
				);
			}),
		);
	});

	test("when nothing moves any more, nobody waits behind another connection for long", () => {
		check(
			fc.property(fc.array(event, { maxLength: 60 }), (events) => {
				const room = play(events, () => undefined);
				room.pass(8 * (STALL_MS + SECOND));
				const waiting = room.asked.slice(room.served.length);
				expect(waiting.length === 0 || room.budget.used <= MAX).toBe(true);
				const owners = new Set(
					[
						...room.calls.filter(({ held }) => held > 0),
						...waiting.map(
							(ticket) => room.calls[Number(ticket.split(" ")[0])] as Call,
						),
					].map(({ owner }) => owner),
				);
				if (waiting.length > 0) expect(owners.size).toBe(1);
			}),
		);
	});

	test("when all have ended, nothing is left", () => {
		check(
			fc.property(fc.array(event, { maxLength: 60 }), (events) => {
				const { budget, calls } = play(events, () => undefined);
				for (const call of calls) call.end();
				expect([budget.used, budget.waiting]).toEqual([0, 0]);
			}),
		);
	});
});
