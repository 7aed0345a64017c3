/** Log lines on stderr: text for people, JSON for machines. Never a key, never a token. */
export type Level = "INFO" | "WARN" | "ERROR";
/** @param etcdstorage the one that the line is about, if it is about one */
export type Log = (level: Level, message: string, etcdstorage?: string) => void;

export function logger(format: "text" | "json"): Log {
	// A full disk, or a pipe that nobody reads any more, costs the lines and not the work.
	process.stderr.on("error", () => undefined);
	return (level, message, etcdstorage) => {
		const time = new Date().toISOString();
		const about = etcdstorage === undefined ? {} : { etcdstorage };
		const line =
			format === "json"
				? JSON.stringify({ time, level, ...about, message })
				: `${time} ${level.padEnd(5)} ${etcdstorage === undefined ? "" : `${etcdstorage}: `}${message}`;
		process.stderr.write(`${line}\n`);
	};
}

/** What is expected to fail says so in a sentence; of a bug, which is what JavaScript itself throws, all is shown. */
export function explain(error: unknown): string {
	const bugs = [RangeError, ReferenceError, SyntaxError, TypeError, URIError];
	return error instanceof Error && !bugs.some((bug) => error instanceof bug)
		? error.message
		: Bun.inspect(error);
}
