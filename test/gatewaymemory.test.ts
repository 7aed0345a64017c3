/** What the gateway takes of a node's memory as it is shipped: a pod asks for 96 MiB. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import http2 from "node:http2";
import { join } from "node:path";
import { compile } from "../build/program.ts";
import { binaries } from "./cluster/binaries.ts";
import { until } from "./cluster/processes.ts";
import { type DataPlane, type Gateway, startDataPlane } from "./dataplane.ts";
import { grpc, memory, WATCH, watchCreate } from "./gatewayclient.ts";
import { FIRST_BUILD } from "./harness.ts";

const AT_REST_MIB = 90;
const CONNECTIONS = 70;
const WATCHES = 1_000;

setDefaultTimeout(180_000);

let plane: DataPlane;
let gateway: Gateway;
let sessions: http2.ClientHttp2Session[] = [];

beforeAll(async () => {
	plane = await startDataPlane();
	const { file } = await compile(join(plane.dir, "gateway"));
	gateway = await plane.gateway(await plane.etcd(), { command: [file] });
}, FIRST_BUILD);
afterAll(async () => {
	for (const session of sessions) session.destroy();
	await plane?.stop();
});

/** The collector is let come to its work, but not waited for without end. */
const isAtRest = () =>
	until(
		`the gateway has at most ${AT_REST_MIB} MiB`,
		async () => {
			const { now } = memory(gateway);
			if (now <= AT_REST_MIB) return true;
			throw new Error(`it has ${now.toFixed(0)} MiB`);
		},
		{ interval: 1_000 },
	);

test("at the start, then with a kube-apiserver's connections and watches", async () => {
	await isAtRest();
	sessions = await Promise.all(
		Array.from({ length: CONNECTIONS }, async () => {
			const session = http2.connect(gateway.url, {
				ca: readFileSync(gateway.caFile),
				cert: readFileSync(gateway.certFile),
				key: readFileSync(gateway.keyFile),
			});
			await new Promise((resolve, reject) =>
				session.once("connect", resolve).once("error", reject),
			);
			return session;
		}),
	);
	let created = 0;
	for (let index = 0; index < WATCHES; index++) {
		const session = sessions[index % CONNECTIONS] as http2.ClientHttp2Session;
		const stream = session.request({
			":method": "POST",
			":path": WATCH,
			"content-type": "application/grpc",
			te: "trailers",
		});
		// They are destroyed at the end.
		stream.on("error", () => undefined);
		stream.once("data", () => created++);
		stream.write(grpc(watchCreate(`/watched/${index}`)));
	}
	await until("all watch", async () => created === WATCHES);
	expect(await gateway.metric("etcdproxy_gateway_open_watches")).toBe(WATCHES);
	await isAtRest();
});

test("and again after it has worked", async () => {
	const { etcdload } = await binaries(["etcdload"]);
	const child = Bun.spawn(
		[
			etcdload,
			`--target=gateway=${gateway.url},cacert=${gateway.caFile},cert=${gateway.certFile},key=${gateway.keyFile}`,
			"--rows=put:64,get:64,list:16",
			...["--rounds=1", "--seconds=3"],
		],
		{ stdin: "ignore", stdout: "ignore", stderr: "ignore" },
	);
	expect(await child.exited).toBe(0);
	await isAtRest();
});
