/** The alerts and the dashboard of artifacts/monitoring, judged by promtool: https://prometheus.io/docs/prometheus/latest/command-line/promtool/ */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { copyFile, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { GatewayMetrics } from "../gateway/metrics.ts";
import { Metrics } from "../metrics.ts";
import { build } from "../version.ts";
import { binaries } from "./cluster/binaries.ts";
import { run } from "./cluster/processes.ts";
import { terminalLog } from "./cluster/steps.ts";
import { FIRST_BUILD, NAMESPACE } from "./harness.ts";

const root = resolve(import.meta.dir, "..");
const folder = join(root, "artifacts/monitoring");
/** What a scrape adds, and what histograms have. */
const SCRAPED = ["instance", "job", "namespace", "pod", "le"];

interface Rule {
	alert: string;
	expr: string;
	labels: Record<string, string>;
	annotations: Record<string, string>;
}
interface Rules {
	groups: { name: string; rules: Rule[] }[];
}
interface Panel {
	title: string;
	panels?: Panel[];
	gridPos: { x: number; y: number; w: number; h: number };
	id: number;
	targets?: { refId: string; expr: string; datasource: { uid: string } }[];
}
interface PodMonitor {
	metadata: { namespace: string };
	spec: {
		selector: {
			matchLabels?: Record<string, string>;
			matchExpressions?: { key: string; operator: string }[];
		};
		podMetricsEndpoints: { port: string; honorLabels?: boolean }[];
	};
}
interface Workload {
	kind: string;
	spec: {
		template: {
			metadata: { labels: Record<string, string> };
			spec: {
				containers: { ports?: { name: string; containerPort: number }[] }[];
			};
		};
	};
}
interface Dashboard {
	templating: { list: { name: string; definition?: string }[] };
	panels: Panel[];
}

const text = (...path: string[]) => Bun.file(join(root, ...path)).text();
const yaml = async <T>(...path: string[]) =>
	Bun.YAML.parse(await text(...path)) as T;
/** The code blocks of a language in a Markdown text. */
const blocks = (markdown: string, language: string) =>
	[...markdown.matchAll(/^```(\w+)\n(.*?)^```$/gms)]
		.filter(([, found]) => found === language)
		.map(([, , block = ""]) => block);

let promtool: string;
/** Holds rules.yaml, the rule file that the README of artifacts/monitoring makes. */
let scratch: string;
let rules: Rule[];
let dashboard: Dashboard;
let panels: Panel[];
let guide: string;

beforeAll(async () => {
	({ promtool } = await binaries(["promtool"], terminalLog()));
	scratch = await mkdtemp(join(tmpdir(), "etcdproxy-monitoring-"));
	guide = await text("artifacts/monitoring/README.md");
	const [command = ""] = blocks(guide, "sh").filter((one) =>
		one.startsWith("sed "),
	);
	expect(command).toEndWith(" > etcdproxy.rules.yaml\n");
	await Bun.write(
		join(scratch, "rules.yaml"),
		await run(["sh", "-c", command.replace(/ > .*/, "")], { cwd: root }),
	);
	rules = (
		await yaml<{ spec: Rules }>("artifacts/monitoring/prometheus-rules.yaml")
	).spec.groups.flatMap((group) => group.rules);
	dashboard = await Bun.file(join(folder, "grafana-dashboard.json")).json();
	panels = dashboard.panels.flatMap((one) => [one, ...(one.panels ?? [])]);
}, FIRST_BUILD);

afterAll(() => rm(scratch, { recursive: true, force: true }));

const check = (...args: string[]) => run([promtool, ...args], { cwd: scratch });

/** Grafana's variables, as it would fill them in. */
const filled = (expr: string) =>
	expr.replaceAll("$etcdstorage", "(a|b)").replaceAll("$__rate_interval", "2m");

/** The dashboard's queries, and where each of them stands. */
const queries = () =>
	panels.flatMap(({ title, targets = [] }) =>
		targets.map(({ refId, expr }) => ({ where: `${title} ${refId}`, expr })),
	);

const expressions = () => [
	...rules.map(({ alert, expr }) => ({ where: alert, expr })),
	...queries(),
];

/** Of the program's two halves. */
const registries = () => [
	new Metrics(build, () => ({ depth: 0, age: 0 }), new Map(), {
		now: () => 0,
		skewMs: 0,
	}).registry,
	new GatewayMetrics(build, () => new Map()).registry,
];

/** What the program exports, by the names that queries use, with their labels. */
function exported(): Map<string, string[]> {
	return new Map(
		registries()
			.flatMap((registry) => registry.getMetricsAsArray())
			.flatMap((metric) => {
				const { name } = metric;
				const histogram = String(metric.type) === "histogram";
				const labels =
					"labelNames" in metric ? (metric.labelNames as string[]) : [];
				return (histogram ? ["_bucket", "_sum", "_count"] : [""]).map(
					(suffix): [string, string[]] => [`${name}${suffix}`, labels],
				);
			}),
	);
}

/** An expression without comments, and without what stands in quotes. */
const code = (expr: string) =>
	expr.replace(/"(?:[^"\\]|\\.)*"|#.*$/gm, (part) =>
		part.startsWith('"') ? '""' : "",
	);

const KEYWORDS = ["and", "or", "unless", "bool", "offset"];
const GROUPING =
	/\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)/g;

/** The metrics that an expression names: words that are no function, keyword or label. */
const metricsIn = (expr: string) =>
	[
		...code(expr)
			.replace(/\{[^}]*\}|\[[^\]]*\]/g, "")
			.replace(GROUPING, "")
			.matchAll(/(?<![\w.:])([a-zA-Z_:][\w:]*)\b(?!\s*\()/g),
	]
		.map(([, name = ""]) => name)
		.filter((name) => !KEYWORDS.includes(name));

/** The selectors of an expression: a metric and what is asked of its labels. */
const selectorsIn = (expr: string) =>
	[...expr.matchAll(/([a-zA-Z_:][\w:]*)\{([^}]*)\}/g)].map(
		([, metric = "", matchers = ""]) => ({
			metric,
			matchers: [
				...matchers.matchAll(/(\w+)(=~|!~|!=|=)["']([^"']*)["']/g),
			].map(([, label = "", operator = "", value = ""]) => ({
				label,
				operator,
				value,
			})),
		}),
	);

test("the rules are valid for Prometheus, as the Operator's object and as the file that the README makes of it", async () => {
	const object = await yaml<{ apiVersion: string; kind: string; spec: Rules }>(
		"artifacts/monitoring/prometheus-rules.yaml",
	);
	expect([object.apiVersion, object.kind]).toEqual([
		"monitoring.coreos.com/v1",
		"PrometheusRule",
	]);
	const file = await Bun.file(join(scratch, "rules.yaml")).text();
	expect(Bun.YAML.parse(file)).toEqual(object.spec);
	const answer = await check(
		...["check", "rules", "--lint=all", "--lint-fatal", "rules.yaml"],
	);
	expect(answer).toContain(`SUCCESS: ${rules.length} rules found`);
}, 30_000);

test("each alert fires on what it is for, in the right minute and with the right words, and none fires while all is well", async () => {
	await copyFile(
		join(root, "test/monitoring/alerts.yaml"),
		join(scratch, "alerts.yaml"),
	);
	expect(await check("test", "rules", "alerts.yaml")).toContain("SUCCESS");
	const { tests } = await yaml<{
		tests: {
			alert_rule_test?: { alertname: string; exp_alerts: unknown[] }[];
		}[];
	}>("test/monitoring/alerts.yaml");
	const cases = tests.flatMap((one) => one.alert_rule_test ?? []);
	const names = (fires: boolean) =>
		new Set(
			cases
				.filter(({ exp_alerts }) => exp_alerts.length > 0 === fires)
				.map(({ alertname }) => alertname),
		);
	const all = new Set(rules.map(({ alert }) => alert));
	expect(names(true)).toEqual(all);
	expect(names(false)).toEqual(all);
}, 120_000);

test("each alert has a severity, a summary, a description, and an entry in the README's runbook", async () => {
	const readme = await text("README.md");
	const [, after = ""] = readme.split(/^#{2,3} Runbook$/m);
	const [runbook = ""] = after.split(/^#{2,3} /m);
	const headings = [...runbook.matchAll(/^#### (\w+)\n+(.+)$/gm)].map(
		([, name = ""]) => name,
	);
	const names = new Set(rules.map(({ alert }) => alert));
	expect(names.size).toBeGreaterThan(14);
	expect(new Set(headings)).toEqual(names);
	expect(headings.length).toBe(names.size);
	for (const { alert, labels, annotations } of rules) {
		expect(["warning", "critical"]).toContain(labels.severity ?? "");
		expect(Object.keys(annotations).sort()).toEqual([
			"description",
			"runbook",
			"summary",
		]);
		// GitHub's anchor of a heading that is one word.
		expect(annotations.runbook).toBe(`README.md#${alert.toLowerCase()}`);
	}
});

test("every metric that rules, dashboard and guide name is exported", () => {
	const names = exported();
	const known = (where: string, name: string) =>
		names.has(name) ? [] : [`${where}: ${name}`];
	const asked = expressions().flatMap(({ where, expr }) => {
		const found = metricsIn(expr);
		expect(found).not.toBeEmpty();
		return found.flatMap((name) => known(where, name));
	});
	const variables = dashboard.templating.list.flatMap(({ definition = "" }) =>
		[...definition.matchAll(/label_values\((\w+),/g)].flatMap(([, name = ""]) =>
			known("variable", name),
		),
	);
	const words = (where: string, prose: string) =>
		[...prose.matchAll(/\betcdproxy_\w+/g)].flatMap(([word]) =>
			word.endsWith("_") &&
			[...names.keys()].some((one) => one.startsWith(word))
				? []
				: known(where, word),
		);
	const told = rules.flatMap(({ alert, annotations }) =>
		words(alert, Object.values(annotations).join(" ")),
	);
	expect([...asked, ...variables, ...told, ...words("guide", guide)]).toEqual(
		[],
	);
});

test("every label that rules and dashboard ask for is one of the metric's, and every value one of the program's", async () => {
	const names = exported();
	const labels = new Set([...names.values()].flat().concat(SCRAPED));
	const files = ["*.ts", "gateway/*.ts"].flatMap((pattern) => [
		...new Bun.Glob(pattern).scanSync(root),
	]);
	const sources = await Promise.all(files.map((file) => text(file)));
	const told = rules.map(({ alert, annotations }) => ({
		where: alert,
		expr: annotations.description ?? "",
	}));
	const wrong: string[] = [];
	for (const { where, expr } of [...expressions(), ...told]) {
		for (const { metric, matchers } of selectorsIn(expr))
			for (const { label, operator, value } of matchers) {
				const own = names.get(metric) ?? [];
				if (!own.includes(label)) wrong.push(`${where}: ${metric} by ${label}`);
				const given = operator.includes("~") || value.startsWith("%");
				if (!given && !sources.some((source) => source.includes(`"${value}"`)))
					wrong.push(`${where}: ${label}="${value}"`);
			}
		for (const [, list = ""] of code(expr).matchAll(GROUPING))
			for (const label of list.split(",").map((one) => one.trim()))
				if (label !== "" && !labels.has(label))
					wrong.push(`${where}: grouped by ${label}`);
	}
	expect(wrong).toEqual([]);
});

test("what controller and gateway export is named and described as Prometheus wants it", async () => {
	for (const registry of registries()) {
		const lines = registry
			.getMetricsAsArray()
			.flatMap(({ name, help, type }) => [
				`# HELP ${name} ${help}`,
				`# TYPE ${name} ${type}`,
				// A metric without a sample is not looked at.
				...(String(type) === "histogram"
					? [`${name}_bucket{le="+Inf"} 1`, `${name}_sum 1`, `${name}_count 1`]
					: [`${name} 1`]),
			]);
		await run([promtool, "check", "metrics"], {
			stdin: `${lines.join("\n")}\n`,
		});
	}
});

test("every query of the dashboard is valid for Prometheus", async () => {
	const all = queries();
	expect(all.length).toBeGreaterThan(30);
	const group = {
		name: "dashboard",
		rules: all.map(({ expr }, index) => ({
			record: `dashboard:query:${index}`,
			expr: filled(expr),
		})),
	};
	expect(group.rules.filter(({ expr }) => expr.includes("$"))).toEqual([]);
	// JSON is YAML.
	await Bun.write(
		join(scratch, "dashboard.yaml"),
		JSON.stringify({ groups: [group] }),
	);
	expect(await check("check", "rules", "dashboard.yaml")).toContain(
		`SUCCESS: ${all.length} rules found`,
	);
}, 30_000);

test("the dashboard's panels have ids of their own, do not lie on each other, and ask the chosen data source", () => {
	expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
	const sources = panels.flatMap(({ targets = [] }) =>
		targets.map(({ datasource }) => datasource.uid),
	);
	expect(new Set(sources)).toEqual(new Set(["$" + "{datasource}"]));
	expect(dashboard.templating.list.map(({ name }) => name)).toEqual([
		"datasource",
		"etcdstorage",
	]);
	const cells = panels.flatMap(({ gridPos: { x, y, w, h } }) => {
		// Grafana's grid has 24 columns.
		expect(x + w).toBeLessThanOrEqual(24);
		return Array.from(
			{ length: w * h },
			(_, cell) => `${x + (cell % w)},${y + Math.floor(cell / w)}`,
		);
	});
	expect(new Set(cells).size).toBe(cells.length);
});

test("the guide's scrape configuration is valid for Prometheus", async () => {
	const [config = ""] = blocks(guide, "yaml");
	expect(config).toContain("scrape_configs:");
	await Bun.write(
		join(scratch, "prometheus.yaml"),
		config.replace("etcdproxy.rules.yaml", "rules.yaml"),
	);
	const answer = await check("check", "config", "prometheus.yaml");
	expect(answer).toContain("SUCCESS: 1 rule files found");
}, 30_000);

test("the PodMonitors select the pods of the controller and of the gateways, each by a port that it names", async () => {
	const [controller, gateways] = await yaml<PodMonitor[]>(
		"artifacts/monitoring/podmonitor.yaml",
	);
	const pods = async (...path: string[]) =>
		(await yaml<Workload[]>(...path)).find((one) => one.kind === "Deployment")
			?.spec.template;
	const pairs = [
		[
			controller,
			await pods("artifacts/deployment/00-etcdproxy-controller.yaml"),
			8080,
		],
		[gateways, await pods("test/golden/workload.yaml"), 2381],
	] as const;
	for (const [monitor, pod, port] of pairs) {
		const { matchLabels, matchExpressions } = monitor?.spec.selector ?? {};
		const keys = Object.keys(matchLabels ?? {}).concat(
			(matchExpressions ?? []).map(({ key, operator }) =>
				operator === "Exists" ? key : operator,
			),
		);
		expect(keys.length).toBe(1);
		expect(Object.keys(pod?.metadata.labels ?? {})).toEqual(keys);
		expect(pod?.metadata.labels).toMatchObject(matchLabels ?? {});
		const ports = pod?.spec.containers.flatMap((one) => one.ports ?? []) ?? [];
		for (const endpoint of monitor?.spec.podMetricsEndpoints ?? []) {
			const named = ports.filter(({ name }) => name === endpoint.port);
			expect(named.map((one) => one.containerPort)).toEqual([port]);
			// etcdproxy_gateway_core_up has a label endpoint of its own.
			expect(endpoint.honorLabels).toBe(true);
		}
		expect(monitor?.spec.podMetricsEndpoints.length).toBe(1);
		expect(monitor?.metadata.namespace).toBe(NAMESPACE);
	}
});
