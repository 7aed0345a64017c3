/** What can be measured from outside, in Prometheus' text format: https://prometheus.io/docs/practices/naming/ */

import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { Outcome } from "./status.ts";

export class Metrics {
	readonly registry = new Registry();
	readonly reconciles = new Counter({
		name: "etcdproxy_reconcile_total",
		help: "Visits to EtcdStorages by result: success, problem (a person must act), error (will be retried).",
		labelNames: ["result"] as const,
		registers: [this.registry],
	});
	readonly reconcileSeconds = new Histogram({
		name: "etcdproxy_reconcile_duration_seconds",
		help: "Duration of visits.",
		buckets: [0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 30],
		registers: [this.registry],
	});
	readonly issued = new Counter({
		name: "etcdproxy_certificates_issued_total",
		help: "Certificates issued.",
		registers: [this.registry],
	});
	readonly watchRestarts = new Counter({
		name: "etcdproxy_watch_restarts_total",
		help: "Watches that were interrupted, by kind.",
		labelNames: ["kind"] as const,
		registers: [this.registry],
	});
	readonly requests = new Counter({
		name: "etcdproxy_api_requests_total",
		help: "Requests to the API server by verb, kind and HTTP status code; 0: no answer.",
		labelNames: ["verb", "kind", "code"] as const,
		registers: [this.registry],
	});

	/**
	 * @param queue asked at every scrape
	 * @param certificates the newest outcome's certificates of every EtcdStorage, by its name
	 */
	constructor(
		version: string,
		queue: () => { depth: number; age: number },
		certificates: ReadonlyMap<string, Outcome["certificates"]>,
	) {
		const gauge = (name: string, help: string, value: () => number) =>
			new Gauge({
				name,
				help,
				registers: [this.registry],
				collect() {
					this.set(value());
				},
			});
		gauge(
			"etcdproxy_queue_depth",
			"EtcdStorages that wait to be visited.",
			() => queue().depth,
		);
		gauge(
			"etcdproxy_queue_age_seconds",
			"How long the first of them has been waiting.",
			() => queue().age,
		);
		gauge(
			"etcdproxy_etcdstorages",
			"EtcdStorages that are looked after.",
			() => certificates.size,
		);
		gauge(
			"process_resident_memory_bytes",
			"Resident memory size in bytes.",
			() => process.memoryUsage.rss(),
		);
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
		const started = Date.now() / 1000 - process.uptime();
		gauge(
			"process_start_time_seconds",
			"Start time of the process since unix epoch in seconds.",
			() => started,
		);
		new Gauge({
			name: "etcdproxy_build_info",
			help: "Always 1; the label tells the version.",
			labelNames: ["version"] as const,
			registers: [this.registry],
		}).set({ version }, 1);

		const perCertificate = (
			name: string,
			help: string,
			value: (one: Outcome["certificates"][number]) => number,
		) =>
			new Gauge({
				name,
				help,
				labelNames: ["etcdstorage", "certificate"] as const,
				registers: [this.registry],
				collect() {
					this.reset();
					for (const [etcdstorage, list] of certificates)
						for (const one of list)
							this.set({ etcdstorage, certificate: one.id }, value(one) / 1000);
				},
			});
		// Names in the style of cert-manager: https://cert-manager.io/docs/devops-tips/prometheus-metrics/
		perCertificate(
			"etcdproxy_certificate_not_after_timestamp_seconds",
			"When the certificate expires.",
			(one) => one.facts.notAfter,
		);
		perCertificate(
			"etcdproxy_certificate_renewal_timestamp_seconds",
			"When the certificate will be renewed.",
			(one) => one.renewalTime,
		);
	}
}
