/**
 * The laws that hold at every instant of a simulated cluster's life, and the exceptions to them, each with its reason.
 */
import { type Domain, domains } from "../lifetimes.ts";
import type { CertificateFacts } from "../pki.ts";
import type { Rotation } from "../rotation.ts";
import { newest } from "../signers.ts";
import {
	type ApiServer,
	bundleOf,
	CLIENT_CA,
	type Cluster,
	type Data,
	HOUR,
	leafOf,
	MINUTE,
	type Process,
	type ProxyPod,
	SERVER_CERT,
	signerOf,
} from "./lifetimecluster.ts";
import { type Issuer, KEY } from "./lifetimepki.ts";
import { consumerOf, iso, type Told } from "./lifetimevisit.ts";

export class Violation extends Error {}

/** Between what a clock that is 4 minutes off said and what is. */
const TOLERANCE = 5 * MINUTE;
/** Back after an outage: a visit or two, a kubelet's delivery twice (a certificate and what verifies it), etcd's proxies rolled. */
const RECOVERY = 10 * MINUTE;
/** Nothing keeps a replacement from going through all phases but the last: rollouts of two API servers among it. */
const UNDISTURBED = 2 * HOUR;

const TOLD = "told of as behind, and harmless no longer";

interface Pair {
	domain: Domain;
	proxy: ProxyPod;
	api: ApiServer;
	process: Process;
	chain: string;
	bundle: string;
}

export class Laws {
	readonly #cluster: Cluster;
	readonly #issuer: Issuer;
	/** Of each domain, what was said last. */
	readonly #told: Partial<Record<Domain, Rotation>> = {};
	/** Until when it was said to be harmless that somebody is behind: the first word counts, as long as he is named. */
	readonly #promised: Record<Domain, Map<string, number>> = {
		client: new Map(),
		serving: new Map(),
	};
	/** Verifiers that were told of as behind, until the instant that was said to be harmless: excused until they start again. */
	readonly #behind = new WeakMap<
		Process | ProxyPod,
		{ why: string; since: number }
	>();
	/** Pairs that fail since a moment ago, which the next visit will tell of, where an emergency took everybody by surprise. */
	readonly #failing = new Map<string, { pair: Pair; since: number }>();
	/** Since when a domain's signer is damaged or was not there for too long; until the replacement is confirmed. */
	readonly #emergency: Partial<Record<Domain, number>> = {};
	/** Emergencies because of an outage. */
	readonly #expired = new Set<Domain>();
	/** The keys that are not to be trusted any more. */
	readonly #distrusted = new Set<string>();
	readonly #keys = new Map<string, string>();
	readonly #moving: Partial<Record<Domain, number>> = {};
	/** Since when nothing is wrong. */
	#healthySince: number | undefined;
	/** The last time without a controller, long enough for a certificate to miss its renewal. */
	#outageUntil = Number.NEGATIVE_INFINITY;
	#changed = true;
	/** Until when everything that verifies now does. */
	#soundUntil = Number.NEGATIVE_INFINITY;
	/** How many pairs were looked at, and how many exceptions were made, by reason. */
	readonly tally = new Map<string, number>();
	/** When the first exception was made. */
	firstExcuse = Number.POSITIVE_INFINITY;

	constructor(cluster: Cluster, issuer: Issuer) {
		this.#cluster = cluster;
		this.#issuer = issuer;
		cluster.onWrite = (object, data) => this.#written(object, data);
		cluster.onChange = () => {
			this.#changed = true;
		};
	}

	// What the world does, as far as it counts as an excuse.

	damaged(domain: Domain): void {
		this.#emergency[domain] ??= this.#cluster.now;
	}

	/** Nothing tells any more which CA was trusted. Who runs now must start again. */
	trustLost(domain: Domain): void {
		this.damaged(domain);
		for (const { verifier } of this.#verifiers(domain))
			this.#leave(verifier, "nothing is left that tells of the former CA");
	}

	/**
	 * From now on, what these have signed is not to be accepted.
	 * @param again before the last ones were replaced everywhere: nobody is left to certify their successor's successor
	 */
	compromised(
		domain: Domain,
		list: readonly CertificateFacts[],
		again: boolean,
	): void {
		for (const ca of list) this.#distrusted.add(ca.subject);
		if (!again) return;
		for (const { verifier } of this.#verifiers(domain))
			this.#leave(verifier, "compromised twice");
	}

	/** No controller is there until then, long enough for a certificate to miss its renewal. */
	outage(until: number): void {
		for (const domain of domains) {
			this.damaged(domain);
			this.#expired.add(domain);
		}
		this.#outageUntil = Math.max(this.#outageUntil, until);
	}

	// Laws at every instant.

	/** Every certificate that is shown verifies with every bundle that is loaded. */
	check(): void {
		const { now } = this.#cluster;
		if (!this.#changed && now <= this.#soundUntil && this.#failing.size === 0)
			return;
		this.#changed = false;
		this.#soundUntil = Number.POSITIVE_INFINITY;
		const failing = new Set<string>();
		for (const pair of this.#pairs()) {
			this.#count("pairs");
			const window = this.#issuer
				.windows(pair.chain, pair.bundle)
				.find((one) => one.notBefore <= now && now <= one.notAfter);
			if (window) {
				this.#soundUntil = Math.min(this.#soundUntil, window.notAfter);
				continue;
			}
			const excuse = this.#excuse(pair);
			if (excuse) {
				this.#soundUntil = Math.min(this.#soundUntil, now + MINUTE);
				this.#count(excuse);
				this.firstExcuse = Math.min(this.firstExcuse, now);
				continue;
			}
			const key = `${pair.domain} ${pair.proxy.name} ${pair.process.name}`;
			if (this.#emergency[pair.domain] === undefined)
				throw new Violation(this.#failure(pair));
			failing.add(key);
			if (!this.#failing.has(key)) this.#failing.set(key, { pair, since: now });
		}
		for (const key of this.#failing.keys())
			if (!failing.has(key)) {
				// It was over before anybody could tell: as long as a visit takes, and a delivery.
				const { pair, since } = this.#failing.get(key) ?? {};
				this.#failing.delete(key);
				if (pair && since !== undefined && now - since > RECOVERY)
					throw new Violation(`${this.#failure(pair)}, from ${iso(since)} on`);
			}
	}

	*#pairs(): Generator<Pair> {
		const { proxies, apiServers } = this.#cluster;
		for (const proxy of proxies)
			for (const api of apiServers)
				for (const process of api.processes) {
					const both = { proxy, api, process };
					const [domain, client] = ["serving", "client"] as const;
					const { chain, bundle } = proxy;
					yield { ...both, domain, chain, bundle: process.bundle };
					yield { ...both, domain: client, chain: process.chain, bundle };
				}
	}

	/** Why two need not understand each other now; undefined when they must. */
	#excuse(pair: Pair): string | undefined {
		const { now } = this.#cluster;
		const { domain, api, process, proxy } = pair;
		const [leaf] = this.#issuer.read(pair.chain) ?? [];
		const verifier = domain === "serving" ? process : proxy;
		if (leaf && this.#isDistrusted(leaf))
			return "compromised: what the CA signed is not to be accepted";
		const behind = this.#behind.get(verifier);
		// A gateway takes up the bundle by itself.
		const comes = domain === "client" && this.#cluster.kind === "gateway";
		if (behind && (!comes || now <= behind.since + RECOVERY)) return behind.why;
		const told = this.#told[domain];
		const { names = [] } =
			this.#verifiers(domain).find((one) => one.verifier === verifier) ?? {};
		const named = told?.waits.some(({ who }) => names.includes(who));
		if (this.#isDue(domain, names)) {
			return this.#leave(verifier, TOLD);
		}
		// The signer has expired unseen. Who had not loaded its successor by then is named, but not since when he is cut off.
		if (named && this.#expired.has(domain)) {
			return this.#leave(verifier, "named after an outage");
		}
		// Nobody could renew anything, and what was renewed then takes a moment to arrive.
		if (now <= this.#outageUntil + RECOVERY) return "there was no controller";
		const target = leafOf(api.namespace);
		if (
			domain === "client" &&
			leaf &&
			now > leaf.notAfter &&
			now <= (this.#cluster.healedAt.get(target) ?? 0) + RECOVERY
		)
			return "the Secret could not be written, of which was told";
		return undefined;
	}

	#leave(verifier: Process | ProxyPod, why: string): string {
		this.#behind.set(verifier, { why, since: this.#cluster.now });
		return why;
	}

	#isDistrusted(leaf: CertificateFacts): boolean {
		return this.#distrusted.has(leaf.issuer);
	}

	/** Who verifies, and by which names they are told of. */
	#verifiers(domain: Domain) {
		const { proxies, apiServers } = this.#cluster;
		return domain === "client"
			? proxies.map((verifier) => ({
					verifier,
					bundle: verifier.bundle,
					names: [verifier.name, CLIENT_CA],
				}))
			: apiServers.flatMap((api) =>
					api.processes.map((verifier) => ({
						verifier,
						bundle: verifier.bundle,
						names: [consumerOf(api), bundleOf(api.namespace)],
					})),
				);
	}

	#failure({ domain, proxy, process, chain, bundle }: Pair): string {
		const names = (text: string) =>
			(this.#issuer.read(text) ?? [])
				.map(
					(one) =>
						`${one.subject} by ${one.issuer} (${iso(one.notBefore)} - ${iso(one.notAfter)})`,
				)
				.join(" + ");
		const told = this.#told[domain];
		return `${iso(this.#cluster.now)}: ${domain}: ${proxy.name} and ${process.name}: ${names(chain)} does not verify with ${names(bundle)}; told: ${told?.phase} ${JSON.stringify(told?.waits.map((wait) => wait.who))} harmless until ${told?.harmlessUntil && iso(told.harmlessUntil)}`;
	}

	/** No private key leaves its place: a signer's its Secret, a leaf's the Secret of its certificate. */
	#written(object: string, data: Data): void {
		for (const [field, text] of Object.entries(data))
			for (const [key] of text.matchAll(KEY)) {
				const place = this.#keys.get(key) ?? object;
				this.#keys.set(key, place);
				if (!object.startsWith("Secret ") || !field.endsWith(".key"))
					throw new Violation(`${key} is in ${field} of ${object}`);
				if (place !== object)
					throw new Violation(`${key} of ${place} is in ${object}, too`);
			}
	}

	// Laws of each visit.

	told(told: Told): void {
		const { now } = this.#cluster;
		for (const domain of domains) {
			const rotation = told.plan.rotations[domain];
			this.#told[domain] = rotation;
			this.#promise(domain, rotation);
			const ca = newest(told.signers[domain])?.facts;
			// Who has been told of is not told of again when the next replacement begins, until it starts again.
			if (ca)
				for (const { verifier, names, bundle } of this.#verifiers(domain))
					if (!bundle.includes(ca.pem) && this.#isDue(domain, names))
						this.#leave(verifier, TOLD);
			this.#moves(domain, rotation, told);
			if (
				!rotation.step &&
				(rotation.phase === "Steady" || rotation.phase === "Retire") &&
				this.#failing.size === 0 &&
				(this.#emergency[domain] ?? 0) < told.seenAt
			) {
				delete this.#emergency[domain];
				this.#expired.delete(domain);
			}
		}
		for (const [key, { pair, since }] of this.#failing)
			if (since < told.at - TOLERANCE && now - since > RECOVERY) {
				if (!this.#excuse(pair))
					throw new Violation(
						`${this.#failure(pair)}, from ${iso(since)} on, and nobody says so`,
					);
				this.#failing.delete(key);
			}
		this.#bundles(told);
	}

	#promise(domain: Domain, { step, waits, harmlessUntil }: Rotation): void {
		const promised = this.#promised[domain];
		for (const { who } of waits)
			promised.set(
				who,
				Math.min(
					promised.get(who) ?? Number.POSITIVE_INFINITY,
					harmlessUntil ?? Number.POSITIVE_INFINITY,
				),
			);
		// A step says little about who is waited for.
		if (step) return;
		for (const who of promised.keys())
			if (waits.every((wait) => wait.who !== who)) promised.delete(who);
	}

	/** Whether somebody of these names was told to be harmless no longer than until now. */
	#isDue(domain: Domain, names: string[]): boolean {
		const { now } = this.#cluster;
		return names.some(
			(who) =>
				(this.#promised[domain].get(who) ?? Number.POSITIVE_INFINITY) <=
				now + TOLERANCE,
		);
	}

	/** A phase that does not move says for whom, and one that nobody is in the way of moves. */
	#moves(domain: Domain, rotation: Rotation, told: Told): void {
		const { now } = this.#cluster;
		const { phase, step, waits } = rotation;
		const rests = phase === "Steady" || phase === "Retire";
		if (
			!rests &&
			!step &&
			waits.length === 0 &&
			!told.plan.leaves.some((leaf) => leaf.domain === domain)
		)
			throw new Violation(`${domain} is in ${phase} and waits for nobody`);
		for (const { who, reason, message } of waits)
			if (!who || !/^[A-Z]\w+$/.test(reason) || !message)
				throw new Violation(`${domain}: a wait without a reason`);
		if (step || rotation.reason)
			if (!step || !rotation.reason)
				throw new Violation(`${domain}: a step without a reason`);
		if (rests && told.signers[domain].previous && !step)
			throw new Violation(`${domain} is in ${phase} with a previous signer`);
		if (phase === "Retire" && !step && rotation.nextStepAt === undefined)
			throw new Violation(`${domain} is in Retire without an end`);
		if (rests) delete this.#moving[domain];
		else this.#moving[domain] ??= now;
		const since = Math.max(
			this.#moving[domain] ?? now,
			this.#healthySince ?? now,
		);
		if (now - since > UNDISTURBED)
			throw new Violation(
				`${domain} is in ${phase} since ${iso(since)}, and nobody is in its way: ${JSON.stringify(waits)}`,
			);
	}

	/** Whether nothing is wrong with the world, so that everything has to go on. */
	healthy(is: boolean): void {
		if (!is) this.#healthySince = undefined;
		else this.#healthySince ??= this.#cluster.now;
	}

	/** After a visit that had nothing to write: a bundle has each CA once, none that is expired, and all that are needed. */
	#bundles(told: Told): void {
		if (told.writes.length > 0 || !told.fresh) return;
		const fields = {
			client: "client-ca.crt",
			serving: "serving-ca.crt",
		} as const;
		for (const domain of domains) {
			if (told.plan.rotations[domain].step) continue;
			const text = this.#cluster.data(CLIENT_CA)?.[fields[domain]];
			const list = text === undefined ? undefined : this.#issuer.read(text);
			if (!list) continue;
			const names = list.map((one) => one.subject);
			if (new Set(names).size < names.length)
				throw new Violation(`${domain}: a CA is in the bundle twice: ${names}`);
			const { previous, next } = told.signers[domain];
			// While another one spreads, every other text would have to be loaded once more.
			const spreads = previous || !("missing" in next);
			for (const one of list)
				if (!spreads && one.notAfter < told.at - MINUTE)
					throw new Violation(
						`${iso(told.at)}: ${domain}: the bundle has ${one.subject}, which has expired at ${iso(one.notAfter)}`,
					);
			if (list.some((one) => one.issuer !== one.subject || !one.isCA))
				throw new Violation(`${domain}: more than CAs in the bundle`);
			if (this.#emergency[domain] !== undefined) continue;
			for (const leaf of this.#leaves(domain))
				if (
					leaf.notAfter > told.at + TOLERANCE &&
					!names.includes(leaf.issuer) &&
					!this.#isDistrusted(leaf)
				)
					throw new Violation(
						`${iso(told.at)}: ${domain}: the bundle lacks ${leaf.issuer}, which has signed a certificate until ${iso(leaf.notAfter)}`,
					);
			const secret = this.#cluster.data(signerOf(domain));
			if (secret?.["previous.key"] && !secret["previous.crt"])
				throw new Violation(`${domain}: a former key without its certificate`);
		}
	}

	/** Leaves that lie somewhere or are shown. */
	#leaves(domain: Domain): CertificateFacts[] {
		const { proxies, apiServers } = this.#cluster;
		const texts =
			domain === "serving"
				? [
						this.#cluster.data(SERVER_CERT)?.["tls.crt"],
						...proxies.map((proxy) => proxy.chain),
					]
				: apiServers.flatMap((api) => [
						this.#cluster.data(leafOf(api.namespace))?.["tls.crt"],
						...api.processes.map((process) => process.chain),
					]);
		return texts.flatMap(
			(text) => this.#issuer.read(text ?? "")?.slice(0, 1) ?? [],
		);
	}

	/** At the end, when everything is whole again, without any excuse. */
	final(): void {
		const { now } = this.#cluster;
		for (const pair of this.#pairs()) {
			const window = this.#issuer
				.windows(pair.chain, pair.bundle)
				.find((one) => one.notBefore <= now && now <= one.notAfter);
			if (!window) throw new Violation(`at the end: ${this.#failure(pair)}`);
		}
	}

	#count(what: string): void {
		this.tally.set(what, (this.tally.get(what) ?? 0) + 1);
	}
}
