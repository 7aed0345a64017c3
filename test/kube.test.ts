import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
	ApiError,
	type Follow,
	Kube,
	type KubeObject,
	type KubeOptions,
	loadKubeConfig,
	type RequestReport,
} from "../kube.ts";
import { Authority } from "./cluster/certificates.ts";
import {
	type ControlPlane,
	type certificateUser,
	startControlPlane,
} from "./cluster/controlplane.ts";
import { FIRST_BUILD, until } from "./harness.ts";

interface ConfigMap extends KubeObject {
	data?: Record<string, string>;
}
interface User {
	[key: string]: unknown;
}

const API = { apiVersion: "v1", kind: "ConfigMap" };
const ref = (name: string, namespace = "default") => ({
	...API,
	namespace,
	name,
});
const configMap = (
	name: string,
	data: Record<string, string> = { key: "value" },
	metadata: Partial<KubeObject["metadata"]> = {},
): ConfigMap => ({
	...API,
	metadata: { name, namespace: "default", ...metadata },
	data,
});

let cluster: ControlPlane;
let authority: Authority;
let dir: string;
let kube: Kube;
const cleanup: (() => unknown)[] = [];

beforeAll(async () => {
	dir = await mkdtemp(join(tmpdir(), "kube-test-"));
	authority = await Authority.create(join(dir, "ca"), "another-ca");
	cluster = await startControlPlane();
	kube = client(cluster.kubeconfig);
}, FIRST_BUILD);

afterAll(async () => {
	for (const end of cleanup) await end();
	await cluster?.stop();
	await rm(dir, { recursive: true });
});

const client = (kubeconfig: string, options: Partial<KubeOptions> = {}) =>
	new Kube(loadKubeConfig(kubeconfig), { fieldManager: "test", ...options });

let files = 0;
/** Writes a kubeconfig; JSON is YAML. */
async function kubeconfig(
	user: User,
	server = cluster.server,
	caFile = cluster.caFile,
): Promise<string> {
	const path = join(dir, `${++files}.kubeconfig`);
	const named = { cluster: "c", user: "u" };
	const config = {
		clusters: [
			{ name: "c", cluster: { server, "certificate-authority": caFile } },
		],
		users: [{ name: "u", user }],
		contexts: [{ name: "x", context: named }],
		"current-context": "x",
	};
	await writeFile(path, JSON.stringify(config));
	return path;
}

async function failure(promise: Promise<unknown>): Promise<ApiError> {
	const error = await promise.then(
		() => undefined,
		(reason) => reason,
	);
	expect(error).toBeInstanceOf(ApiError);
	return error;
}

/** What a `follow` has told, and a way to wait for it. */
class Follower {
	readonly objects = new Map<string, ConfigMap>();
	readonly told: string[] = [];
	readonly reasons: string[] = [];
	readonly #end = new AbortController();
	readonly #ended: Promise<void>;
	#wake = Promise.withResolvers<void>();

	constructor(source: Kube, options: Partial<Follow<ConfigMap>> = {}) {
		this.#ended = source.follow<ConfigMap>("ConfigMap", {
			namespace: "default",
			signal: this.#end.signal,
			onSync: (objects) => {
				this.objects.clear();
				for (const object of objects)
					this.objects.set(object.metadata.name, object);
				this.#tell("SYNC");
			},
			onEvent: (type, object) => {
				if (type === "DELETED") this.objects.delete(object.metadata.name);
				else this.objects.set(object.metadata.name, object);
				this.#tell(`${type} ${object.metadata.name}`);
			},
			onRestart: (reason) => {
				this.reasons.push(reason);
				this.#tell("RESTART");
			},
			...options,
		});
		cleanup.push(() => this.stop());
	}

	#tell(what: string) {
		this.told.push(what);
		this.#wake.resolve();
		this.#wake = Promise.withResolvers();
	}

	async until(condition: (follower: this) => boolean): Promise<void> {
		while (!condition(this)) await this.#wake.promise;
	}

	async stop(): Promise<void> {
		this.#end.abort();
		await this.#ended;
	}
}

/** A TCP relay before the API server that can be cut, and whose connections can die without a word. */
class Relay {
	connections = 0;
	#cut = false;
	readonly #pairs = new Set<{ client: net.Socket; mute: boolean }>();
	readonly #server = net.createServer((socket) => {
		if (this.#cut) {
			socket.destroy();
			return;
		}
		this.connections++;
		const pair = { client: socket, mute: false };
		this.#pairs.add(pair);
		const upstream = net.connect(this.#to, "127.0.0.1");
		const pass = (to: net.Socket) => (data: Buffer) =>
			pair.mute || to.destroyed || to.write(data);
		socket.on("data", pass(upstream)).on("close", () => upstream.destroy());
		upstream.on("data", pass(socket));
		upstream.on("close", () => pair.mute || socket.destroy());
		for (const end of [socket, upstream]) end.on("error", () => end.destroy());
	});

	readonly #to: number;

	constructor(to: number) {
		this.#to = to;
	}

	static async start(
		to = Number(new URL(cluster.server).port),
	): Promise<Relay> {
		const relay = new Relay(to);
		await new Promise<void>((resolve) =>
			relay.#server.listen(0, "127.0.0.1", resolve),
		);
		cleanup.push(() => {
			relay.cut();
			relay.#server.close();
		});
		return relay;
	}

	get url(): string {
		return `https://127.0.0.1:${(this.#server.address() as net.AddressInfo).port}`;
	}

	/** From now on what goes over the present connections is lost. */
	mute(): void {
		for (const pair of this.#pairs) pair.mute = true;
	}

	cut(): void {
		this.#cut = true;
		for (const { client } of this.#pairs) client.destroy();
	}

	mend(): void {
		this.#cut = false;
	}

	async kubeconfig(): Promise<string> {
		const text = await Bun.file(cluster.kubeconfig).text();
		const path = join(dir, `${++files}.kubeconfig`);
		await writeFile(path, text.replaceAll(cluster.server, this.url));
		return path;
	}
}

/** An API server for what the real one cannot be made to do. */
async function fakeServer(
	answer: (request: Request, url: URL) => Response | Promise<Response>,
	http2 = true,
): Promise<{ url: string; kubeconfig: string }> {
	const { certFile, keyFile } = await authority.issue(`server-${++files}`, {
		subject: "/CN=fake",
		names: ["IP:127.0.0.1"],
	});
	const server = Bun.serve({
		hostname: "127.0.0.1",
		port: 0,
		http2,
		idleTimeout: 0,
		tls: { cert: Bun.file(certFile), key: Bun.file(keyFile) },
		fetch: (request) => answer(request, new URL(request.url)),
	});
	cleanup.push(() => server.stop(true));
	const url = `https://127.0.0.1:${server.port}`;
	const path = await kubeconfig({ token: "t" }, url, authority.certFile);
	return { url, kubeconfig: path };
}

const listOf = (...items: ConfigMap[]) =>
	Response.json({ metadata: { resourceVersion: "10" }, items });
const refuse = (code: number, headers: Record<string, string> = {}) =>
	Response.json(
		{ kind: "Status", code, reason: "Refused", message: "no" },
		{ status: code, headers },
	);
const watchEvent = (type: string, object: object) =>
	`${JSON.stringify({ type, object })}\n`;
const open = new Promise<never>(() => {});

const encode = (text: string) => new TextEncoder().encode(text);

/** A watch stream: these lines, then silence. */
const stream = (...events: string[]) =>
	new Response(
		new ReadableStream({
			async start(controller) {
				controller.enqueue(encode(events.join("")));
				await open;
			},
		}),
	);

const remove = (name: string) => cluster.kubectl(["delete", "configmap", name]);

describe("the verbs", () => {
	test("create, get and patch an object", async () => {
		expect(await kube.get(ref("trip"))).toBeUndefined();
		const created = await kube.create(configMap("trip"));
		expect(await kube.get<ConfigMap>(ref("trip"))).toEqual(created);
		const merge = { data: { more: "1" } };
		await kube.patch(ref("trip"), merge, "merge");
		const json = [{ op: "remove", path: "/data/key" }];
		const patched = await kube.patch<ConfigMap>(ref("trip"), json, "json");
		expect(patched.data).toEqual({ more: "1" });
	});

	test("creating what exists is AlreadyExists", async () => {
		await kube.create(configMap("twice"));
		const error = await failure(kube.create(configMap("twice")));
		expect([error.code, error.reason]).toEqual([409, "AlreadyExists"]);
	});

	test("applying twice leaves the resourceVersion as it was", async () => {
		const first = await kube.apply(configMap("same"));
		const second = await kube.apply(configMap("same"));
		expect(second.metadata.resourceVersion).toBe(
			first.metadata.resourceVersion as string,
		);
		expect(second.metadata.managedFields).toMatchObject([
			{ manager: "test", operation: "Apply" },
		]);
	});

	test("applying takes over a field of another owner and keeps the other fields", async () => {
		await cluster.kubectl([
			"create",
			"configmap",
			"shared",
			"--from-literal=key=theirs",
			"--from-literal=own=theirs",
		]);
		const applied = await kube.apply(configMap("shared", { key: "ours" }));
		expect(applied.data).toEqual({ key: "ours", own: "theirs" });
	});

	test("applying with a wrong resourceVersion is a conflict", async () => {
		const { metadata } = await kube.apply(configMap("versioned"));
		const { resourceVersion = "" } = metadata;
		await kube.apply(configMap("versioned", { key: "2" }, { resourceVersion }));
		const late = configMap("versioned", { key: "3" }, { resourceVersion });
		const error = await failure(kube.apply(late));
		expect([error.code, error.reason]).toEqual([409, "Conflict"]);
	});

	test("applying with a uid does not bring a deleted object back", async () => {
		const { metadata } = await kube.apply(configMap("deleted"));
		const { uid = "" } = metadata;
		await remove("deleted");
		const error = await failure(kube.apply(configMap("deleted", {}, { uid })));
		expect([error.code, error.reason]).toEqual([409, "Conflict"]);
	});

	test("applying an unknown field is refused and names it", async () => {
		const odd = { ...configMap("odd"), odd: "field" };
		expect((await failure(kube.apply(odd))).message).toContain(".odd: field");
		expect((await failure(kube.create(odd))).message).toContain('"odd"');
	});

	test("applying a status leaves the rest alone", async () => {
		const service = {
			apiVersion: "v1",
			kind: "Service",
			metadata: { name: "service", namespace: "default" },
			spec: { type: "LoadBalancer", ports: [{ port: 80 }] },
		};
		await kube.apply(service);
		const ingress = [{ ip: "192.0.2.1" }];
		const { spec, ...rest } = service;
		await kube.apply(
			{ ...rest, status: { loadBalancer: { ingress } } } as KubeObject,
			{ subresource: "status" },
		);
		const stored = await kube.get({
			...API,
			...service.metadata,
			kind: "Service",
		});
		expect(stored).toMatchObject({
			spec,
			status: { loadBalancer: { ingress } },
		});
	});

	test("write nothing while the fence is up, and read all the same", async () => {
		let fence: string | undefined = "somebody else may lead by now";
		const fenced = new Kube(loadKubeConfig(cluster.kubeconfig), {
			fieldManager: "kube-test",
			fence: () => fence,
		});
		const object = configMap("fenced", {});
		const ref = { ...object, ...object.metadata };
		for (const write of [
			() => fenced.create(object),
			() => fenced.apply(object),
			() => fenced.patch(ref, { data: { a: "b" } }, "merge"),
		])
			expect(await failure(write())).toMatchObject({
				code: 0,
				reason: "Fenced",
				message: expect.stringContaining(
					"ConfigMap default/fenced: Fenced: somebody else may lead by now",
				),
			});
		expect(await fenced.get(ref)).toBeUndefined();
		fence = undefined;
		await fenced.create(object);
		expect(await fenced.get(ref)).toBeDefined();
	});

	test("an error names verb, kind, namespace, name and the server's words", async () => {
		const mallory = client(await cluster.kubeconfigFor("mallory"));
		const secret = { apiVersion: "v1", kind: "Secret", namespace: "apps" };
		const error = await failure(mallory.get({ ...secret, name: "etcd" }));
		expect(error.message).toStartWith(
			'get Secret apps/etcd: Forbidden: secrets "etcd" is forbidden: User "mallory" cannot get',
		);
		expect(error).toMatchObject({ code: 403, verb: "get" });
	});

	test("a missing kind is an error, not a missing object", async () => {
		const apiVersion = "etcd.xmudrii.com/v1alpha1";
		const error = await failure(
			kube.get({ apiVersion, kind: "EtcdStorage", name: "x" }),
		);
		expect(error.code).toBe(404);
	});

	test.each(["", ".", "..", "x/status", "x%2Fstatus"])(
		"%p is refused as a name",
		async (name) => {
			const error = await failure(kube.get(ref(name)));
			expect([error.code, error.reason]).toEqual([400, "Invalid"]);
		},
	);
});

describe("a pod that is asked by way of the API server", () => {
	const ask = (from: Kube, path = "client-ca", pod = "proxy-0") =>
		from.podProxy<{ told: string }>("default", pod, 2381, path);

	test("answers a GET of the path, on the port; whose clock its answer shows is not the API server's", async () => {
		const asked: string[] = [];
		const fake = await fakeServer((request, url) => {
			asked.push(`${request.method} ${url.pathname}`);
			const headers = { Date: "Thu, 01 Jan 1970 00:00:00 GMT" };
			return Response.json({ told: "this" }, { headers });
		});
		const reports: RequestReport[] = [];
		const onRequest = (report: RequestReport) => reports.push(report);
		const asking = client(fake.kubeconfig, { onRequest });
		expect(await ask(asking)).toEqual({ told: "this" });
		expect(await ask(asking, "deep/down?x=1#y")).toEqual({ told: "this" });
		expect(asked.map((one) => decodeURIComponent(one))).toEqual([
			"GET /api/v1/namespaces/default/pods/proxy-0:2381/proxy/client-ca",
			"GET /api/v1/namespaces/default/pods/proxy-0:2381/proxy/deep/down?x=1#y",
		]);
		expect(reports[0]).toMatchObject({ verb: "get", kind: "Pod", code: 200 });
		expect(reports.map(({ date }) => date)).toEqual([undefined, undefined]);
		await asking.get(ref("x"));
		expect(reports[2]?.date).toBe("Thu, 01 Jan 1970 00:00:00 GMT");
	});

	test.each([
		["client-ca", ""],
		["client-ca", ".."],
		["client-ca", "x/y"],
		["", "x"],
		["/client-ca", "x"],
		["../../../secrets", "x"],
		["a/%2e%2e/b", "x"],
	])("path %p of pod %p is refused before it is asked", async (path, pod) => {
		const error = await failure(ask(kube, path, pod));
		expect([error.code, error.reason]).toEqual([400, "Invalid"]);
	});

	test("with something else than JSON, or with an error, is an ApiError", async () => {
		const answers = [
			() => new Response("not found\n", { status: 404 }),
			() => Response.json({ message: "not yet" }, { status: 503 }),
			() => new Response("<html>"),
			() => Response.json("told", { status: 500 }),
		];
		const fake = await fakeServer(() => (answers.shift() as () => Response)());
		const asking = client(fake.kubeconfig);
		const found: [number, string][] = [];
		while (answers.length > 0) {
			const error = await failure(ask(asking));
			found.push([error.code, error.reason]);
			if (error.code === 503) expect(error.message).toEndWith(": not yet");
		}
		expect(found).toEqual([
			[404, "HTTP 404"],
			[503, "HTTP 503"],
			[0, "Malformed"],
			[500, "HTTP 500"],
		]);
	});

	test("and does not answer is given up after 5 s, alone: other requests on the connection go on", async () => {
		const late = Promise.withResolvers<void>();
		let asked = 0;
		const fake = await fakeServer(async (_, url) => {
			asked++;
			if (url.pathname.includes("/proxy/")) return open;
			if (url.pathname.endsWith("/late")) await late.promise;
			return Response.json(configMap("x"));
		});
		const relay = await Relay.start(Number(new URL(fake.url).port));
		const text = await Bun.file(fake.kubeconfig).text();
		const path = join(dir, `${++files}.kubeconfig`);
		await writeFile(path, text.replaceAll(fake.url, relay.url));
		const asking = client(path);
		const other = asking.get(ref("late"));
		await until(() => asked === 1, "there is a connection");
		const started = performance.now();
		const failed = failure(ask(asking));
		await until(() => asked === 2, "both are under way");
		expect(relay.connections).toBe(1);
		const error = await failed;
		expect(performance.now() - started).toBeWithin(4_900, 20_000);
		expect([error.code, error.reason]).toEqual([504, "Timeout"]);
		expect(error.message).toBe(
			"get Pod default/proxy-0:2381: Timeout: no answer within 5 s",
		);
		late.resolve();
		expect(await other).toBeDefined();
		expect(asked).toBe(2);
	}, 30_000);

	test("is told apart from an API server that is not there", async () => {
		const path = await kubeconfig({}, "https://127.0.0.1:1");
		const error = await failure(ask(client(path)));
		expect([error.code, error.reason]).toEqual([0, "Unreachable"]);
	});
});

describe("the transport", () => {
	test("a hundred requests at once share one connection", async () => {
		const relay = await Relay.start();
		const reports: RequestReport[] = [];
		const onRequest = (report: RequestReport) => reports.push(report);
		const relayed = client(await relay.kubeconfig(), { onRequest });
		const names = Array.from({ length: 100 }, (_, i) => ref(`none-${i}`));
		await Promise.all(names.map((name) => relayed.get(name)));
		expect(relay.connections).toBe(1);
		expect(reports).toHaveLength(100);
		expect(reports[0]).toMatchObject({
			verb: "get",
			kind: "ConfigMap",
			code: 404,
		});
	});

	test("a server without HTTP/2 is spoken to in HTTP/1.1", async () => {
		const fake = await fakeServer(() => Response.json(configMap("x")), false);
		expect(await client(fake.kubeconfig).get(ref("x"))).toBeDefined();
	});

	test("so is an API server that was told to do without", async () => {
		const apiServerFlags = ["--disable-http2-serving"];
		const old = await startControlPlane({ apiServerFlags });
		cleanup.push(() => old.stop());
		expect(await client(old.kubeconfig).get(ref("none"))).toBeUndefined();
	}, 60_000);

	test("a certificate of another authority is refused", async () => {
		const path = await kubeconfig({}, cluster.server, authority.certFile);
		const error = await failure(client(path).get(ref("x")));
		expect([error.code, error.reason]).toEqual([0, "Unreachable"]);
		expect(error.message).toContain(`${cluster.server}: certificate refused`);
	});

	test("a certificate for another host is refused", async () => {
		const url = cluster.server.replace("127.0.0.1", "127.0.0.2");
		const relay = net.createServer((socket) => {
			const port = Number(new URL(cluster.server).port);
			socket.pipe(net.connect(port, "127.0.0.1")).pipe(socket);
		});
		cleanup.push(() => relay.close());
		await new Promise<void>((resolve) =>
			relay.listen(Number(new URL(url).port), "127.0.0.2", resolve),
		);
		const error = await failure(
			client(await kubeconfig({}, url)).get(ref("x")),
		);
		expect(error.message).toContain("certificate refused");
	});

	test("a compiled binary refuses the wrong authority, too, and accepts the right one", async () => {
		const script = join(dir, "get.ts");
		const source = `
			import { Kube, loadKubeConfig } from ${JSON.stringify(join(import.meta.dir, "../kube.ts"))};
			const kube = new Kube(loadKubeConfig(process.argv[2]), { fieldManager: "test" });
			kube.get(${JSON.stringify(ref("none"))}).then((found) => console.log("got", found), (error) => console.log(error.message));`;
		await writeFile(script, source);
		const binary = join(dir, "get");
		const build = Bun.spawn(
			[process.execPath, "build", "--compile", script, `--outfile=${binary}`],
			{ stdout: "ignore", stderr: "pipe" },
		);
		expect([await build.exited, await build.stderr.text()]).toMatchObject([
			0,
			expect.anything(),
		]);
		const run = (path: string) => Bun.spawn([binary, path]).stdout.text();
		const wrong = await kubeconfig({}, cluster.server, authority.certFile);
		expect(await run(wrong)).toContain("certificate refused");
		expect(await run(cluster.kubeconfig)).toBe("got undefined\n");
	}, 30_000);

	test("a server that is not there is named", async () => {
		const path = await kubeconfig({}, "https://127.0.0.1:1");
		const error = await failure(client(path).apply(configMap("x")));
		expect(error.message).toBe(
			"apply ConfigMap default/x: Unreachable: https://127.0.0.1:1: connection refused",
		);
	});

	test("a request without an answer ends in time", async () => {
		const fake = await fakeServer(() => open);
		const options = { requestTimeoutMs: 200 };
		const error = await failure(client(fake.kubeconfig, options).get(ref("x")));
		expect(error.message).toContain("no answer in time");
	});

	test("Retry-After is waited for, three times at most, and never for a create", async () => {
		let requests = 0;
		let refusals = 2;
		const fake = await fakeServer(() => {
			requests++;
			return requests <= refusals
				? refuse(429, { "Retry-After": "1" })
				: Response.json(configMap("x"));
		});
		const refused = client(fake.kubeconfig);
		const started = performance.now();
		await refused.apply(configMap("x"));
		expect(requests).toBe(3);
		expect(performance.now() - started).toBeGreaterThan(1990);
		refusals = Number.POSITIVE_INFINITY;
		requests = 0;
		expect(await failure(refused.get(ref("x")))).toMatchObject({
			code: 429,
			retryAfterMs: 1000,
		});
		expect(requests).toBe(3);
		await failure(refused.create(configMap("x")));
		expect(requests).toBe(4);
	});
});

describe("following", () => {
	test("tells what is added, modified and deleted", async () => {
		const follower = new Follower(kube);
		await follower.until(({ told }) => told.includes("SYNC"));
		await kube.create(configMap("seen"));
		await kube.apply(configMap("seen", { key: "new" }));
		await remove("seen");
		await follower.until(({ told }) => told.includes("DELETED seen"));
		expect(follower.told.filter((what) => what.endsWith(" seen"))).toEqual([
			"ADDED seen",
			"MODIFIED seen",
			"DELETED seen",
		]);
		await follower.stop();
		expect(follower.reasons).toEqual([]);
	});

	test("lists in pages and gives the items their kind", async () => {
		await cluster.kubectl(["create", "namespace", "crowd"]);
		const names = Array.from({ length: 510 }, (_, i) => `one-${i}`);
		const namespace = "crowd";
		await Promise.all(
			names.map((name) => kube.create(configMap(name, {}, { namespace }))),
		);
		const reports: RequestReport[] = [];
		const onRequest = (report: RequestReport) => reports.push(report);
		const follower = new Follower(client(cluster.kubeconfig, { onRequest }), {
			namespace,
		});
		await follower.until(({ told }) => told.includes("SYNC"));
		expect(follower.objects.size).toBe(510);
		expect(follower.objects.get("one-0")).toMatchObject(API);
		expect(reports.filter(({ verb }) => verb === "list")).toHaveLength(2);
		await follower.stop();
	}, 15_000);

	test("outlives the API server, and a relist tells what was deleted meanwhile", async () => {
		const relay = await Relay.start();
		await kube.apply(configMap("doomed"));
		const relayed = new Follower(client(await relay.kubeconfig()));
		const direct = new Follower(kube);
		await relayed.until(({ objects }) => objects.has("doomed"));
		await direct.until(({ objects }) => objects.has("doomed"));
		relay.cut();
		await remove("doomed");
		await kube.create(configMap("meanwhile"));
		await direct.until(({ objects }) => objects.has("meanwhile"));
		await cluster.stopApiServer("SIGKILL");
		await direct.until(({ reasons }) => reasons.length > 0);
		// A new API server does not know the past that the relayed watch comes from.
		await cluster.startApiServer();
		const started = performance.now();
		await kube.create(configMap("afterwards"));
		await direct.until(({ objects }) => objects.has("afterwards"));
		expect(performance.now() - started).toBeLessThan(8000);
		relay.mend();
		await relayed.until(({ objects }) => objects.has("afterwards"));
		expect(relayed.reasons.join()).toContain(
			"Expired: too old resource version",
		);
		expect(relayed.objects.has("doomed")).toBeFalse();
		expect([...relayed.objects.keys()].sort()).toEqual(
			[...direct.objects.keys()].sort(),
		);
		await Promise.all([relayed.stop(), direct.stop()]);
	}, 60_000);

	test("a connection that died without a word is noticed and replaced", async () => {
		const relay = await Relay.start();
		const follower = new Follower(
			client(await relay.kubeconfig(), { pingMs: 300 }),
		);
		await follower.until(({ told }) => told.includes("SYNC"));
		relay.mute();
		await kube.create(configMap("unheard"));
		await follower.until(({ told }) => told.includes("ADDED unheard"));
		expect(follower.reasons.join()).toContain("no answer in time");
		expect(follower.told.filter((what) => what === "SYNC")).toHaveLength(1);
		await follower.stop();
	});

	test("an answered ping leaves a silent watch alone", async () => {
		const pings = Promise.withResolvers<void>();
		let count = 0;
		const onRequest = ({ verb }: RequestReport) => {
			if (verb === "ping" && ++count === 3) pings.resolve();
		};
		const options = { pingMs: 50, onRequest };
		const follower = new Follower(client(cluster.kubeconfig, options));
		await pings.promise;
		expect(follower.reasons).toEqual([]);
		await follower.stop();
	});

	test("events cut inside a character arrive whole", async () => {
		const horse = (name: string) =>
			configMap(name, { key: "a 🐎" }, { resourceVersion: "11" });
		const cuts = [1, 2, 3];
		const name = (cut: number) => `cut-${cut}`;
		let follower: Follower | undefined;
		const heard = (cut: number) =>
			follower?.until(({ objects }) => objects.has(name(cut)));
		const pieces = {
			async start(controller: ReadableStreamDefaultController) {
				let rest = encode(watchEvent("ADDED", horse(name(0))));
				for (const cut of cuts) {
					const bytes = encode(watchEvent("ADDED", horse(name(cut))));
					const end = bytes.indexOf(0xf0) + cut;
					controller.enqueue(Buffer.concat([rest, bytes.subarray(0, end)]));
					rest = bytes.subarray(end);
					// Only when the one before has arrived is the cut one known to be half there.
					await heard(cut - 1);
				}
				controller.enqueue(rest);
			},
		};
		const fake = await fakeServer((_, { searchParams }) =>
			searchParams.has("watch")
				? new Response(new ReadableStream(pieces))
				: listOf(),
		);
		follower = new Follower(client(fake.kubeconfig));
		await heard(3);
		expect([...follower.objects.values()]).toEqual(
			[0, ...cuts].map((cut) => horse(name(cut))),
		);
		await follower.stop();
	});

	test("a watch resumes after the last event or bookmark; a malformed line ends it without being quoted", async () => {
		const object = (resourceVersion: string) =>
			configMap("x", {}, { resourceVersion });
		const streams: Record<string, string[]> = {
			10: [
				watchEvent("ADDED", object("11")),
				watchEvent("BOOKMARK", object("12")),
				'{"top-secret\n',
			],
			12: [watchEvent("MODIFIED", object("13"))],
		};
		const fake = await fakeServer((_, { searchParams }) =>
			searchParams.has("watch")
				? stream(...(streams[searchParams.get("resourceVersion") ?? ""] ?? []))
				: listOf(),
		);
		const follower = new Follower(client(fake.kubeconfig));
		await follower.until(({ told }) => told.includes("MODIFIED x"));
		expect(follower.told).toEqual(["SYNC", "ADDED x", "RESTART", "MODIFIED x"]);
		expect(follower.reasons[0]).toContain(
			"watch ConfigMap default: Malformed:",
		);
		expect(follower.reasons[0]).not.toContain("top-secret");
		await follower.stop();
	});

	test("an expired version, by status or by event, leads to a new list", async () => {
		const gone = { code: 410, reason: "Expired", message: "too old" };
		let watches = 0;
		const fake = await fakeServer((_, { searchParams }) => {
			if (!searchParams.has("watch")) return listOf();
			watches++;
			if (watches === 1) return stream(watchEvent("ERROR", gone));
			return watches === 2 ? refuse(410) : stream();
		});
		const follower = new Follower(client(fake.kubeconfig));
		const syncs = () => follower.told.filter((what) => what === "SYNC").length;
		await follower.until(() => syncs() === 3);
		expect(follower.reasons).toEqual([
			"watch ConfigMap default: Expired: too old",
			"watch ConfigMap default: Refused: no",
		]);
		await follower.stop();
	});

	test("a server that ends every watch at once, or refuses, is not stormed", async () => {
		for (const answer of [() => new Response(""), () => refuse(403)]) {
			let watches = 0;
			const fourth = Promise.withResolvers<void>();
			const fake = await fakeServer((_, { searchParams }) => {
				if (!searchParams.has("watch")) return listOf();
				if (++watches === 4) fourth.resolve();
				return answer();
			});
			const started = performance.now();
			const follower = new Follower(client(fake.kubeconfig));
			await fourth.promise;
			expect(performance.now() - started).toBeGreaterThan(700);
			expect(follower.reasons.length).toBeLessThan(2);
			await follower.stop();
		}
	}, 15_000);

	test("ends at once when aborted, also while it waits", async () => {
		let requests = 0;
		const mallory = client(await cluster.kubeconfigFor("mallory"), {
			onRequest: () => void requests++,
		});
		const follower = new Follower(mallory);
		// After the fifth, it waits for 1.6 s at least.
		await until(() => requests >= 5, "it has been refused again and again");
		expect(follower.reasons[0]).toStartWith(
			"list ConfigMap default: Forbidden:",
		);
		const started = performance.now();
		await follower.stop();
		expect(performance.now() - started).toBeLessThan(1_000);
	});

	test("an error in a callback is thrown, not retried", async () => {
		const broken = kube.follow("ConfigMap", {
			signal: new AbortController().signal,
			onSync: () => {
				throw new RangeError("a bug");
			},
			onEvent: () => {},
		});
		expect(broken).rejects.toThrow("a bug");
	});
});

describe("credentials", () => {
	test("an expired client certificate is Unauthorized", async () => {
		const path = await cluster.kubeconfigFor("late", ["system:masters"], -1);
		const error = await failure(client(path).get(ref("x")));
		expect([error.code, error.reason]).toEqual([401, "Unauthorized"]);
	});

	test("a token file is read again when the token is refused", async () => {
		await cluster.kubectl(["create", "serviceaccount", "reader"]);
		const token = await cluster.kubectl(["create", "token", "reader"]);
		await writeFile(join(dir, "token"), "stale-token\n");
		// Relative to the kubeconfig, as kubectl has it.
		const reader = client(await kubeconfig({ tokenFile: "token" }));
		const stale = await failure(reader.get(ref("none")));
		expect(stale.code).toBe(401);
		expect(stale.message).not.toContain("stale-token");
		await writeFile(join(dir, "token"), `${token.trim()}\n`);
		const fresh = await failure(reader.get(ref("none")));
		expect(fresh.message).toContain('"system:serviceaccount:default:reader"');
	});

	test("a client certificate that is replaced opens a new connection, for watches too", async () => {
		const relay = await Relay.start();
		const certFile = join(dir, "client.crt");
		const keyFile = join(dir, "client.key");
		const use = async (path: string) => {
			const { users } = Bun.YAML.parse(await Bun.file(path).text()) as {
				users: { user: Awaited<ReturnType<typeof certificateUser>> }[];
			};
			const data = (key: string) =>
				Buffer.from(users[0]?.user[key] ?? "", "base64");
			await writeFile(certFile, data("client-certificate-data"));
			await writeFile(keyFile, data("client-key-data"));
		};
		await use(cluster.kubeconfig);
		const user = { "client-certificate": certFile, "client-key": keyFile };
		const rotating = client(await kubeconfig(user, relay.url));
		const follower = new Follower(rotating);
		await follower.until(({ told }) => told.includes("SYNC"));
		await rotating.get(ref("none"));
		expect(relay.connections).toBe(1);
		await use(await cluster.kubeconfigFor("trent", ["system:masters"]));
		await rotating.get(ref("none"));
		expect(relay.connections).toBe(2);
		await follower.until(({ reasons }) => reasons.length > 0);
		expect(follower.reasons[0]).toContain("its credentials have changed");
		await follower.stop();
	});

	describe("of an exec plugin", () => {
		const plugin = async (script: string): Promise<string> => {
			const command = join(dir, `plugin-${++files}`);
			await writeFile(command, `#!/bin/sh\n${script}\n`);
			await chmod(command, 0o755);
			const apiVersion = "client.authentication.k8s.io/v1";
			return kubeconfig({
				exec: { apiVersion, command, interactiveMode: "Never" },
			});
		};

		test("are fetched once for many requests", async () => {
			await cluster.kubectl(["create", "serviceaccount", "plugged"]);
			const token = (
				await cluster.kubectl(["create", "token", "plugged"])
			).trim();
			const log = join(dir, "plugin.log");
			const credential = { kind: "ExecCredential", status: { token } };
			const path = await plugin(
				`echo ran >> ${log}\necho '${JSON.stringify(credential)}'`,
			);
			const plugged = client(path);
			const errors = await Promise.all(
				Array.from({ length: 20 }, () => failure(plugged.get(ref("none")))),
			);
			expect(errors[19]?.message).toContain(
				'"system:serviceaccount:default:plugged"',
			);
			expect(await Bun.file(log).text()).toBe("ran\n");
		});

		test("are not quoted when they make no sense", async () => {
			const path = await plugin("echo top-secret");
			const error = await failure(client(path).get(ref("x")));
			expect(error.reason).toBe("NoCredentials");
			expect(Bun.inspect(error)).not.toContain("top-secret");
		});

		test("that fails say why", async () => {
			const path = await plugin("echo log in first >&2; exit 1");
			const error = await failure(client(path).get(ref("x")));
			expect(error.message).toContain("log in first");
		});
	});
});

describe("a kubeconfig", () => {
	const load = async (text: string) => {
		const path = join(dir, `${++files}.kubeconfig`);
		await writeFile(path, text);
		return { path, load: () => loadKubeConfig(path) };
	};

	test("that is missing is named", () => {
		expect(() => loadKubeConfig("/no/such/file")).toThrow("/no/such/file");
	});

	test("that is garbage is named and not quoted", async () => {
		const garbage = await load("users: [\n  token: top-secret: }");
		expect(garbage.load).toThrow(`kubeconfig ${garbage.path}: `);
		expect(garbage.load).not.toThrow("top-secret");
		const text = await load("not a kubeconfig");
		expect(text.load).toThrow(text.path);
		const empty = await load("");
		expect(empty.load).toThrow(empty.path);
	});

	test("without a current context is named", async () => {
		const { path, load: loaded } = await load("clusters: []");
		expect(loaded).toThrow(`kubeconfig ${path}: no current context`);
	});

	test("may come from KUBECONFIG, and nowhere is an error with the way out", async () => {
		const { KUBECONFIG } = process.env;
		try {
			process.env.KUBECONFIG = `/no/such/file:${cluster.kubeconfig}`;
			expect(loadKubeConfig().getCurrentCluster()?.server).toBe(cluster.server);
			process.env.KUBECONFIG = "/no/such/file";
			expect(loadKubeConfig).toThrow("--kubeconfig");
		} finally {
			if (KUBECONFIG === undefined) delete process.env.KUBECONFIG;
			else process.env.KUBECONFIG = KUBECONFIG;
		}
	});
});
