/**
 * A cluster in which time is simulated: objects with versions, kubelets that bring files late, proxies and API servers
 * that read them when they do. It knows nothing of what certificates mean.
 */
import type { Health, Permission, Setting } from "./lifetimeacts.ts";

export const MINUTE = 60_000;
export const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;

/** Until a kubelet has brought a file: https://kubernetes.io/docs/concepts/configuration/configmap/#mounted-configmaps-are-updated-automatically */
const DELIVERY = 2 * MINUTE;
const POD_START = 30_000;

export type Data = Readonly<Record<string, string>>;
export interface Version {
	version: number;
	data: Data | undefined;
}

/** Another writer was faster. */
export class Conflict extends Error {}
/** The API server does not let it be written. */
export class Refused extends Error {}

/** A pod of the workload that serves the tenant. */
export interface ProxyPod {
	name: string;
	/** What it verifies clients with now. */
	bundle: string;
	/** What it shows now. */
	chain: string;
	/** Of the pod template that it was made from. */
	template: string;
}

/** A process of an API server. */
export interface Process {
	name: string;
	bundle: string;
	chain: string;
	revision: number;
}

/** An API server: a workload that reads the target objects of its namespace. */
export interface ApiServer {
	namespace: string;
	named: boolean;
	permission: Permission;
	stuck: boolean;
	replicas: number;
	revision: number;
	/** Which CA the controller has restarted it for. */
	restartedFor: string;
	processes: Process[];
	rolling: boolean;
}

export const CLIENT_CA = "ConfigMap own/ca-cert";
export const SERVER_CERT = "Secret own/server-cert";
export const DEPLOYMENT = "Deployment own/etcd";
export const signerOf = (domain: string) => `Secret own/${domain}-signer`;
export const bundleOf = (namespace: string) => `ConfigMap ${namespace}/ca`;
export const leafOf = (namespace: string) => `Secret ${namespace}/crt`;

export class Cluster {
	now: number;
	readonly kind: Setting["proxies"];
	readonly apiServers: ApiServer[];
	proxies: ProxyPod[] = [];
	readonly health = new Map<string, Health>();
	/** When it was made whole. */
	readonly healedAt = new Map<string, number>();
	/** By object. */
	readonly writes = new Map<string, number>();
	/** How often anything has changed that a controller could see; and that a law could. */
	changes = 0;
	/** Told of each write before it is done. */
	onWrite: (object: string, data: Data) => void = () => {};
	onChange: () => void = () => {};
	readonly #objects = new Map<string, (Version & { at: number })[]>();
	readonly #events: { at: number; run: () => void }[] = [];
	readonly #replicas: number;
	#state: number;
	#version = 0;
	#pods = 0;
	#rolling = false;

	constructor(setting: Setting, now: number) {
		this.now = now;
		this.kind = setting.proxies;
		this.#state = setting.seed | 0;
		this.#replicas = setting.replicas;
		this.apiServers = setting.apiServers.map((one, index) => ({
			...one,
			namespace: `api${index}`,
			stuck: false,
			revision: 0,
			restartedFor: "",
			processes: [],
			rolling: false,
		}));
		for (const { namespace } of this.apiServers) {
			this.#store(bundleOf(namespace), {});
			this.#store(leafOf(namespace), {});
		}
	}

	/** In [0, 1), and the same in each run of the same seed: mulberry32. */
	random(): number {
		this.#state = (this.#state + 0x6d2b79f5) | 0;
		let mixed = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
		mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
		return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
	}

	later(ms: number, run: () => void): void {
		this.#events.push({ at: this.now + Math.ceil(ms), run });
	}

	/** When the next event is. */
	get nextAt(): number {
		let first = Number.POSITIVE_INFINITY;
		for (const { at } of this.#events) if (at < first) first = at;
		return first;
	}

	/** Lets happen what is to happen now. */
	step(): void {
		const index = this.#events.findIndex(({ at }) => at <= this.now);
		const [event] = index < 0 ? [] : this.#events.splice(index, 1);
		event?.run();
	}

	/** An object as it is, or as a cache that lags behind had it. */
	read(object: string, at = Number.POSITIVE_INFINITY): Version {
		const versions = this.#objects.get(object) ?? [];
		return (
			versions.findLast((one) => one.at <= at) ??
			versions[0] ?? { version: 0, data: undefined }
		);
	}

	data(object: string): Data | undefined {
		return this.read(object).data;
	}

	/**
	 * @param expected the version that is replaced, 0 for none; any where absent
	 * @throws Conflict, Refused
	 */
	write(object: string, data: Data, expected?: number): number {
		const live = this.read(object);
		const version = live.data ? live.version : 0;
		if (expected !== undefined && expected !== version)
			throw new Conflict(object);
		if ((this.health.get(object) ?? "ok") !== "ok") throw new Refused(object);
		this.onWrite(object, data);
		this.writes.set(object, (this.writes.get(object) ?? 0) + 1);
		return this.#store(object, data);
	}

	/** By somebody else than a controller. */
	tamper(object: string, data: Data | undefined): void {
		this.#store(object, data);
	}

	setHealth(object: string, health: Health): void {
		const before = this.health.get(object) ?? "ok";
		this.health.set(object, health);
		this.healedAt.set(
			object,
			health !== "ok"
				? Number.POSITIVE_INFINITY
				: before === "ok"
					? (this.healedAt.get(object) ?? Number.NEGATIVE_INFINITY)
					: this.now,
		);
		if (health === "missing" && before !== "missing")
			this.#store(object, undefined);
		// The user makes it again, without content.
		else if (health !== "missing" && before === "missing")
			this.#store(object, {});
		this.#changed();
	}

	#store(object: string, data: Data | undefined): number {
		const versions = this.#objects.get(object) ?? [];
		this.#version++;
		versions.push({ version: this.#version, data, at: this.now });
		if (versions.length > 30) versions.splice(0, 10);
		this.#objects.set(object, versions);
		this.#deliver(object);
		this.#changed();
		return this.#version;
	}

	#changed(): void {
		this.changes++;
		this.onChange();
	}

	#deliver(object: string): void {
		if (object === DEPLOYMENT || object === CLIENT_CA || object === SERVER_CERT)
			this.roll();
		for (const proxy of this.proxies)
			if (object === CLIENT_CA || object === SERVER_CERT)
				this.later(this.random() * DELIVERY, () => this.#bring(proxy));
		for (const api of this.apiServers) {
			if (
				object !== bundleOf(api.namespace) &&
				object !== leafOf(api.namespace)
			)
				continue;
			this.rollOut(api);
			for (const process of api.processes)
				this.later(this.random() * DELIVERY, () => {
					// k8s.io/apiserver reads the pair again, but the CA only at its start.
					process.chain =
						this.data(leafOf(api.namespace))?.["tls.crt"] || process.chain;
					this.#changed();
				});
		}
	}

	/** Files keep their content when an object is gone. */
	#bring(proxy: ProxyPod): void {
		proxy.chain = this.data(SERVER_CERT)?.["tls.crt"] ?? proxy.chain;
		if (this.kind === "gateway")
			proxy.bundle = this.data(CLIENT_CA)?.["client-ca.crt"] ?? proxy.bundle;
		this.#changed();
	}

	/** Brings the proxies to their number, and etcd's to the pod template: one more before one less. */
	roll(): void {
		if (this.#rolling) return;
		this.#rolling = true;
		this.later(POD_START * (0.2 + this.random()), () => {
			this.#rolling = false;
			const template = this.data(DEPLOYMENT)?.template;
			const bundle = this.data(CLIENT_CA)?.["client-ca.crt"];
			const chain = this.data(SERVER_CERT)?.["tls.crt"];
			if (template === undefined || !bundle || !chain) return;
			const old = this.proxies.find((one) => one.template !== template);
			if (!old && this.proxies.length >= this.#replicas) return;
			this.#pods++;
			const name = `Pod own/etcd-${this.#pods}`;
			this.proxies.push({ name, bundle, chain, template });
			if (old && this.proxies.length > this.#replicas)
				this.proxies = this.proxies.filter((one) => one !== old);
			this.#changed();
			this.roll();
		});
	}

	deleteProxy(index: number): void {
		this.proxies.splice(index % Math.max(1, this.proxies.length), 1);
		this.#changed();
		this.roll();
	}

	/** Another revision, as `kubectl rollout restart` makes. */
	restart(api: ApiServer): void {
		api.revision++;
		this.#changed();
		this.rollOut(api);
	}

	/** A process ends by itself and is started again. */
	restartProcess(api: ApiServer): void {
		const [process] = api.processes;
		if (!process || !this.#start(api, process.revision)) return;
		api.processes = api.processes.filter((one) => one !== process);
		this.#changed();
	}

	rollOut(api: ApiServer): void {
		if (api.rolling) return;
		api.rolling = true;
		this.later(POD_START * (0.2 + 9 * this.random() ** 2), () => {
			api.rolling = false;
			if (api.stuck) return;
			const old = api.processes.find((one) => one.revision < api.revision);
			if (!old && api.processes.length >= api.replicas) return;
			if (!this.#start(api, api.revision)) return;
			api.processes = api.processes.filter((one) => one !== old);
			this.#changed();
			this.rollOut(api);
		});
	}

	/** @returns false where its files are not there */
	#start(api: ApiServer, revision: number): boolean {
		const bundle = this.data(bundleOf(api.namespace))?.["serving-ca.crt"];
		const chain = this.data(leafOf(api.namespace))?.["tls.crt"];
		if (!bundle || !chain) return false;
		this.#pods++;
		const name = `Pod ${api.namespace}/apiserver-${this.#pods}`;
		api.processes.push({ name, bundle, chain, revision });
		return true;
	}
}
