/**
 * What time it is for the cluster: by our own clock while that agrees with the API server's, else by the API server's.
 * Pure: both clocks of this machine are handed in.
 */

/** A `Date` header as Go writes it, always in whole seconds: https://www.rfc-editor.org/rfc/rfc9110#section-5.6.7 */
const HTTP_DATE = /^\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT$/;
/** An answer that took longer says too little: its date may be of any moment in between. */
const MAX_SECONDS = 10;
/** Of so many answers the median counts, and of none before there are so many that one odd answer cannot be it. */
const ANSWERS = 5;
const ENOUGH = 3;
/** Header granularity, latency, several API servers: clocks that are this close are not told apart. */
const NEGLIGIBLE_MS = 30_000;

/**
 * Follows the API server's clock. An answer is remembered as the distance between that clock and our monotonic one, so
 * that a step of our wall clock is no step of `now()`; a step of the API server's is taken up by the third answer after it.
 */
export class Clock {
	readonly #wall: () => number;
	readonly #monotonic: () => number;
	/** What to add to the monotonic clock for the API server's, by answer, the oldest first. */
	readonly #offsets: number[] = [];

	/**
	 * @param wall in milliseconds since the epoch: `Date.now`
	 * @param monotonic in milliseconds since any moment: `performance.now`
	 */
	constructor(wall: () => number, monotonic: () => number) {
		this.#wall = wall;
		this.#monotonic = monotonic;
	}

	/**
	 * To be called as soon as an answer is there.
	 * @param date its `Date` header; anything but a date is ignored
	 * @param seconds from the request to the answer
	 */
	observe(date: string | null | undefined, seconds: number): void {
		if (!HTTP_DATE.test(date ?? "") || !(seconds >= 0)) return;
		const shown = Date.parse(date ?? "");
		if (Number.isNaN(shown) || seconds > MAX_SECONDS) return;
		const written = this.#monotonic() - seconds * 500;
		// Within the second that has begun at `shown`.
		this.#offsets.push(shown + 500 - written);
		if (this.#offsets.length > ANSWERS) this.#offsets.shift();
	}

	/** In milliseconds since the epoch, whole ones. */
	now(): number {
		return this.#wall() - this.skewMs;
	}

	/** How far our wall clock is ahead of the API server's, in milliseconds; 0 while it is next to nothing or not known. */
	get skewMs(): number {
		if (this.#offsets.length < ENOUGH) return 0;
		const sorted = this.#offsets.toSorted((a, b) => a - b);
		const offset = sorted[Math.floor(sorted.length / 2)] ?? 0;
		const skew = Math.round(this.#wall() - this.#monotonic() - offset);
		return Math.abs(skew) < NEGLIGIBLE_MS ? 0 : skew;
	}
}
