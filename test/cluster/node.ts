/** A real Kubernetes of one node, in namespaces of its own: with it Deployments run, Services connect and names resolve. */
import { readdirSync, readFileSync, rmdirSync, statSync } from "node:fs";
import { access, mkdir, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import {
	allBinaries,
	type BinaryName,
	binaries,
	etcdVersion,
} from "./binaries.ts";
import { type ControlPlane, startControlPlane } from "./controlplane.ts";
import { type Image, writeImage } from "./images.ts";
import { prerequisites } from "./prerequisites.ts";
import {
	abandoned,
	type Child,
	type Log,
	Processes,
	type RunOptions,
	removeFolder,
	run,
	silent,
	until,
	workFolder,
} from "./processes.ts";
import { step } from "./steps.ts";

export interface Cluster extends ControlPlane {
	/** Path of the network namespace, for `nsenter --net=`. */
	netns: string;
	/** The command prefix that enters the cluster's network; there `*.svc` names resolve. */
	enter: string[];
	/**
	 * Runs a command in the cluster's network.
	 * @returns its standard output
	 * @throws Error with its standard error
	 */
	exec(command: string[], options?: RunOptions): Promise<string>;
	/** Starts a process in the cluster's network; it ends with the cluster at the latest. */
	spawn(name: string, command: string[], env?: Record<string, string>): Child;
	/** Gives the node an image; its name must not be one that is pulled: "localhost/NAME:TAG". */
	importImage(image: Image): Promise<void>;
	/** Path of a binary of the cluster, e.g. "etcdctl". */
	binary(name: BinaryName): string;
}

const nodeName = "node";
const nodeAddress = "10.77.0.1";
const dnsAddress = "10.96.0.10";
const podRange = "10.244.0.0/24";
const socket = "/run/containerd/containerd.sock";

/** The image of the proxies and of the example core etcd. */
export const etcdImage = `localhost/etcd:${etcdVersion}`;

/**
 * Starts the cluster: control plane, scheduler, containerd, kubelet, kube-proxy, CoreDNS; the node is Ready.
 * Needs root; installs Debian packages and builds binaries where they are missing.
 *
 * All of the node runs under one process that holds its PID, mount and network namespaces: when that one ends,
 * the kernel ends every container and removes every mount, interface and nft table with it.
 */
export async function startCluster(log: Log = silent): Promise<Cluster> {
	await prerequisites(log);
	const paths = await binaries(allBinaries, log);
	await removeCgroups(abandoned);
	const dir = await workFolder();
	const processes = new Processes(join(dir, "logs"));
	let controlPlane: ControlPlane | undefined;
	const stop = async () => {
		await processes.stop();
		await controlPlane?.stop();
		removeFolder(dir);
		await removeCgroups((hierarchy) => [join(hierarchy, basename(dir))]);
	};

	try {
		const holder = await startHolder(processes, dir, paths.pause);
		const netns = `/proc/${holder}/ns/net`;
		const enter = [
			"nsenter",
			"--target",
			String(holder),
			"--net",
			"--mount",
			"--",
		];
		const exec = (command: string[], options?: RunOptions) =>
			run([...enter, ...command], options);
		const ctr = (args: string[]) =>
			exec([paths.ctr, "--address", socket, "--namespace", "k8s.io", ...args]);
		// In the PID namespace, too: the end of the holder is the end of these.
		const spawnOnNode = (
			name: string,
			command: string[],
			env?: Record<string, string>,
		) =>
			processes.start(
				name,
				[...enter.slice(0, -1), "--pid", "--", ...command],
				env,
			);
		const importImage = async (image: Image) => {
			const archive = join(dir, `${image.name.replaceAll(/[/:]/g, "_")}.tar`);
			await writeImage(image, archive);
			await ctr(["images", "import", "--local", archive]);
			removeFolder(archive);
		};

		const runtime = step(log, "containerd with images", async () => {
			const child = spawnOnNode("containerd", [
				paths.containerd,
				`--config=${await containerdConfig(dir)}`,
			]);
			await until("containerd answers", async () => {
				child.mustRun();
				return (await ctr(["version"])) !== "";
			});
			for (const image of images(paths)) await importImage(image);
		});
		const api = step(log, "control plane", () =>
			startControlPlane({
				dir,
				netns,
				address: nodeAddress,
				controllerManager: true,
				log,
			}),
		);
		// Both are awaited whatever happens: what still starts when stop() runs would be left behind.
		const [started, imported] = await Promise.allSettled([api, runtime]);
		if (started.status === "rejected") throw started.reason;
		controlPlane = started.value;
		if (imported.status === "rejected") throw imported.reason;
		const { kubectl, kubeconfigFor } = controlPlane;

		await step(log, "node and DNS", async () => {
			const [scheduler, kubelet, proxy] = await Promise.all([
				kubeconfigFor("system:kube-scheduler"),
				kubeconfigFor(`system:node:${nodeName}`, ["system:nodes"]),
				kubeconfigFor("system:kube-proxy"),
			]);
			spawnOnNode("kube-scheduler", [
				...[
					paths["kube-scheduler"],
					`--kubeconfig=${scheduler}`,
					"--leader-elect=false",
					"--secure-port=0",
				],
			]);
			const kubeletProcess = spawnOnNode("kubelet", [
				...[
					paths.kubelet,
					`--config=${await kubeletConfig(dir)}`,
					`--kubeconfig=${kubelet}`,
				],
				...[`--hostname-override=${nodeName}`, `--node-ip=${nodeAddress}`],
				...[
					`--root-dir=${join(dir, "kubelet")}`,
					`--cert-dir=${join(dir, "kubelet/pki")}`,
				],
			]);
			spawnOnNode("kube-proxy", [
				paths["kube-proxy"],
				`--config=${await proxyConfig(dir, proxy)}`,
			]);
			await kubectl([
				"apply",
				"--filename",
				join(import.meta.dirname, "coredns.yaml"),
			]);
			await until(
				"the node is ready",
				async () => {
					kubeletProcess.mustRun();
					return (
						(await kubectl([
							"wait",
							"--for=condition=Ready",
							`node/${nodeName}`,
							"--timeout=10s",
						])) !== ""
					);
				},
				{ log },
			);
			await kubectl([
				"rollout",
				"status",
				"--namespace=kube-system",
				"deployment/coredns",
				"--timeout=60s",
			]);
		});

		return {
			...controlPlane,
			netns,
			enter,
			exec,
			spawn: (name, command, env) =>
				processes.start(name, [...enter, ...command], env),
			importImage,
			binary: (name) => paths[name],
			stop,
		};
	} catch (error) {
		await stop();
		throw error;
	}
}

/** Makes the node's namespaces. @returns the pid of the process that holds them */
async function startHolder(
	processes: Processes,
	dir: string,
	pause: string,
): Promise<number> {
	const child = processes.start("holder", [
		...[
			"unshare",
			"--net",
			"--mount",
			"--propagation=private",
			"--ipc",
			"--pid",
			"--fork",
			"--kill-child",
			"--mount-proc",
		],
		...[
			"--",
			"sh",
			join(import.meta.dirname, "holder.sh"),
			dir,
			nodeAddress,
			dnsAddress,
			pause,
		],
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
	return Number(
		readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8"),
	);
}

/** Removes the cgroups that `select` names in each hierarchy (version 1; in version 2 the root is the only one). */
async function removeCgroups(
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
		const code =
			error instanceof Error && "code" in error ? error.code : undefined;
		if (code !== "ENOENT" && code !== "ENOTDIR") throw error;
	}
	return true;
}

function images(paths: Record<BinaryName, string>): Image[] {
	const simple = (name: string, binary: BinaryName, user?: string): Image => ({
		name: `localhost/${name}`,
		files: { [`/usr/local/bin/${binary}`]: paths[binary] },
		entrypoint: [`/usr/local/bin/${binary}`],
		...(user && { user }),
	});
	return [
		simple("pause:1", "pause"),
		simple("coredns:v1.15.0", "coredns"),
		simple("sample-apiserver:v0.37.2", "sample-apiserver"),
		{
			name: etcdImage,
			files: {
				"/usr/local/bin/etcd": paths.etcd,
				"/usr/local/bin/etcdctl": paths.etcdctl,
			},
			command: ["/usr/local/bin/etcd"],
			user: "0:0",
		},
	];
}

async function containerdConfig(dir: string): Promise<string> {
	const cni = join(dir, "cni");
	const file = join(dir, "containerd.toml");
	const network = {
		cniVersion: "1.0.0",
		name: "pods",
		plugins: [
			{
				type: "bridge",
				bridge: "pods",
				isGateway: true,
				ipMasq: true,
				hairpinMode: true,
				ipam: {
					type: "host-local",
					ranges: [[{ subnet: podRange }]],
					routes: [{ dst: "0.0.0.0/0" }],
				},
			},
			{ type: "portmap", capabilities: { portMappings: true } },
		],
	};
	const runc = Bun.which("runc", { PATH: "/usr/sbin:/usr/bin" });
	await mkdir(cni, { recursive: true });
	await writeFile(join(cni, "10-pods.conflist"), JSON.stringify(network));
	// Without CAP_SYS_RESOURCE nobody may lower an OOM score, as a container in a container has it.
	await writeFile(
		file,
		`version = 3
root = "${join(dir, "containerd")}"
state = "/run/containerd"
[grpc]
address = "${socket}"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "localhost/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "${cni}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "${runc}"
`,
	);
	return file;
}

async function kubeletConfig(dir: string): Promise<string> {
	const file = join(dir, "kubelet.yaml");
	const config = {
		apiVersion: "kubelet.config.k8s.io/v1beta1",
		kind: "KubeletConfiguration",
		authentication: {
			webhook: { enabled: false },
			anonymous: { enabled: true },
		},
		authorization: { mode: "AlwaysAllow" },
		address: nodeAddress,
		healthzPort: 0,
		clusterDNS: [dnsAddress],
		clusterDomain: "cluster.local",
		containerRuntimeEndpoint: `unix://${socket}`,
		resolvConf: "",
		podLogsDir: join(dir, "pods"),
		volumePluginDir: join(dir, "volume-plugins"),
		cgroupDriver: "cgroupfs",
		cgroupsPerQOS: false,
		enforceNodeAllocatable: [],
		failCgroupV1: false,
		failSwapOn: false,
		localStorageCapacityIsolation: false,
		oomScoreAdj: 0,
		makeIPTablesUtilChains: false,
		// The machine's disk may be as full as it is: its images are not the cluster's.
		imageGCHighThresholdPercent: 100,
		evictionHard: {
			"memory.available": "50Mi",
			"nodefs.available": "1%",
			"nodefs.inodesFree": "1%",
		},
		// A changed Secret is in the pod's volume within seconds instead of a minute.
		syncFrequency: "5s",
	};
	await writeFile(file, JSON.stringify(config));
	return file;
}

async function proxyConfig(dir: string, kubeconfig: string): Promise<string> {
	const file = join(dir, "kube-proxy.yaml");
	const config = {
		apiVersion: "kubeproxy.config.k8s.io/v1alpha1",
		kind: "KubeProxyConfiguration",
		clientConnection: { kubeconfig },
		hostnameOverride: nodeName,
		mode: "nftables",
		clusterCIDR: podRange,
		conntrack: { maxPerCore: 0 },
		nftables: { minSyncPeriod: "100ms" },
		oomScoreAdj: 0,
	};
	await writeFile(file, JSON.stringify(config));
	return file;
}
