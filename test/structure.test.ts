import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dir, "..");
const files = readdirSync(root).filter((name) => name.endsWith(".ts"));

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
	// The two halves of the program.
	["gateway.ts", "operator.ts"],
	// The gateway's.
	["call.ts", "credentials.ts", "gatewaymetrics.ts", "gatewayoptions.ts"],
	["budget.ts", "core.ts"],
	["etcd.ts", "grpc.ts", "socket.ts"],
	["codec.ts", "etcdmessages.ts", "http2.ts"],
	["edits.ts", "messages.ts", "schema.ts"],
	["fields.ts", "grpcstatus.ts", "keyspace.ts", "streams.ts"],
	["framewriter.ts", "stream.ts"],
	["frames.ts", "hpack.ts"],
	// The controller's.
	["leader.ts", "metrics.ts", "options.ts", "queue.ts", "visit.ts"],
	["cache.ts", "certificates.ts", "deletion.ts", "targets.ts"],
	["drift.ts", "problems.ts"],
	["workload.ts"],
	["manifests.ts", "status.ts"],
	["reconcile.ts"],
	["pki.ts", "kube.ts"],
	["transport.ts", "x509.ts"],
	["kubeconfig.ts"],
	["objects.ts"],
	// Of both.
	["etcdstorage.ts", "flags.ts", "log.ts"],
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
			if (!from.startsWith("./") || !from.endsWith(".ts")) continue;
			const target = from.slice(2);
			if (typeOnly) continue;
			expect(
				layer(file) < layer(target) ? "downwards" : `${file} imports ${target}`,
			).toBe("downwards");
		}
});

test("a gateway loads nothing of the controller, and the entry nothing of either", () => {
	/** Of ours and of packages, by way of others or not. */
	const loaded = (file: string): string[] => [
		...new Set(
			imports(file)
				.filter(({ typeOnly }) => !typeOnly)
				.map(({ from }) => from.replace("./", ""))
				.filter((from) => !from.startsWith("node:"))
				.flatMap((from) =>
					files.includes(from) ? [from, ...loaded(from)] : [from],
				),
		),
	];
	expect(loaded("controller.ts").sort()).toEqual(["flags.ts", "log.ts"]);
	const ofController = layers.slice(
		layer("leader.ts"),
		layer("etcdstorage.ts"),
	);
	const ofGateway = loaded("gateway.ts");
	expect(ofGateway).toContain("hpack.ts");
	expect(
		ofGateway.filter((file) => ofController.flat().includes(file)),
	).toEqual([]);
	expect(ofGateway.filter((from) => !files.includes(from)).sort()).toEqual([
		"package.json",
		"prom-client",
	]);
	expect(
		loaded("operator.ts").filter(
			(file) => layer(file) >= 0 && layer(file) < layer("leader.ts"),
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
		"gatewaymetrics.ts",
		"metrics.ts",
	]);
});

test("only dependencies of package.json are imported", async () => {
	const { dependencies } = await Bun.file(join(root, "package.json")).json();
	const packages = files
		.flatMap((file) => imports(file).map(({ from }) => from))
		.filter((from) => !/^(node:|\.\/|bun$)/.test(from))
		.map((from) => /^(@[^/]+\/)?[^/]+/.exec(from)?.[0]);
	expect([...new Set(packages)].sort()).toEqual(
		Object.keys(dependencies).sort(),
	);
});

describe.each([
	"reconcile.ts",
	"status.ts",
	"drift.ts",
	"workload.ts",
	"manifests.ts",
	"problems.ts",
	"etcdstorage.ts",
	"flags.ts",
	"options.ts",
	"gatewayoptions.ts",
	"etcd.ts",
	"etcdmessages.ts",
	"codec.ts",
	"edits.ts",
	"schema.ts",
	"keyspace.ts",
	"grpc.ts",
	"grpcstatus.ts",
	"http2.ts",
	"messages.ts",
	"fields.ts",
	"streams.ts",
	"stream.ts",
	"frames.ts",
	"framewriter.ts",
	"hpack.ts",
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
			if (["./kube.ts", "./pki.ts"].includes(from))
				expect([from, typeOnly]).toEqual([from, true]);
	});
});

test("the clock is read by the shell alone", () => {
	const clocks = files.filter((file) =>
		/\bDate\.now\b|\bnew Date\(\)/.test(code(file)),
	);
	expect(clocks.sort()).toEqual([
		"credentials.ts",
		"gateway.ts",
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

test("nothing waits at the top level of a module: the compiled binary could not", () => {
	for (const file of files)
		expect([
			file,
			code(file).match(/^(?:(?:export )?(?:const|let) .*= |for )?await\b/m),
		]).toEqual([file, null]);
});
