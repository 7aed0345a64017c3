/** What is there: all that a visit to one EtcdStorage decides from. It reads and writes nothing. */
import { isOwnedBy } from "./adoption.ts";
import type { Cache } from "./cache.ts";
import {
	observeCore,
	observeLeaf,
	observeSigners,
	provenCAs,
	withoutUnused,
} from "./certificates.ts";
import { type Readers, readersBehind } from "./consumers.ts";
import { hasField } from "./drift.ts";
import {
	type Consumer,
	type EtcdStorage,
	type Spec,
	sameTarget,
	type TargetStatus,
} from "./etcdstorage.ts";
import { ApiError, type Kube, type KubeObject, refText } from "./kube.ts";
import type { Domain } from "./lifetimes.ts";
import {
	type Data,
	type Environment,
	FIELD_MANAGER,
	FILLED_BY,
	hash,
	leafId,
	names,
	SIGNED_BY,
	secretText,
} from "./manifests.ts";
import type { CertificateFacts } from "./pki.ts";
import { coreProblem, targetError, targetProblem } from "./problems.ts";
import { proxiesBehind } from "./proxies.ts";
import type { Observed } from "./reconcile.ts";
import { type Reach, spreading, type Wait } from "./rotation.ts";
import { generationOf, newest, type Signers } from "./signers.ts";
import { type EventNote, type Problem, TARGET_POLL } from "./status.ts";
import type { TargetReader } from "./targets.ts";
import type { Deployment } from "./workload.ts";

/** What visits work with. */
export interface Context {
	kube: Kube;
	environment: Environment;
	storages: Cache<EtcdStorage>;
	/** The controller's namespace, as its watches see it, by kind. */
	owned: {
		ConfigMap: Cache<Data>;
		Secret: Cache<Data>;
		Service: Cache<KubeObject>;
		PodDisruptionBudget: Cache<KubeObject>;
		Deployment: Cache<Deployment>;
	};
	targets: TargetReader;
	now(): number;
	event(storage: EtcdStorage, note: EventNote): Promise<void>;
	/** By `restartKey`: who takes our annotation away is not answered with restarts without end. */
	restarts: Set<string>;
}

/** Everything about one EtcdStorage at one moment: what other visits read or write meanwhile decides nothing in this one. */
export interface Observation {
	observed: Observed;
	/** Of the spec's targets, those that may and can be filled. */
	fillable: TargetStatus[];
	/** The targets as they were read, by `refText`. */
	targets: Map<string, Data | undefined>;
	/** Also of somebody else, whose content decides nothing. */
	signerSecrets: Record<Domain, Data | undefined>;
	coreCA: string;
	coreTrouble: Problem | undefined;
	/** What is wrong with targets. */
	problems: Problem[];
	/** Targets that cannot be read, and of which no status of ours tells whether they are filled. */
	unknown: TargetStatus[];
	/** The consumer whose restart is due. */
	restart: Readers["restart"];
}

/**
 * Whether the API server's word tells something about the object. Where it could not be reached, or another writer was
 * faster, nothing is known, a condition would be a false alarm, and the visit is to be made again.
 */
export const isAnswer = (error: unknown): error is ApiError =>
	error instanceof ApiError && error.code !== 0 && error.code !== 409;

/** @throws ApiError where the API server does not answer */
export async function observe(
	storage: EtcdStorage,
	spec: Spec,
	context: Context,
): Promise<Observation> {
	const { environment, now, owned } = context;
	const core = observeCore(
		owned.ConfigMap.get(environment.coreCAConfigMap),
		owned.Secret.get(environment.coreCertsSecret),
	);
	const coreTrouble = coreProblem(environment, core, now());
	const { targets, problems } = await readTargets(storage, spec, context);
	const fillable = spec.targets.filter(
		(target) => !problems.some((one) => one.object === refText(target)),
	);

	// A foreign object of our name holds nothing that we would sign with, or trust.
	const own = <T extends KubeObject>(found: T | undefined) =>
		found && isOwnedBy(found, storage) ? found : undefined;
	const secret = (name: string) => owned.Secret.get(name);
	const signerSecrets = {
		client: secret(names.signer(spec.name, "client")),
		serving: secret(names.signer(spec.name, "serving")),
	};
	const copy = own(owned.ConfigMap.get(names.clientCA(spec.name)));
	const server = own(secret(names.serverCert(spec.name)));
	const signers = {
		client: observeSigners(
			"client",
			own(signerSecrets.client),
			await withoutUnused(copy, secretsOf(spec, targets)),
			now(),
		),
		serving: observeSigners(
			"serving",
			own(signerSecrets.serving),
			copy,
			now(),
			// The Go controller of 2018 kept no copy of them, but each behind the certificate that it had signed, in a Secret of
			// ours: who may write that could as well hand us a signer.
			copy?.data?.["serving-ca.crt"] === undefined
				? await provenCAs(server, [chainOf(server), ...bundlesOf(targets)])
				: [],
		),
	};
	const serverLeaf = await observeLeaf(server, signers.serving);
	const leaves: Observed["leaves"] = { server: serverLeaf };
	for (const target of fillable)
		if (target.kind === "Secret")
			leaves[leafId(target)] = await observeLeaf(
				targets.get(refText(target)),
				signers.client,
			);
	// Our status would tell of what we have filled; it is not there at the first visit after 2018, or was lost. Where no
	// server certificate is either, nobody can trust its CA yet.
	const unknown =
		storage.status?.observedGeneration === undefined && "facts" in serverLeaf
			? spec.targets.filter((target) => !targets.has(refText(target)))
			: [];
	const surroundings = {
		storage,
		spec,
		context,
		fillable,
		unknown,
		targets,
		leaves,
		bundle: copy?.data?.["client-ca.crt"] ?? "",
	};
	const [client, { restart, ...serving }] = await Promise.all([
		clientReach(signers.client, surroundings),
		servingReach(signers.serving, surroundings),
	]);
	return {
		observed: { signers, reach: { client, serving }, leaves },
		fillable,
		targets,
		signerSecrets,
		coreCA: core.ca?.object.data?.["ca.crt"] ?? "",
		coreTrouble,
		problems,
		unknown,
		restart,
	};
}

/** What is wrong with one target is a problem, and does not keep the others from being filled. */
async function readTargets(
	storage: EtcdStorage,
	spec: Spec,
	{ environment, targets, storages }: Context,
): Promise<Pick<Observation, "targets" | "problems">> {
	const read = new Map<string, Data | undefined>();
	// Where something was wrong at the last visit, what was read then is read again. Else it may be so old that it and
	// the wait for the next visit together are less than the minute within which an edited target is repaired.
	const troubled = storage.status?.conditions?.some(
		(one) => one.type === "CertificatesReady" && one.status === "False",
	);
	const checks = spec.targets.map(async (target) => {
		try {
			const found = await targets.read(target, troubled ? 0 : TARGET_POLL / 4);
			read.set(refText(target), found);
			return targetProblem(
				storage,
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
	const problems = (await Promise.all(checks)).filter(
		(problem) => problem !== undefined,
	);
	return { targets: read, problems };
}

interface Surroundings {
	storage: EtcdStorage;
	spec: Spec;
	context: Context;
	fillable: TargetStatus[];
	unknown: TargetStatus[];
	targets: Observation["targets"];
	leaves: Observed["leaves"];
	/** The client CA bundle as the proxies get it. */
	bundle: string;
}

/**
 * Targets that carry something of ours, of one kind: by their own account or, where they cannot be read, by the status.
 * One that never did is nobody's to wait for.
 */
const filled = (
	{ storage, spec, targets, unknown }: Surroundings,
	kind: TargetStatus["kind"],
) =>
	spec.targets.filter((target) => {
		const { annotations = {} } = targets.get(refText(target))?.metadata ?? {};
		// The Go controller of 2018 did not note for whom it had filled it.
		const filler =
			annotations[FILLED_BY] ?? (annotations[SIGNED_BY] && spec.name);
		return (
			target.kind === kind &&
			(isIn(storage.status?.targets ?? [], target) ||
				isIn(unknown, target) ||
				filler === spec.name)
		);
	});

/** The spec's Secrets; undefined where one of them could not be read. */
function secretsOf(
	{ targets }: Spec,
	read: Observation["targets"],
): Data[] | undefined {
	const keys = targets.filter(({ kind }) => kind === "Secret").map(refText);
	return keys.every((key) => read.has(key))
		? keys.flatMap((key) => read.get(key) ?? [])
		: undefined;
}

/** The serving CA bundles of targets, which are for others to change. */
const bundlesOf = (targets: Observation["targets"]) =>
	[...targets.values()].flatMap((one) => one?.data?.["serving-ca.crt"] ?? []);

const chainOf = (server: Data | undefined) =>
	(server && secretText(server, "tls.crt")) ?? "";

/** Of a consumer that was restarted for a CA. */
export const restartKey = (consumer: Consumer, ca: CertificateFacts) =>
	`${refText(consumer)} ${generationOf(ca)}`;

/** Bundles are of our own writing: a certificate is in them as it stands. */
const holds = (bundle: string, ca: CertificateFacts) => bundle.includes(ca.pem);

const isIn = (list: TargetStatus[], target: TargetStatus) =>
	list.some((one) => sameTarget(one, target));

const pending = (who: string, reason: string, what: string): Wait => ({
	who,
	reason,
	message: `${who} ${what}`,
	obstacle: false,
});

const bundleNotWritten = (who: string, ca: CertificateFacts) =>
	pending(who, "BundleNotWritten", `does not carry the CA ${generationOf(ca)}`);

const certificateNotWritten = (who: string) =>
	pending(
		who,
		"CertificateNotWritten",
		"does not hold a certificate of the current CA",
	);

const isOfFormer = (leaf: Observed["leaves"][string] | undefined) =>
	leaf !== undefined && "facts" in leaf && !leaf.signedBySigner;

/** Clients are verified by the proxies. */
async function clientReach(
	signers: Signers,
	surroundings: Surroundings,
): Promise<Reach> {
	const { spec, context, bundle, fillable, leaves } = surroundings;
	const { kube, environment, now } = context;
	const { namespace } = environment;
	const ca = newest(signers)?.facts;
	const written = ca && holds(bundle, ca);
	const configMap = `ConfigMap ${namespace}/${names.clientCA(spec.name)}`;
	const asked = written && spreading(signers, now());
	const secrets = filled(surroundings, "Secret");
	return {
		handedOut: secrets.length > 0,
		unwritten: ca && !written ? [bundleNotWritten(configMap, ca)] : [],
		undelivered: secrets
			.filter(
				(target) =>
					!isIn(fillable, target) || isOfFormer(leaves[leafId(target)]),
			)
			.map((target) => certificateNotWritten(refText(target))),
		unread: asked
			? await proxiesBehind(kube, {
					namespace,
					name: spec.name,
					bundle,
					templateHash: hash(ca.pem),
				}).catch((error) => {
					if (!isAnswer(error)) throw error;
					const who = `Deployment ${namespace}/${names.workload(spec.name)}`;
					return [
						pending(
							who,
							"ProxyUnknown",
							`has pods that cannot be listed: ${error.message}`,
						),
					];
				})
			: [],
	};
}

/** Proxies are verified by API servers. */
async function servingReach(
	signers: Signers,
	surroundings: Surroundings,
): Promise<Reach & Pick<Readers, "restart">> {
	const { spec, context, targets, fillable, leaves } = surroundings;
	const { kube, environment, now } = context;
	const { namespace } = environment;
	const bundles = filled(surroundings, "ConfigMap");
	const server = refText({
		...{ kind: "Secret", namespace },
		name: names.serverCert(spec.name),
	});
	const behind = {
		handedOut: bundles.length > 0,
		undelivered: isOfFormer(leaves.server)
			? [certificateNotWritten(server)]
			: [],
	};
	const ca = newest(signers)?.facts;
	if (!ca) return { ...behind, unwritten: [], unread: [] };
	const text = (target: TargetStatus) =>
		targets.get(refText(target))?.data?.["serving-ca.crt"] ?? "";
	const carriesIt = (target: TargetStatus) =>
		isIn(fillable, target) && holds(text(target), ca);
	const unwritten = bundles
		.filter((target) => !carriesIt(target))
		.map((target) => bundleNotWritten(refText(target), ca));
	const known = { ...behind, unwritten, unread: [] };
	if (!spreading(signers, now())) return known;
	// Who restarts before the bundle is there has to restart again: it is waited for first.
	const early = (consumer: Consumer) => {
		const own = bundles.filter((one) => one.namespace === consumer.namespace);
		return !(own.length > 0 ? own : bundles).every(carriesIt);
	};
	const { waits, restart } = await readersBehind(kube, {
		namespace,
		consumers: spec.consumers.filter((one) => !early(one)),
		early: spec.consumers.filter(early),
		restarted: spec.consumers.filter((one) =>
			context.restarts.has(restartKey(one, ca)),
		),
		published: bundles.filter(carriesIt).map((target) => ({
			namespace: target.namespace,
			name: target.name,
			writtenAt: writtenAt(targets.get(refText(target))) ?? now(),
		})),
		generation: generationOf(ca),
		now: now(),
	});
	return { ...known, unread: waits, ...(restart && { restart }) };
}

/**
 * When the bundle was last written into a target, by the API server's account: by us or, where a backup was restored and
 * has brought it as it had been, by somebody else.
 */
function writtenAt(object: Data | undefined): number | undefined {
	const { managedFields = [] } = object?.metadata ?? {};
	const ours = managedFields.filter((one) => one.manager === FIELD_MANAGER);
	const theirs = managedFields.filter(({ fieldsV1 }) =>
		hasField(fieldsV1, "data", "serving-ca.crt"),
	);
	const times = (ours.length > 0 ? ours : theirs).map(({ time = "" }) =>
		Date.parse(time),
	);
	return times.length > 0 ? Math.max(...times) : undefined;
}
