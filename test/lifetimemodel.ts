/** Lets a script happen: a cluster and its controllers from one instant to the next, under the laws. */
import type { Spec } from "../etcdstorage.ts";
import type { Domain } from "../lifetimes.ts";
import type { Act, Script, When } from "./lifetimeacts.ts";
import {
	bundleOf,
	CLIENT_CA,
	Cluster,
	DAY,
	DEPLOYMENT,
	HOUR,
	leafOf,
	MINUTE,
	SERVER_CERT,
	signerOf,
} from "./lifetimecluster.ts";
import { Laws, Violation } from "./lifetimelaws.ts";
import { Issuer } from "./lifetimepki.ts";
import { Controller, iso, summary } from "./lifetimevisit.ts";

const START = Date.UTC(2026, 10, 23, 12);
/** How far a controller's clock is off at most; more is corrected by clock.ts. */
const SKEW = 4 * MINUTE;

/** So many visits in a row that do something are a loop; ten are many. */
const RESTLESS = 500;

export interface Lifetime {
	/** Of each object. */
	writes: Map<string, number>;
	tally: Map<string, number>;
	visits: number;
	/** How long nobody was cut off, for whatever reason. */
	unharmedMs: number;
	/** Validities that the spec has had. */
	shortest: { signing: number; leaf: number };
}

/**
 * @param length of the life in milliseconds
 * @throws Violation with the last of what has happened
 */
export function live(script: Script, length: number): Lifetime {
	const world = new World(script);
	try {
		return world.live(script, START + length);
	} catch (error) {
		if (!(error instanceof Violation)) throw error;
		throw new Violation(`${error.message}\n${world.log.join("\n")}`);
	}
}

class World {
	readonly #cluster: Cluster;
	readonly #issuer: Issuer;
	readonly #laws: Laws;
	readonly #controllers: Controller[];
	#spec: Spec;
	#visits = 0;
	#requests = 0;
	/** Visits since one that had nothing to do. */
	#restless = 0;
	#quietUntil = 0;
	readonly #shortestOf = {
		signing: Number.POSITIVE_INFINITY,
		leaf: Number.POSITIVE_INFINITY,
	};
	/** Shorter validities would only make the run longer. */
	readonly #shortestEver: number;
	readonly log: string[] = [];

	constructor({ setting }: Script) {
		this.#spec = {
			name: "sample",
			replicas: setting.replicas,
			targets: [],
			consumers: [],
			validity: setting.validity,
			requests: { client: {}, serving: {} },
			warnings: [],
		};
		this.#shortestEver = Math.min(...Object.values(setting.validity)) / 2;
		this.#compare();
		this.#cluster = new Cluster(setting, START);
		this.#issuer = new Issuer(setting.seed);
		this.#laws = new Laws(this.#cluster, this.#issuer);
		this.#controllers = ["first", "second"].map((name) => {
			const controller = new Controller(
				name,
				this.#cluster,
				this.#issuer,
				() => this.#spec,
				() => Math.max(40_000, this.#shortest / 4),
			);
			controller.onTold = (told) => {
				this.#visits++;
				const { client, serving } = told.plan.rotations;
				const acts = told.writes.length > 0 || client.step || serving.step;
				this.#restless = acts ? this.#restless + 1 : 0;
				if (this.#restless > RESTLESS)
					throw new Violation(`visits without end: ${summary(told)}`);
				// A leaf's renewal is everyday life.
				if (client.step || serving.step || told.writes.length > 1)
					this.#note(`${name}: ${summary(told)}`);
				this.#laws.told(told);
			};
			controller.onUnannounced = (told, announced) => {
				// Of two, one may write again what the other has replaced.
				if (this.#controllers.every((one) => one.up)) return;
				throw new Violation(
					`${name} at ${iso(told.at)}: ${summary(told)}: not announced: ${announced.map(iso)}`,
				);
			};
			return controller;
		});
		const [, second] = this.#controllers;
		if (second) second.up = false;
		const { onChange } = this.#cluster;
		this.#cluster.onChange = () => {
			onChange();
			for (const one of this.#controllers) one.wake();
		};
	}

	#compare(): void {
		const { signing, serving, client } = this.#spec.validity;
		const least = this.#shortestOf;
		least.signing = Math.min(least.signing, signing);
		least.leaf = Math.min(least.leaf, serving, client, signing);
	}

	get #shortest(): number {
		return Math.min(...Object.values(this.#spec.validity));
	}

	#note(text: string): void {
		this.log.push(`${iso(this.#cluster.now)} ${text}`);
		if (this.log.length > 30) this.log.shift();
	}

	live({ acts }: Script, end: number): Lifetime {
		for (const { when, act } of acts) {
			this.#advance(when, end);
			if (this.#cluster.now >= end) break;
			this.#note(JSON.stringify(act));
			this.#perform(act);
			this.#wake();
			this.#laws.healthy(this.#isHealthy());
		}
		this.#runUntil(end);
		this.#wholeAgain();
		return {
			writes: this.#cluster.writes,
			tally: this.#laws.tally,
			visits: this.#visits,
			unharmedMs: this.#laws.firstExcuse - START,
			shortest: this.#shortestOf,
		};
	}

	/** Nobody is in the way any longer, and all API servers start again: then everything is well. */
	#wholeAgain(): void {
		this.#note("the end: everything is whole again");
		this.#runUntil(this.#quietUntil);
		this.#heal();
		this.#laws.healthy(true);
		this.#runUntil(this.#cluster.now + HOUR);
		for (const api of this.#cluster.apiServers) this.#cluster.restart(api);
		this.#runUntil(this.#cluster.now + 3 * HOUR);
		this.#laws.final();
	}

	#advance(when: When, end: number): void {
		if ("writes" in when) {
			const { writes } = this.#cluster;
			const total = () => [...writes.values()].reduce((a, b) => a + b, 0);
			const enough = total() + when.writes;
			this.#runUntil(
				Math.min(end, this.#cluster.now + this.#spec.validity.signing),
				() => total() >= enough,
			);
		}
		if (when.ms > 0) this.#runUntil(Math.min(end, this.#cluster.now + when.ms));
	}

	#runUntil(until: number, enough = () => false): void {
		const cluster = this.#cluster;
		while (!enough()) {
			const controllers = this.#controllers.filter((one) => one.up);
			const event = cluster.nextAt;
			const at = Math.max(
				cluster.now,
				Math.min(event, ...controllers.map((one) => one.nextAt)),
			);
			if (at > until) break;
			cluster.now = at;
			this.#laws.check();
			const controller =
				event <= at ? undefined : controllers.find((one) => one.nextAt <= at);
			if (controller) controller.step();
			else cluster.step();
			this.#laws.check();
		}
		if (enough()) return;
		cluster.now = Math.max(cluster.now, until);
		this.#laws.check();
	}

	#isHealthy(): boolean {
		return (
			this.#cluster.apiServers.every(
				(one) => one.named && one.permission === "restart" && !one.stuck,
			) &&
			[...this.#cluster.health.values()].every((health) => health === "ok") &&
			this.#cluster.now >= this.#quietUntil
		);
	}

	#heal(): void {
		for (const object of this.#cluster.health.keys())
			this.#cluster.setHealth(object, "ok");
		for (const api of this.#cluster.apiServers) {
			Object.assign(api, { named: true, permission: "restart", stuck: false });
			this.#cluster.rollOut(api);
		}
		for (const one of this.#controllers) one.forget();
	}

	#perform(act: Act): void {
		const cluster = this.#cluster;
		const controllerAt = (index: number) =>
			this.#controllers[index] as Controller;
		const apiAt = (index: number) => {
			const list = cluster.apiServers;
			return list[index % list.length] as (typeof list)[number];
		};
		switch (act.do) {
			case "nothing":
				break;
			case "crash":
				this.#down([controllerAt(act.controller)], act.downMs);
				break;
			case "outage":
				this.#down(this.#controllers, act.lives * this.#spec.validity.signing);
				break;
			case "pause":
				controllerAt(act.controller).pause(act.ms);
				break;
			case "second": {
				const second = controllerAt(1);
				if (second.up && !act.on) second.crash(0);
				second.up = act.on;
				second.wake();
				break;
			}
			case "skew": {
				const one = controllerAt(act.controller);
				one.forget();
				one.skew = Math.round(act.part * Math.min(SKEW, this.#shortest / 50));
				break;
			}
			case "lag":
				controllerAt(act.controller).lag = act.ms;
				break;
			case "wake":
				controllerAt(act.controller).wake(0);
				break;
			case "fail":
				controllerAt(0).failAfter = { writes: act.writes, done: act.done };
				break;
			case "health":
				cluster.setHealth(
					(act.of === "bundle" ? bundleOf : leafOf)(apiAt(act.api).namespace),
					act.health,
				);
				break;
			case "heal":
				this.#heal();
				break;
			case "consumer":
				Object.assign(apiAt(act.api), {
					named: act.named,
					permission: act.permission,
				});
				cluster.rollOut(apiAt(act.api));
				break;
			case "stick":
				apiAt(act.api).stuck = act.on;
				cluster.rollOut(apiAt(act.api));
				break;
			case "restart":
				cluster.restart(apiAt(act.api));
				break;
			case "restartProcess":
				cluster.restartProcess(apiAt(act.api));
				break;
			case "deleteProxy":
				cluster.deleteProxy(act.index);
				break;
			case "damage":
				this.#damage(act.domain, act.what);
				break;
			case "delete":
				if (act.what === "bundles" && this.#isBundleNeeded()) break;
				cluster.tamper(
					{ bundles: CLIENT_CA, server: SERVER_CERT, deployment: DEPLOYMENT }[
						act.what
					],
					undefined,
				);
				break;
			case "validity": {
				const { validity } = this.#spec;
				const changed = Math.round(validity[act.of] * act.factor);
				this.#spec = {
					...this.#spec,
					validity: {
						...validity,
						[act.of]: Math.max(
							this.#shortestEver,
							Math.min(3650 * DAY, changed),
						),
					},
				};
				this.#compare();
				break;
			}
			case "rotate":
			case "compromised": {
				this.#requests++;
				if (act.do === "compromised") {
					const secret = cluster.data(signerOf(act.domain));
					const known = [secret?.["ca-bundle.crt"], this.#copy(act.domain)];
					this.#laws.compromised(
						act.domain,
						known.flatMap((text) => this.#issuer.read(text ?? "") ?? []),
						secret?.["previous.crt"] !== undefined &&
							secret["previous.key"] === undefined,
					);
				}
				const requests = {
					...this.#spec.requests[act.domain],
					[act.do === "rotate" ? "rotate" : "compromised"]:
						`reason ${this.#requests}`,
				};
				this.#spec = {
					...this.#spec,
					requests: { ...this.#spec.requests, [act.domain]: requests },
				};
				break;
			}
		}
	}

	/** What has happened is seen by a watch or a poll. */
	#wake(): void {
		this.#cluster.changes++;
		for (const one of this.#controllers) {
			one.forget();
			one.wake();
		}
	}

	#down(list: Controller[], ms: number): void {
		const cluster = this.#cluster;
		for (const one of list) one.crash(ms);
		const others = this.#controllers.some(
			(one) => one.up && !list.includes(one),
		);
		if (others) return;
		this.#quietUntil = Math.max(this.#quietUntil, cluster.now + ms);
		cluster.later(ms, () => this.#laws.healthy(this.#isHealthy()));
		// As long as the last third of a life, less the jitter.
		if (ms < this.#shortest / 5) return;
		this.#laws.outage(cluster.now + ms);
	}

	/** Whether the copy of the bundles is all that still tells of them. */
	#isBundleNeeded(): boolean {
		return (["client", "serving"] as const).some((domain) => {
			const secret = this.#cluster.data(signerOf(domain));
			return (
				!secret?.["ca-bundle.crt"] ||
				!this.#issuer.read(secret["ca-bundle.crt"])
			);
		});
	}

	/** The domain's bundle, in the controller's namespace. */
	#copy(domain: Domain): string | undefined {
		return this.#cluster.data(CLIENT_CA)?.[`${domain}-ca.crt`];
	}

	#damage(domain: Domain, what: string): void {
		const cluster = this.#cluster;
		const object = signerOf(domain);
		const before = cluster.data(object);
		if (!before || (what !== "Secret" && before[what] === undefined)) return;
		this.#laws.damaged(domain);
		if (!this.#copy(domain) && ["Secret", "ca-bundle.crt"].includes(what))
			this.#laws.trustLost(domain);
		cluster.tamper(
			object,
			what === "Secret" ? undefined : { ...before, [what]: "damaged" },
		);
	}
}
