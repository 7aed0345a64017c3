/** An API server as tests and benchmarks use it: requests with an administrator's certificate, metrics, the errors in its log. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { binaries } from "./cluster/binaries.ts";
import {
	type ControlPlane,
	startControlPlane,
} from "./cluster/controlplane.ts";
import { Processes, until } from "./cluster/processes.ts";
import { type Endpoint, freePort } from "./dataplane.ts";
import type { Json } from "./harness.ts";

export interface ApiServer {
	/** Its requests' body as JSON, or text. @throws Error with what it answers when that is no success */
	request(method: string, path: string, body?: object): Promise<Json>;
	/** The value of a metric, summed over the series that have all of these labels. */
	metric(name: string, labels?: Record<string, string>): Promise<number>;
	/** Lines of its log that are errors, but for those of any new cluster. */
	errors(): string[];
}

/** What kube-apiserver has to say at its first start on any empty etcd. */
const OF_A_NEW_CLUSTER =
	/manifest file is empty|Found stale data|namespaces \\"kube-system\\" not found/;

interface User {
	"client-certificate-data": string;
	"client-key-data": string;
}

/** Requests to the API server at a URL, as the user of a kubeconfig. */
export function apiServer(
	url: string,
	kubeconfig: string,
	logFile: string,
): ApiServer {
	const user: User = JSON.parse(readFileSync(kubeconfig, "utf8")).users[0].user;
	const text = (base64: string) => Buffer.from(base64, "base64").toString();
	const tls = {
		cert: text(user["client-certificate-data"]),
		key: text(user["client-key-data"]),
		// The sample-apiserver makes a certificate of its own at every start.
		rejectUnauthorized: false,
	};
	const request: ApiServer["request"] = async (method, path, body) => {
		const response = await fetch(`${url}${path}`, {
			method,
			tls,
			headers: { "content-type": "application/json" },
			...(body && { body: JSON.stringify(body) }),
		});
		const answer = await response.text();
		if (!response.ok)
			throw new Error(`${method} ${path}: ${response.status}: ${answer}`);
		const json = response.headers.get("content-type")?.includes("json");
		// A watch is a JSON object a line.
		return json && !path.includes("watch=") ? JSON.parse(answer) : answer;
	};
	return {
		request,
		async metric(name, labels = {}) {
			const wanted = Object.entries(labels).map(
				([label, value]) => `${label}="${value}"`,
			);
			return String(await request("GET", "/metrics"))
				.split("\n")
				.filter(
					(line) =>
						line.startsWith(name) &&
						/^[{ ]/.test(line.slice(name.length)) &&
						wanted.every((one) => line.includes(one)),
				)
				.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
		},
		// klog: https://kubernetes.io/docs/concepts/cluster-administration/system-logs/
		errors: () =>
			readFileSync(logFile, "utf8")
				.split("\n")
				.filter(
					(line) => /^[EF]\d{4} /.test(line) && !OF_A_NEW_CLUSTER.test(line),
				),
	};
}

/** kube-apiserver with everything stored at an endpoint. */
export async function kubeApiServer(
	etcd: Endpoint,
): Promise<ApiServer & { plane: ControlPlane }> {
	const plane = await startControlPlane({
		etcd,
		// As every API server on a shared etcd should have it: README, "Connect an API server".
		apiServerFlags: ["--etcd-compaction-interval=0"],
	});
	const logFile = join(plane.dir, "logs/kube-apiserver.log");
	return { ...apiServer(plane.server, plane.kubeconfig, logFile), plane };
}

/** Kubernetes' example of an aggregated API server, with its objects at an endpoint. Authentication is the control plane's. */
export async function sampleApiServer(
	etcd: Endpoint,
	plane: ControlPlane,
): Promise<ApiServer & { stop(): Promise<void> }> {
	const name = "sample-apiserver";
	const binary = (await binaries([name]))[name];
	const processes = new Processes(join(plane.dir, "sample-logs"));
	const port = freePort();
	const child = processes.start(name, [
		binary,
		`--etcd-servers=${etcd.url}`,
		`--etcd-cafile=${etcd.caFile}`,
		`--etcd-certfile=${etcd.certFile}`,
		`--etcd-keyfile=${etcd.keyFile}`,
		"--etcd-compaction-interval=0",
		"--bind-address=127.0.0.1",
		`--secure-port=${port}`,
		`--cert-dir=${join(plane.dir, "sample-certificates")}`,
		`--kubeconfig=${plane.kubeconfig}`,
		`--authentication-kubeconfig=${plane.kubeconfig}`,
		`--authorization-kubeconfig=${plane.kubeconfig}`,
	]);
	const server = apiServer(
		`https://127.0.0.1:${port}`,
		plane.kubeconfig,
		child.logFile,
	);
	await until("the sample-apiserver is ready", async () => {
		child.mustRun();
		return (await server.request("GET", "/readyz")) === "ok";
	});
	return { ...server, stop: () => processes.stop() };
}
