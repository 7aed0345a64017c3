import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { type Flags, flagRows } from "../flags.ts";
import { GatewayMetrics } from "../gateway/metrics.ts";
import { gatewayFlags } from "../gateway/options.ts";
import { inspectFlags } from "../inspect.ts";
import { Metrics } from "../metrics.ts";
import { flags } from "../options.ts";
import { phases } from "../rotation.ts";
import { build } from "../version.ts";

const root = resolve(import.meta.dir, "..");
const path = resolve(root, "README.md");
const readme = readFileSync(path, "utf8");
const source = (...files: string[]) =>
	files.map((file) => readFileSync(resolve(root, file), "utf8")).join("\n");

test.each<[string, string, Flags]>([
	["flags", "options.ts", flags],
	["gateway flags", "gateway/options.ts", gatewayFlags],
	["inspect flags", "inspect.ts", inspectFlags],
])("the README's table of %s is what --help says", (title, file, table) => {
	const escaped = (text: string) => text.replaceAll("|", "\\|");
	const code = (text: string) =>
		text === "" || text === "false" ? "" : `\`${escaped(text)}\``;
	const rows = flagRows(table).map(
		([flag, fallback, description]) =>
			`| ${code(flag)} | ${code(fallback)} | ${escaped(description)} |`,
	);
	const begin = `<!-- ${title}: generated from ${file}; UPDATE=1 bun test test/readme.test.ts -->\n`;
	const before = readFileSync(path, "utf8");
	const [head = "", rest] = before.split(begin);
	expect(rest).toContain(`<!-- /${title} -->`);
	const wanted = [
		head,
		begin,
		"| flag | default | meaning |\n",
		"| --- | --- | --- |\n",
		...rows.map((row) => `${row}\n`),
		rest?.slice(rest.indexOf(`<!-- /${title} -->`)),
	].join("");
	if (process.env.UPDATE) writeFileSync(path, wanted);
	else expect(before).toBe(wanted);
});

test("the README names every reason, event and metric of the code, and no other", () => {
	const code = source(
		...["status.ts", "problems.ts", "visit.ts", "observe.ts"],
		...["consumers.ts", "proxies.ts", "deletion.ts"],
	);
	const clock = { now: () => 0, skewMs: 0 };
	const queue = () => ({ depth: 0, age: 0 });
	const [ofController, ofGateways] = [
		new Metrics(build, queue, new Map(), clock).registry,
		new GatewayMetrics(build, () => new Map()).registry,
	].map((registry) =>
		registry
			.getMetricsAsArray()
			.map(({ name }) => name)
			.filter((name) => name.startsWith("etcdproxy_")),
	);
	const metrics = [...(ofController ?? []), ...(ofGateways ?? [])];
	expect(ofGateways?.length).toBeGreaterThan(8);
	expect(ofController?.length).toBeGreaterThan(15);
	for (const name of metrics) expect(readme).toContain(`\`${name}\``);
	for (const [, name = ""] of readme.matchAll(/`(etcdproxy_\w+)`/g))
		expect(metrics).toContain(name);
	const reasons = [
		...code.matchAll(
			/"((?:Target|Core|Name|Invalid|Predecessor|Failed|EtcdStorage|Certificates?|Data|As|Deployment|Consumer|Proxy|Bundle|Signer|Rotation|Object)[A-Z]\w+)"/g,
		),
	]
		.map(([, name]) => name ?? "")
		.concat(phases.map((one) => `Rotation${one === "Steady" ? "Done" : one}`))
		.filter(
			(name) =>
				!["CertificatesReady", "EtcdStorage", "InvalidImageName"].includes(
					name,
				),
		);
	expect(reasons.length).toBeGreaterThan(12);
	for (const name of reasons) expect(readme).toContain(name);
});

test("every file that the README and its neighbours point to is there", () => {
	for (const document of ["README.md", "CONTRIBUTING.md"])
		for (const [, target = ""] of source(document).matchAll(
			/\]\((?!https:)([^)#]+)\)/g,
		))
			expect(readFileSync(resolve(root, target)).length).toBeGreaterThan(0);
});
