/** Controllers under observation: each behind a relay and with a token of its own, and remembered for what it said. */
import { audited, type Identity, identity, isWrite } from "./audit.ts";
import {
	type Cluster,
	type Controller,
	type ControllerOptions,
	startController,
	until,
} from "./harness.ts";
import { Relay } from "./relay.ts";

export interface Observed extends Controller {
	who: Identity;
	relay: Relay;
	/** What it has logged since the last time it was asked. */
	news(): string;
	/** The sum of a metric's series whose labels include this text. */
	metric(name: string, labels?: string): Promise<number>;
	healthy(path: "healthz" | "readyz"): Promise<boolean>;
	/** Waits until it knows every EtcdStorage and has written nothing for a second. */
	atRest(): Promise<void>;
}

/** Starts controllers and remembers all that they log and measure. */
export class Observatory {
	/** Logs and metrics of every controller that was stopped. */
	readonly said: string[] = [];
	readonly identities: Identity[] = [];
	readonly #cluster: Cluster;
	readonly #all: Observed[] = [];

	constructor(cluster: Cluster) {
		this.#cluster = cluster;
	}

	/** @param absent the API server is out of reach: the relay refuses until it is mended */
	async start(
		options: ControllerOptions & { absent?: boolean } = {},
	): Promise<Observed> {
		const { absent, ...rest } = options;
		const who = await identity(
			this.#cluster,
			`observed-${this.identities.length}`,
		);
		this.identities.push(who);
		const relay = await Relay.start(this.#cluster.server);
		const kubeconfig = await relay.kubeconfig(who.kubeconfig, "relayed");
		if (absent) await relay.refuse();
		const controller = await startController(this.#cluster, {
			kubeconfig,
			unready: absent ?? false,
			...rest,
		});
		const observed = this.#observe(controller, who, relay);
		this.#all.push(observed);
		return observed;
	}

	/** Kills what still runs. */
	async end(): Promise<void> {
		for (const { stop, relay } of this.#all) {
			await stop("SIGKILL");
			await relay.refuse();
		}
	}

	#observe(controller: Controller, who: Identity, relay: Relay): Observed {
		let heard = 0;
		let ended: Promise<number> | undefined;
		const end = async (signal?: NodeJS.Signals) => {
			this.said.push(await controller.metrics().catch(() => ""));
			const code = await controller.stop(signal);
			this.said.push(controller.log());
			return code;
		};
		const metric = async (name: string, labels = "") => {
			const lines = (await controller.metrics()).split("\n");
			return lines
				.filter((line) => /^\w+/.exec(line)?.[0] === name)
				.filter((line) => line.includes(labels))
				.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
		};
		return {
			...controller,
			who,
			relay,
			metric,
			stop(signal) {
				ended ??= end(signal);
				return ended;
			},
			news() {
				const all = controller.log();
				const text = all.slice(heard);
				heard = all.length;
				return text;
			},
			healthy: async (path) => {
				const signal = AbortSignal.timeout(1_000);
				return (await fetch(`${controller.url}/${path}`, { signal })).ok;
			},
			atRest: async () => {
				const names = ["get", "etcdstorages", "-o", "name"];
				const count = (await this.#cluster.kubectl(names)).split("\n").length;
				let before = Number.NaN;
				await until(async () => {
					if ((await metric("etcdproxy_etcdstorages")) < count - 1)
						return false;
					const all = await audited(this.#cluster, who);
					const writes = all.filter(isWrite).length;
					const quiet = writes === before;
					before = writes;
					await Bun.sleep(quiet ? 0 : 1_000);
					return quiet;
				}, "it is at rest");
			},
		};
	}
}
