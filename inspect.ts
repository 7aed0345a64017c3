/**
 * `etcdproxy-controller plan` and `etcdproxy-controller certs`: the shell of both. The cluster is read as the controller
 * reads it, once, and what is seen is decided by the same functions; nothing can be written.
 */
import { Cache } from "./cache.ts";
import { issue } from "./certificates.ts";
import { Clock } from "./clock.ts";
import { FINALIZER } from "./deletion.ts";
import { isSubset, takeOver } from "./drift.ts";
import {
	type EtcdStorage,
	formatDuration,
	isObjectName,
	readSpec,
	readStatus,
	type Spec,
	sameTarget,
	type TargetStatus,
} from "./etcdstorage.ts";
import { type Flags, helpText, parseFlags, UsageError } from "./flags.ts";
import {
	ApiError,
	type Kind,
	Kube,
	type KubeObject,
	kinds,
	loadKubeConfig,
	type Ref,
} from "./kube.ts";
import { domains } from "./lifetimes.ts";
import {
	bundles,
	certificates,
	type Data,
	type Environment,
	FIELD_MANAGER,
	hash,
	isOwnedBy,
	names,
	secretText,
	signerSecret,
} from "./manifests.ts";
import { type Context, observe } from "./observe.ts";
import { flags } from "./options.ts";
import {
	type CertificateFacts,
	parseCertificates,
	UnreadableError,
	verifies,
} from "./pki.ts";
import { describe, invalidSpec, nameTaken, signerPending } from "./problems.ts";
import { type Pod, proxiesBehind } from "./proxies.ts";
import { decide } from "./reconcile.ts";
import {
	type Bundle,
	type CertsReport,
	type Change,
	type CoreCertificate,
	type Planned,
	type Proxies,
	planned,
	plannedByStatus,
	plannedOnly,
	type Report,
	type Seen,
	type Shown,
	type Surroundings,
	shown,
	shownByStatus,
	shownCore,
	shownOnly,
	time,
} from "./report.ts";
import type { Problem } from "./status.ts";
import { certsText, planText } from "./tables.ts";
import { TargetReader, targetKey } from "./targets.ts";
import { type Deployment, workload } from "./workload.ts";

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
	"etcd-proxy-image": string;
	output: "table" | "json";
}

export const inspectFlags: Flags<keyof Options> = {
	kubeconfig: flags.kubeconfig,
	namespace: flags.namespace,
	"etcd-core-ca-configmap": flags["etcd-core-ca-configmap"],
	"etcd-core-certs-secret": flags["etcd-core-certs-secret"],
	"etcd-proxy-image": {
		value: "image",
		default: "",
		description:
			"The controller's flag of that name. Without it: the image that the proxies of each EtcdStorage have.",
	},
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

Exit codes: 0 all of it is told; 1 it is not: the API server cannot be asked, there is no such EtcdStorage, or a right
is missing, which the text says; 2 the command line is wrong.`,
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

/** An API server that can only be asked. Whoever tries to write is wrong. */
class ReadingKube extends Kube {
	/** What was refused for want of a right. */
	readonly denied = new Set<string>();

	override get<T extends KubeObject>(ref: Ref): Promise<T | undefined> {
		return this.#noting(super.get<T>(ref));
	}

	override list<T extends KubeObject>(
		kind: Kind,
		namespace: string,
		labelSelector = "",
	): Promise<T[]> {
		return this.#noting(super.list<T>(kind, namespace, labelSelector));
	}

	override podProxy<T>(
		namespace: string,
		pod: string,
		port: number,
		path: string,
	): Promise<T> {
		return this.#noting(super.podProxy<T>(namespace, pod, port, path));
	}

	override create = never;
	override apply = never;
	override patch = never;
	override delete = never;

	async #noting<T>(reading: Promise<T>): Promise<T> {
		try {
			return await reading;
		} catch (error) {
			if (error instanceof ApiError && error.code === 403)
				this.denied.add(error.message);
			throw error;
		}
	}
}

function never(): Promise<never> {
	return Promise.reject(new Error("this command writes nothing"));
}

/** The controller's, in its namespace: artifacts/deployment. */
const SERVICE_ACCOUNT = "etcdproxy-controller-sa";
/** How many EtcdStorages are looked at at once. */
const CONCURRENCY = 8;

class Inspection {
	readonly #options: Options;
	readonly #kube: ReadingKube;
	readonly #clock = new Clock(Date.now, () => performance.now());
	readonly #context: Context;
	/** Kinds in the controller's namespace that may not be listed. */
	readonly #unlisted: Kind[] = [];
	/** What keeps something from being told, but for rights. */
	readonly #failures: string[] = [];

	constructor(options: Options) {
		this.#options = options;
		this.#kube = new ReadingKube(
			loadKubeConfig(options.kubeconfig || undefined),
			{
				fieldManager: FIELD_MANAGER,
				onRequest: ({ date, seconds }) => this.#clock.observe(date, seconds),
			},
		);
		this.#context = {
			kube: this.#kube,
			environment: {
				namespace: options.namespace,
				coreUrls: [],
				coreCAConfigMap: options["etcd-core-ca-configmap"],
				coreCertsSecret: options["etcd-core-certs-secret"],
				proxyImage: options["etcd-proxy-image"],
			},
			storages: new Cache<EtcdStorage>(),
			owned: {
				ConfigMap: new Cache<Data>(),
				Secret: new Cache<Data>(),
				Service: new Cache<KubeObject>(),
				Deployment: new Cache<Deployment>(),
			},
			targets: new TargetReader(this.#kube),
			now: () => this.#clock.now(),
			restarts: new Map(),
			event: () => Promise.resolve(),
		};
	}

	/**
	 * Reads what the controller watches.
	 * @returns the EtcdStorages that are asked for
	 * @throws Error where there is nothing to go on with
	 */
	async read(name: string | undefined): Promise<EtcdStorage[]> {
		const { storages, owned } = this.#context;
		const [found] = await Promise.all([
			this.#storages(name),
			...Object.entries(owned).map(([kind, cache]) =>
				this.#fill(kind as Kind, cache as Cache<KubeObject>),
			),
		]);
		storages.replace(found);
		if (name === undefined)
			return found.toSorted((a, b) =>
				a.metadata.name < b.metadata.name ? -1 : 1,
			);
		const one = storages.get(name);
		if (one) return [one];
		const others = found.map((other) => other.metadata.name).sort();
		const some = others.slice(0, 10).join(", ");
		throw new Error(
			`there is no EtcdStorage "${name}"; ${others.length === 0 ? "there are none at all" : `there are: ${some}${others.length > 10 ? ` and ${others.length - 10} more` : ""}`}`,
		);
	}

	async #storages(name: string | undefined): Promise<EtcdStorage[]> {
		try {
			return await this.#kube.list<EtcdStorage>("EtcdStorage", "");
		} catch (error) {
			if (!(error instanceof ApiError)) throw error;
			if (error.code === 404)
				throw new Error(
					`${error.message}; is the CustomResourceDefinition installed? See artifacts/deployment`,
					{ cause: error },
				);
			if (error.code !== 403 || name === undefined) throw error;
			const { apiVersion } = kinds.EtcdStorage;
			const ref = { apiVersion, kind: "EtcdStorage", name };
			const one = await this.#kube.get<EtcdStorage>(ref);
			return one ? [one] : [];
		}
	}

	async #fill(kind: Kind, cache: Cache<KubeObject>): Promise<void> {
		try {
			cache.replace(await this.#kube.list(kind, this.#options.namespace));
		} catch (error) {
			if (!(error instanceof ApiError) || error.code !== 403) throw error;
			this.#unlisted.push(kind);
		}
	}

	/** Whether there is what decisions are made from. */
	get #blind(): boolean {
		return this.#unlisted.some((kind) => kind !== "Service");
	}

	plan(found: EtcdStorage[]): Promise<Report<Planned>> {
		return this.#report(found, async (storage) => {
			const { namespace } = this.#options;
			if (this.#blind) return plannedByStatus(storage, namespace);
			if (storage.metadata.deletionTimestamp)
				return plannedOnly(storage, namespace, {
					objects: [
						...(storage.status?.targets ?? []).map(cleaned),
						{ object: objectOf(storage), change: "delete" },
					],
				});
			const spec = readSpec(storage);
			if ("invalid" in spec)
				return plannedOnly(storage, namespace, {
					problems: invalidSpec(spec.invalid),
				});
			const seen = await this.#see(storage, spec);
			const { objects, problems } = await this.#changes(seen);
			return planned(seen, objects, problems);
		});
	}

	async certs(found: EtcdStorage[]): Promise<CertsReport> {
		const report = await this.#report(
			found,
			async (storage): Promise<Shown> => {
				const { namespace } = this.#options;
				if (this.#blind)
					return shownByStatus(storage, namespace, this.#context.now());
				const spec = readSpec(storage);
				if ("invalid" in spec)
					return shownOnly(
						storage,
						namespace,
						invalidSpec(spec.invalid),
						this.#context.now(),
					);
				const seen = await this.#see(storage, spec);
				return shown(seen, await this.#surroundings(seen));
			},
		);
		return { ...report, core: shownCore(this.#core(), this.#context.now()) };
	}

	/** What goes wrong with one EtcdStorage is no reason not to tell of the others. */
	async #report<T>(
		found: EtcdStorage[],
		tell: (storage: EtcdStorage) => Promise<T>,
	): Promise<Report<T>> {
		const told: (T | undefined)[] = [];
		const entries = found.entries();
		const worker = async () => {
			for (const [index, storage] of entries) {
				const status = readStatus(storage);
				try {
					told[index] = await tell({ ...storage, status });
				} catch (error) {
					if (!(error instanceof ApiError) || error.code === 0) throw error;
					this.#failures.push(`${storage.metadata.name}: ${error.message}`);
				}
			}
		};
		await Promise.all(Array.from({ length: CONCURRENCY }, worker));
		return {
			now: time(this.#context.now()),
			notes: this.#notes(),
			etcdStorages: told.filter((one) => one !== undefined),
		};
	}

	get incomplete(): boolean {
		return (
			this.#unlisted.length + this.#denied.length + this.#failures.length > 0
		);
	}

	/** What the controller itself may not do is what the report is about, and nothing that it lacks. */
	get #denied(): string[] {
		const own = `"system:serviceaccount:${this.#options.namespace}:${SERVICE_ACCOUNT}"`;
		return [...this.#kube.denied].filter((message) => !message.includes(own));
	}

	#notes(): string[] {
		const { skewMs } = this.#clock;
		const way = skewMs > 0 ? "ahead of" : "behind";
		return [
			...(skewMs === 0
				? []
				: [
						`this machine's clock is ${formatDuration(Math.abs(skewMs))} ${way} the API server's, which is used instead`,
					]),
			...this.#denied.map((message) => `not permitted: ${message}`),
			...(this.#blind
				? [
						`without ${this.#unlisted.join(", ")} in namespace ${this.#options.namespace}, only what the controller has said in status can be told`,
					]
				: this.#denied.length > 0
					? [
							"what could not be read is judged as the controller would judge it without that right; it may have it",
						]
					: []),
			...this.#failures,
		];
	}

	/** What cannot be known here, and is of no interest as long as it stays as it is. */
	#environment(storage: EtcdStorage): Environment {
		const { environment, owned } = this.#context;
		const running = owned.Deployment.get(names.workload(storage.metadata.name));
		const { image = "", args = [] } = containerOf(running) ?? {};
		const urls = args.find((arg) => arg.startsWith("--endpoints="));
		return {
			...environment,
			coreUrls: urls ? urls.slice("--endpoints=".length).split(",") : [],
			proxyImage:
				environment.proxyImage ||
				image ||
				String(flags["etcd-proxy-image"].default),
		};
	}

	async #see(storage: EtcdStorage, spec: Spec): Promise<Seen> {
		const { namespace } = this.#options;
		const context = {
			...this.#context,
			environment: this.#environment(storage),
		};
		const observation = await observe(storage, spec, context);
		const now = this.#context.now();
		const plan = decide(spec, namespace, observation.observed, now);
		return { storage, spec, namespace, observation, plan, now };
	}

	/** What a visit would write, in its order and with its conditions (visit.ts); new keys are made, and forgotten. */
	async #changes(
		seen: Seen,
	): Promise<{ objects: Change[]; problems: Problem[] }> {
		const { storage, spec, observation, plan, now } = seen;
		const { observed, coreCA, coreTrouble, fillable } = observation;
		const { owned } = this.#context;
		const environment = this.#environment(storage);
		const material = await issue(plan, observed, coreCA, now);
		const objects: Change[] = [];
		const problems = [
			...(coreTrouble ? [coreTrouble] : []),
			...observation.problems,
		];
		/** @returns whether it is, or would be, in place */
		const ensure = (
			condition: Problem["condition"],
			desired: KubeObject,
		): boolean => {
			if (this.#unlisted.includes(desired.kind as Kind)) return true;
			const cache: Cache<KubeObject> =
				owned[desired.kind as keyof typeof owned];
			const live = cache.get(desired.metadata.name);
			if (live && !isOwnedBy(live, storage)) {
				problems.push(
					nameTaken(
						condition,
						storage,
						live,
						desired.kind,
						environment.namespace,
					),
				);
				return false;
			}
			const change = changeOf(desired, live);
			if (change) objects.push({ object: objectOf(desired), change });
			return true;
		};
		if (!storage.metadata.finalizers?.includes(FINALIZER))
			objects.push({ object: objectOf(storage), change: "configure" });
		const kept = domains.map((domain) =>
			ensure(
				"CertificatesReady",
				signerSecret(storage, environment, domain, material.signers[domain]),
			),
		);
		if (kept.every((ok) => ok)) {
			const args = [storage, environment, fillable, material] as const;
			const fill = (list: Data[]): boolean =>
				list
					.map((desired) => {
						const own =
							desired.metadata.namespace === environment.namespace &&
							desired.metadata.ownerReferences;
						if (own) return ensure("CertificatesReady", desired);
						const key = `${desired.kind} ${desired.metadata.namespace}/${desired.metadata.name}`;
						if (!isSubset(desired, observation.targets.get(key)))
							objects.push({ object: objectOf(desired), change: "configure" });
						return true;
					})
					.every((ok) => ok);
			const delivered = fill(bundles(...args)) && fill(certificates(...args));
			for (const id of Object.keys(observed.leaves))
				if (!material.leaves[id]) problems.push(signerPending(id));
			const running = owned.Deployment.get(names.workload(spec.name));
			if (delivered && (!coreTrouble || running))
				for (const desired of workload(
					storage,
					environment,
					spec,
					material,
					coreTrouble && running,
				))
					ensure("Deployed", desired);
		}
		objects.push(
			...(storage.status?.targets ?? [])
				.filter((old) => !spec.targets.some((one) => sameTarget(one, old)))
				.map(cleaned),
		);
		return { objects, problems };
	}

	/** What `certs` wants to know beyond what a visit does. */
	async #surroundings(seen: Seen): Promise<Surroundings> {
		const { storage, spec, observation, plan } = seen;
		const { observed, fillable, targets, coreTrouble } = observation;
		const { owned } = this.#context;
		const { namespace } = this.#options;
		const own = <T extends KubeObject>(found: T | undefined) =>
			found && isOwnedBy(found, storage) ? found : undefined;
		const found: Bundle[] = [
			readBundle(
				"client",
				`ConfigMap ${namespace}/${names.clientCA(spec.name)}`,
				"client-ca.crt",
				own(owned.ConfigMap.get(names.clientCA(spec.name))),
			),
			...spec.targets
				.filter((target) => target.kind === "ConfigMap")
				.map((target) => ({
					...readBundle(
						"serving",
						describe(target),
						"serving-ca.crt",
						targets.get(targetKey(target)),
					),
					unknown: !targets.has(targetKey(target)),
				})),
		];
		const chains = new Map<string, CertificateFacts[]>();
		const chainOf = (id: string, secret: Data | undefined) => {
			const text = secret && secretText(secret, "tls.crt");
			if (text) chains.set(id, readPem(text) ?? []);
		};
		chainOf("server", own(owned.Secret.get(names.serverCert(spec.name))));
		for (const target of fillable)
			if (target.kind === "Secret")
				chainOf(
					`client/${target.namespace}/${target.name}`,
					targets.get(targetKey(target)),
				);
		const all = domains.flatMap((domain) => {
			const { trusted, previous } = observed.signers[domain];
			return [...trusted, ...(previous ? [previous.facts] : [])];
		});
		const proven = await signatures([
			...all,
			...found.flatMap((one) => one.authorities),
			...[...chains.values()].flat(),
		]);
		const pending = Object.keys(observed.leaves).filter(
			(id) =>
				"missing" in (observed.leaves[id] ?? {}) &&
				!plan.leaves.some((leaf) => leaf.id === id),
		);
		return {
			bundles: found,
			proxies: await this.#proxies(seen),
			chains,
			signed: (certificate, issuer) => proven.has(pairOf(certificate, issuer)),
			problems: [
				...(coreTrouble ? [coreTrouble] : []),
				...observation.problems,
				...pending.map(signerPending),
			],
		};
	}

	async #proxies({ spec }: Seen): Promise<Proxies> {
		const { namespace } = this.#options;
		const { owned } = this.#context;
		const bundle =
			owned.ConfigMap.get(names.clientCA(spec.name))?.data?.["client-ca.crt"] ??
			"";
		const behind = await proxiesBehind(this.#kube, {
			namespace,
			name: spec.name,
			bundle,
			templateHash: hash(bundle),
		});
		try {
			const pods = await this.#kube.list<Pod>(
				"Pod",
				namespace,
				`apiserver=${spec.name}`,
			);
			const live = pods.filter(
				({ status }) => !["Succeeded", "Failed"].includes(status?.phase ?? ""),
			);
			return { pods: live.map(objectOf), behind };
		} catch (error) {
			if (!(error instanceof ApiError) || error.code !== 403) throw error;
			return { pods: undefined, behind };
		}
	}

	#core(): CoreCertificate[] {
		const { environment, owned } = this.#context;
		const { namespace, coreCAConfigMap, coreCertsSecret } = environment;
		const secret = owned.Secret.get(coreCertsSecret);
		const coreCA = owned.ConfigMap.get(coreCAConfigMap)?.data?.["ca.crt"] ?? "";
		const [client] =
			readPem((secret && secretText(secret, "tls.crt")) ?? "") ?? [];
		return [
			...(client
				? [
						{
							certificate: "core-client" as const,
							object: `Secret ${namespace}/${coreCertsSecret}`,
							facts: client,
						},
					]
				: []),
			...(readPem(coreCA) ?? []).map((facts) => ({
				certificate: "core-ca" as const,
				object: `ConfigMap ${namespace}/${coreCAConfigMap}`,
				facts,
			})),
		];
	}
}

interface Container {
	image?: string;
	args?: string[];
}

const containerOf = (deployment: Deployment | undefined) =>
	(
		deployment?.spec?.template as
			| { spec?: { containers?: Container[] } }
			| undefined
	)?.spec?.containers?.[0];

const objectOf = ({ kind, metadata: { namespace, name } }: KubeObject) =>
	`${kind} ${namespace ? `${namespace}/` : ""}${name}`;

const cleaned = (target: TargetStatus): Change => ({
	object: describe(target),
	change: "clean",
});

/** What visit.ts would do about one of our own objects. */
function changeOf(
	desired: KubeObject,
	live: KubeObject | undefined,
): Change["change"] | undefined {
	if (!live) return "create";
	if (!takeOver(live.metadata.managedFields) && isSubset(desired, live))
		return undefined;
	return (live as Data).immutable ? "replace" : "configure";
}

/** undefined where a certificate is damaged, or none is there. */
function readPem(text: string): CertificateFacts[] | undefined {
	try {
		return text === "" ? undefined : parseCertificates(text);
	} catch (error) {
		if (error instanceof UnreadableError) return undefined;
		throw error;
	}
}

function readBundle(
	domain: Bundle["domain"],
	object: string,
	key: string,
	found: Data | undefined,
): Bundle {
	const text = found?.data?.[key] ?? "";
	const authorities = readPem(text);
	const trouble = !found
		? "is not there"
		: text === ""
			? "has no bundle"
			: authorities
				? undefined
				: "is damaged";
	return {
		domain,
		object,
		key,
		authorities: authorities ?? [],
		unknown: false,
		...(trouble && { trouble }),
	};
}

const pairOf = (certificate: CertificateFacts, issuer: CertificateFacts) =>
	`${certificate.fingerprint} ${issuer.fingerprint}`;

/** Which of these has signed which, as `pairOf`. */
async function signatures(all: CertificateFacts[]): Promise<Set<string>> {
	const unique = [
		...new Map(all.map((facts) => [facts.fingerprint, facts])).values(),
	];
	const proven = new Set<string>();
	for (const issuer of unique.filter((one) => one.isCA))
		for (const certificate of unique)
			if (
				certificate.issuer === issuer.subject &&
				(await verifies(certificate.pem, issuer.pem))
			)
				proven.add(pairOf(certificate, issuer));
	return proven;
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
 * @throws UsageError; ApiError; Error when the kubeconfig is no good or there is no such EtcdStorage
 */
export async function runInspect(
	command: Command,
	args: string[],
): Promise<void> {
	const given = parseInspect(args);
	if ("help" in given) return print(inspectHelp(command));
	const { options, name } = given;
	const inspection = new Inspection(options);
	const found = await inspection.read(name);
	const json = options.output === "json";
	const encode = (report: Report<unknown>) =>
		`${JSON.stringify(report, undefined, "\t")}\n`;
	if (command === "plan") {
		const report = await inspection.plan(found);
		await print(json ? encode(report) : planText(report, found.length === 1));
	} else {
		const report = await inspection.certs(found);
		await print(json ? encode(report) : certsText(report));
	}
	// Connections that are kept would keep the process.
	process.exit(inspection.incomplete ? 1 : 0);
}
