/**
 * One visit to one EtcdStorage: observe exactly what its spec names, decide, issue, apply. Everything that decides is
 * pure and elsewhere (reconcile.ts, manifests.ts, problems.ts); this is the order in which it happens.
 */

import type { Cache } from "./cache.ts";
import {
	issue,
	leafDomain,
	observeCore,
	observeLeaf,
	observeSigner,
} from "./certificates.ts";
import { clean, FINALIZER, setFinalizers } from "./deletion.ts";
import { isSubset, takeOver } from "./drift.ts";
import {
	type EtcdStorage,
	readSpec,
	type Spec,
	sameTarget,
	type TargetStatus,
} from "./etcdstorage.ts";
import { ApiError, type Kube, type KubeObject } from "./kube.ts";
import {
	bundles,
	certificates,
	type Data,
	type Environment,
	FILLED_BY,
	isOwnedBy,
	leafId,
	type Material,
	names,
	signerSecret,
} from "./manifests.ts";
import {
	coreProblem,
	invalidSpec,
	nameTaken,
	targetError,
	targetProblem,
	writeError,
} from "./problems.ts";
import {
	type Domain,
	decide,
	domains,
	type Found,
	leafRenewalTime,
	type Observed,
	type Plan,
	type Signer,
	signerRenewalTime,
} from "./reconcile.ts";
import {
	type EventNote,
	type Outcome,
	type Problem,
	TARGET_POLL,
} from "./status.ts";
import { type TargetReader, targetKey } from "./targets.ts";
import { availability, type Deployment, workload } from "./workload.ts";

export interface Context {
	kube: Kube;
	environment: Environment;
	storages: Cache<EtcdStorage>;
	/** The controller's namespace, as its watches see it, by kind. */
	owned: {
		ConfigMap: Cache<Data>;
		Secret: Cache<Data>;
		Service: Cache<KubeObject>;
		Deployment: Cache<Deployment>;
	};
	targets: TargetReader;
	now(): number;
	event(storage: EtcdStorage, note: EventNote): Promise<void>;
}

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
		bundleExpiry: Number.POSITIVE_INFINITY,
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

	await new Visit(storage, spec, context, outcome).run();
	return outcome;
}

/**
 * Whether the API server's word tells something about the object. Where it could not be reached, or another writer was
 * faster, nothing is known, a condition would be a false alarm, and the visit is to be made again.
 */
const isAnswer = (error: unknown): error is ApiError =>
	error instanceof ApiError && error.code !== 0 && error.code !== 409;

class Visit {
	readonly #storage: EtcdStorage;
	readonly #spec: Spec;
	readonly #context: Context;
	readonly #outcome: Outcome;
	/** The targets as they were read for this visit: what other visits read or write meanwhile decides nothing here. */
	readonly #found = new Map<string, Data | undefined>();
	/** The signers as the decision saw them. The caches may have moved on since: what is decided there is not for them. */
	readonly #signerSecrets = new Map<Domain, Data | undefined>();
	/** Ids of certificates whose target could not be written. */
	readonly #undelivered = new Set<string>();

	constructor(
		storage: EtcdStorage,
		spec: Spec,
		context: Context,
		outcome: Outcome,
	) {
		this.#storage = storage;
		this.#spec = spec;
		this.#context = context;
		this.#outcome = outcome;
	}

	async run(): Promise<void> {
		const { environment, now, owned } = this.#context;
		const core = observeCore(
			owned.ConfigMap.get(environment.coreCAConfigMap),
			owned.Secret.get(environment.coreCertsSecret),
		);
		const coreTrouble = coreProblem(environment, core, now());
		if (coreTrouble) this.#outcome.problems.push(coreTrouble);
		const fillable = await this.#fillableTargets();
		const observed = await this.#observe(fillable);
		const plan = decide(this.#spec, environment.namespace, observed, now());
		const coreCA = core.ca?.object.data?.["ca.crt"] ?? "";
		const material = await issue(plan, observed, coreCA, now());

		// A certificate whose signer is not kept must not get about.
		const kept = await this.#ensureSigners(material);
		if (kept) {
			this.#recordTargets(fillable);
			const args = [this.#storage, environment, fillable, material] as const;
			// Bundles before the certificates that need them, certificates before the pods that mount them.
			const delivered =
				(await this.#ensureAll("CertificatesReady", bundles(...args))) &&
				(await this.#ensureAll("CertificatesReady", certificates(...args)));
			this.#report(plan, observed, material);
			// Pods that cannot work are not made; those that run are kept in repair.
			const running = owned.Deployment.get(names.workload(this.#spec.name));
			if (delivered && (!coreTrouble || running))
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
		}
		this.#outcome.availability = availability(
			owned.Deployment.get(names.workload(this.#spec.name)),
		);
		await this.#cleanFormerTargets();
	}

	/** Reads the targets; what is wrong with one of them is a problem and does not keep the others from being filled. */
	async #fillableTargets(): Promise<TargetStatus[]> {
		const { environment, targets, storages } = this.#context;
		const checks = this.#spec.targets.map(async (target) => {
			try {
				const found = await targets.read(target, this.#maxAge());
				this.#found.set(targetKey(target), found);
				return targetProblem(
					this.#storage,
					environment,
					target,
					found,
					storages.values(),
				);
			} catch (error) {
				if (!isAnswer(error)) throw error;
				return targetError(target, error, false);
			}
		});
		const problems = await Promise.all(checks);
		this.#outcome.problems.push(
			...problems.filter((problem) => problem !== undefined),
		);
		return this.#spec.targets.filter(
			(_, index) => problems[index] === undefined,
		);
	}

	/**
	 * Where something was wrong at the last visit, what was read then is read again. Else it may be so old that it and
	 * the wait for the next visit together are less than the minute within which an edited target is repaired.
	 */
	#maxAge(): number {
		const troubled = this.#storage.status?.conditions?.some(
			(one) => one.type === "CertificatesReady" && one.status === "False",
		);
		return troubled ? 0 : TARGET_POLL / 4;
	}

	async #observe(fillable: TargetStatus[]): Promise<Observed> {
		const { owned } = this.#context;
		const { name } = this.#spec;
		// A foreign Secret of our name holds nothing that we would sign with.
		const secret = (secretName: string) => {
			const found = owned.Secret.get(secretName);
			return found && isOwnedBy(found, this.#storage) ? found : undefined;
		};
		const signer = (domain: Domain): Found<Signer> => {
			const secretName = names.signer(name, domain);
			this.#signerSecrets.set(domain, owned.Secret.get(secretName));
			const found = secret(secretName);
			return found ? observeSigner(found) : { missing: true };
		};
		const signers = {
			client: signer("client"),
			serving: signer("serving"),
		};
		const leaves: Observed["leaves"] = {
			server: await observeLeaf(
				secret(names.serverCert(name)),
				signers.serving,
			),
		};
		for (const target of fillable)
			if (target.kind === "Secret")
				leaves[leafId(target)] = await observeLeaf(
					this.#found.get(targetKey(target)),
					signers.client,
				);
		return { signers, leaves };
	}

	/**
	 * Signers are written so that of two writers only one can win: created, never applied over, and changed only where
	 * they still are what was observed. The loser's ApiError (409) ends its visit.
	 * @returns whether both signers are in the cluster
	 */
	async #ensureSigners(material: Material): Promise<boolean> {
		const { environment, owned, kube } = this.#context;
		const writes = domains.map(async (domain) => {
			const desired = signerSecret(
				this.#storage,
				environment,
				domain,
				material.signers[domain],
			);
			const observed = this.#signerSecrets.get(domain);
			if (!observed)
				return this.#attempt("CertificatesReady", async () => {
					owned.Secret.wrote(await kube.create<Data>(desired));
					this.#wrote(desired, "created");
				});
			const { resourceVersion } = observed.metadata;
			if (resourceVersion) desired.metadata.resourceVersion = resourceVersion;
			return this.#ensure("CertificatesReady", desired);
		});
		return (await Promise.all(writes)).every((ok) => ok);
	}

	/** @returns whether all of ours are in place; a target that is not is a problem of its own and stops nothing */
	async #ensureAll(
		condition: Problem["condition"],
		objects: KubeObject[],
	): Promise<boolean> {
		const results = objects.map((desired) =>
			desired.metadata.namespace === this.#context.environment.namespace &&
			desired.metadata.ownerReferences
				? this.#ensure(condition, desired)
				: this.#ensureTarget(desired),
		);
		return (await Promise.all(results)).every((ok) => ok);
	}

	async #ensure(
		condition: Problem["condition"],
		desired: KubeObject,
	): Promise<boolean> {
		const { kube, owned } = this.#context;
		const { name, namespace = "" } = desired.metadata;
		const cache: Cache<KubeObject> = owned[desired.kind as keyof typeof owned];
		const live = cache.get(name);
		if (live && !isOwnedBy(live, this.#storage)) {
			this.#outcome.problems.push(
				nameTaken(condition, this.#storage, live, desired.kind, namespace),
			);
			return false;
		}
		const managedFields = live && takeOver(live.metadata.managedFields);
		if (live && !managedFields && isSubset(withoutVersion(desired), live))
			return true;
		return this.#attempt(condition, async () => {
			if (live && managedFields) {
				const { resourceVersion } = live.metadata;
				const { metadata } = await kube.patch<KubeObject>(
					{
						apiVersion: desired.apiVersion,
						kind: desired.kind,
						name,
						namespace,
					},
					[
						{
							op: "replace",
							path: "/metadata/managedFields",
							value: managedFields,
						},
						{
							op: "replace",
							path: "/metadata/resourceVersion",
							value: resourceVersion,
						},
					],
					"json",
				);
				// What had to be as observed was, and is newer now.
				if (desired.metadata.resourceVersion && metadata.resourceVersion)
					desired.metadata.resourceVersion = metadata.resourceVersion;
			}
			// The flag cannot be taken back; the object can be replaced, for its content is known.
			if (live && (live as Data).immutable)
				await kube.delete(
					{ ...live, name, namespace },
					{ uid: live.metadata.uid ?? "" },
				);
			cache.wrote(await kube.apply(desired));
			this.#wrote(desired, live ? "configured" : "created");
		});
	}

	/** What the API server refuses is a problem, and tried again. @returns whether it was written */
	async #attempt(
		condition: Problem["condition"],
		write: () => Promise<void>,
	): Promise<boolean> {
		try {
			await write();
			return true;
		} catch (error) {
			if (!isAnswer(error)) throw error;
			this.#outcome.problems.push(writeError(condition, error));
			return false;
		}
	}

	async #ensureTarget(desired: Data): Promise<true> {
		const { targets, kube } = this.#context;
		const target: TargetStatus = {
			kind: desired.kind as TargetStatus["kind"],
			name: desired.metadata.name,
			namespace: desired.metadata.namespace ?? "",
		};
		const live = this.#found.get(targetKey(target));
		if (isSubset(desired, live)) return true;
		// The first to claim a target gets it: the other one's read is outdated by then.
		const { annotations, resourceVersion } = live?.metadata ?? {};
		if (annotations?.[FILLED_BY] !== this.#spec.name && resourceVersion)
			desired.metadata.resourceVersion = resourceVersion;
		try {
			targets.wrote(target, await kube.apply<Data>(desired));
			this.#wrote(desired, "configured");
		} catch (error) {
			targets.forget(target);
			if (!isAnswer(error)) throw error;
			if (target.kind === "Secret") this.#undelivered.add(leafId(target));
			this.#outcome.problems.push(
				targetError(target, error, live?.immutable ?? false),
			);
		}
		return true;
	}

	#wrote(object: KubeObject, how: "created" | "configured"): void {
		const { name, namespace } = object.metadata;
		this.#outcome.written.push(`${object.kind} ${namespace}/${name} ${how}`);
	}

	/** What is in the cluster now: a certificate that could not be delivered is none, and its predecessor counts on. */
	#report(plan: Plan, observed: Observed, material: Material): void {
		const { issued, certificates: list } = this.#outcome;
		for (const due of plan.signers)
			issued.push(`${due.domain}-signer (${due.reason})`);
		for (const due of plan.leaves)
			if (!this.#undelivered.has(due.id))
				issued.push(`${due.id} (${due.reason})`);
		for (const domain of domains) {
			const { facts, trusted } = material.signers[domain];
			const renewalTime = signerRenewalTime(this.#spec, domain, facts);
			list.push({ id: `${domain}-signer`, domain, facts, renewalTime });
			this.#outcome.bundleExpiry = Math.min(
				this.#outcome.bundleExpiry,
				...trusted.map((one) => one.notAfter + 1000),
			);
		}
		for (const [id, leaf] of Object.entries(material.leaves)) {
			const found = this.#undelivered.has(id) ? observed.leaves[id] : leaf;
			if (!found || !("facts" in found)) continue;
			const { facts } = found;
			const domain = leafDomain(id);
			const renewalTime = leafRenewalTime(this.#spec, domain, facts);
			list.push({ id, domain, facts, renewalTime });
		}
	}

	/** Those that are filled now, and those that were and still have to be cleaned or could not be reached today. */
	#recordTargets(fillable: TargetStatus[]): void {
		const { targets } = this.#outcome;
		this.#outcome.targets = [
			...fillable,
			...targets.filter(
				(old) => !fillable.some((target) => sameTarget(target, old)),
			),
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

function withoutVersion(object: KubeObject): KubeObject {
	const { resourceVersion: _, ...metadata } = object.metadata;
	return { ...object, metadata };
}
