/** GET /client-ca: which bundle a gateway verifies its clients with. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { createHash } from "node:crypto";
import { readFile, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { bundle, parseCertificates } from "../x509.ts";
import { Authority, type Certificate } from "./cluster/certificates.ts";
import { run, until } from "./cluster/processes.ts";
import {
	type DataPlane,
	type Etcd,
	freePort,
	type Gateway,
	startDataPlane,
} from "./dataplane.ts";
import { grpc, Raw, WATCH, watchCreate } from "./gatewayclient.ts";
import { FIRST_BUILD } from "./harness.ts";
import { data } from "./http2wire.ts";

setDefaultTimeout(60_000);

let plane: DataPlane;
let core: Etcd;
let gateway: Gateway;
/** Another authority of clients, and one of its clients. */
let others: Authority;
let other: Certificate;
/** The bundle as the controller writes it, by what is in it. */
let texts: Record<"mine" | "both" | "others", string>;

beforeAll(async () => {
	plane = await startDataPlane();
	core = await plane.etcd();
	gateway = await plane.gateway(core);
	others = await Authority.create(join(plane.dir, "others"), "others-ca");
	other = await others.issue("other", { subject: "/CN=other" });
	const [one = [], two = []] = await Promise.all(
		[gateway.clients, others].map(async ({ certFile }) =>
			parseCertificates(await readFile(certFile, "utf8")),
		),
	);
	texts = {
		mine: bundle(one),
		both: bundle([...one, ...two]),
		others: bundle(two),
	};
}, FIRST_BUILD);

afterAll(() => plane?.stop());

const sha256 = (text: string) =>
	createHash("sha256").update(text).digest("hex");

async function told({ metricsUrl } = gateway) {
	const answer = await fetch(`${metricsUrl}/client-ca`);
	expect(answer.headers.get("content-type")).toStartWith("application/json");
	return { status: answer.status, body: await answer.json() };
}

const tells = (text: string) => ({
	status: 200,
	body: { sha256: sha256(text) },
});

async function swap(text: string): Promise<void> {
	const { caFile } = gateway.files;
	await writeFile(`${caFile}.new`, text);
	await rename(`${caFile}.new`, caFile);
}

/** Waits without a pause, so as to see the very first other answer. */
async function change(from: string): Promise<void> {
	const before = JSON.stringify(tells(from));
	const end = performance.now() + 20_000;
	while (JSON.stringify(await told()) === before)
		if (performance.now() > end) throw new Error("the answer does not change");
}

async function isLetIn(who: Certificate): Promise<boolean> {
	const raw = await Raw.connect({ ...gateway, ...who });
	raw.destroy();
	return raw.ready;
}

test("it is the SHA-256 of the text that the controller writes, of one certificate and of two", async () => {
	const openssl = await run(["openssl", "sha256", "-r", gateway.files.caFile]);
	await swap(texts.mine);
	expect(await told()).toEqual(tells(texts.mine));
	expect(openssl).toStartWith(sha256(texts.mine));
	await swap(texts.both);
	await change(texts.mine);
	expect(await told()).toEqual(tells(texts.both));
});

test("once it has changed, new clients are verified with the new bundle, and those that it does not trust are gone", async () => {
	await swap(texts.mine);
	await until(
		"the first alone is trusted",
		async () => !(await isLetIn(other)),
	);
	expect(await told()).toEqual(tells(texts.mine));

	await swap(texts.both);
	await change(texts.mine);
	expect(await isLetIn(other)).toBeTrue();

	const early = await Promise.all(
		Array.from({ length: 20 }, async () => {
			const raw = await Raw.connect(gateway);
			const id = raw.open(WATCH);
			raw.send(data(id, grpc(watchCreate("w"))));
			await until("it watches", async () => raw.stream(id).bytes > 0);
			return { raw, id };
		}),
	);
	const watches = () => gateway.metric("etcdproxy_gateway_open_watches");
	expect(await watches()).toBe(20);
	await swap(texts.others);
	await change(texts.both);
	expect(await watches()).toBe(0);
	expect(await isLetIn(gateway)).toBeFalse();
	expect(await isLetIn(other)).toBeTrue();
	for (const { raw } of early) {
		await until("it is closed", async () => raw.closed);
		expect(raw.goaway?.code).toBe(0);
	}
	await swap(texts.mine);
	await change(texts.others);
	expect(await isLetIn(other)).toBeFalse();
});

test.each([
	[
		"a damaged bundle",
		() => `${texts.others}-----BEGIN CERTIFICATE-----\nMIIB`,
	],
	["an empty one", () => ""],
])("%s is not told, for it is not used", async (_, text) => {
	const before = await told();
	const failures = () =>
		gateway.metric("etcdproxy_gateway_reloads_total", { result: "failed" });
	const failed = await failures();
	await swap(text());
	await until("it is refused", async () => (await failures()) > failed);
	expect(await told()).toEqual(before);
	expect(await isLetIn(gateway)).toBeTrue();
	expect(await isLetIn(other)).toBeFalse();
	await swap(texts.mine);
});

test("another serving certificate changes nothing about it", async () => {
	const before = await told();
	const loads = () =>
		gateway.metric("etcdproxy_gateway_reloads_total", {
			files: "server",
			result: "loaded",
		});
	const loaded = await loads();
	const next = await gateway.servers.issue("next", {
		subject: "/",
		names: ["IP:127.0.0.1"],
	});
	await writeFile(gateway.files.keyFile, await readFile(next.keyFile));
	await writeFile(gateway.files.certFile, await readFile(next.certFile));
	await until("it is loaded", async () => (await loads()) > loaded);
	expect(await told()).toEqual(before);
});

test("before the files are loaded, it is a 503 that says so", async () => {
	// Whoever reads it waits.
	const pipe = join(plane.dir, "pipe");
	await run(["mkfifo", pipe]);
	const metricsUrl = `http://127.0.0.1:${freePort()}`;
	const waiting = await plane.gateway(core, {
		unready: true,
		flags: [`--cacert=${pipe}`, `--metrics-addr=${metricsUrl}`],
	});
	const answer = await until("it answers", () =>
		told({ ...waiting, metricsUrl }),
	);
	expect(answer).toEqual({
		status: 503,
		body: { message: "the client CA bundle is not loaded yet" },
	});
	await waiting.child.stop("SIGKILL");
});
