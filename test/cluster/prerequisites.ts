/** What the one-node cluster needs from the machine. */
import { constants } from "node:fs";
import { access } from "node:fs/promises";
import { type Log, run, silent } from "./processes.ts";

/** A file that tells that a Debian package is there, by package. */
const packages = {
	runc: ["/usr/sbin/runc", "/usr/bin/runc"],
	"containernetworking-plugins": ["/usr/lib/cni/bridge"],
	nftables: ["/usr/sbin/nft"],
	iptables: ["/usr/sbin/iptables"],
	iproute2: ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"],
	conntrack: ["/usr/sbin/conntrack"],
	openssl: ["/usr/bin/openssl"],
	"util-linux": ["/usr/bin/setpriv"],
} as const;

const elsewhere =
	'To use a cluster you have instead (kind, minikube, any kubeconfig), see "Install" in README.md.';

/**
 * Why the one-node cluster cannot run here, or undefined if it can; for tests that are skipped then.
 * Missing Debian packages are no reason where root can install them.
 */
export async function obstacle(): Promise<string | undefined> {
	if (process.platform !== "linux") return "the one-node cluster needs Linux";
	if (process.getuid?.() !== 0)
		return "the one-node cluster needs root (namespaces, mounts, cgroups)";
	const missing = await missingPackages();
	if (missing.length > 0 && Bun.which("apt-get") === null) {
		return `the one-node cluster needs ${missing.join(", ")} (names of Debian packages), and there is no apt-get here`;
	}
	return undefined;
}

/**
 * Makes sure the one-node cluster can run: installs missing Debian packages.
 * @throws Error that says what is missing and where to go from there
 */
export async function prerequisites(log: Log = silent): Promise<void> {
	const reason = await obstacle();
	if (reason !== undefined) throw new Error(`${reason}.\n${elsewhere}`);
	const missing = await missingPackages();
	if (missing.length === 0) return;
	log(`Installing Debian packages: ${missing.join(", ")}`);
	const env = { DEBIAN_FRONTEND: "noninteractive" };
	await run(["apt-get", "update", "--quiet"], { env });
	await run(
		[
			"apt-get",
			"install",
			"--quiet",
			"--yes",
			"--no-install-recommends",
			...missing,
		],
		{ env },
	);
	const still = await missingPackages();
	if (still.length > 0)
		throw new Error(
			`still missing after apt-get install: ${still.join(", ")}.\n${elsewhere}`,
		);
}

async function missingPackages(): Promise<string[]> {
	const checked = await Promise.all(
		Object.entries(packages).map(async ([name, paths]) => {
			const present = await Promise.all(paths.map(isExecutable));
			return present.includes(true) ? [] : [name];
		}),
	);
	return checked.flat();
}

function isExecutable(path: string): Promise<boolean> {
	return access(path, constants.X_OK).then(
		() => true,
		() => false,
	);
}
