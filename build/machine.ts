/** What the builds use of the machine: its programs, and a cache for what is fetched. */
import { mkdir, mkdtemp, rename, rm, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { basename, join } from "node:path";

/** Says one line. */
export type Log = (line: string) => void;

const cache = join(
	process.env.XDG_CACHE_HOME || join(homedir(), ".cache"),
	"etcdproxy-controller",
);

/**
 * Runs a program to its end.
 * @returns its standard output
 * @throws Error with what it says when it fails, or is not installed
 */
export async function run(
	command: [string, ...string[]],
	options: { cwd?: string; env?: Record<string, string> } = {},
): Promise<string> {
	const [program] = command;
	if (Bun.which(program) === null)
		throw new Error(`${program} is not installed here, or not in PATH`);
	const child = Bun.spawn(command, {
		stdin: "ignore",
		stdout: "pipe",
		stderr: "pipe",
		...(options.cwd !== undefined && { cwd: options.cwd }),
		env: { ...process.env, ...options.env },
	});
	const [stdout, stderr, code] = await Promise.all([
		child.stdout.text(),
		child.stderr.text(),
		child.exited,
	]);
	if (code !== 0)
		throw new Error(
			`${command.join(" ")}: exit code ${code}\n${(stderr || stdout).trim()}`,
		);
	return stdout;
}

/**
 * A folder that is made once and then kept.
 * @param name tells apart whatever must not be mistaken for each other: content by its hash
 * @param make fills the folder that it is given; when it fails, nothing is kept
 * @returns the folder's path
 */
export async function cached(
	name: string,
	make: (folder: string) => Promise<void>,
): Promise<string> {
	const folder = join(cache, name);
	if (await exists(folder)) return folder;
	await inScratchFolder(folder, async (scratch) => {
		await make(scratch);
		await rename(scratch, folder).catch(async (error: unknown) => {
			// Another process was faster: what it has made is the same.
			if (!(await exists(folder))) throw error;
		});
	});
	return folder;
}

/**
 * Lets something be made in a folder that is gone afterwards.
 * @param beside this path, so that what is made can be moved there
 */
export async function inScratchFolder<T>(
	beside: string,
	work: (folder: string) => Promise<T>,
): Promise<T> {
	const parent = join(beside, "..");
	await mkdir(parent, { recursive: true });
	const scratch = await mkdtemp(join(parent, `.${basename(beside)}-`));
	try {
		return await work(scratch);
	} finally {
		await rm(scratch, { recursive: true, force: true });
	}
}

const exists = (path: string): Promise<boolean> =>
	stat(path).then(
		() => true,
		() => false,
	);
