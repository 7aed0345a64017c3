/**
 * One visit to one EtcdStorage: observe exactly what its spec names, decide, issue, apply. Everything that decides is
 * pure and elsewhere (reconcile.ts, manifests.ts, problems.ts); this is the order in which it happens.
 */
import type { Cache } from "./cache.ts";
import {
	type EtcdStorage,
	readSpec,
	type Spec,
	sameTarget,
	type TargetStatus,
} from "./etcdstorage.ts";
import { ApiError, type Kube, type KubeObject } from "./kube.ts";
import {
	availability,
	bundles,
	certificates,
	type Data,
	type Deployment,
	type Environment,
	emptyTarget,
	FILLED_BY,
	isOwnedBy,
	isSubset,
	leafId,
	type Material,
	names,
	secretText,
	signerSecret,
	takeOver,
	withoutOurs,
	workload,
} from "./manifests.ts";
import type { CertificateFacts } from "./pki.ts";
import * as pki from "./pki.ts";
import {
	type CoreCredentials,
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
	type EventNote,
	type Found,
	type Leaf,
	leafRenewalTime,
	type Observed,
	type Outcome,
	type Plan,
	type Problem,
	type Signer,
	type SignerPlan,
	signerRenewalTime,
	TARGET_POLL,
} from "./reconcile.ts";

export const FINALIZER = "etcd.xmudrii.com/targets";
/** A target that cannot be reached is given up this long after its EtcdStorage was deleted: deletion never hangs. */
const CLEANUP_PATIENCE = 5 * 60_000;

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

/** Takes back what was written into targets, then lets the EtcdStorage go. Its owned objects go with it, by their owner references. */
export async function finalize(
	storage: EtcdStorage,
	context: Context,
): Promise<void> {
	if (!storage.metadata.finalizers?.includes(FINALIZER)) return;
	const spec = readSpec(storage);
	const recorded = storage.status?.targets ?? [];
	const targets = [
		...recorded,
		...("targets" in spec ? spec.targets : []).filter(
			(target) => !recorded.some((other) => sameTarget(other, target)),
		),
	];
	const deadline =
		Date.parse(storage.metadata.deletionTimestamp ?? "") + CLEANUP_PATIENCE;
	for (const target of targets)
		await clean(storage, context, target, context.now() >= deadline);
	const { name } = storage.metadata;
	await context.event(storage, {
		type: "Normal",
		reason: "DataRetained",
		message: `the keys under /${name}/ stay in the core etcd; once nobody needs them: etcdctl del --prefix /${name}/`,
	});
	await setFinalizers(
		storage,
		context,
		storage.metadata.finalizers.filter((one) => one !== FINALIZER),
	);
}

/** Takes back what was written into a target. What a person must do instead, where that fails for good, is an event. */
async function clean(
	storage: EtcdStorage,
	context: Context,
	target: TargetStatus,
	giveUp: boolean,
): Promise<void> {
	try {
		const live = await context.targets.read(target, 0);
		if (live?.metadata.annotations?.[FILLED_BY] !== storage.metadata.name)
			return;
		const ref = { ...target, apiVersion: live.apiVersion };
		await context.kube.patch(ref, withoutOurs(live), "merge");
		context.targets.forget(target);
	} catch (error) {
		if (!(error instanceof ApiError)) throw error;
		if (isTransient(error) && !giveUp) throw error;
		await context.event(storage, {
			type: "Warning",
			reason: "TargetCleanupFailed",
			message: `what was written into ${target.kind} ${target.namespace}/${target.name} could not be taken back; where it still is, remove it by hand: ${error.message}`,
		});
	}
}

/**
 * Whether the API server's word tells something about the object. Where it could not be reached, or another writer was
 * faster, nothing is known, a condition would be a false alarm, and the visit is to be made again.
 */
const isAnswer = (error: unknown): error is ApiError =>
	error instanceof ApiError && error.code !== 0 && error.code !== 409;

const isTransient = (error: ApiError) =>
	error.code === 0 ||
	error.code === 409 ||
	error.code === 429 ||
	error.code >= 500;

async function setFinalizers(
	storage: EtcdStorage,
	context: Context,
	finalizers: string[],
): Promise<void> {
	const { apiVersion, kind, metadata } = storage;
	const { name, uid, resourceVersion } = metadata;
	const patch = { metadata: { uid, resourceVersion, finalizers } };
	const written = await context.kube.patch<EtcdStorage>(
		{ apiVersion, kind, name },
		patch,
		"merge",
	);
	// A deleted EtcdStorage is gone with its last finalizer, whatever the answer shows.
	if (!written.metadata.deletionTimestamp) context.storages.wrote(written);
}

class Visit {
	readonly #storage: EtcdStorage;
	readonly #spec: Spec;
	readonly #context: Context;
	readonly #outcome: Outcome;
	/** The targets as they were read for this visit: what other visits read or write meanwhile decides nothing here. */
	readonly #found = new Map<string, Data | undefined>();
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
		const core = observeCore(this.#context);
		const coreTrouble = coreProblem(environment, core, now());
		if (coreTrouble) this.#outcome.problems.push(coreTrouble);
		const fillable = await this.#fillableTargets();
		const observed = await this.#observe(fillable);
		const plan = decide(this.#spec, environment.namespace, observed, now());
		const coreCA = core.ca?.object.data?.["ca.crt"] ?? "";
		const material = await issue(plan, observed, coreCA, now());

		// A certificate whose signer is not kept must not get about.
		const kept = await this.#ensureSigners(plan, material);
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
			const found = secret(names.signer(name, domain));
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
	 * Signers are written so that of two writers only one can win: created, never applied over, and replaced only where
	 * they still are what was observed. The loser's ApiError (409) ends its visit.
	 * @returns whether both signers are in the cluster
	 */
	async #ensureSigners(plan: Plan, material: Material): Promise<boolean> {
		const { environment, owned, kube } = this.#context;
		const writes = domains.map(async (domain) => {
			const desired = signerSecret(
				this.#storage,
				environment,
				domain,
				material.signers[domain],
			);
			const live = owned.Secret.get(desired.metadata.name);
			if (!live) {
				owned.Secret.wrote(await kube.create<Data>(desired));
				this.#wrote(desired, "created");
				return true;
			}
			const { resourceVersion } = live.metadata;
			const replaced = plan.signers.some((due) => due.domain === domain);
			if (replaced && resourceVersion)
				desired.metadata.resourceVersion = resourceVersion;
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
		try {
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

const leafDomain = (id: string): Domain =>
	id === "server" ? "serving" : "client";

function withoutVersion(object: KubeObject): KubeObject {
	const { resourceVersion: _, ...metadata } = object.metadata;
	return { ...object, metadata };
}

/** Makes what the plan asks for and keeps the rest. */
async function issue(
	plan: Plan,
	observed: Observed,
	coreCA: string,
	now: number,
): Promise<Material> {
	const signer = async (domain: Domain) => {
		const found = observed.signers[domain];
		const due = plan.signers.find((one) => one.domain === domain);
		if (due) return issueSigner(due, found, now);
		if (!("pair" in found)) throw new Error(`${domain} signer: not due`);
		const { pair, facts, cross } = found;
		const trusted = found.bundle.filter((one) => now <= one.notAfter);
		return {
			pair,
			facts,
			...(cross && now <= cross.notAfter && { cross: cross.pem }),
			trusted,
			bundle: pki.bundle(trusted, now),
		};
	};
	const [client, serving] = await Promise.all(domains.map(signer));
	if (!client || !serving) throw new Error("a domain without a signer");
	const signers = { client, serving };

	const leaves: Material["leaves"] = {};
	for (const [id, found] of Object.entries(observed.leaves)) {
		const { pair, cross = "" } = signers[leafDomain(id)];
		const due = plan.leaves.find((one) => one.id === id);
		if (!due && !("pair" in found)) throw new Error(`${id}: not due`);
		const leaf = due
			? await pki.issueLeaf({ ...due, signer: pair })
			: undefined;
		const facts = leaf ? first(leaf.certificate) : (found as Leaf).facts;
		const key = leaf?.key ?? (found as Leaf).pair.key;
		// With the cross-certificate, who still trusts only the signer's predecessor accepts the leaf, too.
		leaves[id] = { pair: { certificate: facts.pem + cross, key }, facts };
	}
	return { signers, leaves, coreCA };
}

async function issueSigner(
	due: SignerPlan,
	predecessor: Found<Signer>,
	now: number,
): Promise<Material["signers"][Domain]> {
	const pair = await pki.issueCA(due);
	const facts = first(pair.certificate);
	const cross =
		due.crossSign && "pair" in predecessor
			? await pki.crossSign({
					signer: predecessor.pair,
					subject: pair.certificate,
					validity: due.crossSign,
				})
			: undefined;
	const trusted = [...due.keep, facts].filter((one) => now <= one.notAfter);
	return {
		pair,
		facts,
		...(cross && { cross }),
		trusted,
		bundle: pki.bundle(trusted, now),
	};
}

function first(pem: string): CertificateFacts {
	const [facts] = pki.parseCertificates(pem);
	if (!facts) throw new pki.UnreadableError("no certificate");
	return facts;
}

/** What cannot be read is a fact like any other; what went wrong otherwise is an error. */
function readable<T>(read: () => T): T | { unreadable: string } {
	try {
		return read();
	} catch (error) {
		if (error instanceof pki.UnreadableError)
			return { unreadable: error.message };
		throw error;
	}
}

/** The pair in a Secret's two keys, as in https://kubernetes.io/docs/concepts/configuration/secret/#tls-secrets */
const readPair = (secret: Data) =>
	readable(() => {
		const facts = first(secretText(secret, "tls.crt") ?? "");
		const key = secretText(secret, "tls.key") ?? "";
		const pair = { certificate: facts.pem, key };
		return { pair, facts, keyMatches: pki.keyMatches(facts, key) };
	});

function observeSigner(secret: Data): Found<Signer> {
	const found = readPair(secret);
	if ("unreadable" in found) return found;
	const others = (key: string): CertificateFacts[] => {
		const text = secretText(secret, key);
		const list = readable(() => (text ? pki.parseCertificates(text) : []));
		return "unreadable" in list ? [] : list;
	};
	const [cross] = others("cross.crt");
	const bundle = [...others("ca-bundle.crt"), found.facts];
	return { ...found, ...(cross && { cross }), bundle };
}

async function observeLeaf(
	secret: Data | undefined,
	signer: Found<Signer>,
): Promise<Found<Leaf>> {
	if (!secret) return { missing: true };
	// Placeholders of the type kubernetes.io/tls carry both keys with empty values.
	if (!secretText(secret, "tls.crt") && !secretText(secret, "tls.key"))
		return { missing: true };
	const found = readPair(secret);
	if ("unreadable" in found) return found;
	const signedBySigner =
		"pair" in signer &&
		found.facts.issuer === signer.facts.subject &&
		(await pki.verifies(found.facts.pem, signer.facts.pem));
	return { ...found, signedBySigner };
}

function observeCore({ environment, owned }: Context): CoreCredentials {
	const ca = owned.ConfigMap.get(environment.coreCAConfigMap);
	const secret = owned.Secret.get(environment.coreCertsSecret);
	return {
		...(ca && {
			ca: {
				object: ca,
				certificates: readable(() =>
					pki.parseCertificates(ca.data?.["ca.crt"] ?? ""),
				),
			},
		}),
		...(secret && {
			client: { object: secret, certificate: readPair(secret) },
		}),
	};
}

const targetKey = ({ kind, namespace, name }: TargetStatus) =>
	`${kind} ${namespace}/${name}`;

/** Targets live where nothing can be watched: they are read, and what was read is remembered for a while. */
export class TargetReader {
	readonly #kube: Kube;
	readonly #known = new Map<
		string,
		{ object: Data | undefined; readAt: number }
	>();

	constructor(kube: Kube) {
		this.#kube = kube;
	}

	/**
	 * @param maxAge milliseconds; what was read longer ago is read again
	 * @throws ApiError
	 */
	async read(target: TargetStatus, maxAge: number): Promise<Data | undefined> {
		const known = this.#known.get(targetKey(target));
		if (known && performance.now() - known.readAt < maxAge) return known.object;
		this.forget(target);
		const { apiVersion, kind } = emptyTarget(target);
		const { name, namespace } = target;
		const ref = { apiVersion, kind, name, namespace };
		const object = await this.#kube.get<Data>(ref);
		this.wrote(target, object);
		return object;
	}

	wrote(target: TargetStatus, object: Data | undefined): void {
		this.#known.set(targetKey(target), {
			object,
			readAt: performance.now(),
		});
	}

	forget(target: TargetStatus): void {
		this.#known.delete(targetKey(target));
	}
}
