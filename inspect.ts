/**
 * `etcdproxy-controller plan` and `etcdproxy-controller certs`. The cluster is read once, as the controller reads it, and
 * nothing is written: `plan` is a visit of visit.ts whose writes are noted instead of sent.
 */
import { isOwnedBy } from "./adoption.ts";
import { Cache } from "./cache.ts";
import { Clock } from "./clock.ts";
import { finalize } from "./deletion.ts";
import { DryKube } from "./drykube.ts";
import {
	type EtcdStorage,
	formatDuration,
	formatTime,
	isObjectName,
	readSpec,
	readStatus,
} from "./etcdstorage.ts";
import { type Flags, helpText, parseFlags, UsageError } from "./flags.ts";
import { type Kind, type KubeObject, loadKubeConfig, refText } from "./kube.ts";
import { type Data, FIELD_MANAGER, names, secretText } from "./manifests.ts";
import { type Context, observe } from "./observe.ts";
import { flags } from "./options.ts";
import {
	type CertificateFacts,
	parseCertificates,
	UnreadableError,
} from "./pki.ts";
import { invalidSpec } from "./problems.ts";
import { decide } from "./reconcile.ts";
import {
	type Certs,
	life,
	type Planned,
	planned,
	type Report,
	type ShownCertificate,
	shown,
	unshown,
} from "./report.ts";
import type { EventNote } from "./status.ts";
import { certsText, planText } from "./tables.ts";
import { TargetReader } from "./targets.ts";
import type { Verifier } from "./trust.ts";
import { visit } from "./visit.ts";
import type { Deployment } from "./workload.ts";

export type Command = "plan" | "certs";
const COMMANDS: Record<Command, string> = {
	plan: "what the controller would do now for each EtcdStorage, and when next",
	certs:
		"each EtcdStorage's certificates as they are, who trusts whom, and what breaks when",
};

interface Options {
	kubeconfig: string;
	namespace: string;
	"etcd-core-ca-configmap": string;
	"etcd-core-certs-secret": string;
	output: "table" | "json";
}

export const inspectFlags: Flags<keyof Options> = {
	kubeconfig: flags.kubeconfig,
	namespace: flags.namespace,
	"etcd-core-ca-configmap": flags["etcd-core-ca-configmap"],
	"etcd-core-certs-secret": flags["etcd-core-certs-secret"],
	output: {
		short: "o",
		value: "table|json",
		default: "table",
		description: "Tables for people or JSON for machines.",
	},
};

export const inspectHelp = (command: Command): string =>
	helpText(
		`etcdproxy-controller ${command} prints ${COMMANDS[command]}. It writes nothing.

Usage: etcdproxy-controller ${command} [flags] [NAME]    NAME of one EtcdStorage; without it: all of them

Exit codes: 0 all of it is told; 1 nothing is: the API server cannot be asked, there is no such EtcdStorage, or a right to
read is missing; 2 the command line is wrong.`,
		inspectFlags,
	);

/**
 * @param args the words after the command
 * @throws UsageError
 */
export function parseInspect(
	args: string[],
): { options: Options; name: string | undefined } | { help: true } {
	const words: string[] = [];
	const given = parseFlags(inspectFlags, args, words);
	if ("help" in given) return { help: true };
	const options = given as unknown as Options;
	const [name, ...more] = words;
	if (more.length > 0)
		throw new UsageError(
			`"${more.join(" ")}" is too much: one EtcdStorage can be named, or none for all`,
		);
	if (!isObjectName(options.namespace))
		throw new UsageError(
			`--namespace "${options.namespace}" is not the name of a Kubernetes object`,
		);
	if (options.output !== "table" && options.output !== "json")
		throw new UsageError(`--output "${options.output}" must be table or json`);
	return { options, name };
}

/** What is shared by all that is looked at: what the controller watches, read once. */
type Cluster = Pick<Context, "storages" | "owned" | "environment" | "now">;

async function read(
	kube: DryKube,
	options: Options,
	now: () => number,
): Promise<Cluster> {
	const cluster: Cluster = {
		storages: new Cache<EtcdStorage>(),
		owned: {
			ConfigMap: new Cache<Data>(),
			Secret: new Cache<Data>(),
			Service: new Cache<KubeObject>(),
			PodDisruptionBudget: new Cache<KubeObject>(),
			Deployment: new Cache<Deployment>(),
		},
		environment: {
			namespace: options.namespace,
			coreUrls: [],
			coreCAConfigMap: options["etcd-core-ca-configmap"],
			coreCertsSecret: options["etcd-core-certs-secret"],
			proxyImage: String(flags["etcd-proxy-image"].default),
			proxyPriorityClass: "",
		},
		now,
	};
	const lists = Object.entries({
		EtcdStorage: cluster.storages,
		...cluster.owned,
	}).map(async ([kind, cache]) => {
		const namespace = kind === "EtcdStorage" ? "" : options.namespace;
		const objects = await kube.list(kind as Kind, namespace);
		(cache as Cache<KubeObject>).replace(objects);
	});
	await Promise.all(lists);
	return cluster;
}

/** The EtcdStorage of that name, or all, by name. */
function select({ storages }: Cluster, name: string | undefined) {
	const all = [...storages.values()].sort((a, b) =>
		a.metadata.name < b.metadata.name ? -1 : 1,
	);
	if (name === undefined) return all;
	const one = storages.get(name);
	if (one) return [one];
	const some = all.slice(0, 10).map((other) => other.metadata.name);
	const more = all.length - some.length;
	throw new Error(
		`there is no EtcdStorage "${name}"; ${all.length === 0 ? "there are none at all" : `there are: ${some.join(", ")}${more > 0 ? ` and ${more} more` : ""}`}`,
	);
}

interface PodTemplate {
	spec?: {
		priorityClassName?: string;
		containers?: { image?: string; args?: string[] }[];
	};
}

/** The controller's command line is not known here: what runs is taken to be of it. */
function environmentOf({ environment, owned }: Cluster, name: string) {
	const { spec } = owned.Deployment.get(names.workload(name)) ?? {};
	const template = spec?.template as PodTemplate | undefined;
	const { image, args = [] } = template?.spec?.containers?.[0] ?? {};
	const flag = "--endpoints=";
	const urls = args.find((arg) => arg.startsWith(flag))?.slice(flag.length);
	return {
		...environment,
		coreUrls: urls?.split(",") ?? [],
		proxyImage: image ?? environment.proxyImage,
		proxyPriorityClass: template?.spec?.priorityClassName ?? "",
	};
}

/** EtcdStorages looked at at once, by a connection each. */
const CONCURRENCY = 8;

type Look<T> = (
	storage: EtcdStorage,
	context: Context & { kube: DryKube },
) => Promise<T>;

async function each<T>(
	found: EtcdStorage[],
	cluster: Cluster,
	connect: () => DryKube,
	look: Look<T>,
): Promise<T[]> {
	const seen: T[] = [];
	const entries = found.entries();
	const workers = Array.from({ length: CONCURRENCY }, async () => {
		const kube = connect();
		for (const [index, storage] of entries) {
			kube.writes = [];
			const context = {
				...cluster,
				environment: environmentOf(cluster, storage.metadata.name),
				kube,
				targets: new TargetReader(kube),
				restarts: new Set<string>(),
				event: () => Promise.resolve(),
			};
			const status = readStatus(storage);
			seen[index] = await look({ ...storage, status }, context);
		}
	});
	await Promise.all(workers);
	return seen;
}

const plan: Look<Planned> = async (storage, context) => {
	const events: EventNote[] = [];
	const event: Context["event"] = async (_, note) => void events.push(note);
	const dry = { ...context, event };
	const outcome = storage.metadata.deletionTimestamp
		? await finalize(storage, dry)
		: await visit(storage, dry);
	const did = { ...(outcome && { outcome }), writes: dry.kube.writes, events };
	return planned(storage, dry.environment.namespace, did, dry.now());
};

const certs: Look<Certs> = async (storage, context) => {
	const { owned, environment } = context;
	const { namespace } = environment;
	const spec = readSpec(storage);
	if ("invalid" in spec)
		return unshown(storage.metadata.name, invalidSpec(spec.invalid));
	const observation = await observe(storage, spec, context);
	const { observed, targets } = observation;
	const now = context.now();
	const { rotations } = decide(spec, namespace, observed, now);
	const chains = new Map(
		Object.entries(observed.leaves).map(([id, leaf]) => [
			id,
			"chain" in leaf ? readPem(leaf.chain) : [],
		]),
	);
	const name = names.clientCA(spec.name);
	const found = owned.ConfigMap.get(name);
	const ours = found && isOwnedBy(found, storage) ? found : undefined;
	const starting: Verifier[] = [
		{
			domain: "client",
			who: `proxies that start with ConfigMap ${namespace}/${name}`,
			trusted: readPem(ours?.data?.["client-ca.crt"]),
		},
		...spec.targets
			.filter((one) => one.kind === "ConfigMap")
			.map(refText)
			// Of one that could not be read nothing is known.
			.filter((key) => targets.has(key))
			.map((key) => ({
				domain: "serving" as const,
				who: `API servers that start with ${key}`,
				trusted: readPem(targets.get(key)?.data?.["serving-ca.crt"]),
			})),
	];
	return shown({ spec, observation, rotations, starting, chains, now });
};

/** None where one is damaged. */
function readPem(text = ""): CertificateFacts[] {
	try {
		return text === "" ? [] : parseCertificates(text);
	} catch (error) {
		if (error instanceof UnreadableError) return [];
		throw error;
	}
}

/** Who does not read on, as `head` does not, has seen enough. */
async function print(text: string): Promise<void> {
	try {
		await Bun.write(Bun.stdout, text);
	} catch (error) {
		if ((error as { code?: string }).code !== "EPIPE") throw error;
	}
}

/**
 * `etcdproxy-controller plan` and `certs`; ends the process.
 * @param args the words after the command
 * @throws UsageError; ApiError; Error when the kubeconfig is no good, a right is missing, or there is no such EtcdStorage
 */
export async function runInspect(
	command: Command,
	args: string[],
): Promise<void> {
	const given = parseInspect(args);
	if ("help" in given) return print(inspectHelp(command));
	const { options, name } = given;
	const config = loadKubeConfig(options.kubeconfig || undefined);
	const clock = new Clock(Date.now, () => performance.now());
	const connect = () =>
		new DryKube(config, {
			fieldManager: FIELD_MANAGER,
			onRequest: ({ date, seconds }) => clock.observe(date, seconds),
		});
	const cluster = await read(connect(), options, () => clock.now());
	const found = select(cluster, name);
	const look = <T>(how: Look<T>) => each(found, cluster, connect, how);
	const report = <T>(etcdStorages: T[]): Report<T> => ({
		now: formatTime(clock.now()),
		...(clock.skewMs !== 0 && {
			note: `this machine's clock is ${formatDuration(Math.abs(clock.skewMs))} ${clock.skewMs > 0 ? "ahead of" : "behind"} the API server's, which is used instead`,
		}),
		etcdStorages,
	});
	const show = <T>(value: T, text: (value: T) => string) =>
		print(
			options.output === "table"
				? text(value)
				: `${JSON.stringify(value, undefined, "\t")}\n`,
		);
	const core = coreOf(cluster);
	if (command === "plan") await show(report(await look(plan)), planText);
	else await show({ ...report(await look(certs)), core }, certsText);
	// Connections that are kept would keep the process.
	process.exit(0);
}

function coreOf({ environment, owned, now }: Cluster): ShownCertificate[] {
	const { namespace, coreCAConfigMap, coreCertsSecret } = environment;
	const secret = owned.Secret.get(coreCertsSecret);
	const client = readPem(secret && secretText(secret, "tls.crt"));
	const ca = owned.ConfigMap.get(coreCAConfigMap)?.data?.["ca.crt"];
	const rows: [string, CertificateFacts[]][] = [
		[`Secret ${namespace}/${coreCertsSecret}`, client.slice(0, 1)],
		[`ConfigMap ${namespace}/${coreCAConfigMap}`, readPem(ca)],
	];
	return rows.flatMap(([id, list]) =>
		list.map((facts) => ({
			...{ id, domain: "core", role: "core", by: [] },
			...life(facts, now()),
		})),
	);
}
