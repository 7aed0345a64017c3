/** The controller's command line; the gateway's is in gateway/options.ts. */
import { isObjectName } from "./etcdstorage.ts";
import {
	type Flags,
	helpText,
	isAddress,
	isUrl,
	listOf,
	parseFlags,
	UsageError,
} from "./flags.ts";
import { build } from "./version.ts";

export interface Options {
	kubeconfig: string;
	"etcd-core-url": string[];
	"etcd-core-ca-configmap": string;
	"etcd-core-certs-secret": string;
	namespace: string;
	"etcd-proxy-image": string;
	"etcd-proxy-priority-class": string;
	"listen-addr": string;
	"log-format": "text" | "json";
	"leader-elect": boolean;
}

export const flags: Flags<keyof Options> = {
	kubeconfig: {
		short: "k",
		value: "file",
		default: "",
		description:
			"Kubeconfig to use. Without it: the pod's ServiceAccount, else $KUBECONFIG or ~/.kube/config.",
	},
	"etcd-core-url": {
		short: "u",
		value: "url,...",
		default: [],
		description:
			"Client URLs of the core etcd; repeatable or separated by commas. Required.",
	},
	"etcd-core-ca-configmap": {
		value: "name",
		default: "etcd-coreserving-ca",
		description:
			"ConfigMap in the controller's namespace with the core etcd's CA, key ca.crt.",
	},
	"etcd-core-certs-secret": {
		alias: "etcd-core-ca-secret",
		value: "name",
		default: "etcd-coreserving-cert",
		description:
			"Secret in the controller's namespace with the client certificate for the core etcd, keys tls.crt and tls.key.",
	},
	namespace: {
		short: "n",
		value: "name",
		default: "kube-apiserver-storage",
		description:
			"The controller's namespace: proxies, Services and signers live here.",
	},
	"etcd-proxy-image": {
		value: "image",
		default: `xmudrii/etcdproxy-controller:v${build.version}`,
		description:
			"Image of the proxy pods: this program's own gateway; one named etcd (3.5.13 or later) runs etcd's grpc-proxy instead.",
	},
	"etcd-proxy-priority-class": {
		value: "name",
		default: "",
		description:
			"PriorityClass of the proxy pods; empty for the cluster's default.",
	},
	"listen-addr": {
		value: "host:port",
		default: "0.0.0.0:8080",
		description: "Address of /healthz, /readyz and /metrics; empty for none.",
	},
	"log-format": {
		value: "text|json",
		default: "text",
		description: "Log lines for people or for machines.",
	},
	"leader-elect": {
		default: false,
		description:
			"Wait for the Lease etcdproxy-controller before acting; needed with more than one replica.",
	},
};

const version = {
	default: false,
	description: "Print version, commit and its date.",
};

/**
 * @param args the words after the program's name
 * @throws UsageError
 */
export function parseOptions(
	args: string[],
): Options | { help: true } | { version: true } {
	const given = parseFlags({ ...flags, version }, args);
	if ("help" in given) return { help: true };
	const { version: asked, ...values } = given;
	if (asked === true) return { version: true };
	const options = values as unknown as Options;
	options["etcd-core-url"] = listOf(options["etcd-core-url"]);
	check(options);
	return options;
}

function check(options: Options): void {
	const urls = options["etcd-core-url"];
	if (urls.length === 0)
		throw new UsageError(
			"--etcd-core-url is required, for example --etcd-core-url=https://etcd-svc-1.etcd.svc:2379",
		);
	for (const url of urls)
		if (!isUrl("https", url))
			throw new UsageError(
				`--etcd-core-url "${url}" must look like https://host:2379: the core etcd is spoken to with client certificates only`,
			);
	for (const flag of [
		"namespace",
		"etcd-core-ca-configmap",
		"etcd-core-certs-secret",
	] as const)
		if (!isObjectName(options[flag]))
			throw new UsageError(
				`--${flag} "${options[flag]}" is not the name of a Kubernetes object`,
			);
	if (options["etcd-proxy-image"] === "")
		throw new UsageError("--etcd-proxy-image must not be empty");
	const priorityClass = options["etcd-proxy-priority-class"];
	if (priorityClass !== "" && !isObjectName(priorityClass))
		throw new UsageError(
			`--etcd-proxy-priority-class "${priorityClass}" is not the name of a Kubernetes object`,
		);
	if (!["text", "json"].includes(options["log-format"]))
		throw new UsageError(
			`--log-format "${options["log-format"]}" must be text or json`,
		);
	const address = options["listen-addr"];
	if (address !== "" && !isAddress(address))
		throw new UsageError(
			`--listen-addr "${address}" must be host:port, or empty for none`,
		);
}

export const help = (): string =>
	helpText(
		`etcdproxy-controller gives every EtcdStorage a TLS endpoint of its own in front of the core etcd.

Usage: etcdproxy-controller --etcd-core-url=https://host:2379 [flags]
       etcdproxy-controller grpc-proxy start [flags]    the gateway behind one such endpoint; see its --help
       etcdproxy-controller plan [flags] [NAME]         what would be done now and when next; see its --help
       etcdproxy-controller certs [flags] [NAME]        who trusts whom, and what breaks when; see its --help`,
		{ ...flags, version },
	);
