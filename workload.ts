/** What serves the endpoint of an EtcdStorage: a Service, and a Deployment of proxies that is not drained all at once. Pure. */
import { type EtcdStorage, endpoint, type Spec } from "./etcdstorage.ts";
import type { KubeObject } from "./kube.ts";
import {
	type Environment,
	hash,
	type Material,
	names,
	owned,
} from "./manifests.ts";
import { newest } from "./signers.ts";

/** On pods that run etcd: another CA is another pod. */
export const CLIENT_CA_HASH = "etcd.xmudrii.com/client-ca-sha256";
const CORE_CA_HASH = "etcd.xmudrii.com/core-ca-sha256";

export interface Deployment extends KubeObject {
	spec?: {
		replicas?: number;
		template?: { metadata?: { annotations?: Record<string, string> } };
	};
	status?: {
		readyReplicas?: number;
		conditions?: { type: string; status: string }[];
	};
}

/**
 * What a proxy image runs: one whose repository is named etcd, wherever it lies, etcd's grpc-proxy, any other this very
 * program as a gateway.
 * @param image https://pkg.go.dev/github.com/distribution/reference
 */
export const dataPlane = (image: string): "etcd" | "gateway" =>
	/^(?:.*\/)?etcd(?::[^/@]*)?(?:@.*)?$/.test(image) ? "etcd" : "gateway";

/**
 * Service, Deployment and PodDisruptionBudget. The label `apiserver` and the selector are the 2018 controller's, whose Deployments are taken over in place.
 * @param running while the core's CA is bad: the Deployment, whose pods run with a good one and are not rolled
 */
export function workload(
	storage: EtcdStorage,
	environment: Environment,
	spec: Spec,
	material: Material,
	running?: Deployment,
): KubeObject[] {
	const labels = { apiserver: spec.name };
	const name = names.workload(spec.name);
	const { annotations } = running?.spec?.template?.metadata ?? {};
	// etcd reads CA files once, at start (https://github.com/etcd-io/etcd/issues/11555): another CA rolls its pods.
	// The gateway takes up all its files while it runs: nothing but another command line or image rolls it.
	const hashes = dataPlane(environment.proxyImage) === "etcd" && {
		annotations: {
			// Of the newest CA alone: that a former one has gone is no reason to cut connections.
			[CLIENT_CA_HASH]: hash(newest(material.signers.client)?.facts.pem ?? ""),
			[CORE_CA_HASH]: annotations?.[CORE_CA_HASH] ?? hash(material.coreCA),
		},
	};
	return [
		{
			...owned(storage, environment, "v1", "Service", name),
			spec: {
				selector: labels,
				// Without a name, as in 2018: with another one, there is a moment without endpoints.
				ports: [{ port: 2379, targetPort: 2379 }],
			},
		} as KubeObject,
		{
			...owned(storage, environment, "apps/v1", "Deployment", name),
			spec: {
				replicas: spec.replicas,
				selector: { matchLabels: labels },
				// Never fewer proxies than asked for, also while they are replaced.
				strategy: {
					// With all of the new ones ready before the first old one ends, no connection has to move twice.
					rollingUpdate: { maxUnavailable: 0, maxSurge: "100%" },
				},
				template: {
					metadata: { labels, ...hashes },
					spec: podSpec(environment, spec),
				},
			},
		} as KubeObject,
		{
			...owned(storage, environment, "policy/v1", "PodDisruptionBudget", name),
			spec: {
				// Also of a single one, which else would keep its node from ever being drained.
				maxUnavailable: 1,
				// Pods that are not ready, as while the core is away, serve nobody and hold up no drain.
				unhealthyPodEvictionPolicy: "AlwaysAllow",
				selector: { matchLabels: labels },
			},
		} as KubeObject,
	];
}

/** The part of the container that differs: the command line, and what is known of the program behind it. */
function program({ coreUrls, namespace, proxyImage }: Environment, spec: Spec) {
	const args = (...own: string[]) => [
		`--endpoints=${coreUrls.join(",")}`,
		`--namespace=/${spec.name}/`,
		"--listen-addr=0.0.0.0:2379",
		"--metrics-addr=http://0.0.0.0:2381",
		...own,
		"--cacert=/etc/coreetcd-certs/ca/ca.crt",
		"--cert=/etc/coreetcd-certs/client/tls.crt",
		"--key=/etc/coreetcd-certs/client/tls.key",
		"--trusted-ca-file=/etc/etcdproxy-certs/ca/client-ca.crt",
		"--cert-file=/etc/etcdproxy-certs/server/tls.crt",
		"--key-file=/etc/etcdproxy-certs/server/tls.key",
	];
	const probe = (path: string) => ({ httpGet: { path, port: 2381 } });
	// Of both: alive is the process, whatever the core does; ready is a linearizable read through the core.
	if (dataPlane(proxyImage) === "etcd")
		return {
			command: ["/usr/local/bin/etcd", "grpc-proxy", "start"],
			args: args(
				// Set, it makes the proxy dial itself and wait (etcd 3.5.28 to 3.5.33, 3.6.9 to 3.6.14).
				"--advertise-client-url=",
				// Off by default: a core that went away silently would be noticed after 15 minutes.
				"--dial-keepalive-time=10s",
			),
			probes: {
				livenessProbe: {
					...probe("/proxy/metrics"),
					initialDelaySeconds: 10,
					timeoutSeconds: 5,
				},
				readinessProbe: {
					...probe("/health"),
					periodSeconds: 5,
					timeoutSeconds: 5,
				},
			},
			// grpc-proxy keeps up to 2048 answers in its cache; the limit is what keeps the node out of it.
			resources: {
				requests: { cpu: "20m", memory: "64Mi" },
				limits: { memory: "512Mi" },
			},
		};
	return {
		command: ["/usr/local/bin/etcdproxy-controller", "grpc-proxy", "start"],
		args: args(`--advertise-client-url=${endpoint(spec.name, namespace)}`),
		probes: {
			livenessProbe: { ...probe("/healthz"), timeoutSeconds: 5 },
			readinessProbe: {
				...probe("/readyz"),
				periodSeconds: 2,
				timeoutSeconds: 5,
			},
		},
		// Its own budget of bytes in flight, 128 MiB, is well within the limit.
		resources: {
			requests: { cpu: "20m", memory: "96Mi" },
			limits: { memory: "512Mi" },
		},
	};
}

function podSpec(environment: Environment, spec: Spec) {
	const mounts = {
		"core-ca": {
			path: "/etc/coreetcd-certs/ca",
			source: { configMap: { name: environment.coreCAConfigMap } },
		},
		"core-client": {
			path: "/etc/coreetcd-certs/client",
			source: { secret: { secretName: environment.coreCertsSecret } },
		},
		"client-ca": {
			path: "/etc/etcdproxy-certs/ca",
			source: { configMap: { name: names.clientCA(spec.name) } },
		},
		server: {
			path: "/etc/etcdproxy-certs/server",
			source: { secret: { secretName: names.serverCert(spec.name) } },
		},
	};
	const { command, args, probes, resources } = program(environment, spec);
	const priorityClassName = environment.proxyPriorityClass;
	return {
		...(priorityClassName && { priorityClassName }),
		serviceAccountName: "etcdproxy-sa",
		automountServiceAccountToken: false,
		enableServiceLinks: false,
		// Pod Security Standards, level restricted: https://kubernetes.io/docs/concepts/security/pod-security-standards/
		securityContext: {
			runAsNonRoot: true,
			runAsUser: 65532,
			runAsGroup: 65532,
			fsGroup: 65532,
			seccompProfile: { type: "RuntimeDefault" },
		},
		topologySpreadConstraints: [
			{
				maxSkew: 1,
				topologyKey: "kubernetes.io/hostname",
				whenUnsatisfiable: "ScheduleAnyway",
				labelSelector: { matchLabels: { apiserver: spec.name } },
			},
		],
		containers: [
			{
				name: "etcdproxy",
				image: environment.proxyImage,
				command,
				args,
				ports: [
					{ name: "etcd", containerPort: 2379 },
					{ name: "metrics", containerPort: 2381 },
				],
				...probes,
				// Endpoints leave the Service a moment after the pod is told to go. With what the gateway takes to drain, 20 s
				// unless told, it is less than the 30 s of grace.
				lifecycle: { preStop: { sleep: { seconds: 5 } } },
				resources,
				securityContext: {
					allowPrivilegeEscalation: false,
					readOnlyRootFilesystem: true,
					capabilities: { drop: ["ALL"] },
				},
				volumeMounts: Object.entries(mounts).map(([name, { path }]) => ({
					name,
					mountPath: path,
					readOnly: true,
				})),
			},
		],
		volumes: Object.entries(mounts).map(([name, { source }]) => ({
			name,
			...source,
		})),
	};
}

/** What a Deployment says about itself. */
export function availability(deployment: Deployment | undefined) {
	return {
		available:
			deployment?.status?.conditions?.some(
				(one) => one.type === "Available" && one.status === "True",
			) ?? false,
		ready: deployment?.status?.readyReplicas ?? 0,
		wanted: deployment?.spec?.replicas ?? 0,
	};
}
