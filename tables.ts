/** The reports of report.ts as text for a terminal: tables of about a hundred columns, sentences as long as they are. Pure. */
import type {
	CertsReport,
	Planned,
	PlannedRotation,
	Report,
	Shown,
	ShownBreak,
	ShownDomain,
} from "./report.ts";

/** Milliseconds, by its two largest units: `14d 3h`. */
export function span(ms: number): string {
	const seconds = Math.floor(Math.abs(ms) / 1000);
	const units: [string, number][] = [
		["y", 365 * 86_400],
		["d", 86_400],
		["h", 3600],
		["m", 60],
		["s", 1],
	];
	const first = units.findIndex(([, size]) => seconds >= size);
	if (first < 0) return "0s";
	let rest = seconds;
	return units
		.slice(first, first + 2)
		.map(([unit, size]) => {
			const count = Math.floor(rest / size);
			rest -= count * size;
			return count === 0 ? "" : `${count}${unit}`;
		})
		.filter((part) => part !== "")
		.join(" ");
}

/** `in 14d 3h`, `3h ago` */
const relative = (at: string, now: string) => {
	const ms = Date.parse(at) - Date.parse(now);
	if (Math.abs(ms) < 1000) return "now";
	return ms > 0 ? `in ${span(ms)}` : `${span(ms)} ago`;
};

/** `2026-12-03 12:00:00Z` */
const stamp = (at: string) => at.replace("T", " ");
const when = (at: string, now: string) => `${stamp(at)} (${relative(at, now)})`;

/** Columns as wide as they must be. A header that starts with `>` is of a column of numbers. */
export function table(
	header: string[],
	rows: string[][],
	indent = "",
): string[] {
	const right = header.map((title) => title.startsWith(">"));
	const all = [header.map((title) => title.replace(/^>/, "")), ...rows];
	const widths = header.map((_, column) =>
		Math.max(...all.map((row) => row[column]?.length ?? 0)),
	);
	return all.map((row) =>
		`${indent}${row
			.map((cell, column) => {
				const width = widths[column] ?? 0;
				return right[column] ? cell.padStart(width) : cell.padEnd(width);
			})
			.join("  ")}`.trimEnd(),
	);
}

/** What others have written may have anything in it, which is not for a terminal to act on. */
const printable = (lines: string[]): string =>
	`${lines
		.map((line) =>
			line.replace(
				/\p{Cc}|\p{Cf}/gu,
				(control) =>
					`\\u{${control.codePointAt(0)?.toString(16).padStart(4, "0")}}`,
			),
		)
		.join("\n")}\n`;

const plural = (count: number, one: string) =>
	`${count} ${one}${count === 1 ? "" : "s"}`;

const head = ({ now, notes }: Report<unknown>): string[] => [
	`${stamp(now)}, by the API server's clock`,
	...notes.map((note) => `NOTE: ${note}`),
];

const STEPS: Record<string, string> = {
	"make-current": "make a CA",
	"make-next": "make the next CA",
	promote: "sign with the next CA",
	confirm: "confirm that it is spread",
	retire: "retire the former CA",
};

/** @param detailed with every certificate's renewal, also where nothing is to be done */
export function planText(report: Report<Planned>, detailed: boolean): string {
	const { now, etcdStorages } = report;
	const lines = head(report);
	if (etcdStorages.length === 0)
		return printable([...lines, "There are no EtcdStorages."]);
	const people = etcdStorages.filter(needsPerson);
	const due = etcdStorages.filter(isDue);
	const waiting = etcdStorages.filter((one) =>
		one.rotations.some(({ waits }) => waits.length > 0),
	);
	lines.push(
		`${plural(etcdStorages.length, "EtcdStorage")}: ${people.length} need${people.length === 1 ? "s" : ""} a person, ${due.length} with something to be done now, ${waiting.length} waiting for somebody`,
		"",
		...table(
			["ETCDSTORAGE", "DOMAIN", "PHASE", "CA", "NOW", "NEXT STEP"],
			etcdStorages.flatMap((one) => overview(one, now)),
		),
	);
	for (const one of etcdStorages)
		if (detailed || hasNews(one)) lines.push("", ...details(one, now));
	if (due.length > 0)
		lines.push(
			"",
			"What is to be done now is done by a running controller within a minute. If it stays: is one running, and what does its log say?",
		);
	return printable(lines);
}

const needsPerson = (one: Planned) =>
	one.problems.some(({ person }) => person) ||
	one.rotations.some(({ blocked }) => blocked);
const isDue = (one: Planned) =>
	one.objects.length > 0 ||
	one.issue.length > 0 ||
	one.restart !== undefined ||
	one.rotations.some(({ step }) => step !== undefined);
const hasNews = (one: Planned) =>
	isDue(one) ||
	one.problems.length > 0 ||
	one.rotations.some(({ waits }) => waits.length > 0);

function overview(one: Planned, now: string): string[][] {
	if (one.rotations.length === 0)
		return [[one.name, "-", "-", "-", brief(one, undefined), "-"]];
	return one.rotations.map((rotation) => [
		one.name,
		rotation.domain,
		rotation.phase,
		rotation.generation ?? "-",
		brief(one, rotation),
		rotation.nextStepAt ? when(rotation.nextStepAt, now) : "-",
	]);
}

/** In few words: what a domain's rotation does now. */
function brief(one: Planned, rotation: PlannedRotation | undefined): string {
	if (!rotation) {
		const [first] = one.problems;
		return first?.reason ?? (one.objects.length > 0 ? "see below" : "nothing");
	}
	const { step, waits, blocked, overdue, domain } = rotation;
	const issued = one.issue.filter(
		({ certificate }) => (certificate === "server") === (domain === "serving"),
	).length;
	const urgent = overdue || blocked;
	const waiting = waits
		.slice(0, 1)
		.map(
			({ reason }) =>
				`${overdue ? "overdue" : blocked ? "blocked" : "waits"}: ${reason}`,
		);
	const [first = "nothing", ...others] = [
		...(urgent ? waiting : []),
		...(step ? [STEPS[step] ?? step] : []),
		...(domain === "serving" && one.restart ? ["restart a consumer"] : []),
		...(issued > 0 ? [`issue ${plural(issued, "certificate")}`] : []),
		...(urgent ? [] : waiting),
		...waits.slice(1).map(({ reason }) => reason),
	];
	return others.length > 0 ? `${first}, +${others.length}` : first;
}

function details(one: Planned, now: string): string[] {
	const lines = [
		`${one.name}: ${one.endpoint}${one.source === "status" ? ", as the controller has said last" : ""}`,
	];
	const section = (title: string, content: string[]) => {
		if (content.length > 0)
			lines.push(`  ${title}`, ...content.map((line) => `    ${line}`));
	};
	const steps = one.rotations
		.filter(({ step }) => step !== undefined)
		.map(
			({ domain, step = "", reason }) =>
				`${domain} CA: ${STEPS[step] ?? step} (${reason})`,
		);
	const acts = [
		...steps,
		...one.issue.map(
			({ certificate, reason }) => `issue ${certificate} (${reason})`,
		),
		...(one.restart ? [`restart ${one.restart}`] : []),
		...one.objects.map(({ object, change }) => `${change} ${object}`),
	];
	section(
		"now",
		acts.length > 0 || one.source === "status" ? acts : ["nothing"],
	);
	section(
		"waits for",
		one.rotations.flatMap(({ domain, waits, blocked, ...rest }) =>
			waits.length === 0
				? []
				: [
						...waits.map(
							({ reason, message, obstacle }) =>
								`${domain}: ${reason}: ${message}${obstacle ? " [a person must act]" : ""}`,
						),
						...(rest.harmlessUntil
							? [`${domain}: harmless until ${when(rest.harmlessUntil, now)}`]
							: []),
					],
		),
	);
	section(
		"wrong",
		one.problems.map(
			({ reason, message, person }) =>
				`${reason}: ${message}${person ? " [a person must act]" : ""}`,
		),
	);
	const renewals = one.certificates.map(
		({ certificate, renewalTime, notAfter }) => ({
			at: renewalTime,
			what: `${certificate} is ${/^(client|serving)-signer$/.test(certificate) ? "replaced" : "renewed"}; it would expire ${stamp(notAfter)}`,
		}),
	);
	const next = [
		...one.rotations.flatMap(({ domain, phase, nextStepAt }) =>
			nextStepAt === undefined ||
			renewals.some((renewal) => renewal.at === nextStepAt)
				? []
				: [
						{
							at: nextStepAt,
							what: `${domain} CA: phase ${phase} ends, or changes`,
						},
					],
		),
		...renewals,
	].sort((a, b) => (a.at < b.at ? -1 : 1));
	section(
		"next",
		table(
			["", "", ""],
			next.map(({ at, what }) => [stamp(at), relative(at, now), what]),
		).slice(1),
	);
	return lines;
}

export function certsText(report: CertsReport): string {
	const { now, core, etcdStorages } = report;
	const lines = head(report);
	if (etcdStorages.length === 0)
		return printable([...lines, "There are no EtcdStorages."]);
	if (etcdStorages.length > 1) {
		const first = [
			...core.breaks.map((one) => ({ name: "all", ...one })),
			...etcdStorages.flatMap(({ name, breaks }) =>
				breaks.slice(0, 1).map((one) => ({ name, ...one })),
			),
		].sort((a, b) => (a.at < b.at ? -1 : 1));
		lines.push(
			"",
			"What breaks first, if nothing is done any more",
			...table(
				["AT", "", "ETCDSTORAGE", "WHAT"],
				first.map((one) => [...instant(one, now), one.name, one.message]),
				"  ",
			),
		);
	}
	for (const one of etcdStorages)
		lines.push(
			"",
			...chain(one, etcdStorages.length > 1 ? [] : core.breaks, now),
		);
	if (core.certificates.length > 0)
		lines.push(
			"",
			"The core etcd's, on which all endpoints depend",
			...table(
				["CERTIFICATE", "OBJECT", "UNTIL", "LEFT"],
				core.certificates.map((one) => [
					one.certificate,
					one.object,
					stamp(one.notAfter),
					left(one, now),
				]),
				"  ",
			),
		);
	return printable(lines);
}

const instant = ({ at, already }: ShownBreak, now: string) => [
	already ? `${stamp(at)} !` : stamp(at),
	relative(at, now),
];

/** What is left of a life. */
function left(
	{ notAfter, leftPercent }: { notAfter?: string; leftPercent?: number },
	now: string,
): string {
	if (notAfter === undefined) return "-";
	const ms = Date.parse(notAfter) - Date.parse(now);
	if (ms <= 0) return "expired";
	return leftPercent === undefined ? span(ms) : `${span(ms)}, ${leftPercent}%`;
}

/** @param core what else it depends on */
function chain(one: Shown, core: ShownBreak[], now: string): string[] {
	const lines = [
		`${one.name}: ${one.endpoint}${one.source === "status" ? ", as the controller has said last; who trusts whom is not known" : ""}`,
		...one.problems.map(
			({ reason, message, person }) =>
				`  WRONG: ${reason}: ${message}${person ? " [a person must act]" : ""}`,
		),
	];
	const section = (title: string, header: string[], rows: string[][]) => {
		if (rows.length > 0)
			lines.push("", `  ${title}`, ...table(header, rows, "    "));
	};
	for (const domain of one.domains) {
		if (!domain.trouble) continue;
		lines.push(`  WRONG: ${domain.domain} domain: ${domain.trouble}`);
	}
	const all = <T>(pick: (domain: ShownDomain) => T[]) =>
		one.domains.flatMap((domain) =>
			pick(domain).map((item) => ({ ...item, domain: domain.domain })),
		);
	const phases = new Map(
		one.domains.map(({ domain, phase }) => [domain, phase]),
	);
	const dates = (life: {
		notBefore?: string;
		notAfter?: string;
		leftPercent?: number;
	}) => [
		life.notBefore ? stamp(life.notBefore) : "-",
		life.notAfter ? stamp(life.notAfter) : "-",
		left(life, now),
	];
	section(
		one.source === "status"
			? "What breaks at the latest when, if nothing is done any more"
			: "What breaks when, if nothing is done any more",
		["AT", "", "WHAT"],
		[...one.breaks, ...core]
			.sort((a, b) => (a.at < b.at ? -1 : 1))
			.map((each) => [...instant(each, now), each.message]),
	);
	const LIFE = ["FROM", "UNTIL", "LEFT"];
	section(
		"CAs",
		["CA", "DOMAIN", "PHASE", "ROLE", ...LIFE],
		all((domain) => domain.authorities).map((ca) => [
			ca.generation,
			ca.domain,
			phases.get(ca.domain) ?? "",
			ca.trouble ? `${ca.role}: ${ca.trouble}` : ca.role,
			...dates(ca),
		]),
	);
	section(
		"Cross-certificates: who trusts only the one accepts the other's certificates",
		["OF CA", "BY CA", "DOMAIN", "USE", ...LIFE],
		all((domain) => domain.crossCertificates).map((cross) => [
			cross.generation,
			cross.by,
			cross.domain,
			cross.handedOut ? "handed out" : "waits",
			...dates(cross),
		]),
	);
	section(
		"Certificates",
		["CERTIFICATE", "BY CA", "CROSS BY", ...LIFE],
		all((domain) => domain.certificates).map((leaf) => [
			leaf.certificate,
			leaf.signedBy ?? "-",
			leaf.trouble ??
				(leaf.chain
					?.map((cross) => cross.replace(`${leaf.signedBy} by `, ""))
					.join(", ") ||
					"-"),
			...dates(leaf),
		]),
	);
	section(
		"Renewed, if the controller lives",
		["CERTIFICATE", "RENEWAL", ""],
		[
			...all((domain) => domain.authorities).flatMap((ca) =>
				ca.renewalTime
					? [[`${ca.domain} CA ${ca.generation}`, ca.renewalTime]]
					: [],
			),
			...all((domain) => domain.certificates).flatMap((leaf) =>
				leaf.renewalTime ? [[leaf.certificate, leaf.renewalTime]] : [],
			),
		].map(([what = "", at = ""]) => [what, stamp(at), relative(at, now)]),
	);
	section(
		"Bundles: who reads one trusts these CAs",
		["BUNDLE", "KEY", "CAS"],
		all((domain) => domain.bundles).map((bundle) => [
			bundle.object,
			bundle.key,
			[...bundle.generations, ...(bundle.trouble ? [bundle.trouble] : [])].join(
				", ",
			) || "none",
		]),
	);
	section(
		"Who verifies, and is known to trust",
		["WHO", "DOMAIN", "CAS", ""],
		all((domain) => domain.verifiers).map((who) => [
			who.who,
			who.domain,
			who.trusts.join(", ") || "none",
			who.behind ? "BEHIND" : "",
		]),
	);
	lines.push(
		...all((domain) => domain.verifiers)
			.filter((who) => who.behind)
			.map(({ message = "" }) => `    ${message}`),
	);
	return lines;
}
