/** Which proxies are not known to verify clients with a bundle: the judgement, and asking them through a real API server. */
import {
	afterAll,
	beforeAll,
	describe,
	expect,
	setDefaultTimeout,
	test,
} from "bun:test";
import { createHash } from "node:crypto";
import { readFile, rename, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { connect } from "node:net";
import { join } from "node:path";
import { ApiError, Kube, loadKubeConfig } from "../kube.ts";
import { hash } from "../manifests.ts";
import {
	type Answer,
	isAsked,
	judge,
	type Pod,
	proxiesBehind,
} from "../proxies.ts";
import { CLIENT_CA_HASH } from "../workload.ts";
import { workFolder } from "./cluster/processes.ts";
import { type DataPlane, type Gateway, startDataPlane } from "./dataplane.ts";
import {
	type Cluster,
	FIRST_BUILD,
	type Json,
	NAMESPACE,
	startCluster,
} from "./harness.ts";

setDefaultTimeout(60_000);

const GATEWAY = "/usr/local/bin/etcdproxy-controller";
const ETCD = "/usr/local/bin/etcd";

interface Description {
	program?: string;
	/** In place of the pod's only container. */
	containers?: { command?: string[] }[];
	phase?: string;
	ready?: boolean;
	terminating?: boolean;
	templateHash?: string;
}

const pod = ({
	program = GATEWAY,
	containers = [{ command: [program, "grpc-proxy", "start"] }],
	phase = "Running",
	ready = true,
	terminating = false,
	templateHash,
}: Description): Pod => ({
	apiVersion: "v1",
	kind: "Pod",
	metadata: {
		name: "etcd-x-1",
		namespace: "ns",
		...(terminating && { deletionTimestamp: "2026-01-01T00:00:00Z" }),
		...(templateHash && { annotations: { [CLIENT_CA_HASH]: templateHash } }),
	},
	spec: { containers },
	status: {
		phase,
		conditions: [
			{ type: "Initialized", status: "True" },
			{ type: "Ready", status: ready ? "True" : "False" },
		],
	},
});

const failed = (code: number, reason: string, message = "words") =>
	new ApiError(
		"get",
		{ apiVersion: "v1", kind: "Pod", namespace: "ns", name: "etcd-x-1:2381" },
		{ code, reason, message },
	);
const told = (sha256: string): Answer => ({ body: { sha256 } });
const WANTED = { sha256: "new", templateHash: "new" };
const WORDS = "(get Pod ns/etcd-x-1:2381: ";

describe("a gateway", () => {
	test.each<[string, Description, Answer | undefined, string]>([
		["with the bundle", {}, told("new"), ""],
		["with the bundle, not ready", { ready: false }, told("new"), ""],
		["with the bundle, about to go", { terminating: true }, told("new"), ""],
		[
			"with another",
			{},
			told("old"),
			"ProxyNotUpdated: has not loaded the new client CA yet; the kubelet brings it within two minutes",
		],
		[
			"with another, about to go",
			{ terminating: true, ready: false },
			told("old"),
			"ProxyNotUpdated: has not loaded the new client CA yet; the kubelet brings it within two minutes",
		],
		[
			"that has not started",
			{ phase: "Pending", ready: false },
			undefined,
			"ProxyNotUpdated: is Pending; it reads the new client CA when it starts",
		],
		["that has ended well", { phase: "Succeeded" }, undefined, ""],
		["that was evicted", { phase: "Failed" }, undefined, ""],
		["that is gone since", {}, failed(404, "NotFound"), ""],
		[
			"that cannot be reached",
			{},
			failed(503, "ServiceUnavailable"),
			`ProxyNotUpdated: has not told yet which client CA it has loaded ${WORDS}ServiceUnavailable: words)`,
		],
		[
			"that does not answer",
			{},
			failed(504, "Timeout"),
			`ProxyNotUpdated: has not told yet which client CA it has loaded ${WORDS}Timeout: words)`,
		],
		[
			"for which the API server has no time",
			{},
			failed(429, "TooManyRequests"),
			`ProxyNotUpdated: has not told yet which client CA it has loaded ${WORDS}TooManyRequests: words)`,
		],
		[
			"that may not be asked",
			{},
			failed(403, "Forbidden"),
			`ProxyUnknown!: cannot be asked which client CA it has loaded: etcdproxy-controller may not. Let the Role ns/etcdproxy-controller-role list pods and get pods/proxy, as artifacts/deployment/00-etcdproxy-controller.yaml does. ${WORDS}Forbidden: words)`,
		],
		[
			"of an older version",
			{},
			failed(404, "HTTP 404"),
			"ProxyUnknown!: does not tell which client CA it has loaded: it runs an older etcdproxy-controller. Let --etcd-proxy-image name the image of this one, which replaces the pods",
		],
		[
			"that the API server does not connect to",
			{},
			failed(400, "BadRequest"),
			`ProxyUnknown!: cannot be asked which client CA it has loaded ${WORDS}BadRequest: words). Delete the pod if that stays so; another takes its place`,
		],
		[
			"that speaks no JSON",
			{},
			failed(0, "Malformed"),
			`ProxyUnknown!: cannot be asked which client CA it has loaded ${WORDS}Malformed: words). Delete the pod if that stays so; another takes its place`,
		],
		...[null, [], "new", { sha256: 1 }, {}].map(
			(body): [string, Description, Answer, string] => [
				`that answers ${JSON.stringify(body)}`,
				{},
				{ body },
				"ProxyUnknown!: does not tell which client CA it has loaded, but something else: is its port 2381 the gateway's? Delete the pod if it is none",
			],
		),
	])("%s", (_, description, answer, expected) => {
		const one = pod({ ...description, templateHash: "of no account" });
		expect(isAsked(one)).toBe(answer !== undefined);
		expect(verdict(one, answer)).toBe(expected);
	});
});

describe("a proxy of etcd's is not asked, and", () => {
	test.each<[string, Description, string]>([
		["has the bundle", { templateHash: "new" }, ""],
		[
			"has the bundle when it is about to go",
			{ templateHash: "new", ready: false, terminating: true },
			"",
		],
		[
			"has not started with it",
			{ templateHash: "new", ready: false },
			"ProxyNotUpdated: has the new client CA, but is not ready yet",
		],
		[
			"is Pending",
			{ templateHash: "new", ready: false, phase: "Pending" },
			"ProxyNotUpdated: has the new client CA, but is not ready yet",
		],
		[
			"has another",
			{ templateHash: "old" },
			"ProxyNotUpdated: is being replaced by one with the new client CA",
		],
		[
			"has none that is known",
			{},
			"ProxyNotUpdated: is being replaced by one with the new client CA",
		],
		[
			"has another when it is about to go",
			{ templateHash: "old", terminating: true },
			"ProxyNotUpdated: has the former client CA, and is about to end",
		],
		["has ended", { templateHash: "old", phase: "Failed" }, ""],
	])("%s", (_, description, expected) => {
		const one = pod({ ...description, program: ETCD });
		expect(isAsked(one)).toBeFalse();
		expect(verdict(one)).toBe(expected);
	});
});

test("what a pod runs is told by its command, beside whatever else runs in it", () => {
	const sidecars = [{}, { command: ["/bin/envoy"] }, { command: [] }];
	const runs = (program: string) =>
		pod({ containers: [...sidecars, { command: [program] }] });
	const asked = ["/etcdproxy-controller", "/bin/etcdproxy", "", "/etcd/run"];
	expect(asked.filter((program) => !isAsked(runs(program)))).toEqual([]);
	const etcds = ["etcd", "/etcd", "/usr/local/bin/etcd"];
	expect(etcds.filter((program) => isAsked(runs(program)))).toEqual([]);
	expect(isAsked(pod({ containers: sidecars }))).toBeTrue();
});

/** `reason: what is said of the pod`, the reason of an obstacle with "!"; "" when there is nothing to wait for. */
function verdict(one: Pod, answer?: Answer): string {
	const wait = judge(one, answer, WANTED);
	if (wait === undefined) return "";
	expect(wait.who).toBe("Pod ns/etcd-x-1");
	expect(wait.message).toStartWith(`${wait.who} `);
	const what = wait.message.slice(wait.who.length + 1);
	return `${wait.reason}${wait.obstacle ? "!" : ""}: ${what}`;
}

describe("through a real API server", () => {
	let dir: string;
	let cluster: Cluster;
	let plane: DataPlane;
	let first: Gateway, second: Gateway;
	let kube: Kube;
	let bundle: string;
	const cleanup: (() => unknown)[] = [];
	/** Where what goes to port 2381 of a pod's address ends up: a port of ours, or nowhere. */
	const ports = new Map<string, number>();

	/**
	 * A pod's network in the API server's eyes: an HTTP CONNECT proxy, for it dials no loopback addresses.
	 * https://kubernetes.io/docs/tasks/extend-kubernetes/setup-konnectivity/
	 */
	async function podNetwork(): Promise<string> {
		const socket = join(dir, "pods.sock");
		const server = createServer();
		server.on("connect", ({ url = "" }, client) => {
			client.on("error", () => client.destroy());
			const port = ports.get(url);
			if (port === undefined)
				return client.end("HTTP/1.1 503 Service Unavailable\r\n\r\n");
			const upstream = connect(port, "127.0.0.1", () => {
				client.write("HTTP/1.1 200 Connection established\r\n\r\n");
				client.pipe(upstream).pipe(client);
			});
			upstream.on("error", () => client.destroy());
			client.on("close", () => upstream.destroy());
		});
		await new Promise<void>((resolve) => server.listen(socket, resolve));
		cleanup.push(() => server.close());
		const config = join(dir, "egress.json");
		const connection = {
			proxyProtocol: "HTTPConnect",
			transport: { uds: { udsName: socket } },
		};
		await writeFile(
			config,
			JSON.stringify({
				apiVersion: "apiserver.k8s.io/v1beta1",
				kind: "EgressSelectorConfiguration",
				egressSelections: [{ name: "cluster", connection }],
			}),
		);
		return `--egress-selector-config-file=${config}`;
	}

	beforeAll(async () => {
		dir = await workFolder();
		cluster = await startCluster({ apiServerFlags: [await podNetwork()] });
		plane = await startDataPlane();
		first = await plane.gateway(cluster.etcd);
		second = await plane.gateway(cluster.etcd, { like: first });
		bundle = await readFile(first.files.caFile, "utf8");
		kube = client(
			await userWith("asker", ["pods", "list"], ["pods/proxy", "get"]),
		);
	}, FIRST_BUILD);

	afterAll(async () => {
		await plane?.stop();
		await cluster?.stop();
		for (const end of cleanup) await end();
	});

	const client = (kubeconfig: string) =>
		new Kube(loadKubeConfig(kubeconfig), { fieldManager: "test" });

	/** As workload.ts makes it: test/golden holds it to that. */
	async function podTemplate(golden: string): Promise<Json> {
		const path = join(import.meta.dir, "golden", `${golden}.yaml`);
		const objects = Bun.YAML.parse(await readFile(path, "utf8")) as Json[];
		return objects.find(({ kind }) => kind === "Deployment").spec.template;
	}

	/** A user with these rights in our namespace, and no others. */
	async function userWith(user: string, ...rules: [string, string][]) {
		const rbac = "rbac.authorization.k8s.io";
		const metadata = { name: user, namespace: NAMESPACE };
		await cluster.apply(
			{
				...{ apiVersion: `${rbac}/v1`, kind: "Role", metadata },
				rules: rules.map(([resource, verb]) => ({
					...{ apiGroups: [""], resources: [resource], verbs: [verb] },
				})),
			},
			{
				...{ apiVersion: `${rbac}/v1`, kind: "RoleBinding", metadata },
				roleRef: { apiGroup: rbac, kind: "Role", name: user },
				subjects: [{ apiGroup: rbac, kind: "User", name: user }],
			},
		);
		return cluster.kubeconfigFor(user);
	}

	let addresses = 0;
	/** A pod as the ReplicaSet makes it and the kubelet reports it; its insides are another process. */
	async function runPod(
		name: string,
		port: number | undefined,
		{
			ip = `192.0.2.${++addresses}`,
			phase = "Running",
			ready = true,
			etcd = "",
		} = {},
	): Promise<void> {
		const template = await podTemplate(etcd ? "workload-etcd" : "workload");
		const { annotations } = template.metadata;
		const [app = ""] = name.split("-");
		await cluster.apply({
			...{ apiVersion: "v1", kind: "Pod" },
			metadata: {
				...{ name, namespace: NAMESPACE, labels: { apiserver: app } },
				annotations:
					etcd === "" ? {} : { ...annotations, [CLIENT_CA_HASH]: etcd },
			},
			spec: { ...template.spec, nodeName: "somewhere" },
		});
		const status = {
			phase,
			...(phase === "Running" && { podIP: ip, podIPs: [{ ip }] }),
			conditions: [{ type: "Ready", status: ready ? "True" : "False" }],
		};
		await cluster.kubectl([
			...["-n", NAMESPACE, "patch", "pod", name, "--subresource=status"],
			...["--type=merge", "-p", JSON.stringify({ status })],
		]);
		if (port !== undefined) ports.set(`${ip}:2381`, port);
	}

	const open = new Promise<never>(() => {});
	/** @returns its port */
	function fakePod(answer: () => Response | Promise<Response>): number {
		const server = Bun.serve({
			...{ hostname: "127.0.0.1", port: 0, idleTimeout: 0 },
			fetch: answer,
		});
		cleanup.push(() => server.stop(true));
		return server.port ?? 0;
	}

	const portOf = ({ metricsUrl }: Gateway) => Number(new URL(metricsUrl).port);
	const behind = async (name: string, by = kube, text = bundle) =>
		(
			await proxiesBehind(by, {
				...{ namespace: NAMESPACE, name, bundle: text },
				templateHash: hash(text),
			})
		).map(({ who, reason, obstacle, message }) => {
			expect(message).toContain(who);
			return `${reason}${obstacle ? "!" : ""} ${message.replace(`Pod ${NAMESPACE}/`, "")}`;
		});
	const LATE =
		"has not loaded the new client CA yet; the kubelet brings it within two minutes";

	test("each gateway is asked, and waited for until it serves with the bundle", async () => {
		await runPod("api-1", portOf(first));
		await runPod("api-2", portOf(second));
		expect(await behind("api")).toEqual([]);
		const next = `${bundle}${await readFile(first.servers.certFile, "utf8")}`;
		expect(await behind("api", kube, next)).toEqual([
			`ProxyNotUpdated api-1 ${LATE}`,
			`ProxyNotUpdated api-2 ${LATE}`,
		]);
		// Both read the same file.
		const { caFile } = first.files;
		await writeFile(`${caFile}.new`, next);
		await rename(`${caFile}.new`, caFile);
		const end = performance.now() + 20_000;
		while ((await behind("api", kube, next)).length > 0)
			expect(performance.now()).toBeLessThan(end);
		expect(await behind("api")).toHaveLength(2);
		bundle = next;
		expect(createHash("sha256").update(bundle).digest("hex")).toBe(
			(
				await kube.podProxy<{ sha256: string }>(
					...([NAMESPACE, "api-1"] as const),
					...([2381, "client-ca"] as const),
				)
			).sha256,
		);
	});

	test("a gateway that is about to go is asked, too; one that has gone is not waited for", async () => {
		await runPod("going-1", portOf(first));
		await runPod("going-2", undefined, { phase: "Failed" });
		await runPod("going-3", undefined, { phase: "Succeeded" });
		await cluster.kubectl([
			...["-n", NAMESPACE, "delete", "pod", "going-1", "--wait=false"],
		]);
		expect(
			(await cluster.get("pod", "going-1", NAMESPACE)).metadata,
		).toHaveProperty("deletionTimestamp");
		expect(await behind("going")).toEqual([]);
		expect(await behind("going", kube, "other")).toEqual([
			`ProxyNotUpdated going-1 ${LATE}`,
		]);
		expect(await behind("nobody")).toEqual([]);
		const gone = kube.podProxy(NAMESPACE, "gone", 2381, "client-ca");
		await expect(gone).rejects.toMatchObject({ code: 404, reason: "NotFound" });
	});

	test("proxies that do not tell are waited for, each with why", async () => {
		const older = fakePod(() => new Response("not found\n", { status: 404 }));
		const silent = fakePod(() => open);
		const web = fakePod(() => new Response("<html>"));
		await runPod("mixed-1", older);
		await runPod("mixed-2", silent);
		await runPod("mixed-3", undefined);
		await runPod("mixed-4", undefined, { phase: "Pending" });
		await runPod("mixed-5", undefined, { etcd: hash("former") });
		await runPod("mixed-6", portOf(first), { ip: "127.0.0.1" });
		await runPod("mixed-7", portOf(first));
		await runPod("mixed-7b", web);
		await runPod("mixed-8", undefined, { etcd: hash(bundle) });
		await runPod("mixed-9", undefined, { etcd: hash(bundle), ready: false });
		const started = performance.now();
		const waits = await behind("mixed");
		expect(performance.now() - started).toBeLessThan(20_000);
		expect(waits).toEqual([
			"ProxyUnknown! mixed-1 does not tell which client CA it has loaded: it runs an older etcdproxy-controller. Let --etcd-proxy-image name the image of this one, which replaces the pods",
			`ProxyNotUpdated mixed-2 has not told yet which client CA it has loaded (get Pod ${NAMESPACE}/mixed-2:2381: Timeout: no answer within 5 s)`,
			expect.stringMatching(
				/^ProxyNotUpdated mixed-3 has not told yet which client CA it has loaded \(get Pod \S+: ServiceUnavailable: error trying to reach service: /,
			),
			"ProxyNotUpdated mixed-4 is Pending; it reads the new client CA when it starts",
			"ProxyNotUpdated mixed-5 is being replaced by one with the new client CA",
			expect.stringMatching(
				/^ProxyUnknown! mixed-6 cannot be asked .* \(get Pod \S+: BadRequest: address not allowed\)\. Delete the pod/,
			),
			expect.stringMatching(
				/^ProxyUnknown! mixed-7b cannot be asked .* \(get Pod \S+: Malformed: /,
			),
			"ProxyNotUpdated mixed-9 has the new client CA, but is not ready yet",
		]);
	});

	test("rights that are missing are told with the Role that has to have them", async () => {
		await runPod("denied-1", portOf(first));
		const grant = `etcdproxy-controller may not%. Let the Role ${NAMESPACE}/etcdproxy-controller-role list pods and get pods/proxy, as artifacts/deployment/00-etcdproxy-controller.yaml does. `;
		const nobody = client(await cluster.kubeconfigFor("nobody"));
		const [none, ...more] = await behind("denied", nobody);
		expect(more).toEqual([]);
		expect(none).toStartWith(
			`ProxyUnknown! which client CA the pods of Deployment ${NAMESPACE}/etcd-denied have loaded is not known: ${grant.replace("%", " list them")}(list Pod ${NAMESPACE}: Forbidden: `,
		);
		const lister = client(await userWith("lister", ["pods", "list"]));
		const [some, ...others] = await behind("denied", lister);
		expect(others).toEqual([]);
		expect(some).toStartWith(
			`ProxyUnknown! denied-1 cannot be asked which client CA it has loaded: ${grant.replace("%", "")}(get Pod ${NAMESPACE}/denied-1:2381: Forbidden: `,
		);
		expect(await behind("denied")).toEqual([]);
	});

	test("an API server that does not answer, or not this, is an error", async () => {
		const text = await readFile(cluster.kubeconfig, "utf8");
		const path = join(dir, "nowhere.kubeconfig");
		await writeFile(
			path,
			text.replaceAll(cluster.server, "https://127.0.0.1:1"),
		);
		const unreachable = await behind("api", client(path)).catch((e) => e);
		expect(unreachable).toBeInstanceOf(ApiError);
		expect(unreachable.code).toBe(0);
		const expired = await cluster.kubeconfigFor("asker", [], -1);
		const refused = await behind("api", client(expired)).catch((e) => e);
		expect(refused).toBeInstanceOf(ApiError);
		expect(refused.code).toBe(401);
	});

	test("an API server that goes while a pod is asked is an error, not the pod's", async () => {
		const asked = Promise.withResolvers<void>();
		const silent = fakePod(() => {
			asked.resolve();
			return open;
		});
		await runPod("last-1", silent);
		const answer = behind("last").catch((error) => error);
		await asked.promise;
		await cluster.stopApiServer("SIGKILL");
		expect(await answer).toMatchObject({ code: 0, reason: "Unreachable" });
	});
});
