/**
 * `etcdproxy-controller plan` and `etcdproxy-controller certs`. The cluster is read once, as the controller reads it, and
 * nothing is written: `plan` is a visit of visit.ts whose writes are noted instead of sent.
 */
import { Cache } from "./cache.ts";
import { Clock } from "./clock.ts";
import { finalize } from "./deletion.ts";
import {
	type EtcdStorage,
	formatDuration,
	isObjectName,
	readSpec,
	readStatus,
} from "./etcdstorage.ts";
import { type Flags, helpText, parseFlags, UsageError } from "./flags.ts";
import {
	ApiError,
	type Kind,
	Kube,
	type KubeObject,
	type KubeOptions,
	loadKubeConfig,
	type Ref,
} from "./kube.ts";
import {
	type Data,
	type Environment,
	FIELD_MANAGER,
	isOwnedBy,
	names,
	secretText,
} from "./manifests.ts";
import { type Context, observe } from "./observe.ts";
import { flags } from "./options.ts";
import {
	type CertificateFacts,
	parseCertificates,
	UnreadableError,
	verifies,
} from "./pki.ts";
import { invalidSpec } from "./problems.ts";
import { decide } from "./reconcile.ts";
import {
	type Bundle,
	type Certs,
	type CertsReport,
	core,
	type Planned,
	planned,
	type Report,
	shown,
	time,
	unshown,
	type Write,
} from "./report.ts";
import type { EventNote } from "./status.ts";
import { certsText, planText } from "./tables.ts";
import { TargetReader, targetKey } from "./targets.ts";
import type { Signed } from "./trust.ts";
import { visit } from "./visit.ts";
import type { Deployment } from "./workload.ts";

const COMMANDS = {
	plan: "prints what the controller would do now for each EtcdStorage, and when next",
	certs:
		"prints each EtcdStorage's certificates as they are in the cluster, who trusts whom, and what breaks when",
};
export type Command = keyof typeof COMMANDS;

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
		`etcdproxy-controller ${command} ${COMMANDS[command]}. It writes nothing.

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
	for (const flag of [
		"namespace",
		"etcd-core-ca-configmap",
		"etcd-core-certs-secret",
	] as const)
		if (!isObjectName(options[flag]))
			throw new UsageError(
				`--${flag} "${options[flag]}" is not the name of a Kubernetes object`,
			);
	if (options.output !== "table" && options.output !== "json")
		throw new UsageError(`--output "${options.output}" must be table or json`);
	return { options, name };
}

/** An API server that is read, and told nothing: what is written is noted, and answered about as it would be. */
export class DryKube extends Kube {
	/** In order. */
	writes: Write[] = [];
	/** The controller's, as the API server calls it. */
	readonly #account: string;
	/** What was read, and cannot be changed. */
	readonly #immutable = new Set<string>();

	/** @param namespace the controller's */
	constructor(
		config: ReturnType<typeof loadKubeConfig>,
		options: KubeOptions,
		namespace: string,
	) {
		super(config, options);
		this.#account = `"system:serviceaccount:${namespace}:etcdproxy-controller-sa"`;
	}

	override async get<T extends KubeObject>(ref: Ref): Promise<T | undefined> {
		const found = await this.#reading(super.get<T & Data>(ref));
		if (found?.immutable) this.#immutable.add(textOf(ref));
		return found;
	}

	override list<T extends KubeObject>(
		...args: Parameters<Kube["list"]>
	): Promise<T[]> {
		return this.#reading(super.list<T>(...args));
	}

	override podProxy<T>(...args: Parameters<Kube["podProxy"]>): Promise<T> {
		return this.#reading(super.podProxy<T>(...args));
	}

	override create<T extends KubeObject>(object: T): Promise<T> {
		return this.#write("create", refOf(object), object);
	}

	override apply<T extends KubeObject>(object: T): Promise<T> {
		return this.#write("apply", refOf(object), object);
	}

	override patch<T extends KubeObject>(ref: Ref): Promise<T> {
		const { name, namespace } = ref;
		const metadata = { name, ...(namespace && { namespace }) };
		return this.#write("patch", ref, { ...ref, metadata } as unknown as T);
	}

	override delete(ref: Ref): Promise<void> {
		return this.#write("delete", ref, undefined);
	}

	/** What the controller may not read is a fact; what somebody else may not read is not known. */
	async #reading<T>(answer: Promise<T>): Promise<T> {
		try {
			return await answer;
		} catch (error) {
			if (
				!(error instanceof ApiError) ||
				error.reason !== "Forbidden" ||
				error.message.includes(this.#account)
			)
				throw error;
			throw new Error(
				`${error.message}; whoever asks must be allowed to read what the controller reads, as its ServiceAccount is`,
			);
		}
	}

	async #write<T>(verb: Write["verb"], ref: Ref, answer: T): Promise<T> {
		const object = textOf(ref);
		if (this.#immutable.has(object))
			throw new ApiError(verb, ref, {
				code: 422,
				reason: "Invalid",
				message: "field is immutable when `immutable` is set",
			});
		this.writes.push({ verb, object });
		return answer;
	}
}

const textOf = ({ kind, namespace, name }: Ref) =>
	`${kind} ${namespace ? `${namespace}/` : ""}${name}`;
const refOf = ({ apiVersion, kind, metadata }: KubeObject): Ref => ({
	apiVersion,
	kind,
	...metadata,
});

/** EtcdStorages looked at at once, by a connection each. */
const CONCURRENCY = 8;

/** What visits share: what the controller watches, read once. */
type Cluster = Pick<Context, "storages" | "owned" | "environment" | "now">;

async function read(
	kube: DryKube,
	options: Options,
	now: () => number,
): Promise<Cluster> {
	const { namespace } = options;
	const storages = new Cache<EtcdStorage>();
	const owned: Context["owned"] = {
		ConfigMap: new Cache<Data>(),
		Secret: new Cache<Data>(),
		Service: new Cache<KubeObject>(),
		Deployment: new Cache<Deployment>(),
	};
	const fill = async (kind: Kind, within: string, cache: Cache<KubeObject>) =>
		cache.replace(await kube.list(kind, within));
	await Promise.all([
		fill("EtcdStorage", "", storages as Cache<KubeObject>).catch(hinting),
		...Object.entries(owned).map(([kind, cache]) =>
			fill(kind as Kind, namespace, cache as Cache<KubeObject>),
		),
	]);
	const environment: Environment = {
		namespace,
		coreUrls: [],
		coreCAConfigMap: options["etcd-core-ca-configmap"],
		coreCertsSecret: options["etcd-core-certs-secret"],
		proxyImage: String(flags["etcd-proxy-image"].default),
	};
	return { storages, owned, environment, now };
}

function hinting(error: unknown): never {
	if (!(error instanceof ApiError) || error.code !== 404) throw error;
	throw new Error(
		`${error.message}; is the CustomResourceDefinition installed? See artifacts/deployment`,
	);
}

function select({ storages }: Cluster, name: string | undefined) {
	const all = [...storages.values()].sort((a, b) =>
		a.metadata.name < b.metadata.name ? -1 : 1,
	);
	const found = all.filter((one) => (name ?? one.metadata.name) === one.metadata.name);
	if (name === undefined || found.length > 0) return found;
	const others = all.slice(0, 10).map((one) => one.metadata.name);
	const more = all.length - others.length;
	throw new Error(
		`there is no EtcdStorage "${name}"; ${all.length === 0 ? "there are none at all" : `there are: ${others.join(", ")}${more > 0 ? ` and ${more} more` : ""}`}`,
	);
}

/** The controller's flags are not known here: what runs is as it should be. */
function environmentOf({ environment, owned }: Cluster, name: string) {
	const { template } = (owned.Deployment.get(names.workload(name))?.spec ??
		{}) as {
		template?: {
			spec?: { containers?: { image?: string; args?: string[] }[] };
		};
	};
	const [container] = template?.spec?.containers ?? [];
	const [, urls] =
		container?.args
			?.map((arg) => /^--endpoints=(.*)$/.exec(arg))
			.find((match) => match) ?? [];
	return {
		...environment,
		coreUrls: urls?.split(",") ?? [],
		proxyImage: container?.image ?? environment.proxyImage,
	};
}

type Tell<T> = (
	storage: EtcdStorage,
	context: Context & { kube: DryKube },
) => Promise<T>;

async function each<T>(
	found: EtcdStorage[],
	cluster: Cluster,
	connect: () => DryKube,
	tell: Tell<T>,
): Promise<T[]> {
	const told: T[] = [];
	const entries = found.entries();
	const worker = async () => {
		const kube = connect();
		const targets = new TargetReader(kube);
		for (const [index, storage] of entries) {
			kube.writes = [];
			told[index] = await tell(
				{ ...storage, status: readStatus(storage) },
				{
					...cluster,
					environment: environmentOf(cluster, storage.metadata.name),
					kube,
					targets,
					restarts: new Map(),
					event: () => Promise.resolve(),
				},
			);
		}
	};
	const workers = Math.min(found.length, CONCURRENCY);
	await Promise.all(Array.from({ length: workers }, worker));
	return told;
}

const plan: Tell<Planned> = async (storage, context) => {
	const events: EventNote[] = [];
	const dry: Context = {
		...context,
		event: async (_, note) => void events.push(note),
	};
	const outcome = storage.metadata.deletionTimestamp
		? await finalize(storage, dry)
		: await visit(storage, dry);
	const { namespace } = context.environment;
	const { writes } = context.kube;
	const now = context.now();
	return planned({ storage, namespace, outcome, writes, events, now });
};

const certs: Tell<Certs> = async (storage, context) => {
	const { owned, environment } = context;
	const { namespace } = environment;
	const spec = readSpec(storage);
	if ("invalid" in spec) return unshown(storage, invalidSpec(spec.invalid));
	const observation = await observe(storage, spec, context);
	const now = context.now();
	const { phases, chains } = {
		phases: decide(spec, namespace, observation.observed, now).rotations,
		chains: new Map(
			Object.entries(observation.observed.leaves).flatMap(([id, leaf]) =>
				"chain" in leaf ? [[id, readPem(leaf.chain)] as const] : [],
			),
		),
	};
	const copy = names.clientCA(spec.name);
	const found = owned.ConfigMap.get(copy);
	const bundles = [
		bundleOf(
			"client",
			`ConfigMap ${namespace}/${copy}`,
			found && isOwnedBy(found, storage) ? found : undefined,
		),
		// Of one that could not be read nothing is known but that.
		...[...observation.targets]
			.filter(([key]) => key.startsWith("ConfigMap "))
			.map(([key, target]) => bundleOf("serving", key, target)),
	];
	const { client, serving } = observation.observed.signers;
	const signed = await signatures([
		...[client, serving].flatMap(({ trusted, previous }) => [
			...trusted,
			...(previous ? [previous.facts] : []),
		]),
		...bundles.flatMap((one) => one.authorities),
		...[...chains.values()].flat(),
	]);
	return shown({ spec, observation, phases, bundles, chains, signed, now });
};
