import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";

const root = join(import.meta.dir, "..");
/** Each holds the insides of the file of its name. */
const folders = ["etcd", "gateway", "http2"];
const files = ["", ...folders].flatMap((folder) =>
	readdirSync(join(root, folder))
		.filter((name) => name.endsWith(".ts"))
		.map((name) => join(folder, name)),
);

/** What a relative import names, from the root. */
const resolved = (file: string, from: string) =>
	from.startsWith(".") ? join(dirname(file), from) : from;

/** A module's source without comments, and without what stands in quotes. */
const code = (file: string) =>
	readFileSync(join(root, file), "utf8")
		.replace(/\/\*[\s\S]*?\*\//g, "")
		.replace(/"(?:[^"\\\n]|\\.)*"|\/\/.*$/gm, (text) =>
			text.startsWith('"') ? '""' : "",
		);

/** What a module imports, by specifier; types only or not. */
function imports(file: string): { from: string; typeOnly: boolean }[] {
	const source = readFileSync(join(root, file), "utf8");
	return [
		...source.matchAll(
			/^(?:import|export)\s+(type\s)?(?:([^"';]*?)\sfrom\s+)?"([^"]+)"/gm,
		),
	].map(([, type, what = "", from = ""]) => ({
		from,
		// `import { type A, type B }` is for types only, too.
		typeOnly:
			type !== undefined ||
			(/^\{[^}]*\}$/s.test(what.trim()) &&
				what
					.replace(/[{}\s]+/g, " ")
					.split(",")
					.map((name) => name.trim())
					.filter((name) => name !== "")
					.every((name) => name.startsWith("type "))),
	}));
}

const importers = (specifier: RegExp) =>
	files.filter((file) =>
		imports(file).some(({ from }) => specifier.test(from)),
	);

/** From the shell to the core: each may run the ones behind it, never one before it. */
const layers = [
	["controller.ts"],
	// The halves of the program.
	["gateway.ts", "inspect.ts", "operator.ts"],
	// The gateway's.
	["gateway/listener.ts", "gateway/options.ts"],
	["gateway/call.ts", "gateway/credentials.ts", "gateway/metrics.ts"],
	["gateway/budget.ts", "gateway/core.ts"],
	["etcd.ts", "gateway/socket.ts"],
	["etcd/codec.ts", "etcd/messages.ts"],
	["etcd/edits.ts", "etcd/schema.ts"],
	["etcd/keyspace.ts", "grpc.ts"],
	["http2.ts"],
	["http2/messages.ts"],
	["http2/fields.ts", "http2/streams.ts"],
	["http2/framewriter.ts", "http2/stream.ts"],
	["http2/frames.ts", "http2/hpack.ts"],
	// The controller's.
	["report.ts", "tables.ts"],
	[
		...["clock.ts", "leader.ts", "metrics.ts", "options.ts", "pace.ts"],
		...["queue.ts", "visit.ts"],
	],
	["deletion.ts", "writer.ts"],
	["observe.ts"],
	["adoption.ts"],
	[
		...["cache.ts", "certificates.ts", "consumers.ts", "drykube.ts"],
		...["proxies.ts", "targets.ts"],
	],
	["drift.ts", "problems.ts", "rollout.ts"],
	["workload.ts"],
	["manifests.ts", "status.ts"],
	["reconcile.ts", "trust.ts"],
	["rotation.ts"],
	["certifier.ts"],
	["signers.ts"],
	["lifetimes.ts"],
	["pki.ts", "kube.ts"],
	["transport.ts", "x509.ts"],
	["kubeconfig.ts"],
	["objects.ts"],
	// Of both.
	["etcdstorage.ts", "flags.ts", "log.ts"],
	["version.ts"],
];
const layer = (file: string) =>
	layers.findIndex((names) => names.includes(file));

test("every module has its place", () => {
	expect(files.filter((file) => !layers.flat().includes(file))).toEqual([]);
	expect(layers.flat().filter((file) => !files.includes(file))).toEqual([]);
});

test("imports go one way, from the shell to the core", () => {
	for (const file of files)
		for (const { from, typeOnly } of imports(file)) {
			if (!from.startsWith(".") || !from.endsWith(".ts") || typeOnly) continue;
			const target = resolved(file, from);
			expect(
				layer(file) < layer(target) ? "downwards" : `${file} imports ${target}`,
			).toBe("downwards");
		}
});

test("the insides of a folder are imported by the file of its name, and by each other", () => {
	for (const file of files)
		for (const { from } of imports(file)) {
			const target = resolved(file, from);
			const folder = folders.find((name) => target.startsWith(`${name}/`));
			if (folder === undefined || file === `${folder}.ts`) continue;
			expect([target, dirname(file)]).toEqual([target, folder]);
		}
});

test("a gateway loads nothing of the controller, and the entry nothing of either", () => {
	/** Of ours and of packages, by way of others or not. */
	const loaded = (file: string): string[] => [
		...new Set(
			imports(file)
				.filter(({ typeOnly }) => !typeOnly)
				.map(({ from }) => resolved(file, from))
				.filter((from) => !from.startsWith("node:"))
				.flatMap((from) =>
					files.includes(from) ? [from, ...loaded(from)] : [from],
				),
		),
	];
	expect(loaded("controller.ts").sort()).toEqual(["flags.ts", "log.ts"]);
	const ofController = layers.slice(
		layer("report.ts"),
		layer("etcdstorage.ts"),
	);
	const ofGateway = loaded("gateway.ts");
	expect(ofGateway).toContain("http2/hpack.ts");
	expect(
		ofGateway.filter((file) => ofController.flat().includes(file)),
	).toEqual([]);
	expect(ofGateway.filter((from) => !files.includes(from)).sort()).toEqual([
		"package.json",
		"prom-client",
	]);
	expect(
		loaded("operator.ts").filter(
			(file) => layer(file) >= 0 && layer(file) < layer("report.ts"),
		),
	).toEqual([]);
});

test("only kubeconfig.ts imports Kubernetes' client, and of that only the credentials", () => {
	expect(importers(/^@kubernetes\/client-node/)).toEqual(["kubeconfig.ts"]);
	expect(
		imports("kubeconfig.ts").filter(({ from }) =>
			from.startsWith("@kubernetes/"),
		),
	).toEqual([
		{ from: "@kubernetes/client-node/dist/config.js", typeOnly: false },
	]);
});

test("only pki.ts and x509.ts know ASN.1", () => {
	expect(importers(/^(pkijs|asn1js)$/).sort()).toEqual(["pki.ts", "x509.ts"]);
});

test("only metrics are made with prom-client", () => {
	expect(importers(/^prom-client$/).sort()).toEqual([
		"gateway/metrics.ts",
		"metrics.ts",
	]);
});

test("only dependencies of package.json are imported", async () => {
	const { dependencies } = await Bun.file(join(root, "package.json")).json();
	const packages = files
		.flatMap((file) => imports(file).map(({ from }) => from))
		.filter((from) => !/^(node:|\.|bun$)/.test(from))
		.map((from) => /^(@[^/]+\/)?[^/]+/.exec(from)?.[0]);
	expect([...new Set(packages)].sort()).toEqual(
		Object.keys(dependencies).sort(),
	);
});

describe.each([
	"adoption.ts",
	"clock.ts",
	"certifier.ts",
	"lifetimes.ts",
	"reconcile.ts",
	"rotation.ts",
	"report.ts",
	"rollout.ts",
	"signers.ts",
	"status.ts",
	"tables.ts",
	"trust.ts",
	"drift.ts",
	"workload.ts",
	"manifests.ts",
	"problems.ts",
	"etcdstorage.ts",
	"flags.ts",
	"version.ts",
	"options.ts",
	"gateway/options.ts",
	"etcd.ts",
	"grpc.ts",
	"http2.ts",
	...files.filter((file) => /^(etcd|http2)\//.test(file)),
])("%s", (file) => {
	test.each([
		/\bawait\b/,
		/\basync\b/,
		/\bPromise\b/,
		/\bDate\.now\b/,
		/\bnew Date\(\)/,
		/\bperformance\b/,
		/\bMath\.random\b/,
		/\bcrypto\./,
		/\brandom(UUID|Bytes)\b/,
		/\bfetch\(/,
		/\bsetTimeout\b/,
		/\bprocess\./,
		/\bBun\./,
		/\bconsole\./,
	])("is pure: it has no %p", (impurity) => {
		expect(code(file)).not.toMatch(impurity);
	});

	test("is pure: of Node it imports at most hashes, and words into flags", () => {
		const fromNode = imports(file).filter(({ from }) =>
			/^(node:|bun)/.test(from),
		);
		for (const { from } of fromNode)
			expect(from).toBe(file === "flags.ts" ? "node:util" : "node:crypto");
	});

	test("is pure: what it imports of the API server and of X.509 are types", () => {
		for (const { from, typeOnly } of imports(file))
			if (["kube.ts", "pki.ts"].includes(resolved(file, from)))
				expect([from, typeOnly]).toEqual([from, true]);
	});
});

test("the clock is read by the shell alone", () => {
	const clocks = files.filter((file) =>
		/\bDate\.now\b|\bnew Date\(\)/.test(code(file)),
	);
	expect(clocks.sort()).toEqual([
		"gateway/credentials.ts",
		"gateway/listener.ts",
		"inspect.ts",
		"leader.ts",
		"log.ts",
		"metrics.ts",
		"operator.ts",
	]);
});

test("errors are not swallowed, types not silenced, lines not left for later", () => {
	for (const file of files) {
		const source = readFileSync(join(root, file), "utf8");
		expect([file, source.match(/catch \{\s*\}/)]).toEqual([file, null]);
		expect([
			file,
			source.match(/@ts-|: any\b|as any\b|\bTODO\b|\bFIXME\b/),
		]).toEqual([file, null]);
	}
});

test("what builds the program is no part of it, and knows of it only how it is described", () => {
	for (const file of files)
		for (const { from } of imports(file))
			expect(resolved(file, from)).not.toMatch(/^(build|test)\//);
	for (const name of readdirSync(join(root, "build")).filter((one) =>
		one.endsWith(".ts"),
	))
		for (const { from } of imports(join("build", name)))
			if (from.startsWith("../"))
				expect(["../package.json", "../version.ts"]).toContain(from);
});

test("nothing waits at the top level of a module: the compiled binary could not", () => {
	for (const file of files)
		expect([
			file,
			code(file).match(/^(?:(?:export )?(?:const|let) .*= |for )?await\b/m),
		]).toEqual([file, null]);
});
