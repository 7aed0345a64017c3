/**
 * One visit to one EtcdStorage: observe exactly what its spec names, decide, issue, apply. Everything that decides is
 * pure and elsewhere (reconcile.ts, manifests.ts, problems.ts); this is the order in which it happens.
 */

import { isOwnedBy } from "./adoption.ts";
import { type Issued, issue, materialOf } from "./certificates.ts";
import { restart, restartError } from "./consumers.ts";
import { clean, FINALIZER, setFinalizers } from "./deletion.ts";
import {
	type EtcdStorage,
	readSpec,
	type Spec,
	sameTarget,
	type TargetStatus,
} from "./etcdstorage.ts";
import { type KubeObject, refText } from "./kube.ts";
import {
	type Domain,
	domains,
	leafRenewalTime,
	outOfDates,
	signerRenewalTime,
} from "./lifetimes.ts";
import {
	bundles,
	certificates,
	hash,
	leafId,
	type Material,
	names,
	signerSecret,
} from "./manifests.ts";
import {
	type Context,
	isAnswer,
	type Observation,
	observe,
	restartKey,
} from "./observe.ts";
import { invalidSpec, signerPending, targetError } from "./problems.ts";
import { decide, leafDomain, type Plan } from "./reconcile.ts";
import type { Wait } from "./rotation.ts";
import { generationOf, newest } from "./signers.ts";
import type { Outcome, Problem } from "./status.ts";
import { availability, dataPlane, workload } from "./workload.ts";
import { Writer } from "./writer.ts";

/**
 * Brings everything that the EtcdStorage asks for into being, as far as that is possible.
 * @throws ApiError where nothing can be said about it either: the caller tries again
 */
export async function visit(
	storage: EtcdStorage,
	context: Context,
): Promise<Outcome> {
	const outcome: Outcome = {
		problems: [],
		issued: [],
		written: [],
		certificates: [],
		rotations: [],
		stepped: false,
		targets: storage.status?.targets ?? [],
	};
	const spec = readSpec(storage);
	if ("invalid" in spec) {
		outcome.problems.push(...invalidSpec(spec.invalid));
		return outcome;
	}
	if (!storage.metadata.finalizers?.includes(FINALIZER))
		await setFinalizers(storage, context, [
			...(storage.metadata.finalizers ?? []),
			FINALIZER,
		]);

	const observation = await observe(storage, spec, context);
	await new Visit(storage, spec, context, outcome, observation).run();
	return outcome;
}

class Visit {
	readonly #storage: EtcdStorage;
	readonly #spec: Spec;
	readonly #context: Context;
	readonly #outcome: Outcome;
	readonly #seen: Observation;
	readonly #writer: Writer;
	/** Ids of certificates whose target could not be written. */
	readonly #undelivered = new Set<string>();

	constructor(
		storage: EtcdStorage,
		spec: Spec,
		context: Context,
		outcome: Outcome,
		observation: Observation,
	) {
		this.#storage = storage;
		this.#spec = spec;
		this.#context = context;
		this.#outcome = outcome;
		this.#seen = observation;
		this.#writer = new Writer(storage, context, outcome);
	}

	async run(): Promise<void> {
		const { environment, now, owned } = this.#context;
		const { observed, fillable, unknown, coreCA, coreTrouble, problems } =
			this.#seen;
		if (coreTrouble) this.#outcome.problems.push(coreTrouble);
		this.#outcome.problems.push(...problems);
		const at = now();
		const decided = (stuck: Domain[]) =>
			decide(this.#spec, environment.namespace, observed, at, stuck);
		const plan = decided([]);
		const stuck: Domain[] = [];
		const parts = {} as Record<Domain, Issued>;
		const each = domains.map(async (domain) => {
			const part = await issue(domain, plan, observed, at);
			parts[domain] = part;
			if (await this.#ensureSigner(domain, part)) return;
			// A certificate whose signer is not kept must not get about. What its predecessor signs may.
			stuck.push(domain);
			parts[domain] = await issue(domain, decided([domain]), observed, at);
		});
		await Promise.all(each);
		const material = materialOf(parts, coreCA);
		const able = domains.filter((domain) => newest(material.signers[domain]));

		this.#recordTargets([
			...fillable.filter(({ kind }) =>
				able.includes(kind === "Secret" ? "client" : "serving"),
			),
			...unknown,
		]);
		const ensure = (
			make: typeof bundles | typeof certificates,
			targets: TargetStatus[],
		) =>
			this.#ensureAll(
				"CertificatesReady",
				make(this.#storage, environment, targets, material),
			);
		// Bundles before the certificates that need them, certificates before the pods that mount them.
		const bundled = await ensure(bundles, fillable);
		const [accepted, refused] =
			bundled || this.#proxiesAccept(material)
				? [fillable, []]
				: [[], fillable];
		for (const target of refused) this.#undelivered.add(leafId(target));
		const delivered = (await ensure(certificates, accepted)) && bundled;
		const behind = await this.#restartConsumer(material);
		this.#report(
			stuck.length > 0 ? decided(stuck) : plan,
			stuck,
			material,
			behind,
		);
		// Pods that cannot work are not made; those that run are kept in repair.
		const running = owned.Deployment.get(names.workload(this.#spec.name));
		if (
			(delivered || this.#canMount()) &&
			able.length === domains.length &&
			(!coreTrouble || running)
		)
			await this.#ensureAll(
				"Deployed",
				workload(
					this.#storage,
					environment,
					this.#spec,
					material,
					coreTrouble && running,
				),
			);
		this.#outcome.availability = availability(
			owned.Deployment.get(names.workload(this.#spec.name)),
		);
		await this.#cleanFormerTargets();
	}

	/** Whether gateways can start with what lies there, though not all of it is as it is to be. etcd's own proxies are told apart by the newest. */
	#canMount(): boolean {
		const { owned, environment } = this.#context;
		const bundle = owned.ConfigMap.get(names.clientCA(this.#spec.name));
		const server = owned.Secret.get(names.serverCert(this.#spec.name));
		return (
			dataPlane(environment.proxyImage) === "gateway" &&
			[bundle, server].every((one) => one && isOwnedBy(one, this.#storage)) &&
			bundle?.data?.["client-ca.crt"] !== undefined
		);
	}

	/** Whether the bundle that lies there for the proxies, and cannot be changed, is enough for new client certificates. */
	#proxiesAccept({ signers }: Material): boolean {
		const { current, cross, previous } = signers.client;
		const name = names.clientCA(this.#spec.name);
		const bundle = this.#context.owned.ConfigMap.get(name)?.data;
		return [
			"facts" in current ? current.facts : undefined,
			cross && previous?.facts,
		].some((ca) => ca && bundle?.["client-ca.crt"]?.includes(ca.pem));
	}

	/**
	 * Signers are written so that of two writers only one can win: created, never applied over, and changed only where
	 * they still are what was observed. The loser's ApiError (409) ends its visit.
	 * @returns whether the domain's signers are in the cluster
	 */
	async #ensureSigner(domain: Domain, { signers }: Issued): Promise<boolean> {
		const { environment } = this.#context;
		const desired = signerSecret(this.#storage, environment, domain, signers);
		const observed = this.#seen.signerSecrets[domain];
		if (!observed) return this.#writer.create("CertificatesReady", desired);
		const { resourceVersion } = observed.metadata;
		if (resourceVersion) desired.metadata.resourceVersion = resourceVersion;
		return this.#writer.ensure("CertificatesReady", desired);
	}

	/** @returns whether all of ours are in place; a target that is not is a problem of its own and stops nothing */
	async #ensureAll(
		condition: Problem["condition"],
		objects: KubeObject[],
	): Promise<boolean> {
		const server = names.serverCert(this.#spec.name);
		const results = objects.map(async (desired) => {
			const { kind, metadata } = desired;
			const { name, namespace = "", ownerReferences } = metadata;
			if (!ownerReferences) {
				const target = { kind: kind as TargetStatus["kind"], name, namespace };
				const live = this.#seen.targets.get(refText(target));
				const filled = await this.#writer.fill(target, desired, live);
				if (!filled && kind === "Secret") this.#undelivered.add(leafId(target));
				return true;
			}
			const ok = await this.#writer.ensure(condition, desired);
			if (!ok && kind === "Secret" && name === server)
				this.#undelivered.add("server");
			return ok;
		});
		return (await Promise.all(results)).every((ok) => ok);
	}

	/** @returns what keeps a consumer from being restarted */
	async #restartConsumer(material: Material): Promise<Wait | undefined> {
		const { kube, environment, restarts } = this.#context;
		const consumer = this.#seen.restart;
		const [asked, ca] = [
			newest(this.#seen.observed.signers.serving)?.facts,
			newest(material.signers.serving)?.facts,
		];
		// One that this visit has made: no kubelet may have it yet, and nobody was asked about it.
		if (!consumer || !ca || ca.fingerprint !== asked?.fingerprint)
			return undefined;
		try {
			await restart(kube, consumer, generationOf(ca));
			restarts.add(restartKey(consumer, ca));
			this.#outcome.written.push(`${refText(consumer)} restarted`);
			return undefined;
		} catch (error) {
			if (!isAnswer(error)) throw error;
			return restartError(consumer, error, environment.namespace);
		}
	}

	/** What is in the cluster now: a certificate that could not be delivered is none, and its predecessor counts on. */
	#report(
		plan: Plan,
		stuck: Domain[],
		material: Material,
		behind: Wait | undefined,
	): void {
		const { issued, certificates: list, rotations, problems } = this.#outcome;
		const { environment, now } = this.#context;
		const { name } = this.#spec;
		this.#outcome.bundleHash = hash(material.signers.serving.bundle);
		for (const domain of domains) {
			const rotation = plan.rotations[domain];
			const { step, reason = "" } = rotation;
			const signers = material.signers[domain];
			if (step?.do === "make") issued.push({ id: `${domain}-signer`, reason });
			if (step) this.#outcome.stepped = true;
			const ca = newest(signers)?.facts;
			const generation = ca && generationOf(ca);
			const secret = `Secret ${environment.namespace}/${names.signer(name, domain)}`;
			const waits = [
				...rotation.waits,
				...(ca && stuck.includes(domain) ? [signerNotWritten(secret)] : []),
			];
			rotations.push({
				...rotation,
				...(generation && { generation }),
				waits: waits.map((wait) => this.#inDetail(wait, behind)),
			});
			const facts = "facts" in signers.current ? signers.current.facts : ca;
			if (!facts) continue;
			const renewalTime = signerRenewalTime(name, domain, facts);
			list.push({ id: `${domain}-signer`, domain, facts, renewalTime });
		}
		for (const { id, reason } of plan.leaves)
			if (!this.#undelivered.has(id)) issued.push({ id, reason });
		for (const [id, leaf] of Object.entries(material.leaves)) {
			const found = this.#undelivered.has(id)
				? this.#seen.observed.leaves[id]
				: leaf;
			if (!found || !("facts" in found)) continue;
			const { facts } = found;
			const domain = leafDomain(id);
			const renewalTime = leafRenewalTime(name, domain, facts);
			list.push({ id, domain, facts, renewalTime });
		}
		// Where nothing can be issued for want of a signer, there may be certificates to wait for that are not there.
		for (const [id, leaf] of Object.entries(this.#seen.observed.leaves)) {
			const usable = "facts" in leaf && leaf.keyMatches;
			const due = plan.leaves.some((one) => one.id === id);
			if (!due && (!usable || outOfDates(leaf.facts, now()) !== undefined))
				problems.push(signerPending(id));
		}
	}

	/** A wait for an object of which this visit knows more. */
	#inDetail(wait: Wait, behind: Wait | undefined): Wait {
		if (behind?.who === wait.who) return behind;
		const problem = this.#outcome.problems.find(
			(one) => one.object === wait.who,
		);
		return problem
			? {
					who: wait.who,
					reason: problem.reason,
					message: problem.message,
					obstacle: problem.userError,
				}
			: wait;
	}

	/** Those that are or may be filled now, and those that were and still have to be cleaned or could not be reached today. */
	#recordTargets(now: TargetStatus[]): void {
		const { targets } = this.#outcome;
		this.#outcome.targets = [
			...now,
			...targets.filter((old) => !now.some((one) => sameTarget(one, old))),
		];
	}

	async #cleanFormerTargets(): Promise<void> {
		for (const target of this.#outcome.targets) {
			if (this.#spec.targets.some((one) => sameTarget(one, target))) continue;
			try {
				await clean(this.#storage, this.#context, target, false);
				this.#outcome.targets = this.#outcome.targets.filter(
					(one) => one !== target,
				);
			} catch (error) {
				if (!isAnswer(error)) throw error;
				this.#outcome.problems.push(targetError(target, error, false));
			}
		}
	}
}

const signerNotWritten = (who: string): Wait => ({
	who,
	reason: "SignerNotWritten",
	message: `${who} cannot be written`,
	obstacle: false,
});
