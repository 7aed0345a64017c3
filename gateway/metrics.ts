/** What the gateway measures, in Prometheus' text format: https://prometheus.io/docs/practices/naming/ */
import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { Build } from "../version.ts";
import type { MemberState } from "./core.ts";

/** gRPC's names of its codes, as etcd's and grpc-ecosystem's metrics have them. */
const CODES = [
	"OK",
	"Canceled",
	"Unknown",
	"InvalidArgument",
	"DeadlineExceeded",
	"NotFound",
	"AlreadyExists",
	"PermissionDenied",
	"ResourceExhausted",
	"FailedPrecondition",
	"Aborted",
	"OutOfRange",
	"Unimplemented",
	"Internal",
	"Unavailable",
	"DataLoss",
	"Unauthenticated",
];

/** What is asked of a tenant at every scrape. */
export interface TenantGauges {
	connections: number;
	streams: number;
	watches: number;
	bytesInFlight: number;
	/** Epoch milliseconds, by file flag. */
	notAfter: Record<string, number>;
}

export class GatewayMetrics {
	readonly registry = new Registry();
	readonly requests = this.#counter(
		"etcdproxy_gateway_requests_total",
		"RPCs that have ended, by gRPC service, method and code.",
		["tenant", "service", "method", "code"],
	);
	readonly seconds = new Histogram({
		name: "etcdproxy_gateway_request_duration_seconds",
		help: "Duration of unary RPCs and streamed reads, by method.",
		labelNames: ["tenant", "method"],
		buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2, 10],
		registers: [this.registry],
	});
	readonly refusals = this.#counter(
		"etcdproxy_gateway_refusals_total",
		"RPCs refused by policy, by method.",
		["tenant", "method"],
	);
	readonly cuts = this.#counter(
		"etcdproxy_gateway_budget_cuts_total",
		"What was refused or ended over a budget: connections, watches, request_bytes, bytes_in_flight.",
		["tenant", "budget"],
	);
	readonly compactions = this.#counter(
		"etcdproxy_gateway_compactions_ignored_total",
		"Compact requests answered without effect.",
		["tenant"],
	);
	readonly handshakes = this.#counter(
		"etcdproxy_gateway_tls_refusals_total",
		"Connections refused or closed over their certificate.",
		["tenant"],
	);
	readonly reloads = this.#counter(
		"etcdproxy_gateway_reloads_total",
		"Changed files that were loaded, or could not be, by what they are for: server, core.",
		["tenant", "files", "result"],
	);
	readonly coreConnected = new Gauge({
		name: "etcdproxy_gateway_core_up",
		help: "Members of the core etcd: 1 healthy, 0.5 connected but not healthy, 0 not connected.",
		labelNames: ["endpoint"],
		registers: [this.registry],
	});
	readonly coreChanges = this.#counter(
		"etcdproxy_gateway_core_transitions_total",
		"Changes of a core member's state, by the new state.",
		["endpoint", "state"],
	);
	readonly #bytes = new Map<string, { sent: number; received: number }>();

	/** @param tenants asked at every scrape */
	constructor(build: Build, tenants: () => Map<string, TenantGauges>) {
		const perTenant = (
			name: string,
			help: string,
			value: (tenant: TenantGauges) => number,
		) =>
			new Gauge({
				name,
				help,
				labelNames: ["tenant"],
				registers: [this.registry],
				collect() {
					this.reset();
					for (const [tenant, gauges] of tenants())
						this.set({ tenant }, value(gauges));
				},
			});
		perTenant(
			"etcdproxy_gateway_open_connections",
			"Client connections.",
			(one) => one.connections,
		);
		perTenant(
			"etcdproxy_gateway_open_streams",
			"RPCs under way.",
			(one) => one.streams,
		);
		perTenant(
			"etcdproxy_gateway_open_watches",
			"Watches under way.",
			(one) => one.watches,
		);
		perTenant(
			"etcdproxy_gateway_bytes_in_flight",
			"Bytes of requests and answers in the gateway, as the budget counts them.",
			(one) => one.bytesInFlight,
		);
		const bytes = this.#bytes;
		const byteCounter = (
			name: string,
			help: string,
			direction: "sent" | "received",
		) =>
			new Counter({
				name,
				help,
				labelNames: ["tenant"],
				registers: [this.registry],
				collect() {
					this.reset();
					for (const [tenant, count] of bytes)
						this.inc({ tenant }, count[direction]);
				},
			});
		byteCounter(
			"etcdproxy_gateway_sent_bytes_total",
			"Bytes of messages to clients.",
			"sent",
		);
		byteCounter(
			"etcdproxy_gateway_received_bytes_total",
			"Bytes of messages from clients.",
			"received",
		);
		new Gauge({
			name: "etcdproxy_gateway_certificate_not_after_timestamp_seconds",
			help: "When a certificate in use expires, by what it is for: server, core.",
			labelNames: ["tenant", "files"],
			registers: [this.registry],
			collect() {
				this.reset();
				for (const [tenant, { notAfter }] of tenants())
					for (const [files, ms] of Object.entries(notAfter))
						this.set({ tenant, files }, ms / 1000);
			},
		});
		new Gauge({
			name: "process_resident_memory_bytes",
			help: "Resident memory size in bytes.",
			registers: [this.registry],
			collect() {
				this.set(process.memoryUsage.rss());
			},
		});
		new Counter({
			name: "process_cpu_seconds_total",
			help: "Total user and system CPU time spent in seconds.",
			registers: [this.registry],
			collect() {
				const { user, system } = process.cpuUsage();
				this.reset();
				this.inc((user + system) / 1e6);
			},
		});
		new Gauge({
			name: "etcdproxy_build_info",
			help: "Always 1; the labels tell version, commit and the commit's date.",
			labelNames: ["version", "commit", "date"],
			registers: [this.registry],
		}).set({ ...build }, 1);
	}

	/** Of one tenant: plain numbers, since they change with every message. */
	bytes(tenant: string): { sent: number; received: number } {
		const found = this.#bytes.get(tenant);
		if (found) return found;
		const fresh = { sent: 0, received: 0 };
		this.#bytes.set(tenant, fresh);
		return fresh;
	}

	core(endpoint: string, state: MemberState): void {
		const value = { healthy: 1, unhealthy: 0.5, disconnected: 0 }[state];
		this.coreConnected.set({ endpoint }, value);
		this.coreChanges.inc({ endpoint, state });
	}

	#counter<T extends string>(name: string, help: string, labelNames: T[]) {
		return new Counter({ name, help, labelNames, registers: [this.registry] });
	}
}

/** gRPC's name of a code. */
export const codeName = (code: number) => CODES[code] ?? `Code(${code})`;
