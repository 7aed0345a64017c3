/**
 * Installed as a user does, each of the three ways, on a real API server with its controllers but without nodes: it works
 * with the rights that come with it, in a namespace that is held to Pod Security's level restricted, and leaves what is to stay.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { binaries } from "./cluster/binaries.ts";
import { run } from "./cluster/processes.ts";
import { terminalLog } from "./cluster/steps.ts";
import {
	type Cluster,
	type Controller,
	condition,
	coreCredentials,
	established,
	eventsOf,
	FIRST_BUILD,
	type Json,
	NAMESPACE,
	startController,
	startEmptyCluster,
	until,
} from "./harness.ts";
import {
	artifacts,
	chart,
	commandLine,
	helm,
	helmHome,
	kustomized,
	manifest,
	manifestFile,
	one,
	templated,
} from "./installation.ts";

const MINUTE = 60_000;
/** Of the demo's EtcdStorage. */
const NAME = "sample-apiserver";
/** As in the README of artifacts/helm. */
const values = {
	core: { urls: ["https://etcd-svc-1.etcd.svc:2379"] },
	image: "registry.example.com/etcdproxy-controller:dev",
};

let cluster: Cluster;
let scratch: string;
const running: Controller[] = [];

beforeAll(async () => {
	await binaries(["helm"], terminalLog());
	scratch = await mkdtemp(join(tmpdir(), "etcdproxy-install-"));
	cluster = await startEmptyCluster({ controllerManager: true });
}, FIRST_BUILD);
afterAll(async () => {
	for (const controller of running) await controller.stop("SIGKILL");
	await cluster?.stop();
	await rm(scratch, { recursive: true, force: true });
}, MINUTE);

const kubectl = (...args: string[]) => cluster.kubectl(args);
const items = async (kind: string, ...args: string[]): Promise<Json[]> =>
	JSON.parse(await kubectl("get", kind, "-o", "json", ...args)).items;

/** Every object of every kind but events, which pass. */
async function everything(): Promise<string[]> {
	const kinds = (await kubectl("api-resources", "--verbs=list", "-o", "name"))
		.split("\n")
		.filter(
			(kind) => kind !== "" && !/^(events\b|componentstatuses$)/.test(kind),
		);
	const columns =
		"KIND:.kind,NAMESPACE:.metadata.namespace,NAME:.metadata.name";
	const text = await kubectl(
		...["get", kinds.join(","), "--all-namespaces"],
		...["--no-headers", "-o", `custom-columns=${columns}`],
	);
	return text
		.split("\n")
		.filter((line) => line !== "")
		.map((line) => line.replace(/ +/g, " ").trim())
		.sort();
}

/** Waits until there is nothing besides what there was before, but for these. */
async function expectLeft(before: string[], left: string[]): Promise<void> {
	let found: string[] = [];
	const same = async () => {
		found = (await everything()).filter((one) => !before.includes(one));
		return Bun.deepEquals(found, left.toSorted());
	};
	// Namespaces take a while to end.
	await until(same, "only what is to stay is left", MINUTE).catch(() =>
		expect(found).toEqual(left.toSorted()),
	);
}

/** Kubernetes' own, in a namespace that has some. */
const ofNamespace = (namespace: string) => [
	`Namespace <none> ${namespace}`,
	`ServiceAccount ${namespace} default`,
	`ConfigMap ${namespace} kube-root-ca.crt`,
];

/** Applies files of artifacts/, for a controller in that namespace. */
async function applyFor(namespace: string, ...files: string[]) {
	for (const file of files) {
		const text = await readFile(join(artifacts, file), "utf8");
		await cluster.kubectl(
			["apply", "-f", "-"],
			text.replaceAll(NAMESPACE, namespace),
		);
	}
}

/** Runs the commands of a README that contain a text, as they stand there but for what is another one here. */
async function follow(
	readme: string,
	text: string,
	replace: Record<string, string> = {},
): Promise<string> {
	const guide = await readFile(join(artifacts, readme, "README.md"), "utf8");
	const blocks = [...guide.matchAll(/^```sh\n(.*?)^```$/gms)]
		.map(([, block = ""]) => block)
		.filter((block) => block.includes(text));
	expect([readme, blocks.length]).toEqual([readme, 1]);
	const { kubectl, helm } = await binaries(["kubectl", "helm"]);
	const script = Object.entries(replace).reduce(
		(script, [there, here]) => script.replaceAll(there, here),
		blocks.join(),
	);
	return run(["sh", "-ec", script], {
		cwd: join(artifacts, ".."),
		env: {
			...helmHome(scratch),
			KUBECONFIG: cluster.kubeconfig,
			PATH: `${dirname(kubectl)}:${dirname(helm)}:${process.env.PATH}`,
		},
	});
}

/** The controller with the rights and the command line that were installed; only where the core is, is another matter here. */
async function installedController(
	objects: Json[],
	unready = false,
): Promise<Controller> {
	const { namespace } = one(objects, "Deployment").metadata;
	const kubeconfig = await cluster.kubeconfigForServiceAccount(
		...([namespace, "etcdproxy-controller-sa"] as const),
	);
	const flags = commandLine(objects).filter(
		(arg) => !arg.startsWith("--etcd-core-url="),
	);
	expect(flags).toContain(`--namespace=${namespace}`);
	const controller = await startController(cluster, {
		...{ kubeconfig, flags, unready },
	});
	running.push(controller);
	return controller;
}

/** What the demo's API server needs, made by the demo's own files; resolves when the controller has done all of it. */
async function expectWork(objects: Json[], controller: Controller) {
	const { namespace } = one(objects, "Deployment").metadata;
	await applyFor(
		namespace,
		...["demo/00-namespace.yaml", "etcdstorage/rbac.yaml"],
		"etcdstorage/example-etcdstorage.yaml",
	);
	const says = (type: string, pattern: RegExp) =>
		until(
			async () => pattern.test(await condition(cluster, NAME, type)),
			`${type} of ${NAME} is ${pattern}`,
		);
	await says("CertificatesReady", /^True /);
	await says("Deployed", /^False DeploymentNotAvailable/);
	const budget = await cluster.get("pdb", `etcd-${NAME}`, namespace);
	expect(budget.spec).toMatchObject({ maxUnavailable: 1 });
	// Whoever makes pods keeps to the namespace's level, or makes none.
	await until(
		async () => (await podsOf(namespace, `apiserver=${NAME}`)).length === 3,
		"the gateways' pods are made",
	);
	for (const pod of await podsOf(namespace, `apiserver=${NAME}`))
		expect([pod.spec.priorityClassName, pod.spec.priority]).toEqual([
			...["etcdproxy", 1_000_000_000],
		]);
	expect(
		(await eventsOf(cluster, NAME)).filter((event) =>
			event.startsWith("Normal CertificatesIssued"),
		).length,
	).toBeGreaterThan(0);
	expect(controller.log()).not.toMatch(/Forbidden|ERROR/);
}

const podsOf = (namespace: string, label: string) =>
	items("pods", "-n", namespace, "-l", label);

/** As many pods of the controller as there are to be were made: nothing refuses them. */
async function expectPods(objects: Json[]) {
	const { metadata, spec } = one(objects, "Deployment");
	const { namespace } = metadata;
	const labels = await cluster.get("namespace", namespace);
	expect(labels.metadata.labels).toMatchObject({
		"pod-security.kubernetes.io/enforce": "restricted",
	});
	const pods = await until(async () => {
		const found = await podsOf(namespace, "controller=etcdproxy");
		return found.length === spec.replicas && found;
	}, "the controller's pods are made");
	for (const pod of pods)
		expect([pod.spec.priority, pod.spec.serviceAccountName]).toEqual([
			...[1_000_000_000, "etcdproxy-controller-sa"],
		]);
}

async function removeDemo() {
	await kubectl("delete", "etcdstorage", NAME, "--timeout=20s");
	await kubectl("delete", "namespace", "k8s-sample-apiserver", "--timeout=60s");
}

/** They as they lie in the cluster, without what its controllers say of them. */
async function live(objects: Json[]): Promise<Json[]> {
	const list = { apiVersion: "v1", kind: "List", items: objects };
	const text = await cluster.kubectl(
		["get", "-f", "-", "-o", "json"],
		JSON.stringify(list),
	);
	return JSON.parse(text).items.map(({ status: _, ...object }: Json) => {
		const { resourceVersion: __, ...metadata } = object.metadata;
		return { ...object, metadata };
	});
}

describe("the manifest", () => {
	const objects = manifest();
	const apply = ["apply", "--validate=strict", "-f", manifestFile];
	const key = `/${NAME}/canary`;
	let before: string[];
	let controller: Controller;

	test(
		"is accepted to the letter, and applied again it changes nothing",
		async () => {
			before = await everything();
			await kubectl(...apply);
			await established(cluster);
			const applied = await live(objects);
			expect(applied).toHaveLength(objects.length);
			await kubectl(...apply);
			expect(await live(objects)).toEqual(applied);
			await kubectl(
				...["apply", "--server-side", "--force-conflicts", "--dry-run=server"],
				...["--validate=strict", "-f", manifestFile],
			);
		},
		MINUTE,
	);

	test(
		"makes pods that its namespace takes",
		async () => {
			await expectPods(objects);
		},
		MINUTE,
	);

	test(
		"gives the controller the rights for its work",
		async () => {
			await coreCredentials(cluster, NAMESPACE);
			controller = await installedController(objects);
			await expectWork(objects, controller);
		},
		MINUTE,
	);

	test.each([
		[
			"poddisruptionbudgets",
			/watch of PodDisruptionBudgets interrupted: .*Forbidden: .*; apply the manifest of this version again, whose Roles let the controller: artifacts\/deployment/,
		],
		[
			"leases",
			/cannot lead: .*Forbidden: .*; apply the manifest of this version again, whose Roles let the controller: artifacts\/deployment/,
		],
	])(
		"of a former version, without the right to %s, keeps a controller from being ready and from leading, which says what to apply",
		async (resource, said) => {
			const leader = async () =>
				(await cluster.get("lease", "etcdproxy-controller", NAMESPACE)).spec
					.holderIdentity;
			expect(await controller.stop()).toBe(0);
			const role = one(objects, "Role", "etcdproxy-controller-role");
			const rules = role.rules.filter(
				({ resources }: Json) => !resources.includes(resource),
			);
			expect(rules.length).toBeLessThan(role.rules.length);
			await cluster.apply({ ...role, rules });
			controller = await installedController(objects, true);
			await until(() => said.test(controller.log()), "it says so");
			expect((await fetch(`${controller.url}/readyz`)).status).toBe(503);
			// Whoever has the rights would lead now: it looks every two seconds.
			await Bun.sleep(5_000);
			expect(await leader()).toBe("");
			await kubectl(...apply);
			const ready = async () => (await fetch(`${controller.url}/readyz`)).ok;
			await until(ready, "it is ready", MINUTE);
			await until(leader, "it leads", MINUTE);
		},
		2 * MINUTE,
	);

	test(
		"lets nodes be drained one gateway at a time, and also of the only one",
		async () => {
			/** Pods do not get ready by themselves: there is no node. */
			const gateways = async (count: number) => {
				const found = await until(async () => {
					const pods = (await podsOf(NAMESPACE, `apiserver=${NAME}`)).filter(
						({ metadata }) => metadata.deletionTimestamp === undefined,
					);
					return pods.length === count && pods;
				}, `there are ${count} gateways`);
				for (const { metadata } of found)
					await kubectl(
						...["-n", NAMESPACE, "patch", "pod", metadata.name],
						...["--subresource=status", "--type=merge", "-p"],
						'{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}',
					);
				const budget = async () => {
					const { status } = await cluster.get(
						"pdb",
						`etcd-${NAME}`,
						NAMESPACE,
					);
					return status.currentHealthy === count && status.disruptionsAllowed;
				};
				expect(await until(budget, `all ${count} are known to be ready`)).toBe(
					1,
				);
				return found.map(({ metadata }) => metadata.name as string);
			};
			const evict = (name = "") =>
				cluster.kubectl(
					[
						...["create", "-f", "-", "--raw"],
						`/api/v1/namespaces/${NAMESPACE}/pods/${name}/eviction`,
					],
					JSON.stringify({
						...{ apiVersion: "policy/v1", kind: "Eviction" },
						metadata: { name, namespace: NAMESPACE },
					}),
				);
			const [first, second] = await gateways(3);
			await evict(first);
			await expect(evict(second)).rejects.toThrow(
				"violate the pod's disruption budget",
			);
			await kubectl(
				...["patch", "etcdstorage", NAME, "--type=merge"],
				...["-p", '{"spec":{"replicas":1}}'],
			);
			const [only] = await gateways(1);
			await evict(only);
		},
		2 * MINUTE,
	);

	test(
		"serves another API server that is made as artifacts/etcdstorage says",
		async () => {
			await follow("etcdstorage", "create secret generic etcd-client-cert");
			const ready = async () =>
				/^True /.test(
					await condition(cluster, "my-apiserver", "CertificatesReady"),
				);
			await until(ready, "its certificates are delivered");
			for (const [kind, name, key] of [
				["configmap", "etcd-serving-ca", "serving-ca.crt"],
				["secret", "etcd-client-cert", "tls.crt"],
			] as const)
				expect(
					(await cluster.get(kind, name, "my-namespace")).data[key],
				).toBeString();
			await kubectl("delete", "etcdstorage", "my-apiserver", "--timeout=20s");
			await kubectl("delete", "namespace", "my-namespace", "--timeout=60s");
		},
		MINUTE,
	);

	test(
		"finds a core etcd of kubeadm's by the certificate that artifacts/etcd makes, which has no Common Name",
		async () => {
			const { caFile } = cluster.etcd;
			const secret = async () =>
				(await cluster.get("secret", "etcd-coreserving-cert", NAMESPACE)).data;
			const before = await secret();
			await follow("etcd", "openssl x509", {
				"/etc/kubernetes/pki/etcd": dirname(caFile),
			});
			const data = await secret();
			expect(data["tls.crt"]).not.toBe(before["tls.crt"]);
			const [certFile, keyFile] = ["tls.crt", "tls.key"].map((name) =>
				join(scratch, name),
			) as [string, string];
			await writeFile(certFile, Buffer.from(data["tls.crt"], "base64"));
			await writeFile(keyFile, Buffer.from(data["tls.key"], "base64"));
			expect(
				await run([
					...["openssl", "verify", "-x509_strict", "-purpose", "sslclient"],
					...["-CAfile", caFile, certFile],
				]),
			).toContain(": OK");
			const subject = ["x509", "-in", certFile, "-noout", "-subject"];
			expect(await run(["openssl", ...subject])).toBe(
				"subject=O = etcdproxy\n",
			);
			const { etcdctl } = await binaries(["etcdctl"]);
			await run([
				...[etcdctl, `--endpoints=${cluster.etcd.url}`, `--cacert=${caFile}`],
				...[`--cert=${certFile}`, `--key=${keyFile}`, "endpoint", "health"],
			]);
		},
		MINUTE,
	);

	test(
		"deleted after its EtcdStorages leaves nothing but the keys in the core",
		async () => {
			const { url, caFile, certFile, keyFile } = cluster.etcd;
			const { etcdctl } = await binaries(["etcdctl"]);
			const inCore = (...args: string[]) =>
				run([
					...[etcdctl, `--endpoints=${url}`, `--cacert=${caFile}`],
					...[`--cert=${certFile}`, `--key=${keyFile}`, ...args],
				]);
			await inCore("put", key, "kept");
			await kubectl("delete", "namespace", "k8s-sample-apiserver");
			await follow("deployment", "kubectl delete etcdstorages --all");
			// Its lease has gone, too: it may have noticed.
			await controller.stop();
			await expectLeft(before, []);
			expect(await inCore("get", key, "--print-value-only")).toBe("kept\n");
		},
		3 * MINUTE,
	);
});

test(
	"the example of an overlay works in the namespace that it names, and leaves nothing",
	async () => {
		const folder = join(artifacts, "overlays/example");
		const before = await everything();
		await kubectl("apply", "--validate=strict", "-k", folder);
		await established(cluster);
		const objects = await kustomized(folder);
		await expectPods(objects);
		await coreCredentials(cluster, "etcdproxy");
		const controller = await installedController(objects);
		await expectWork(objects, controller);
		await removeDemo();
		expect(await controller.stop()).toBe(0);
		await kubectl("delete", "-k", folder, "--timeout=60s");
		await expectLeft(before, []);
	},
	4 * MINUTE,
);

describe("the chart", () => {
	const namespace = "storage";
	const release = (command: string, ...args: string[]) => [
		...[command, "etcdproxy", ...args, `--namespace=${namespace}`],
		`--kubeconfig=${cluster.kubeconfig}`,
	];
	const crd = () => cluster.get("crd", "etcdstorages.etcd.xmudrii.com");
	let objects: Json[];
	let before: string[];
	let controller: Controller;

	test(
		"is installed into a namespace of its own, and works there",
		async () => {
			before = await everything();
			const notes = await follow("helm", "--create-namespace", {
				[NAMESPACE]: namespace,
			});
			// Its next steps are done as they stand there, but with files that there are.
			const [label, ...credentials] = notes.match(/^ +kubectl .*$/gm) ?? [];
			expect(credentials.slice(0, 2).join()).toContain("--from-file=ca.crt,");
			await kubectl(...(label ?? "").trim().split(" ").slice(1));
			await coreCredentials(cluster, namespace);
			await established(cluster);
			objects = await templated(scratch, values, namespace);
			await expectPods(objects);
			controller = await installedController(objects);
			await expectWork(objects, controller);
		},
		2 * MINUTE,
	);

	test(
		"upgrades also the CustomResourceDefinition",
		async () => {
			const newer = await mkdtemp(join(scratch, "newer-"));
			await cp(chart, newer, { recursive: true });
			const file = join(newer, "templates/crd.yaml");
			const text = await readFile(file, "utf8");
			const changed = text.replace(
				"description: Gateways.",
				"description: New.",
			);
			expect(changed).not.toBe(text);
			await writeFile(file, changed);
			const more = { ...values, replicas: 3 };
			await helm(scratch, release("upgrade", newer), more);
			expect(JSON.stringify((await crd()).spec)).toContain("New.");
			await expectPods(await templated(scratch, more, namespace));
		},
		MINUTE,
	);

	test(
		"uninstalled leaves the CustomResourceDefinition, EtcdStorages, and what is theirs",
		async () => {
			expect(await controller.stop()).toBe(0);
			const answer = await helm(scratch, release("uninstall"));
			expect(answer).toContain("[CustomResourceDefinition] etcdstorages.etcd");
			const apiServer = "k8s-sample-apiserver";
			const left = async () => {
				const found = await everything();
				return found.filter(
					(one) =>
						!before.includes(one) &&
						!/^(Pod|ReplicaSet|EndpointSlice|Endpoints|IPAddress) /.test(one),
				);
			};
			const wanted = [
				`APIService <none> v1alpha1.etcd.xmudrii.com`,
				"CustomResourceDefinition <none> etcdstorages.etcd.xmudrii.com",
				`EtcdStorage <none> ${NAME}`,
				...ofNamespace(apiServer),
				`ConfigMap ${apiServer} etcd-serving-ca`,
				`Secret ${apiServer} etcd-client-cert`,
				`Role ${apiServer} etcdproxy-targets`,
				`RoleBinding ${apiServer} etcdproxy-targets`,
				...ofNamespace(namespace),
				`ConfigMap ${namespace} etcd-coreserving-ca`,
				`Secret ${namespace} etcd-coreserving-cert`,
				`ConfigMap ${namespace} ${NAME}-ca-cert`,
				`Secret ${namespace} ${NAME}-client-signer`,
				`Secret ${namespace} ${NAME}-server-cert`,
				`Secret ${namespace} ${NAME}-serving-signer`,
				`Service ${namespace} etcd-${NAME}`,
				`Deployment ${namespace} etcd-${NAME}`,
				`PodDisruptionBudget ${namespace} etcd-${NAME}`,
				`Lease ${namespace} etcdproxy-controller`,
			];
			await until(
				async () => (await left()).length === wanted.length,
				"what is of the release is gone",
				MINUTE,
			).catch(() => undefined);
			expect((await left()).toSorted()).toEqual(wanted.toSorted());
		},
		2 * MINUTE,
	);

	test(
		"is installed again where it was, and takes over what kubectl has applied",
		async () => {
			await helm(scratch, release("install", chart), values);
			await helm(scratch, release("uninstall"));
			const text = await readFile(manifestFile, "utf8");
			const applied = text.replaceAll(NAMESPACE, namespace);
			await cluster.kubectl(["apply", "-f", "-"], applied);
			const install = release("install", chart);
			await expect(helm(scratch, install, values)).rejects.toThrow(
				"invalid ownership metadata",
			);
			const take = ["--take-ownership", "--force-conflicts"];
			await helm(scratch, [...install, ...take], values);
			expect(JSON.stringify((await crd()).spec)).not.toContain("New.");
			// It goes on where it was.
			controller = await installedController(objects);
			await kubectl("-n", namespace, "delete", "service", `etcd-${NAME}`);
			await until(
				() => cluster.get("service", `etcd-${NAME}`, namespace),
				"the Service is back",
			);
		},
		2 * MINUTE,
	);

	test(
		"leaves nothing when the EtcdStorages go before it, and the rest after it",
		async () => {
			await removeDemo();
			expect(await controller.stop()).toBe(0);
			await helm(scratch, release("uninstall"));
			await kubectl("delete", "crd", "etcdstorages.etcd.xmudrii.com");
			await kubectl("delete", "namespace", namespace, "--timeout=60s");
			await expectLeft(before, []);
		},
		3 * MINUTE,
	);
});
