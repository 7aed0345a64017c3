/** The namespaces and the cgroup in which the test cluster's node lives. */
import { readdirSync, readFileSync, rmdirSync, statSync } from "node:fs";
import { access } from "node:fs/promises";
import { basename, join } from "node:path";
import { type Processes, until } from "./processes.ts";

export interface Namespaces {
	/** Path of the network namespace, for `nsenter --net=`. */
	netns: string;
	/** Command prefix: in the cluster's network and with its DNS, else as outside. */
	inNetwork: string[];
	/** Command prefix: in all namespaces and the cgroup of the node. */
	onNode: string[];
}

// Its process stays outside the PID namespace: signals reach it, and its /proc is the right one.
const enterNetwork = `mount --bind "$0" /etc/resolv.conf && exec "$@"`;

const enterNode = `
	for procs in /sys/fs/cgroup/"$0"/init/cgroup.procs /sys/fs/cgroup/*/"$0"/init/cgroup.procs; do
		[ ! -e "$procs" ] || echo 0 >"$procs"
	done
	holder=$1
	shift
	exec nsenter --target "$holder" --cgroup --net --mount --ipc --pid -- "$@"`;

/**
 * Makes the namespaces, held by one process at whose end the kernel ends and removes everything in them
 * (see holder.sh); the cgroup is named like the work folder and is left to `removeCgroups`.
 */
export async function createNamespaces(
	processes: Processes,
	dir: string,
	options: { address: string; dns: string; pause: string },
): Promise<Namespaces> {
	const script = join(import.meta.dirname, "holder.sh");
	const child = processes.start("holder", [
		"sh",
		script,
		dir,
		options.address,
		options.dns,
		options.pause,
	]);
	await until(
		"the node's namespaces are ready",
		async () => {
			child.mustRun();
			await access(join(dir, "holder.ready"));
			return true;
		},
		{ interval: 20 },
	);
	const holder = readFileSync(
		`/proc/${child.pid}/task/${child.pid}/children`,
		"utf8",
	).trim();
	const netns = `/proc/${holder}/ns/net`;
	const enterMount = [
		"nsenter",
		`--net=${netns}`,
		"--",
		"unshare",
		"--mount",
		"--",
	];
	return {
		netns,
		inNetwork: [
			...enterMount,
			"sh",
			"-c",
			enterNetwork,
			join(dir, "resolv.conf"),
		],
		onNode: ["sh", "-c", enterNode, basename(dir), holder],
	};
}

/**
 * Removes cgroups whose processes are gone or going. Synchronous, for use while the process exits.
 * @param select names them, given the root of a hierarchy (version 1 has several, version 2 one)
 * @throws Error when one is still in use after 5 s
 */
export function removeCgroups(select: (hierarchy: string) => string[]): void {
	const root = "/sys/fs/cgroup";
	const hierarchies = [
		root,
		...readdirSync(root).map((name) => join(root, name)),
	];
	const deadline = Date.now() + 5_000;
	for (const cgroup of hierarchies
		.filter((path) => statSync(path).isDirectory())
		.flatMap(select)) {
		// Busy until the kernel has let go of the last process.
		while (!removedCgroup(cgroup)) {
			if (Date.now() > deadline) throw new Error(`${cgroup} is still in use`);
			Bun.sleepSync(20);
		}
	}
}

/** Tries to remove a cgroup with those below it. @returns whether it is gone */
function removedCgroup(path: string): boolean {
	try {
		const below = readdirSync(path, { withFileTypes: true }).filter((entry) =>
			entry.isDirectory(),
		);
		if (!below.every((entry) => removedCgroup(join(path, entry.name))))
			return false;
		rmdirSync(path);
		return true;
	} catch (error) {
		if (!(error instanceof Error && "code" in error)) throw error;
		if (error.code === "ENOENT") return true;
		if (error.code === "EBUSY") return false;
		throw error;
	}
}
