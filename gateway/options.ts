/** The gateway's command line, `etcdproxy-controller grpc-proxy start`: that of `etcd grpc-proxy start`, as far as it goes. */
import { parseDuration } from "../etcdstorage.ts";
import {
	type Flags,
	helpText,
	isAddress,
	isUrl,
	listOf,
	parseFlags,
	UsageError,
	type Values,
} from "../flags.ts";

/** By the names of the flags. Durations in milliseconds. */
export interface GatewayOptions {
	endpoints: string[];
	/** "/name/". */
	namespace: string;
	/** host:port. */
	"listen-addr": string;
	/** http://host:port, or empty for none. */
	"metrics-addr": string;
	/** Never empty. */
	"advertise-client-url": string;
	cacert: string;
	cert: string;
	key: string;
	"trusted-ca-file": string;
	"cert-file": string;
	"key-file": string;
	"dial-keepalive-time": number;
	"dial-keepalive-timeout": number;
	"max-send-bytes": number;
	"max-concurrent-streams": number;
	"max-watches": number;
	"max-connections": number;
	"max-bytes-in-flight": number;
	"drain-timeout": number;
	"log-format": "text" | "json";
}

export const gatewayFlags: Flags<keyof GatewayOptions> = {
	endpoints: {
		value: "url,...",
		default: [],
		description:
			"Client URLs of the core etcd; repeatable or separated by commas. Required.",
	},
	namespace: {
		value: "prefix",
		default: "",
		description:
			"Prefix of all keys, such as /my-apiserver/; nothing outside it is addressed. Required.",
	},
	"listen-addr": {
		value: "host:port",
		default: "127.0.0.1:23790",
		description: "Address that clients connect to.",
	},
	"metrics-addr": {
		value: "url",
		default: "",
		description:
			"Where /healthz, /readyz and /metrics are served, such as http://0.0.0.0:2381; empty for none.",
	},
	"advertise-client-url": {
		value: "url",
		default: "",
		description:
			"The one URL that a list of members shows; empty for https:// and the address of --listen-addr.",
	},
	cacert: {
		value: "file",
		default: "",
		description: "CA bundle of the core etcd. Required.",
	},
	cert: {
		value: "file",
		default: "",
		description: "Client certificate for the core etcd. Required.",
	},
	key: {
		value: "file",
		default: "",
		description: "Key of the client certificate for the core etcd. Required.",
	},
	"trusted-ca-file": {
		value: "file",
		default: "",
		description: "CA bundle of the clients. Required.",
	},
	"cert-file": {
		value: "file",
		default: "",
		description: "Serving certificate. Required.",
	},
	"key-file": {
		value: "file",
		default: "",
		description: "Key of the serving certificate. Required.",
	},
	"dial-keepalive-time": {
		value: "duration",
		default: "10s",
		description: "How long the core may be silent before it is pinged.",
	},
	"dial-keepalive-timeout": {
		value: "duration",
		default: "5s",
		description: "How long the core may take to answer that ping.",
	},
	"max-send-bytes": {
		value: "bytes",
		default: "2097152",
		description:
			"Largest request that is passed on. etcd itself takes 1.5 MiB and 512 KiB around it, unless told otherwise.",
	},
	"max-concurrent-streams": {
		value: "number",
		default: "2000",
		description: "Requests and watch streams at once on one connection.",
	},
	"max-watches": {
		value: "number",
		default: "10000",
		description: "Watches on one connection.",
	},
	"max-connections": {
		value: "number",
		default: "1000",
		description: "Connections of clients.",
	},
	"max-bytes-in-flight": {
		value: "bytes",
		default: "134217728",
		description:
			"Bytes of requests and answers in the gateway at once; slow readers are slowed and then cut.",
	},
	"drain-timeout": {
		value: "duration",
		default: "20s",
		description: "How long requests that are under way may take after SIGTERM.",
	},
	"log-format": {
		value: "text|json",
		default: "text",
		description: "Log lines for people or for machines.",
	},
};

/** HTTP/2 counts streams in 31 bits. */
const MAX_INT31 = 2 ** 31 - 1;
/** A timer takes no more than 24 days of milliseconds, and nobody waits for one. */
const MAX_DURATION_MS = 24 * 3_600_000;

type Given = Values<keyof GatewayOptions>;
type Name = keyof GatewayOptions;

/**
 * @param args the words after `grpc-proxy start`
 * @throws UsageError
 */
export function parseGatewayOptions(
	args: string[],
): GatewayOptions | { help: true } {
	const given = parseFlags(gatewayFlags, args);
	if ("help" in given) return { help: true };
	return {
		endpoints: endpoints(given),
		namespace: prefix(given),
		"listen-addr": address(given),
		"metrics-addr": url(given, "metrics-addr", "http"),
		"advertise-client-url":
			url(given, "advertise-client-url", "https") ||
			`https://${address(given)}`,
		cacert: required(given, "cacert", "/etc/core/ca.crt"),
		cert: required(given, "cert", "/etc/core/tls.crt"),
		key: required(given, "key", "/etc/core/tls.key"),
		"trusted-ca-file": required(given, "trusted-ca-file", "/etc/clients.crt"),
		"cert-file": required(given, "cert-file", "/etc/server/tls.crt"),
		"key-file": required(given, "key-file", "/etc/server/tls.key"),
		"dial-keepalive-time": duration(given, "dial-keepalive-time", 1),
		"dial-keepalive-timeout": duration(given, "dial-keepalive-timeout", 1),
		"max-send-bytes": count(given, "max-send-bytes"),
		"max-concurrent-streams": count(given, "max-concurrent-streams"),
		"max-watches": count(given, "max-watches"),
		"max-connections": count(given, "max-connections"),
		"max-bytes-in-flight": count(
			given,
			"max-bytes-in-flight",
			Number.MAX_SAFE_INTEGER,
		),
		"drain-timeout": duration(given, "drain-timeout", 0),
		"log-format": logFormat(given),
	};
}

function required(given: Given, name: Name, example: string): string {
	const text = String(given[name]);
	if (text !== "") return text;
	throw new UsageError(
		`--${name} is required, for example --${name}=${example}`,
	);
}

function endpoints(given: Given): string[] {
	const urls = listOf(given.endpoints as string[]);
	if (urls.length === 0)
		throw new UsageError(
			"--endpoints is required, for example --endpoints=https://etcd-svc-1.etcd.svc:2379",
		);
	for (const one of urls)
		if (!isUrl("https", one))
			throw new UsageError(
				`--endpoints "${one}" must look like https://host:2379: the core etcd is spoken to with client certificates only`,
			);
	return urls;
}

function prefix(given: Given): string {
	const text = required(given, "namespace", "/my-apiserver/");
	if (/^\/[^/].*\/$/s.test(text)) return text;
	throw new UsageError(
		`--namespace "${text}" must look like /my-apiserver/: without a slash at its end it would hold the keys of others whose prefix begins the same`,
	);
}

function address(given: Given): string {
	const text = required(given, "listen-addr", "0.0.0.0:2379");
	if (isAddress(text)) return text;
	throw new UsageError(
		`--listen-addr "${text}" must be host:port, for example 0.0.0.0:2379`,
	);
}

function url(given: Given, name: Name, scheme: "http" | "https"): string {
	const text = String(given[name]);
	if (text === "" || isUrl(scheme, text)) return text;
	throw new UsageError(
		`--${name} "${text}" must look like ${scheme}://host:port, or be empty`,
	);
}

function duration(given: Given, name: Name, least: number): number {
	const text = given[name];
	const ms = parseDuration(text);
	if (ms !== undefined && ms >= least && ms <= MAX_DURATION_MS) return ms;
	throw new UsageError(
		`--${name} "${text}" must be a Go duration from ${least}ms to 24h, such as 10s or 1m30s`,
	);
}

function count(given: Given, name: Name, most = MAX_INT31): number {
	const text = String(given[name]);
	const number = /^\d+$/.test(text) ? Number(text) : 0;
	if (number >= 1 && number <= most) return number;
	throw new UsageError(
		`--${name} "${text}" must be a whole number from 1 to ${most}`,
	);
}

function logFormat(given: Given): "text" | "json" {
	const text = given["log-format"];
	if (text === "text" || text === "json") return text;
	throw new UsageError(`--log-format "${text}" must be text or json`);
}

export const gatewayHelp = (): string =>
	helpText(
		`etcdproxy-controller grpc-proxy start lets one tenant at the core etcd: over mutual TLS, and to the keys under its prefix only.

Usage: etcdproxy-controller grpc-proxy start --endpoints=https://host:2379 --namespace=/name/ [flags]`,
		gatewayFlags,
	);
