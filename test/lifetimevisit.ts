/**
 * The controller over a simulated cluster: what it sees, decided by the real core, and its writes one after another.
 * The order is visit.ts's.
 */
import { formatDuration, type Requests, type Spec } from "../etcdstorage.ts";
import {
	type Domain,
	domains,
	leafRenewalTime,
	signerRenewalTime,
} from "../lifetimes.ts";
import { bundle, type CertificateFacts } from "../pki.ts";
import { decide, type Leaf, type Observed, type Plan } from "../reconcile.ts";
import { type Reach, spreading, type Wait } from "../rotation.ts";
import {
	type Authority,
	advance,
	type Found,
	newest,
	type Signers,
} from "../signers.ts";
import {
	type ApiServer,
	bundleOf,
	CLIENT_CA,
	type Cluster,
	Conflict,
	type Data,
	DEPLOYMENT,
	leafOf,
	Refused,
	SERVER_CERT,
	signerOf,
	type Version,
} from "./lifetimecluster.ts";
import { type Issuer, matches } from "./lifetimepki.ts";

const NAMESPACE = "own";

/** How a visit went. */
export interface Told {
	/** By its own clock. */
	at: number;
	/** By nobody's: what is written here is not older. */
	seenAt: number;
	/** Nothing has happened in the meantime but its own writes. */
	fresh: boolean;
	plan: Plan;
	signers: Record<Domain, Signers>;
	/** What was written. */
	writes: string[];
	/** The instants at which something was said to happen by itself. */
	announced: number[];
}

/** What is seen at one moment. */
interface Seen {
	observed: Observed;
	secrets: Record<Domain, Version>;
	targets: Map<string, Data | undefined>;
	restart: ApiServer | undefined;
	clientBundle: string;
}

export class Controller {
	readonly name: string;
	readonly #cluster: Cluster;
	readonly #issuer: Issuer;
	readonly #spec: () => Spec;
	up = true;
	/** Of its clock, in milliseconds. */
	skew = 0;
	/** How old its caches are. */
	lag = 0;
	/** When it does something next. */
	nextAt: number;
	/** How often writes are still done, before one fails. */
	failAfter: { writes: number; done: boolean } | undefined;
	#downUntil = Number.NEGATIVE_INFINITY;
	#visit: Generator<void, Told | undefined> | undefined;
	/** The cluster's changes when the visit has looked at it. */
	#seenChanges = 0;
	/** What it has written itself it sees at once. */
	readonly #wrote = new Map<string, Version>();
	#announced: { changes: number; at: number[] } | undefined;
	readonly #heartbeat: () => number;
	onTold: (told: Told) => void = () => {};
	onUnannounced: (told: Told, announced: number[]) => void = () => {};

	constructor(
		name: string,
		cluster: Cluster,
		issuer: Issuer,
		spec: () => Spec,
		heartbeat: () => number,
	) {
		this.name = name;
		this.#cluster = cluster;
		this.#issuer = issuer;
		this.#spec = spec;
		this.#heartbeat = heartbeat;
		this.nextAt = cluster.now;
	}

	/** Something has changed: it is seen by a watch, or by the next poll. */
	wake(withinMs = 40_000): void {
		if (this.#visit) return;
		const soon = this.#cluster.now + this.#cluster.random() * withinMs;
		this.nextAt = Math.max(
			this.#downUntil,
			Math.min(this.nextAt, Math.ceil(soon)),
		);
	}

	/** Whatever it was about to write, it does not. */
	crash(downMs: number): void {
		this.#visit = undefined;
		this.#announced = undefined;
		this.#wrote.clear();
		this.#downUntil = Math.max(
			this.#downUntil,
			Math.ceil(this.#cluster.now + downMs),
		);
		this.nextAt = this.#downUntil;
	}

	/** It goes on where it was, but later. */
	pause(ms: number): void {
		this.nextAt = Math.max(this.nextAt, this.#cluster.now + ms);
	}

	/** What has been announced counts no more. */
	forget(): void {
		this.#announced = undefined;
	}

	/** The next write of a visit, or the beginning of one. */
	step(): void {
		const cluster = this.#cluster;
		if (!this.#visit) {
			this.#seenChanges = cluster.changes;
			this.#visit = this.#run();
		}
		try {
			const { done, value } = this.#visit.next();
			this.nextAt = cluster.now + Math.ceil(cluster.random() * 500);
			if (!done) return;
			this.#visit = undefined;
			if (value) this.#settle(value);
		} catch (error) {
			if (!(error instanceof Conflict || error instanceof Failure)) throw error;
			this.#visit = undefined;
			this.#announced = undefined;
			this.#wrote.clear();
			this.nextAt = cluster.now + 1000 + Math.ceil(cluster.random() * 5000);
		}
	}

	#settle(told: Told): void {
		const cluster = this.#cluster;
		this.onTold(told);
		const now = cluster.now + this.skew;
		const before = this.#announced;
		if (
			told.writes.length > 0 &&
			before?.changes === this.#seenChanges &&
			!before.at.some((at) => at <= told.at)
		)
			this.onUnannounced(told, before.at);
		this.#announced = undefined;
		const { client, serving } = told.plan.rotations;
		if (told.writes.length > 0 || client.step || serving.step) return;
		if (cluster.changes !== this.#seenChanges) {
			this.nextAt = Number.POSITIVE_INFINITY;
			this.wake();
			return;
		}
		this.#announced = {
			changes: cluster.changes,
			at: told.announced,
		};
		const next = Math.min(
			now + this.#heartbeat(),
			...told.announced.filter((at) => at > now),
		);
		this.nextAt = Math.max(cluster.now + 1000, Math.ceil(next - this.skew));
	}

	/** A write. What is so already is not written; what may not be written is left. */
	#write(
		object: string,
		data: Data,
		seen: Version | { data: Data | undefined },
		writes: string[],
		expected?: number,
	): void {
		if (seen.data && same(seen.data, data)) return;
		const { failAfter } = this;
		const fails = failAfter !== undefined && --failAfter.writes < 0;
		if (fails) this.failAfter = undefined;
		if (fails && !failAfter.done) throw new Failure(object);
		try {
			const version = this.#cluster.write(object, data, expected);
			this.#wrote.set(object, { version, data });
			writes.push(object);
		} catch (error) {
			if (!(error instanceof Refused)) throw error;
		}
		if (fails) throw new Failure(object);
	}

	*#run(): Generator<void, Told | undefined> {
		const cluster = this.#cluster;
		const issuer = this.#issuer;
		const spec = this.#spec();
		const now = cluster.now + this.skew;
		const seenAt = cluster.now - this.lag;
		const seen = this.#observe(now);
		const { observed, targets } = seen;
		const plan = decide(spec, NAMESPACE, observed, now);
		const signers = {} as Record<Domain, Signers>;
		for (const domain of domains) {
			const { step } = plan.rotations[domain];
			const before = observed.signers[domain];
			signers[domain] = advance(before, step, issuer.made(step, before), now);
		}
		const writes: string[] = [];
		for (const domain of domains) {
			yield;
			const { version, data } = seen.secrets[domain];
			this.#write(
				signerOf(domain),
				secretData(signers[domain]),
				seen.secrets[domain],
				writes,
				data ? version : 0,
			);
		}
		const text = {
			client: bundle(signers.client.trusted),
			serving: bundle(signers.serving.trusted),
		};
		yield;
		this.#write(
			CLIENT_CA,
			{
				"client-ca.crt": text.client,
				"serving-ca.crt": text.serving,
				"client-answered": JSON.stringify(signers.client.answered),
				"serving-answered": JSON.stringify(signers.serving.answered),
			},
			this.#own(CLIENT_CA),
			writes,
		);
		for (const { namespace } of cluster.apiServers) {
			const object = bundleOf(namespace);
			const data = targets.get(object);
			if (!data) continue;
			yield;
			this.#write(object, { "serving-ca.crt": text.serving }, { data }, writes);
		}
		const announced: number[] = [];
		for (const [id, found] of Object.entries(observed.leaves)) {
			const domain = id === "server" ? "serving" : "client";
			const object = id === "server" ? SERVER_CERT : id;
			const due = plan.leaves.find((one) => one.id === id);
			if (!due && !("pair" in found)) continue;
			const { current, cross } = signers[domain];
			let leaf = found as Leaf;
			if (due) {
				if (!("pair" in current)) throw new Error(`${id}: due, unsigned`);
				const pair = issuer.leaf(current.pair, due);
				leaf = {
					...{ pair, facts: pair.facts, keyMatches: true },
					...{ chain: pair.facts.pem, signedBySigner: true },
				};
			}
			announced.push(leafRenewalTime(spec.name, domain, leaf.facts));
			yield;
			this.#write(
				object,
				{
					"tls.crt": leaf.signedBySigner
						? leaf.facts.pem + (cross?.pem ?? "")
						: leaf.chain,
					"tls.key": leaf.pair.key,
				},
				id === "server" ? this.#own(SERVER_CERT) : { data: targets.get(id) },
				writes,
			);
		}
		yield;
		const template = cluster.kind === "etcd" ? text.client : "gateway";
		this.#write(DEPLOYMENT, { template }, this.#own(DEPLOYMENT), writes);
		const { restart } = seen;
		const ca = newest(signers.serving)?.facts;
		if (restart && ca && restart.restartedFor !== ca.pem) {
			yield;
			if (restart.permission === "restart") {
				restart.restartedFor = ca.pem;
				cluster.restart(restart);
				const who = consumerOf(restart);
				cluster.writes.set(who, (cluster.writes.get(who) ?? 0) + 1);
				writes.push(who);
			}
		}
		for (const domain of domains) {
			const { nextStepAt } = plan.rotations[domain];
			if (nextStepAt !== undefined) announced.push(nextStepAt);
			const { trusted, cross } = signers[domain];
			const ca = newest(signers[domain])?.facts;
			if (ca) announced.push(signerRenewalTime(spec.name, domain, ca));
			for (const one of [...trusted, ...(cross ? [cross] : [])])
				announced.push(one.notAfter);
		}
		const fresh =
			this.lag === 0 && cluster.changes === this.#seenChanges + writes.length;
		return { at: now, seenAt, fresh, plan, signers, writes, announced };
	}

	/** One of our own objects, as the cache has it. */
	#own(object: string): Version {
		const cached = this.#cluster.read(object, this.#cluster.now - this.lag);
		const wrote = this.#wrote.get(object);
		return wrote && wrote.version > cached.version ? wrote : cached;
	}

	#observe(now: number): Seen {
		const cluster = this.#cluster;
		const secrets = {
			client: this.#own(signerOf("client")),
			serving: this.#own(signerOf("serving")),
		};
		const copies = this.#own(CLIENT_CA).data;
		const signers = {
			client: this.#signers("client", secrets.client.data, copies),
			serving: this.#signers("serving", secrets.serving.data, copies),
		};
		const leaves: Observed["leaves"] = {
			server: this.#leaf(this.#own(SERVER_CERT).data, signers.serving),
		};
		const targets = new Map<string, Data | undefined>();
		const fillable = new Map<string, boolean>();
		for (const { namespace } of cluster.apiServers)
			for (const object of [bundleOf(namespace), leafOf(namespace)]) {
				const health = cluster.health.get(object) ?? "ok";
				const isThere = health === "ok" || health === "immutable";
				fillable.set(object, isThere);
				if (isThere) targets.set(object, cluster.data(object));
			}
		for (const { namespace } of cluster.apiServers)
			if (fillable.get(leafOf(namespace)))
				leaves[leafOf(namespace)] = this.#leaf(
					targets.get(leafOf(namespace)),
					signers.client,
				);
		const clientBundle = copies?.["client-ca.crt"] ?? "";
		const client = newest(signers.client)?.facts;
		const written = client && clientBundle.includes(client.pem);
		const reach: Record<Domain, Reach> = {
			client: {
				handedOut: cluster.apiServers.some(
					({ namespace }) => targets.get(leafOf(namespace))?.["tls.crt"],
				),
				unwritten:
					client && !written ? [wait(CLIENT_CA, "BundleNotWritten")] : [],
				undelivered: cluster.apiServers
					.map(({ namespace }) => leafOf(namespace))
					.filter((object) => {
						if (!fillable.get(object)) return true;
						const leaf = leaves[object];
						return leaf && "facts" in leaf && !leaf.signedBySigner;
					})
					.map((object) => wait(object, "CertificateNotWritten", true)),
				unread:
					written && spreading(signers.client, now)
						? cluster.proxies
								.filter((proxy) =>
									cluster.kind === "etcd"
										? proxy.template !== clientBundle
										: proxy.bundle !== clientBundle,
								)
								.map((proxy) => wait(proxy.name, "ProxyNotUpdated"))
						: [],
			},
			serving: {
				...{ unwritten: [], undelivered: [], unread: [] },
				handedOut: cluster.apiServers.some(
					({ namespace }) =>
						targets.get(bundleOf(namespace))?.["serving-ca.crt"],
				),
			},
		};
		let restart: ApiServer | undefined;
		const serving = newest(signers.serving)?.facts;
		const { server } = leaves;
		if (server && "facts" in server && !server.signedBySigner)
			reach.serving.undelivered = [wait(SERVER_CERT, "CertificateNotWritten")];
		if (serving) {
			reach.serving.unwritten = cluster.apiServers
				.map(({ namespace }) => bundleOf(namespace))
				.filter(
					(object) =>
						!fillable.get(object) ||
						!targets.get(object)?.["serving-ca.crt"]?.includes(serving.pem),
				)
				.map((object) => wait(object, "BundleNotWritten", true));
			if (spreading(signers.serving, now)) {
				// Who reads a bundle that is not written is named by that.
				const { waits, due } = this.#readers(
					serving,
					cluster.apiServers.filter(({ namespace }) =>
						reach.serving.unwritten.every(
							({ who }) => who !== bundleOf(namespace),
						),
					),
				);
				reach.serving.unread = waits;
				restart = due;
			}
		}
		const observed = { signers, reach, leaves };
		return { observed, secrets, targets, restart, clientBundle };
	}

	/** Who is not known to have read the CA, and who is to be restarted because of it. */
	#readers(
		ca: CertificateFacts,
		apiServers: ApiServer[],
	): {
		waits: Wait[];
		due: ApiServer | undefined;
	} {
		const waits: Wait[] = [];
		let due: ApiServer | undefined;
		let rolling = false;
		for (const api of apiServers) {
			const who = consumerOf(api);
			if (!api.named) {
				waits.push(wait(bundleOf(api.namespace), "ConsumerUnknown", true));
				continue;
			}
			if (api.permission === "none") {
				waits.push(wait(who, "ConsumerForbidden", true));
				continue;
			}
			const behind = api.processes.some((one) => !one.bundle.includes(ca.pem));
			if (!behind) continue;
			const under = api.restartedFor === ca.pem;
			rolling ||= under;
			if (!under && api.permission === "restart") due ??= api;
			waits.push(
				api.permission === "look"
					? wait(who, "ConsumerForbidden", true)
					: wait(who, under ? "RolloutPending" : "ConsumerNotRestarted"),
			);
		}
		return { waits, due: rolling ? undefined : due };
	}

	/** @param copies of what the Secrets hold but the keys */
	#signers(
		domain: Domain,
		secret: Data | undefined,
		copies: Data | undefined,
	): Signers {
		const one = (key: string) => this.#issuer.read(secret?.[key] ?? "")?.[0];
		const [cross, nextCross] = [one("cross.crt"), one("next-cross.crt")];
		const previous = one("previous.crt");
		const pair = this.#pair(secret, "previous");
		const signers: Signers = {
			current: this.#pair(secret, "tls"),
			next: this.#pair(secret, "next"),
			trusted: [
				...([secret?.["ca-bundle.crt"], copies?.[`${domain}-ca.crt`]]
					.map((text) => (text ? this.#issuer.read(text) : undefined))
					.find((list) => list !== undefined) ?? []),
			],
			answered: JSON.parse(
				secret?.answered ?? copies?.[`${domain}-answered`] ?? "{}",
			) as Requests,
			...(cross && { cross }),
			...(nextCross && { nextCross }),
			...(previous && {
				previous: {
					facts: previous,
					...("pair" in pair && pair.keyMatches && { pair: pair.pair }),
				},
			}),
		};
		const known = newest(signers)?.facts;
		if (known && !signers.trusted.some((ca) => ca.pem === known.pem))
			signers.trusted.push(known);
		return signers;
	}

	#pair(secret: Data | undefined, of: string): Found<Authority> {
		const certificate = secret?.[`${of}.crt`] ?? "";
		const key = secret?.[`${of}.key`] ?? "";
		if (!certificate && !key) return { missing: true };
		const [facts] = this.#issuer.read(certificate) ?? [];
		if (!facts) return { unreadable: "damaged" };
		return {
			facts,
			pair: { certificate: facts.pem, key },
			keyMatches: matches(facts, key),
		};
	}

	#leaf(secret: Data | undefined, { current }: Signers): Found<Leaf> {
		const found = this.#pair(secret, "tls");
		if (!("facts" in found)) return found;
		return {
			...found,
			chain: secret?.["tls.crt"] ?? "",
			signedBySigner:
				"facts" in current &&
				this.#issuer.isSignedBy(found.facts, current.facts),
		};
	}
}

/** The API server did not answer. */
class Failure extends Error {}

export const consumerOf = ({ namespace }: { namespace: string }) =>
	`Deployment ${namespace}/apiserver`;

const wait = (who: string, reason: string, obstacle = false): Wait => ({
	who,
	reason,
	message: `${who}: ${reason}`,
	obstacle,
});

const same = (a: Data, b: Data) => {
	const keys = Object.keys(a);
	return (
		keys.length === Object.keys(b).length &&
		keys.every((key) => a[key] === b[key])
	);
};

function secretData(signers: Signers): Data {
	const { current, next, cross, nextCross, previous, trusted } = signers;
	const data: Record<string, string> = {
		"ca-bundle.crt": bundle(trusted),
		answered: JSON.stringify(signers.answered),
	};
	const put = (of: string, pair?: { certificate: string; key: string }) => {
		if (!pair) return;
		data[`${of}.crt`] = pair.certificate;
		data[`${of}.key`] = pair.key;
	};
	if ("facts" in current) put("tls", current.pair);
	if ("facts" in next) put("next", next.pair);
	if (cross) data["cross.crt"] = cross.pem;
	if (nextCross) data["next-cross.crt"] = nextCross.pem;
	if (previous) data["previous.crt"] = previous.facts.pem;
	put("previous", previous?.pair);
	return data;
}

/** For traces. */
export const summary = ({ plan, writes }: Told): string =>
	[
		...domains.map((domain) => {
			const { phase, step, reason, waits, harmlessUntil, generation } =
				plan.rotations[domain];
			const what = step
				? ` ${step.do}${step.do === "make" ? ` ${step.as} ${formatDuration(step.validity.notAfter - step.validity.notBefore)}${step.cross ? ` cross by ${step.cross.by}` : ""}` : ""} (${reason})`
				: "";
			const waiting = waits.map((one) => `${one.reason} ${one.who}`).join(", ");
			return `${domain} ${generation ?? ""} ${phase}${what}${waiting && ` waits ${waiting}`}${harmlessUntil === undefined ? "" : ` harmless until ${iso(harmlessUntil)}`}`;
		}),
		...plan.leaves.map(({ id, reason }) => `${id} (${reason})`),
		writes.join(", "),
	].join("; ");

export const iso = (ms: number) =>
	Number.isFinite(ms) ? new Date(ms).toISOString().slice(0, 19) : String(ms);
