/**
 * Controllers that have nothing to do, and controllers that can do nothing: two without an election have raced for the
 * same EtcdStorages and are now watched doing nothing, while others come with every kind of credentials.
 */

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { sign } from "node:crypto";
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { compile } from "../build/program.ts";
import { Kube, type KubeObject, loadKubeConfig } from "../kube.ts";
import { FIELD_MANAGER } from "../manifests.ts";
import { visit } from "../visit.ts";
import { audited, identity, isWrite } from "./audit.ts";
import { Authority } from "./cluster/certificates.ts";
import {
	type Cluster,
	type Controller,
	type ControllerOptions,
	FIRST_BUILD,
	NAMESPACE,
	startCluster,
	startController,
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
import { visitContext } from "./visiting.ts";

const root = join(import.meta.dir, "..");
const names = numbered("both", 20);
let cluster: Cluster;
let observatory: Observatory;
let dir: string;
let binary: string;
let another: Authority;
let resting: Observed;
let halfOpen: Observed;
let mutedAt: number;
let restingSince: number;
let versionsAtRest: Map<string, string>;

beforeAll(async () => {
	dir = await mkdtemp(join(tmpdir(), "rest-test-"));
	another = await Authority.create(join(dir, "another"), "another-ca");
	binary = join(dir, "etcdproxy-controller");
	const build = compile(binary);
	cluster = await startCluster();
	observatory = new Observatory(cluster);
	await build;

	await cluster.apply(...targets("both", [...names, "unheard"]));
	resting = await observatory.start();
	halfOpen = await observatory.start();
	await cluster.apply(...storages("both", names));
	await settled(cluster, names);
	await Promise.all([resting.atRest(), halfOpen.atRest()]);
	halfOpen.relay.mute();
	mutedAt = performance.now();
	await cluster.apply(...storages("both", ["unheard"]));
	await settled(cluster, ["unheard"]);
	await resting.atRest();
	versionsAtRest = await versions();
	restingSince = Date.now();
}, FIRST_BUILD);

/** The resourceVersion of every object and every EtcdStorage. */
async function versions(): Promise<Map<string, string>> {
	const objects = await objectsOf(cluster, "both", [...names, "unheard"]);
	const { items } = JSON.parse(
		await cluster.kubectl(["get", "etcdstorages", "-o", "json"]),
	);
	return new Map(
		[...objects.values(), ...(items as KubeObject[])].map(
			({ kind, metadata: { namespace, name, resourceVersion = "" } }) => [
				`${kind} ${namespace}/${name}`,
				resourceVersion,
			],
		),
	);
}

afterAll(async () => {
	await observatory?.end();
	await cluster?.stop();
	await rm(dir, { recursive: true });
}, 60_000);

describe("two controllers without an election", () => {
	test.concurrent("that raced for the same EtcdStorages have left one signer each, and leaves of it", async () => {
		await expectChains(cluster, "both", [...names, "unheard"]);
		const requests = await audited(cluster, resting.who, halfOpen.who);
		const creators = requests
			.filter(({ verb, code }) => verb === "create" && code === 201)
			.filter(({ resource }) => resource === "secrets")
			.map(({ credential }) => credential);
		// Else it was no race.
		expect(new Set(creators).size).toBe(2);
	}, 30_000);

	test.concurrent("write nothing for 45 s once all is well, and read nothing but the targets", async () => {
		await Bun.sleep(restingSince + 45_000 - Date.now());
		const requests = (await audited(cluster, resting.who)).filter(
			({ at }) => at > restingSince,
		);
		const reads = requests.filter((request) => !isWrite(request));
		expect(requests.length - reads.length).toBe(0);
		// Nor did the other one, just awake, change anything by what it had missed.
		expect(await versions()).toEqual(versionsAtRest);
		const isTarget = ({ verb, namespace, name = "" }: (typeof reads)[number]) =>
			verb === "get" &&
			namespace === "both" &&
			[...names, "unheard"].includes(name);
		// A sign of life is asked for on a silent connection.
		const isPing = ({ resource }: (typeof reads)[number]) =>
			resource.startsWith("/version");
		expect(
			reads.filter((request) => !isTarget(request) && !isPing(request)),
		).toEqual([]);
		// Each of two targets is looked at about once in 40 s.
		const looks = reads.filter(isTarget).length / (names.length + 1) / 2;
		expect(looks).toBeGreaterThan(0.9);
		expect(looks).toBeLessThan(2.5);
	}, 90_000);
});

test.concurrent("a signer that appears while another is being made is not replaced by it", async () => {
	const [name = ""] = names;
	const kube = new Kube(loadKubeConfig(cluster.kubeconfig), {
		fieldManager: FIELD_MANAGER,
	});
	const context = await visitContext(cluster, kube);
	const { owned, storages } = context;
	const signers = [...owned.Secret.values()].filter(({ metadata }) =>
		[`${name}-client-signer`, `${name}-serving-signer`].includes(metadata.name),
	);
	expect(signers).toHaveLength(2);
	// The watch is behind, and catches up between the decision and the write.
	owned.Secret.replace(
		[...owned.Secret.values()].filter((one) => !signers.includes(one)),
	);
	let asked = 0;
	const storage = storages.get(name);
	if (!storage) throw new Error("no EtcdStorage");
	const visited = visit(storage, {
		...context,
		now: () => {
			if (++asked === 2)
				for (const signer of signers) owned.Secret.event("ADDED", signer);
			return Date.now();
		},
	});
	expect(visited).rejects.toMatchObject({ code: 409 });
	await visited.catch(() => undefined);
	expect(asked).toBeGreaterThan(1);
	for (const { metadata } of signers)
		expect(
			(await cluster.get("secret", metadata.name, NAMESPACE))?.metadata,
		).toMatchObject({ resourceVersion: metadata.resourceVersion });
}, 30_000);

test.concurrent("a connection that died without a word is noticed, and what happened meanwhile is seen", async () => {
	const seen = () =>
		halfOpen.metric(
			"etcdproxy_certificate_not_after_timestamp_seconds",
			'etcdstorage="unheard"',
		);
	expect(await seen()).toBe(0);
	await until(async () => (await seen()) > 0, "it is seen", 75_000);
	expect((performance.now() - mutedAt) / 1000).toBeLessThan(60);
	expect(halfOpen.log()).toContain("no answer in time");
	expect(await halfOpen.healthy("healthz")).toBeTrue();
}, 90_000);

test.concurrent.each([
	["is closed", "2>&-"],
	["lies on a full disk", "2>/dev/full"],
	["is a pipe that nobody reads any more", "2> >(exec true)"],
])(
	"a log that %s does not stop the work",
	async (_, redirection) => {
		const controller = await startController(cluster, {
			command: [
				...["bash", "-c", `exec "$@" ${redirection}`, "bash"],
				...[process.execPath, join(root, "controller.ts")],
			],
		});
		await Bun.sleep(1_000);
		expect((await fetch(`${controller.url}/readyz`)).status).toBe(200);
		expect(await controller.stop()).toBe(0);
	},
	30_000,
);

describe("a kubeconfig", () => {
	let files = 0;
	/** JSON is YAML. */
	const kubeconfig = async (user: object, authority = cluster.caFile) => {
		const path = join(dir, `kubeconfig-${++files}`);
		const server = {
			server: cluster.server,
			"certificate-authority": authority,
		};
		await writeFile(
			path,
			JSON.stringify({
				clusters: [{ name: "c", cluster: server }],
				users: [{ name: "u", user }],
				contexts: [{ name: "x", context: { cluster: "c", user: "u" } }],
				"current-context": "x",
			}),
		);
		return path;
	};
	const execPlugin = (command: string) => {
		const apiVersion = "client.authentication.k8s.io/v1";
		return kubeconfig({
			exec: { apiVersion, command, interactiveMode: "Never" },
		});
	};
	const script = async (name: string, text: string) => {
		const path = join(dir, name);
		await writeFile(path, `#!/bin/sh\n${text}\n`);
		await chmod(path, 0o755);
		return path;
	};

	/** It lives, is not ready, says why in few lines, and ends when it is told to. */
	async function expectPatience(
		options: ControllerOptions,
		reason: string,
	): Promise<Controller> {
		const controller = await startController(cluster, {
			...options,
			unready: true,
		});
		await until(() => controller.log().includes(reason), `it says "${reason}"`);
		await Bun.sleep(2_000);
		expect((await fetch(`${controller.url}/healthz`)).status).toBe(200);
		expect((await fetch(`${controller.url}/readyz`)).status).toBe(503);
		expect(controller.log().split("\n").length).toBeLessThan(15);
		expect(await controller.stop()).toBe(0);
		return controller;
	}

	/** It ends at once, with one line. */
	async function expectEnd(path: string): Promise<void> {
		const controller = await startController(cluster, {
			kubeconfig: path,
			unready: true,
		});
		expect(await controller.process.exited).toBe(1);
		expect(controller.log()).toMatch(/^[^\n]*\n$/);
		expect(controller.log()).toStartWith(
			`etcdproxy-controller: kubeconfig ${path}: `,
		);
		expect(controller.log()).not.toContain("top-secret");
	}

	test.concurrent(
		"that is missing ends the controller with 1 and its name",
		() => expectEnd("/no/such/kubeconfig"),
		30_000,
	);

	test.concurrent("that is garbage ends the controller with 1 and its name, and is not quoted", async () => {
		const path = join(dir, "garbage");
		await writeFile(path, "users: [\n  token: top-secret: }");
		await expectEnd(path);
	}, 30_000);

	test.concurrent("with a wrong authority is of no use, and that server is not shown the token", async () => {
		const who = await identity(cluster, "misled");
		const path = await kubeconfig({ token: who.token }, another.certFile);
		const reason = `${cluster.server}: certificate refused`;
		await expectPatience({ kubeconfig: path }, reason);
		await expectPatience({ kubeconfig: path, command: [binary] }, reason);
		expect(await audited(cluster, who)).toEqual([]);
	}, 60_000);

	test.concurrent("serves the compiled binary as well", async () => {
		const { kubeconfig: path } = await identity(cluster, "compiled");
		const command = [binary];
		const controller = await startController(cluster, {
			kubeconfig: path,
			command,
		});
		expect(await controller.stop()).toBe(0);
	}, 30_000);

	const hint =
		"Unauthorized: Unauthorized; the kubeconfig's credentials are wrong or have expired";

	test.concurrent("with an expired client certificate is told so, and tried again", async () => {
		const path = await cluster.kubeconfigFor("late", ["system:masters"], -1);
		await expectPatience({ kubeconfig: path }, hint);
	}, 30_000);

	test.concurrent("with an expired token, or with one that is none, is told so, and tried again", async () => {
		const { token } = await identity(cluster, "expired");
		const [head = "", claims = ""] = token.split(".");
		const past = {
			...JSON.parse(Buffer.from(claims, "base64url").toString()),
			...{ iat: 1, nbf: 1, exp: 2 },
		};
		const text = `${head}.${Buffer.from(JSON.stringify(past)).toString("base64url")}`;
		const keyFile = join(cluster.dir, "pki", "service-account.key");
		const signature = sign("sha256", Buffer.from(text), {
			key: await Bun.file(keyFile).text(),
			dsaEncoding: "ieee-p1363",
		});
		const expired = `${text}.${signature.toString("base64url")}`;
		await Promise.all(
			[expired, "top-secret"].map(async (token) => {
				const path = await kubeconfig({ token });
				const controller = await expectPatience({ kubeconfig: path }, hint);
				expect(controller.log()).not.toContain(token);
			}),
		);
	}, 30_000);

	test.concurrent("with an exec plugin works", async () => {
		const { token } = await identity(cluster, "plugged");
		const credential = JSON.stringify({
			apiVersion: "client.authentication.k8s.io/v1",
			kind: "ExecCredential",
			status: { token },
		});
		const plugin = await script("plugin", `echo '${credential}'`);
		const controller = await startController(cluster, {
			kubeconfig: await execPlugin(plugin),
		});
		expect(await controller.stop()).toBe(0);
	}, 30_000);

	test.concurrent("with an exec plugin that fails, or is missing, is told with its words or its name", async () => {
		const failing = await script("failing", "echo log in first >&2; exit 1");
		await Promise.all([
			expectPatience({ kubeconfig: await execPlugin(failing) }, "log in first"),
			expectPatience(
				{ kubeconfig: await execPlugin("no-such-plugin") },
				"no-such-plugin",
			),
		]);
	}, 30_000);
});

test("no private key and no token was logged, measured, or written where it does not belong", async () => {
	await observatory.end();
	await expectNoSecrets(cluster, observatory);
}, 60_000);
