/** What the tests of the data plane share: a core etcd over mTLS, and in front of it our gateway or etcd's own proxy. */
import { join, resolve } from "node:path";
import { binaries } from "./cluster/binaries.ts";
import { Authority, type Certificate } from "./cluster/certificates.ts";
import {
	type Child,
	Processes,
	removeFolder,
	run,
	until,
	workFolder,
} from "./cluster/processes.ts";

const root = resolve(import.meta.dir, "..");
const LOCAL = ["IP:127.0.0.1", "DNS:localhost"];

/** Where a client connects to, with what. */
export interface Endpoint {
	url: string;
	caFile: string;
	certFile: string;
	keyFile: string;
}

export interface Etcd extends Endpoint {
	child: Child;
	/** Ends it; what it has stored stays. */
	stop(signal?: NodeJS.Signals): Promise<void>;
	/** Starts it again at the same address, with the same data. */
	restart(): Promise<void>;
}

export interface Gateway extends Endpoint {
	child: Child;
	/** Of the tenant's clients. */
	clients: Authority;
	/** Of the gateway's certificate. */
	servers: Authority;
	/** The files that the gateway was started with; they may be rewritten. */
	files: Certificate & { caFile: string };
	/** http://host:port of /healthz, /readyz and /metrics. */
	metricsUrl: string;
	metrics(): Promise<string>;
	/** The value of one metric, summed over its series that have all of these labels; 0 where there is none. */
	metric(name: string, labels?: Record<string, string>): Promise<number>;
	ready(): Promise<boolean>;
	log(): Promise<string>;
}

export interface GatewayStart {
	/** Default "/tenant/". */
	prefix?: string;
	flags?: string[];
	/** Program and first arguments; default: controller.ts on this very Bun. */
	command?: string[];
	env?: Record<string, string>;
	/** Authorities of another gateway, to be its replica. */
	like?: Gateway;
	/** Its port; default: a free one. */
	port?: number;
	/** URLs of the core, where not the first etcd. */
	endpoints?: string[];
	/** Do not wait until it is ready. */
	unready?: boolean;
}

export interface DataPlane {
	dir: string;
	processes: Processes;
	/** Of the core: its server's certificate and its clients'. */
	coreAuthority: Authority;
	/** A client certificate for the core, without a Common Name. */
	coreClient: Certificate;
	/** One etcd of its own. */
	etcd(flags?: string[]): Promise<Etcd>;
	/** The members of one etcd. */
	etcdCluster(size: number): Promise<Etcd[]>;
	/** Our gateway in front of a core. */
	gateway(core: Endpoint, options?: GatewayStart): Promise<Gateway>;
	/** etcd's own proxy, in the same place. */
	grpcProxy(core: Endpoint, options?: GatewayStart): Promise<Gateway>;
	/** Runs etcdctl. @throws Error with what it says */
	etcdctl(endpoint: Endpoint, ...args: string[]): Promise<string>;
	/** Ends everything and removes its files. */
	stop(): Promise<void>;
}

export async function startDataPlane(): Promise<DataPlane> {
	const paths = await binaries(["etcd", "etcdctl"]);
	const dir = await workFolder();
	const removeOnExit = () => removeFolder(dir);
	process.once("exit", removeOnExit);
	const processes = new Processes(join(dir, "logs"));
	const coreAuthority = await Authority.create(join(dir, "core"), "core-ca");
	const coreClient = await coreAuthority.issue("client", { subject: "/" });
	let count = 0;

	const etcdctl = (endpoint: Endpoint, ...args: string[]) =>
		run([
			paths.etcdctl,
			`--endpoints=${endpoint.url}`,
			`--cacert=${endpoint.caFile}`,
			`--cert=${endpoint.certFile}`,
			`--key=${endpoint.keyFile}`,
			"--command-timeout=5s",
			...args,
		]);

	const etcd = async (flags: string[] = []): Promise<Etcd> => {
		const [only] = await members(1, flags);
		return only as Etcd;
	};

	async function members(size: number, flags: string[] = []): Promise<Etcd[]> {
		const peers = Array.from({ length: size }, () => ({
			name: `etcd-${++count}`,
			url: `http://127.0.0.1:${freePort()}`,
		}));
		const cluster = peers.map(({ name, url }) => `${name}=${url}`).join(",");
		return Promise.all(
			peers.map(({ name, url }) => member(name, url, cluster, flags)),
		);
	}

	async function member(
		name: string,
		peers: string,
		cluster: string,
		flags: string[],
	): Promise<Etcd> {
		const server = await coreAuthority.issue(name, {
			subject: "/O=etcd",
			names: LOCAL,
		});
		const url = `https://127.0.0.1:${freePort()}`;
		const command = [
			paths.etcd,
			`--name=${name}`,
			`--data-dir=${join(dir, name)}`,
			`--listen-client-urls=${url}`,
			`--advertise-client-urls=${url}`,
			`--listen-peer-urls=${peers}`,
			`--initial-advertise-peer-urls=${peers}`,
			`--initial-cluster=${cluster}`,
			"--client-cert-auth",
			`--trusted-ca-file=${coreAuthority.certFile}`,
			`--cert-file=${server.certFile}`,
			`--key-file=${server.keyFile}`,
			"--unsafe-no-fsync",
			"--log-level=warn",
			...flags,
		];
		const started: Etcd = {
			url,
			caFile: coreAuthority.certFile,
			...coreClient,
			child: processes.start(name, command),
			stop: (signal) => started.child.stop(signal),
			async restart() {
				started.child = processes.start(name, command);
				await answers(started);
			},
		};
		const answers = (one: Etcd) =>
			until("etcd answers", async () => {
				one.child.mustRun();
				return (await etcdctl(one, "endpoint", "health")) !== undefined;
			});
		await answers(started);
		return started;
	}

	async function authorities(like: Gateway | undefined) {
		const name = `gateway-${++count}`;
		const folder = join(dir, name);
		const clients =
			like?.clients ??
			(await Authority.create(join(folder, "clients"), "clients-ca"));
		const servers =
			like?.servers ??
			(await Authority.create(join(folder, "servers"), "servers-ca"));
		const [server, client] = await Promise.all([
			servers.issue(`server-${count}`, { subject: "/", names: LOCAL }),
			clients.issue(`client-${count}`, { subject: "/CN=tenant" }),
		]);
		return { name, clients, servers, server, client };
	}

	async function start(
		core: Endpoint,
		options: GatewayStart,
		command: string[],
		probe: string,
	): Promise<Gateway> {
		const { name, clients, servers, server, client } = await authorities(
			options.like,
		);
		const port = options.port ?? freePort();
		const metricsUrl = `http://127.0.0.1:${freePort()}`;
		const child = processes.start(
			name,
			[
				...command,
				"grpc-proxy",
				"start",
				`--endpoints=${(options.endpoints ?? [core.url]).join(",")}`,
				`--namespace=${options.prefix ?? "/tenant/"}`,
				`--listen-addr=127.0.0.1:${port}`,
				`--metrics-addr=${metricsUrl}`,
				"--advertise-client-url=",
				"--dial-keepalive-time=10s",
				`--cacert=${core.caFile}`,
				`--cert=${core.certFile}`,
				`--key=${core.keyFile}`,
				`--trusted-ca-file=${clients.certFile}`,
				`--cert-file=${server.certFile}`,
				`--key-file=${server.keyFile}`,
				...(options.flags ?? []),
			],
			options.env,
		);
		const metrics = async () => (await fetch(`${metricsUrl}/metrics`)).text();
		const gateway: Gateway = {
			url: `https://127.0.0.1:${port}`,
			caFile: servers.certFile,
			...client,
			child,
			clients,
			servers,
			files: { ...server, caFile: clients.certFile },
			metricsUrl,
			metrics,
			async metric(metric, labels = {}) {
				const wanted = Object.entries(labels).map(
					([label, value]) => `${label}="${value}"`,
				);
				return (await metrics())
					.split("\n")
					.filter(
						(line) =>
							line.startsWith(metric) &&
							/^[{ ]/.test(line.slice(metric.length)) &&
							wanted.every((one) => line.includes(one)),
					)
					.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
			},
			ready: async () => {
				const answer = await fetch(`${metricsUrl}${probe}`).catch(
					() => undefined,
				);
				return answer?.ok === true;
			},
			log: () => Bun.file(child.logFile).text(),
		};
		if (!options.unready)
			await until(`${name} is ready`, async () => {
				child.mustRun();
				return gateway.ready();
			});
		return gateway;
	}

	return {
		dir,
		processes,
		coreAuthority,
		coreClient,
		etcd,
		etcdCluster: (size) => members(size),
		gateway: (core, options = {}) =>
			start(
				core,
				options,
				options.command ?? [process.execPath, join(root, "controller.ts")],
				"/readyz",
			),
		grpcProxy: (core, options = {}) =>
			start(core, options, options.command ?? [paths.etcd], "/health"),
		etcdctl,
		async stop() {
			await processes.stop();
			process.off("exit", removeOnExit);
			removeFolder(dir);
		},
	};
}

const taken = new Set<number>();

/** Below the range of outgoing connections, and not given to anybody else of this process. */
export function freePort(): number {
	for (;;) {
		const port = 20_000 + Math.floor(Math.random() * 12_000);
		if (taken.has(port)) continue;
		try {
			Bun.listen({
				hostname: "127.0.0.1",
				port,
				socket: { data() {} },
			}).stop(true);
			taken.add(port);
			return port;
		} catch (error) {
			const code = error instanceof Error && "code" in error && error.code;
			if (code !== "EADDRINUSE") throw error;
		}
	}
}
