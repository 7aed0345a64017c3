/** The main job from beginning to end: an EtcdStorage becomes the storage of a real API server. */
import { readFileSync } from "node:fs";
import { exists, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { programImage as imageOf } from "../../build/image.ts";
import { compile, type Program } from "../../build/program.ts";
import type { EtcdStorage } from "../../etcdstorage.ts";
import { flags } from "../../options.ts";
import { NAMESPACE } from "../harness.ts";
import { Authority, type Certificate } from "./certificates.ts";
import { InstalledController } from "./installed.ts";
import type { LoadReport } from "./load.ts";
import type { Cluster } from "./node.ts";
import { etcdImage, programImage } from "./nodeconfig.ts";
import { type Child, type Log, run, silent } from "./processes.ts";
import { step } from "./steps.ts";

const root = join(import.meta.dirname, "../..");
const artifacts = join(root, "artifacts");

const storage = "sample-apiserver";
const coreUrl = "https://etcd-svc-1.etcd.svc:2379";
const endpoint = `https://etcd-${storage}.${NAMESPACE}.svc:2379`;
const flunderKey =
	"/registry/wardle.example.com/wardle.example.com/flunders/default/my-first-flunder";

/** Images of the manifests and what stands in for them: nothing is pulled. */
const replacements = {
	[String(flags["etcd-proxy-image"].default)]: programImage,
	"gcr.io/etcd-development/etcd:v3.7.3": etcdImage,
	"registry.k8s.io/e2e-test-images/sample-apiserver:1.29.2":
		"localhost/sample-apiserver:v0.37.2",
};

/** An etcd as etcdctl reaches it. */
export interface EtcdClient {
	url: string;
	/** Path of the authority of its serving certificate. */
	caFile: string;
	certificate?: Certificate;
	/** How long etcdctl tries. */
	timeout?: string;
}

export interface Demo {
	program: Program;
	controller: InstalledController;
	/** The core etcd, without any prefix. */
	core: EtcdClient;
	/** The endpoint of the EtcdStorage with the certificate from its Secret. */
	tenant: EtcdClient;
}

/**
 * Brings everything up and checks what a user relies on.
 * @param spec what the EtcdStorage has besides, or instead of, what artifacts/etcdstorage says
 * @throws Error at the first thing that is not so
 */
export async function runDemo(
	cluster: Cluster,
	log: Log = silent,
	spec: Partial<EtcdStorage["spec"]> = {},
): Promise<Demo> {
	const program = await importProgram(cluster, log);
	await step(log, "artifacts/deployment applied", async () => {
		await applyFile(cluster, "deployment/00-etcdproxy-controller.yaml");
		await waitFor(cluster, "Established", "crd/etcdstorages.etcd.xmudrii.com");
	});
	await step(log, "artifacts/etcd: the core etcd is ready", () =>
		applyCoreEtcd(cluster),
	);
	const controller = new InstalledController(cluster);
	await step(log, "two controllers are ready, one of them leads", async () => {
		await controller.rolledOut();
		await controller.leaderOtherThan("");
	});
	await step(log, `EtcdStorage ${storage} is Ready`, async () => {
		await applyFile(cluster, "demo/00-namespace.yaml");
		await applyFile(cluster, "etcdstorage/rbac.yaml");
		await applyStorage(cluster, spec);
		await waitFor(cluster, "Ready", `etcdstorage/${storage}`).catch(
			async (error: Error) => {
				throw new Error(`${error.message}\n${await controller.logs()}`, {
					cause: error,
				});
			},
		);
	});
	await step(
		log,
		"artifacts/demo: sample-apiserver is Available through the aggregation layer",
		async () => {
			await applyFile(cluster, "demo/01-sample-apiserver.yaml");
			await waitFor(
				cluster,
				"Available",
				"apiservice/v1alpha1.wardle.example.com",
			);
		},
	);
	await step(log, "Flunder created", () =>
		applyFile(cluster, "demo/flunder.yaml"),
	);
	const core = await coreClient(cluster);
	const tenant = await tenantClient(cluster);
	await checkSeparation(cluster, core, tenant, log);
	return { program, controller, core, tenant };
}

/** Compiles the program, and gives the node its image. */
export async function importProgram(
	cluster: Cluster,
	log: Log,
): Promise<Program> {
	const program = await step(log, "controller and gateway compiled", () =>
		compile(join(cluster.dir, "etcdproxy-controller")),
	);
	await step(log, `they are the image ${programImage}`, async () => {
		const { image } = await imageOf(program, { log });
		await cluster.importImage(programImage, image);
	});
	return program;
}

/** Applies a file of artifacts/, with the cluster's own images. */
export async function applyFile(cluster: Cluster, file: string): Promise<void> {
	await cluster.kubectl(["apply", "--filename=-"], await applied(file));
}

/** A file of artifacts/ as it is applied. */
export const applied = async (file: string): Promise<string> =>
	withImages(await readFile(join(artifacts, file), "utf8"));

const withImages = (manifest: string): string =>
	Object.entries(replacements).reduce(
		(text, [from, to]) => text.replaceAll(from, to),
		manifest,
	);

async function applyStorage(
	cluster: Cluster,
	spec: Partial<EtcdStorage["spec"]>,
): Promise<void> {
	const example = await readFile(
		join(artifacts, "etcdstorage/example-etcdstorage.yaml"),
		"utf8",
	);
	const patch = `--patch=${JSON.stringify({ spec })}`;
	const patched = await cluster.kubectl(
		[
			"patch",
			"--local",
			"--type=merge",
			patch,
			"--filename=-",
			"--output=json",
		],
		example,
	);
	await cluster.kubectl(["apply", "--filename=-"], withImages(patched));
}

/** The example core etcd with new certificates; ready when it resolves. Needs the namespace of artifacts/deployment. */
export async function applyCoreEtcd(cluster: Cluster): Promise<void> {
	await applyFile(cluster, "etcd/etcd.yaml");
	await cluster.kubectl(
		["apply", "--filename=-"],
		await run(["sh", join(artifacts, "etcd/certificates.sh")]),
	);
	await cluster.kubectl([
		"rollout",
		"status",
		"--namespace=etcd",
		"statefulset/etcd",
		"--timeout=60s",
	]);
}

/**
 * Runs a program of this folder in the cluster's network while something happens.
 * @param what happens: no two of its logs may have the same name
 * @param env the program's, besides
 * @returns what its last line says
 * @throws Error when `action` does, or when the program has crashed
 */
export async function meanwhile<Report>(
	cluster: Cluster,
	what: string,
	file: "load.ts" | "laws.ts",
	action: (program: Child) => Promise<unknown>,
	env?: Record<string, string>,
): Promise<Report> {
	const name = `${file} ${what}`.replaceAll(/\W+/g, "-");
	const path = join(import.meta.dirname, file);
	const command = [process.execPath, path, cluster.kubeconfig];
	const program = cluster.spawn(name, command, env);
	try {
		await action(program);
	} finally {
		await program.stop("SIGTERM", 60_000);
	}
	const lines = readFileSync(program.logFile, "utf8").trimEnd().split("\n");
	const report = JSON.parse(lines.at(-1) ?? "");
	if ("crashed" in report) throw new Error(`${file}: ${report.crashed}`);
	return report;
}

/** What becomes of a constant load on the API server while something happens. It is printed. */
export async function underLoad(
	cluster: Cluster,
	what: string,
	action: () => Promise<unknown>,
): Promise<LoadReport> {
	const report = await meanwhile<LoadReport>(cluster, what, "load.ts", action);
	const { failures, missed, ...figures } = report;
	console.log(
		`${what}: ${JSON.stringify(figures)}, ${failures.length} failed, ${missed.length} missed`,
	);
	for (const one of [...failures, ...missed].slice(0, 20)) console.log(one);
	return report;
}

/** @throws Error with the object's conditions when it does not come to that in `seconds` */
export async function waitFor(
	cluster: Cluster,
	condition: string,
	object: string,
	seconds = 60,
): Promise<void> {
	try {
		await cluster.kubectl([
			"wait",
			`--for=condition=${condition}`,
			object,
			`--timeout=${seconds}s`,
		]);
	} catch (error) {
		const conditions =
			'{range .status.conditions[*]}{.type}={.status} {.reason}: {.message}{"\\n"}{end}';
		const found = await cluster.kubectl([
			"get",
			object,
			`--output=jsonpath=${conditions}`,
		]);
		throw new Error(
			`${object} is not ${condition} after ${seconds} s:\n${found}`,
			{ cause: error },
		);
	}
}

/** Runs etcdctl in the cluster's network. @throws Error with what it says */
export const etcdctl = (
	cluster: Cluster,
	etcd: EtcdClient,
	args: string[],
): Promise<string> => cluster.exec(etcdctlCommand(cluster, etcd, args));

/** The words that run etcdctl. */
const etcdctlCommand = (
	cluster: Cluster,
	{ url, caFile, certificate, timeout = "30s" }: EtcdClient,
	args: string[],
): string[] => [
	cluster.binary("etcdctl"),
	`--endpoints=${url}`,
	`--cacert=${caFile}`,
	...(certificate
		? [`--cert=${certificate.certFile}`, `--key=${certificate.keyFile}`]
		: []),
	`--command-timeout=${timeout}`,
	...args,
];

/** The core etcd, with the certificate that the proxies have for it. */
export function coreClient(cluster: Cluster): Promise<EtcdClient> {
	return clientFrom(
		cluster,
		"core",
		coreUrl,
		NAMESPACE,
		"etcd-coreserving-ca",
		"ca.crt",
		"etcd-coreserving-cert",
	);
}

/**
 * The endpoint of the EtcdStorage, with the certificate of its API server.
 * @param copy name of its files; they are written anew for another client of the same name
 */
export function tenantClient(
	cluster: Cluster,
	copy = "tenant",
): Promise<EtcdClient> {
	return clientFrom(
		cluster,
		copy,
		endpoint,
		"k8s-sample-apiserver",
		"etcd-serving-ca",
		"serving-ca.crt",
		"etcd-client-cert",
	);
}

async function clientFrom(
	cluster: Cluster,
	file: string,
	url: string,
	namespace: string,
	configMap: string,
	caKey: string,
	secret: string,
): Promise<EtcdClient> {
	const read = async (
		kind: string,
		name: string,
	): Promise<Record<string, string>> =>
		JSON.parse(
			await cluster.kubectl([
				"get",
				kind,
				name,
				`--namespace=${namespace}`,
				"--output=jsonpath={.data}",
			]),
		);
	const [ca, pair] = await Promise.all([
		read("configmap", configMap),
		read("secret", secret),
	]);
	const path = (extension: string) => join(cluster.dir, `${file}.${extension}`);
	const decode = (key: string) => Buffer.from(pair[key] ?? "", "base64");
	await Promise.all([
		writeFile(path("ca"), ca[caKey] ?? ""),
		writeFile(path("crt"), decode("tls.crt")),
		writeFile(path("key"), decode("tls.key"), { mode: 0o600 }),
	]);
	return {
		url,
		caFile: path("ca"),
		certificate: { certFile: path("crt"), keyFile: path("key") },
	};
}

/** Checks who can see what. @throws Error at the first thing that is not so */
async function checkSeparation(
	cluster: Cluster,
	core: EtcdClient,
	tenant: EtcdClient,
	log: Log,
): Promise<void> {
	const keys = async (etcd: EtcdClient) =>
		(await etcdctl(cluster, etcd, ["get", "", "--from-key", "--keys-only"]))
			.split("\n")
			.filter((line) => line !== "");
	const canary = "/another-tenant/canary";

	await step(
		log,
		"the Flunder is read back through the API server",
		async () => {
			const name = await cluster.kubectl([
				"get",
				"flunder",
				"my-first-flunder",
				"--output=name",
			]);
			expect(
				name.trim() === "flunder.wardle.example.com/my-first-flunder",
				`kubectl get flunder says ${name}`,
			);
		},
	);
	await step(
		log,
		`in the core etcd its key is /${storage}/${flunderKey}`,
		async () => {
			await etcdctl(cluster, core, ["put", canary, "not for others"]);
			const all = await keys(core);
			expect(
				all.includes(`/${storage}/${flunderKey}`) && all.includes(canary),
				`the keys are\n${all.join("\n")}`,
			);
		},
	);
	await step(
		log,
		`through the endpoint it is ${flunderKey}, and ${canary} is not to be seen`,
		async () => {
			const all = await keys(tenant);
			expect(
				all.includes(flunderKey),
				`no ${flunderKey} among\n${all.join("\n")}`,
			);
			const foreign = all.filter(
				(key) => !key.startsWith("/registry/") && key !== "compact_rev_key",
			);
			expect(foreign.length === 0, `foreign keys: ${foreign.join(", ")}`);
			expect(
				(await etcdctl(cluster, tenant, ["get", canary])) === "",
				`${canary} can be read`,
			);
		},
	);
	await step(
		log,
		"etcdctl snapshot save through the endpoint is refused, and says what to do",
		async () => {
			const file = join(cluster.dir, "snapshot");
			const answer = await etcdctl(cluster, tenant, [
				"snapshot",
				"save",
				file,
			]).catch((error: Error) => error.message);
			expect(
				answer.includes(
					"etcdproxy: Snapshot: a snapshot has the keys of all tenants",
				),
				`it says ${answer}`,
			);
			expect(!(await exists(file)), `${file} is there`);
		},
	);
	await step(
		log,
		"etcdctl member list shows one member, the endpoint",
		async () => {
			const { members } = JSON.parse(
				await etcdctl(cluster, tenant, ["member", "list", "--write-out=json"]),
			);
			const urls = members.flatMap((one: { clientURLs?: string[] }) => [
				...(one.clientURLs ?? []),
			]);
			expect(
				members.length === 1 && urls.join() === endpoint,
				`it shows ${JSON.stringify(members)}`,
			);
		},
	);
	const attempts = {
		"a client without a certificate": {
			url: tenant.url,
			caFile: tenant.caFile,
		},
		"a client with a certificate of another authority": {
			...tenant,
			certificate: await strangersCertificate(cluster),
		},
		"a client with the certificate for the core etcd": {
			...core,
			url: tenant.url,
			caFile: tenant.caFile,
		},
	};
	await Promise.all(
		Object.entries(attempts).map(([who, client]) =>
			step(log, `${who} is refused`, async () => {
				const hasty = { ...client, timeout: "3s" };
				const answer = await etcdctl(cluster, hasty, ["get", flunderKey]).catch(
					() => undefined,
				);
				expect(answer === undefined, `it was answered: ${answer}`);
				// It was the certificate: with the right one there is an answer at once.
				expect(
					(await etcdctl(cluster, tenant, ["get", flunderKey])) !== "",
					"the API server is refused, too",
				);
			}),
		),
	);
}

async function strangersCertificate(cluster: Cluster): Promise<Certificate> {
	const authority = await Authority.create(
		join(cluster.dir, "stranger"),
		"stranger",
	);
	return authority.issue("client", { subject: `/CN=${storage}` });
}

function expect(condition: boolean, otherwise: string): void {
	if (!condition) throw new Error(otherwise);
}
