/** A core etcd that is away, silent, without a leader or not what it should be; and what passes through of it. */
import {
	afterAll,
	beforeAll,
	describe,
	expect,
	setDefaultTimeout,
	test,
} from "bun:test";
import { readFileSync } from "node:fs";
import { createServer, type Server } from "node:tls";
import { ErrorCode } from "../http2.ts";
import { Authority } from "./cluster/certificates.ts";
import { until } from "./cluster/processes.ts";
import {
	type DataPlane,
	type Endpoint,
	type Etcd,
	type Gateway,
	startDataPlane,
} from "./dataplane.ts";
import {
	eventsIn,
	grpc,
	quantile,
	RANGE,
	Raw,
	range,
	Script,
	WATCH,
	watchCreate,
} from "./gatewayclient.ts";
import { FIRST_BUILD } from "./harness.ts";
import { data, reset } from "./http2wire.ts";
import { Relay } from "./relay.ts";

setDefaultTimeout(120_000);

/** How soon a silent member is found out. */
const KEEPALIVE = ["--dial-keepalive-time=1s", "--dial-keepalive-timeout=1s"];

let plane: DataPlane;
let core: Etcd;
let members: [Etcd, Etcd, Etcd];

beforeAll(async () => {
	plane = await startDataPlane();
	core = await plane.etcd();
	members = (await plane.etcdCluster(3)) as typeof members;
}, FIRST_BUILD);

const relays: Relay[] = [];
const scripts: Script[] = [];
afterAll(async () => {
	await Promise.all(scripts.map((script) => script.stop()));
	await Promise.all(relays.map((relay) => relay.refuse()));
	await plane?.stop();
});

async function client(to: Endpoint, ...flags: string[]): Promise<Script> {
	const script = await Script.start(to, ...flags);
	scripts.push(script);
	return script;
}

async function relayTo({ url }: Endpoint): Promise<Relay> {
	const relay = await Relay.start(url);
	relays.push(relay);
	return relay;
}

const readyz = async ({ metricsUrl }: Gateway): Promise<string> => {
	const answer = await fetch(`${metricsUrl}/readyz`);
	return `${answer.status} ${(await answer.text()).trim()}`;
};

/** The sum of a metric of etcd's own, over its series that have all of these labels. */
async function etcdMetric(
	{ url, caFile, certFile, keyFile }: Endpoint,
	name: string,
	...labels: string[]
): Promise<number> {
	const answer = await fetch(`${url}/metrics`, {
		tls: {
			ca: readFileSync(caFile, "utf8"),
			cert: readFileSync(certFile, "utf8"),
			key: readFileSync(keyFile, "utf8"),
		},
	});
	return (await answer.text())
		.split("\n")
		.filter(
			(line) =>
				line.startsWith(name) && labels.every((label) => line.includes(label)),
		)
		.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
}

/** One after another until it is ended. @returns what has failed, and how long each took */
function repeatedly(one: () => Promise<string>) {
	const failures: string[] = [];
	const times: number[] = [];
	let going = true;
	const done = (async () => {
		while (going) {
			const start = performance.now();
			const answer = await one();
			times.push(performance.now() - start);
			if (answer !== "OK") failures.push(answer);
		}
	})();
	return {
		times,
		async stop() {
			going = false;
			await done;
			return { failures, slowest: Math.max(...times), count: times.length };
		},
	};
}

test("while the core is away the gateway says so, answers at once, redials ever more rarely, and recovers by itself", async () => {
	const relay = await relayTo(core);
	const gateway = await plane.gateway(core, { endpoints: [relay.url] });
	const once = await client(gateway, "--attempts=1");
	expect(await once.failure("put", { key: "k", value: "v" })).toBe("OK");
	const { pid } = gateway.child;
	const before = relay.connections;
	await core.stop();
	await until("it is not ready", async () => !(await gateway.ready()));
	const dials: number[] = [];
	const sampler = setInterval(() => {
		while (dials.length < relay.connections - before)
			dials.push(performance.now());
	}, 5);
	expect(await readyz(gateway)).toStartWith(`503 ${relay.url}: `);
	expect(await (await fetch(`${gateway.metricsUrl}/healthz`)).text()).toBe(
		"ok\n",
	);
	expect(
		await gateway.metric("etcdproxy_gateway_core_up", { endpoint: relay.url }),
	).toBe(0);
	const times: number[] = [];
	for (let index = 0; index < 100; index++) {
		const start = performance.now();
		expect(await once.failure("get", { key: "k" })).toStartWith(
			"Unavailable: there is no connection available",
		);
		times.push(performance.now() - start);
	}
	expect(quantile(times, 0.9)).toBeLessThan(500);
	// Six intervals: 0.1, 0.2, ... 3.2 s.
	await until("there have been some dials", async () => dials.length >= 6);
	const gaps = dials.slice(1).map((at, index) => at - (dials[index] ?? 0));
	clearInterval(sampler);
	// At least half of what doubles, and half of that: what was seen late has made one gap shorter.
	for (const [index, gap] of gaps.entries())
		if (index > 1) expect(gap).toBeGreaterThan(25 * 2 ** index);
	await core.restart();
	await until("it is ready", gateway.ready);
	expect(await once.failure("put", { key: "k", value: "w" })).toBe("OK");
	gateway.child.mustRun();
	expect(gateway.child.pid).toBe(pid);
	await gateway.child.stop();
});

test("a connection that falls silent is noticed, and the call is answered through another", async () => {
	const [first, second] = await Promise.all([relayTo(core), relayTo(core)]);
	const gateway = await plane.gateway(core, {
		endpoints: [first.url, second.url],
		flags: KEEPALIVE,
	});
	const up = (relay: Relay) =>
		gateway.metric("etcdproxy_gateway_core_up", { endpoint: relay.url });
	await until(
		"both are up",
		async () => (await up(first)) + (await up(second)) === 2,
	);
	const script = await client(gateway);
	expect(await script.failure("put", { key: "silent", value: "v" })).toBe("OK");
	first.mute(true);
	const answers = await Promise.all(
		Array.from({ length: 10 }, () =>
			script.failure("get", { key: "silent", timeout: 30_000 }),
		),
	);
	expect(answers).toEqual(Array(10).fill("OK"));
	await until("it is given up", async () => (await up(first)) === 0);
	expect(await gateway.log()).toContain(
		`core ${first.url} is disconnected: no answer within 1 s`,
	);
	const { kvs } = await script.run("get", { key: "silent" });
	expect(kvs[0].value).toBe("v");
	expect(await readyz(gateway)).toBe("200 ok");
	await first.mend();
	first.cut();
	await until("it is back", async () => (await up(first)) === 1);
	await gateway.child.stop();
});

describe("three members", () => {
	let gateway: Gateway;
	let script: Script;
	const start = (endpoints: Etcd[]) =>
		plane.gateway(endpoints[0] as Etcd, {
			endpoints: endpoints.map(({ url }) => url),
			flags: KEEPALIVE,
		});
	const allUp = (of: Gateway, count = 3) =>
		until(
			"all members are up",
			async () => (await of.metric("etcdproxy_gateway_core_up")) === count,
		);
	beforeAll(async () => {
		gateway = await start(members);
		script = await client(gateway);
		await allUp(gateway);
		await script.run("put", { key: "k", value: "v" });
	});

	test("have the same number of calls each", async () => {
		const counts = () =>
			Promise.all(
				members.map((member) =>
					etcdMetric(
						member,
						"grpc_server_handled_total",
						'grpc_method="Put"',
						'grpc_code="OK"',
					),
				),
			);
		const before = await counts();
		for (let index = 0; index < 90; index++)
			await script.run("put", { key: "k", value: "v" });
		const after = await counts();
		expect(after.map((count, index) => count - (before[index] ?? 0))).toEqual([
			30, 30, 30,
		]);
	});

	test.each(["SIGKILL", "SIGSTOP"] as const)(
		"of which one gets %s: reads go on, after at most the keepalive's time",
		async (signal) => {
			const [, one] = members;
			const reads = repeatedly(() =>
				script.failure("get", { key: "k", timeout: 60_000 }),
			);
			await until("reads go on", async () => reads.times.length > 10);
			one.child.kill(signal);
			await until(
				"it is given up",
				async () =>
					(await gateway.metric("etcdproxy_gateway_core_up", {
						endpoint: one.url,
					})) === 0,
			);
			await until("it is ready", gateway.ready);
			const { length } = reads.times;
			await until("reads go on", async () => reads.times.length > length + 20);
			const { failures, slowest } = await reads.stop();
			expect(failures).toEqual([]);
			// Keepalive time and timeout, a leader's election, and a slow machine.
			expect(slowest).toBeLessThan(15_000);
			if (signal === "SIGSTOP") one.child.kill("SIGCONT");
			else {
				await one.child.exited;
				await one.restart();
			}
			await allUp(gateway);
		},
	);

	test("of which each in turn is restarted in good order: no call is lost that the core has not begun", async () => {
		const once = await client(gateway, "--attempts=1");
		for (const member of members) {
			const { leader, header } = await (await client(member)).run("status");
			const loops = [
				// What the member answers out of its own memory, so that no election can disturb it.
				...Array.from({ length: 4 }, () =>
					repeatedly(() =>
						once.failure("get", { key: "k", serializable: true }),
					),
				),
				repeatedly(() => script.failure("get", { key: "k" })),
				...(leader === header.member_id
					? []
					: [repeatedly(() => once.failure("put", { key: "p" }))]),
			];
			const before = loops.map(({ times }) => times.length);
			await until("requests go on", async () =>
				loops.every(({ times }, i) => times.length > (before[i] ?? 0) + 10),
			);
			await member.stop();
			await member.restart();
			await allUp(gateway);
			const ends = await Promise.all(loops.map((loop) => loop.stop()));
			expect(ends.flatMap(({ failures }) => failures)).toEqual([]);
		}
		expect(await gateway.log()).toContain("the member closes its connections");
	});

	test("of which two are gone: a watch that requires a leader ends, another goes on, and the gateway is not ready", async () => {
		const [one, two, three] = members;
		const alone = await start([one]);
		const watcher = await client(alone);
		const [strict, lax] = await Promise.all([
			watcher.watch("strict", {
				key: "w",
				require_leader: true,
				created_notify: true,
			}),
			watcher.watch("lax", { key: "w", created_notify: true }),
		]);
		await Promise.all([two.stop("SIGKILL"), three.stop("SIGKILL")]);
		const last = await until("the watch ends", async () =>
			strict.some(({ closed }) => closed) ? strict.at(-2) : undefined,
		);
		expect(last.error).toMatchObject({
			code: "Unavailable",
			message: "etcdserver: no leader",
			name: "ErrNoLeader",
		});
		await until("it is not ready", async () => !(await alone.ready()));
		expect(await readyz(alone)).toStartWith(
			`503 ${one.url}: no answer within 1 s`,
		);
		expect(
			await alone.metric("etcdproxy_gateway_core_up", { endpoint: one.url }),
		).toBe(0.5);
		await Promise.all([two.restart(), three.restart()]);
		await until("it is ready", alone.ready);
		const { header } = await watcher.run("put", { key: "w", value: "v" });
		await until("the other goes on", async () => eventsIn(lax).length > 0);
		expect(eventsIn(lax)).toEqual([`w@${header.revision}`]);
		await alone.child.stop();
	});
});

describe("what cannot be a member", () => {
	const servers: (Server | Bun.Server<undefined>)[] = [];
	let gateway: Gateway;
	/** By what is wrong. */
	const urls: Record<string, string> = {};
	const tls = async (
		authority: Authority,
		name: string,
		names: string[],
		protocol = "h2",
		days = 30,
	): Promise<string> => {
		const leaf = await authority.issue(name, { subject: "/", names, days });
		const server = createServer({
			cert: readFileSync(leaf.certFile),
			key: readFileSync(leaf.keyFile),
			ALPNProtocols: [protocol],
		});
		server.on("tlsClientError", (_, socket) => socket.destroy());
		await new Promise<void>((resolve) =>
			server.listen(0, "127.0.0.1", resolve),
		);
		servers.push(server);
		const address = server.address();
		if (typeof address !== "object" || !address) throw new Error("no port");
		return `https://127.0.0.1:${address.port}`;
	};
	beforeAll(async () => {
		const other = await Authority.create(`${plane.dir}/other`, "other-ca");
		const ours = plane.coreAuthority;
		const here = ["IP:127.0.0.1"];
		urls.authority = await tls(other, "core", here);
		urls.name = await tls(ours, "named", ["DNS:etcd.example"]);
		urls.expired = await tls(ours, "expired", here, "h2", -1);
		urls.protocol = await tls(ours, "http", here, "http/1.1");
		const plain = Bun.serve({
			hostname: "127.0.0.1",
			port: 0,
			fetch: () => new Response("plain"),
		});
		servers.push(plain);
		urls.plain = `https://127.0.0.1:${plain.port}`;
		urls.nobody = "https://127.0.0.1:1";
		urls.unknown = "https://etcd.invalid:2379";
		// The one that is right refuses us.
		urls.refuses = core.url;
		const stranger = await other.issue("stranger", { subject: "/" });
		gateway = await plane.gateway(core, {
			endpoints: Object.values(urls),
			flags: [`--cert=${stranger.certFile}`, `--key=${stranger.keyFile}`],
			unready: true,
		});
	});
	afterAll(async () => {
		for (const server of servers)
			if ("stop" in server) await server.stop(true);
			else server.close();
	});

	test.each([
		["authority", "its certificate is not signed by a CA of --cacert"],
		["name", "its certificate is not for 127.0.0.1"],
		["expired", "its certificate has expired"],
		["protocol", "it does not speak HTTP/2"],
		["plain", "it does not speak TLS"],
		["nobody", "it refuses connections"],
		["unknown", "its name etcd.invalid cannot be resolved"],
		["refuses", "it does not accept the client certificate of --cert"],
	])("because of its %s is told in words", async (what, words) => {
		const said = await until("it is told", async () => {
			const line = (await readyz(gateway))
				.split("; ")
				.find((one) => one.includes(`${urls[what]}: ${words}`));
			return line;
		});
		expect(said).toContain(words);
		expect(await gateway.log()).toContain(
			`core ${urls[what]} is disconnected: ${words}`,
		);
		expect(await gateway.ready()).toBe(false);
	});
});

describe("between a client and the core", () => {
	let gateway: Gateway;
	let direct: Script, through: Script;
	beforeAll(async () => {
		gateway = await plane.gateway(core);
		[direct, through] = await Promise.all([client(core), client(gateway)]);
	});

	test("a deadline is passed on", async () => {
		// Now and then Go's server refuses the request's DATA (reset 5): it comes after the end that its HEADERS had.
		const [direct, through] = await Promise.all(
			[core, gateway].map((endpoint) =>
				until("the deadline ends it", async () => {
					const raw = await Raw.connect(endpoint);
					const call = raw.call(RANGE, range("k"), [["grpc-timeout", "1n"]]);
					const end = await raw.ended(call);
					raw.destroy();
					return end.startsWith("4: ") && end;
				}),
			),
		);
		expect(through).toBe(direct as string);
	});

	test.each(["a reset", "the end of the connection"])(
		"%s ends the watch in the core",
		async (how) => {
			const watches = () =>
				etcdMetric(core, "etcd_debugging_mvcc_watch_stream_total ");
			const open = () => gateway.metric("etcdproxy_gateway_open_streams");
			const [before, opened] = [await watches(), await open()];
			const raw = await Raw.connect(gateway);
			const id = raw.open(WATCH);
			raw.send(data(id, grpc(watchCreate("k"))));
			await until(
				"it watches",
				async () =>
					(await watches()) === before + 1 && (await open()) === opened + 1,
			);
			if (how === "a reset") raw.send(reset(id, ErrorCode.CANCEL));
			else raw.destroy();
			await until(
				"it is over",
				async () => (await watches()) === before && (await open()) === opened,
			);
			raw.destroy();
		},
	);

	test("etcd's errors are those of etcd", async () => {
		for (let index = 0; index < 3; index++)
			await through.run("put", { key: "e", value: `${index}` });
		const { header } = await through.run("get", { key: "e" });
		await direct.run("compact", { revision: header.revision - 1 });
		const attempts: [string, object][] = [
			["get", { key: "e", revision: 1 }],
			["get", { key: "e", revision: 1_000_000_000 }],
			["get", { key: "" }],
			["put", { key: "" }],
			["put", { key: "e", lease: 12_345 }],
			["put", { key: "none", ignore_value: true }],
			["put", { key: "e", value: "v", ignore_value: true }],
			["put", { key: "e", value: "v".repeat(1_700_000) }],
			[
				"txn",
				{
					success: [
						{ request_put: { key: "d", value: "1" } },
						{ request_put: { key: "d", value: "2" } },
					],
				},
			],
			[
				"txn",
				{
					success: Array.from({ length: 129 }, (_, index) => ({
						request_put: { key: `n${index}`, value: "1" },
					})),
				},
			],
			["grant", { TTL: 10_000_000_000 }],
			["revoke", { ID: 12_345 }],
			["keepAliveOnce", { ID: 12_345 }],
		];
		for (const [op, request] of attempts) {
			const expected = await direct.failure(op, request);
			expect(expected).not.toBe("OK");
			expect([op, await through.failure(op, request)]).toEqual([op, expected]);
		}
		const ends = await Promise.all(
			[direct, through].map(async (script) => {
				const lines = await script.watch("old", {
					key: "e",
					start_revision: 1,
				});
				await until("it ends", async () => lines.some(({ closed }) => closed));
				const { response, error } = lines[0];
				return { error, compacted: response.compact_revision };
			}),
		);
		expect(ends[1]).toEqual(ends[0]);
		expect(ends[0]?.error.name).toBe("ErrCompacted");
	});
});
