/**
 * A work queue of keys, as controllers use it: a key that is added many times is worked on once, never by two workers
 * at the same time, and again if it was added meanwhile. Failures are retried with exponential backoff and jitter.
 * The idea is client-go's: https://pkg.go.dev/k8s.io/client-go/util/workqueue
 */
export interface QueueOptions {
	/** Keys worked on at once. */
	concurrency: number;
	/** Works on one key. Resolves to the milliseconds after which the key is due again, or undefined for never. */
	work(key: string): Promise<number | undefined>;
	/** Told of every failure; the key is retried in `retryMs`. */
	onError(key: string, error: unknown, retryMs: number): void;
}

const FIRST_RETRY = 250;
/** Also the longest time that what was broken may stay so after its cause has passed. */
const LAST_RETRY = 30_000;

export class Queue {
	/** Keys that can be worked on, in order, with the time at which they were added. */
	readonly #waiting = new Map<string, number>();
	readonly #running = new Set<string>();
	readonly #timers = new Map<string, ReturnType<typeof setTimeout>>();
	readonly #failures = new Map<string, number>();
	readonly #options: QueueOptions;
	#stopped = false;
	#drained: (() => void) | undefined;

	constructor(options: QueueOptions) {
		this.#options = options;
	}

	add(key: string): void {
		if (this.#stopped) return;
		this.#cancel(key);
		if (!this.#waiting.has(key)) this.#waiting.set(key, performance.now());
		this.#dispatch();
	}

	/** Nothing new is begun; resolves when what runs has ended. */
	stop(): Promise<void> {
		this.#stopped = true;
		for (const key of [...this.#timers.keys()]) this.#cancel(key);
		this.#waiting.clear();
		return new Promise((resolve) => {
			this.#drained = resolve;
			this.#checkDrained();
		});
	}

	/** Keys that wait to be worked on. */
	get depth(): number {
		return this.#waiting.size;
	}

	/** Seconds that the oldest of them has been waiting. */
	get age(): number {
		const [oldest] = this.#waiting.values();
		return oldest === undefined ? 0 : (performance.now() - oldest) / 1000;
	}

	#dispatch(): void {
		for (const key of this.#waiting.keys()) {
			if (this.#running.size >= this.#options.concurrency) return;
			if (this.#running.has(key)) continue;
			this.#waiting.delete(key);
			this.#running.add(key);
			void this.#run(key);
		}
	}

	async #run(key: string): Promise<void> {
		let again: number | undefined;
		try {
			again = await this.#options.work(key);
			this.#failures.delete(key);
		} catch (error) {
			const failures = this.#failures.get(key) ?? 0;
			this.#failures.set(key, failures + 1);
			again =
				Math.min(FIRST_RETRY * 2 ** failures, LAST_RETRY) *
				(0.75 + 0.5 * Math.random());
			this.#options.onError(key, error, again);
		}
		this.#running.delete(key);
		if (again !== undefined && !this.#waiting.has(key) && !this.#stopped)
			this.#timers.set(
				key,
				// Beyond 2^31 ms setTimeout fires at once.
				setTimeout(() => this.add(key), Math.min(again, 2 ** 31 - 1)),
			);
		this.#dispatch();
		this.#checkDrained();
	}

	#cancel(key: string): void {
		clearTimeout(this.#timers.get(key));
		this.#timers.delete(key);
	}

	#checkDrained(): void {
		if (this.#running.size === 0) this.#drained?.();
	}
}
