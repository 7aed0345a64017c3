/** Certificates that change on disk while the gateway serves, and clients that it does not trust. */
import {
	afterAll,
	beforeAll,
	describe,
	expect,
	setDefaultTimeout,
	test,
} from "bun:test";
import { X509Certificate } from "node:crypto";
import {
	copyFile,
	mkdir,
	readFile,
	rename,
	symlink,
	writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { Authority, type Certificate } from "./cluster/certificates.ts";
import { run, until } from "./cluster/processes.ts";
import {
	type DataPlane,
	type Endpoint,
	type Etcd,
	type Gateway,
	startDataPlane,
} from "./dataplane.ts";
import {
	grpc,
	RANGE,
	Raw,
	range,
	Script,
	WATCH,
	watchCreate,
} from "./gatewayclient.ts";
import { FIRST_BUILD } from "./harness.ts";
import { data } from "./http2wire.ts";
import { CA, issue, leaf } from "./issue.ts";
import { Relay } from "./relay.ts";

const REFUSALS = "etcdproxy_gateway_tls_refusals_total";
const RELOADS = "etcdproxy_gateway_reloads_total";
const LOCAL = ["IP:127.0.0.1", "DNS:localhost"];

setDefaultTimeout(120_000);

let plane: DataPlane;
let core: Etcd;
let relay: Relay;
let gateway: Gateway;
let script: Script;
/** As a kubelet mounts them: each name leads through `..data` to the present folder. */
let server: Mount, clients: Mount, coreFiles: Mount;
/** Another authority of clients, and one of its clients. */
let others: Authority;
let other: Certificate;

class Mount {
	readonly #dir: string;
	#folders = 0;

	private constructor(dir: string) {
		this.#dir = dir;
	}

	static async create(dir: string, files: Record<string, string>) {
		await mkdir(dir, { recursive: true });
		const mount = new Mount(dir);
		await mount.swap(files);
		for (const name of Object.keys(files))
			await symlink(join("..data", name), mount.path(name));
		return mount;
	}

	path(name: string): string {
		return join(this.#dir, name);
	}

	/** All files at once, like the kubelet: https://github.com/kubernetes/kubernetes/blob/v1.37.2/pkg/volume/util/atomic_writer.go */
	async swap(files: Record<string, string>): Promise<void> {
		const folder = `..${++this.#folders}`;
		await mkdir(this.path(folder));
		for (const [name, from] of Object.entries(files))
			await copyFile(from, join(this.path(folder), name));
		await symlink(folder, this.path("..data_tmp"));
		await rename(this.path("..data_tmp"), this.path("..data"));
	}
}

const pairOf = ({ certFile, keyFile }: Certificate) => ({
	"tls.crt": certFile,
	"tls.key": keyFile,
});

beforeAll(async () => {
	plane = await startDataPlane();
	core = await plane.etcd();
	relay = await Relay.start(core.url);
	const { servers, clients: authority } = {
		servers: await Authority.create(join(plane.dir, "servers"), "servers-ca"),
		clients: await Authority.create(join(plane.dir, "clients"), "clients-ca"),
	};
	others = await Authority.create(join(plane.dir, "others"), "others-ca");
	const mine = await authority.issue("mine", { subject: "/CN=mine" });
	other = await others.issue("other", { subject: "/CN=other" });
	const first = await servers.issue("first", { subject: "/", names: LOCAL });
	server = await Mount.create(join(plane.dir, "m-server"), pairOf(first));
	clients = await Mount.create(join(plane.dir, "m-clients"), {
		"ca.crt": authority.certFile,
	});
	coreFiles = await Mount.create(join(plane.dir, "m-core"), {
		...pairOf(plane.coreClient),
		"ca.crt": plane.coreAuthority.certFile,
	});
	const started = await plane.gateway(core, {
		endpoints: [relay.url],
		flags: [
			`--cert-file=${server.path("tls.crt")}`,
			`--key-file=${server.path("tls.key")}`,
			`--trusted-ca-file=${clients.path("ca.crt")}`,
			`--cert=${coreFiles.path("tls.crt")}`,
			`--key=${coreFiles.path("tls.key")}`,
			`--cacert=${coreFiles.path("ca.crt")}`,
		],
	});
	gateway = {
		...started,
		...mine,
		caFile: servers.certFile,
		servers,
		clients: authority,
	};
	script = await Script.start(gateway);
}, FIRST_BUILD);

afterAll(async () => {
	await script?.stop();
	await relay?.refuse();
	await plane?.stop();
});

const reloads = (files: string, result: string) =>
	gateway.metric(RELOADS, { files, result });

/** The serial number of the certificate that new connections get. */
async function served(): Promise<string> {
	const connection = await Raw.connect(gateway);
	const { serialNumber } = connection.socket.getPeerCertificate();
	connection.destroy();
	return serialNumber;
}

const serialOf = async (file: string) =>
	new X509Certificate(await readFile(file)).serialNumber;

/** Requests on one connection all the time, and on a new one each time. */
function traffic() {
	const failures: string[] = [];
	let going = true;
	let requests = 0;
	const loop = async (one: () => Promise<string>) => {
		while (going) {
			const answer = await one();
			if (!/^(OK|0)$/.test(answer)) failures.push(answer);
			requests++;
		}
	};
	const loops = [
		loop(() => script.failure("put", { key: "traffic", value: "v" })),
		loop(() => script.failure("get", { key: "traffic" })),
		loop(async () => {
			const connection = await Raw.connect(gateway);
			const status = connection.ready
				? await connection.ended(connection.call(RANGE, range("traffic")))
				: `no connection: ${connection.error}`;
			connection.destroy();
			return status;
		}),
	];
	return {
		async stop() {
			going = false;
			await Promise.all(loops);
			expect(failures).toEqual([]);
			expect(requests).toBeGreaterThan(20);
		},
	};
}

/** A connection with a watch. */
async function watching(who: Endpoint): Promise<{ raw: Raw; id: number }> {
	const raw = await Raw.connect(who);
	const id = raw.open(WATCH);
	raw.send(data(id, grpc(watchCreate("w"))));
	await until("it watches", async () => raw.stream(id).bytes > 0);
	return { raw, id };
}

describe("when files change while requests run", () => {
	test("new connections get the new serving certificate, the others stay, no request fails", async () => {
		const before = await reloads("server", "loaded");
		const { raw, id } = await watching(gateway);
		const load = traffic();
		for (const name of ["second", "third"]) {
			const next = await gateway.servers.issue(name, {
				subject: "/",
				names: LOCAL,
				days: name === "second" ? 20 : 10,
			});
			const serial = await serialOf(next.certFile);
			await server.swap(pairOf(next));
			await until("it is served", async () => (await served()) === serial);
			const end = await run([
				...["openssl", "x509", "-noout", "-enddate"],
				...["-in", next.certFile],
			]);
			expect(
				await gateway.metric(
					"etcdproxy_gateway_certificate_not_after_timestamp_seconds",
					{ files: "server" },
				),
			).toBe(Date.parse(end.trim().replace("notAfter=", "")) / 1000);
		}
		await load.stop();
		expect(await reloads("server", "loaded")).toBe(before + 2);
		expect(await gateway.log()).toContain("serving certificate reloaded");
		expect(raw.status(id)).toBe("");
		expect(await raw.ended(raw.call(RANGE, range("k")))).toBe("0");
		raw.destroy();
	});

	test("an authority may come and go: who depends on it is let in and closed, others notice nothing", async () => {
		const bundle = join(plane.dir, "bundle.crt");
		const [one, two] = await Promise.all(
			[gateway.clients, others].map(({ certFile }) => readFile(certFile)),
		);
		await writeFile(bundle, `${one}${two}`);
		const load = traffic();
		const early = await Raw.connect({ ...gateway, ...other });
		expect(early.ready).toBe(false);
		await clients.swap({ "ca.crt": bundle });
		await until("the other is let in", async () => {
			const raw = await Raw.connect({ ...gateway, ...other });
			raw.destroy();
			return raw.ready;
		});
		const [stays, goes] = await Promise.all([
			watching(gateway),
			watching({ ...gateway, ...other }),
		]);
		const refusals = await gateway.metric(REFUSALS);
		await clients.swap({ "ca.crt": gateway.clients.certFile });
		await until("it is closed", async () => goes.raw.closed);
		expect(goes.raw.goaway?.code).toBe(0);
		expect(await gateway.metric(REFUSALS)).toBe(refusals + 1);
		const late = await Raw.connect({ ...gateway, ...other });
		expect(late.ready).toBe(false);
		expect(await gateway.metric(REFUSALS)).toBe(refusals + 2);
		await load.stop();
		expect(stays.raw.status(stays.id)).toBe("");
		expect(await stays.raw.ended(stays.raw.call(RANGE, range("k")))).toBe("0");
		stays.raw.destroy();
	});

	describe.each<[string, string, RegExp, () => Promise<() => Promise<void>>]>([
		[
			"half a certificate",
			"server",
			/tls\.crt: certificate 1 of 1: damaged or incomplete PEM; the old files stay in use/,
			() =>
				overwrite(server.path("tls.crt"), (text) =>
					text.slice(0, text.length / 2),
				),
		],
		[
			"the key of another certificate",
			"server",
			/tls\.key: the private key does not belong to the first certificate of .*tls\.crt; the old/,
			async () => {
				const { keyFile } = gateway;
				const key = await readFile(keyFile, "utf8");
				return overwrite(server.path("tls.key"), () => key);
			},
		],
		[
			"an empty bundle",
			"server",
			/ca\.crt: it is empty; the old/,
			() => overwrite(clients.path("ca.crt"), () => ""),
		],
		[
			"a bundle whose second certificate is damaged",
			"server",
			/ca\.crt: certificate 2 of 2: not an X\.509 certificate; the old/,
			() =>
				overwrite(
					clients.path("ca.crt"),
					(text) =>
						`${text}-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n`,
				),
		],
		[
			"rubbish for the core's credentials",
			"core",
			/tls\.key: no private key in PEM, or a damaged one; the old/,
			() => overwrite(coreFiles.path("tls.key"), () => "rubbish\n"),
		],
	])("%s", (_, files, words, damage) => {
		test("is never loaded: it is told and counted, the old ones serve", async () => {
			const [failed, loaded] = [
				await reloads(files, "failed"),
				await reloads(files, "loaded"),
			];
			const serial = await served();
			const load = traffic();
			const repair = await damage();
			await until("it is counted", async () => {
				return (await reloads(files, "failed")) > failed;
			});
			expect(await served()).toBe(serial);
			await repair();
			await load.stop();
			expect(await reloads(files, "failed")).toBe(failed + 1);
			expect(await reloads(files, "loaded")).toBe(loaded);
			expect(await gateway.log()).toMatch(words);
		});
	});
});

/** Changes a file in place. @returns what undoes it */
async function overwrite(
	file: string,
	change: (text: string) => string,
): Promise<() => Promise<void>> {
	const before = await readFile(file, "utf8");
	await writeFile(file, change(before));
	return () => writeFile(file, before);
}

test("the next connection to the core is made with the new credentials", async () => {
	const loaded = await reloads("core", "loaded");
	const load = traffic();
	const stranger = await others.issue("stranger", { subject: "/" });
	const ca = plane.coreAuthority.certFile;
	await coreFiles.swap({ ...pairOf(stranger), "ca.crt": ca });
	await until(
		"they are loaded",
		async () => (await reloads("core", "loaded")) === loaded + 1,
	);
	await load.stop();
	relay.cut();
	await until("it says why it is not ready", async () => {
		const answer = await fetch(`${gateway.metricsUrl}/readyz`);
		const text = await answer.text();
		return (
			answer.status === 503 &&
			text.startsWith(
				`${relay.url}: it does not accept the client certificate of --cert`,
			)
		);
	});
	const next = await plane.coreAuthority.issue("next", { subject: "/" });
	await coreFiles.swap({ ...pairOf(next), "ca.crt": ca });
	await until("it is ready", gateway.ready);
	expect(await script.failure("get", { key: "k" })).toBe("OK");
	const end = await run([
		...["openssl", "x509", "-noout", "-enddate", "-in", next.certFile],
	]);
	expect(
		await gateway.metric(
			"etcdproxy_gateway_certificate_not_after_timestamp_seconds",
			{ files: "core" },
		),
	).toBe(Date.parse(end.trim().replace("notAfter=", "")) / 1000);
});

describe("a client", () => {
	const profiles: Record<string, () => Promise<Certificate | undefined>> = {
		"without a certificate": async () => undefined,
		"of another authority": async () => other,
		"of an authority of the same name": async () =>
			issue(plane.dir, "lookalike", {
				extensions: leaf("clientAuth"),
				issuer: await issue(plane.dir, "forged", {
					subject: "/CN=clients-ca",
					extensions: CA,
				}),
			}),
		"whose certificate has expired": () =>
			gateway.clients.issue("expired", { subject: "/CN=expired", days: -1 }),
		"whose certificate is for servers": () =>
			issue(plane.dir, "serverauth", {
				extensions: leaf("serverAuth"),
				issuer: gateway.clients,
			}),
		"whose certificate is for nothing": () =>
			issue(plane.dir, "nousage", {
				extensions: leaf(""),
				issuer: gateway.clients,
			}),
	};
	test.each(Object.keys(profiles))(
		"%s is refused, and counted",
		async (who) => {
			const certificate = await profiles[who]?.();
			for (const version of ["TLSv1.2", "TLSv1.3"] as const) {
				const before = await gateway.metric(REFUSALS);
				const raw = await Raw.connect(
					{ ...gateway, ...certificate },
					{
						tls: {
							minVersion: version,
							maxVersion: version,
							...(certificate ? {} : { cert: undefined, key: undefined }),
						},
					},
				);
				expect([raw.ready, raw.closed]).toEqual([false, true]);
				expect(await gateway.metric(REFUSALS)).toBe(before + 1);
			}
		},
	);

	test("with a certificate of the bundle and clientAuth is let in", async () => {
		const before = await gateway.metric(REFUSALS);
		const good = await issue(plane.dir, "good", {
			extensions: leaf("clientAuth"),
			issuer: gateway.clients,
		});
		const raw = await Raw.connect({ ...gateway, ...good });
		expect(await raw.ended(raw.call(RANGE, range("k")))).toBe("0");
		raw.destroy();
		expect(await gateway.metric(REFUSALS)).toBe(before);
	});

	test.each(["-tls1", "-tls1_1", "-tls1_2", "-tls1_3"])(
		"that offers %s only",
		async (version) => {
			const child = Bun.spawn(
				[
					...["openssl", "s_client", "-connect", new URL(gateway.url).host],
					...["-CAfile", gateway.caFile, "-cert", gateway.certFile],
					...["-key", gateway.keyFile, "-alpn", "h2", version],
					...["-cipher", "DEFAULT@SECLEVEL=0"],
				],
				{ stdin: "ignore", stdout: "pipe", stderr: "pipe" },
			);
			const output = await child.stdout.text();
			const errors = await child.stderr.text();
			if (["-tls1", "-tls1_1"].includes(version))
				expect(errors).toContain("alert protocol version");
			else expect(output).toContain("ALPN protocol: h2");
		},
	);
});
