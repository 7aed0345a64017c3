/**
 * The data plane's shell: one process that lets tenants at the core etcd, each behind a TLS listener of its own.
 * Nothing about a tenant is global; here the list of them has one entry.
 */

import { rangeRequest } from "./etcd.ts";
import { Core } from "./gateway/core.ts";
import {
	CredentialFiles,
	type Credentials,
	type CredentialsError,
} from "./gateway/credentials.ts";
import { Listener } from "./gateway/listener.ts";
import { GatewayMetrics } from "./gateway/metrics.ts";
import {
	type GatewayOptions,
	gatewayHelp,
	parseGatewayOptions,
} from "./gateway/options.ts";
import { type Log, logger } from "./log.ts";
import { build, versionText } from "./version.ts";

/** The whole process. */
class Gateway {
	readonly #core: Core;
	readonly #coreFiles: CredentialFiles;
	readonly #tenants: Listener[];
	readonly #metrics: GatewayMetrics;
	readonly #log: Log;
	readonly #options: GatewayOptions;
	#draining = false;

	constructor(options: GatewayOptions, log: Log) {
		this.#options = options;
		this.#log = log;
		this.#metrics = new GatewayMetrics(build, () => this.#gauges());
		const prefix = options.namespace;
		const name = prefix.replace(/^\/|\/$/g, "");
		this.#coreFiles = new CredentialFiles(
			{ cert: options.cert, key: options.key, ca: options.cacert },
			{
				onLoad: () => this.#onCoreFiles("loaded", undefined),
				onError: (error) => this.#onCoreFiles("failed", error),
				onWarning: (message) => log("WARN", message),
			},
		);
		this.#core = new Core({
			endpoints: options.endpoints,
			credentials: () => this.#coreFiles.current as Credentials,
			keepaliveMs: options["dial-keepalive-time"],
			keepaliveTimeoutMs: options["dial-keepalive-timeout"],
			healthRequest: rangeRequest(`${prefix}health`),
			onState: (endpoint, state, reason) => {
				this.#metrics.core(endpoint, state);
				log(
					state === "healthy" ? "INFO" : "WARN",
					`core ${endpoint} is ${state}${reason ? `: ${reason}` : ""}`,
				);
			},
		});
		const listen = address(options["listen-addr"]);
		this.#tenants = [
			new Listener(
				{
					name,
					prefix,
					url:
						options["advertise-client-url"] ||
						`https://${options["listen-addr"]}`,
					listen,
					files: {
						cert: options["cert-file"],
						key: options["key-file"],
						ca: options["trusted-ca-file"],
					},
					budgets: {
						maxConnections: options["max-connections"],
						maxStreams: options["max-concurrent-streams"],
						maxWatches: options["max-watches"],
						maxRequestBytes: options["max-send-bytes"],
						maxBytesInFlight: options["max-bytes-in-flight"],
					},
				},
				this.#core,
				this.#metrics,
				log,
			),
		];
	}

	async run(signal: AbortSignal): Promise<void> {
		const { "metrics-addr": metricsAddress } = this.#options;
		const http = metricsAddress ? this.#serve(metricsAddress) : undefined;
		await this.#coreFiles.load();
		this.#coreFiles.start();
		this.#core.start();
		for (const tenant of this.#tenants) {
			const port = await tenant.listen();
			this.#log(
				"INFO",
				`${versionText(build)}: serving ${this.#options.namespace} on port ${port}`,
			);
		}
		await new Promise((resolve) =>
			signal.addEventListener("abort", resolve, { once: true }),
		);
		this.#draining = true;
		await Promise.all(
			this.#tenants.map((tenant) =>
				tenant.drain(this.#options["drain-timeout"]),
			),
		);
		this.#core.stop();
		this.#coreFiles.stop();
		await http?.stop(true);
		this.#log("INFO", "drained");
	}

	/** Why the gateway is not ready, if it is not. */
	get #unready(): string | undefined {
		if (this.#draining) return "draining";
		if (this.#tenants.some((tenant) => !tenant.files.current))
			return "files are not loaded";
		return this.#core.healthy ? undefined : this.#core.reason;
	}

	#serve(url: string): Bun.Server<undefined> {
		const { hostname, port } = new URL(url);
		const text = (body: string, status = 200) =>
			new Response(`${body}\n`, { status });
		return Bun.serve({
			hostname: hostname.replace(/^\[|\]$/g, ""),
			port: port === "" ? 80 : Number(port),
			routes: {
				"/healthz": () => text("ok"),
				"/readyz": () => {
					const reason = this.#unready;
					return reason === undefined ? text("ok") : text(reason, 503);
				},
				// Who asks wants to know whether a CA may be retired, or is the one to be trusted.
				"/client-ca": () => {
					const sha256 = this.#tenants[0]?.clientCA;
					return sha256 === undefined
						? Response.json(
								{ message: "the client CA bundle is not loaded yet" },
								{ status: 503 },
							)
						: Response.json({ sha256 });
				},
				"/metrics": async () =>
					new Response(await this.#metrics.registry.metrics(), {
						headers: { "content-type": this.#metrics.registry.contentType },
					}),
			},
			fetch: () => text("not found", 404),
		});
	}

	#gauges() {
		const core = this.#coreFiles.current?.notAfter;
		return new Map(
			this.#tenants.map((tenant) => {
				const server = tenant.files.current?.notAfter;
				return [
					tenant.name,
					{
						connections: tenant.connections,
						streams: tenant.streams,
						watches: tenant.watches,
						bytesInFlight: tenant.budget.used,
						notAfter: {
							...(server !== undefined && { server }),
							...(core !== undefined && { core }),
						},
					},
				];
			}),
		);
	}

	#onCoreFiles(
		result: "loaded" | "failed",
		error: CredentialsError | undefined,
	): void {
		for (const { name } of this.#tenants)
			this.#metrics.reloads.inc({ tenant: name, files: "core", result });
		if (error)
			this.#log("ERROR", `${error.message}; the old files stay in use`);
		else this.#log("INFO", "credentials for the core loaded");
	}
}

/** @param text host:port, "[::]:2379", ":2379" */
function address(text: string): { host: string; port: number } {
	const [, host = "", port = ""] = /^(.*):(\d+)$/.exec(text) ?? [];
	return { host: host.replace(/^\[|\]$/g, "") || "::", port: Number(port) };
}

/**
 * `etcdproxy-controller grpc-proxy start`.
 * @param args the words after `grpc-proxy start`
 * @throws UsageError; CredentialsError when the files are not good at the start
 */
export async function runGateway(args: string[]): Promise<void> {
	const options = parseGatewayOptions(args);
	if ("help" in options) return void process.stdout.write(gatewayHelp());
	const log = logger(options["log-format"]);
	const stop = new AbortController();
	for (const signal of ["SIGTERM", "SIGINT"] as const)
		process.once(signal, () => {
			log("INFO", `${signal}: draining`);
			stop.abort();
		});
	await new Gateway(options, log).run(stop.signal);
	process.exit();
}
