/**
 * What tests of the replacement of signers share. Bundles, certificates and phases are followed by watches, so that none
 * that was handed out is missed; what a kubelet and the Deployment controller would tell is told by hand.
 */
import { expect } from "bun:test";
import { X509Certificate } from "node:crypto";
import type { Consumer, EtcdStorage, RotationStatus } from "../etcdstorage.ts";
import { Kube, loadKubeConfig } from "../kube.ts";
import { type Domain, domains } from "../lifetimes.ts";
import type { Data } from "../manifests.ts";
import type { Phase } from "../rotation.ts";
import { opensslVerify, secretText } from "./client.ts";
import { apiServerNamespace, eventsOf, NAMESPACE, until } from "./harness.ts";
import type { Stage } from "./stage.ts";

export const target = (name: string) => `k8s-${name}`;
export const merge = (patch: object) => [
	"--type=merge",
	"-p",
	JSON.stringify(patch),
];

/** The parts of a domain. */
export const parts = {
	client: {
		purpose: "sslclient",
		bundle: (name: string) =>
			["ConfigMap", `${name}-ca-cert`, NAMESPACE, "client-ca.crt"] as const,
		leaf: (name: string) =>
			["Secret", "etcd-client-cert", target(name)] as const,
	},
	serving: {
		purpose: "sslserver",
		bundle: (name: string) =>
			["ConfigMap", "etcd-serving-ca", target(name), "serving-ca.crt"] as const,
		leaf: (name: string) =>
			["Secret", `${name}-server-cert`, NAMESPACE] as const,
	},
} as const;

export const certificates = (pem: string) =>
	pem
		.split(/(?<=-----END CERTIFICATE-----\n)/)
		.filter((one) => one !== "")
		.map((one) => new X509Certificate(one));
export const accepts = (domain: Domain, chain: string, trusted: string) =>
	opensslVerify(parts[domain].purpose, chain, trusted);

/** Everything that was handed out, each text once, the oldest first. */
export interface Handed {
	leaves: string[];
	bundles: string[];
	/** The CAs that were in `tls.crt` and in `next.crt`. */
	current: string[];
	next: string[];
	/** How often there was no signer Secret. */
	lost: number;
}

/** Expects of every certificate that was handed out that it was accepted with every bundle that was. */
export function expectAllAccepted(
	domain: Domain,
	{ leaves, bundles }: Handed,
	[leafCount, bundleCount]: [number, number],
): void {
	expect([leaves.length, bundles.length]).toEqual([leafCount, bundleCount]);
	for (const [i, chain] of leaves.entries())
		for (const [j, trusted] of bundles.entries())
			expect([i, j, accepts(domain, chain, trusted)]).toEqual([i, j, "OK"]);
}

/** Who reads the serving CA: Deployments of one pod each. */
export const consumers = (name: string, count: number): Consumer[] =>
	Array.from({ length: count }, (_, index) => ({
		...{ kind: "Deployment", name: `api-${index + 1}` },
		namespace: target(name),
	}));
export const consumerRole = (name: string): object[] => [
	{
		apiVersion: "rbac.authorization.k8s.io/v1",
		kind: "Role",
		metadata: { name: "etcdproxy-restart", namespace: target(name) },
		rules: [
			{
				apiGroups: ["apps"],
				resources: ["deployments"],
				resourceNames: ["api-1", "api-2"],
				verbs: ["get", "patch"],
			},
		],
	},
	{
		apiVersion: "rbac.authorization.k8s.io/v1",
		kind: "RoleBinding",
		metadata: { name: "etcdproxy-restart", namespace: target(name) },
		roleRef: {
			apiGroup: "rbac.authorization.k8s.io",
			kind: "Role",
			name: "etcdproxy-restart",
		},
		subjects: [
			{
				kind: "ServiceAccount",
				name: "etcdproxy-controller-sa",
				namespace: NAMESPACE,
			},
		],
	},
];
export const consumer = (
	name: string,
	which: string,
	replicas = 1,
): object => ({
	apiVersion: "apps/v1",
	kind: "Deployment",
	metadata: { name: which, namespace: target(name) },
	spec: {
		replicas,
		selector: { matchLabels: { app: which } },
		template: {
			metadata: { labels: { app: which } },
			spec: { containers: [{ name: "api", image: "none" }] },
		},
	},
});

/** A pod of a proxy: pending for ever, as there is no kubelet. */
export const proxyPod = (name: string): object => ({
	apiVersion: "v1",
	kind: "Pod",
	metadata: {
		...{ name: `etcd-${name}-0`, namespace: NAMESPACE },
		labels: { apiserver: name },
	},
	spec: {
		securityContext: {
			...{ runAsNonRoot: true, runAsUser: 65532 },
			seccompProfile: { type: "RuntimeDefault" },
		},
		serviceAccountName: "etcdproxy-sa",
		automountServiceAccountToken: false,
		containers: [
			{
				...{ name: "etcdproxy", image: "none" },
				securityContext: {
					allowPrivilegeEscalation: false,
					capabilities: { drop: ["ALL"] },
				},
			},
		],
	},
});
/** The text cut off in the middle of its first certificate or key, also where there are two. */
export const half = (text: string) =>
	text.slice(0, Math.floor(text.length * 0.4));

/** @param on filled before the first of these is called, and followed from `follow` to `end` */
export function rotations(on: Pick<Stage, "cluster" | "api">) {
	const seen = new Map<string, Data & { status?: EtcdStorage["status"] }>();
	const listeners = new Set<(object: Data, gone: boolean) => void>();
	const ended = new AbortController();

	/** Looks over the API server's shoulder. */
	async function follow(): Promise<void> {
		const kube = new Kube(loadKubeConfig(on.cluster.kubeconfig), {
			fieldManager: "test",
		});
		const see = (object: Data, gone = false) => {
			const { kind, metadata } = object;
			const key = `${kind} ${metadata.namespace}/${metadata.name}`;
			if (gone) seen.delete(key);
			else seen.set(key, object);
			for (const listener of listeners) listener(object, gone);
		};
		await Promise.all(
			(["ConfigMap", "Secret", "EtcdStorage"] as const).map(
				(kind) =>
					new Promise<void>((resolve) => {
						void kube.follow<Data>(kind, {
							onSync(objects) {
								for (const one of objects) see(one);
								resolve();
							},
							onEvent: (type, object) => see(object, type === "DELETED"),
							signal: ended.signal,
						});
					}),
			),
		);
	}

	/** Notes from now on what is handed out for an EtcdStorage. */
	function record(name: string): Record<Domain, Handed> {
		const none = (): Handed => ({
			...{ leaves: [], bundles: [], current: [], next: [], lost: 0 },
		});
		const handed = { client: none(), serving: none() };
		const note = (list: string[], text: string | undefined) => {
			if (text && !list.includes(text)) list.push(text);
		};
		const see = (object: Data, gone: boolean) => {
			const { kind, metadata, data } = object;
			const is = (...[of, called, where]: readonly string[]) =>
				kind === of && metadata.name === called && metadata.namespace === where;
			for (const domain of domains) {
				const [of, called, where, key] = parts[domain].bundle(name);
				if (is(of, called, where)) note(handed[domain].bundles, data?.[key]);
				if (is(...parts[domain].leaf(name)))
					note(handed[domain].leaves, secretText(object, "tls.crt"));
				if (!is("Secret", `${name}-${domain}-signer`, NAMESPACE)) continue;
				if (gone) handed[domain].lost++;
				note(handed[domain].current, secretText(object, "tls.crt"));
				note(handed[domain].next, secretText(object, "next.crt"));
			}
		};
		for (const object of seen.values()) see(object, false);
		listeners.add(see);
		return handed;
	}

	const kubectl = (...args: string[]) => on.cluster.kubectl(args);
	const own = (...args: string[]) => kubectl("-n", NAMESPACE, ...args);

	const rotate = (name: string, domain: Domain, reason = "audit") =>
		kubectl(
			...["annotate", "--overwrite", "etcdstorage", name],
			`etcd.xmudrii.com/rotate-${domain}=${reason}`,
		);

	const rotation = (name: string, domain: Domain): RotationStatus | undefined =>
		seen
			.get(`EtcdStorage undefined/${name}`)
			?.status?.certificates?.find((one) => one.name === `${domain}-signer`)
			?.rotation;

	/** Waits until a domain of another CA than the given one is in a phase. */
	const reaches = (
		name: string,
		domain: Domain,
		wanted: Phase,
		{ not = "", waiting = /^/ }: { not?: string; waiting?: RegExp } = {},
	): Promise<RotationStatus> =>
		until(
			async () => {
				const found = rotation(name, domain);
				return (
					found?.phase === wanted &&
					found.generation !== not &&
					waiting.test(found.waitingFor?.join("; ") ?? "") &&
					found
				);
			},
			`the ${domain} CA of ${name} is in ${wanted}, waiting for ${waiting}`,
			60_000,
		);

	const generation = (name: string, domain: Domain) =>
		rotation(name, domain)?.generation ?? "";
	/** Also when it is still to be seen. */
	const settled = (name: string, domain: Domain) =>
		until(() => generation(name, domain), `a ${domain} CA of ${name} is seen`);
	const signer = (name: string, domain: Domain): Promise<Data> =>
		on.api.get("Secret", `${name}-${domain}-signer`);
	const bundle = async (name: string, domain: Domain): Promise<string> => {
		const [kind, object, namespace, key] = parts[domain].bundle(name);
		return (await on.api.get(kind, object, namespace))?.data?.[key] ?? "";
	};
	const leaf = async (name: string, domain: Domain): Promise<string> => {
		const [kind, object, namespace] = parts[domain].leaf(name);
		return secretText(await on.api.get(kind, object, namespace), "tls.crt");
	};
	/** Expects a signer's Secret to hold one signer, whole, and all certificates to be its. */
	async function expectWhole(name: string, domain: Domain): Promise<void> {
		const secret = await signer(name, domain);
		const keys = Object.keys(secret.data ?? {});
		expect(keys).toContain("tls.key");
		expect(keys).not.toContain("next.crt");
		const ca = new X509Certificate(secretText(secret, "tls.crt"));
		const [first, cross] = certificates(await leaf(name, domain));
		expect(first?.verify(ca.publicKey)).toBe(true);
		// What completes the chain is the same signer, certified by another.
		if (cross) expect(cross.publicKey.equals(ca.publicKey)).toBe(true);
		expect(accepts(domain, await leaf(name, domain), ca.toString())).toBe("OK");
		const trusted = await bundle(name, domain);
		expect(accepts(domain, await leaf(name, domain), trusted)).toBe("OK");
	}

	/**
	 * The phases that events tell of, in the order in which phases come: of one second, the order is not known.
	 * @param last is waited for: the status is written before events are
	 */
	async function phaseEvents(
		name: string,
		of: string,
		last: string,
	): Promise<string[]> {
		const order = ["Publish", "Sign", "Spread", "Retire", "Done"];
		await until(
			async () =>
				(await eventsOf(on.cluster, name)).some((event) =>
					new RegExp(`Rotation${last}: \\w+ CA ${of}: `).test(event),
				),
			`the event of ${last} is there`,
		);
		const events = await eventsOf(on.cluster, name);
		return events
			.map((event) => /^Normal Rotation(\w+): \w+ CA (\w+): /.exec(event))
			.filter((match) => match?.[2] === of)
			.map((match) => match?.[1] ?? "")
			.sort((a, b) => order.indexOf(a) - order.indexOf(b));
	}

	/** What the Deployment controller says of a rollout, as `kubectl rollout status` reads it. */
	async function says(
		name: string,
		which: string,
		what: "rolled out" | "rolling out" | "stuck",
		replicas = 1,
	): Promise<void> {
		const { metadata } = await on.api.get("Deployment", which, target(name));
		const done = what === "rolled out" ? replicas : 0;
		const reason = {
			"rolled out": "NewReplicaSetAvailable",
			"rolling out": "ReplicaSetUpdated",
			stuck: "ProgressDeadlineExceeded",
		}[what];
		const patch = {
			status: {
				...{ observedGeneration: metadata.generation, replicas },
				...{ updatedReplicas: done, readyReplicas: replicas },
				availableReplicas: replicas,
				conditions: [
					{
						...{ type: "Progressing", reason },
						status: what === "stuck" ? "False" : "True",
					},
				],
			},
		};
		await kubectl(
			...["-n", target(name), "patch", "deployment", which],
			...["--subresource=status", ...merge(patch)],
		);
	}

	/** For which CA the controller has restarted it; "" for none. */
	const restartedFor = async (name: string, which: string): Promise<string> => {
		const { spec } = await on.api.get("Deployment", which, target(name));
		const annotations = spec.template.metadata.annotations ?? {};
		return annotations["etcd.xmudrii.com/serving-ca"] ?? "";
	};

	/** An EtcdStorage whose serving CA so many Deployments read, all rolled out. */
	async function withConsumers(name: string, count: number): Promise<void> {
		const list = consumers(name, count);
		await on.cluster.apply(
			...apiServerNamespace(target(name)),
			...consumerRole(name),
			...list.map((one) => consumer(name, one.name)),
		);
		for (const one of list) await says(name, one.name, "rolled out");
		await on.api.tenant(name, { consumers: list });
	}

	/** Lets the controller restart them, one after the other, and tells it that they are. */
	async function rollAll(name: string, count: number, ca: string) {
		for (const one of consumers(name, count)) {
			await until(
				async () => (await restartedFor(name, one.name)) === ca,
				`${one.name} of ${name} is restarted`,
				60_000,
			);
			await says(name, one.name, "rolled out");
		}
	}

	const deleteProxy = (name: string) =>
		own("delete", "pod", `etcd-${name}-0`, "--force", "--grace-period=0");

	const blocked = (name: string, pattern: RegExp) =>
		on.api.condition(name, "RotationBlocked", pattern, 60_000);
	const makeImmutable = (name: string) =>
		kubectl(
			...["-n", target(name), "patch", "configmap", "etcd-serving-ca"],
			...merge({ immutable: true }),
		);
	/** Deletes it and creates it again without the flag, and without content. */
	async function recreate(name: string): Promise<void> {
		const where = ["-n", target(name)];
		await kubectl(...where, "delete", "configmap", "etcd-serving-ca");
		await kubectl(...where, "create", "configmap", "etcd-serving-ca");
	}
	const damage = (secret: string, data: Record<string, string>) =>
		own("patch", "secret", secret, ...merge({ data }));

	return {
		follow,
		end: () => ended.abort(),
		record,
		kubectl,
		own,
		rotate,
		rotation,
		reaches,
		generation,
		settled,
		signer,
		bundle,
		leaf,
		expectWhole,
		phaseEvents,
		says,
		restartedFor,
		withConsumers,
		rollAll,
		deleteProxy,
		blocked,
		makeImmutable,
		recreate,
		damage,
	};
}
