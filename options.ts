/** The command line: one table from which the parser, `--help` and the README's reference are made. */
import { parseArgs } from "node:util";
import { isObjectName } from "./etcdstorage.ts";

export interface Options {
	kubeconfig: string;
	"etcd-core-url": string[];
	"etcd-core-ca-configmap": string;
	"etcd-core-certs-secret": string;
	namespace: string;
	"etcd-proxy-image": string;
	"listen-addr": string;
	"log-format": "text" | "json";
	"leader-elect": boolean;
}

interface Flag {
	short?: string;
	alias?: string;
	value?: string;
	default: string | string[] | boolean;
	description: string;
}

export const flags: Record<keyof Options, Flag> = {
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
		default: "gcr.io/etcd-development/etcd:v3.7.3",
		description: "Image of the proxy pods; etcd 3.5.13 or later.",
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

/** Bad words on the command line; the message says which, and what would be right. */
export class UsageError extends Error {}

/**
 * @param args the words after the program's name
 * @throws UsageError
 */
export function parseOptions(
	args: string[],
): Options | { help: true } | { version: true } {
	const names = Object.entries(flags);
	const values = parse(
		// pflag, which the 2018 controller used, also took -k=file.
		args.flatMap((word) => {
			const match = /^-([a-z])=(.*)$/s.exec(word);
			return match ? [`-${match[1]}`, match[2] ?? ""] : [word];
		}),
	);
	if (values.help) return { help: true };
	if (values.version) return { version: true };

	const options: Record<string, unknown> = {};
	for (const [name, flag] of names)
		options[name] =
			values[name] ??
			(flag.alias === undefined ? undefined : values[flag.alias]) ??
			flag.default;
	const result = options as unknown as Options;
	result["etcd-core-url"] = result["etcd-core-url"]
		.flatMap((list) => list.split(","))
		.map((url) => url.trim())
		.filter((url) => url !== "");
	check(result);
	return result;
}

function parse(
	args: string[],
): Record<string, string | string[] | boolean | undefined> {
	try {
		const { values } = parseArgs({
			args,
			options: Object.fromEntries([
				...Object.entries(flags).flatMap(([name, flag]) => {
					const option = {
						type:
							typeof flag.default === "boolean"
								? ("boolean" as const)
								: ("string" as const),
						multiple: Array.isArray(flag.default),
						...(flag.short !== undefined && { short: flag.short }),
					};
					return [
						[name, option] as const,
						...(flag.alias === undefined
							? []
							: [[flag.alias, { type: option.type }] as const]),
					];
				}),
				["help", { type: "boolean" as const, short: "h" }],
				["version", { type: "boolean" as const }],
			]),
			strict: true,
			allowPositionals: false,
		});
		return values as ReturnType<typeof parse>;
	} catch (error) {
		throw new UsageError(
			`${(error as Error).message.replace(/\.? To specify.*$/s, "")}; see --help`,
			{ cause: error },
		);
	}
}

function check(options: Options): void {
	const urls = options["etcd-core-url"];
	if (urls.length === 0)
		throw new UsageError(
			"--etcd-core-url is required, for example --etcd-core-url=https://etcd-svc-1.etcd.svc:2379",
		);
	for (const url of urls)
		if (!/^https:\/\/[^/\s]+$/.test(url) || !URL.canParse(url))
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
	if (!["text", "json"].includes(options["log-format"]))
		throw new UsageError(
			`--log-format "${options["log-format"]}" must be text or json`,
		);
	const address = options["listen-addr"];
	const port = /^.*:(\d+)$/.exec(address)?.[1];
	if (address !== "" && !(Number(port) <= 65_535))
		throw new UsageError(
			`--listen-addr "${address}" must be host:port, or empty for none`,
		);
}

/** Rows of flag, default and description, as `--help` and the README show them. */
export function flagRows(): [
	flag: string,
	fallback: string,
	description: string,
][] {
	return Object.entries(flags).map(([name, flag]) => [
		[
			`--${name}`,
			...(flag.short ? [`-${flag.short}`] : []),
			...(flag.alias ? [`--${flag.alias}`] : []),
		].join(", ") + (flag.value ? ` <${flag.value}>` : ""),
		String(flag.default),
		flag.description,
	]);
}

export function help(): string {
	const rows = flagRows().map(
		([flag, fallback, description]) =>
			`  ${flag}\n      ${description}${fallback && fallback !== "false" ? ` Default: ${fallback}` : ""}`,
	);
	return `etcdproxy-controller gives every EtcdStorage a TLS endpoint of its own in front of the core etcd.

Usage: etcdproxy-controller --etcd-core-url=https://host:2379 [flags]

${rows.join("\n")}
  --version
      Print the version.
  --help, -h
      Print this.
`;
}
