/** What the node's programs read: configuration files and images. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Image } from "../../build/oci.ts";
import { type BinaryName, etcdVersion } from "./binaries.ts";

export const nodeName = "node";
export const nodeAddress = "10.77.0.1";
export const dnsAddress = "10.96.0.10";
export const containerdSocket = "/run/containerd/containerd.sock";
const podRange = "10.244.0.0/24";

/** The image of the example core etcd, and of etcd's own proxies. */
export const etcdImage = `localhost/etcd:${etcdVersion}`;

/** The image of this program: controller and gateway. */
export const programImage = "localhost/etcdproxy-controller:dev";

const pauseImage = "localhost/pause:1";

/** The images that stand in for those that a cluster would pull, with their names; one at a time, for they are large. */
export async function* nodeImages(
	paths: Record<BinaryName, string>,
): AsyncGenerator<[name: string, image: Image]> {
	const image = async (
		binaries: BinaryName[],
		config: Partial<Image["config"]>,
	): Promise<Image> => ({
		architecture: process.arch === "x64" ? "amd64" : process.arch,
		layers: [
			await Promise.all(
				binaries.map(async (name) => ({
					path: `/usr/local/bin/${name}`,
					content: await Bun.file(paths[name]).bytes(),
					mode: 0o755,
				})),
			),
		],
		config: { User: "65532:65532", Env: ["PATH=/usr/local/bin"], ...config },
	});
	const single = (binary: BinaryName) =>
		image([binary], { Entrypoint: [`/usr/local/bin/${binary}`] });
	yield [pauseImage, await single("pause")];
	yield ["localhost/coredns:v1.15.0", await single("coredns")];
	yield [
		"localhost/sample-apiserver:v0.37.2",
		await single("sample-apiserver"),
	];
	const etcd = await image(["etcd", "etcdctl"], {
		Cmd: ["/usr/local/bin/etcd"],
		// As etcd's own image: a pod that must not run as root has to say so.
		User: "0:0",
	});
	yield [etcdImage, etcd];
}

/** Writes the runtime's configuration and that of the pods' network. @returns the path of the former */
export async function containerdConfig(dir: string): Promise<string> {
	const cni = join(dir, "cni");
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
	await mkdir(cni, { recursive: true });
	await writeFile(join(cni, "10-pods.conflist"), JSON.stringify(network));
	const runtime = `plugins."io.containerd.cri.v1.runtime"`;
	const runc = Bun.which("runc", { PATH: "/usr/sbin:/usr/bin" });
	// restrict_oom_score_adj: without CAP_SYS_RESOURCE, as in a container, nobody may lower an OOM score.
	const config = `version = 3
root = "${join(dir, "containerd")}"
state = "/run/containerd"
[grpc]
address = "${containerdSocket}"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "${pauseImage}"
[${runtime}]
restrict_oom_score_adj = true
[${runtime}.cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "${cni}"
[${runtime}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[${runtime}.containerd.runtimes.runc.options]
BinaryName = "${runc}"
`;
	const file = join(dir, "containerd.toml");
	await writeFile(file, config);
	return file;
}

/** Writes the kubelet's configuration. @returns its path */
export async function kubeletConfig(dir: string): Promise<string> {
	const file = join(dir, "kubelet.yaml");
	const config = {
		apiVersion: "kubelet.config.k8s.io/v1beta1",
		kind: "KubeletConfiguration",
		// Reached from the cluster's own network only.
		authentication: {
			webhook: { enabled: false },
			anonymous: { enabled: true },
		},
		authorization: { mode: "AlwaysAllow" },
		address: nodeAddress,
		healthzPort: 0,
		clusterDNS: [dnsAddress],
		clusterDomain: "cluster.local",
		containerRuntimeEndpoint: `unix://${containerdSocket}`,
		resolvConf: "",
		podLogsDir: join(dir, "pods"),
		volumePluginDir: join(dir, "volume-plugins"),
		// No systemd; cgroups of version 1 or 2.
		cgroupDriver: "cgroupfs",
		cgroupsPerQOS: false,
		enforceNodeAllocatable: [],
		failCgroupV1: false,
		failSwapOn: false,
		localStorageCapacityIsolation: false,
		oomScoreAdj: 0,
		makeIPTablesUtilChains: false,
		// However full the machine's disk is: there is nothing to pull an image from again.
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

/** Writes kube-proxy's configuration. @returns its path */
export async function proxyConfig(
	dir: string,
	kubeconfig: string,
): Promise<string> {
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
