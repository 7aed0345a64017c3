/**
 * Which objects of the controller's namespace belong to an EtcdStorage: those that say so by their owner, and of those
 * without one, which it may adopt. Pure.
 */
import { readBundle } from "./certificates.ts";
import type { EtcdStorage } from "./etcdstorage.ts";
import type { KubeObject } from "./kube.ts";
import { type Data, FILLED_BY, names, secretText } from "./manifests.ts";

/**
 * Whether the object, which has the name of one of the EtcdStorage's, belongs to this very EtcdStorage. One without any
 * owner does where it carries our label: `kubectl delete --cascade=orphan` or a restored backup has left it so, or a
 * person hands it over; and where the Go controller of 2018 has made it, which named owners on some kinds only.
 */
export function isOwnedBy(object: KubeObject, storage: EtcdStorage): boolean {
	const { ownerReferences = [], labels = {} } = object.metadata;
	const { name, uid } = storage.metadata;
	if (ownerReferences.length === 0)
		return labels[FILLED_BY] === name || isOf2018(object, name);
	return ownerReferences.some(
		(owner) => owner.kind === "EtcdStorage" && owner.uid === uid,
	);
}

/**
 * Whether it is unmistakably the Go controller's for the EtcdStorage of this name. It put no labels on its objects; its
 * certificates name the endpoint, its workload the label and the prefix of the keys.
 * https://github.com/xmudrii/etcdproxy-controller/tree/ec1137578e75c2e6e172f826d135bd4e0aa7b945/pkg/controller/etcdproxy
 */
function isOf2018(object: KubeObject, storage: string): boolean {
	const { name, namespace } = object.metadata;
	const certifies = (pem: string | undefined, role: string) =>
		readBundle(pem)?.some(({ commonName }) =>
			commonName.startsWith(`etcd-${storage}.${namespace}.svc-${role}-`),
		) ?? false;
	switch (object.kind) {
		case "ConfigMap":
			return certifies(
				(object as Data).data?.["client-ca.crt"],
				"client-signer",
			);
		case "Secret":
			return (
				name === names.serverCert(storage) &&
				certifies(secretText(object, "tls.crt"), "serving-cert")
			);
		case "Service": {
			const { selector, ports = [] } = (object as Service).spec ?? {};
			return (
				ports.map((one) => one.port).join() === "2379" && selects(selector)
			);
		}
		case "Deployment": {
			const { selector, template } = (object as Workload).spec ?? {};
			const prefix = `--namespace=/${storage}/`;
			return (
				selects(selector?.matchLabels) &&
				(template?.spec?.containers ?? []).some(
					({ command = [], args = [] }) =>
						command.includes("grpc-proxy") && args.includes(prefix),
				)
			);
		}
		default:
			return false;
	}

	function selects(labels: Record<string, string> = {}): boolean {
		return labels.apiserver === storage && Object.keys(labels).length === 1;
	}
}

interface Service extends KubeObject {
	spec?: { selector?: Record<string, string>; ports?: { port: number }[] };
}

interface Workload extends KubeObject {
	spec?: {
		selector?: { matchLabels?: Record<string, string> };
		template?: {
			spec?: { containers?: { command?: string[]; args?: string[] }[] };
		};
	};
}
