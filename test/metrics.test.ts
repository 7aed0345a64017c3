/** What the controller measures of certificates and of the replacement of signers, as Prometheus reads it. */
import { describe, expect, test } from "bun:test";
import type { EtcdStorageStatus } from "../etcdstorage.ts";
import { type Known, Metrics } from "../metrics.ts";
import type { CertificateFacts } from "../pki.ts";
import { phases, type Rotation, type Wait } from "../rotation.ts";
import type { Outcome, Problem } from "../status.ts";

const HOUR = 3_600_000;
const NOW = Date.UTC(2026, 10, 23, 12);
const iso = (time: number) => new Date(time).toISOString();

const obstacle = (reason: string): Wait => ({
	who: `Deployment api/${reason}`,
	reason,
	message: `Deployment api/${reason} may not be restarted`,
	obstacle: true,
});
const passing: Wait = {
	...obstacle("ConsumerRollingOut"),
	obstacle: false,
};
const outcome = (more: Partial<Outcome> = {}): Outcome => ({
	problems: [],
	issued: [],
	written: [],
	certificates: [],
	rotations: [],
	stepped: false,
	targets: [],
	...more,
});
const rotation = (more: Partial<Rotation> = {}): Rotation => ({
	domain: "serving",
	phase: "Spread",
	generation: "0a1b2c3d",
	waits: [],
	...more,
});
/** Both signers' phases began then. */
const status = (since = NOW): EtcdStorageStatus => ({
	certificates: ["client-signer", "serving-signer"].map((name) => ({
		name,
		notBefore: iso(since),
		notAfter: iso(since),
		renewalTime: iso(since),
		rotation: {
			generation: "0a1b2c3d",
			phase: "Spread",
			since: iso(since),
			reason: "",
		},
	})),
});

interface Scene {
	metrics: Metrics;
	known: Known;
	clock: { now(): number; skewMs: number };
	/** The series of one metric: labels without etcdstorage="sample" -> value. */
	series(name: string): Promise<Record<string, number>>;
}

function scene(found?: Partial<Outcome>, after = status()): Scene {
	const known: Known = new Map();
	if (found) known.set("sample", { outcome: outcome(found), status: after });
	const clock = { now: () => NOW, skewMs: 0 };
	const queue = () => ({ depth: 0, age: 0 });
	const build = { version: "1.0.0", commit: "0a1b2c3", date: iso(NOW) };
	const metrics = new Metrics(build, queue, known, clock);
	return {
		metrics,
		known,
		clock,
		async series(name) {
			const text = await metrics.registry.metrics();
			return Object.fromEntries(
				text
					.split("\n")
					.map((line) => /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line))
					.filter((match) => match?.[1] === name)
					.map((match) => [
						(match?.[2] ?? "").replace(/etcdstorage="sample",?/, ""),
						Number(match?.[3]),
					]),
			);
		},
	};
}

test("which build it is, is told with its commit and that one's date", async () => {
	expect(await scene().series("etcdproxy_build_info")).toEqual({
		'version="1.0.0",commit="0a1b2c3",date="2026-11-23T12:00:00.000Z"': 1,
	});
});

test("of each certificate the dates are told in seconds", async () => {
	const facts = { notBefore: NOW, notAfter: NOW + HOUR } as CertificateFacts;
	const { series } = scene({
		certificates: [
			...(["client/a/b", "client-signer"] as const).map((id) => ({
				...{ id, domain: "client" as const, facts },
				renewalTime: NOW + HOUR / 2,
			})),
		],
	});
	for (const [date, time] of [
		["not_before", NOW],
		["not_after", NOW + HOUR],
		["renewal", NOW + HOUR / 2],
	] as const)
		expect(
			await series(`etcdproxy_certificate_${date}_timestamp_seconds`),
		).toEqual({
			'certificate="client/a/b"': time / 1000,
			'certificate="client-signer"': time / 1000,
		});
});

test("conditions are 1 while they are True", async () => {
	const more = { observedGeneration: 1, lastTransitionTime: "", message: "" };
	const { series } = scene(
		{},
		{
			conditions: [
				{ type: "Ready", status: "True", reason: "Ready", ...more },
				{ type: "RotationBlocked", status: "False", reason: "x", ...more },
			],
		},
	);
	expect(await series("etcdproxy_condition")).toEqual({
		'type="Ready"': 1,
		'type="RotationBlocked"': 0,
	});
});

test.each([...phases])(
	"of a domain in %s that phase is 1, and the other four are 0",
	async (phase) => {
		const { series } = scene({ rotations: [rotation({ phase })] });
		expect(await series("etcdproxy_rotation_phase")).toEqual(
			Object.fromEntries(
				phases.map((one) => [
					`domain="serving",phase="${one}"`,
					one === phase ? 1 : 0,
				]),
			),
		);
	},
);

describe("a phase that", () => {
	const overdueAt = NOW + HOUR;
	const harmlessUntil = NOW + 2 * HOUR;
	const cases: [
		string,
		Partial<Rotation>,
		since: number,
		waiting: number,
		blocked: string[],
		deadline: number | undefined,
	][] = [
		["waits for nobody", { harmlessUntil }, NOW - HOUR, 0, [], undefined],
		[
			"has begun to wait for who comes by himself",
			{ waits: [passing], harmlessUntil, overdueAt },
			...[NOW - 1000, 1, [], harmlessUntil / 1000],
		],
		[
			"has waited too long for who comes by himself",
			{ waits: [passing], harmlessUntil, overdueAt },
			...[NOW - HOUR, 3600, ["ConsumerRollingOut"], harmlessUntil / 1000],
		],
		[
			"waits for a person",
			{ waits: [passing, obstacle("ConsumerForbidden")], harmlessUntil },
			...[NOW - 5000, 5, ["ConsumerForbidden"], harmlessUntil / 1000],
		],
		[
			"waits for persons, for two reasons, one of them twice",
			{
				waits: [
					obstacle("ConsumerStuck"),
					obstacle("ConsumerForbidden"),
					obstacle("ConsumerStuck"),
				],
			},
			...[NOW, 0, ["ConsumerForbidden", "ConsumerStuck"], undefined],
		],
	] as never;
	test.each(cases)(
		"%s shows for how long, for what reasons, and until when that is harmless",
		async (_, more, since, waiting, blocked, deadline) => {
			const { series } = scene({ rotations: [rotation(more)] }, status(since));
			expect(await series("etcdproxy_rotation_waiting_seconds")).toEqual({
				'domain="serving"': waiting,
			});
			expect(await series("etcdproxy_rotation_blocked")).toEqual(
				Object.fromEntries(
					blocked.map((reason) => [`domain="serving",reason="${reason}"`, 1]),
				),
			);
			expect(
				await series("etcdproxy_rotation_deadline_timestamp_seconds"),
			).toEqual(deadline === undefined ? {} : { 'domain="serving"': deadline });
		},
	);

	test("is in no status yet has waited for no time", async () => {
		const { series } = scene(
			{ rotations: [rotation({ waits: [passing] })] },
			{},
		);
		expect(await series("etcdproxy_rotation_waiting_seconds")).toEqual({
			'domain="serving"': 0,
		});
		expect(await series("etcdproxy_rotation_blocked")).toEqual({});
	});
});

test("what is over is no series any more, and neither is what is gone", async () => {
	const one = scene({
		rotations: [rotation({ waits: [obstacle("ConsumerStuck")] })],
	});
	expect(await one.series("etcdproxy_rotation_blocked")).not.toEqual({});
	one.known.set("sample", {
		outcome: outcome({ rotations: [rotation({ phase: "Retire" })] }),
		status: status(),
	});
	expect(await one.series("etcdproxy_rotation_blocked")).toEqual({});
	expect(await one.series("etcdproxy_rotation_phase")).toMatchObject({
		'domain="serving",phase="Retire"': 1,
		'domain="serving",phase="Spread"': 0,
	});
	one.known.delete("sample");
	expect(await one.metrics.registry.metrics()).not.toContain("sample");
});

test("the clock's skew is told in seconds, ahead is positive", async () => {
	const { clock, series } = scene();
	expect(await series("etcdproxy_clock_skew_seconds")).toEqual({ "": 0 });
	clock.skewMs = -90_500;
	expect(await series("etcdproxy_clock_skew_seconds")).toEqual({ "": -90.5 });
});

describe("counted", () => {
	test("are certificates by what they are and why, whatever their names and whatever the reason is about", async () => {
		const { metrics, series } = scene();
		metrics.count(
			outcome({
				issued: [
					{ id: "client-signer", reason: "past 1/2 of its life" },
					{ id: "serving-signer", reason: "requested: audit of 2026" },
					{ id: "client-signer", reason: "compromised: stolen laptop" },
					{ id: "serving-signer", reason: "unreadable: certificate 1 of 2" },
					{ id: "server", reason: "SAN missing: etcd-a, etcd-b" },
					{ id: "server", reason: 'common name: is "x"' },
					{ id: "server", reason: "validity changed: from 1h0m0s to 2h0m0s" },
					{ id: "client/ns/one", reason: "signer replaced" },
					// A Secret of a user, whatever it is called.
					{ id: "client/ns/client-signer", reason: "a name like ours" },
					{ id: "client/ns/two", reason: "signer replaced" },
				],
			}),
		);
		expect(await series("etcdproxy_certificates_issued_total")).toEqual({
			'certificate="signer",reason="past 1/2 of its life"': 1,
			'certificate="signer",reason="requested"': 1,
			'certificate="signer",reason="compromised"': 1,
			'certificate="signer",reason="unreadable"': 1,
			'certificate="server",reason="SAN missing"': 1,
			'certificate="server",reason="common name"': 1,
			'certificate="server",reason="validity changed"': 1,
			'certificate="client",reason="signer replaced"': 2,
			'certificate="client",reason="a name like ours"': 1,
		});
	});

	test("are a thousand tenants with a thousand reasons in no more series than one", async () => {
		const { metrics, series } = scene();
		for (let index = 0; index < 1000; index++)
			metrics.count(
				outcome({
					issued: [
						{ id: `client/ns-${index}/x`, reason: `unreadable: ${index}` },
						{ id: "client-signer", reason: `requested: ${index}\n: ${index}` },
						{ id: "server", reason: `SAN not wanted: ${index}.example` },
					],
				}),
			);
		expect(await series("etcdproxy_certificates_issued_total")).toEqual({
			'certificate="client",reason="unreadable"': 1000,
			'certificate="signer",reason="requested"': 1000,
			'certificate="server",reason="SAN not wanted"': 1000,
		});
	});

	test("are visits in which certificates were not delivered, once for each reason", async () => {
		const { metrics, series } = scene();
		const problem = (
			reason: string,
			condition: Problem["condition"] = "CertificatesReady",
		): Problem => ({ condition, reason, message: "", userError: true });
		metrics.count(
			outcome({
				problems: [
					problem("TargetMissing"),
					problem("TargetMissing"),
					problem("TargetForbidden"),
					problem("CoreCredentialsMissing", "Deployed"),
				],
			}),
		);
		metrics.count(outcome({ problems: [problem("TargetMissing")] }));
		expect(await series("etcdproxy_certificate_failures_total")).toEqual({
			'reason="TargetMissing"': 2,
			'reason="TargetForbidden"': 1,
		});
	});
});
