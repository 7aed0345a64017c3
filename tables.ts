/** The reports of report.ts as text for a terminal: tables of about a hundred columns, sentences as long as they are. Pure. */
import type {
	Certs,
	CertsReport,
	Planned,
	Report,
	ShownCertificate,
} from "./report.ts";

/** Milliseconds, by their two largest units: `14d 3h`. */
export function span(ms: number): string {
	const seconds = Math.floor(Math.abs(ms) / 1000);
	const sizes = { y: 365 * 86_400, d: 86_400, h: 3600, m: 60, s: 1 };
	let rest = seconds;
	const parts = Object.entries(sizes)
		.filter(([, size]) => seconds >= size)
		.slice(0, 2)
		.map(([unit, size]) => {
			const count = Math.floor(rest / size);
			rest %= size;
			return count > 0 ? `${count}${unit}` : "";
		});
	return parts.join(" ").trim() || "0s";
}

/** `in 14d 3h`, `3h ago` */
function relative(at: string, now: string): string {
	const ms = Date.parse(at) - Date.parse(now);
	if (ms === 0) return "now";
	return ms > 0 ? `in ${span(ms)}` : `${span(ms)} ago`;
}

/** `2026-12-03 12:00:00Z` */
const stamp = (at: string) => at.replace("T", " ");
const when = (at: string, now: string) => `${stamp(at)} (${relative(at, now)})`;

/** Columns as wide as they must be; nothing without rows. */
export function table(header: string[], rows: string[][]): string[] {
	if (rows.length === 0) return [];
	const all = [header, ...rows];
	const widths = header.map((_, column) =>
		Math.max(...all.map((row) => row[column]?.length ?? 0)),
	);
	return all.map((row) =>
		row
			.map((cell, column) => cell.padEnd(widths[column] ?? 0))
			.join("  ")
			.trimEnd(),
	);
}

const indent = (by: number, lines: string[]) =>
	lines.map((line) => `${" ".repeat(by)}${line}`);
const section = (title: string, lines: string[]) =>
	lines.length > 0 ? [`  ${title}`, ...indent(4, lines)] : [];

/** With what all reports begin. What others have written may have anything in it, which is not for a terminal to act on. */
function text({ now, note, etcdStorages }: Report<unknown>, lines: string[]) {
	const none = ["There are no EtcdStorages."];
	return [
		`${stamp(now)}, by the API server's clock`,
		...(note ? [`NOTE: ${note}`] : []),
		...(etcdStorages.length === 0 ? none : lines),
	]
		.map((line) =>
			line.replace(
				/\p{Cc}|\p{Cf}/gu,
				(control) =>
					`\\u{${control.codePointAt(0)?.toString(16).padStart(4, "0")}}`,
			),
		)
		.join("\n")
		.concat("\n");
}

export function planText(report: Report<Planned>): string {
	const { now, etcdStorages: all } = report;
	const people = all.filter((one) => one.person).length;
	const due = all.filter((one) => one.written.length > 0).length;
	return text(report, [
		`EtcdStorages: ${all.length}, in need of a person: ${people}, to be written to now: ${due}`,
		"",
		...table(
			["ETCDSTORAGE", "DOMAIN", "PHASE", "CA", "NOW", "NEXT STEP"],
			all.flatMap((one) => overview(one, now)),
		),
		...all.flatMap((one) => {
			const waits = one.status?.certificates?.some(
				({ rotation }) => rotation?.waitingFor,
			);
			const news = one.written.length > 0 || troubles(one).length > 0 || waits;
			return news || all.length === 1 ? ["", ...details(one, now)] : [];
		}),
		...(due > 0
			? [
					"",
					"A running controller writes this within a minute, unless a write is refused, which nobody knows before. If it stays: kubectl describe etcdstorage, and the controller's log.",
				]
			: []),
	]);
}

function overview(one: Planned, now: string): string[][] {
	const idle = one.written.length > 0 ? "see below" : "nothing";
	const { certificates = [], conditions = [] } = one.status ?? {};
	const said = (type: string) =>
		conditions.find((condition) => condition.type === type)?.message ?? "";
	const rows = certificates.flatMap(({ name, rotation }) => {
		if (!rotation) return [];
		const { phase, generation, waitingFor = [], nextStepAt } = rotation;
		const domain = name.replace("-signer", "");
		const { step } = one.steps.find((step) => step.domain === domain) ?? {};
		const blocked = said("RotationBlocked").includes(`${domain} CA `);
		const waits = waitingFor.map((wait) => wait.replace(/:.*$/s, ""));
		const acts = [
			...(step ? [step] : []),
			...(waits.length > 0
				? [`${blocked ? "blocked" : "waits"}: ${waits.join(", ")}`]
				: []),
		].join("; ");
		const next = nextStepAt ? when(nextStepAt, now) : "-";
		return [[one.name, domain, phase, generation, acts || idle, next]];
	});
	const [trouble] = troubles(one);
	return rows.length > 0
		? rows
		: [[one.name, "-", "-", "-", trouble?.reason ?? idle, "-"]];
}

/** What is wrong, and what else a person is told. */
const troubles = ({ status, events }: Planned) => [
	...(status?.conditions ?? []).filter(({ type, status }) =>
		["CertificatesReady", "Deployed"].includes(type)
			? status === "False"
			: type !== "Ready" && status === "True",
	),
	...events,
];

function details(one: Planned, now: string): string[] {
	const { steps, issued, written, status } = one;
	const certificates = status?.certificates ?? [];
	const acts = [
		...steps.map(
			({ domain, step, reason }) => `${domain} CA: ${step} (${reason})`,
		),
		...issued.map(({ id, reason }) => `issue ${id} (${reason})`),
		...written,
	];
	const told = troubles(one).map((each) => `${each.reason}: ${each.message}`);
	const waits = certificates
		.flatMap(({ rotation }) => rotation?.waitingFor ?? [])
		// Unless it is told before, for a person.
		.filter(
			(wait) =>
				!told.some((text) => text.includes(wait.slice(wait.indexOf(": ") + 2))),
		);
	const next = certificates
		.toSorted((a, b) => (a.renewalTime < b.renewalTime ? -1 : 1))
		.map(({ name, renewalTime: at, notAfter }) => [
			...[stamp(at), relative(at, now)],
			`${name} is renewed; it would expire ${stamp(notAfter)}`,
		]);
	return [
		one.name,
		...section("now", acts.length > 0 ? acts : ["nothing"]),
		...section("to know", told),
		...section("waits for", waits),
		...section("next", table(["", "", ""], next).slice(1)),
	];
}

export function certsText(report: CertsReport): string {
	const { now, core, etcdStorages: all } = report;
	const first = all
		.flatMap(({ name, breaks: [one] }) => (one ? [{ name, ...one }] : []))
		.sort((a, b) => (a.at < b.at ? -1 : 1))
		.map((one) => [...instant(one, now), one.name, one.message]);
	return text(report, [
		...(all.length > 1
			? [
					"",
					"What breaks first, if nothing is done any more",
					...indent(2, table(["AT", "", "ETCDSTORAGE", "WHAT"], first)),
				]
			: []),
		...all.flatMap((one) => ["", ...chain(one, now)]),
		"",
		"The core etcd's; without them, no endpoint works",
		...indent(2, certificateTable(core, now)),
	]);
}

const instant = ({ at, already }: Certs["breaks"][number], now: string) => [
	already ? `${stamp(at)} !` : stamp(at),
	relative(at, now),
];

const certificateTable = (list: ShownCertificate[], now: string) =>
	table(
		["CERTIFICATE", "DOMAIN", "ROLE", "BY CA", "UNTIL", "LEFT", "RENEWAL"],
		list.map((one) => [
			one.id,
			one.domain,
			one.trouble ? `${one.role}: ${one.trouble}` : one.role,
			one.by.join(", "),
			one.notAfter ? stamp(one.notAfter) : "",
			one.notAfter === undefined
				? ""
				: one.notAfter <= now
					? "expired"
					: `${span(Date.parse(one.notAfter) - Date.parse(now))}, ${one.leftPercent}%`,
			one.renewalTime ? relative(one.renewalTime, now) : "",
		]),
	);

function chain(one: Certs, now: string): string[] {
	const phases = Object.entries(one.phases).map((pair) => pair.join(" CA: "));
	return [
		[one.name, ...phases].join(", "),
		...one.problems.map((problem) => `  WRONG: ${problem}`),
		...section(
			"What breaks when, if nothing is done any more",
			table(
				["AT", "", "WHAT"],
				one.breaks.map((each) => [...instant(each, now), each.message]),
			),
		),
		...section("Certificates", certificateTable(one.certificates, now)),
		...section(
			"Who verifies, and is known to trust",
			table(
				["WHO", "DOMAIN", "CAS", ""],
				one.verifiers.map((who) => [
					who.who,
					who.domain,
					who.trusts.join(", ") || "none",
					who.state ?? "",
				]),
			),
		),
		...one.verifiers.flatMap(({ message }) =>
			message ? `    ${message}` : [],
		),
	];
}
