/** Bad weather: what may happen to a controller and to its API server, with the controller as a process of its own. */
import {
	afterAll,
	afterEach,
	beforeAll,
	describe,
	expect,
	test,
} from "bun:test";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { EtcdStorage } from "../etcdstorage.ts";
import {
	type Cluster,
	FIRST_BUILD,
	NAMESPACE,
	startCluster,
	targetRole,
	until,
} from "./harness.ts";
import { Observatory, type Observed } from "./observed.ts";
import {
	expectChains,
	expectNoSecrets,
	numbered,
	objectsOf,
	settled,
	storages,
	targets,
} from "./tenants.ts";

const root = join(import.meta.dir, "..");
const manifest = join(
	root,
	"artifacts/deployment/00-etcdproxy-controller.yaml",
);
let cluster: Cluster;
let observatory: Observatory;
let dir: string;

beforeAll(async () => {
	dir = await mkdtemp(join(tmpdir(), "weather-test-"));
	// Without the API server's cache, watches of Secrets begin in etcd, where versions can be compacted.
	cluster = await startCluster({
		apiServerFlags: ["--watch-cache-sizes=secrets#0"],
	});
	observatory = new Observatory(cluster);
}, FIRST_BUILD);

// A controller that a failed test leaves behind would work in the next one.
afterEach(() => observatory.end(), 30_000);

afterAll(async () => {
	await cluster?.stop();
	await rm(dir, { recursive: true });
}, 60_000);

const seconds = (since: number) => (performance.now() - since) / 1000;
const storageNamespace = ["-n", NAMESPACE];

/** Seconds that an end may take: half of those that a pod has for it. */
const GRACE = 15;

const start: Observatory["start"] = (options) => observatory.start(options);

/** Deletes owned objects and waits until they are back. Returns the seconds that took. */
async function expectRepair(name: string): Promise<number> {
	await cluster.kubectl([
		...[...storageNamespace, "delete", `service/etcd-${name}`],
		...[`secret/${name}-server-cert`, `deployment/etcd-${name}`],
	]);
	const deleted = performance.now();
	await until(
		async () => (await objectsOf(cluster, "apps", [name])).size === 9,
		`everything of ${name} is back`,
	);
	return seconds(deleted);
}

const tenants = numbered("tenant", 20);

describe("a controller that is killed", () => {
	test("in the middle of creating 50 EtcdStorages completes them when it starts again, and makes no certificate twice", async () => {
		const names = numbered("half", 50);
		await cluster.apply(...targets("half", names));
		await cluster.apply(...storages("half", names));
		const first = await start();
		const halfway = () => first.log().split(": issued ").length > 12;
		await until(halfway, "some are made", 30_000);
		await first.stop("SIGKILL");

		const before = await objectsOf(cluster, "half", names);
		const complete = names.filter((name) =>
			before.has(`Deployment ${NAMESPACE}/etcd-${name}`),
		).length;
		expect(complete).toBeGreaterThan(0);
		expect(complete).toBeLessThan(50);

		const second = await start();
		await settled(cluster, names);
		await expectChains(cluster, "half", names);
		// What lay in the cluster stays, to the byte: nothing was issued again.
		const after = await objectsOf(cluster, "half", names);
		for (const [id, object] of before)
			if (object.kind === "Secret" && object.data?.["tls.crt"])
				expect([id, after.get(id)?.data]).toEqual([id, object.data]);
		await cluster.kubectl([
			...["delete", "--raw", "/apis/etcd.xmudrii.com/v1alpha1/etcdstorages"],
		]);
		await until(
			async () =>
				(await cluster.kubectl(["get", "etcdstorages", "-o", "name"])) === "",
			"all are gone",
		);
		await second.stop();
	}, 90_000);

	test("by SIGTERM ends with 0 within seconds, idle and in the middle of work, and its successor completes that", async () => {
		await cluster.apply(...targets("apps", tenants));
		const idle = await start();
		let asked = performance.now();
		expect(await idle.stop()).toBe(0);
		expect(seconds(asked)).toBeLessThan(GRACE);

		const busy = await start();
		await cluster.apply(...storages("apps", tenants));
		await until(() => busy.log().includes(": issued "), "it works");
		asked = performance.now();
		expect(await busy.stop()).toBe(0);
		expect(seconds(asked)).toBeLessThan(GRACE);

		const successor = await start();
		await settled(cluster, tenants);
		await successor.stop();
		await expectChains(cluster, "apps", tenants);
	}, 60_000);

	test("by SIGTERM while the API server does not answer shows what waits, and ends with 0 all the same", async () => {
		const controller = await start();
		await controller.atRest();
		expect(await controller.metric("etcdproxy_queue_depth")).toBe(0);
		expect(await controller.metric("etcdproxy_queue_age_seconds")).toBe(0);
		// It still hears of what happens, but what it asks is lost.
		controller.relay.unanswered();
		await cluster.kubectl([
			...[...storageNamespace, "delete"],
			...tenants.map((name) => `service/etcd-${name}`),
		]);
		await until(
			// Eight are worked on at once.
			async () => (await controller.metric("etcdproxy_queue_depth")) === 12,
			"twelve wait",
		);
		await until(
			async () => (await controller.metric("etcdproxy_queue_age_seconds")) > 1,
			"they have been waiting for a second",
		);
		const asked = performance.now();
		expect(await controller.stop()).toBe(0);
		expect(seconds(asked)).toBeLessThan(GRACE);
	}, 60_000);
});

describe("an API server", () => {
	test("that is gone for 20 s is awaited patiently, and changes after its return are acted upon at once", async () => {
		const controller = await start();
		await controller.atRest();
		controller.news();
		const requests = await controller.metric("etcdproxy_api_requests_total");
		await cluster.stopApiServer("SIGKILL");
		for (const gone = performance.now(); seconds(gone) < 20; ) {
			expect(await controller.healthy("healthz")).toBeTrue();
			await Bun.sleep(1_000);
		}
		const unanswered =
			(await controller.metric("etcdproxy_api_requests_total")) - requests;
		// Five watches that knock every second or two; visits that back off.
		expect(unanswered).toBeGreaterThan(10);
		expect(unanswered).toBeLessThan(400);
		expect(
			await controller.metric("etcdproxy_api_requests_total", 'code="0"'),
		).toBeGreaterThan(10);
		const news = controller.news();
		expect(news).toContain("watch of EtcdStorages interrupted");
		expect(news.split("\n").length).toBeLessThan(200);

		await cluster.startApiServer();
		expect(await expectRepair("tenant-1")).toBeLessThan(12);
		await settled(cluster, tenants);
		await expectChains(cluster, "apps", tenants);
		await controller.stop();
	}, 120_000);

	test("that is absent when the controller starts is awaited: alive, not ready, and ready once it is there", async () => {
		const controller = await start({ absent: true });
		await until(
			() => controller.log().includes("connection refused"),
			"it knocks",
		);
		expect(await controller.healthy("healthz")).toBeTrue();
		expect(await controller.healthy("readyz")).toBeFalse();
		await cluster.kubectl([
			...storageNamespace,
			"delete",
			"service",
			"etcd-tenant-2",
		]);
		await Bun.sleep(2_000);
		const lines = controller.log().split("\n").length;
		expect(lines).toBeLessThan(15);
		await controller.relay.mend();
		await until(
			// While it looks at all of them for the first time, it may be slow to answer.
			() => controller.healthy("readyz").catch(() => false),
			"it is ready",
		);
		await until(
			() => cluster.get("service", "etcd-tenant-2", NAMESPACE),
			"the Service is back",
		);
		await controller.stop();
	}, 60_000);

	test("whose watches are cut again and again loses nothing", async () => {
		const controller = await start();
		const restarts = await controller.metric("etcdproxy_watch_restarts_total");
		for (let round = 0; round < 5; round++) {
			controller.relay.cut();
			await expectRepair(`tenant-${round}`);
		}
		expect(
			await controller.metric("etcdproxy_watch_restarts_total"),
		).toBeGreaterThan(restarts + 4);
		await expectChains(cluster, "apps", tenants);
		await controller.stop();
	}, 60_000);

	test("that has forgotten the version of a watch (410) is asked for everything anew", async () => {
		const controller = await start();
		await controller.relay.refuse();
		await cluster.kubectl([
			...[...storageNamespace, "delete", "secret"],
			...["tenant-3-server-cert", "tenant-4-server-cert"],
		]);
		await compact();
		controller.news();
		const lists = await controller.metric(
			"etcdproxy_api_requests_total",
			'verb="list",kind="Secret"',
		);
		await controller.relay.mend();
		await until(
			async () => (await objectsOf(cluster, "apps", tenants)).size === 9 * 20,
			"both Secrets are back",
			10_000,
		);
		expect(controller.news()).toMatch(/watch Secret .*: (Expired|Gone)/);
		expect(
			await controller.metric(
				"etcdproxy_api_requests_total",
				'verb="list",kind="Secret"',
			),
		).toBeGreaterThan(lists);
		await expectChains(cluster, "apps", tenants);
		await controller.stop();
	}, 60_000);
});

/** Makes etcd forget every version before the present one. */
async function compact(): Promise<void> {
	const { url, caFile, certFile, keyFile } = cluster.etcd;
	const post = async (path: string, body: object) => {
		const response = await fetch(`${url}/v3/kv/${path}`, {
			method: "POST",
			body: JSON.stringify(body),
			tls: {
				ca: Bun.file(caFile),
				cert: Bun.file(certFile),
				key: Bun.file(keyFile),
			},
		});
		expect(response.status).toBe(200);
		return (await response.json()) as { header: { revision: string } };
	};
	const { header } = await post("range", { key: "AA==" });
	await post("compaction", { revision: header.revision, physical: true });
}

describe("rights", () => {
	test("that are taken from the controller and given back cost only that time", async () => {
		const controller = await start();
		await cluster.kubectl([
			...[...storageNamespace, "delete", "rolebinding"],
			"etcdproxy-controller-rolebinding",
		]);
		await Bun.sleep(500);
		controller.news();
		await cluster.kubectl([
			...storageNamespace,
			"delete",
			"service",
			"etcd-tenant-5",
		]);
		const deployed = async () => {
			const storage = await cluster.get<EtcdStorage>("etcdstorage", "tenant-5");
			return storage?.status?.conditions?.find(
				(one) => one.type === "Deployed",
			);
		};
		const told = await until(async () => {
			const condition = await deployed();
			return condition?.reason === "FailedDeploying" && condition;
		}, "the condition says so");
		expect(told.message).toContain('cannot patch resource "services"');
		// A new watch is refused, too.
		controller.relay.cut();
		await until(
			() => controller.log().includes("Forbidden: secrets is forbidden"),
			"the watch is refused",
		);
		const news = controller.news();
		// One line says it all: no stack, no source.
		for (const line of news.trim().split("\n"))
			expect(line).toMatch(/^\d{4}-\d\d-\d\dT\S+Z (INFO|WARN|ERROR) /);
		expect(news.split("\n").length).toBeLessThan(40);
		expect(await controller.healthy("healthz")).toBeTrue();

		await cluster.kubectl(["apply", "-f", manifest]);
		await until(
			async () => (await deployed())?.reason === "DeploymentNotAvailable",
			"all is well again",
			15_000,
		);
		expect(
			await cluster.get("service", "etcd-tenant-5", NAMESPACE),
		).toBeDefined();
		await controller.stop();
	}, 60_000);
});

describe("a clock", () => {
	const HOUR = 3_600_000;
	const issued = (controller: Observed) =>
		controller.metric("etcdproxy_certificates_issued_total");
	/** A controller whose clock can be set by what is written to the file. */
	const withClock = async (file: string, env: Record<string, string> = {}) =>
		start({
			command: [
				process.execPath,
				...["--preload", join(import.meta.dir, "clock.ts")],
				join(root, "controller.ts"),
			],
			env: { CLOCK_OFFSET: file, ...env },
		});
	/** Something happens, so that it looks again. */
	const touch = async (name: string) => {
		const service = `etcd-${name}`;
		await cluster.kubectl([
			...[...storageNamespace, "delete", "service", service],
		]);
		await until(
			() => cluster.get("service", service, NAMESPACE),
			"the Service is back",
		);
	};

	test.each([
		["ahead", HOUR],
		["behind", -HOUR],
	])(
		"of the controller alone that is an hour %s, and then corrected, changes nothing",
		async (word, offset) => {
			const names = [`clock-${word}`];
			const file = join(dir, word);
			await writeFile(file, `${offset}`);
			await cluster.apply(...targets(`clock-${word}`, names));
			const controller = await withClock(file);
			await cluster.apply(...storages(`clock-${word}`, names));
			await settled(cluster, names);
			await controller.atRest();
			// Within what is told apart, and what the test takes.
			const skew = await controller.metric("etcdproxy_clock_skew_seconds");
			expect(Math.abs(skew - offset / 1000)).toBeLessThan(5);
			expect(controller.log()).toMatch(
				/WARN +this machine's clock is (59m|1h0m)\S+ (ahead of|behind) the API server's/,
			);
			await expectChains(cluster, `clock-${word}`, names);
			const before = await issued(controller);
			await writeFile(file, "0");
			await touch(`clock-${word}`);
			await controller.atRest();
			expect(await controller.metric("etcdproxy_clock_skew_seconds")).toBe(0);
			expect(controller.log()).toContain("agrees with the API server's");
			await expectChains(cluster, `clock-${word}`, names);
			expect((await issued(controller)) - before).toBe(0);
			await controller.stop();
		},
		60_000,
	);

	test("of everybody that is an hour ahead and then corrected leads to no loop, and to certificates that are valid", async () => {
		const names = ["clock-all"];
		const file = join(dir, "all");
		await writeFile(file, `${HOUR}`);
		await cluster.apply(...targets("clock-all", names));
		const controller = await withClock(file, { CLOCK_OF_ALL: "1" });
		await cluster.apply(...storages("clock-all", names));
		await settled(cluster, names);
		await controller.atRest();
		expect(await controller.metric("etcdproxy_clock_skew_seconds")).toBe(0);
		const before = await issued(controller);
		await writeFile(file, "0");
		await until(
			async () => {
				await touch("clock-all");
				return (await issued(controller)) > before;
			},
			"a few answers of the API server have told what time it is",
			20_000,
		);
		await controller.atRest();
		// Made in the future; once that is known, all four are made again, and the former CAs stay trusted.
		await expectChains(cluster, "clock-all", names, 2);
		expect((await issued(controller)) - before).toBe(4);
		await controller.stop();
	}, 60_000);
});

test("what is logged as JSON is one object per line, and the documented metrics exist and move", async () => {
	const names = ["measured"];
	// The second has no targets, but the right to look for them: a 404.
	const both = [...names, "misdirected"];
	await cluster.apply(...targets("measured", names));
	await cluster.apply(...targetRole("measured", both, both));
	const controller = await start({ flags: ["--log-format=json"] });
	await controller.atRest();
	const { metric } = controller;
	const reconciles = (result: string) =>
		metric("etcdproxy_reconcile_total", `result="${result}"`);
	const requests = (code: number) =>
		metric("etcdproxy_api_requests_total", `code="${code}"`);
	const values = async () => ({
		success: await reconciles("success"),
		problem: await reconciles("problem"),
		seconds: await metric("etcdproxy_reconcile_duration_seconds_sum"),
		issued: await metric("etcdproxy_certificates_issued_total"),
		restarts: await metric("etcdproxy_watch_restarts_total"),
		ok: await requests(200),
		created: await requests(201),
		missing: await requests(404),
		storages: await metric("etcdproxy_etcdstorages"),
		cpu: await metric("process_cpu_seconds_total"),
	});
	const before = await values();
	await cluster.apply(...storages("measured", both));
	await settled(cluster, names);
	await until(async () => (await reconciles("problem")) > 0, "it is counted");
	controller.relay.cut();
	await expectRepair("tenant-6");
	const after = await values();
	for (const [name, value] of Object.entries(before))
		expect([name, after[name as keyof typeof after] > value]).toEqual([
			name,
			true,
		]);
	expect(after.storages - before.storages).toBe(2);
	// Of one moment.
	const text = await controller.metrics();
	const sum = (name: string) =>
		[...text.matchAll(new RegExp(`^${name}(?:\\{.*\\})? (\\S+)$`, "gm"))]
			.map(([, value]) => Number(value))
			.reduce((total, value) => total + value, 0);
	expect(sum("etcdproxy_reconcile_duration_seconds_count")).toBe(
		sum("etcdproxy_reconcile_total"),
	);
	expect(sum("etcdproxy_reconcile_total")).toBeGreaterThan(0);

	const storage = await cluster.get<EtcdStorage>("etcdstorage", "measured");
	const certificates = storage?.status?.certificates ?? [];
	expect(certificates).toHaveLength(4);
	for (const { name, notAfter, renewalTime } of certificates) {
		const timestamp = (what: string) =>
			metric(
				`etcdproxy_certificate_${what}_timestamp_seconds`,
				`{etcdstorage="measured",certificate="${name}"}`,
			);
		expect([
			await timestamp("not_after"),
			Math.floor(await timestamp("renewal")),
		]).toEqual([Date.parse(notAfter) / 1000, Date.parse(renewalTime) / 1000]);
	}
	for (const line of controller.log().trim().split("\n")) {
		const { time, level, message } = JSON.parse(line);
		expect(Date.parse(time)).toBeGreaterThan(0);
		expect(["INFO", "WARN", "ERROR"]).toContain(level);
		expect(message).toBeString();
	}
	expect(controller.log()).toContain('"etcdstorage":"measured"');

	await cluster.kubectl(["delete", "etcdstorage", "measured", "misdirected"]);
	await until(
		async () => (await metric("etcdproxy_etcdstorages")) === before.storages,
		"what is deleted is measured no more",
	);
	expect(await controller.metrics()).not.toContain("measured");
	await controller.stop();
}, 60_000);

test("no private key and no token was ever logged, measured, or written where it does not belong", async () => {
	await expectNoSecrets(cluster, observatory);
}, 60_000);
