/** What a person sees of a long run: a line for each step with its duration, and what a wait waits for. */
import type { Log } from "./processes.ts";

/** A log for standard output. On a terminal a transient line is overwritten by the next; else it is shown now and then. */
export function terminalLog(): Log {
	const terminal = process.stdout.isTTY;
	const pause = 15_000;
	let due = Date.now() + pause;
	return (line, { transient = false } = {}) => {
		if (terminal) {
			const clear = "\r\x1b[K";
			process.stdout.write(
				transient
					? clear + line.slice(0, process.stdout.columns - 1)
					: `${clear}${line}\n`,
			);
		} else if (!transient || Date.now() > due) {
			process.stdout.write(`${line}\n`);
			due = Date.now() + pause;
		}
	};
}

/** Runs one step and says its title and duration when it is done. */
export async function step<T>(
	log: Log,
	title: string,
	work: () => Promise<T>,
): Promise<T> {
	const start = performance.now();
	const tick = () =>
		log(`  ${title} ... ${seconds(start)}`, { transient: true });
	tick();
	const timer = setInterval(tick, 1_000);
	try {
		const result = await work();
		log(`✓ ${title} (${seconds(start)})`);
		return result;
	} catch (error) {
		log(`✗ ${title} (${seconds(start)})`);
		throw error;
	} finally {
		clearInterval(timer);
	}
}

function seconds(start: number): string {
	return `${((performance.now() - start) / 1000).toFixed(1)} s`;
}
