import { expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { flagRows } from "../options.ts";

const root = resolve(import.meta.dir, "..");
const path = resolve(root, "README.md");
const readme = readFileSync(path, "utf8");
const source = (...files: string[]) =>
	files.map((file) => readFileSync(resolve(root, file), "utf8")).join("\n");

test("the README's table of flags is what --help says", () => {
	const escaped = (text: string) => text.replaceAll("|", "\\|");
	const code = (text: string) =>
		text === "" || text === "false" ? "" : `\`${escaped(text)}\``;
	const rows = flagRows().map(
		([flag, fallback, description]) =>
			`| ${code(flag)} | ${code(fallback)} | ${escaped(description)} |`,
	);
	const table = [
		"| flag | default | meaning |",
		"| --- | --- | --- |",
		...rows,
	].join("\n");
	const wanted = readme.replace(
		/(<!-- flags: .* -->\n)[\s\S]*(<!-- \/flags -->)/,
		`$1${table}\n$2`,
	);
	if (process.env.UPDATE) writeFileSync(path, wanted);
	else expect(readme).toBe(wanted);
});

test("the README names every reason, event and metric of the code, and no other", () => {
	const code = source("status.ts", "problems.ts", "visit.ts", "metrics.ts");
	const metrics = [...code.matchAll(/"(etcdproxy_\w+)"/g)].map(
		([, name]) => name ?? "",
	);
	expect(metrics.length).toBeGreaterThan(8);
	for (const name of metrics) expect(readme).toContain(name);
	for (const [, name = ""] of readme.matchAll(/`(etcdproxy_\w+)`/g))
		expect(metrics).toContain(name);
	const reasons = [
		...code.matchAll(
			/"((?:Target|Core|Name|Invalid|Predecessor|Failed|EtcdStorage|Certificates|Data|As|Deployment)[A-Z]\w+)"/g,
		),
	]
		.map(([, name]) => name ?? "")
		.filter((name) => !["CertificatesReady", "EtcdStorage"].includes(name));
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
