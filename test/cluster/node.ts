/** A real Kubernetes of one node, in namespaces of its own: Deployments run, Services connect, names resolve. */
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { type Image, writeArchive } from "../../build/oci.ts";
import { allBinaries, type BinaryName, binaries } from "./binaries.ts";
import { type ControlPlane, startControlPlane } from "./controlplane.ts";
import { createNamespaces, removeCgroups } from "./namespaces.ts";
import {
	containerdConfig,
	containerdSocket,
	dnsAddress,
	kubeletConfig,
	nodeAddress,
	nodeImages,
	nodeName,
	proxyConfig,
} from "./nodeconfig.ts";
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
	/**
	 * Runs a command in the cluster's network, where `*.svc` names resolve.
	 * @returns its standard output
	 * @throws Error with its standard error
	 */
	exec(command: string[], options?: RunOptions): Promise<string>;
	/** Starts a process in the cluster's network; it ends with the cluster at the latest. Output: logs/NAME.log. */
	spawn(name: string, command: string[], env?: Record<string, string>): Child;
	/** Gives the node an image; its name must be one that is never pulled: "localhost/NAME:TAG". */
	importImage(name: string, image: Image): Promise<void>;
	/** Path of a binary of the cluster, e.g. "etcdctl". */
	binary(name: BinaryName): string;
}

/**
 * Starts the cluster: control plane, scheduler, containerd, kubelet, kube-proxy, CoreDNS; the node is Ready.
 * Needs root; installs Debian packages and builds binaries where they are missing.
 * What an earlier cluster left behind whose process was killed is removed first.
 */
export async function startCluster(log: Log = silent): Promise<Cluster> {
	await prerequisites(log);
	const paths = await binaries(allBinaries, log);
	removeCgroups(abandoned);
	abandoned(tmpdir()).forEach(removeFolder);
	const dir = await workFolder();
	const processes = new Processes(join(dir, "logs"));
	const removeRemains = () => {
		removeFolder(dir);
		removeCgroups((hierarchy) => [join(hierarchy, basename(dir))]);
	};
	process.once("exit", removeRemains);
	let controlPlane: ControlPlane | undefined;
	const stop = async () => {
		await processes.stop();
		await controlPlane?.stop();
		process.off("exit", removeRemains);
		removeRemains();
	};

	try {
		const { netns, inNetwork, onNode } = await createNamespaces(
			processes,
			dir,
			{
				address: nodeAddress,
				dns: dnsAddress,
				pause: paths.pause,
			},
		);
		const ctr = [
			...onNode,
			paths.ctr,
			`--address=${containerdSocket}`,
			"--namespace=k8s.io",
		];
		const importImage = async (name: string, image: Image) => {
			const archive = join(dir, `${name.replaceAll(/[/:]/g, "_")}.tar`);
			await writeArchive(archive, [image], { name });
			await run([...ctr, "images", "import", "--local", archive]);
			removeFolder(archive);
		};

		// Both are awaited whatever happens: what still starts while stop() runs would be left behind.
		const [api, runtime] = await Promise.allSettled([
			step(log, "control plane", () =>
				startControlPlane({
					dir,
					netns,
					address: nodeAddress,
					controllerManager: true,
					// Aggregated API servers are reached at their pods, not through their Service's address: a connection to
					// that stays with a pod that ends, and what is under way on it at that moment fails.
					apiServerFlags: ["--enable-aggregator-routing=true"],
					log,
				}),
			),
			step(log, "containerd with images", async () => {
				const config = `--config=${await containerdConfig(dir)}`;
				const containerd = processes.start("containerd", [
					...onNode,
					paths.containerd,
					config,
				]);
				await until("containerd answers", async () => {
					containerd.mustRun();
					return (await run([...ctr, "version"])) !== "";
				});
				for await (const [name, image] of nodeImages(paths))
					await importImage(name, image);
			}),
		]);
		if (api.status === "rejected") throw api.reason;
		controlPlane = api.value;
		if (runtime.status === "rejected") throw runtime.reason;
		const { kubectl, kubeconfigFor } = controlPlane;

		await step(log, "node and DNS", async () => {
			const [schedulerUser, kubeletUser, proxyUser] = await Promise.all([
				kubeconfigFor("system:kube-scheduler"),
				kubeconfigFor(`system:node:${nodeName}`, ["system:nodes"]),
				kubeconfigFor("system:kube-proxy"),
			]);
			processes.start(
				"kube-scheduler",
				[...onNode, paths["kube-scheduler"]].concat(
					`--kubeconfig=${schedulerUser}`,
					"--leader-elect=false",
					"--secure-port=0",
				),
			);
			const kubelet = processes.start(
				"kubelet",
				[...onNode, paths.kubelet].concat(
					`--config=${await kubeletConfig(dir)}`,
					`--kubeconfig=${kubeletUser}`,
					`--hostname-override=${nodeName}`,
					`--node-ip=${nodeAddress}`,
					`--root-dir=${join(dir, "kubelet")}`,
					`--cert-dir=${join(dir, "kubelet/pki")}`,
				),
			);
			const proxyFlag = `--config=${await proxyConfig(dir, proxyUser)}`;
			processes.start("kube-proxy", [
				...onNode,
				paths["kube-proxy"],
				proxyFlag,
			]);
			await kubectl([
				"apply",
				"--filename",
				join(import.meta.dirname, "coredns.yaml"),
			]);
			await until("the node is there", async () => {
				kubelet.mustRun();
				return (
					(await kubectl(["get", `node/${nodeName}`, "--output=name"])) !== ""
				);
			});
			await kubectl([
				"wait",
				"--for=condition=Ready",
				`node/${nodeName}`,
				"--timeout=60s",
			]);
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
			exec: (command, options) => run([...inNetwork, ...command], options),
			spawn: (name, command, env) =>
				processes.start(name, [...inNetwork, ...command], env),
			importImage,
			binary: (name) => paths[name],
			stop,
		};
	} catch (error) {
		await stop();
		throw error;
	}
}
