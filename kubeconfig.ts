/**
 * Where the API server is and who we are there. The only importer of
 * @kubernetes/client-node.
 */
import { existsSync, readFileSync } from "node:fs";
import type { RequestOptions } from "node:https";
import { homedir } from "node:os";
import { delimiter, dirname, join, resolve } from "node:path";
// Not the package's root: a binary with --bytecode starts in 33 ms, not 55, and 2 MB smaller.
import { KubeConfig } from "@kubernetes/client-node/dist/config.js";

export type { KubeConfig };

/** What a request needs of the kubeconfig: PEM texts, and headers as Authorization. */
export interface Credentials {
	tls: Bun.TLSOptions;
	headers: Record<string, string>;
}

interface RawKubeConfig {
	users?: { name: string; user?: { tokenFile?: string } }[];
}

const SERVICE_ACCOUNT_TOKEN =
	"/var/run/secrets/kubernetes.io/serviceaccount/token";

/**
 * Where the API server is and who we are there.
 * @param path of a kubeconfig; without one the Pod's ServiceAccount, where it is
 * mounted, else the files in KUBECONFIG, else ~/.kube/config
 * @throws Error naming the file that is missing or unfit, or the way out
 */
export function loadKubeConfig(path?: string): KubeConfig {
	if (!path && existsSync(SERVICE_ACCOUNT_TOKEN)) {
		const config = new KubeConfig();
		config.loadFromCluster();
		return config;
	}
	const usual = process.env.KUBECONFIG || join(homedir(), ".kube", "config");
	const files = path ? [path] : usual.split(delimiter).filter(existsSync);
	const [config, ...others] = files.map(readKubeConfig);
	if (!config)
		throw new Error(
			`no kubeconfig: ${usual} does not exist and this is not a Pod with a ServiceAccount; set --kubeconfig or KUBECONFIG`,
		);
	for (const other of others)
		config.mergeConfig(other, !!config.currentContext);
	if (!config.getCurrentCluster())
		throw new Error(
			`kubeconfig ${files.join(delimiter)}: no current context with a cluster; see kubectl config get-contexts, kubectl config use-context`,
		);
	return config;
}

function readKubeConfig(file: string): KubeConfig {
	const config = new KubeConfig();
	try {
		config.loadFromFile(file);
		// client-node knows this key of kubectl's only by another name.
		const raw = Bun.YAML.parse(readFileSync(file, "utf8")) as RawKubeConfig;
		for (const { name, user } of raw.users ?? []) {
			if (!user?.tokenFile) continue;
			const tokenFile = resolve(dirname(file), user.tokenFile);
			Object.assign(config.getUser(name) ?? {}, {
				authProvider: { name: "tokenFile", config: { tokenFile } },
			});
		}
	} catch (error) {
		// The first line only: the others quote the file, which may hold keys.
		const [reason] = (error as Error).message.split("\n");
		throw new Error(
			`kubeconfig ${file}: ${reason}; see: kubectl --kubeconfig ${file} config view`,
		);
	}
	return config;
}

/** What a request needs of the kubeconfig; files, tokens and exec plugins are read by client-node. */
export async function readCredentials(
	config: KubeConfig,
): Promise<Credentials> {
	const options: RequestOptions = {};
	await config.applyToHTTPSOptions(options);
	const { ca, cert, key, servername, rejectUnauthorized } = options;
	const pem = { ca, cert, key, serverName: servername };
	const given = Object.entries(pem).filter(([, value]) => value);
	const tls = Object.fromEntries(
		given.map(([name, value]) => [name, String(value)]),
	);
	return {
		tls: { ...tls, rejectUnauthorized: rejectUnauthorized ?? true },
		headers: { ...(options.headers as Record<string, string>) },
	};
}

/** A copy that has cached no token and no exec plugin's answer: the ones in use are refused. */
export function renewed(config: KubeConfig): KubeConfig {
	const copied = new KubeConfig();
	copied.loadFromOptions(config);
	return copied;
}
