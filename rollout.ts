/**
 * How far the rollout of a workload is, and which pods have started with what was written when. Pure.
 */
import type { Consumer } from "./etcdstorage.ts";
import type { KubeObject } from "./kube.ts";

const SECOND = 1000;
/**
 * A kubelet mounts a ConfigMap into a new pod from its cache, which a watch keeps. The watch may be behind by what an
 * API server's own cache is behind; pods reach the kubelet by the same connection, so it is seconds at most.
 */
export const KUBELET_CACHE = 10 * SECOND;
/**
 * A kubelet brings a changed ConfigMap into the volume of a running pod with the pod's next sync, once a minute, half of
 * that later by jitter, by which a container that is started again in the same pod reads it.
 * https://kubernetes.io/docs/concepts/configuration/configmap/#mounted-configmaps-are-updated-automatically
 */
const VOLUME_UPDATE = 120 * SECOND;
/** Why a container does not run, and will not soon: https://github.com/kubernetes/kubernetes/tree/master/pkg/kubelet (images, kuberuntime) */
const STUCK_CONTAINER = new Set([
	"CrashLoopBackOff",
	"ImagePullBackOff",
	"ErrImagePull",
	"ErrImageNeverPull",
	"InvalidImageName",
	"CreateContainerConfigError",
	"CreateContainerError",
	"RunContainerError",
]);

/** https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/label-selector/ */
export interface LabelSelector {
	matchLabels?: Record<string, string>;
	matchExpressions?: { key: string; operator: string; values?: string[] }[];
}

/** What the three kinds have, of which each has some; counts of 0 may be left out. */
export interface Workload extends KubeObject {
	spec: {
		replicas?: number;
		paused?: boolean;
		selector: LabelSelector;
		updateStrategy?: {
			type?: string;
			rollingUpdate?: { partition?: number } | null;
		};
		template: { metadata?: { annotations?: Record<string, string> } };
	};
	status?: {
		observedGeneration?: number;
		replicas?: number;
		updatedReplicas?: number;
		readyReplicas?: number;
		availableReplicas?: number;
		/** Of Deployments: pods that have been told to end. Kubernetes tells from 1.35 on. */
		terminatingReplicas?: number;
		currentRevision?: string;
		updateRevision?: string;
		desiredNumberScheduled?: number;
		updatedNumberScheduled?: number;
		numberAvailable?: number;
		/** Pods where none is to be any more. */
		numberMisscheduled?: number;
		conditions?: { type: string; status: string; reason?: string }[];
	};
}

interface Container {
	name: string;
	/** "Always" on an init container that goes on running beside the others. */
	restartPolicy?: string;
	env?: { valueFrom?: { configMapKeyRef?: { name?: string } } }[];
	envFrom?: { configMapRef?: { name?: string } }[];
}

interface ContainerStatus {
	name: string;
	state?: { running?: { startedAt?: string }; waiting?: { reason?: string } };
}

export interface Pod extends KubeObject {
	spec: {
		containers: Container[];
		initContainers?: Container[];
		volumes?: {
			configMap?: { name?: string };
			projected?: { sources?: { configMap?: { name?: string } }[] };
		}[];
	};
	status?: {
		phase?: string;
		containerStatuses?: ContainerStatus[];
		initContainerStatuses?: ContainerStatus[];
	};
}

/** As in the query of a list: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors */
export function selectorText(selector: LabelSelector): string {
	const labels = Object.entries(selector.matchLabels ?? {});
	return [
		...labels.map(([key, value]) => `${key}=${value}`),
		...(selector.matchExpressions ?? []).map(
			({ key, operator, values = [] }) => {
				if (operator === "Exists") return key;
				if (operator === "DoesNotExist") return `!${key}`;
				return `${key} ${operator.toLowerCase()} (${values.join(",")})`;
			},
		),
	].join(",");
}

interface Progress {
	/** How many pods there are to be. */
	desired: number;
	/**
	 * As `kubectl rollout status` sees it: every pod is of the present template, and available; no other is left. Here not
	 * even one that is about to end, as far as that is told: it serves what it has begun, and may have to connect again.
	 */
	complete: boolean;
	/** It was complete, whatever has become of its pods since. */
	wasComplete: boolean;
	/** It has given up. */
	exceeded: boolean;
	/** Some pods get the present template only when a person sees to it. Where they do by themselves, they have it, and all are available. */
	manual?: { how: "OnDelete" | "partition"; atRest: boolean };
}

/** https://github.com/kubernetes/kubernetes/blob/master/staging/src/k8s.io/kubectl/pkg/polymorphichelpers/rollout_status.go */
export function progressOf({
	kind,
	metadata,
	spec,
	status = {},
}: Workload): Progress {
	const observed =
		(status.observedGeneration ?? 0) >= (metadata.generation ?? 1);
	const { type, rollingUpdate } = spec.updateStrategy ?? {};
	const onDelete = type === "OnDelete";
	if (kind === "DaemonSet") {
		const desired = status.desiredNumberScheduled ?? 0;
		const updated =
			observed &&
			(status.updatedNumberScheduled ?? 0) >= desired &&
			(desired > 0 || !status.numberMisscheduled);
		const available = (status.numberAvailable ?? 0) >= desired;
		return {
			desired,
			complete: updated && available,
			// It does not tell whether the last of its pods was available before.
			wasComplete: updated,
			exceeded: false,
			...(onDelete && {
				manual: { how: "OnDelete", atRest: observed && available },
			}),
		};
	}
	const desired = spec.replicas ?? 1;
	const { updatedReplicas = 0, replicas = 0 } = status;
	// kubectl lets pods pass that are too many but updated: of a workload scaled to 0 they would be overlooked.
	const updated = observed && updatedReplicas >= desired && replicas <= desired;
	if (kind === "Deployment") {
		const reason = status.conditions?.find(
			(one) => one.type === "Progressing",
		)?.reason;
		const exceeded = observed && reason === "ProgressDeadlineExceeded";
		const available = (status.availableReplicas ?? 0) >= desired;
		return {
			desired,
			complete:
				updated && available && !exceeded && !status.terminatingReplicas,
			// The reason stays until the next rollout.
			wasComplete: updated && reason === "NewReplicaSetAvailable",
			exceeded,
		};
	}
	const partition = rollingUpdate?.partition ?? 0;
	const available = (status.readyReplicas ?? 0) >= desired;
	// With OnDelete, the current revision remains the former one for good.
	const wasComplete =
		updated && (onDelete || status.currentRevision === status.updateRevision);
	const manual = onDelete || partition > 0;
	return {
		desired,
		complete: updated && available,
		wasComplete,
		exceeded: false,
		...(manual && {
			manual: {
				how: onDelete ? "OnDelete" : "partition",
				atRest:
					observed &&
					available &&
					(onDelete || updatedReplicas >= desired - partition),
			},
		}),
	};
}

/**
 * Whether it is in the middle of nothing. An API server that has lost its etcd, for it does not know the new CA, is not
 * available, and must be restarted nevertheless. Once it was, being available is what is waited for.
 */
export function isSettled(workload: Workload, restarted: boolean): boolean {
	const { complete, wasComplete, manual } = progressOf(workload);
	if (complete || manual?.atRest) return true;
	return wasComplete && !restarted;
}

/**
 * Why a rollout does not come to its end by itself, and the way out.
 * @param begun whether there is a rollout to be brought to its end
 * @param pods of a rollout that is under way
 */
export function obstacleOf(
	workload: Workload,
	{ kind, namespace, name }: Consumer,
	begun: boolean,
	pods: Pod[],
): string | undefined {
	const { complete, exceeded, manual } = progressOf(workload);
	const { paused, template } = workload.spec;
	const kubectl = `kubectl -n ${namespace}`;
	const which = `${kind.toLowerCase()}/${name}`;
	if (paused)
		return `is paused, so that its pods are not restarted; go on with it: ${kubectl} rollout resume ${which}`;
	if (complete) return undefined;
	if (exceeded)
		return `does not get on with its rollout; see why: ${kubectl} rollout status ${which}, ${kubectl} describe ${which}`;
	if (begun && manual?.how === "OnDelete")
		return `has the update strategy OnDelete: its pods read the new CA when they are deleted, one after the other. Those that have not been: ${kubectl} describe ${which}`;
	if (begun && manual)
		return `keeps pods as they are by the partition of its update strategy; set it to 0, or delete them one after the other: ${kubectl} describe ${which}`;
	for (const pod of pods) {
		// A StatefulSet waits for any pod that is not ready, others replace the old ones.
		if (kind !== "StatefulSet" && !isOf(pod, template)) continue;
		const reason = containerStatuses(pod)
			.map(({ state }) => state?.waiting?.reason ?? "")
			.find((one) => STUCK_CONTAINER.has(one));
		if (reason)
			return `does not get on with its rollout: pod ${pod.metadata.name} is in ${reason}; see why: ${kubectl} describe pod ${pod.metadata.name}, ${kubectl} rollout status ${which}`;
	}
	return undefined;
}

/** Whether the pod was made from the template, as far as annotations tell. */
const isOf = ({ metadata }: Pod, template: Workload["spec"]["template"]) =>
	Object.entries(template.metadata?.annotations ?? {}).every(
		([key, value]) => metadata.annotations?.[key] === value,
	);

/** Whether the consumer made the pod: a Deployment by way of a ReplicaSet, which has its name and the template's hash. */
export function belongsTo(
	{ metadata }: Pod,
	{ kind, name }: Consumer,
): boolean {
	const hash = metadata.labels?.["pod-template-hash"];
	return (metadata.ownerReferences ?? []).some((owner) =>
		kind === "Deployment"
			? owner.kind === "ReplicaSet" && owner.name === `${name}-${hash}`
			: owner.kind === kind && owner.name === name,
	);
}

export const isLive = ({ status }: Pod) =>
	status?.phase !== "Succeeded" && status?.phase !== "Failed";

export function areAllNewer(pods: Pod[], written: number): boolean {
	const live = pods.filter(isLive);
	return live.length > 0 && live.every((pod) => isNewer(pod, written));
}

/** Whether all of the pod's containers started with the bundle as it was written then. */
export function isNewer(pod: Pod, written: number): boolean {
	const createdAt = Date.parse(pod.metadata.creationTimestamp ?? "");
	if (createdAt >= written + KUBELET_CACHE) return true;
	const { containers, initContainers = [] } = pod.spec;
	const statuses = containerStatuses(pod);
	return [
		...containers,
		...initContainers.filter((one) => one.restartPolicy === "Always"),
	].every(({ name }) => {
		const { state } = statuses.find((one) => one.name === name) ?? {};
		const startedAt = Date.parse(state?.running?.startedAt ?? "");
		return startedAt > written + VOLUME_UPDATE;
	});
}

const containerStatuses = ({ status }: Pod): ContainerStatus[] => [
	...(status?.containerStatuses ?? []),
	...(status?.initContainerStatuses ?? []),
];

/** Whether a pod has the ConfigMap, as files or in its environment. */
export function reads({ spec }: Pod, configMap: string): boolean {
	const { containers, initContainers = [], volumes = [] } = spec;
	return [
		...volumes.flatMap(({ configMap, projected }) => [
			configMap,
			...(projected?.sources ?? []).map((source) => source.configMap),
		]),
		...[...containers, ...initContainers].flatMap(
			({ env = [], envFrom = [] }) => [
				...env.map(({ valueFrom }) => valueFrom?.configMapKeyRef),
				...envFrom.map((source) => source.configMapRef),
			],
		),
	].some((reference) => reference?.name === configMap);
}
