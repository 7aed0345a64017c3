/** Certificates of the test cluster, made with the openssl command: independent of the pki.ts under test. */
import { randomBytes } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { run } from "./processes.ts";

/** Paths of a PEM certificate and its PEM private key. */
export interface Certificate {
	certFile: string;
	keyFile: string;
}

export interface LeafOptions {
	/** As openssl takes it, e.g. "/O=system:masters/CN=admin"; "/" is an empty name. */
	subject: string;
	/** Subject alternative names, e.g. "DNS:localhost", "IP:127.0.0.1". A server's certificate when there are any. */
	names?: string[];
	/** A negative number gives a certificate that has expired. */
	days?: number;
}

/** A self-signed certificate authority in a folder of its own. */
export class Authority {
	readonly #dir: string;
	readonly certFile: string;
	readonly keyFile: string;

	private constructor(dir: string) {
		this.#dir = dir;
		this.certFile = join(dir, "ca.crt");
		this.keyFile = join(dir, "ca.key");
	}

	/** @param dir folder for the authority and everything it signs */
	static async create(dir: string, commonName: string): Promise<Authority> {
		await mkdir(dir, { recursive: true });
		const authority = new Authority(dir);
		await run([
			...[
				"openssl",
				"req",
				"-x509",
				"-newkey",
				"ec",
				"-pkeyopt",
				"ec_paramgen_curve:P-256",
				"-nodes",
			],
			...[
				"-subj",
				`/CN=${commonName}`,
				"-days",
				"30",
				"-addext",
				"keyUsage=critical,keyCertSign",
			],
			...["-keyout", authority.keyFile, "-out", authority.certFile],
		]);
		return authority;
	}

	/** Signs a leaf; `file` is the name of its files without the extension. */
	async issue(
		file: string,
		{ subject, names = [], days = 30 }: LeafOptions,
	): Promise<Certificate> {
		const path = join(this.#dir, file);
		const leaf = { certFile: `${path}.crt`, keyFile: `${path}.key` };
		const extensions = [
			"basicConstraints=critical,CA:FALSE",
			"keyUsage=critical,digitalSignature",
			// etcd's and the API server's serving certificates are also shown by them as clients.
			`extendedKeyUsage=${names.length > 0 ? "serverAuth,clientAuth" : "clientAuth"}`,
			...(names.length > 0 ? [`subjectAltName=${names.join(",")}`] : []),
		];
		await writeFile(`${path}.ext`, extensions.join("\n"));
		await run([
			...[
				"openssl",
				"req",
				"-new",
				"-newkey",
				"ec",
				"-pkeyopt",
				"ec_paramgen_curve:P-256",
				"-nodes",
			],
			...["-subj", subject, "-keyout", leaf.keyFile, "-out", `${path}.csr`],
		]);
		await run([
			...[
				"openssl",
				"x509",
				"-req",
				"-in",
				`${path}.csr`,
				"-CA",
				this.certFile,
				"-CAkey",
				this.keyFile,
			],
			...[
				"-set_serial",
				`0x${randomBytes(15).toString("hex")}`,
				"-days",
				String(days),
			],
			...["-extfile", `${path}.ext`, "-out", leaf.certFile],
		]);
		return leaf;
	}
}

export const serviceRange = "10.96.0.0/16";
/** The cluster IP of the Service kubernetes.default: the first of the range. */
const serviceAddress = "10.96.0.1";

/** The certificates of a control plane. */
export interface Pki {
	cluster: Authority;
	frontProxy: Authority;
	etcd: Authority;
	apiServer: Certificate;
	aggregator: Certificate;
	kubeletClient: Certificate;
	etcdServer: Certificate;
	etcdClient: Certificate;
	serviceAccountKey: string;
}

/** Three authorities, as kubeadm has them: the API server refuses a common one for clients and for front proxies. */
export async function createPki(dir: string, address: string): Promise<Pki> {
	await mkdir(dir, { recursive: true });
	const serviceAccountKey = join(dir, "service-account.key");
	const [cluster, frontProxy, etcd] = await Promise.all([
		Authority.create(join(dir, "cluster"), "cluster-ca"),
		Authority.create(join(dir, "front-proxy"), "front-proxy-ca"),
		Authority.create(join(dir, "etcd"), "etcd-ca"),
		run([
			"openssl",
			"ecparam",
			"-name",
			"prime256v1",
			"-genkey",
			"-noout",
			"-out",
			serviceAccountKey,
		]),
	]);
	const names = [`IP:${address}`, "DNS:localhost"];
	const serviceNames = [
		"kubernetes",
		"kubernetes.default",
		"kubernetes.default.svc",
	].map((name) => `DNS:${name}`);
	const [apiServer, aggregator, kubeletClient, etcdServer, etcdClient] =
		await Promise.all([
			cluster.issue("apiserver", {
				subject: "/CN=kube-apiserver",
				names: [...names, `IP:${serviceAddress}`, ...serviceNames],
			}),
			frontProxy.issue("aggregator", { subject: "/CN=front-proxy-client" }),
			cluster.issue("kubelet-client", {
				subject: "/O=system:masters/CN=kube-apiserver-kubelet-client",
			}),
			etcd.issue("server", { subject: "/O=etcd", names }),
			etcd.issue("client", { subject: "/" }),
		]);
	return {
		cluster,
		frontProxy,
		etcd,
		apiServer,
		aggregator,
		kubeletClient,
		etcdServer,
		etcdClient,
		serviceAccountKey,
	};
}
