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
 * Removes cgroups whose processes are gone or going.
 * @param select names them, given the root of a hierarchy (version 1 has several, version 2 one)
 */
export async function removeCgroups(
	select: (hierarchy: string) => string[],
): Promise<void> {
	const root = "/sys/fs/cgroup";
	const hierarchies = [
		root,
		...readdirSync(root).map((name) => join(root, name)),
	];
	const folders = hierarchies.filter((path) => statSync(path).isDirectory());
	for (const cgroup of folders.flatMap(select)) {
		// Busy until the kernel has let go of the last process.
		await until(`${cgroup} is empty`, async () => removeCgroup(cgroup), {
			timeout: 10_000,
			interval: 20,
		});
	}
}

/** Removes a cgroup and those below it. @returns true when it is not there any more */
function removeCgroup(path: string): true {
	try {
		for (const entry of readdirSync(path, { withFileTypes: true })) {
			if (entry.isDirectory()) removeCgroup(join(path, entry.name));
		}
		rmdirSync(path);
	} catch (error) {
		if (!(error instanceof Error && "code" in error && error.code === "ENOENT"))
			throw error;
	}
	return true;
}
