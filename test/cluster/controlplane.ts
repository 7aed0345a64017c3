/** A real Kubernetes API server on a real etcd, without a node: for tests at the level of the API. */
import { writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { binaries } from "./binaries.ts";
import { type Certificate, createPki, serviceRange } from "./certificates.ts";
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
	/** Stores everything there; by default an etcd of its own is started. */
	etcd?: ControlPlane["etcd"];
	log?: Log;
}

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
	const stop = async () => {
		await processes.stop();
		process.off("exit", removeOnExit);
		removeFolder(dir);
	};

	try {
		const pki = await createPki(join(dir, "pki"), address);
		const [etcdPort, peerPort, serverPort] = freePorts(
			address,
			netns !== undefined,
		);
		const etcd = options.etcd ?? {
			url: `https://${address}:${etcdPort}`,
			caFile: pki.etcd.certFile,
			...pki.etcdClient,
		};
		const server = `https://${address}:${serverPort}`;

		// One user may have several, e.g. one with an expired certificate.
		let count = 0;
		const unique = (name: string) => `${name}.${++count}`;
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
			const file = unique(name);
			const certificate = await pki.cluster.issue(`client-${file}`, {
				subject,
				...(days === undefined ? {} : { days }),
			});
			return writeKubeconfig(file, await certificateUser(certificate));
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
		const peers = `http://${address}:${peerPort}`;
		const etcdFlags = flags({
			"data-dir": join(dir, "etcd"),
			"listen-client-urls": etcd.url,
			"advertise-client-urls": etcd.url,
			"listen-peer-urls": peers,
			"initial-advertise-peer-urls": peers,
			"initial-cluster": `default=${peers}`,
			"client-cert-auth": "true",
			"trusted-ca-file": etcd.caFile,
			"cert-file": pki.etcdServer.certFile,
			"key-file": pki.etcdServer.keyFile,
			"unsafe-no-fsync": "true",
			// Bookmarks and consistent reads from the API server's cache wait for these.
			"watch-progress-notify-interval": "5s",
			"log-level": "warn",
		});
		const serverFlags = flags({
			"bind-address": address,
			"advertise-address": address,
			"secure-port": String(serverPort),
			// A Service's endpoint must not be a loopback address.
			...(netns === undefined && { "endpoint-reconciler-type": "none" }),
			"service-cluster-ip-range": serviceRange,
			"etcd-servers": etcd.url,
			"etcd-cafile": etcd.caFile,
			"etcd-certfile": etcd.certFile,
			"etcd-keyfile": etcd.keyFile,
			"client-ca-file": pki.cluster.certFile,
			"tls-cert-file": pki.apiServer.certFile,
			"tls-private-key-file": pki.apiServer.keyFile,
			"authorization-mode": "Node,RBAC",
			"service-account-key-file": pki.serviceAccountKey,
			"service-account-signing-key-file": pki.serviceAccountKey,
			"service-account-issuer": "https://kubernetes.default.svc",
			"requestheader-client-ca-file": pki.frontProxy.certFile,
			"requestheader-allowed-names": "front-proxy-client",
			"requestheader-username-headers": "X-Remote-User",
			"requestheader-group-headers": "X-Remote-Group",
			"requestheader-extra-headers-prefix": "X-Remote-Extra-",
			"proxy-client-cert-file": pki.aggregator.certFile,
			"proxy-client-key-file": pki.aggregator.keyFile,
			"kubelet-client-certificate": pki.kubeletClient.certFile,
			"kubelet-client-key": pki.kubeletClient.keyFile,
			// The node's name does not resolve.
			"kubelet-preferred-address-types": "InternalIP",
			"audit-policy-file": join(dir, "audit-policy.yaml"),
			"audit-log-path": auditLog,
			// Else open watches hold up the shutdown for a minute.
			"shutdown-watch-termination-grace-period": "1s",
			profiling: "false",
		});
		const managerFlags = flags({
			kubeconfig: managerKubeconfig,
			"leader-elect": "false",
			"bind-address": "127.0.0.1",
			"secure-port": "0",
			"service-account-private-key-file": pki.serviceAccountKey,
			"root-ca-file": pki.cluster.certFile,
		});
		const start = (name: string, command: string[]) =>
			processes.start(name, [...inNetns, ...command]);

		const etcdProcess = options.etcd
			? undefined
			: start("etcd", [paths.etcd, ...etcdFlags]);
		let apiServer: Child | undefined;
		const startApiServer = async () => {
			if (apiServer?.running) return;
			const child = start("kube-apiserver", [
				paths["kube-apiserver"],
				...serverFlags,
				...apiServerFlags,
			]);
			apiServer = child;
			const ready = async () => {
				etcdProcess?.mustRun();
				child.mustRun();
				return (await kubectl(["get", "--raw=/readyz"])) === "ok";
			};
			await until("the API server is ready", ready, { log });
		};
		const startControllerManager = async () => {
			const name = "kube-controller-manager";
			const child = start(name, [
				(await binaries([name], log))[name],
				...managerFlags,
			]);
			const works = async () => {
				child.mustRun();
				return (
					(await kubectl([
						"get",
						"serviceaccount/default",
						"--output=name",
					])) !== ""
				);
			};
			await until("the controller manager works", works, { log });
		};

		await startApiServer();
		if (options.controllerManager) await startControllerManager();
		return {
			dir,
			server,
			kubeconfig: adminKubeconfig,
			caFile: pki.cluster.certFile,
			etcd,
			auditLog,
			kubectl,
			kubeconfigFor: (user, groups = [], days) =>
				userKubeconfig(
					fileName(user),
					`${groups.map((group) => `/O=${group}`).join("")}/CN=${user}`,
					days,
				),
			async kubeconfigForServiceAccount(namespace, name, seconds = 3600) {
				const where = [`--namespace=${namespace}`, `--duration=${seconds}s`];
				const token = (
					await kubectl(["create", "token", name, ...where])
				).trim();
				return writeKubeconfig(unique(`${namespace}.${name}`), { token });
			},
			startApiServer,
			async stopApiServer(signal = "SIGTERM") {
				await apiServer?.stop(signal, 30_000);
			},
			startControllerManager,
			stop,
		};
	} catch (error) {
		await stop();
		throw error;
	}
}

/** Command line flags from their names and values. */
function flags(values: Record<string, string>): string[] {
	return Object.entries(values).map(([name, value]) => `--${name}=${value}`);
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
