/** What the three ways to install bring, as objects: the manifest, kustomize, and the chart. */
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { binaries } from "./cluster/binaries.ts";
import { run } from "./cluster/processes.ts";
import type { Json } from "./harness.ts";

export const artifacts = resolve(import.meta.dir, "../artifacts");
export const manifestFile = join(
	artifacts,
	"deployment/00-etcdproxy-controller.yaml",
);
export const chart = join(artifacts, "helm/etcdproxy-controller");

/** On what Helm is to leave when the release goes. */
export const KEEP = "helm.sh/resource-policy";

/** The objects of a YAML stream. */
export const objectsIn = (text: string): Json[] =>
	[Bun.YAML.parse(text)].flat().filter((object) => object !== null);

/** The source of the other two. */
export const manifest = (): Json[] =>
	objectsIn(readFileSync(manifestFile, "utf8"));

/** `Kind namespace/name` */
const idOf = ({ kind, metadata: { namespace, name } }: Json): string =>
	`${kind} ${namespace === undefined ? "" : `${namespace}/`}${name}`;

/** Objects in no order, nor their environment, of which kustomize moves what it changes to the front. */
export const byId = (objects: Json[]): Record<string, Json> =>
	Object.fromEntries(
		objects.map((object) => [
			idOf(object),
			JSON.parse(JSON.stringify(object), (key, value) =>
				key === "env"
					? value.toSorted((a: Json, b: Json) => (a.name < b.name ? -1 : 1))
					: value,
			),
		]),
	);

/** @throws Error when there is not exactly one */
export function one(objects: Json[], kind: string, name?: string): Json {
	const found = objects.filter(
		(object) =>
			object.kind === kind &&
			(name === undefined || object.metadata.name === name),
	);
	if (found.length !== 1)
		throw new Error(`${found.length} objects ${kind} ${name ?? ""}`);
	return found[0];
}

/** @param folder of a kustomization */
export async function kustomized(folder: string): Promise<Json[]> {
	const { kubectl } = await binaries(["kubectl"]);
	return objectsIn(await run([kubectl, "kustomize", folder]));
}

/** Where helm keeps what it keeps. */
export const helmHome = (home: string): Record<string, string> => ({
	HELM_CACHE_HOME: join(home, "cache"),
	HELM_CONFIG_HOME: join(home, "config"),
	HELM_DATA_HOME: join(home, "data"),
	HELM_PLUGINS: join(home, "plugins"),
});

/**
 * Runs helm.
 * @param home where its caches and settings lie
 * @param values for the commands that take some
 * @returns its standard output
 * @throws Error with its standard error
 */
export async function helm(
	home: string,
	args: string[],
	values?: object,
): Promise<string> {
	const paths = await binaries(["helm"]);
	const env = helmHome(home);
	if (values === undefined) return run([paths.helm, ...args], { env });
	const stdin = JSON.stringify(values);
	return run([paths.helm, ...args, "--values=-"], { env, stdin });
}

/** The chart, as it would be installed. */
export async function templated(
	home: string,
	values: object,
	namespace = "kube-apiserver-storage",
): Promise<Json[]> {
	const where = `--namespace=${namespace}`;
	return objectsIn(
		await helm(home, ["template", "release", chart, where], values),
	);
}

/**
 * The arguments of the installed controller, as the kubelet gives them to it.
 * https://kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container/
 */
export function commandLine(objects: Json[]): string[] {
	const { metadata, spec } = one(objects, "Deployment");
	const [{ args, env }] = spec.template.spec.containers;
	const values = new Map<string, string>(
		env.map(({ name, value, valueFrom }: Json) => [
			name,
			valueFrom?.fieldRef.fieldPath === "metadata.namespace"
				? metadata.namespace
				: value,
		]),
	);
	return args.map((arg: string) =>
		arg.replace(
			/\$\((\w+)\)/g,
			(reference, name) => values.get(name) ?? reference,
		),
	);
}
