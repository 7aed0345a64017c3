/** Real API servers on the gateway, while somebody else writes to the same core all the time. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { type ApiServer, kubeApiServer, sampleApiServer } from "./apiserver.ts";
import { binaries } from "./cluster/binaries.ts";
import {
	type DataPlane,
	type Etcd,
	type Gateway,
	startDataPlane,
} from "./dataplane.ts";
import { FIRST_BUILD, type Json, until } from "./harness.ts";

const OBJECTS = 120;
/** Keys that another tenant writes each second. */
const NOISE = 500;

let plane: DataPlane;
let core: Etcd;
const gateways: Gateway[] = [];
const servers: Record<string, ApiServer & { stop(): Promise<void> }> = {};
let noise: { written(): number; stop(): Promise<void> };

beforeAll(async () => {
	plane = await startDataPlane();
	core = await plane.etcd();
	gateways.push(
		await plane.gateway(core, { prefix: "/kube/" }),
		await plane.gateway(core, { prefix: "/sample/" }),
		await plane.gateway(core, { prefix: "/noise/" }),
	);
	const [kube, sample, other] = gateways as [Gateway, Gateway, Gateway];
	noise = await startNoise(other);
	const main = await kubeApiServer(kube);
	servers["kube-apiserver"] = { ...main, stop: () => main.plane.stop() };
	servers["sample-apiserver"] = await sampleApiServer(sample, main.plane);
}, FIRST_BUILD);

afterAll(async () => {
	await noise?.stop();
	await servers["sample-apiserver"]?.stop();
	await servers["kube-apiserver"]?.stop();
	await plane?.stop();
});

describe.each([
	[
		"kube-apiserver",
		"/api/v1/namespaces/default/configmaps",
		{ apiVersion: "v1", kind: "ConfigMap", data: { text: "x".repeat(500) } },
	],
	[
		"sample-apiserver",
		"/apis/wardle.example.com/v1alpha1/namespaces/default/flunders",
		{
			apiVersion: "wardle.example.com/v1alpha1",
			kind: "Flunder",
			spec: { reference: "x".repeat(500) },
		},
	],
])("%s on the gateway, next to a tenant that writes", (name, path, object) => {
	const server = () => servers[name] as ApiServer;
	const gateway = () => gateways[name === "kube-apiserver" ? 0 : 1] as Gateway;
	const created: Json[] = [];

	test("creates objects, and lists exactly what there was at each revision", async () => {
		for (let index = 0; index < OBJECTS; index++)
			created.push(
				await server().request("POST", path, {
					...object,
					metadata: { name: `one-${index}` },
				}),
			);
		for (const count of [1, OBJECTS / 2, OBJECTS]) {
			const { resourceVersion } = created[count - 1].metadata;
			const list = await server().request(
				"GET",
				`${path}?resourceVersion=${resourceVersion}&resourceVersionMatch=Exact`,
			);
			const names = (list.items as Json[])
				.map((item) => item.metadata.name)
				.filter((one) => one.startsWith("one-"));
			expect(names.sort()).toEqual(
				created
					.slice(0, count)
					.map((one) => one.metadata.name)
					.sort(),
			);
		}
	});

	test("lists in pages that belong together, whatever is written meanwhile", async () => {
		const names: string[] = [];
		let next = `${path}?limit=25`;
		while (next !== "") {
			const page = await server().request("GET", next);
			names.push(...(page.items as Json[]).map((item) => item.metadata.name));
			const token = page.metadata.continue;
			next = token ? `${path}?limit=25&continue=${token}` : "";
		}
		expect(names.filter((one) => one.startsWith("one-")).sort()).toEqual(
			created.map((one) => one.metadata.name).sort(),
		);
	});

	test("answers every consistent list from its watch cache", async () => {
		const reads = (labels: Record<string, string>) =>
			server().metric("apiserver_watch_cache_consistent_read_total", labels);
		const before = await reads({ success: "true" });
		const written = noise.written();
		for (let index = 0; index < 30; index++) {
			const list = await server().request("GET", path);
			expect(list.items.length).toBeGreaterThanOrEqual(OBJECTS);
		}
		expect(noise.written()).toBeGreaterThan(written);
		expect(await reads({ success: "true" })).toBeGreaterThanOrEqual(
			before + 30,
		);
		expect(await reads({ success: "false" })).toBe(0);
		expect(await reads({ fallback: "true" })).toBe(0);
	});

	test("watches: every change arrives once and in order", async () => {
		const list = await server().request("GET", path);
		const from = list.metadata.resourceVersion;
		const last = created.slice(0, 40);
		for (const one of last)
			await server().request("DELETE", `${path}/${one.metadata.name}`);
		const events = String(
			await server().request(
				"GET",
				`${path}?watch=1&resourceVersion=${from}&timeoutSeconds=2`,
			),
		);
		const seen = events
			.trim()
			.split("\n")
			.map((line) => JSON.parse(line))
			.filter(({ type }) => type === "DELETED")
			.map(({ object }) => object.metadata.name);
		expect(seen).toEqual(last.map((one) => one.metadata.name));
	});

	test("uses the gateway's streamed ranges, and asks nothing that is refused", async () => {
		const streamed = await gateway().metric(
			"etcdproxy_gateway_requests_total",
			{ method: "RangeStream", code: "OK" },
		);
		expect(streamed).toBeGreaterThan(0);
		expect(await gateway().metric("etcdproxy_gateway_refusals_total")).toBe(0);
		expect(await gateway().metric("etcdproxy_gateway_budget_cuts_total")).toBe(
			0,
		);
	});

	test("has no error in its log", () => {
		expect(server().errors()).toEqual([]);
	});
});

/** Another tenant, who writes through a gateway of its own with etcd's Go client. */
async function startNoise(gateway: Gateway): Promise<typeof noise> {
	const { etcdscript } = await binaries(["etcdscript"]);
	const child = Bun.spawn(
		[
			etcdscript,
			"--endpoint",
			gateway.url,
			"--cacert",
			gateway.caFile,
			"--cert",
			gateway.certFile,
			"--key",
			gateway.keyFile,
		],
		{ stdin: "pipe", stdout: "pipe", stderr: "inherit" },
	);
	let sent = 0;
	let written = 0;
	const timer = setInterval(() => {
		// No backlog: who cannot keep up writes less.
		for (let index = 0; index < NOISE / 50 && sent - written < 100; index++) {
			const key = `key-${sent++ % 1000}`;
			child.stdin.write(
				`${JSON.stringify({ op: "put", key, value: "noise" })}\n`,
			);
		}
		child.stdin.flush();
	}, 20);
	const reading = (async () => {
		const decoder = new TextDecoder();
		for await (const chunk of child.stdout) {
			const text = decoder.decode(chunk);
			if (text.includes('"error"')) throw new Error(text);
			written += text.split("\n").length - 1;
		}
	})();
	await until(() => written > 0, "the other tenant writes");
	return {
		written: () => written,
		async stop() {
			clearInterval(timer);
			child.stdin.end();
			await reading;
			await child.exited;
		},
	};
}
