/**
 * How often in a row something may be written again. Whoever changes an object of ours as soon as it is written, such as
 * another controller, would else be answered as fast as the API server can. Pure.
 */

/** More than a person at work or any replacement of a CA takes. */
export const BURST = 50;
export const REFILL_MS = 2_000;

/** A token bucket for each key: https://en.wikipedia.org/wiki/Token_bucket. Times are milliseconds of one clock. */
export class Pace {
	/** How many tokens were missing, and when; and whether it was told since that there were none left. */
	readonly #spent = new Map<
		string,
		{ missing: number; at: number; told: boolean }
	>();

	/** @returns the milliseconds until the key has a token */
	wait(key: string, now: number): number {
		return Math.max(0, (this.#missing(key, now) - BURST + 1) * REFILL_MS);
	}

	/** @returns whether the key has run out of tokens; not again before it has half of them */
	spend(key: string, now: number): boolean {
		const left = this.#missing(key, now);
		const told = left > BURST / 2 && this.#spent.get(key)?.told === true;
		const out = left + 1 > BURST - 1;
		this.#spent.set(key, { missing: left + 1, at: now, told: told || out });
		return out && !told;
	}

	forget(key: string): void {
		this.#spent.delete(key);
	}

	#missing(key: string, now: number): number {
		const { missing, at } = this.#spent.get(key) ?? { missing: 0, at: now };
		return Math.max(0, missing - (now - at) / REFILL_MS);
	}
}
