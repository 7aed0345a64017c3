/** What can be measured from outside, in Prometheus' text format: https://prometheus.io/docs/practices/naming/ */

import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { EtcdStorageStatus } from "./etcdstorage.ts";
import { phases, standing } from "./rotation.ts";
import type { Outcome } from "./status.ts";
import type { Build } from "./version.ts";

/** What the newest visit to each EtcdStorage has found, by its name. */
export type Known = Map<
	string,
	{ outcome: Outcome; status: EtcdStorageStatus }
>;

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
		help: "Certificates issued, by what they are (signer, server, client) and why.",
		labelNames: ["certificate", "reason"] as const,
		registers: [this.registry],
	});
	readonly failures = new Counter({
		name: "etcdproxy_certificate_failures_total",
		help: "Visits in which certificates could not be issued or delivered, by reason.",
		labelNames: ["reason"] as const,
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
	 * @param known asked at every scrape, too
	 */
	constructor(
		build: Build,
		queue: () => { depth: number; age: number },
		known: Readonly<Known>,
		clock: { now(): number; skewMs: number },
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
			() => known.size,
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
			help: "Always 1; the labels tell version, commit and the commit's date.",
			labelNames: ["version", "commit", "date"] as const,
			registers: [this.registry],
		}).set({ ...build }, 1);

		gauge(
			"etcdproxy_clock_skew_seconds",
			"How far this machine's clock is ahead of the API server's; 0 while that is next to nothing.",
			() => clock.skewMs / 1000,
		);

		/** A gauge with one series for each row. */
		const table = (
			name: string,
			help: string,
			labels: string[],
			rows: (
				one: { outcome: Outcome; status: EtcdStorageStatus },
				add: (value: number, ...values: string[]) => void,
			) => void,
		) =>
			new Gauge({
				name,
				help,
				labelNames: ["etcdstorage", ...labels],
				registers: [this.registry],
				collect() {
					this.reset();
					for (const [etcdstorage, one] of known)
						rows(one, (value, ...values) =>
							this.set(
								{
									etcdstorage,
									...Object.fromEntries(
										labels.map((label, index) => [label, values[index] ?? ""]),
									),
								},
								value,
							),
						);
				},
			});
		// Names in the style of cert-manager: https://cert-manager.io/docs/devops-tips/prometheus-metrics/
		const dates = {
			not_before: [
				"When the certificate begins to be valid.",
				(one: Outcome["certificates"][number]) => one.facts.notBefore,
			],
			not_after: [
				"When the certificate expires.",
				(one: Outcome["certificates"][number]) => one.facts.notAfter,
			],
			renewal: [
				"When the certificate will be renewed.",
				(one: Outcome["certificates"][number]) => one.renewalTime,
			],
		} as const;
		for (const [date, [help, value]] of Object.entries(dates))
			table(
				`etcdproxy_certificate_${date}_timestamp_seconds`,
				help,
				["certificate"],
				({ outcome }, add) => {
					for (const one of outcome.certificates)
						add(value(one) / 1000, one.id);
				},
			);
		table(
			"etcdproxy_condition",
			"1 while the condition is True, else 0.",
			["type"],
			({ status }, add) => {
				for (const one of status.conditions ?? [])
					add(one.status === "True" ? 1 : 0, one.type);
			},
		);
		table(
			"etcdproxy_rotation_phase",
			"1 for the phase in which the replacement of the domain's signer is, 0 for the others.",
			["domain", "phase"],
			({ outcome }, add) => {
				for (const { domain, phase } of outcome.rotations)
					for (const one of phases) add(one === phase ? 1 : 0, domain, one);
			},
		);
		table(
			"etcdproxy_rotation_waiting_seconds",
			"How long the phase has been waiting for somebody; 0 while it is not.",
			["domain"],
			({ outcome, status }, add) => {
				for (const { domain, waits } of outcome.rotations)
					add(
						waits.length > 0
							? (clock.now() - (sinceOf(status, domain) ?? clock.now())) / 1000
							: 0,
						domain,
					);
			},
		);
		table(
			"etcdproxy_rotation_blocked",
			"1 for each reason for which the phase waits for a person.",
			["domain", "reason"],
			({ outcome, status }, add) => {
				for (const rotation of outcome.rotations) {
					const { domain, waits } = rotation;
					const now = clock.now();
					const since = sinceOf(status, domain) ?? now;
					const { blocked } = standing(rotation, since, now);
					const named = waits.filter((one) => one.obstacle);
					if (blocked)
						for (const { reason } of named.length > 0 ? named : waits)
							add(1, domain, reason);
				}
			},
		);
		table(
			"etcdproxy_rotation_deadline_timestamp_seconds",
			"Until when it is harmless that the phase waits; absent while it does not.",
			["domain"],
			({ outcome }, add) => {
				for (const { domain, waits, harmlessUntil } of outcome.rotations)
					if (waits.length > 0 && harmlessUntil !== undefined)
						add(harmlessUntil / 1000, domain);
			},
		);
	}

	/** Counts what a visit has issued, and what it could not. */
	count({ issued, problems }: Outcome): void {
		for (const { id, reason } of issued)
			this.issued.inc({
				certificate: id
					.replace(/^(client|serving)-signer$/, "signer")
					.replace(/\/.*$/s, ""),
				// What follows is about this one certificate.
				reason: reason.replace(/:.*$/s, ""),
			});
		const reasons = problems
			.filter((one) => one.condition === "CertificatesReady")
			.map((one) => one.reason);
		for (const reason of new Set(reasons)) this.failures.inc({ reason });
	}
}

/** When the domain's phase was entered. */
function sinceOf(
	{ certificates }: EtcdStorageStatus,
	domain: string,
): number | undefined {
	const signer = certificates?.find((one) => one.name === `${domain}-signer`);
	return signer?.rotation && Date.parse(signer.rotation.since);
}
