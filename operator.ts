/** The controller's shell: watches -> queue -> visit -> status and events; leader election, health, metrics, signals. */

import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { isDeepStrictEqual } from "node:util";
import { Cache } from "./cache.ts";
import { Clock } from "./clock.ts";
import { finalize } from "./deletion.ts";
import {
	API_VERSION,
	type EtcdStorage,
	type EtcdStorageStatus,
	formatDuration,
	formatTime,
	readSpec,
	readStatus,
} from "./etcdstorage.ts";
import {
	ApiError,
	type Kind,
	Kube,
	type KubeObject,
	type KubeOptions,
	loadKubeConfig,
} from "./kube.ts";
import { elect, type Leadership, REQUEST_TIMEOUT_MS } from "./leader.ts";
import { explain, type Log, logger } from "./log.ts";
import {
	type Data,
	FIELD_MANAGER,
	ownerOf,
	possibleOwners,
} from "./manifests.ts";
import { type Known, Metrics } from "./metrics.ts";
import type { Context } from "./observe.ts";
import { help, type Options, parseOptions } from "./options.ts";
import { Pace, REFILL_MS } from "./pace.ts";
import { Queue } from "./queue.ts";
import {
	type EventNote,
	events,
	nextVisit,
	type Outcome,
	status,
} from "./status.ts";
import { TargetReader } from "./targets.ts";
import { build, versionText } from "./version.ts";
import { visit } from "./visit.ts";
import type { Deployment } from "./workload.ts";

/** EtcdStorages visited at once: enough to hide the API server's latency, few enough not to crowd it. */
const CONCURRENCY = 8;
/** Up to so many EtcdStorages, machine code is not worth the 10 MB that its compiler takes: see build/program.ts. */
const FEW = 10;
/** How long visits that have begun may take after SIGTERM, well within a pod's 30 s of grace. */
const DRAIN_MS = 5_000;

class Controller {
	readonly #log: Log;
	readonly #context: Context;
	readonly #queue: Queue;
	readonly #metrics: Metrics;
	/** With a connection of its own: nothing else may hold up a renewal. */
	readonly #leaseClient: Kube;
	readonly #clock = new Clock(Date.now, () => performance.now());
	readonly #known: Known = new Map();
	/** The status that we last wrote or agreed with, by EtcdStorage. */
	readonly #told = new Map<string, EtcdStorage["status"]>();
	/** Visits in a row that took a step, by EtcdStorage. */
	readonly #steps = new Map<string, number>();
	readonly #pace = new Pace();
	#leading = false;
	#holdsLease = () => true;
	/** Why this replica could not lead, by the API server's answer. */
	#cannotLead = "";
	readonly #firstSync = Promise.withResolvers<void>();
	/** Whether our clock was found to be wrong. */
	#skewed = false;

	constructor(options: Options, log: Log) {
		this.#log = log;
		this.#queue = new Queue({
			concurrency: CONCURRENCY,
			work: (name) => this.#work(name),
			onError: (name, error, retryMs) => {
				const next = `next try in ${(retryMs / 1000).toFixed(1)}s`;
				log("ERROR", `${explain(error)}; ${next}`, name);
			},
		});
		this.#metrics = new Metrics(
			build,
			() => this.#queue,
			this.#known,
			this.#clock,
		);
		const config = loadKubeConfig(options.kubeconfig || undefined);
		const client = (more: Partial<KubeOptions> = {}) =>
			new Kube(config, {
				fieldManager: FIELD_MANAGER,
				onRequest: ({ verb, kind, code, date, seconds }) => {
					this.#metrics.requests.inc({ verb, kind, code });
					this.#clock.observe(date, seconds);
					this.#watchClock();
				},
				...more,
			});
		const kube = client({
			fence: () =>
				this.#holdsLease() ? undefined : "another replica may lead by now",
		});
		this.#leaseClient = client({ requestTimeoutMs: REQUEST_TIMEOUT_MS });
		this.#context = {
			kube,
			environment: {
				namespace: options.namespace,
				coreUrls: options["etcd-core-url"],
				coreCAConfigMap: options["etcd-core-ca-configmap"],
				coreCertsSecret: options["etcd-core-certs-secret"],
				proxyImage: options["etcd-proxy-image"],
				proxyPriorityClass: options["etcd-proxy-priority-class"],
			},
			storages: new Cache<EtcdStorage>(),
			owned: {
				ConfigMap: new Cache<Data>(),
				Secret: new Cache<Data>(),
				Service: new Cache<KubeObject>(),
				PodDisruptionBudget: new Cache<KubeObject>(),
				Deployment: new Cache<Deployment>(),
			},
			targets: new TargetReader(kube),
			// Certificates are for others: what counts is not what time this machine thinks it is.
			now: () => this.#clock.now(),
			restarts: new Set(),
			event: (storage, note) => this.#event(storage, note),
		};
	}

	/** Runs until the signal aborts, or until leadership is lost. */
	async run(signal: AbortSignal, leaderElection: boolean): Promise<void> {
		const { environment, storages, owned } = this.#context;
		const stopped = new AbortController();
		const stop = () => stopped.abort();
		signal.addEventListener("abort", stop, { once: true });
		const follows = [
			this.#follow("EtcdStorage", storages, stopped.signal),
			...Object.entries(owned).map(([kind, cache]) =>
				this.#follow(
					kind as Kind,
					cache as Cache<KubeObject>,
					stopped.signal,
					environment.namespace,
				),
			),
		];
		let leadership: Leadership | undefined;
		if (leaderElection) {
			const { promise, resolve } = this.#firstSync;
			stopped.signal.addEventListener("abort", () => resolve());
			// Who may not see everything must not keep from leading who may: a new version whose Roles are not there yet.
			await promise;
			leadership = await elect(this.#leaseClient, {
				namespace: environment.namespace,
				name: FIELD_MANAGER,
				identity: `${hostname()}_${randomUUID()}`,
				signal: stopped.signal,
				onLeader: (leader) => this.#log("INFO", `${leader} leads; waiting`),
				onTrouble: (error) => this.#watchElection(error),
			});
			if (leadership) {
				this.#holdsLease = leadership.holds;
				this.#log("INFO", "leading");
			}
		}
		this.#leading = !stopped.signal.aborted;
		this.#enqueueAll();
		leadership?.lost.then((reason) => {
			if (signal.aborted) return;
			process.exitCode = 1;
			this.#log("ERROR", `leadership lost: ${reason}`);
			stop();
		});
		await Promise.all(follows);
		this.#leading = false;
		// Who has lost the lease does not wait for what still runs: the next leader does not, either.
		if (!signal.aborted) return;
		await Promise.race([this.#queue.stop(), Bun.sleep(DRAIN_MS)]);
		await leadership?.release().catch((error) => {
			if (!(error instanceof ApiError)) throw error;
			this.#log("WARN", `the lease runs out by itself: ${error.message}`);
		});
	}

	#watchClock(): void {
		const { skewMs } = this.#clock;
		if (this.#skewed === (skewMs !== 0)) return;
		this.#skewed = skewMs !== 0;
		const way = skewMs > 0 ? "ahead of" : "behind";
		if (this.#skewed)
			this.#log(
				"WARN",
				`this machine's clock is ${formatDuration(Math.abs(skewMs))} ${way} the API server's, which is used instead; set it right (NTP)`,
			);
		else this.#log("INFO", "this machine's clock agrees with the API server's");
	}

	#watchElection(error: ApiError | undefined): void {
		if (error)
			this.#log(
				"WARN",
				`cannot lead: ${error.message}${hintAt(error.message)}`,
			);
		else this.#log("INFO", "can lead again");
		this.#cannotLead = error && error.code !== 0 ? error.message : "";
	}

	/** What it waits for before it can do its work, or take over that of another replica; "" where there is nothing. */
	get waitsFor(): string {
		return this.synced
			? this.#cannotLead
			: "the first complete lists from the API server";
	}

	get synced(): boolean {
		const { storages, owned } = this.#context;
		return [storages, ...Object.values(owned)].every((cache) => cache.synced);
	}

	metrics(): Promise<string> {
		return this.#metrics.registry.metrics();
	}

	#follow<T extends KubeObject>(
		kind: Kind,
		cache: Cache<T>,
		signal: AbortSignal,
		namespace?: string,
	): Promise<void> {
		return this.#context.kube.follow<T>(kind, {
			...(namespace !== undefined && { namespace }),
			signal,
			onSync: (objects) => {
				const wasSynced = this.synced;
				for (const object of cache.replace(objects))
					this.#enqueue(kind, object);
				if (!wasSynced && this.synced) {
					this.#log(
						"INFO",
						`watching ${this.#context.storages.size} EtcdStorages`,
					);
					this.#firstSync.resolve();
					this.#enqueueAll();
				}
			},
			onEvent: (type, object) => {
				if (cache.event(type, object)) this.#enqueue(kind, object);
			},
			onRestart: (reason) => {
				this.#metrics.watchRestarts.inc({ kind });
				const hint = hintAt(reason, kind);
				this.#log("WARN", `watch of ${kind}s interrupted: ${reason}${hint}`);
			},
		});
	}

	/** Whose business an object is: its own, its owner's, everybody's, or that of whom it stands in the way. */
	#enqueue(kind: Kind, object: KubeObject): void {
		if (!this.#leading || !this.synced) return;
		const { environment, storages } = this.#context;
		const { name } = object.metadata;
		const owner = kind === "EtcdStorage" ? name : ownerOf(object);
		if (
			(kind === "ConfigMap" && name === environment.coreCAConfigMap) ||
			(kind === "Secret" && name === environment.coreCertsSecret)
		)
			this.#enqueueAll();
		else if (owner !== undefined) this.#queue.add(owner);
		else
			for (const candidate of possibleOwners(name))
				if (storages.get(candidate)) this.#queue.add(candidate);
	}

	#enqueueAll(): void {
		if (!this.#leading || !this.synced) return;
		for (const storage of this.#context.storages.values())
			this.#queue.add(storage.metadata.name);
	}

	/** One visit, and everything that is made from its outcome. Resolves to the milliseconds until the next one. */
	async #work(name: string): Promise<number | undefined> {
		const { storages } = this.#context;
		const known = storages.get(name);
		if (!known) return this.#forget(name);
		if (storages.size > FEW) Bun.unsafe.setJITPolicy(1);
		const rest = this.#pace.wait(name, performance.now());
		if (rest > 0 && !known.metadata.deletionTimestamp) return rest;
		const storage = { ...known, status: readStatus(known) };
		const done = this.#metrics.reconcileSeconds.startTimer();
		try {
			if (storage.metadata.deletionTimestamp) {
				await finalize(storage, this.#context);
				this.#metrics.reconciles.inc({ result: "success" });
				this.#log("INFO", "deleted; its keys stay in the core etcd", name);
				return storages.get(name) ? undefined : this.#forget(name);
			}
			// A status by another hand: somebody else is at work, and the targets may not be as we remember them.
			if (!isDeepStrictEqual(known.status, this.#told.get(name)))
				for (const target of storage.status?.targets ?? [])
					this.#context.targets.forget(target);
			const outcome = await visit(storage, this.#context);
			this.#metrics.count(outcome);
			const { after, written } = await this.#tell(storage, outcome);
			if (outcome.written.length > 0 || written)
				await this.#spend(storage, outcome);
			this.#known.set(name, { outcome, status: after });
			this.#told.set(name, (written ?? known).status);
			const passing = outcome.problems.filter((one) => !one.userError);
			if (passing.length > 0)
				throw new Error(passing.map((one) => one.message).join(" | "));
			this.#metrics.reconciles.inc({
				result: outcome.problems.length > 0 ? "problem" : "success",
			});
			const steps = outcome.stepped ? (this.#steps.get(name) ?? 0) + 1 : 0;
			this.#steps.set(name, steps);
			return nextVisit(outcome, this.#context.now(), Math.random(), steps);
		} catch (error) {
			this.#metrics.reconciles.inc({ result: "error" });
			throw error;
		} finally {
			done();
		}
	}

	#forget(name: string): undefined {
		this.#known.delete(name);
		this.#steps.delete(name);
		this.#told.delete(name);
		this.#pace.forget(name);
	}

	/** What was written again and again will be written less often. */
	async #spend(storage: EtcdStorage, { written }: Outcome): Promise<void> {
		const { name } = storage.metadata;
		if (!this.#pace.spend(name, performance.now())) return;
		const message = `${written.join(", ") || "status written"}: again and again, so somebody else keeps changing it, whom kubectl get --show-managed-fields -o yaml names; until that ends, changes are followed every ${REFILL_MS / 1000} s only`;
		this.#log("WARN", message, name);
		await this.#event(storage, {
			...{ type: "Warning", reason: "RepairContested", message },
		});
	}

	/** Log, status and events: each only where something has changed. Resolves to the status, and to what was written. */
	async #tell(
		storage: EtcdStorage,
		outcome: Outcome,
	): Promise<{ after: EtcdStorageStatus; written?: EtcdStorage }> {
		const { kube, environment, storages } = this.#context;
		const { name, uid = "" } = storage.metadata;
		const news = [
			...outcome.issued.map(({ id, reason }) => `issued ${id} (${reason})`),
			...outcome.written,
		];
		if (news.length > 0) this.#log("INFO", news.join("; "), name);
		const before = storage.status;
		const after = status(
			storage,
			environment.namespace,
			readSpec(storage),
			outcome,
			this.#context.now(),
		);
		const shown = after.conditions?.map((ours) =>
			before?.conditions?.find((one) => one.type === ours.type),
		);
		let written: EtcdStorage | undefined;
		if (!isDeepStrictEqual({ ...before, conditions: shown }, { ...after })) {
			written = await kube.apply(
				{
					apiVersion: API_VERSION,
					kind: "EtcdStorage",
					metadata: { name, uid },
					status: after,
				} as EtcdStorage,
				{ subresource: "status" },
			);
			storages.wrote(written);
		}
		for (const note of events(before, after, outcome.issued)) {
			if (note.type === "Warning")
				this.#log("WARN", `${note.reason}: ${note.message}`, name);
			else if (note.reason.startsWith("Rotation"))
				this.#log("INFO", `${note.reason}: ${note.message}`, name);
			await this.#event(storage, note);
		}
		return { after, ...(written && { written }) };
	}

	/** An event that cannot be written is logged and no more: conditions are what counts. */
	async #event(
		storage: EtcdStorage,
		{ type, reason, message }: EventNote,
	): Promise<void> {
		const { name, uid } = storage.metadata;
		const time = formatTime(this.#context.now());
		const event = {
			apiVersion: "v1",
			kind: "Event",
			// Events about cluster-scoped objects live in the namespace "default".
			metadata: { name: `${name}.${randomUUID()}`, namespace: "default" },
			involvedObject: {
				apiVersion: API_VERSION,
				kind: "EtcdStorage",
				name,
				uid,
			},
			type,
			reason,
			message: message.length > 1024 ? `${message.slice(0, 1021)}...` : message,
			source: { component: FIELD_MANAGER },
			firstTimestamp: time,
			lastTimestamp: time,
			count: 1,
		};
		try {
			await this.#context.kube.create(event);
		} catch (error) {
			if (!(error instanceof ApiError)) throw error;
			this.#log(
				"WARN",
				`event ${reason} was not recorded: ${error.message}`,
				name,
			);
		}
	}
}

/** `/healthz`: the process; `/readyz`: it has seen the cluster, and leads or could; `/metrics`. */
function serve(address: string, controller: Controller): Bun.Server<undefined> {
	const [, hostname = "", port = ""] = /^(.*):(\d+)$/.exec(address) ?? [];
	const text = (body: string, code = 200) =>
		new Response(`${body}\n`, { status: code });
	return Bun.serve({
		...(hostname !== "" && { hostname: hostname.replace(/^\[|\]$/g, "") }),
		port: Number(port),
		routes: {
			"/healthz": () => text("ok"),
			"/readyz": () =>
				controller.waitsFor === ""
					? text("ok")
					: text(`waiting for ${controller.waitsFor}`, 503),
			"/metrics": async () =>
				new Response(await controller.metrics(), {
					headers: {
						"content-type": "text/plain; version=0.0.4; charset=utf-8",
					},
				}),
		},
		fetch: () => text("not found", 404),
	});
}

/**
 * `etcdproxy-controller`, until a signal ends it or leadership is lost.
 * @param args the words after the program's name
 * @throws UsageError; Error when the kubeconfig is no good or the address is in use
 */
export async function runController(args: string[]): Promise<void> {
	const options = parseOptions(args);
	if ("help" in options) return void process.stdout.write(help());
	if ("version" in options)
		return void process.stdout.write(`${versionText(build)}\n`);

	const log = logger(options["log-format"]);
	const controller = new Controller(options, log);
	const stop = new AbortController();
	for (const signal of ["SIGTERM", "SIGINT"] as const)
		process.once(signal, () => {
			log("INFO", `${signal}: stopping`);
			stop.abort();
		});
	const address = options["listen-addr"];
	const server = address === "" ? undefined : serve(address, controller);
	log(
		"INFO",
		`${versionText(build)}${server ? `, metrics at ${server.url}metrics` : ""}`,
	);
	await controller.run(stop.signal, options["leader-elect"]);
	await server?.stop(true);
	// Requests that are not answered would keep the process.
	process.exit();
}

/** The way out, where the reason why a request fails leaves one guessing. */
function hintAt(reason: string, watched?: Kind): string {
	if (reason.includes(": Unauthorized:"))
		return "; the kubeconfig's credentials are wrong or have expired";
	if (reason.includes(": Forbidden:"))
		return "; apply the manifest of this version again, whose Roles let the controller: artifacts/deployment";
	return watched === "EtcdStorage" && reason.includes("NotFound")
		? "; is the CustomResourceDefinition installed? See artifacts/deployment"
		: "";
}
