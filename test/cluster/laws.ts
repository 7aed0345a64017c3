/**
 * The laws of a signer's replacement, looked at from outside all the time, as a process of its own in the cluster's
 * network: every proxy's certificate verifies against every bundle in use, and every client certificate in use is
 * accepted by every proxy. In use are those in the targets now, and those that each running API server has: its CA as
 * it was when it started, its client certificate as it is. openssl judges.
 * `bun laws.ts KUBECONFIG`; SIGTERM ends it, and its last line says as JSON what was seen; lines before tell of steps.
 */
import { X509Certificate } from "node:crypto";
import { readFileSync, readlinkSync } from "node:fs";
import type { EtcdStorage } from "../../etcdstorage.ts";
import { BACKDATE, type Domain, domains } from "../../lifetimes.ts";
import { type Json, NAMESPACE } from "../harness.ts";
import { type Credentials, connect } from "./handshake.ts";
import { type User, user } from "./load.ts";
import { processesWith } from "./processes.ts";

/** What was seen. */
export interface LawsReport {
	samples: number;
	/** Tries to open a connection that had to succeed, with the server's and the client's certificate verified. */
	handshakes: number;
	/** "time proxy, bundle, client: what openssl says" of those that did not. */
	violations: string[];
	/** Processes of the API server, and pods of the proxies. */
	apiServers: number;
	proxies: number;
	/** Different certificates in the Secrets. */
	leaves: { server: number; client: number };
	/** Each signer once, in order. */
	rotations: Record<Domain, SeenRotation[]>;
	/** Condition and its message, each once. */
	conditions: string[];
}

/** The life of a signer. Times in seconds since it was made. */
export interface SeenRotation {
	generation: string;
	/** When it was made. */
	made: string;
	/** All who verify are known to have loaded it. */
	confirmed?: number;
	/** It has expired, and is in no bundle any more. */
	retired?: number;
	/** Whom it waited for. */
	waits: string[];
}

const NAME = "sample-apiserver";
const TENANT = "k8s-sample-apiserver";
const POD_LIST = `/api/v1/namespaces/${NAMESPACE}/pods?labelSelector=apiserver%3D${NAME}`;
const HOST = `etcd-${NAME}.${NAMESPACE}.svc`;
/** Between two looks. */
const PAUSE_MS = 1_000;

/** Somebody whom the proxies serve. */
interface Client extends Credentials {
	who: string;
}

class Laws {
	readonly #user: User;
	/** Bundles by process of the API server, as it has read them. */
	readonly #loaded = new Map<number, string>();
	readonly #proxies = new Set<string>();
	readonly #leaves = { server: new Set<string>(), client: new Set<string>() };
	#stopped = false;
	readonly report: LawsReport = {
		samples: 0,
		handshakes: 0,
		violations: [],
		apiServers: 0,
		proxies: 0,
		leaves: { server: 0, client: 0 },
		rotations: { client: [], serving: [] },
		conditions: [],
	};

	constructor(user: User) {
		this.#user = user;
	}

	stop(): void {
		this.#stopped = true;
	}

	async run(): Promise<void> {
		while (!this.#stopped) {
			await this.#look();
			await Bun.sleep(PAUSE_MS);
		}
		this.report.proxies = this.#proxies.size;
		this.report.leaves = {
			server: this.#leaves.server.size,
			client: this.#leaves.client.size,
		};
	}

	async #get(path: string): Promise<Json> {
		const { server, tls } = this.#user;
		const response = await fetch(`${server}${path}`, { tls });
		if (!response.ok) throw new Error(`${path}: ${response.status}`);
		return response.json();
	}

	async #look(): Promise<void> {
		this.#noteApiServers();
		const core = (namespace: string) => `/api/v1/namespaces/${namespace}`;
		const [storage, pods, configMap, copy, secret, server] = await Promise.all([
			this.#get(`/apis/etcd.xmudrii.com/v1alpha1/etcdstorages/${NAME}`),
			this.#get(POD_LIST),
			this.#get(`${core(TENANT)}/configmaps/etcd-serving-ca`),
			this.#get(`${core(NAMESPACE)}/configmaps/${NAME}-ca-cert`),
			this.#get(`${core(TENANT)}/secrets/etcd-client-cert`),
			this.#get(`${core(NAMESPACE)}/secrets/${NAME}-server-cert`),
		]);
		const text = (data: string) => Buffer.from(data, "base64").toString();
		this.#noteStatus(storage);
		this.#noteBundle("client", copy.data["client-ca.crt"]);
		this.#noteBundle("serving", configMap.data["serving-ca.crt"]);
		for (const { metadata } of pods.items) this.#proxies.add(metadata.name);
		this.#leaves.server.add(server.data["tls.crt"]);
		this.#leaves.client.add(secret.data["tls.crt"]);
		const clients = [
			{
				who: "the targets",
				bundle: configMap.data["serving-ca.crt"],
				certificate: text(secret.data["tls.crt"]),
				key: text(secret.data["tls.key"]),
			},
			...this.#apiServers(),
		];
		const ready = (pods.items as Json[]).filter(isReady);
		for (const client of clients)
			await Promise.all(ready.map((pod) => this.#check(client, pod)));
		this.report.samples++;
	}

	/** What it reads at its start is what it has to its end; the files change meanwhile. */
	#noteApiServers(): void {
		const running = processesWith("--etcd-certfile=/etcd/client/tls.crt");
		for (const pid of this.#loaded.keys())
			if (!running.includes(pid)) this.#loaded.delete(pid);
		for (const pid of running)
			if (!this.#loaded.has(pid)) {
				const bundle = readOf(pid, "/etcd/ca/serving-ca.crt");
				if (bundle === undefined) continue;
				this.#loaded.set(pid, bundle);
				this.report.apiServers++;
			}
	}

	#apiServers(): Client[] {
		return [...this.#loaded].flatMap(([pid, bundle]) => {
			// A kubelet replaces the folder: certificate and key must be of the same one.
			const folder = linkOf(pid, "/etcd/client/..data");
			const certificate = readOf(pid, `/etcd/client/${folder}/tls.crt`);
			const key = readOf(pid, `/etcd/client/${folder}/tls.key`);
			if (certificate === undefined || key === undefined) return [];
			return [{ who: `API server ${pid}`, bundle, certificate, key }];
		});
	}

	async #check(client: Client, pod: Json): Promise<void> {
		const { name } = pod.metadata;
		const refusal = await connect(client, HOST, pod.status.podIP);
		if (refusal !== undefined) {
			// It has been told to go meanwhile, or the API server has ended.
			const pods = await this.#get(POD_LIST);
			const now = pods.items.find((one: Json) => one.metadata.name === name);
			if (!now || !isReady(now)) return;
			if (/^API server (\d+)/.test(client.who) && isGone(client.who)) return;
			const shown = new X509Certificate(client.certificate);
			this.#say(
				`${client.who} (${certificatesOf(client.bundle).length} CAs, certificate of ${shown.issuer.replaceAll("\n", " ")} until ${shown.validTo}) at ${name}: ${refusal}`,
			);
		}
		this.report.handshakes++;
	}

	#say(violation: string): void {
		const line = `${new Date().toISOString()} ${violation}`;
		this.report.violations.push(line);
		console.log(`violation: ${line}`);
	}

	#noteBundle(domain: Domain, bundle: string): void {
		const list = this.report.rotations[domain];
		const trusted = certificatesOf(bundle).map(({ subject }) => subject);
		for (const [index, seen] of list.entries()) {
			// The newest may not be in it yet.
			if (seen.retired !== undefined || index === list.length - 1) continue;
			if (trusted.some((one) => one.includes(seen.generation))) continue;
			seen.retired = (Date.now() - Date.parse(seen.made)) / 1000;
			console.log(`${domain}: ${seen.generation} retired`);
		}
	}

	#noteStatus({ status }: EtcdStorage): void {
		for (const { type, status: value, reason } of status?.conditions ?? []) {
			const line = `${type}=${value} ${reason}`;
			if (this.report.conditions.includes(line)) continue;
			this.report.conditions.push(line);
			console.log(`condition: ${line}`);
		}
		for (const domain of domains) {
			const one = status?.certificates?.find(
				({ name }) => name === `${domain}-signer`,
			);
			if (!one?.rotation) continue;
			const { generation, phase, since, waitingFor = [] } = one.rotation;
			const list = this.report.rotations[domain];
			let seen = list.find((known) => known.generation === generation);
			if (!seen) {
				// In Publish, the dates are still those of its predecessor.
				const madeAt =
					phase === "Publish"
						? Date.parse(since)
						: Date.parse(one.notBefore) + BACKDATE;
				const made = new Date(madeAt).toISOString();
				seen = { generation, made, waits: [] };
				list.push(seen);
				console.log(`${domain}: signer ${generation} made at ${made}`);
			}
			const after = (Date.parse(since) - Date.parse(seen.made)) / 1000;
			if (phase === "Retire" && seen.confirmed === undefined) {
				seen.confirmed = after;
				console.log(`${domain}: ${generation} confirmed`);
			}
			for (const wait of waitingFor) {
				const who = wait.replace(/\b([a-z0-9]{5,10}-[a-z0-9]{5})\b/, "*");
				if (seen.waits.includes(who)) continue;
				seen.waits.push(who);
				console.log(`${domain} ${generation} ${phase}: ${wait}`);
			}
		}
	}
}

const isReady = ({ metadata, status }: Json): boolean =>
	!metadata.deletionTimestamp &&
	status.conditions?.some(
		(one: Json) => one.type === "Ready" && one.status === "True",
	);

const certificatesOf = (bundle: string): X509Certificate[] =>
	bundle
		.split(/(?=-----BEGIN CERTIFICATE-----)/)
		.map((pem) => new X509Certificate(pem));

const isGone = (who: string) =>
	!processesWith("--etcd-certfile=/etcd/client/tls.crt").includes(
		Number(who.replace(/\D/g, "")),
	);

/** A file as a process sees it; undefined once it has ended, or when the kubelet has just replaced it. */
const readOf = (pid: number, path: string) =>
	gone(() => readFileSync(`/proc/${pid}/root${path}`, "utf8"));
const linkOf = (pid: number, path: string) =>
	gone(() => readlinkSync(`/proc/${pid}/root${path}`));

function gone<T>(read: () => T): T | undefined {
	try {
		return read();
	} catch (error) {
		const { code = "" } = error as NodeJS.ErrnoException;
		if (["ENOENT", "ESRCH", "ENOTDIR"].includes(code)) return undefined;
		throw error;
	}
}

async function main(): Promise<void> {
	const laws = new Laws(await user(process.argv[2] ?? ""));
	process.once("SIGTERM", () => laws.stop());
	await laws.run();
	console.log(JSON.stringify(laws.report));
}

if (import.meta.main)
	main().catch((error: Error) => {
		console.log(JSON.stringify({ crashed: error.message }));
		process.exitCode = 1;
	});
