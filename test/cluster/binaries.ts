/** The test cluster's binaries: found, or built by the Go toolchain from pinned sources. */
import { access, mkdir, readFile, rename } from "node:fs/promises";
import { homedir } from "node:os";
import { basename, join } from "node:path";
import {
	abandoned,
	type Log,
	removeFolder,
	run,
	silent,
	workFolder,
} from "./processes.ts";

/** Versions that go/kubernetes/go.mod pins. */
export const kubernetesVersion = "v1.37.2";
export const etcdVersion = "v3.7.3";

const version = "k8s.io/component-base/version";
const [, major, minor] = /^v(\d+)\.(\d+)/.exec(kubernetesVersion) ?? [];
// The API server reports v0.0.0 without these.
const kubernetesFlags = `-X ${version}.gitVersion=${kubernetesVersion} -X ${version}.gitMajor=${major} -X ${version}.gitMinor=${minor}`;

/** What one `go build` makes: binaries by name, with the package of each. */
const clusterGroups = [
	{
		title: "etcd, kube-apiserver and kubectl",
		module: "kubernetes",
		usually: "5 min",
		flags: ["-ldflags", `-s -w ${kubernetesFlags}`],
		packages: {
			etcd: "go.etcd.io/etcd/server/v3",
			etcdctl: "go.etcd.io/etcd/etcdctl/v3",
			"kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
			kubectl: "k8s.io/kubernetes/cmd/kubectl",
		},
	},
	{
		title: "kube-controller-manager and sample-apiserver",
		module: "kubernetes",
		usually: "1 min",
		flags: ["-ldflags", `-s -w ${kubernetesFlags}`],
		packages: {
			"kube-controller-manager":
				"k8s.io/kubernetes/cmd/kube-controller-manager",
			"sample-apiserver": "k8s.io/sample-apiserver",
		},
	},
	{
		title: "kube-scheduler, kubelet and kube-proxy",
		module: "kubernetes",
		usually: "1 min",
		flags: ["-ldflags", `-s -w ${kubernetesFlags}`],
		packages: {
			"kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
			kubelet: "k8s.io/kubernetes/cmd/kubelet",
			"kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
		},
	},
	{
		title: "containerd",
		module: "containerd",
		usually: "1 min",
		flags: ["-tags", "no_btrfs,no_devmapper,no_zfs", "-ldflags", "-s -w"],
		packages: {
			containerd: "github.com/containerd/containerd/v2/cmd/containerd",
			"containerd-shim-runc-v2":
				"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			ctr: "github.com/containerd/containerd/v2/cmd/ctr",
		},
	},
	{
		title: "coredns",
		module: "coredns",
		usually: "2 min",
		flags: ["-ldflags", "-s -w"],
		packages: { coredns: "github.com/coredns/coredns" },
	},
	{
		title: "pause",
		module: "pause",
		usually: "1 s",
		flags: ["-ldflags", "-s -w"],
		packages: { pause: "etcdproxy-controller/cluster/pause" },
	},
] as const;

/** Clients of etcd, of HTTP/2 and of TLS, and judges of certificates, of alerts and of images, for tests and benchmarks: the cluster itself needs none. */
const clientGroups = [
	{
		title: "clients of etcd",
		module: "etcd",
		usually: "1 min",
		flags: ["-ldflags", "-s -w"],
		packages: {
			etcddescribe: "etcdproxy-controller/cluster/etcd/etcddescribe",
			etcdload: "etcdproxy-controller/cluster/etcd/etcdload",
			etcdscript: "etcdproxy-controller/cluster/etcd/etcdscript",
		},
	},
	{
		title: "crane",
		module: "crane",
		usually: "30 s",
		flags: ["-ldflags", "-s -w"],
		packages: { crane: "github.com/google/go-containerregistry/cmd/crane" },
	},
	{
		title: "h2spec",
		module: "h2spec",
		usually: "5 s",
		flags: ["-ldflags", "-s -w"],
		packages: { h2spec: "github.com/summerwind/h2spec/cmd/h2spec" },
	},
	{
		title: "tlspair",
		module: "tlspair",
		usually: "2 s",
		flags: ["-ldflags", "-s -w"],
		packages: { tlspair: "etcdproxy-controller/cluster/tlspair" },
	},
	{
		title: "zlint",
		module: "zlint",
		usually: "15 s",
		flags: ["-ldflags", "-s -w"],
		packages: { zlint: "github.com/zmap/zlint/v3/cmd/zlint" },
	},
	{
		title: "promtool",
		module: "prometheus",
		usually: "3 min",
		// Of what finds targets, only what it cannot be built without: that includes Kubernetes.
		flags: ["-tags", "remove_all_sd,netgo", "-ldflags", "-s -w"],
		packages: { promtool: "github.com/prometheus/prometheus/cmd/promtool" },
	},
	{
		title: "helm",
		module: "helm",
		usually: "2 min",
		flags: ["-ldflags", "-s -w"],
		packages: { helm: "helm.sh/helm/v4/cmd/helm" },
	},
] as const;

const groups = [...clusterGroups, ...clientGroups];

type Group = (typeof groups)[number];
type NamesOf<G> = G extends { packages: infer P } ? keyof P : never;
export type BinaryName = NamesOf<(typeof clusterGroups)[number]>;
export type ClientName = NamesOf<(typeof clientGroups)[number]>;

/** Every binary of the cluster. */
export const allBinaries = clusterGroups.flatMap(
	(group) => Object.keys(group.packages) as BinaryName[],
);

/** All of these. */
export const allClients = clientGroups.flatMap(
	(group) => Object.keys(group.packages) as ClientName[],
);

const cache = join(
	process.env.XDG_CACHE_HOME || join(homedir(), ".cache"),
	"etcdproxy-controller",
);

/**
 * Absolute paths of the named binaries. Looks in the folder KUBEBUILDER_ASSETS (the convention of
 * controller-runtime's envtest), then in the cache, then builds the groups that are missing.
 * @throws Error with the way out when there is something to build and no Go toolchain
 */
export async function binaries<Name extends BinaryName | ClientName>(
	names: readonly Name[],
	log: Log = silent,
): Promise<Record<Name, string>> {
	const found = await fromAssets(log);
	const wanted = groups.filter((group) =>
		names.some((name) => name in group.packages && !found.has(name)),
	);
	const folders = await Promise.all(
		wanted.map(async (group) => ({ group, folder: await folderOf(group) })),
	);
	const missing = await Promise.all(
		folders.map(async (each) => ({
			...each,
			cached: await exists(each.folder),
		})),
	);
	const due = missing.filter(({ cached }) => !cached);
	if (due.length > 0) {
		if (Bun.which("go") === null) {
			throw new Error(
				`${due.map(({ group }) => group.title).join("; ")}: to be built, but there is no Go toolchain in PATH.\n` +
					"Install Go 1.26.6 or newer (https://go.dev/doc/install), or name a folder with " +
					`etcd ${etcdVersion}, kube-apiserver and kubectl ${kubernetesVersion} in KUBEBUILDER_ASSETS.`,
			);
		}
		const list = due
			.map(({ group }) => `${group.title} (usually ${group.usually})`)
			.join(", ");
		log(
			`Building once, kept in ${cache}: ${list}; the times are those of 2 cores.`,
		);
	}
	for (const { group, folder } of due) await build(group, folder, log);
	for (const { group, folder } of folders) {
		for (const name of Object.keys(group.packages)) {
			if (!found.has(name)) found.set(name, join(folder, name));
		}
	}
	return Object.fromEntries(
		names.map((name) => [name, found.get(name)]),
	) as Record<Name, string>;
}

/** What KUBEBUILDER_ASSETS offers in the pinned version; says so where a version is another. */
async function fromAssets(log: Log): Promise<Map<string, string>> {
	const found = new Map<string, string>();
	const folder = process.env.KUBEBUILDER_ASSETS;
	if (!folder) return found;
	const questions = [
		["etcd", ["--version"], etcdVersion.slice(1)],
		["kube-apiserver", ["--version"], kubernetesVersion],
		["kubectl", ["version", "--client"], kubernetesVersion],
	] as const;
	for (const [name, question, answer] of questions) {
		const path = join(folder, name);
		if (!(await exists(path))) continue;
		const version =
			(await run([path, ...question])).trim().split("\n", 1)[0] ?? "";
		if (version.split(/\s/).includes(answer)) found.set(name, path);
		else
			log(
				`KUBEBUILDER_ASSETS: ${name} is "${version}", not ${answer}; left aside`,
			);
	}
	return found;
}

function moduleFolder(group: Group): string {
	return join(import.meta.dirname, "go", group.module);
}

/** Where a group's binaries are cached: named by everything that decides their bytes but the toolchain. */
async function folderOf(group: Group): Promise<string> {
	const hash = new Bun.CryptoHasher("sha256");
	const module = moduleFolder(group);
	const files = await Array.fromAsync(new Bun.Glob("**/*").scan(module));
	for (const file of files.sort())
		hash.update(await readFile(join(module, file)));
	hash.update(JSON.stringify([group.flags, group.packages]));
	return join(cache, `${group.module}-${hash.digest("hex").slice(0, 16)}`);
}

async function build(group: Group, folder: string, log: Log): Promise<void> {
	await mkdir(cache, { recursive: true });
	abandoned(cache).forEach(removeFolder);
	const scratch = await workFolder(cache);
	const start = Date.now();
	const seconds = () => `${Math.round((Date.now() - start) / 1000)} s`;
	const progress = setInterval(
		() =>
			log(
				`  building ${group.title} (usually ${group.usually}) ... ${seconds()}`,
				{ transient: true },
			),
		1_000,
	);
	try {
		await run(
			[
				"go",
				"build",
				"-trimpath",
				"-buildvcs=false",
				"-mod=readonly",
				...group.flags,
				"-o",
				`${scratch}/`,
			].concat(Object.values(group.packages)),
			// The toolchain at hand, not one that go.mod would fetch; static binaries, for images that hold nothing else.
			{
				cwd: moduleFolder(group),
				env: { CGO_ENABLED: "0", GOTOOLCHAIN: "local", GOFLAGS: "" },
			},
		);
		for (const [name, path] of Object.entries(group.packages)) {
			await rename(join(scratch, outputName(path)), join(scratch, name));
		}
		await rename(scratch, folder).catch(async (error) => {
			// Another process was faster: its binaries are the same.
			if (!(await exists(folder))) throw error;
		});
	} finally {
		clearInterval(progress);
		removeFolder(scratch);
	}
	log(`Built ${group.title} (${seconds()})`);
}

/** The name go build gives a package's binary: the last element of its path that is not a major version. */
function outputName(path: string): string {
	return basename(path.replace(/\/v\d+$/, ""));
}

function exists(path: string): Promise<boolean> {
	return access(path).then(
		() => true,
		() => false,
	);
}
