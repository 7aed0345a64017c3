/** A real Kubernetes API server on a real etcd, without a node: for tests at the level of the API. */
import { mkdir, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { binaries } from "./binaries.ts";
import { Authority, type Certificate } from "./certificates.ts";
import {
	abandoned,
	type Child,
	type Log,
	Processes,
	removeFolder,
	run,
	silent,
	until,
	workFolder,
} from "./processes.ts";

export interface ControlPlane {
	/** Folder with everything: certificates, logs, data. */
	dir: string;
	/** URL of the API server. */
	server: string;
	/** Path of a kubeconfig with the rights of system:masters. */
	kubeconfig: string;
	/** Path of the authority of the API server's serving certificate. */
	caFile: string;
	/** The API server's etcd, with a client certificate whose Common Name is empty. */
	etcd: { url: string; caFile: string; certFile: string; keyFile: string };
	/** Path of the audit log: JSON lines (audit.k8s.io/v1 Event), level Metadata, one line per request and one more as a watch begins. */
	auditLog: string;
	/**
	 * Runs kubectl as system:masters.
	 * @returns its standard output
	 * @throws Error with its standard error
	 */
	kubectl(args: string[], stdin?: string): Promise<string>;
	/**
	 * Writes a kubeconfig with a client certificate of its own.
	 * @param days validity; a negative number gives an expired one
	 * @returns its path
	 */
	kubeconfigFor(
		user: string,
		groups?: string[],
		days?: number,
	): Promise<string>;
	/**
	 * Writes a kubeconfig with a bearer token of a ServiceAccount (TokenRequest).
	 * @param durationSeconds at least 600, the API server's minimum
	 * @returns its path
	 */
	kubeconfigForServiceAccount(
		namespace: string,
		name: string,
		durationSeconds?: number,
	): Promise<string>;
	stopApiServer(signal?: "SIGTERM" | "SIGKILL"): Promise<void>;
	/** Starts it again at the same address; resolves when /readyz is ok. */
	startApiServer(): Promise<void>;
	/** Garbage collector, namespaces, deployments, ServiceAccounts and the rest. */
	startControllerManager(): Promise<void>;
	/** Ends all processes and removes the folder. */
	stop(): Promise<void>;
}

export interface ControlPlaneOptions {
	/** Work folder; by default a temporary one. */
	dir?: string;
	/** Path of a network namespace to run in, e.g. /run/netns/NAME. */
	netns?: string;
	/** IP address to listen on, default 127.0.0.1. */
	address?: string;
	/** Starts the controller manager, too. */
	controllerManager?: boolean;
	/** More flags for the API server; the last of a kind counts. */
	apiServerFlags?: string[];
	log?: Log;
}

/** The cluster IP of the Service kubernetes.default, first of --service-cluster-ip-range. */
const serviceRange = "10.96.0.0/16";
const serviceAddress = "10.96.0.1";

/** Starts etcd and kube-apiserver, on free ports or in a network namespace. */
export async function startControlPlane(
	options: ControlPlaneOptions = {},
): Promise<ControlPlane> {
	const {
		netns,
		address = "127.0.0.1",
		apiServerFlags = [],
		log = silent,
	} = options;
	const paths = await binaries(["etcd", "kube-apiserver", "kubectl"], log);
	abandoned(tmpdir()).forEach(removeFolder);
	const dir = options.dir ?? (await workFolder());
	const inNetns =
		netns === undefined ? [] : ["nsenter", `--net=${netns}`, "--"];
	const processes = new Processes(join(dir, "logs"));
	const removeOnExit = () => removeFolder(dir);
	process.once("exit", removeOnExit);

	try {
		const pki = await createPki(join(dir, "pki"), address);
		const etcd = { url: "", caFile: pki.etcd.certFile, ...pki.etcdClient };
		const [etcdPort, peerPort, serverPort] = freePorts(
			address,
			netns !== undefined,
		);
		etcd.url = `https://${address}:${etcdPort}`;
		const server = `https://${address}:${serverPort}`;

		const writeKubeconfig = async (
			name: string,
			user: Record<string, string>,
		) => {
			const path = join(dir, `${name}.kubeconfig`);
			await writeFile(
				path,
				await kubeconfig(server, pki.cluster.certFile, user),
				{ mode: 0o600 },
			);
			return path;
		};
		const userKubeconfig = async (
			name: string,
			subject: string,
			days?: number,
		) => {
			const certificate = await pki.cluster.issue(`client-${name}`, {
				subject,
				...(days === undefined ? {} : { days }),
			});
			return writeKubeconfig(name, await certificateUser(certificate));
		};
		// The manager as an administrator: with a ServiceAccount for each controller it starts 5 s later.
		const [adminKubeconfig, managerKubeconfig] = await Promise.all([
			userKubeconfig("admin", "/O=system:masters/CN=admin"),
			userKubeconfig(
				"controller-manager",
				"/O=system:masters/CN=system:kube-controller-manager",
			),
			writeFile(join(dir, "audit-policy.yaml"), auditPolicy),
		]);
		const kubectl = (args: string[], stdin?: string) =>
			run(
				[
					...inNetns,
					paths.kubectl,
					`--kubeconfig=${adminKubeconfig}`,
					`--cache-dir=${join(dir, "kubectl")}`,
					...args,
				],
				{ stdin },
			);

		const auditLog = join(dir, "audit.log");
		const etcdProcess = processes.start("etcd", [
			...inNetns,
			paths.etcd,
			`--data-dir=${join(dir, "etcd")}`,
			`--listen-client-urls=${etcd.url}`,
			`--advertise-client-urls=${etcd.url}`,
			`--listen-peer-urls=http://${address}:${peerPort}`,
			`--initial-advertise-peer-urls=http://${address}:${peerPort}`,
			`--initial-cluster=default=http://${address}:${peerPort}`,
			...["--client-cert-auth", `--trusted-ca-file=${pki.etcd.certFile}`],
			...[
				`--cert-file=${pki.etcdServer.certFile}`,
				`--key-file=${pki.etcdServer.keyFile}`,
			],
			"--unsafe-no-fsync",
			// Bookmarks and consistent reads from the API server's cache wait for these.
			"--watch-progress-notify-interval=5s",
			"--log-level=warn",
		]);

		let apiServer: Child | undefined;
		const startApiServer = async () => {
			if (apiServer?.running) return;
			const child = processes.start("kube-apiserver", [
				...inNetns,
				paths["kube-apiserver"],
				...[
					`--bind-address=${address}`,
					`--advertise-address=${address}`,
					`--secure-port=${serverPort}`,
				],
				// A Service's endpoint must not be a loopback address.
				...(netns === undefined ? ["--endpoint-reconciler-type=none"] : []),
				`--service-cluster-ip-range=${serviceRange}`,
				...[`--etcd-servers=${etcd.url}`, `--etcd-cafile=${etcd.caFile}`],
				...[
					`--etcd-certfile=${etcd.certFile}`,
					`--etcd-keyfile=${etcd.keyFile}`,
				],
				`--client-ca-file=${pki.cluster.certFile}`,
				...[
					`--tls-cert-file=${pki.apiServer.certFile}`,
					`--tls-private-key-file=${pki.apiServer.keyFile}`,
				],
				"--authorization-mode=Node,RBAC",
				...[`--service-account-key-file=${pki.serviceAccountKey}`],
				...[`--service-account-signing-key-file=${pki.serviceAccountKey}`],
				"--service-account-issuer=https://kubernetes.default.svc",
				...[`--requestheader-client-ca-file=${pki.frontProxy.certFile}`],
				"--requestheader-allowed-names=front-proxy-client",
				"--requestheader-username-headers=X-Remote-User",
				"--requestheader-group-headers=X-Remote-Group",
				"--requestheader-extra-headers-prefix=X-Remote-Extra-",
				...[
					`--proxy-client-cert-file=${pki.aggregator.certFile}`,
					`--proxy-client-key-file=${pki.aggregator.keyFile}`,
				],
				...[`--kubelet-client-certificate=${pki.kubeletClient.certFile}`],
				...[`--kubelet-client-key=${pki.kubeletClient.keyFile}`],
				"--kubelet-preferred-address-types=InternalIP",
				...[
					`--audit-policy-file=${join(dir, "audit-policy.yaml")}`,
					`--audit-log-path=${auditLog}`,
				],
				// Else open watches hold up the shutdown for a minute.
				"--shutdown-watch-termination-grace-period=1s",
				"--profiling=false",
				...apiServerFlags,
			]);
			apiServer = child;
			await until(
				"the API server is ready",
				async () => {
					etcdProcess.mustRun();
					child.mustRun();
					return (await kubectl(["get", "--raw=/readyz"])) === "ok";
				},
				{ log },
			);
		};

		await startApiServer();

		const controlPlane: ControlPlane = {
			dir,
			server,
			kubeconfig: adminKubeconfig,
			caFile: pki.cluster.certFile,
			etcd,
			auditLog,
			kubectl,
			startApiServer,
			async stopApiServer(signal = "SIGTERM") {
				await apiServer?.stop(signal, 30_000);
			},
			kubeconfigFor: (user, groups = [], days) =>
				userKubeconfig(
					fileName(user),
					`${groups.map((group) => `/O=${group}`).join("")}/CN=${user}`,
					days,
				),
			async kubeconfigForServiceAccount(
				namespace,
				name,
				durationSeconds = 3600,
			) {
				const duration = `--duration=${durationSeconds}s`;
				const token = await kubectl([
					"create",
					"token",
					name,
					`--namespace=${namespace}`,
					duration,
				]);
				return writeKubeconfig(`${namespace}.${name}`, { token: token.trim() });
			},
			async startControllerManager() {
				const child = processes.start("kube-controller-manager", [
					...inNetns,
					(await binaries(["kube-controller-manager"], log))[
						"kube-controller-manager"
					],
					`--kubeconfig=${managerKubeconfig}`,
					...[
						"--leader-elect=false",
						"--bind-address=127.0.0.1",
						"--secure-port=0",
					],
					`--service-account-private-key-file=${pki.serviceAccountKey}`,
					`--root-ca-file=${pki.cluster.certFile}`,
				]);
				await until(
					"the controller manager works",
					async () => {
						child.mustRun();
						return (
							(await kubectl([
								"get",
								"serviceaccount",
								"default",
								"--output=name",
							])) !== ""
						);
					},
					{ log },
				);
			},
			async stop() {
				await processes.stop();
				process.off("exit", removeOnExit);
				removeFolder(dir);
			},
		};
		if (options.controllerManager) await controlPlane.startControllerManager();
		return controlPlane;
	} catch (error) {
		await processes.stop();
		process.off("exit", removeOnExit);
		removeFolder(dir);
		throw error;
	}
}

interface Pki {
	cluster: Authority;
	frontProxy: Authority;
	etcd: Authority;
	apiServer: Certificate;
	aggregator: Certificate;
	kubeletClient: Certificate;
	etcdServer: Certificate;
	etcdClient: Certificate;
	serviceAccountKey: string;
}

/** Three authorities, as kubeadm has them: the API server refuses a common one for clients and for front proxies. */
async function createPki(dir: string, address: string): Promise<Pki> {
	await mkdir(dir, { recursive: true });
	const serviceAccountKey = join(dir, "service-account.key");
	const [cluster, frontProxy, etcd] = await Promise.all([
		Authority.create(join(dir, "cluster"), "cluster-ca"),
		Authority.create(join(dir, "front-proxy"), "front-proxy-ca"),
		Authority.create(join(dir, "etcd"), "etcd-ca"),
		run([
			"openssl",
			"ecparam",
			"-name",
			"prime256v1",
			"-genkey",
			"-noout",
			"-out",
			serviceAccountKey,
		]),
	]);
	const names = [`IP:${address}`, "DNS:localhost"];
	const serviceNames = [
		"kubernetes",
		"kubernetes.default",
		"kubernetes.default.svc",
	].map((name) => `DNS:${name}`);
	const [apiServer, aggregator, kubeletClient, etcdServer, etcdClient] =
		await Promise.all([
			cluster.issue("apiserver", {
				subject: "/CN=kube-apiserver",
				names: [...names, `IP:${serviceAddress}`, ...serviceNames],
			}),
			frontProxy.issue("aggregator", { subject: "/CN=front-proxy-client" }),
			cluster.issue("kubelet-client", {
				subject: "/O=system:masters/CN=kube-apiserver-kubelet-client",
			}),
			etcd.issue("server", { subject: "/O=etcd", names }),
			etcd.issue("client", { subject: "/" }),
		]);
	return {
		cluster,
		frontProxy,
		etcd,
		apiServer,
		aggregator,
		kubeletClient,
		etcdServer,
		etcdClient,
		serviceAccountKey,
	};
}

const auditPolicy = JSON.stringify({
	apiVersion: "audit.k8s.io/v1",
	kind: "Policy",
	omitStages: ["RequestReceived"],
	rules: [{ level: "Metadata" }],
});

async function base64(path: string): Promise<string> {
	return Buffer.from(await Bun.file(path).bytes()).toString("base64");
}

/** The user part of a kubeconfig, with the certificate inside. */
export async function certificateUser({
	certFile,
	keyFile,
}: Certificate): Promise<Record<string, string>> {
	return {
		"client-certificate-data": await base64(certFile),
		"client-key-data": await base64(keyFile),
	};
}

/** A kubeconfig without references to other files. JSON is YAML, too. */
async function kubeconfig(
	server: string,
	caFile: string,
	user: Record<string, string>,
): Promise<string> {
	const name = "etcdproxy-cluster";
	const content = {
		apiVersion: "v1",
		kind: "Config",
		clusters: [
			{
				name,
				cluster: { server, "certificate-authority-data": await base64(caFile) },
			},
		],
		users: [{ name, user }],
		contexts: [{ name, context: { cluster: name, user: name } }],
		"current-context": name,
	};
	return JSON.stringify(content, undefined, 2);
}

function fileName(user: string): string {
	return user.replaceAll(/[^\w.-]/g, "-");
}

/** Three ports: the usual ones in a network namespace, else free ones below the range of outgoing connections. */
function freePorts(
	address: string,
	isolated: boolean,
): [number, number, number] {
	if (isolated) return [2379, 2380, 6443];
	const free = new Set<number>();
	while (free.size < 3) {
		const port = 20_000 + Math.floor(Math.random() * 12_000);
		try {
			Bun.listen({ hostname: address, port, socket: { data() {} } }).stop(true);
			free.add(port);
		} catch (error) {
			if (
				!(
					error instanceof Error &&
					"code" in error &&
					error.code === "EADDRINUSE"
				)
			)
				throw error;
		}
	}
	const [etcd = 0, peer = 0, server = 0] = free;
	return [etcd, peer, server];
}
