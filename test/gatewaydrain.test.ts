/** The end of a gateway, and that of its clients. */
import {
	afterAll,
	beforeAll,
	describe,
	expect,
	setDefaultTimeout,
	test,
} from "bun:test";
import { X509Certificate } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import http2 from "node:http2";
import { join } from "node:path";
import { issueLeaf } from "../pki.ts";
import { until } from "./cluster/processes.ts";
import {
	type DataPlane,
	type Etcd,
	type Gateway,
	startDataPlane,
} from "./dataplane.ts";
import {
	eventsIn,
	grpc,
	RANGE,
	Raw,
	range,
	Script,
	WATCH,
	watchCreate,
} from "./gatewayclient.ts";
import { FIRST_BUILD, type Json } from "./harness.ts";
import { data } from "./http2wire.ts";
import { Relay } from "./relay.ts";
import { Service } from "./service.ts";

setDefaultTimeout(120_000);

let plane: DataPlane;
let core: Etcd;

beforeAll(async () => {
	plane = await startDataPlane();
	core = await plane.etcd();
}, FIRST_BUILD);
afterAll(() => plane?.stop());

/** What an HTTP probe says. */
async function probe(gateway: Gateway, path: string): Promise<string> {
	const answer = await fetch(`${gateway.metricsUrl}${path}`);
	return `${answer.status} ${(await answer.text()).trim()}`;
}

/** Tells it to end. @returns what came of it */
async function terminate(
	gateway: Gateway,
): Promise<{ code: number; ms: number }> {
	const start = performance.now();
	gateway.child.kill("SIGTERM");
	const code = await gateway.child.exited;
	return { code, ms: performance.now() - start };
}

describe("SIGTERM", () => {
	test("is told to the readiness probe at once, while a call that is under way gets its answer", async () => {
		const gateway = await plane.gateway(core);
		const client = await Script.start(gateway);
		await client.run("put", { key: "k", value: "v" });
		core.child.kill("SIGSTOP");
		const call = client.run("get", { key: "k" });
		await until(
			"the call is under way",
			async () => (await gateway.metric("etcdproxy_gateway_open_streams")) > 0,
		);
		expect(await probe(gateway, "/readyz")).toBe("200 ok");
		const end = terminate(gateway);
		await until(
			"it is not ready",
			async () => (await probe(gateway, "/readyz")) === "503 draining",
			{ interval: 5 },
		);
		expect(await probe(gateway, "/healthz")).toBe("200 ok");
		core.child.kill("SIGCONT");
		expect((await call).kvs[0].value).toBe("v");
		expect(await end).toMatchObject({ code: 0 });
		expect((await end).ms).toBeLessThan(15_000);
		await client.stop();
	});

	test("ends watches with UNAVAILABLE, after which clients begin anew elsewhere", async () => {
		const gateway = await plane.gateway(core);
		const client = await Raw.connect(gateway);
		const watch = client.open(WATCH);
		client.send(data(watch, grpc(watchCreate("k"))));
		await until("it watches", async () => client.stream(watch).bytes > 0);
		const { code, ms } = await terminate(gateway);
		expect(code).toBe(0);
		// Not only when nobody waits any more for the client to say that it knows.
		expect(ms).toBeLessThan(2_000);
		expect(client.status(watch)).toBe("14: etcdserver: server stopped");
		expect(client.goaway).toEqual({ lastId: watch, code: 0 });
	});

	test("does not wait for clients that are idle, nor long for one that is asleep", async () => {
		const gateway = await plane.gateway(core);
		const idle = await Script.start(gateway);
		await idle.run("get", { key: "k" });
		const node = http2.connect(gateway.url, {
			ca: readFileSync(gateway.caFile),
			cert: readFileSync(gateway.certFile),
			key: readFileSync(gateway.keyFile),
		});
		await new Promise((resolve) => node.once("connect", resolve));
		const asleep = await Raw.connect(gateway);
		asleep.socket.pause();
		const { code, ms } = await terminate(gateway);
		expect(code).toBe(0);
		expect(ms).toBeLessThan(15_000);
		asleep.destroy();
		node.destroy();
		await idle.stop();
	});

	test("ends a call that hangs after --drain-timeout", async () => {
		const gateway = await plane.gateway(core, {
			flags: ["--drain-timeout=1s"],
		});
		const client = await Script.start(gateway, "--attempts=1");
		await client.run("get", { key: "k" });
		core.child.kill("SIGSTOP");
		const call = client.failure("get", { key: "k", timeout: 60_000 });
		await until(
			"the call is under way",
			async () => (await gateway.metric("etcdproxy_gateway_open_streams")) > 0,
		);
		const { code, ms } = await terminate(gateway);
		core.child.kill("SIGCONT");
		expect(code).toBe(0);
		expect(ms).toBeGreaterThan(1_000);
		expect(ms).toBeLessThan(10_000);
		expect(await call).toStartWith("Unavailable: ");
		expect(await gateway.log()).toContain("1 requests did not end in time");
		await client.stop();
	});
});

test("replicas are replaced one by one under load: no request fails, and each watcher sees each change once", async () => {
	const first = await plane.gateway(core);
	const gateways = [
		first,
		await plane.gateway(core, { like: first }),
		await plane.gateway(core, { like: first }),
	];
	const service = await Service.start([...gateways]);
	const clients = await Promise.all(
		Array.from({ length: 6 }, () =>
			Script.start({ ...first, url: service.url }),
		),
	);
	const watches = await Promise.all(
		clients.map((client) =>
			client.watch("w", { key: "/roll/", prefix: true, start_revision: 1 }),
		),
	);
	const failures: string[] = [];
	const puts: { key: string; revision: number }[] = [];
	const done = new Array(clients.length).fill(0);
	let stopping = false;
	const work = clients.map(async (client, number) => {
		for (let round = 0; !stopping; round++) {
			const key = `/roll/${number}`;
			const call = (op: string, request: object): Promise<Json> =>
				client.run(op, request).catch((error) => {
					failures.push(`${op}: ${error.message}`);
				});
			const [put, txn] = [
				await call("put", { key, value: `${round}` }),
				await call("txn", {
					compare: [{ target: "VERSION", key, version: 2 * round + 1 }],
					success: [{ request_put: { key, value: `${round}` } }],
				}),
			];
			for (const answer of [put, txn])
				if (answer)
					puts.push({ key, revision: Number(answer.header.revision) });
			if (txn?.succeeded === false) failures.push(`txn ${round} of ${number}`);
			const got = await call("get", { key });
			if (got?.kvs[0].value !== `${round}`) failures.push(`get ${round}`);
			done[number]++;
		}
	});
	const progress = async () => {
		const before = [...done];
		await until("all clients make progress", async () =>
			done.every((count, number) => count > before[number] + 20),
		);
	};
	await progress();
	for (const old of gateways) {
		service.endpoints.push(await plane.gateway(core, { like: first }));
		// As in Kubernetes with the pod's preStop: out of the Service first, then told to end.
		service.endpoints = service.endpoints.filter((one) => one !== old);
		expect(await terminate(old)).toMatchObject({ code: 0 });
		await progress();
	}
	stopping = true;
	await Promise.all(work);
	expect(failures).toEqual([]);
	expect(service.refused).toBe(0);
	const expected = puts
		.sort((a, b) => a.revision - b.revision)
		.map(({ key, revision }) => `${key}@${revision}`);
	for (const lines of watches) {
		await until(
			"all events have come",
			async () => eventsIn(lines).length >= expected.length,
		);
		expect(eventsIn(lines)).toEqual(expected);
		expect(lines.some((line) => line.error || line.closed)).toBe(false);
	}
	for (const client of clients) await client.stop();
	service.stop();
});

describe("a client that goes without a word", () => {
	let gateway: Gateway;
	beforeAll(async () => {
		gateway = await plane.gateway(core);
	});
	const open = async () => [
		await gateway.metric("etcdproxy_gateway_open_connections"),
		await gateway.metric("etcdproxy_gateway_open_streams"),
		await gateway.metric("etcdproxy_gateway_open_watches"),
	];
	const isGone = () =>
		until("nothing is left", async () => `${await open()}` === "0,0,0", {
			timeout: 90_000,
		});
	/** What the core has under way for watches. */
	const watchers = async () =>
		Number(
			/^etcd_debugging_mvcc_watcher_total (\d+)/m.exec(
				await coreMetrics(core),
			)?.[1],
		);

	test("killed: its calls end at once, here and in the core", async () => {
		const before = await watchers();
		const client = await Script.start(gateway);
		await client.watch("a", { key: "/a" });
		await client.watch("b", { key: "/b" });
		await until("both watch", async () => (await watchers()) === before + 2);
		expect(await open()).toEqual([1, 2, 2]);
		await client.stop();
		await isGone();
		await until("the core knows", async () => (await watchers()) === before);
	});

	test("lost, with nothing that would tell: it is noticed by its silence", async () => {
		const relay = await Relay.start(gateway.url);
		const client = await Raw.connect({ ...gateway, url: relay.url });
		const watch = client.open(WATCH);
		client.send(data(watch, grpc(watchCreate("k"))));
		await until("it watches", async () => client.stream(watch).bytes > 0);
		const other = await Raw.connect(gateway);
		relay.mute();
		await until(
			"the lost one is closed, the other not",
			async () => `${await open()}` === "1,0,0",
			{ timeout: 90_000 },
		);
		expect(await other.ended(other.call(RANGE, range("k")))).toBe("0");
		other.destroy();
		client.destroy();
		await relay.refuse();
		await isGone();
	});
});

async function coreMetrics(etcd: Etcd): Promise<string> {
	const answer = await fetch(`${etcd.url}/metrics`, {
		tls: {
			ca: readFileSync(etcd.caFile, "utf8"),
			cert: readFileSync(etcd.certFile, "utf8"),
			key: readFileSync(etcd.keyFile, "utf8"),
		},
	});
	return answer.text();
}

describe("a client whose certificate expires while it is connected", () => {
	test("is told to come back, and what it has under way ends as if the gateway did", async () => {
		const gateway = await plane.gateway(core);
		const pem = (file: string) => readFileSync(file, "utf8");
		const { certFile, keyFile } = gateway.clients;
		const short = await issueLeaf({
			signer: { certificate: pem(certFile), key: pem(keyFile) },
			commonName: "short",
			usage: "clientAuth",
			// In whole seconds, as certificates have them; never before its authority was.
			validity: {
				notBefore: Date.parse(new X509Certificate(pem(certFile)).validFrom),
				notAfter: Math.ceil(Date.now() / 1000) * 1000 + 5_000,
			},
		});
		const [shortCert, shortKey] = ["short.crt", "short.key"].map((name) =>
			join(plane.dir, name),
		) as [string, string];
		writeFileSync(shortCert, short.certificate);
		writeFileSync(shortKey, short.key);
		const expiring = { ...gateway, certFile: shortCert, keyFile: shortKey };
		const [client, other] = await Promise.all([
			Raw.connect(expiring),
			Raw.connect(gateway),
		]);
		const watches = [client, other].map((raw) => {
			const watch = raw.open(WATCH);
			raw.send(data(watch, grpc(watchCreate("k"))));
			return watch;
		}) as [number, number];
		await until("it watches", async () => client.stream(watches[0]).bytes > 0);
		// Looked at every 30 s.
		expect(await client.ended(watches[0], 90_000)).toBe(
			"14: etcdserver: server stopped",
		);
		await until("it is let go", async () => client.closed);
		expect(client.goaway).toEqual({ lastId: watches[0], code: 0 });
		expect(other.closed).toBeFalse();
		expect(other.status(watches[1])).toBe("");
		other.destroy();
	}, 180_000);
});
