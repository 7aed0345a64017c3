/**
 * What the Go controller of 2018 leaves behind for an EtcdStorage, and how it was installed. From its source and from what
 * it wrote when it ran on a control plane of today.
 * https://github.com/xmudrii/etcdproxy-controller/tree/ec1137578e75c2e6e172f826d135bd4e0aa7b945
 */
import { X509Certificate } from "node:crypto";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { EtcdStorage } from "../etcdstorage.ts";
import { base64 } from "./client.ts";
import type { ControlPlane } from "./cluster/controlplane.ts";
import { run } from "./cluster/processes.ts";
import { etcdStorage, NAMESPACE } from "./harness.ts";
import { target } from "./rotating.ts";

/** The name of its program; so its client was called, too, by the API server. */
const MANAGER = "etcdproxy-controller";

const DAY = 86_400_000;

type Kubectl = ControlPlane["kubectl"];

/** All certificates of one EtcdStorage, PEM. The CAs' keys were thrown away as soon as they had signed. */
export interface Material {
	clientCA: string;
	servingCA: string;
	/** With its CA behind it. */
	server: string;
	serverKey: string;
	client: string;
	clientKey: string;
	/** CAs that nothing was handed out of. */
	unused: string;
}

/** When the certificates were issued and when they end, milliseconds since the epoch. */
export interface Dates {
	issued: number;
	expires: number;
}

/** OpenSSL keeps to 64 characters in a common name unless told; Go does not. */
const CONFIG = `
openssl_conf = init
[init]
stbl_section = strings
[strings]
CN = min:1,max:200,mask:PRINTABLESTRING
[req]
distinguished_name = name
[name]
[ca]
default_ca = all
[all]
database = index
serial = serial
new_certs_dir = .
default_md = sha256
unique_subject = no
policy = policy
[policy]
commonName = supplied
`;
const usages = "critical,digitalSignature,keyEncipherment";
const extensions = {
	ca: `keyUsage=${usages},keyCertSign\nbasicConstraints=critical,CA:TRUE`,
	server: `keyUsage=${usages}\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=critical,CA:FALSE`,
	client: `keyUsage=${usages}\nextendedKeyUsage=clientAuth\nbasicConstraints=critical,CA:FALSE`,
};

interface Profile {
	/** Default: itself. */
	by?: string;
	host?: string;
	/** Default: a new one. */
	key?: string;
	dates?: Dates;
}

/** RSA certificates as Go 1.10 made them, without key identifiers; by openssl. */
class Issuer {
	readonly #dir: string;
	readonly #dates: Dates;
	#count = 0;

	constructor(dir: string, dates: Dates) {
		this.#dir = dir;
		this.#dates = dates;
	}

	/** @returns the files' names, without their extensions: `.crt`, `.key` */
	async issue(
		kind: keyof typeof extensions,
		commonName: string,
		{ by, host, key, dates = this.#dates }: Profile = {},
	): Promise<string> {
		const file = `${kind}-${++this.#count}`;
		const names = host ? `\nsubjectAltName=DNS:${host}` : "";
		const none = "subjectKeyIdentifier=none\nauthorityKeyIdentifier=none";
		await writeFile(
			join(this.#dir, `${file}.ext`),
			`${extensions[kind]}\n${none}${names}`,
		);
		await writeFile(join(this.#dir, "openssl.cnf"), CONFIG);
		await writeFile(join(this.#dir, "index"), "");
		await writeFile(join(this.#dir, "serial"), `${10 + (this.#count % 90)}`);
		const openssl = (...args: string[]) =>
			run(["openssl", ...args], {
				cwd: this.#dir,
				env: { OPENSSL_CONF: "openssl.cnf" },
			});
		const keyFile = `${key ?? file}.key`;
		if (!key) await openssl("genrsa", "-traditional", "-out", keyFile, "2048");
		await openssl(
			...["req", "-new", "-key", keyFile],
			...["-subj", `/CN=${commonName}`, "-out", `${file}.csr`],
		);
		const { issued, expires } = dates;
		await openssl(
			...["ca", "-batch", "-notext", "-preserveDN"],
			...(by
				? ["-cert", `${by}.crt`, "-keyfile", `${by}.key`]
				: ["-selfsign", "-keyfile", keyFile]),
			...["-startdate", asn1Time(issued - 1000), "-enddate", asn1Time(expires)],
			...["-extfile", `${file}.ext`],
			...["-in", `${file}.csr`, "-out", `${file}.crt`],
		);
		return file;
	}

	read = (file: string) => readFile(join(this.#dir, file), "utf8");
}

/** GeneralizedTime: `20181127101500Z`. */
const asn1Time = (ms: number) =>
	new Date(ms).toISOString().replace(/\.\d+|\W|T/g, "");

/** @param unused how many CAs there are that nothing was handed out of, made later */
export async function material(
	name: string,
	dates: Dates,
	unused = 0,
): Promise<Material> {
	const dir = await mkdtemp(join(tmpdir(), "predecessor-"));
	try {
		const issuer = new Issuer(dir, dates);
		const host = `etcd-${name}.${NAMESPACE}.svc`;
		const seconds = Math.floor(dates.issued / 1000);
		const signer = (role: string, more = 0, profile: Profile = {}) =>
			issuer.issue("ca", `${host}-${role}-signer-${seconds + more}`, profile);
		const clientCA = await signer("client");
		const servingCA = await signer("server");
		const server = await issuer.issue(
			"server",
			`${host}-serving-cert-${seconds}`,
			{ by: servingCA, host },
		);
		const client = await issuer.issue(
			"client",
			`client-${target(name)}-etcd-client-cert`,
			{ by: clientCA },
		);
		const later = { issued: Date.now(), expires: Date.now() + 30 * DAY };
		const others: string[] = [];
		for (let count = 1; count <= unused; count++)
			others.unshift(
				await signer("client", count, {
					dates: later,
					...(others[0] && { key: others.at(-1) as string }),
				}),
			);
		const { read } = issuer;
		const servingPem = await read(`${servingCA}.crt`);
		return {
			clientCA: await read(`${clientCA}.crt`),
			servingCA: servingPem,
			server: (await read(`${server}.crt`)) + servingPem,
			serverKey: await read(`${server}.key`),
			client: await read(`${client}.crt`),
			clientKey: await read(`${client}.key`),
			unused: (await Promise.all(others.map((one) => read(`${one}.crt`)))).join(
				"",
			),
		};
	} finally {
		await rm(dir, { recursive: true });
	}
}

export interface Left {
	material: Material;
	spec?: Partial<EtcdStorage["spec"]>;
	/** Of the proxies. */
	image?: string;
	coreUrl?: string;
	/** False where the image has no shell: the probe would end the container. */
	probe?: boolean;
	/** From before the API server noted whose fields are whose (Kubernetes 1.18). */
	unmanaged?: boolean;
	/** Deployment and Service have lost their owner, too. */
	ownerless?: boolean;
}

/** Deployment, Service, ConfigMap and Secret, as they are created. The latter two never had an owner. */
export function objects(
	name: string,
	uid: string,
	{ material, image, coreUrl, probe = true, ownerless = false }: Left,
): object[] {
	const labels = { apiserver: name };
	const metadata = (object: string, owned: boolean) => ({
		...{ name: object, namespace: NAMESPACE },
		...(owned && {
			ownerReferences: [
				{
					apiVersion: "etcd.xmudrii.com/v1alpha1",
					...{ kind: "EtcdStorage", name, uid },
					...{ blockOwnerDeletion: true, controller: true },
				},
			],
		}),
	});
	const volumes = [
		["etcd-coreserving-cert", "/etc/coreetcd-certs/client", "secret"],
		["etcd-coreserving-ca", "/etc/coreetcd-certs/ca", "configMap"],
		[`${name}-ca-cert`, "/etc/etcdproxy-certs/ca", "configMap"],
		[`${name}-server-cert`, "/etc/etcdproxy-certs/server", "secret"],
	] as const;
	const container = {
		name: "etcdproxy",
		image: image ?? "quay.io/coreos/etcd:v3.2.24",
		command: ["/usr/local/bin/etcd", "grpc-proxy", "start"],
		args: [
			`--endpoints=${coreUrl ?? "https://etcd-svc-1.etcd.svc:2379"}`,
			`--namespace=/${name}/`,
			"--listen-addr=0.0.0.0:2379",
			"--cacert=/etc/coreetcd-certs/ca/ca.crt",
			"--cert=/etc/coreetcd-certs/client/tls.crt",
			"--key=/etc/coreetcd-certs/client/tls.key",
			"--trusted-ca-file=/etc/etcdproxy-certs/ca/client-ca.crt",
			"--cert-file=/etc/etcdproxy-certs/server/tls.crt",
			"--key-file=/etc/etcdproxy-certs/server/tls.key",
		],
		ports: [{ name: "etcd", protocol: "TCP", containerPort: 2379 }],
		volumeMounts: volumes.map(([volume, mountPath]) => ({
			...{ name: volume, mountPath, readOnly: true },
		})),
		...(probe && {
			livenessProbe: {
				exec: {
					command: ["/bin/sh", "-ec", "ETCDCTL_API=3 etcdctl get foo"],
				},
				...{ initialDelaySeconds: 10, periodSeconds: 30, timeoutSeconds: 10 },
				...{ successThreshold: 1, failureThreshold: 3 },
			},
		}),
	};
	return [
		{
			...{ apiVersion: "v1", kind: "ConfigMap" },
			metadata: metadata(`${name}-ca-cert`, false),
			// The newest first.
			data: { "client-ca.crt": material.unused + material.clientCA },
		},
		{
			...{ apiVersion: "v1", kind: "Secret", type: "kubernetes.io/tls" },
			metadata: {
				...metadata(`${name}-server-cert`, false),
				annotations: notes(material.server),
			},
			data: {
				"tls.crt": base64(material.server),
				"tls.key": base64(material.serverKey),
			},
		},
		{
			...{ apiVersion: "apps/v1", kind: "Deployment" },
			metadata: metadata(`etcd-${name}`, !ownerless),
			spec: {
				replicas: 3,
				selector: { matchLabels: labels },
				template: {
					metadata: { labels },
					spec: {
						containers: [container],
						volumes: volumes.map(([volume, , source]) => ({
							name: volume,
							[source]: {
								[source === "secret" ? "secretName" : "name"]: volume,
							},
						})),
					},
				},
			},
		},
		{
			...{ apiVersion: "v1", kind: "Service" },
			metadata: metadata(`etcd-${name}`, !ownerless),
			spec: {
				selector: labels,
				ports: [{ protocol: "TCP", port: 2379, targetPort: 2379 }],
			},
		},
	];
}

/** Its annotations about a certificate; the issuer is only a common name. */
function notes(pem: string) {
	const { validTo, issuer } = new X509Certificate(pem);
	return {
		"etcd.xmudrii.com/certificate-expiry-date": `${new Date(validTo).toISOString().slice(0, 19)}Z`,
		"etcd.xmudrii.com/certificate-signed-by": issuer.replace(/^CN=/, ""),
	};
}

/** What it fills a target with: of a Secret, or a ConfigMap. */
export const filling = {
	Secret: ({ client, clientKey }: Material) => ({
		metadata: { annotations: notes(client) },
		data: { "tls.crt": base64(client), "tls.key": base64(clientKey) },
	}),
	// The server certificate, too: it was behind the CA when that was to be appended.
	ConfigMap: ({ server, unused }: Material) => {
		const { "etcd.xmudrii.com/certificate-signed-by": signedBy } =
			notes(server);
		return {
			metadata: {
				annotations: { "etcd.xmudrii.com/certificate-signed-by": signedBy },
			},
			data: { "serving-ca.crt": server + unused },
		};
	},
};

/** Fills a target. */
export const fill = (
	kubectl: Kubectl,
	kind: "ConfigMap" | "Secret",
	object: string,
	namespace: string,
	material: Material,
) =>
	kubectl([
		...["-n", namespace, "patch", kind, object, "--type=merge"],
		...[`--field-manager=${MANAGER}`],
		...["-p", JSON.stringify(filling[kind](material))],
	]);

/** An EtcdStorage with all that belongs to it; the targets of its namespace must be there. */
export async function leave(
	kubectl: Kubectl,
	name: string,
	left: Left,
): Promise<void> {
	const create = async (object: object, manager?: string): Promise<string> =>
		kubectl(
			[
				...["create", "-f", "-", "-o", "jsonpath={.metadata.uid}"],
				...(manager ? [`--field-manager=${manager}`] : []),
			],
			JSON.stringify(object),
		);
	const uid = await create(etcdStorage(name, target(name), left.spec));
	for (const object of objects(name, uid, left)) await create(object, MANAGER);
	const { material } = left;
	const namespace = target(name);
	await fill(kubectl, "Secret", "etcd-client-cert", namespace, material);
	await fill(kubectl, "ConfigMap", "etcd-serving-ca", namespace, material);
	const condition = {
		...{ Type: "Deployed", Status: "True", Reason: "Deployed" },
		Message: "etcdproxy replicaset and service created",
		LastTransitionTime: "2018-11-27T10:15:00Z",
	};
	await kubectl([
		...["patch", "etcdstorage", name, "--subresource=status", "--type=merge"],
		`--field-manager=${MANAGER}`,
		...["-p", JSON.stringify({ status: { Conditions: [condition] } })],
	]);
	if (!left.unmanaged) return;
	for (const object of [
		...[`configmap/${name}-ca-cert`, `secret/${name}-server-cert`],
		...[`deployment/etcd-${name}`, `service/etcd-${name}`],
	])
		await kubectl([
			...["-n", NAMESPACE, "patch", object, "--type=merge"],
			...["-p", '{"metadata":{"managedFields":[{}]}}'],
		]);
}

const CRD = "etcdstorages.etcd.xmudrii.com";
/** Where the API server keeps its CRD, in etcd. */
export const crdKey = `/registry/apiextensions.k8s.io/customresourcedefinitions/${CRD}`;

/**
 * Its CRD as it lies in etcd: of an API version that is not served any more, so that it can only be put there. API servers
 * read it all the same, and show it as v1.
 */
export function storedCrd(): object {
	const duration = {
		...{ type: "string", pattern: "^[0-9]*[.]?[0-9]*(ns|us|ms|m|s|h)" },
	};
	const label = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
	const targets = {
		type: "array",
		items: {
			...{ type: "object", required: ["name", "namespace"] },
			properties: {
				name: { type: "string", pattern: `^${label}(\\.${label})*$` },
				namespace: { type: "string", pattern: `^${label}$` },
			},
		},
	};
	const spec = {
		caCertConfigMap: targets,
		clientCertSecret: targets,
		signingCertificateValidity: duration,
		servingCertificateValidity: duration,
		clientCertificateValidity: duration,
	};
	return {
		apiVersion: "apiextensions.k8s.io/v1beta1",
		kind: "CustomResourceDefinition",
		metadata: {
			...{ name: CRD, uid: crypto.randomUUID(), generation: 1 },
			creationTimestamp: "2018-11-27T10:00:00Z",
		},
		spec: {
			...{ group: "etcd.xmudrii.com", version: "v1alpha1", scope: "Cluster" },
			names: {
				...{ kind: "EtcdStorage", listKind: "EtcdStorageList" },
				...{ plural: "etcdstorages", singular: "etcdstorage" },
			},
			subresources: { status: {} },
			validation: {
				openAPIV3Schema: {
					properties: {
						metadata: {
							properties: { name: { type: "string", maxLength: 59 } },
						},
						spec: {
							required: Object.keys(spec).filter((one) => /Valid/.test(one)),
							properties: spec,
						},
					},
				},
			},
			// Defaults of v1beta1.
			versions: [{ name: "v1alpha1", served: true, storage: true }],
			conversion: { strategy: "None" },
			preserveUnknownFields: true,
		},
		status: {
			...{ conditions: [], storedVersions: ["v1alpha1"] },
			acceptedNames: { plural: "", kind: "" },
		},
	};
}

/** What else it was installed with, by `kubectl create`. */
export function installation(): object[] {
	const rbac = "rbac.authorization.k8s.io";
	const account = "etcdproxy-controller-sa";
	const all = ["get", "watch", "list", "create", "update", "patch", "delete"];
	const own = { namespace: NAMESPACE };
	const bound = (kind: "Role" | "ClusterRole", name: string, where = {}) => ({
		...{ apiVersion: `${rbac}/v1`, kind: `${kind}Binding` },
		metadata: { name: `${name}binding`, ...where },
		subjects: [{ kind: "ServiceAccount", name: account, ...own }],
		roleRef: { kind, name, apiGroup: rbac },
	});
	const labels = { controller: "etcdproxy" };
	return [
		{ apiVersion: "v1", kind: "Namespace", metadata: { name: NAMESPACE } },
		...[account, "etcdproxy-sa"].map((name) => ({
			...{ apiVersion: "v1", kind: "ServiceAccount" },
			metadata: { name, ...own },
		})),
		{
			...{ apiVersion: `${rbac}/v1`, kind: "ClusterRole" },
			metadata: { name: "etcdproxy-crd-clusterrole" },
			rules: [
				{
					...{ apiGroups: ["etcd.xmudrii.com"], resources: ["etcdstorages"] },
					verbs: ["get", "watch", "list"],
				},
				{
					apiGroups: ["etcd.xmudrii.com"],
					resources: ["etcdstorages/status"],
					verbs: ["update", "patch"],
				},
			],
		},
		{
			...{ apiVersion: `${rbac}/v1`, kind: "Role" },
			metadata: { name: "etcdproxy-controller-role", ...own },
			rules: [
				{ apiGroups: ["apps"], resources: ["deployments"], verbs: all },
				{
					apiGroups: [""],
					resources: ["services", "secrets", "configmaps"],
					verbs: all,
				},
			],
		},
		bound("ClusterRole", "etcdproxy-crd-clusterrole"),
		bound("Role", "etcdproxy-controller-role", own),
		{
			...{ apiVersion: "apps/v1", kind: "Deployment" },
			metadata: { name: "etcdproxy-controller-deployment", ...own, labels },
			spec: {
				...{ replicas: 1, selector: { matchLabels: labels } },
				template: {
					metadata: { labels },
					spec: {
						serviceAccountName: account,
						containers: [
							{
								name: "etcdproxy-controller",
								image: "xmudrii/etcdproxy-controller:latest",
								command: [
									"/etcdproxy-controller",
									"--etcd-core-url=https://etcd-svc-1.etcd.svc:2379",
								],
								imagePullPolicy: "IfNotPresent",
							},
						],
					},
				},
			},
		},
	];
}
