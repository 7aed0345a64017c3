/** The child processes of a test cluster: started, watched, ended by pid, never left behind. */
import {
	closeSync,
	mkdirSync,
	openSync,
	readdirSync,
	readFileSync,
	rmSync,
} from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Says one line; a transient line reports a wait that still goes on, the next line may replace it. */
export type Log = (line: string, options?: { transient?: boolean }) => void;

export const silent: Log = () => {};

// The kernel ends the child when this process is gone, however it went (prctl(2) PR_SET_PDEATHSIG).
const leash =
	Bun.which("setpriv") === null ? [] : ["setpriv", "--pdeathsig", "KILL", "--"];

export interface RunOptions {
	env?: Record<string, string> | undefined;
	stdin?: string | undefined;
	cwd?: string | undefined;
}

/**
 * Runs a command to its end.
 * @returns its standard output
 * @throws Error with its standard error when the exit code is not 0
 */
export async function run(
	command: string[],
	options: RunOptions = {},
): Promise<string> {
	const child = Bun.spawn([...leash, ...command], {
		stdin: options.stdin === undefined ? "ignore" : new Blob([options.stdin]),
		stdout: "pipe",
		stderr: "pipe",
		env: { ...process.env, ...options.env },
		...(options.cwd === undefined ? {} : { cwd: options.cwd }),
	});
	const [stdout, stderr, code] = await Promise.all([
		child.stdout.text(),
		child.stderr.text(),
		child.exited,
	]);
	if (code !== 0) {
		throw new Error(
			`${command.join(" ")}: exit code ${code}\n${(stderr || stdout).trim()}`,
		);
	}
	return stdout;
}

/**
 * Polls until `check` gives something other than undefined or false; what it throws counts as "not yet".
 * @param what named by the error, e.g. "the API server is ready"
 * @throws Error after `timeout` ms (default 60 s), with the last reason
 */
export async function until<T>(
	what: string,
	check: () => Promise<T | false | undefined>,
	{
		timeout = 60_000,
		interval = 100,
		log = silent,
	}: { timeout?: number; interval?: number; log?: Log } = {},
): Promise<T> {
	const start = Date.now();
	let reason = "";
	for (;;) {
		try {
			const result = await check();
			if (result !== undefined && result !== false) return result;
		} catch (error) {
			if (error instanceof Gone) throw error;
			reason = error instanceof Error ? error.message : String(error);
		}
		const elapsed = Date.now() - start;
		if (elapsed > timeout) {
			throw new Error(
				`not in ${timeout / 1000} s: ${what}${reason && `\n${reason}`}`,
			);
		}
		log(`  waiting until ${what} ... ${Math.round(elapsed / 1000)} s`, {
			transient: true,
		});
		await Bun.sleep(interval);
	}
}

/** A process that others wait for has ended: no use to go on waiting. */
export class Gone extends Error {}

/** A long-running child process with its output in a file. */
export class Child {
	readonly name: string;
	readonly logFile: string;
	readonly #process: Bun.Subprocess;

	constructor(
		name: string,
		command: string[],
		logFile: string,
		env: Record<string, string> = {},
	) {
		this.name = name;
		this.logFile = logFile;
		const output = openSync(logFile, "a");
		try {
			this.#process = Bun.spawn([...leash, ...command], {
				stdin: "ignore",
				stdout: output,
				stderr: output,
				env: { ...process.env, ...env },
			});
		} finally {
			closeSync(output);
		}
		this.#process.unref();
	}

	get pid(): number {
		return this.#process.pid;
	}

	/** Resolves with the exit code, or 128 + signal number. */
	get exited(): Promise<number> {
		return this.#process.exited;
	}

	get running(): boolean {
		return this.#process.exitCode === null && this.#process.signalCode === null;
	}

	/** @throws Gone with the end of its log when the process has ended */
	mustRun(): void {
		if (this.running) return;
		const how = this.#process.exitCode ?? this.#process.signalCode;
		throw new Gone(`${this.name} has ended (${how})\n${this.logTail()}`);
	}

	/** The last lines of its output. */
	logTail(lines = 15): string {
		const tail = readFileSync(this.logFile, "utf8")
			.trimEnd()
			.split("\n")
			.slice(-lines);
		return `${this.logFile}:\n${tail.join("\n")}`;
	}

	kill(signal: NodeJS.Signals): void {
		this.#process.kill(signal);
	}

	/** Ends the process, by SIGKILL when it is still there after `grace` ms. */
	async stop(
		signal: NodeJS.Signals = "SIGTERM",
		grace = 10_000,
	): Promise<void> {
		if (!this.running) return;
		this.#process.ref();
		this.kill(signal);
		const timer = setTimeout(() => this.kill("SIGKILL"), grace);
		await this.exited;
		clearTimeout(timer);
	}
}

/** Children that belong and end together. */
export class Processes {
	readonly #logs: string;
	readonly #children: Child[] = [];

	/** @param logs folder of the output files, one for each name */
	constructor(logs: string) {
		this.#logs = logs;
		mkdirSync(logs, { recursive: true });
		process.once("exit", this.#killAll);
	}

	start(
		name: string,
		command: string[],
		env: Record<string, string> = {},
	): Child {
		const child = new Child(
			name,
			command,
			join(this.#logs, `${name}.log`),
			env,
		);
		this.#children.push(child);
		return child;
	}

	/** Ends them at once: what they hold is thrown away with them. */
	async stop(): Promise<void> {
		await Promise.all(
			this.#children.splice(0).map((child) => child.stop("SIGKILL")),
		);
		process.off("exit", this.#killAll);
	}

	readonly #killAll = () => {
		for (const child of this.#children)
			if (child.running) child.kill("SIGKILL");
	};
}

/** A file of a process, as proc(5) has them; undefined when the process has ended. */
export function processFile(
	pid: number | string,
	name: string,
): string | undefined {
	try {
		return readFileSync(`/proc/${pid}/${name}`, "utf8");
	} catch (error) {
		const { code = "" } = error as NodeJS.ErrnoException;
		if (["ENOENT", "ESRCH"].includes(code)) return undefined;
		throw error;
	}
}

/** The processes that have this among their arguments, or in a path among them. */
export const processesWith = (argument: string): number[] =>
	readdirSync("/proc")
		.filter((name) => /^\d+$/.test(name))
		// One may have ended since the folder was read.
		.filter((pid) => processFile(pid, "cmdline")?.includes(argument))
		.map(Number);

const prefix = "etcdproxy-cluster";

/** Start time of a running process in clock ticks after boot, as in proc(5) stat; with the pid it names a process for good. */
function startTime(pid: number | string): string | undefined {
	const stat = processFile(pid, "stat");
	// The second field, the name in parentheses, may itself contain spaces and parentheses.
	const fields = stat?.slice(stat.lastIndexOf(")") + 2).split(" ");
	return fields?.[0] === "Z" ? undefined : fields?.[19];
}

/** Makes a work folder whose name tells which process it belongs to; by default among the temporary files. */
export function workFolder(parent = tmpdir()): Promise<string> {
	return mkdtemp(
		join(parent, `${prefix}.${process.pid}.${startTime(process.pid) ?? 0}.`),
	);
}

/**
 * Paths in a folder that are named like the work folder of a process that has ended. Its children have died
 * with it; the caller removes the rest.
 */
export function abandoned(folder: string): string[] {
	return readdirSync(folder)
		.filter((name) => {
			const [first, pid, start] = name.split(".");
			return first === prefix && pid !== undefined && startTime(pid) !== start;
		})
		.map((name) => join(folder, name));
}

/** Removes a work folder; harmless when it is gone already. */
export function removeFolder(path: string): void {
	// A process that is being killed may still write.
	rmSync(path, {
		recursive: true,
		force: true,
		maxRetries: 10,
		retryDelay: 20,
	});
}
