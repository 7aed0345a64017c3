/**
 * The replacement of signers, and controllers that are killed, that are two, that slept for a year, or whose clock is
 * wrong: against a real API server without a kubelet, on a cluster of their own.
 */
import {
	afterAll,
	afterEach,
	beforeAll,
	describe,
	expect,
	test,
} from "bun:test";
import { X509Certificate } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Cache } from "../cache.ts";
import { Kube, loadKubeConfig } from "../kube.ts";
import { type Domain, domains } from "../lifetimes.ts";
import { type Data, FIELD_MANAGER } from "../manifests.ts";
import { visit } from "../visit.ts";
import { client, opensslVerify } from "./client.ts";
import {
	apiServerNamespace,
	type Controller,
	type ControllerOptions,
	FIRST_BUILD,
	startCluster,
	startController,
	until,
} from "./harness.ts";
import {
	accepts,
	certificates,
	consumer,
	consumerRole,
	consumers,
	merge,
	parts,
	rotations,
	target,
} from "./rotating.ts";
import type { Stage } from "./stage.ts";
import { visitContext } from "./visiting.ts";

const root = join(import.meta.dir, "..");
const on = {} as Pick<Stage, "cluster" | "api">;
const scene = rotations(on);
const { bundle, generation, leaf, rotate, signer } = scene;
const running = new Set<Controller>();
let dir: string;

beforeAll(async () => {
	dir = await mkdtemp(join(tmpdir(), "rotation-test-"));
	on.cluster = await startCluster();
	on.api = client(on.cluster);
	await scene.follow();
}, FIRST_BUILD);

// One that a failed test leaves behind would work in the next one.
afterEach(async () => {
	for (const one of running) await one.stop("SIGKILL");
	running.clear();
}, 30_000);

afterAll(async () => {
	scene.end();
	await on.cluster?.stop();
	await rm(dir, { recursive: true });
}, 60_000);

async function start(options: ControllerOptions = {}): Promise<Controller> {
	const controller = await startController(on.cluster, options);
	running.add(controller);
	return controller;
}

/** A controller whose clock is off by the milliseconds in the file; with `all` everybody's is. */
const withClock = (file: string, all: boolean) =>
	start({
		command: [
			process.execPath,
			...["--preload", join(import.meta.dir, "clock.ts")],
			join(root, "controller.ts"),
		],
		env: { CLOCK_OFFSET: file, ...(all && { CLOCK_OF_ALL: "1" }) },
	});

/** An EtcdStorage whose serving CA is read by a Deployment without pods: nobody has to be waited for. */
async function unread(name: string): Promise<void> {
	await on.cluster.apply(
		...apiServerNamespace(target(name)),
		...consumerRole(name),
		consumer(name, "api-1", 0),
	);
	await scene.says(name, "api-1", "rolled out", 0);
	await on.api.tenant(name, { consumers: consumers(name, 1) });
}

/** Waits until both domains' signers have been replaced for the reason, and nobody is waited for. */
const replaced = (name: string, reason: string) =>
	until(
		async () => {
			for (const domain of domains) {
				const { metadata } = await signer(name, domain);
				const found = scene.rotation(name, domain);
				const done =
					metadata.annotations?.[`etcd.xmudrii.com/rotate-${domain}`] ===
						reason &&
					found?.phase === "Retire" &&
					metadata.annotations[
						"etcd.xmudrii.com/certificate-signed-by"
					]?.includes(found.generation);
				if (!done) return false;
			}
			return true;
		},
		`all of ${name} is replaced: ${reason}`,
		60_000,
	);

const both = (name: string, reason: string) =>
	on.cluster.kubectl([
		...["annotate", "--overwrite", "etcdstorage", name],
		...domains.map((domain) => `etcd.xmudrii.com/rotate-${domain}=${reason}`),
	]);

/** Expects that nothing was signed by a signer that was not kept. */
async function expectKnown(
	name: string,
	handed: ReturnType<typeof scene.record>,
) {
	for (const domain of domains) {
		const trusted = await bundle(name, domain);
		for (const chain of handed[domain].leaves)
			expect([domain, accepts(domain, chain, trusted)]).toEqual([domain, "OK"]);
	}
}

/** Expects of both domains, after so many replacements, that no CA is missing or one too many, and all is of the newest. */
async function expectGenerations(
	name: string,
	count: number,
	handed: ReturnType<typeof scene.record>,
	former: Record<Domain, { chain: string; trusted: string }> | undefined,
) {
	const now = {} as Record<Domain, { chain: string; trusted: string }>;
	for (const domain of domains) {
		const chain = await leaf(name, domain);
		const trusted = await bundle(name, domain);
		now[domain] = { chain, trusted };
		expect([domain, certificates(trusted).length]).toEqual([domain, count + 1]);
		expect([domain, handed[domain].next.length]).toEqual([domain, count]);
		expect([domain, handed[domain].current.length]).toEqual([
			domain,
			count + 1,
		]);
		expect([domain, handed[domain].lost]).toEqual([domain, 0]);
		// Exactly one, and nothing of its predecessor's but the certificate that it has made.
		const { data } = await signer(name, domain);
		expect([domain, ...Object.keys(data ?? {}).sort()]).toEqual([
			...[domain, "ca-bundle.crt", "cross.crt", "tls.crt", "tls.key"],
		]);
		await scene.expectWhole(name, domain);
		if (!former) continue;
		expect(accepts(domain, chain, former[domain].trusted)).toBe("OK");
		expect(accepts(domain, former[domain].chain, trusted)).toBe("OK");
	}
	return now;
}

test("a controller that is killed at any moment of a replacement leaves nothing that its successor does not bring to the same end", async () => {
	const name = "killed";
	let controller = await start();
	await unread(name);
	const handed = scene.record(name);
	let former: Parameters<typeof expectGenerations>[3];
	const delays: number[] = [];
	for (let round = 1; round <= 20; round++) {
		await both(name, `round-${round}`);
		delays.push(Math.round(Math.random() * 400));
		await Bun.sleep(delays.at(-1) ?? 0);
		await controller.stop("SIGKILL");
		controller = await start();
		await replaced(name, `round-${round}`).catch((error) => {
			throw new Error(`killed after ${delays} ms: ${controller.log()}`, {
				cause: error,
			});
		});
		former = await expectGenerations(name, round, handed, former);
	}
	await expectKnown(name, handed);
	await on.api.condition(name, "CertificatesReady", /^True /);
}, 300_000);

test("two controllers without an election never both replace a signer, and every certificate is accepted", async () => {
	const name = "twice";
	const [one, other] = await Promise.all([start(), start()]);
	await unread(name);
	const handed = scene.record(name);
	let former: Parameters<typeof expectGenerations>[3];
	for (let round = 1; round <= 10; round++) {
		await both(name, `round-${round}`);
		await replaced(name, `round-${round}`);
		former = await expectGenerations(name, round, handed, former);
	}
	await expectKnown(name, handed);
	// They did meet, and one of them gave way.
	expect(`${one.log()}${other.log()}`).toMatch(/Conflict|AlreadyExists/);
	for (const controller of [one, other])
		expect(controller.log()).toContain("issued");
}, 180_000);

test("a signer that another controller has replaced meanwhile is not overwritten, also where somebody else has a hand in its Secret", async () => {
	const name = "raced";
	const controller = await start();
	await unread(name);
	const before = await signer(name, "client");
	const former = await scene.settled(name, "client");
	await rotate(name, "client");
	await scene.reaches(name, "client", "Retire", { not: former });
	await controller.stop();
	const after = await signer(name, "client");
	// Fields that would have to be taken over first.
	const [ours] = after.metadata.managedFields ?? [];
	const shared: Data = {
		...after,
		metadata: {
			...after.metadata,
			managedFields: [
				...(after.metadata.managedFields ?? []),
				...(ours ? [{ ...ours, manager: "theirs" }] : []),
			],
		},
	};
	const kube = new Kube(loadKubeConfig(on.cluster.kubeconfig), {
		fieldManager: FIELD_MANAGER,
	});
	const context = await visitContext(on.cluster, kube);
	const { owned, storages } = context;
	// The watch is behind, and catches up between the decision and the write.
	const others = [...owned.Secret.values()].filter(
		(one) => one.metadata.name !== before.metadata.name,
	);
	owned.Secret = new Cache<Data>();
	owned.Secret.replace([...others, before]);
	const storage = storages.get(name);
	if (!storage) throw new Error("no EtcdStorage");
	const get = owned.Secret.get.bind(owned.Secret);
	let looked = 0;
	owned.Secret.get = (wanted) => {
		// The first look is the observation.
		if (wanted === before.metadata.name && ++looked > 1) return shared;
		return get(wanted);
	};
	const visited = visit(storage, context);
	expect(visited).rejects.toMatchObject({ code: 409 });
	await visited.catch(() => undefined);
	expect(looked).toBeGreaterThan(1);
	expect(await signer(name, "client")).toEqual(after);
}, 60_000);

describe("a controller that starts again", () => {
	const DAY = 86_400_000;
	test.each([
		["a fortnight and a half, when signers are due", 18 * DAY, false],
		["a month, when everything has expired", 40 * DAY, true],
		["a year", 400 * DAY, true],
		["ten years", 4000 * DAY, true],
	])(
		"after %s, brings all back, and says who must load the new CA",
		async (_, offset, expired) => {
			const days = offset / DAY;
			const [named, unnamed] = [`asleep-${days}`, `unnamed-${days}`];
			const file = join(dir, named);
			await writeFile(file, "0");
			const before = await withClock(file, true);
			await scene.withConsumers(named, 1);
			await on.api.tenant(unnamed);
			const former = {
				client: await leaf(named, "client"),
				serving: await leaf(named, "serving"),
			};
			const ca = generation(named, "serving");
			await before.stop("SIGKILL");
			await writeFile(file, `${offset}`);
			const atThen = ["-attime", `${Math.floor((Date.now() + offset) / 1000)}`];
			const accepted = async (name: string, domain: Domain) =>
				opensslVerify(
					parts[domain].purpose,
					await leaf(name, domain),
					await bundle(name, domain),
					...atThen,
				);
			for (const domain of domains)
				expect((await accepted(named, domain)) === "OK").toBe(!expired);

			const controller = await withClock(file, true);
			const { generation: next } = await scene.reaches(
				named,
				"serving",
				"Spread",
				{ not: ca },
			);
			for (const domain of domains) {
				expect(await leaf(named, domain)).not.toBe(former[domain]);
				await until(
					async () => (await accepted(unnamed, domain)) === "OK",
					`${unnamed} has its turn, too`,
				);
				for (const name of [named, unnamed])
					expect([name, await accepted(name, domain)]).toEqual([name, "OK"]);
				expect(certificates(await bundle(named, domain))).toHaveLength(
					expired ? 1 : 2,
				);
			}
			const told = await scene.blocked(unnamed, /^True ConsumerUnknown: /);
			expect(told).toContain(`ConfigMap ${target(unnamed)}/etcd-serving-ca`);
			expect(told).toContain("spec.consumers");
			await on.api.condition(
				unnamed,
				"CertificatesReady",
				expired ? /^False RotationOverdue/ : /^True /,
			);
			await scene.rollAll(named, 1, next);
			await scene.reaches(named, "serving", expired ? "Steady" : "Retire", {
				not: ca,
			});
			await on.api.condition(named, "CertificatesReady", /^True /);
			expect(controller.log()).not.toContain("ERROR");
		},
		120_000,
	);
});

describe("a controller whose own clock", () => {
	const HOUR = 3_600_000;
	test.each([
		["ahead of", HOUR],
		["behind", -HOUR],
	])(
		"is an hour %s the API server's replaces signers at the right time, with the right dates, and warns",
		async (word, offset) => {
			const name = `clock-${word.slice(0, 5)}`;
			const file = join(dir, name);
			await writeFile(file, `${offset}`);
			const controller = await withClock(file, false);
			await unread(name);
			const handed = scene.record(name);
			const asked = Date.now();
			await both(name, "clock");
			await replaced(name, "clock");
			await expectGenerations(name, 1, handed, undefined);
			const BACKDATE = 5 * 60_000;
			for (const domain of domains) {
				const ca = new X509Certificate(handed[domain].next[0] ?? "");
				const [chain, cross] = certificates(await leaf(name, domain));
				for (const one of [ca, chain, cross]) {
					const begun = (one?.validFromDate.getTime() ?? 0) + BACKDATE;
					// Of the cross-certificate never before its signer's.
					expect(Math.abs(begun - asked)).toBeLessThan(BACKDATE + 60_000);
				}
				expect(
					Math.abs(ca.validFromDate.getTime() + BACKDATE - asked),
				).toBeLessThan(30_000);
				expect(
					Math.abs(ca.validToDate.getTime() - asked - 730 * HOUR),
				).toBeLessThan(30_000);
			}
			const since = Date.parse(scene.rotation(name, "client")?.since ?? "");
			expect(Math.abs(since - asked)).toBeLessThan(30_000);
			expect(controller.log()).toMatch(
				new RegExp(
					`WARN +this machine's clock is \\S+ ${word} the API server's`,
				),
			);
			const skew = /^etcdproxy_clock_skew_seconds (\S+)$/m.exec(
				await controller.metrics(),
			);
			expect(Math.abs(Number(skew?.[1]) - offset / 1000)).toBeLessThan(5);
		},
		90_000,
	);
});

test("where both of our bundles are lost, what targets carry is believed as far as our own key has signed for it", async () => {
	const name = "forged";
	const where = { name: "etcd-serving-ca" };
	const namespaces = [target(name), `${target(name)}-2`] as const;
	const first = await start();
	await on.cluster.apply(...apiServerNamespace(namespaces[1]));
	await on.api.tenant(name, {
		caCertConfigMap: namespaces.map((namespace) => ({ ...where, namespace })),
	});
	await first.stop();
	const former = await bundle(name, "serving");
	// Of somebody who may write one of the targets.
	const foreign = await bundle(name, "client");
	await on.cluster.kubectl([
		...["-n", namespaces[0], "patch", "configmap", where.name],
		...merge({ data: { "serving-ca.crt": foreign + former } }),
	]);
	await scene.own(
		...["delete", `secret/${name}-serving-signer`],
		`configmap/${name}-ca-cert`,
	);
	await start();
	await until(async () => {
		const copy = await on.api.get("ConfigMap", `${name}-ca-cert`);
		const targets = namespaces.map((namespace) =>
			on.api.get("ConfigMap", where.name, namespace),
		);
		const text = copy?.data?.["serving-ca.crt"];
		return (await Promise.all(targets)).every(
			(one) => one.data["serving-ca.crt"] === text,
		);
	}, "the new CA is in every bundle");
	const now = await bundle(name, "serving");
	expect(now).toContain(former);
	expect(now).not.toContain(foreign);
	expect(certificates(now)).toHaveLength(2);
}, 60_000);

test("a serving signer that is lost with everything that tells of it is replaced, and whoever may trust it is restarted", async () => {
	const name = "wiped";
	const first = await start();
	await scene.withConsumers(name, 1);
	const before = await scene.settled(name, "serving");
	await first.stop();
	await scene.own(
		...["delete", `configmap/${name}-ca-cert`],
		...[`secret/${name}-server-cert`, `secret/${name}-serving-signer`],
	);
	await start();
	const { generation: ca } = await scene.reaches(name, "serving", "Spread", {
		not: before,
		waiting: /^Consumer(Waiting|RollingOut): /,
	});
	await scene.rollAll(name, 1, ca);
	await scene.reaches(name, "serving", "Steady", { not: before });
	await scene.expectWhole(name, "serving");
	expect(certificates(await bundle(name, "serving"))).toHaveLength(1);
	await on.api.condition(name, "CertificatesReady", /^True /);
}, 90_000);

test("a signer that is compromised and lost at once is replaced, and whoever may trust it is restarted", async () => {
	const name = "both-at-once";
	const first = await start();
	await scene.withConsumers(name, 1);
	const before = await scene.settled(name, "serving");
	await first.stop();
	await scene.own("delete", "secret", `${name}-serving-signer`);
	await on.cluster.kubectl([
		...["annotate", "etcdstorage", name],
		"etcd.xmudrii.com/compromised-serving=stolen",
	]);
	await start();
	const { generation: ca } = await scene.reaches(name, "serving", "Spread", {
		not: before,
		waiting: /^Consumer(Waiting|RollingOut): /,
	});
	expect(certificates(await bundle(name, "serving"))).toHaveLength(1);
	await scene.rollAll(name, 1, ca);
	await scene.reaches(name, "serving", "Steady", { not: before });
	await scene.expectWhole(name, "serving");
}, 90_000);

test("what is asked for while no controller runs is done by the next one, once", async () => {
	const name = "later";
	const first = await start();
	await unread(name);
	const former = await scene.settled(name, "client");
	await first.stop();
	const handed = scene.record(name);
	await rotate(name, "client", "while you slept");
	await on.cluster.kubectl([
		...["patch", "etcdstorage", name],
		...merge({ spec: { replicas: 2 } }),
	]);
	await start();
	await scene.reaches(name, "client", "Retire", { not: former });
	const second = await start();
	await until(
		async () => /etcdproxy_etcdstorages [1-9]/.test(await second.metrics()),
		"it has looked at it",
	);
	expect(handed.client.next).toHaveLength(1);
	expect(handed.serving.next).toHaveLength(0);
}, 60_000);
