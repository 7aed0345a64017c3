/**
 * The takeover from the Go controller of 2018 by a controller that is killed after each of its writes, one after the
 * other: against a real API server without a kubelet, visit by visit in this process, without a status to remember by.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { Kube, type KubeObject, loadKubeConfig } from "../kube.ts";
import { type Domain, domains } from "../lifetimes.ts";
import { FIELD_MANAGER } from "../manifests.ts";
import { visit } from "../visit.ts";
import { client, lenientVerify } from "./client.ts";
import {
	apiServerNamespace,
	FIRST_BUILD,
	type Json,
	startCluster,
} from "./harness.ts";
import * as predecessor from "./predecessor.ts";
import {
	certificates,
	consumer,
	consumerRole,
	consumers,
	parts,
	rotations,
	target,
} from "./rotating.ts";
import type { Stage } from "./stage.ts";
import { visitContext } from "./visiting.ts";

const DAY = 86_400_000;
/** More than a kubelet takes, after which consumers are restarted. */
const LATER = 60_000;
const on = {} as Pick<Stage, "cluster" | "api">;
const scene = rotations(on);

beforeAll(async () => {
	on.cluster = await startCluster();
	on.api = client(on.cluster);
}, FIRST_BUILD);
afterAll(() => on.cluster?.stop(), 30_000);

class Killed extends Error {}

/** Who writes so many times, and never again. */
class Mortal extends Kube {
	writes = 0;
	readonly #last: number;

	constructor(last: number) {
		const config = loadKubeConfig(on.cluster.kubeconfig);
		super(config, { fieldManager: FIELD_MANAGER });
		this.#last = last;
	}

	#mayWrite(): void {
		if (this.writes >= this.#last) throw new Killed();
		this.writes++;
	}

	override async create<T extends KubeObject>(object: T): Promise<T> {
		this.#mayWrite();
		return super.create(object);
	}

	override async apply<T extends KubeObject>(
		...args: Parameters<Kube["apply"]>
	): Promise<T> {
		this.#mayWrite();
		return super.apply(...args) as Promise<T>;
	}

	override async patch<T extends KubeObject>(
		...args: Parameters<Kube["patch"]>
	): Promise<T> {
		this.#mayWrite();
		return super.patch<T>(...args);
	}
}

/** A visit of a controller that has just started. @returns whether another is due at once */
async function visitOnce(
	name: string,
	kube: Kube,
	now: () => number,
): Promise<boolean> {
	const context = await visitContext(on.cluster, kube);
	const storage = context.storages.get(name);
	if (!storage) throw new Error(`no EtcdStorage ${name}`);
	const outcome = await visit(storage, { ...context, now });
	expect(outcome.problems).toEqual([]);
	return outcome.stepped || outcome.written.length > 0;
}

/** An EtcdStorage of 2018 that nobody has touched, and its API server. */
async function inherit(name: string): Promise<predecessor.Material> {
	const material = await predecessor.material(name, {
		issued: Date.now() - 20 * DAY,
		expires: Date.now() + 10 * DAY,
	});
	await on.cluster.apply(
		...apiServerNamespace(target(name)),
		...consumerRole(name),
		consumer(name, "api-1"),
	);
	await scene.says(name, "api-1", "rolled out");
	await predecessor.leave(on.cluster.kubectl, name, {
		...{ material, unmanaged: true },
		spec: { consumers: consumers(name, 1) },
	});
	return material;
}

/** What somebody who verifies has loaded, by domain. */
type Loaded = Record<Domain, string>;

/** Expects the API server to be served, and to be let in. */
async function expectServed(name: string, when: string, loaded: Loaded) {
	const chains = {
		client: await scene.leaf(name, "client"),
		serving: await scene.leaf(name, "serving"),
	};
	for (const domain of domains) {
		const { purpose } = parts[domain];
		for (const [who, bundle] of [
			["who has been there", loaded[domain]],
			["who starts now", await scene.bundle(name, domain)],
		] as const)
			expect([
				...[when, domain, who],
				lenientVerify(purpose, chains[domain], bundle),
			]).toEqual([when, domain, who, "OK"]);
	}
}

/**
 * The whole takeover. The controller is killed after so many writes, and another takes its place.
 * @returns how many writes it took
 */
async function takeOver(name: string, last: number): Promise<number> {
	const material = await inherit(name);
	const loaded = { client: material.clientCA, serving: material.server };
	let kube = new Mortal(last);
	let writes = 0;
	let ahead = 0;
	for (let count = 0; count < 40; count++) {
		let busy = true;
		try {
			busy = await visitOnce(name, kube, () => Date.now() + ahead);
		} catch (error) {
			if (!(error instanceof Killed)) throw error;
			kube = new Mortal(Number.POSITIVE_INFINITY);
		}
		writes = Math.max(writes, kube.writes);
		// There are no pods: gateways that start have what is there.
		loaded.client = await scene.bundle(name, "client");
		await expectServed(name, `killed after ${last}, visit ${count}`, loaded);
		const restarted = await scene.restartedFor(name, "api-1");
		if (restarted !== "" && loaded.serving === material.server) {
			loaded.serving = await scene.bundle(name, "serving");
			await scene.says(name, "api-1", "rolled out");
		} else if (!busy && ahead === 0) ahead = LATER;
		else if (!busy && restarted !== "") break;
	}
	for (const domain of domains) {
		await scene.expectWhole(name, domain);
		const { data } = await scene.signer(name, domain);
		expect(Object.keys(data ?? {}).sort()).toEqual([
			...["ca-bundle.crt", "tls.crt", "tls.key"],
		]);
		const trusted = certificates(await scene.bundle(name, domain));
		expect(trusted.map((one) => one.publicKey.asymmetricKeyType)).toEqual([
			"rsa",
			"ec",
		]);
	}
	for (const [kind, object] of [
		["Deployment", `etcd-${name}`],
		["Service", `etcd-${name}`],
		["ConfigMap", `${name}-ca-cert`],
		["Secret", `${name}-server-cert`],
	] as const) {
		const { metadata }: Json = await on.api.get(kind, object);
		expect([object, metadata.ownerReferences?.[0].name]).toEqual([
			...[object, name],
		]);
	}
	const { spec } = await on.api.get("Deployment", `etcd-${name}`);
	expect(spec.template.spec.volumes).toHaveLength(4);
	return writes;
}

test("a takeover that is cut off after any of its writes is brought to its end, and the API server is served all the time", async () => {
	const writes = await takeOver("never", Number.POSITIVE_INFINITY);
	console.log(`a takeover takes ${writes} writes`);
	expect(writes).toBeGreaterThan(15);
	for (let last = 0; last < writes; last++)
		await takeOver(`after-${last}`, last);
}, 600_000);
