/** Visits to EtcdStorages in the process of a test. */
import { Cache } from "../cache.ts";
import type { EtcdStorage } from "../etcdstorage.ts";
import type { Kind, Kube, KubeObject } from "../kube.ts";
import type { Data } from "../manifests.ts";
import type { Context } from "../observe.ts";
import { TargetReader } from "../targets.ts";
import type { Deployment } from "../workload.ts";
import { type Cluster, NAMESPACE } from "./harness.ts";

/** What a controller that has just started visits with: the cluster as it is now, which no watch follows. */
export async function visitContext(
	{ etcd }: Cluster,
	kube: Kube,
): Promise<Context> {
	const cached = async <T extends KubeObject>(kind: Kind) => {
		const cache = new Cache<T>();
		// Of EtcdStorages, which are in no namespace, all.
		cache.replace(await kube.list<T>(kind, NAMESPACE));
		return cache;
	};
	return {
		kube,
		environment: {
			namespace: NAMESPACE,
			coreUrls: [etcd.url],
			coreCAConfigMap: "etcd-coreserving-ca",
			coreCertsSecret: "etcd-coreserving-cert",
			proxyImage: "none",
			proxyPriorityClass: "",
		},
		storages: await cached<EtcdStorage>("EtcdStorage"),
		owned: {
			ConfigMap: await cached<Data>("ConfigMap"),
			Secret: await cached<Data>("Secret"),
			Service: await cached<KubeObject>("Service"),
			PodDisruptionBudget: await cached<KubeObject>("PodDisruptionBudget"),
			Deployment: await cached<Deployment>("Deployment"),
		},
		targets: new TargetReader(kube),
		now: () => Date.now(),
		restarts: new Set(),
		event: () => Promise.resolve(),
	};
}
