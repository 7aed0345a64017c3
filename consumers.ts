/**
 * Who verifies the proxies' server certificates: the API servers. They read their CA file once, at start
 * (https://github.com/etcd-io/etcd/issues/11555), so each must be restarted after the bundle was written and before the
 * former CA expires. Who has been is told by workloads and pods, never remembered.
 */

import { hasField } from "./drift.ts";
import type { Consumer } from "./etcdstorage.ts";
import { ApiError, type Kube, kinds, refText } from "./kube.ts";
import {
	areAllNewer,
	belongsTo,
	isLive,
	isNewer,
	isSettled,
	KUBELET_CACHE,
	obstacleOf,
	type Pod,
	progressOf,
	reads,
	selectorText,
	type Workload,
} from "./rollout.ts";
import type { Wait } from "./rotation.ts";

/** On pod templates: the generation of the CA for which we restarted the pods. */
export const SERVING_CA = "etcd.xmudrii.com/serving-ca";
/** `kubectl rollout restart` leaves it on pod templates. */
const RESTARTED_AT = "kubectl.kubernetes.io/restartedAt";
const SERVICE_ACCOUNT = "etcdproxy-controller-sa";

const MOST_PODS = 3;

/** A ConfigMap with the bundle, and since when it carries it as it is now (milliseconds since the epoch, the API server's clock). */
export interface Published {
	namespace: string;
	name: string;
	writtenAt: number;
}

/** The bundles that no named consumer reads: one reads those of its own namespace or, where none is there, any. */
export function unnamed<T extends { namespace: string }>(
	bundles: T[],
	consumers: Consumer[],
): T[] {
	const own = ({ namespace }: Consumer) =>
		bundles.filter((bundle) => bundle.namespace === namespace);
	const read = consumers.flatMap((one) =>
		own(one).length > 0 ? own(one) : bundles,
	);
	return bundles.filter((bundle) => !read.includes(bundle));
}

/** What was read of a consumer; an error where the API server did not let us, or could not. */
export interface ConsumerFacts {
	consumer: Consumer;
	/** undefined: it is not there. */
	workload: Workload | undefined | ApiError;
	/** Those that its selector selects; all of the namespace where the workload may not be read; absent when not needed. */
	pods?: Pod[] | ApiError;
}

/** The pods around a ConfigMap, looked at where no consumer is named that reads it. */
export interface NamespaceFacts {
	published: Published;
	/** All of its namespace. */
	pods: Pod[] | ApiError;
}

export interface Question {
	consumers: Consumer[];
	/** Those for whom it is too early to be asked. */
	early: Consumer[];
	/** Those that we have restarted for this CA: should they have to be again, somebody has taken that back. */
	restarted: Consumer[];
	/**
	 * All ConfigMaps that consumers may read the bundle from. While one of them does not carry the new CA, it is too early
	 * to restart who reads it: the annotation of the restart counts from then on.
	 */
	published: Published[];
	/** Of the new CA, 8 hex digits. */
	generation: string;
	/** Milliseconds since the epoch, as close to the API server's clock as is known. It delays restarts, and confirms nothing. */
	now: number;
	/** The controller's own, for the rights that its ServiceAccount lacks. */
	namespace: string;
}

export interface Readers {
	/** One for each who is not known to have read the bundle. Empty: everybody has. */
	waits: Wait[];
	/** The one to be restarted next, if any: nothing else is rolling. */
	restart?: Consumer;
}

/**
 * Who has not read the bundle yet. Reads workloads and pods, never writes.
 * @throws ApiError with code 0: the API server cannot be reached, or makes no sense
 */
export async function readersBehind(
	kube: Kube,
	question: Question,
): Promise<Readers> {
	const { consumers, published } = question;
	if (published.length === 0) return { waits: [] };
	const { waits, ...due } = judge(
		await Promise.all(consumers.map((one) => observe(kube, one, question))),
		question,
	);
	const others = unnamed(published, [...consumers, ...question.early]);
	const namespaces = [...new Set(others.map((one) => one.namespace))];
	const pods = new Map(
		await Promise.all(
			namespaces.map(
				async (namespace) =>
					[namespace, await answer(kube.list<Pod>("Pod", namespace))] as const,
			),
		),
	);
	const unread = others.flatMap(
		(one) =>
			judgeUnnamed({
				published: one,
				pods: pods.get(one.namespace) ?? [],
			}) ?? [],
	);
	return { ...due, waits: [...waits, ...unread] };
}

/**
 * Rolls the consumer's pods, by its own strategy: its pod template gets the annotation, and is otherwise left alone.
 * @throws ApiError
 */
export async function restart(
	kube: Kube,
	consumer: Consumer,
	generation: string,
): Promise<void> {
	const metadata = { annotations: { [SERVING_CA]: generation } };
	await kube.patch(
		refTo(consumer),
		{ spec: { template: { metadata } } },
		"merge",
	);
}

/**
 * What `restart` failed with, as something to wait for.
 * @param namespace the controller's
 */
export const restartError = (
	consumer: Consumer,
	error: ApiError,
	namespace: string,
): Wait =>
	error.code === 403
		? forbidden(consumer, error, namespace)
		: unreadable(consumer, error);

async function observe(
	kube: Kube,
	consumer: Consumer,
	question: Question,
): Promise<ConsumerFacts> {
	const workload = await answer(kube.get<Workload>(refTo(consumer)));
	const facts = { consumer, workload };
	let selector = "";
	if (workload === undefined) return facts;
	if (!(workload instanceof ApiError)) {
		if (provesItself(workload, consumer, question)) return facts;
		selector = selectorText(workload.spec.selector);
	} else if (workload.code !== 403) return facts;
	const { namespace } = consumer;
	const pods = await answer(kube.list<Pod>("Pod", namespace, selector));
	return { ...facts, pods };
}

/** An error that says something about the object is part of the answer. */
async function answer<T>(reading: Promise<T>): Promise<T | ApiError> {
	try {
		return await reading;
	} catch (error) {
		if (error instanceof ApiError && error.code !== 0) return error;
		throw error;
	}
}

const refTo = ({ kind, namespace, name }: Consumer) => ({
	apiVersion: kinds[kind].apiVersion,
	kind,
	namespace,
	name,
});

/** What one consumer's facts come to. */
interface State {
	consumer: Consumer;
	/** What there is to wait for; absent when it has read the bundle. */
	wait?: Wait;
	/** It has not, and may be restarted by us. */
	due: boolean;
	/** Nobody else may be restarted now. */
	busy: boolean;
	/** It stays busy until a person does something. */
	stuck?: Wait;
}

/**
 * Which of the named consumers have not read the bundle, and which one is to be restarted now. Pure.
 * @param seen in the order in which they are to be restarted
 */
export function judge(seen: ConsumerFacts[], question: Question): Readers {
	if (question.published.length === 0) return { waits: [] };
	const states = seen.map((facts) => stateOf(facts, question));
	const busy = states.find((state) => state.busy);
	const next = busy
		? undefined
		: states.find(
				({ due, consumer }) =>
					due && question.now >= readableFrom(consumer, question),
			);
	const before = busy ?? next;
	const held = states.some((state) => state.due);
	const waits = states.flatMap((state): Wait[] => {
		const { consumer, due, wait, stuck } = state;
		if (due) return [waiting(consumer, state === next, before?.consumer)];
		if (wait) return [wait];
		// It has read the bundle, but others wait for it.
		return held && state === busy && stuck ? [stuck] : [];
	});
	return { waits, ...(next && { restart: next.consumer }) };
}

function stateOf(
	{ consumer, workload, pods }: ConsumerFacts,
	question: Question,
): State {
	const idle = { consumer, due: false, busy: false };
	const newerThan = writtenAt(consumer, question);
	if (workload === undefined) return { ...idle, wait: missing(consumer) };
	const known = Array.isArray(pods) ? pods : [];
	if (workload instanceof ApiError) {
		// It may be the one that was restarted just now.
		if (workload.code !== 403)
			return { ...idle, busy: true, wait: unreadable(consumer, workload) };
		const own = known.filter((pod) => belongsTo(pod, consumer));
		return areAllNewer(own, newerThan)
			? idle
			: { ...idle, wait: forbidden(consumer, workload, question.namespace) };
	}
	const restarted = isRestarted(workload, consumer, question);
	const busy = !isSettled(workload, restarted);
	const begun = busy || restarted;
	const obstacle = obstacleOf(workload, consumer, begun, busy ? known : []);
	const stuck = obstacle && wait(consumer, "ConsumerStuck", obstacle, true);
	const state = { consumer, due: false, busy, ...(stuck && { stuck }) };
	if (
		provesItself(workload, consumer, question) ||
		areAllNewer(known, newerThan)
	)
		return state;
	if (stuck) return { ...state, wait: stuck };
	if (busy)
		return {
			...state,
			wait: wait(consumer, "ConsumerRollingOut", "is rolling out", false),
		};
	// Its pods may be newer already.
	if (pods instanceof ApiError && pods.code !== 403)
		return { ...state, wait: unreadable(consumer, pods) };
	return question.restarted.includes(consumer)
		? { ...state, wait: undone(consumer) }
		: { ...state, due: true };
}

/** Whether the workload alone shows that its pods have read the bundle. */
function provesItself(
	workload: Workload,
	consumer: Consumer,
	question: Question,
): boolean {
	const { complete, desired } = progressOf(workload);
	// Where there are no pods, whoever starts reads it.
	return (
		complete && (desired === 0 || isRestarted(workload, consumer, question))
	);
}

/** Whether its pod template was changed to restart its pods after the bundle was written: by us, or by `kubectl rollout restart`. */
function isRestarted(
	{ spec, metadata }: Workload,
	consumer: Consumer,
	question: Question,
): boolean {
	const { annotations } = spec.template.metadata ?? {};
	if (annotations?.[SERVING_CA] === question.generation) return true;
	// That time is of a person's clock, which may be ahead; the API server has noted by its own when it was told.
	const noted = (metadata.managedFields ?? [])
		.filter(({ fieldsV1 }) =>
			hasField(
				fieldsV1,
				...["spec", "template", "metadata", "annotations", RESTARTED_AT],
			),
		)
		.map(({ time = "" }) => Date.parse(time))
		.filter((time) => !Number.isNaN(time));
	const at = Math.min(Date.parse(annotations?.[RESTARTED_AT] ?? ""), ...noted);
	return at >= readableFrom(consumer, question);
}

/** When the bundle was written that the consumer reads: in its namespace or, if none is there, anywhere. */
function writtenAt({ namespace }: Consumer, { published }: Question): number {
	const near = published.filter((one) => one.namespace === namespace);
	return Math.max(
		...(near.length > 0 ? near : published).map((one) => one.writtenAt),
	);
}

const readableFrom = (consumer: Consumer, question: Question) =>
	writtenAt(consumer, question) + KUBELET_CACHE;

/**
 * What there is to wait for where nobody has named those who read a ConfigMap: the pods that mount it tell. Pure.
 * undefined when all of them have read it.
 */
export function judgeUnnamed({
	published,
	pods,
}: NamespaceFacts): Wait | undefined {
	const { namespace, name, writtenAt } = published;
	const who = `ConfigMap ${namespace}/${name}`;
	if (pods instanceof ApiError && pods.code !== 403)
		return unreadableAs(who, pods);
	const readers = pods instanceof ApiError ? [] : pods.filter(isLive);
	const known = readers.filter((pod) => reads(pod, name));
	const old = known
		.filter((pod) => !isNewer(pod, writtenAt))
		.map((pod) => pod.metadata.name);
	if (known.length > 0 && old.length === 0) return undefined;
	const list = old.slice(0, MOST_PODS).join(", ");
	const more = old.length - MOST_PODS;
	return {
		who,
		reason: "ConsumerUnknown",
		message:
			old.length > 0
				? `pods in ${namespace} have not read the new CA from ${who}: ${list}${more > 0 ? ` and ${more} more` : ""}; restart them, or name their Deployment in spec.consumers`
				: `who reads ${who} is not known: name its workloads in spec.consumers, and restart them`,
		obstacle: true,
	};
}

function wait(
	consumer: Consumer,
	reason: string,
	what: string,
	obstacle: boolean,
): Wait {
	const who = refText(consumer);
	return { who, reason, message: `${who} ${what}`, obstacle };
}

/** @param before whose rollout comes first */
function waiting(
	consumer: Consumer,
	isNext: boolean,
	before: Consumer | undefined,
): Wait {
	const when = before
		? `after ${refText(before)}`
		: "as soon as every kubelet has the new CA";
	return wait(
		consumer,
		"ConsumerWaiting",
		`is restarted ${isNext ? "now" : when}`,
		false,
	);
}

const missing = (consumer: Consumer) =>
	wait(
		consumer,
		"ConsumerMissing",
		"is not there; correct spec.consumers, or create it",
		true,
	);

function forbidden(
	consumer: Consumer,
	error: ApiError,
	controllerNamespace: string,
): Wait {
	const { kind, namespace, name } = consumer;
	const kubectl = `kubectl -n ${namespace} create`;
	const role = `etcdproxy-${kind.toLowerCase()}-${name}`;
	return wait(
		consumer,
		"ConsumerForbidden",
		`may not be read and restarted by etcdproxy-controller; let it get and patch it: ${kubectl} role ${role} --verb=get,patch --resource=${kinds[kind].plural}.apps --resource-name=${name} && ${kubectl} rolebinding ${role} --role=${role} --serviceaccount=${controllerNamespace}:${SERVICE_ACCOUNT}. (${error.message})`,
		true,
	);
}

/** Another restart would be taken back as well. */
function undone(consumer: Consumer): Wait {
	const { kind, namespace, name } = consumer;
	return wait(
		consumer,
		"ConsumerStuck",
		`was restarted for the new CA, and somebody has taken the annotation ${SERVING_CA} from its pod template again, such as a GitOps tool, which should leave it alone; restart it: kubectl -n ${namespace} rollout restart ${kind.toLowerCase()}/${name}`,
		true,
	);
}

const unreadable = (consumer: Consumer, error: ApiError) =>
	unreadableAs(refText(consumer), error);

const unreadableAs = (who: string, { message }: ApiError): Wait => ({
	who,
	reason: "ConsumerUnreadable",
	message: `whether ${who} has read the new CA is not known now: ${message}`,
	obstacle: false,
});
