/**
 * The three ways to install bring the same: artifacts/deployment/00-etcdproxy-controller.yaml is the source, kustomize
 * reads it, and the chart is held to it. What the chart has of other files is a copy:
 * `UPDATE=1 bun test test/chart.test.ts`.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { cp, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { flags } from "../options.ts";
import packageJson from "../package.json" with { type: "json" };
import { binaries } from "./cluster/binaries.ts";
import { terminalLog } from "./cluster/steps.ts";
import { FIRST_BUILD, type Json, NAMESPACE } from "./harness.ts";
import {
	artifacts,
	byId,
	chart,
	commandLine,
	helm,
	KEEP,
	kustomized,
	manifest,
	objectsIn,
	one,
	templated,
} from "./installation.ts";

const CONTROLLER = "etcdproxy-controller-deployment";
/** As in the manifest. */
const core = { urls: ["https://etcd-svc-1.etcd.svc:2379"] };

let scratch: string;
beforeAll(async () => {
	await binaries(["helm", "kubectl"], terminalLog());
	scratch = await mkdtemp(join(tmpdir(), "etcdproxy-chart-"));
}, FIRST_BUILD);
afterAll(() => rm(scratch, { recursive: true, force: true }));

/**
 * A CustomResourceDefinition among the templates and not in crds/, which Helm installs once and never upgrades; kept when
 * the release goes, for all EtcdStorages would go with it.
 */
function crdTemplate(text: string): string {
	const [document = ""] = text
		.split(/^---\n/m)
		.filter((one) => one.includes("\nkind: CustomResourceDefinition\n"));
	return document.replace(
		/^( +)name: etcdstorages\.etcd\.xmudrii\.com\n/m,
		`$&$1annotations: { ${KEEP}: keep }\n`,
	);
}
const asItIs = (text: string) => text;

test.each<[copy: string, source: string, edit: (text: string) => string]>([
	[
		"templates/crd.yaml",
		"deployment/00-etcdproxy-controller.yaml",
		crdTemplate,
	],
	["files/podmonitor.yaml", "monitoring/podmonitor.yaml", asItIs],
	["files/prometheus-rules.yaml", "monitoring/prometheus-rules.yaml", asItIs],
])("the chart's %s is a copy of %s", (copy, source, edit) => {
	const wanted = edit(readFileSync(join(artifacts, source), "utf8"));
	if (process.env.UPDATE) writeFileSync(join(chart, copy), wanted);
	expect(readFileSync(join(chart, copy), "utf8")).toBe(wanted);
});

test("the chart's versions are those of package.json, and its image is the default of --etcd-proxy-image", () => {
	const read = (file: string) =>
		Bun.YAML.parse(readFileSync(join(chart, file), "utf8")) as Json;
	const { version, appVersion } = read("Chart.yaml");
	expect([version, appVersion]).toEqual([
		packageJson.version,
		`v${packageJson.version}`,
	]);
	expect(read("values.yaml").image).toBe(flags["etcd-proxy-image"].default);
});

test("helm finds nothing to complain about", async () => {
	const answer = await helm(scratch, ["lint", chart, "--strict"], { core });
	expect(answer).toContain("1 chart(s) linted, 0 chart(s) failed");
	expect(answer).not.toMatch(/WARNING|ERROR/);
});

/** Helm makes the namespace, and keeps it: `--create-namespace`. */
const withoutNamespace = (objects: Json[]) =>
	objects.filter(({ kind }) => kind !== "Namespace");

/** The chart's objects, but for what tells Helm to leave the CustomResourceDefinition. */
async function chartObjects(values: object, namespace?: string) {
	const objects = await templated(scratch, values, namespace);
	const crd = one(objects, "CustomResourceDefinition");
	expect(crd.metadata.annotations).toEqual({ [KEEP]: "keep" });
	delete crd.metadata.annotations;
	return objects;
}

/** The objects of a kustomization in the place of the example, whose text it is given. */
async function overlay(edit: (text: string) => string): Promise<Json[]> {
	const copy = await mkdtemp(join(scratch, "artifacts-"));
	await cp(artifacts, copy, { recursive: true });
	const folder = join(copy, "overlays/example");
	const file = join(folder, "kustomization.yaml");
	writeFileSync(file, edit(readFileSync(file, "utf8")));
	return kustomized(folder);
}

describe("without edits", () => {
	test("kustomize brings the manifest as it is", async () => {
		const objects = await kustomized(join(artifacts, "deployment"));
		expect(byId(objects)).toEqual(byId(manifest()));
	});

	test("the chart brings the manifest as it is, but for the Namespace, which is Helm's to make", async () => {
		const objects = await chartObjects({ core });
		expect(byId(objects)).toEqual(byId(withoutNamespace(manifest())));
	});
});

describe("the example of an overlay", () => {
	test("brings what the chart brings with the same values", async () => {
		const objects = await overlay(asItIs);
		const values = {
			core: {
				urls: [
					"https://etcd-1.example.com:12379",
					"https://etcd-2.example.com:12379",
				],
			},
			image: "registry.example.com/etcdproxy-controller:v1.0.0-alpha.1",
			imagePullSecrets: [{ name: "registry-credentials" }],
			replicas: 3,
			resources: {
				requests: { cpu: "50m", memory: "256Mi" },
				limits: { memory: "1Gi" },
			},
		};
		expect(byId(withoutNamespace(objects))).toEqual(
			byId(await chartObjects(values, "etcdproxy")),
		);
	});

	test("says the image once, and both controller and gateways run it", async () => {
		const objects = await overlay((text) => {
			expect(text.match(/newTag: .*$/gm)).toHaveLength(1);
			return text.replace(/newTag: .*$/m, `digest: sha256:${"0".repeat(64)}`);
		});
		const image = `registry.example.com/etcdproxy-controller@sha256:${"0".repeat(64)}`;
		const [container] = one(objects, "Deployment").spec.template.spec
			.containers;
		expect(container.image).toBe(image);
		expect(commandLine(objects)).toContain(`--etcd-proxy-image=${image}`);
	});

	test("has a line for monitoring that, put in, brings all of artifacts/monitoring", async () => {
		const objects = await overlay((text) => {
			expect(text).toContain("\n# components: ");
			return text.replace("\n# components: ", "\ncomponents: ");
		});
		const values = { core, monitoring: { enabled: true } };
		const monitored = (all: Json[]) =>
			byId(all.filter((each) => each.apiVersion.startsWith("monitoring.")));
		expect(Object.keys(monitored(objects)).sort()).toEqual([
			"PodMonitor etcdproxy/etcdproxy-controller",
			"PodMonitor etcdproxy/etcdproxy-gateways",
			"PrometheusRule etcdproxy/etcdproxy-controller",
		]);
		expect(monitored(objects)).toEqual(
			monitored(await chartObjects(values, "etcdproxy")),
		);
	});

	test.each(["overlay", "chart"])(
		"(%s) has another namespace everywhere, but for events, which lie in the namespace default",
		async (which) => {
			const objects =
				which === "chart"
					? await chartObjects({ core }, "etcdproxy")
					: await overlay(asItIs);
			expect(JSON.stringify(objects)).not.toContain(NAMESPACE);
			const elsewhere = objects.filter(
				({ metadata: { namespace } }) =>
					namespace !== undefined && namespace !== "etcdproxy",
			);
			expect(Object.keys(byId(elsewhere)).sort()).toEqual([
				"Role default/etcdproxy-events-role",
				"RoleBinding default/etcdproxy-events-rolebinding",
			]);
			const subjects = objects.flatMap((object) => object.subjects ?? []);
			expect(subjects).toHaveLength(3);
			for (const { namespace } of subjects) expect(namespace).toBe("etcdproxy");
			if (which === "overlay")
				expect(one(objects, "Namespace").metadata).toEqual({
					...one(manifest(), "Namespace").metadata,
					name: "etcdproxy",
				});
		},
	);
});

/** Each value that the chart has, and a kustomization that does the same, where that has a way to say it. */
const deployment = (spec: object) => ({
	patches: [
		{
			patch: JSON.stringify({
				apiVersion: "apps/v1",
				kind: "Deployment",
				metadata: { name: CONTROLLER, namespace: NAMESPACE },
				spec: { template: { spec } },
			}),
		},
	],
});
const container = (spec: object) =>
	deployment({ containers: [{ name: "etcdproxy-controller", ...spec }] });
const variable = (name: string, value: string) =>
	container({ env: [{ name, value }] });
const edited = (kind: string, name: string, ...operations: object[]) => ({
	patches: [{ target: { kind, name }, patch: JSON.stringify(operations) }],
});
const argument = (flag: string, value: string) => {
	const index = one(
		manifest(),
		"Deployment",
	).spec.template.spec.containers[0].args.findIndex((arg: string) =>
		arg.startsWith(`${flag}=`),
	);
	const path = `/spec/template/spec/containers/0/args/${index}`;
	const replaced = { op: "replace", path, value: `${flag}=${value}` };
	return edited("Deployment", CONTROLLER, replaced);
};
const both = (...parts: { patches: object[] }[]) => ({
	patches: parts.flatMap(({ patches }) => patches),
});
const gone = (kind: string, name: string) => ({
	patches: [
		{
			target: { kind, name },
			patch: JSON.stringify({ $patch: "delete", kind, metadata: { name } }),
		},
	],
});
const priority = (name: string | null) =>
	both(
		deployment({ priorityClassName: name }),
		argument("--etcd-proxy-priority-class", name ?? ""),
	);
const ports = (name: string, ...numbers: number[]) =>
	edited("NetworkPolicy", name, {
		...{ op: "replace", path: "/spec/egress/0/ports" },
		value: numbers.map((port) => ({ protocol: "TCP", port })),
	});
const toleration = { key: "node-role.kubernetes.io/control-plane" };
const pullSecrets = [{ name: "registry-credentials" }];
const resources = { limits: { cpu: "1", memory: "1Gi" } };

const cases: [what: string, values: Json, kustomization: object][] = [
	[
		"core.urls",
		{ core: { urls: ["https://10.0.0.1:2379", "https://[fd00::2]:2379"] } },
		variable("ETCD_CORE_URL", "https://10.0.0.1:2379,https://[fd00::2]:2379"),
	],
	[
		"core.urls with ports",
		{
			core: {
				urls: ["https://a-1:4001", "https://b-2", "https://c:4001"],
			},
		},
		both(
			variable("ETCD_CORE_URL", "https://a-1:4001,https://b-2,https://c:4001"),
			ports("etcdproxy-gateways", 4001, 443),
		),
	],
	[
		"core.caConfigMap",
		{ core: { caConfigMap: "core-ca" } },
		argument("--etcd-core-ca-configmap", "core-ca"),
	],
	[
		"core.certsSecret",
		{ core: { certsSecret: "core-client" } },
		argument("--etcd-core-certs-secret", "core-client"),
	],
	[
		"image",
		{ image: `localhost:5000/a/b:v1@sha256:${"1".repeat(64)}` },
		both(
			container({ image: `localhost:5000/a/b:v1@sha256:${"1".repeat(64)}` }),
			variable(
				"ETCDPROXY_IMAGE",
				`localhost:5000/a/b:v1@sha256:${"1".repeat(64)}`,
			),
		),
	],
	[
		"proxyImage",
		{ proxyImage: "gcr.io/etcd-development/etcd:v3.7.3" },
		variable("ETCDPROXY_IMAGE", "gcr.io/etcd-development/etcd:v3.7.3"),
	],
	[
		"imagePullSecrets",
		{ imagePullSecrets: pullSecrets },
		edited("ServiceAccount", "etcdproxy-.*", {
			...{ op: "add", path: "/imagePullSecrets", value: pullSecrets },
		}),
	],
	["replicas", { replicas: 1 }, { replicas: [{ name: CONTROLLER, count: 1 }] }],
	[
		"resources",
		{ resources: { ...resources, requests: null } },
		container({ resources: { ...resources, requests: null } }),
	],
	[
		"nodeSelector",
		{ nodeSelector: { disk: "ssd" } },
		deployment({ nodeSelector: { disk: "ssd" } }),
	],
	[
		"tolerations",
		{ tolerations: [toleration] },
		deployment({ tolerations: [toleration] }),
	],
	["logFormat", { logFormat: "json" }, argument("--log-format", "json")],
	[
		"priorityClass.name",
		{ priorityClass: { name: "storage" } },
		both(
			priority("storage"),
			edited("PriorityClass", "etcdproxy", {
				...{ op: "replace", path: "/metadata/name", value: "storage" },
			}),
		),
	],
	[
		"priorityClass.create",
		{ priorityClass: { create: false, name: "system-cluster-critical" } },
		both(
			priority("system-cluster-critical"),
			gone("PriorityClass", "etcdproxy"),
		),
	],
	[
		"priorityClass without any",
		{ priorityClass: { create: false, name: "" } },
		both(priority(null), gone("PriorityClass", "etcdproxy")),
	],
	[
		"networkPolicies.enabled",
		{ networkPolicies: { enabled: false } },
		gone("NetworkPolicy", "etcdproxy-.*"),
	],
	[
		"networkPolicies.corePorts",
		{ networkPolicies: { corePorts: [12379, 22379] } },
		ports("etcdproxy-gateways", 12379, 22379),
	],
	[
		"networkPolicies.apiServerPorts",
		{ networkPolicies: { apiServerPorts: [16443] } },
		ports("etcdproxy-controller", 16443),
	],
	[
		"monitoring.enabled",
		{ monitoring: { enabled: true } },
		{ components: ["../../monitoring"] },
	],
	[
		"monitoring.labels",
		{ monitoring: { enabled: true, labels: { release: "prometheus" } } },
		{
			components: ["../../monitoring"],
			...edited("PodMonitor|PrometheusRule", ".*", {
				...{ op: "add", path: "/metadata/labels" },
				value: { release: "prometheus" },
			}),
		},
	],
];

describe("a value of the chart does what a kustomization can do:", () => {
	test.each(cases)("%s", async (_, values, kustomization) => {
		const objects = await overlay(() =>
			Bun.YAML.stringify({ resources: ["../../deployment"], ...kustomization }),
		);
		const given = { ...values, core: { ...core, ...values.core } };
		const ofChart = byId(await chartObjects(given));
		expect(ofChart).toEqual(byId(withoutNamespace(objects)));
		expect(ofChart).not.toEqual(byId(withoutNamespace(manifest())));
	});

	test("and there is no other value", async () => {
		const [values] = objectsIn(
			await Bun.file(join(chart, "values.yaml")).text(),
		);
		const leaves = Object.entries<Json>(values).flatMap(([name, value]) =>
			["core", "priorityClass", "networkPolicies", "monitoring"].includes(name)
				? Object.keys(value).map((key) => `${name}.${key}`)
				: [name],
		);
		const tried = cases.map(([what]) => what);
		expect(leaves.filter((leaf) => !tried.includes(leaf))).toEqual([]);
		const schema = await Bun.file(join(chart, "values.schema.json")).json();
		expect(Object.keys(schema.properties).sort()).toEqual(
			[...Object.keys(values), "global"].sort(),
		);
	});
});

describe("the chart refuses", () => {
	test.each<[what: string, values: object, message: RegExp]>([
		[
			"to be installed without the core's URLs",
			{},
			/core\.urls is required: the client URLs of the core etcd, for example --set 'core\.urls=\{https:\/\/etcd-svc-1\.etcd\.svc:2379\}'/,
		],
		[
			"a URL without TLS",
			{ core: { urls: ["http://etcd:2379"] } },
			/at '\/core\/urls\/0': 'http:\/\/etcd:2379' does not match pattern '\^https/,
		],
		[
			"several URLs in one",
			{ core: { urls: ["https://a:2379,https://b:2379"] } },
			/at '\/core\/urls\/0': .* does not match pattern/,
		],
		[
			"one URL in the place of a list",
			{ core: { urls: "https://a:2379" } },
			/at '\/core\/urls': got string, want array/,
		],
		[
			"a value that it does not have",
			{ core, coreUrl: "https://a:2379" },
			/additional properties 'coreUrl' not allowed/,
		],
		[
			"a value that it does not have there",
			{ core: { ...core, url: "https://a:2379" } },
			/at '\/core': additional properties 'url' not allowed/,
		],
		[
			"a name that can be none",
			{ core: { ...core, certsSecret: "Core_Certs" } },
			/at '\/core\/certsSecret': 'Core_Certs' does not match pattern/,
		],
		[
			"an image that can be none",
			{ core, image: "registry.example.com/controller:" },
			/at '\/image': .* does not match pattern/,
		],
		[
			"a number as text",
			{ core, replicas: "3" },
			/at '\/replicas': got string, want integer/,
		],
		[
			"a port that is none",
			{ core, networkPolicies: { corePorts: [70_000] } },
			/at '\/networkPolicies\/corePorts\/0': maximum: got 70,?000, want 65,?535/,
		],
		[
			"a log format that is none",
			{ core, logFormat: "xml" },
			/at '\/logFormat': value must be one of 'text', 'json'/,
		],
		[
			"a PriorityClass without a name",
			{ core, priorityClass: { name: "" } },
			/priorityClass\.name must not be empty, unless priorityClass\.create is false/,
		],
	])("%s, and says so", async (_, values, message) => {
		await expect(templated(scratch, values)).rejects.toThrow(message);
	});
});
