import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Kube, loadKubeConfig } from "../kube.ts";
import {
	type ElectionOptions,
	elect,
	type Leadership,
	REQUEST_TIMEOUT_MS,
} from "../leader.ts";
import { audited, type Identity, identity, inTurn } from "./audit.ts";
import {
	type Cluster,
	type Controller,
	type ControllerOptions,
	FIRST_BUILD,
	startCluster,
	startController,
	until,
} from "./harness.ts";
import { Relay } from "./relay.ts";
import {
	expectChains,
	numbered,
	settled,
	storages,
	targets,
} from "./tenants.ts";

let cluster: Cluster;
const cleanup: (() => unknown)[] = [];

beforeAll(async () => {
	cluster = await startCluster();
}, FIRST_BUILD);

afterAll(async () => {
	for (const end of cleanup.reverse()) await end();
	await cluster?.stop();
}, 60_000);

const client = (kubeconfig = cluster.kubeconfig) =>
	new Kube(loadKubeConfig(kubeconfig), {
		fieldManager: "leader-test",
		requestTimeoutMs: REQUEST_TIMEOUT_MS,
	});

/** Seconds that tell what was told from a lease that has run out, also on a busy machine. */
const AT_ONCE = 9;

const seconds = (since: number) => (performance.now() - since) / 1000;

/** Stands for an election that ends with the test file at the latest. */
function stand(
	name: string,
	identity: string,
	more: Partial<ElectionOptions> & { kube?: Kube } = {},
) {
	const { kube = client(), ...options } = more;
	const stop = new AbortController();
	cleanup.push(() => stop.abort());
	const leadership = elect(kube, {
		namespace: "default",
		name,
		identity,
		signal: stop.signal,
		...options,
	});
	return { leadership, stop };
}

async function leaderOf(name: string): Promise<Leadership> {
	const leadership = await stand(name, "leader").leadership;
	if (!leadership) throw new Error("not elected");
	cleanup.push(() => leadership.release().catch(() => undefined));
	return leadership;
}

const lease = async (name: string) =>
	(await cluster.get("lease", name, "default"))?.spec;

describe("an election", () => {
	test.concurrent("is won by one of many, and after its release at once by one other", async () => {
		const leaders: { index: number; leadership: Leadership }[] = [];
		const candidates = Array.from({ length: 6 }, (_, index) =>
			stand("many", `candidate-${index}`),
		);
		for (const [index, { leadership }] of candidates.entries())
			leadership.then((won) => won && leaders.push({ index, leadership: won }));
		await until(() => leaders.length > 0, "somebody leads");
		await Bun.sleep(4_000);
		expect(leaders).toHaveLength(1);
		const [first] = leaders;
		expect((await lease("many")).holderIdentity).toBe(
			`candidate-${first?.index}`,
		);
		const released = performance.now();
		await first?.leadership.release();
		expect(await first?.leadership.lost).toBe("released");
		await until(() => leaders.length > 1, "somebody else leads");
		expect(seconds(released)).toBeLessThan(AT_ONCE);
		expect(await lease("many")).toMatchObject({
			holderIdentity: `candidate-${leaders[1]?.index}`,
			leaseTransitions: 1,
		});
	}, 60_000);

	test.concurrent("tells the candidates who leads, once", async () => {
		await leaderOf("told");
		const told: string[] = [];
		stand("told", "waiting", { onLeader: (leader) => told.push(leader) });
		await until(() => told.length > 0, "the candidate has seen the leader");
		await Bun.sleep(4_500);
		expect(told).toEqual(["leader"]);
	}, 60_000);

	test.concurrent("tells what keeps a candidate from it, once, and that nothing does any more", async () => {
		const kube = client(await cluster.kubeconfigFor("newcomer"));
		const told: (string | undefined)[] = [];
		const { leadership } = stand("refused", "newcomer", {
			kube,
			onTrouble: (error) => told.push(error?.message),
		});
		await until(() => told.length > 0, "it is told");
		await Bun.sleep(4_500);
		expect(told).toEqual([
			expect.stringMatching(/^create Lease default\/refused: Forbidden: /),
		]);
		await cluster.kubectl([
			...["create", "clusterrolebinding", "newcomer", "--user=newcomer"],
			"--clusterrole=cluster-admin",
		]);
		const leader = await leadership;
		expect(told.slice(1)).toEqual([undefined]);
		await leader?.release();
	}, 30_000);

	test.concurrent("ends without a leader when it is called off", async () => {
		await leaderOf("called-off");
		const { leadership, stop } = stand("called-off", "waiting");
		const started = performance.now();
		stop.abort();
		expect(await leadership).toBeUndefined();
		expect(seconds(started)).toBeLessThan(AT_ONCE);
	}, 60_000);
});

describe("a leader", () => {
	test.concurrent("that is not heard any more knows it before anybody else leads", async () => {
		const relay = await Relay.start(cluster.server);
		cleanup.push(() => relay.refuse());
		const unheard = client(
			await relay.kubeconfig(cluster.kubeconfig, "unheard"),
		);
		const former = await stand("unheard", "former", { kube: unheard })
			.leadership;
		const next = stand("unheard", "next");
		await Bun.sleep(3_000);
		relay.mute(true);
		const muted = performance.now();
		const [lostAfter, tookOverAfter] = (await Promise.all(
			[former?.lost, next.leadership].map(async (one) => {
				await one;
				return seconds(muted);
			}),
		)) as [number, number];
		expect(await former?.lost).toStartWith("not renewed for 8s: patch Lease");
		expect(tookOverAfter).toBeGreaterThan(lostAfter);
		expect(tookOverAfter).toBeLessThan(20);
	}, 60_000);

	test.concurrent("keeps its lease as short as it is, whatever somebody makes of it", async () => {
		await leaderOf("long");
		await cluster.kubectl([
			...["patch", "lease", "long", "--type=merge", "-p"],
			'{"spec":{"leaseDurationSeconds":3600}}',
		]);
		await until(
			async () => (await lease("long")).leaseDurationSeconds === 10,
			"others need not wait for longer",
		);
	}, 30_000);

	test.concurrent("that somebody else's hand has replaced, or whose lease is deleted, is told so", async () => {
		const [replaced, deleted] = await Promise.all([
			leaderOf("replaced"),
			leaderOf("deleted"),
		]);
		const patch = JSON.stringify({ spec: { holderIdentity: "usurper" } });
		await Promise.all([
			cluster.kubectl([
				"patch",
				"lease",
				"replaced",
				"--type=merge",
				"-p",
				patch,
			]),
			cluster.kubectl(["delete", "lease", "deleted"]),
		]);
		expect(await replaced.lost).toBe("usurper leads");
		expect(await deleted.lost).toContain("deleted");
		expect((await lease("replaced")).holderIdentity).toBe("usurper");
	}, 60_000);

	test.concurrent("stays one when somebody merely annotates its lease, as after an answer that got lost", async () => {
		const { lost } = await leaderOf("annotated");
		const before = (await lease("annotated")).renewTime;
		await cluster.kubectl(["annotate", "lease", "annotated", "note=seen"]);
		const renewed = until(
			async () => (await lease("annotated")).renewTime > before,
			"the lease is renewed",
		);
		expect(await Promise.race([lost, renewed])).toBeTrue();
	}, 60_000);

	// Not beside the others: from the first renewal in vain to the deadline, there are 2.5 s for another connection.
	test("whose connection dies without a word connects anew and keeps the lease", async () => {
		const relay = await Relay.start(cluster.server);
		cleanup.push(() => relay.refuse());
		const path = await relay.kubeconfig(cluster.kubeconfig, "dying");
		const leader = await stand("dying", "leader", { kube: client(path) })
			.leadership;
		relay.mute();
		const before = (await lease("dying")).renewTime;
		const renewed = until(
			async () => (await lease("dying")).renewTime > before,
			"the lease is renewed",
		);
		expect(await Promise.race([leader?.lost, renewed])).toBeTrue();
		expect(relay.connections).toBeGreaterThan(1);
		await leader?.release();
	}, 60_000);
});

describe("of several controllers with --leader-elect", () => {
	/** Names that are told by their tokens: one controller each. */
	const start = async (
		name: string,
		options: ControllerOptions = {},
	): Promise<Controller & { who: Identity }> => {
		const who = await identity(cluster, name);
		const controller = await startController(cluster, {
			kubeconfig: who.kubeconfig,
			flags: ["--leader-elect"],
			...options,
		});
		cleanup.push(() => controller.stop("SIGKILL"));
		return { ...controller, who };
	};
	const leads = (controller: Controller) =>
		until(() => controller.log().includes(" leading\n"), "it leads", 30_000);

	test.concurrent("one leads and writes; another takes over from a stopped one at once, from a killed one in 15 s, and nothing is lost", async () => {
		const names = numbered("elected", 20);
		await cluster.apply(...targets("elected", names));
		const first = await start("first");
		await leads(first);
		const second = await start("second");
		await until(() => second.log().includes(" leads; waiting"), "it waits");

		// Work all the time: an EtcdStorage every second.
		const created = (async () => {
			for (const storage of storages("elected", names)) {
				await Promise.all([cluster.apply(storage), Bun.sleep(1_000)]);
			}
		})();
		await until(() => first.log().includes(" created"), "there is work");

		const terminated = performance.now();
		expect(await first.stop("SIGTERM")).toBe(0);
		await leads(second);
		const handedOver = seconds(terminated);
		const third = await start("third");
		await until(() => third.log().includes(" leads; waiting"), "it waits");

		const killed = performance.now();
		await second.stop("SIGKILL");
		await leads(third);
		const tookOver = seconds(killed);
		await created;
		await settled(cluster, names);
		await third.stop();

		console.log(
			`takeover: ${handedOver.toFixed(1)} s after SIGTERM, ${tookOver.toFixed(1)} s after SIGKILL`,
		);
		expect(handedOver).toBeLessThan(10);
		expect(tookOver).toBeLessThan(20);
		await expectChains(cluster, "elected", names);

		const leaders = [first, second, third].map(({ who }) => who);
		const requests = await audited(cluster, ...leaders);
		expect(inTurn(requests, "credential")).toEqual(
			leaders.map(({ credential }) => credential),
		);
	}, 120_000);

	test("one that is blocked in the middle of its work, and goes on when another leads, writes nothing more", async () => {
		const names = numbered("blocked", 60);
		await cluster.apply(...targets("blocked", names));
		// Before anybody leads: there is more work than can be done until it is blocked.
		await cluster.apply(...storages("blocked", names));
		const file = join(cluster.dir, "blocked");
		await writeFile(file, "");
		const blocked = await start("blocked", {
			command: [
				process.execPath,
				...["--preload", join(import.meta.dir, "blocked.ts")],
				join(import.meta.dir, "../controller.ts"),
			],
			env: { BLOCKED_BY: file },
		});
		await until(() => blocked.log().includes(" created"), "there is work");
		// Not SIGSTOP: what has passed the fence is still sent, and the answers on which visits go on are there at its end.
		blocked.process.kill("SIGUSR2");
		const next = await start("next");
		await leads(next);
		await until(() => next.log().includes(" created"), "there is work left");
		await rm(file);
		expect(await blocked.process.exited).toBe(1);
		expect(blocked.log()).toContain("leadership lost: ");
		await settled(cluster, names, 120_000);
		await next.stop();
		await expectChains(cluster, "blocked", names);

		const leaders = [blocked, next].map(({ who }) => who);
		const requests = await audited(cluster, ...leaders);
		expect(inTurn(requests, "credential")).toEqual(
			leaders.map(({ credential }) => credential),
		);
	}, 300_000);
});

test("a leader whose process was blocked for longer than its lease knows it before any timer tells it", async () => {
	const leadership = await leaderOf("blocked");
	expect(leadership.holds()).toBeTrue();
	Bun.sleepSync(9_000);
	expect(leadership.holds()).toBeFalse();
}, 30_000);
