/** How many bytes of requests and responses a tenant may have in the gateway at once. */

/** Who holds bytes, and may have to give them up. */
export interface Holder {
	/** Whose it is, such as a connection: what one reader leaves standing, he leaves standing everywhere. */
	readonly owner: object;
	/** What still has to go one way or the other; the same number twice is no progress. */
	readonly waiting: number;
	/** Ends it: it holds nothing any more, and waits for nothing. */
	cut(): void;
}

interface Held {
	bytes: number;
	/** When it was looked at last, and since when it has been the same. */
	waiting: number;
	since: number;
}

/** How long a holder may stand still while others wait for room. */
const STALL_MS = 10_000;
const CHECK_MS = 1_000;
/** What an answer may bring unasked: the first window of a stream. */
const FIRST_WINDOW = 65_536;

/**
 * Bytes are reserved before they are asked for, in the order of the requests; whoever stands still gives way to others.
 * What comes unasked, up to the first window of a stream, is held all the same: that can exceed the budget, up to twice
 * of it, from where on there are no new calls. Only events for watchers who do not read can exceed that.
 */
export class Budget {
	readonly max: number;
	readonly #stallMs: number;
	readonly #now: () => number;
	readonly #holders = new Map<Holder, Held>();
	readonly #queue: { bytes: number; holder: Holder; resume: () => void }[] = [];
	#used = 0;
	/** Calls whose answers have not begun. */
	#expected = 0;
	#timer: NodeJS.Timeout | undefined;

	/** @param max bytes @param now milliseconds that only go up */
	constructor(
		max: number,
		stallMs = STALL_MS,
		now: () => number = () => performance.now(),
	) {
		this.max = max;
		this.#stallMs = stallMs;
		this.#now = now;
	}

	/** Bytes. */
	get used(): number {
		return this.#used;
	}

	/** How many wait for room. */
	get waiting(): number {
		return this.#queue.length;
	}

	/** Nobody is to take more at once than he needs. */
	get tight(): boolean {
		return this.#used > this.max / 2;
	}

	/**
	 * A new call.
	 * @returns false when so much is under way that there is no room for it; else `arrived` must follow
	 */
	expect(): boolean {
		const most = this.#used + FIRST_WINDOW * (this.#expected + this.waiting);
		if (most >= 2 * this.max) return false;
		this.#expected++;
		return true;
	}

	/** The answer to a call has begun, or there will be none. */
	arrived(): void {
		this.#expected--;
	}

	/**
	 * Calls `resume` once there is room for more, maybe at once; the holder then holds it.
	 * @returns false when that will never be: it is more than there is
	 */
	reserve(bytes: number, holder: Holder, resume: () => void): boolean {
		if (bytes > this.max) return false;
		this.#queue.push({ bytes, holder, resume });
		this.#serve();
		return true;
	}

	/** @param bytes all that the holder holds now */
	hold(bytes: number, holder: Holder): void {
		this.#set(bytes, holder);
		this.#serve();
	}

	/** The holder does not wait for room any more. */
	forget(holder: Holder): void {
		if (this.#queue.length === 0) return;
		for (let at = this.#queue.length - 1; at >= 0; at--)
			if (this.#queue[at]?.holder === holder) this.#queue.splice(at, 1);
		this.#serve();
	}

	/** Cuts who stands still and is in the way of others. By itself every second, as long as there is need. */
	check(): void {
		const now = this.#now();
		for (const [holder, held] of [...this.#holders]) {
			if (this.#holders.get(holder) !== held) continue;
			const { waiting } = holder;
			if (waiting !== held.waiting) {
				held.waiting = waiting;
				held.since = now;
			} else if (now - held.since >= this.#stallMs) this.#cut(holder);
		}
	}

	/** As far as others need it; first what its owner waits for, which would be the next to stand still. */
	#cut(holder: Holder): void {
		const { owner } = holder;
		const siblings = this.#queue
			.map((one) => one.holder)
			.filter((one) => one.owner === owner && one !== holder);
		for (const one of [...siblings, holder])
			if (this.#inTheWay(holder)) one.cut();
	}

	#inTheWay({ owner }: Holder): boolean {
		return (
			this.#used > this.max ||
			this.#queue.some(({ holder }) => holder.owner !== owner)
		);
	}

	#set(bytes: number, holder: Holder): void {
		const held = this.#holders.get(holder);
		this.#used += bytes - (held?.bytes ?? 0);
		if (bytes === 0) this.#holders.delete(holder);
		else if (held) held.bytes = bytes;
		else this.#holders.set(holder, { bytes, waiting: -1, since: this.#now() });
	}

	#serve(): void {
		for (;;) {
			const [next] = this.#queue;
			if (!next || this.#used + next.bytes > this.max) break;
			this.#queue.shift();
			const { bytes = 0 } = this.#holders.get(next.holder) ?? {};
			this.#set(bytes + next.bytes, next.holder);
			next.resume();
		}
		this.#watch(this.#queue.length > 0 || this.#used > this.max);
	}

	#watch(needed: boolean): void {
		if (needed === (this.#timer !== undefined)) return;
		clearInterval(this.#timer);
		this.#timer = undefined;
		if (!needed) return;
		// What was seen a while ago says nothing about the time since.
		for (const held of this.#holders.values()) held.waiting = -1;
		this.#timer = setInterval(() => this.check(), CHECK_MS);
	}
}
