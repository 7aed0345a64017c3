/** What the tests against a real API server share: a control plane with everything installed, and controllers on it. */
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import type { EtcdStorage } from "../etcdstorage.ts";
import {
	type ControlPlane,
	startControlPlane,
} from "./cluster/controlplane.ts";

const root = resolve(import.meta.dir, "..");
export const NAMESPACE = "kube-apiserver-storage";
/** How long a test file's preparations may take: the first of all builds Kubernetes, unless `npm test` has done so. */
export const FIRST_BUILD = 30 * 60_000;

export interface Cluster extends ControlPlane {
	/** kubectl apply of one or more objects. */
	apply(...objects: object[]): Promise<void>;
	/** One object, or undefined when it is not there. */
	get<T = Json>(
		kind: string,
		name: string,
		namespace?: string,
	): Promise<T | undefined>;
}

// biome-ignore lint/suspicious/noExplicitAny: whatever the API server answers; tests look at single fields of it
export type Json = any;

/** A control plane and nothing in it. */
export async function startEmptyCluster(
	options: Parameters<typeof startControlPlane>[0] = {},
): Promise<Cluster> {
	const plane = await startControlPlane(options);
	return {
		...plane,
		async apply(...objects) {
			const list = { apiVersion: "v1", kind: "List", items: objects };
			await plane.kubectl(["apply", "-f", "-"], JSON.stringify(list));
		},
		async get(kind, name, namespace) {
			const where = namespace === undefined ? [] : ["-n", namespace];
			const text = await plane.kubectl([
				"get",
				kind,
				name,
				...where,
				"-o",
				"json",
				"--ignore-not-found",
			]);
			return text.trim() === "" ? undefined : JSON.parse(text);
		},
	};
}

/** Control plane, CRD, RBAC, and the core etcd's credentials. */
export async function startCluster(
	options: Parameters<typeof startControlPlane>[0] = {},
): Promise<Cluster> {
	const cluster = await startEmptyCluster(options);
	await install(cluster);
	await coreCredentials(cluster, NAMESPACE);
	return cluster;
}

/** CRD, RBAC and the rest, as a user installs them. */
export async function install(cluster: ControlPlane): Promise<void> {
	await cluster.kubectl([
		"apply",
		"-f",
		join(root, "artifacts/deployment/00-etcdproxy-controller.yaml"),
	]);
	await established(cluster);
}

/** Waits until EtcdStorages can be created. */
export const established = ({ kubectl }: ControlPlane): Promise<string> =>
	kubectl([
		"wait",
		"--for=condition=Established",
		"crd/etcdstorages.etcd.xmudrii.com",
	]);

/** The core etcd's credentials, in the controller's namespace: the control plane's own etcd serves as the core. */
export async function coreCredentials(
	{ kubectl, etcd }: ControlPlane,
	namespace: string,
): Promise<void> {
	const { caFile, certFile, keyFile } = etcd;
	const create = (...args: string[]) =>
		kubectl(["-n", namespace, "create", ...args]);
	await create(
		...["configmap", "etcd-coreserving-ca", `--from-file=ca.crt=${caFile}`],
	);
	await create(
		...["secret", "tls", "etcd-coreserving-cert"],
		...[`--cert=${certFile}`, `--key=${keyFile}`],
	);
}

/** The namespace of an API server, with its two targets and the rights on them. */
export const apiServerNamespace = (namespace: string): object[] => [
	{ apiVersion: "v1", kind: "Namespace", metadata: { name: namespace } },
	{
		apiVersion: "v1",
		kind: "ConfigMap",
		metadata: { name: "etcd-serving-ca", namespace },
	},
	{
		apiVersion: "v1",
		kind: "Secret",
		metadata: { name: "etcd-client-cert", namespace },
	},
	...targetRole(namespace),
];

/** Lets the controller's ServiceAccount fill these targets, and no others. */
export const targetRole = (
	namespace: string,
	configMaps = ["etcd-serving-ca"],
	secrets = ["etcd-client-cert"],
): object[] => [
	{
		apiVersion: "rbac.authorization.k8s.io/v1",
		kind: "Role",
		metadata: { name: "etcdproxy-targets", namespace },
		rules: [
			{
				apiGroups: [""],
				resources: ["configmaps"],
				resourceNames: configMaps,
				verbs: ["get", "patch"],
			},
			{
				apiGroups: [""],
				resources: ["secrets"],
				resourceNames: secrets,
				verbs: ["get", "patch"],
			},
		],
	},
	{
		apiVersion: "rbac.authorization.k8s.io/v1",
		kind: "RoleBinding",
		metadata: { name: "etcdproxy-targets", namespace },
		roleRef: {
			apiGroup: "rbac.authorization.k8s.io",
			kind: "Role",
			name: "etcdproxy-targets",
		},
		subjects: [
			{
				kind: "ServiceAccount",
				name: "etcdproxy-controller-sa",
				namespace: NAMESPACE,
			},
		],
	},
];

/** An EtcdStorage as of 2018, for the API server in the given namespace. */
export const etcdStorage = (
	name: string,
	namespace: string,
	spec: Partial<EtcdStorage["spec"]> = {},
): object => ({
	apiVersion: "etcd.xmudrii.com/v1alpha1",
	kind: "EtcdStorage",
	metadata: { name },
	spec: {
		caCertConfigMap: [{ name: "etcd-serving-ca", namespace }],
		clientCertSecret: [{ name: "etcd-client-cert", namespace }],
		signingCertificateValidity: "730h",
		servingCertificateValidity: "730h",
		clientCertificateValidity: "730h",
		...spec,
	},
});

export interface Controller {
	process: Bun.Subprocess;
	/** What it has logged so far. */
	log(): string;
	/** Its metrics, as text. */
	metrics(): Promise<string>;
	url: string;
	/** SIGTERM unless told, and wait for its end. Returns the exit code. */
	stop(signal?: NodeJS.Signals): Promise<number>;
}

export interface ControllerOptions {
	/** Default: with the rights of its ServiceAccount, and no others. */
	kubeconfig?: string;
	/** Program and its first arguments; default: controller.ts on this very Bun. */
	command?: string[];
	flags?: string[];
	env?: Record<string, string>;
	/** Do not wait until it is ready. */
	unready?: boolean;
}

let controllers = 0;

/** Starts the controller as its own process and waits until it is ready. */
export async function startController(
	cluster: ControlPlane,
	options: ControllerOptions = {},
): Promise<Controller> {
	const kubeconfig =
		options.kubeconfig ??
		(await cluster.kubeconfigForServiceAccount(
			NAMESPACE,
			"etcdproxy-controller-sa",
		));
	const logFile = join(
		cluster.dir,
		`controller-${process.pid}-${++controllers}.log`,
	);
	const address = `127.0.0.1:${freePort()}`;
	const child = Bun.spawn(
		[
			...(options.command ?? [process.execPath, join(root, "controller.ts")]),
			`--kubeconfig=${kubeconfig}`,
			`--etcd-core-url=${cluster.etcd.url}`,
			`--listen-addr=${address}`,
			...(options.flags ?? []),
		],
		{
			stdin: "ignore",
			stdout: Bun.file(logFile),
			stderr: Bun.file(logFile),
			env: { ...process.env, ...options.env },
		},
	);
	const url = `http://${address}`;
	const controller: Controller = {
		process: child,
		log: () => readFileSync(logFile, "utf8"),
		metrics: async () => (await fetch(`${url}/metrics`)).text(),
		url,
		stop(signal = "SIGTERM") {
			child.kill(signal);
			return child.exited;
		},
	};
	process.once("exit", () => child.kill("SIGKILL"));
	if (!options.unready)
		await until(
			async () => {
				if (child.exitCode !== null)
					throw new Error(`the controller ended: ${controller.log()}`);
				return (await fetch(`${url}/readyz`).catch(() => undefined))?.ok;
			},
			"the controller is ready",
			30_000,
		);
	return controller;
}

function freePort(): number {
	const server = Bun.serve({
		port: 0,
		hostname: "127.0.0.1",
		fetch: () => new Response(),
	});
	const { port = 0 } = server;
	server.stop(true);
	return port;
}

/**
 * Awaits a condition, looking every 50 ms.
 * @param condition a value that is neither undefined, null, false nor an empty text ends the wait and is returned
 * @throws Error naming what was waited for; what the condition throws, at once
 */
export async function until<T>(
	condition: () => T | Promise<T>,
	what: string,
	timeoutMs = 20_000,
): Promise<Exclude<T, undefined | null | false>> {
	const end = performance.now() + timeoutMs;
	for (;;) {
		const value = await condition();
		if (![undefined, null, false, ""].includes(value as never))
			return value as Exclude<T, undefined | null | false>;
		if (performance.now() > end)
			throw new Error(`waited ${timeoutMs / 1000}s in vain until ${what}`);
		await Bun.sleep(50);
	}
}

/** A condition of an EtcdStorage as "True Reason: message"; "" when it is not there. */
export async function condition(
	cluster: Cluster,
	name: string,
	type: string,
): Promise<string> {
	const storage = await cluster.get<EtcdStorage>("etcdstorage", name);
	const found = storage?.status?.conditions?.find((one) => one.type === type);
	return found ? `${found.status} ${found.reason}: ${found.message}` : "";
}

/** The events about an EtcdStorage, oldest first, as "Type Reason: message". */
export async function eventsOf(
	cluster: Cluster,
	name: string,
): Promise<string[]> {
	const text = await cluster.kubectl([
		"get",
		"events",
		"-n",
		"default",
		"-o",
		"json",
		"--sort-by=.metadata.creationTimestamp",
	]);
	return (JSON.parse(text).items as Json[])
		.filter((event) => event.involvedObject.name === name)
		.map((event) => `${event.type} ${event.reason}: ${event.message}`);
}
