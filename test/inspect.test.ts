/** `plan` and `certs` against a real API server, in each phase, with the rights of different people. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { compile } from "../build/program.ts";
import { UsageError } from "../flags.ts";
import { inspectFlags, inspectHelp, parseInspect } from "../inspect.ts";
import type { Certs, Planned, Report } from "../report.ts";
import { audited, type Identity, identity, isWrite } from "./audit.ts";
import { secretText } from "./client.ts";
import {
	apiServerNamespace,
	etcdStorage,
	type Json,
	NAMESPACE,
	startController,
	until,
} from "./harness.ts";
import { stage } from "./stage.ts";

describe("the command line", () => {
	test("NAME may stand before and behind flags", () => {
		for (const args of [
			["x", "-k", "file", "-o=json"],
			["-k=file", "x", "--output", "json"],
			["--kubeconfig", "file", "-o", "json", "x"],
		])
			expect(parseInspect(args)).toEqual({
				name: "x",
				options: {
					kubeconfig: "file",
					namespace: "kube-apiserver-storage",
					"etcd-core-ca-configmap": "etcd-coreserving-ca",
					"etcd-core-certs-secret": "etcd-coreserving-cert",
					output: "json",
				},
			});
		expect(parseInspect([])).toMatchObject({ name: undefined });
		expect(parseInspect(["--", "-x"])).toMatchObject({ name: "-x" });
		expect(parseInspect(["x", "--help"])).toEqual({ help: true });
	});

	test.each<[string[], string]>([
		[["a", "b"], '"b" is too much: one EtcdStorage can be named'],
		[["-o=yaml"], '--output "yaml" must be table or json'],
		[["-n=A/b"], '--namespace "A/b" is not the name of a Kubernetes object'],
		[["--etcd-core-url=https://x:1"], "Unknown option '--etcd-core-url'"],
	])("%p is refused", (args, message) => {
		expect(() => parseInspect(args)).toThrow(UsageError);
		expect(() => parseInspect(args)).toThrow(message);
	});

	test("--help tells flags and exit codes", () => {
		for (const command of ["plan", "certs"] as const) {
			const text = inspectHelp(command);
			expect(text).toContain(`etcdproxy-controller ${command} [flags] [NAME]`);
			expect(text).toContain("Exit codes: 0 ");
			for (const name of Object.keys(inspectFlags))
				expect(text).toContain(`--${name}`);
		}
	});
});

const on = stage(undefined, ["--etcd-proxy-priority-class=etcdproxy"]);

interface Ran {
	stdout: string;
	stderr: string;
	code: number;
}
let controllers: Identity;
let binary: string;
let dir: string;
/** All that either command has said. */
const said: string[] = [];

async function execute(command: string[], kubeconfig: string): Promise<Ran> {
	const child = Bun.spawn([...command, `--kubeconfig=${kubeconfig}`], {
		stdout: "pipe",
		stderr: "pipe",
	});
	const ran = {
		stdout: await child.stdout.text(),
		stderr: await child.stderr.text(),
		code: await child.exited,
	};
	said.push(ran.stdout, ran.stderr);
	return ran;
}
const source = [process.execPath, resolve(import.meta.dir, "../controller.ts")];
/** With the rights of the controller's ServiceAccount, and no others. */
const run = (...args: string[]) =>
	execute([...source, ...args], controllers.kubeconfig);
const kubectl = (...args: string[]) => on.cluster.kubectl(args);
async function ofOne(name: string): Promise<{
	plan: Planned;
	certs: Certs;
}> {
	const [plan, certs] = await Promise.all(
		["plan", "certs"].map(async (command) => {
			const { stdout, stderr, code } = await run(command, name, "-o=json");
			expect([stderr, code]).toEqual(["", 0]);
			return (JSON.parse(stdout) as Report<Json>).etcdStorages;
		}),
	);
	expect([plan?.length, certs?.length]).toEqual([1, 1]);
	return { plan: plan?.[0], certs: certs?.[0] };
}
const annotate = (name: string, annotation: string) =>
	kubectl("annotate", "etcdstorage", name, `etcd.xmudrii.com/${annotation}`);
/** Waits until the controller has said that a domain is in a phase, and is waiting for somebody or not. */
const phase = (name: string, domain: string, wanted: string, waits = false) =>
	until(async () => {
		const { status } = await on.api.get("EtcdStorage", name);
		const rotation = status?.certificates?.find(
			(one: Json) => one.name === `${domain}-signer`,
		)?.rotation;
		return (
			rotation?.phase === wanted &&
			(rotation.waitingFor !== undefined) === waits &&
			rotation
		);
	}, `${domain} of ${name} is in phase ${wanted}`);

/** `openssl verify` at an instant. */
function accepted(chain: string, bundle: string, at: number): boolean {
	const work = mkdtempSync(join(tmpdir(), "inspect-test-"));
	try {
		writeFileSync(join(work, "bundle"), bundle);
		writeFileSync(join(work, "chain"), chain);
		const args = ["-x509_strict", "-purpose", "sslserver"];
		const time = ["-attime", `${at / 1000}`];
		const files = ["-CAfile", "bundle", "-untrusted", "chain", "chain"];
		return Bun.spawnSync(["openssl", "verify", ...args, ...time, ...files], {
			cwd: work,
		}).success;
	} finally {
		rmSync(work, { recursive: true });
	}
}

beforeAll(async () => {
	controllers = await identity(on.cluster, "inspecting");
	dir = mkdtempSync(join(tmpdir(), "inspect-test-"));
	binary = join(dir, "etcdproxy-controller");
	await compile(binary);
}, 60_000);
afterAll(() => rmSync(dir, { recursive: true }));

test("where there is no EtcdStorage, both say so", async () => {
	for (const command of ["plan", "certs"]) {
		const { stdout, stderr, code } = await run(command);
		expect([stderr, code]).toEqual(["", 0]);
		expect(stdout).toMatch(
			/^\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ, by the API server's clock\nThere are no EtcdStorages\.\n$/,
		);
	}
	expect(await run("plan", "x")).toEqual({
		stdout: "",
		stderr:
			'etcdproxy-controller: there is no EtcdStorage "x"; there are none at all\n',
		code: 1,
	});
}, 20_000);

describe("with an EtcdStorage in each phase", () => {
	const consumer = (name: string) => ({
		apiVersion: "apps/v1",
		kind: "Deployment",
		metadata: { name: "apiserver", namespace: `k8s-${name}` },
		spec: {
			selector: { matchLabels: { app: name } },
			template: {
				metadata: { labels: { app: name } },
				spec: { containers: [{ name: "apiserver", image: "apiserver" }] },
			},
		},
	});
	const immutable = (kind: string, name: string, namespace: string) =>
		kubectl(
			...["-n", namespace, "patch", kind, name, "--type=merge", "-p"],
			'{"immutable":true}',
		);

	beforeAll(async () => {
		await Promise.all([
			on.api.tenant("steady"),
			on.api.tenant("publish"),
			on.api.tenant("sign"),
			on.api.tenant("spread", {
				consumers: [
					{ kind: "Deployment", name: "apiserver", namespace: "k8s-spread" },
				],
			}),
			on.api.tenant("retire"),
		]);
		const begun = performance.now();
		await on.cluster.apply(consumer("spread"));
		await kubectl(
			...["-n", NAMESPACE, "patch", "deployment", "etcd-steady"],
			...["--subresource=status", "--type=merge", "-p"],
			JSON.stringify({
				status: { conditions: [{ type: "Available", status: "True" }] },
			}),
		);
		await immutable("configmap", "etcd-serving-ca", "k8s-publish");
		await immutable("secret", "etcd-client-cert", "k8s-sign");
		await annotate("publish", "rotate-serving=drill");
		await annotate("sign", "rotate-client=drill");
		// So that the ends of the former CA and of the new one are told apart.
		await until(() => performance.now() - begun > 4000, "the CA is 4 s old");
		await annotate("spread", "rotate-serving=drill");
		await annotate("retire", "rotate-client=drill");
		await phase("publish", "serving", "Publish", true);
		await phase("sign", "client", "Sign", true);
		await phase("spread", "serving", "Spread", true);
		await phase("retire", "client", "Retire");
	}, 60_000);

	test.each([
		["steady", "client", "Steady"],
		["publish", "serving", "Publish"],
		["sign", "client", "Sign"],
		["spread", "serving", "Spread"],
		["retire", "client", "Retire"],
	])(
		"plan and certs of %s say of its %s CA what the controller says: phase %s",
		async (name, domain, wanted) => {
			const { plan, certs } = await ofOne(name);
			const { status } = await on.api.get("EtcdStorage", name);
			const said = status.certificates.find(
				(one: Json) => one.name === `${domain}-signer`,
			);
			expect(plan.status).toEqual(status);
			expect(said.rotation.phase).toBe(wanted);
			const { generation, waitingFor } = said.rotation;
			expect(waitingFor ?? []).toEqual(
				{
					Publish: [expect.stringMatching(/^TargetImmutable: ConfigMap k8s-p/)],
					Sign: [expect.stringMatching(/^TargetImmutable: Secret k8s-sign/)],
					Spread: [expect.stringMatching(/^ConsumerForbidden: /)],
				}[wanted] ?? [],
			);
			// What the API server would refuse is not said to be written.
			expect([plan.steps, plan.issued, plan.written]).toEqual([[], [], []]);
			expect(plan.person).toBe(waitingFor !== undefined);
			expect(certs.phases).toMatchObject({ [domain]: wanted });
			expect(
				certs.certificates.find(
					(one) =>
						one.domain === domain &&
						one.role === (wanted === "Publish" ? "next" : "current"),
				)?.id,
			).toBe(`CA ${generation}`);
		},
		20_000,
	);

	test("a consumer that may not be restarted needs a person, one that may be is waited for", async () => {
		const before = await run("plan", "spread");
		expect(before.stdout).toMatch(
			/\nspread {7}serving {2}Spread {2}[0-9a-f]{8} {2}blocked: ConsumerForbidden {2}\d/,
		);
		expect(before.stdout).toContain(
			"kubectl -n k8s-spread create role etcdproxy-deployment-apiserver --verb=get,patch",
		);
		expect(before.stdout).toContain(
			"EtcdStorages: 1, in need of a person: 1, to be written to now: 0",
		);
		const role = "etcdproxy-deployment-apiserver";
		await kubectl(
			...["-n", "k8s-spread", "create", "role", role, "--verb=get,patch"],
			...["--resource=deployments.apps", "--resource-name=apiserver"],
		);
		await kubectl(
			...["-n", "k8s-spread", "create", "rolebinding", role, `--role=${role}`],
			`--serviceaccount=${NAMESPACE}:etcdproxy-controller-sa`,
		);
		await until(async () => {
			const { plan } = await ofOne("spread");
			return plan.status?.certificates?.some(({ rotation }) =>
				rotation?.waitingFor?.[0]?.startsWith("ConsumerRollingOut: "),
			);
		}, "it is waited for");
	}, 40_000);

	test("what breaks when is judged by OpenSSL with what lies in the cluster", async () => {
		const { certs } = await ofOne("spread");
		const ofRole = (role: string) =>
			certs.certificates.find(
				(one) => one.domain === "serving" && one.role === role,
			)?.id;
		const [current, former] = [ofRole("current"), ofRole("previous")];
		const server = secretText(
			await on.api.get("Secret", "spread-server-cert"),
			"tls.crt",
		);
		const signer = await on.api.get("Secret", "spread-serving-signer");
		const previous = secretText(signer, "previous.crt");
		const { data } = await on.api.get(
			"ConfigMap",
			"etcd-serving-ca",
			"k8s-spread",
		);
		const bundle: string = data["serving-ca.crt"];
		const found = certs.breaks.filter((one) => one.domain === "serving");
		expect(found.map(({ message }) => message)).toEqual([
			`the cross-certificate of ${current} by ${former} ends: the endpoint is refused by Deployment k8s-spread/apiserver`,
			"server expires: the endpoint is refused by every API server",
		]);
		const [behind = 0, all = 0] = found.map(({ at }) => Date.parse(at));
		expect(behind).toBeLessThan(all);
		expect(
			[behind - 1000, behind + 1000].map((at) =>
				accepted(server, previous, at),
			),
		).toEqual([true, false]);
		expect(
			[behind + 1000, all - 1000, all + 1000].map((at) =>
				accepted(server, bundle, at),
			),
		).toEqual([true, true, false]);
		expect(certs.verifiers).toMatchObject([
			{ who: "proxies that run", state: "not asked" },
			{
				who: `proxies that start with ConfigMap ${NAMESPACE}/spread-ca-cert`,
			},
			{
				who: "Deployment k8s-spread/apiserver",
				state: "behind",
				trusts: [former?.slice("CA ".length) ?? ""],
			},
			{
				who: "API servers that start with ConfigMap k8s-spread/etcd-serving-ca",
				trusts: [former, current].map((ca) => ca?.slice("CA ".length)),
			},
		]);
	}, 20_000);

	test("all of them are one table, and one list of what breaks first", async () => {
		const plan = await run("plan");
		expect([plan.stderr, plan.code]).toEqual(["", 0]);
		for (const name of ["publish", "retire", "sign", "spread", "steady"])
			for (const domain of ["client", "serving"])
				expect(plan.stdout).toMatch(
					new RegExp(`^${name} +${domain} +\\w+ +[0-9a-f]{8} `, "m"),
				);
		expect(plan.stdout).not.toContain("\nsteady\n");
		const [tables = ""] = plan.stdout.split("\npublish\n");
		expect(tables).not.toBe(plan.stdout);
		for (const line of tables.split("\n"))
			expect([line, line.length < 120]).toEqual([line, true]);
		const certs = await run("certs");
		expect([certs.stderr, certs.code]).toEqual(["", 0]);
		const [, overview = ""] = certs.stdout.split("\n\n");
		expect(overview).toMatch(/^What breaks first, if nothing is done/);
		for (const name of ["publish", "retire", "sign", "spread", "steady"])
			expect(overview).toMatch(new RegExp(`  ${name} +\\S`));
		expect(certs.stdout).toContain(
			"  Secret kube-apiserver-storage/etcd-coreserving-cert   core    core  ",
		);
	}, 20_000);

	test("an unknown name is told with those that there are", async () => {
		for (const command of ["plan", "certs"])
			expect(await run(command, "stady")).toEqual({
				stdout: "",
				stderr:
					'etcdproxy-controller: there is no EtcdStorage "stady"; there are: publish, retire, sign, spread, steady\n',
				code: 1,
			});
	}, 20_000);

	test("the binary runs both", async () => {
		for (const command of ["plan", "certs"]) {
			const [ours, its] = await Promise.all([
				run(command, "steady", "-o=json"),
				execute([binary, command, "steady", "-o=json"], controllers.kubeconfig),
			]);
			expect([its.stderr, its.code]).toEqual(["", 0]);
			const [one, other] = [ours, its].map(({ stdout }) => {
				const [{ nextVisit: _, ...told }] = JSON.parse(stdout).etcdStorages;
				return told;
			});
			expect(one).toEqual(other);
			expect(one.name).toBe("steady");
		}
		expect(await execute([binary, "plan", "a", "b"], "x")).toEqual({
			stdout: "",
			stderr:
				'etcdproxy-controller: "b" is too much: one EtcdStorage can be named, or none for all\n',
			code: 2,
		});
	}, 20_000);

	test("whoever reads no more than the first line is no error", async () => {
		const command = `'${source.join("' '")}' certs --kubeconfig='${controllers.kubeconfig}' | head -1; echo "$PIPESTATUS"`;
		const child = Bun.spawn(["bash", "-c", command], { stderr: "pipe" });
		expect(await child.stdout.text()).toMatch(/clock\n0\n$/);
		expect(await child.stderr.text()).toBe("");
	}, 20_000);

	describe("without a right", () => {
		/** Of somebody who may read these in the controller's namespace and, if any, EtcdStorages. */
		const rights = async (user: string, resources: string[]) => {
			const kubeconfig = await on.cluster.kubeconfigFor(user);
			if (resources.length === 0) return kubeconfig;
			const verbs = "--verb=get,list";
			for (const command of [
				`create clusterrole ${user} ${verbs} --resource=etcdstorages.etcd.xmudrii.com`,
				`create clusterrolebinding ${user} --clusterrole=${user} --user=${user}`,
				`-n ${NAMESPACE} create role ${user} ${verbs} --resource=${resources}`,
				`-n ${NAMESPACE} create rolebinding ${user} --role=${user} --user=${user}`,
			])
				await kubectl(...command.split(" "));
			return kubeconfig;
		};

		const most = [
			...["configmaps", "services", "deployments.apps"],
			"poddisruptionbudgets.policy",
		];
		test.each<[string, string, string[], RegExp]>([
			[
				"anything",
				"nobody",
				[],
				/^etcdproxy-controller: list \w+.*: Forbidden: .*"nobody" cannot list resource ".*\n$/,
			],
			[
				"Secrets",
				"modest",
				most,
				/^etcdproxy-controller: list Secret kube-apiserver-storage: Forbidden: .*"modest" cannot list resource "secrets".*\n$/,
			],
			[
				"targets",
				"nearly",
				[...most, "secrets", "pods"],
				/^etcdproxy-controller: get (ConfigMap|Secret) k8s-\w+\/.*: Forbidden: .*"nearly" cannot get resource.*\n$/,
			],
		])(
			"to read %s, it says which right that is",
			async (_, user, namespaced, error) => {
				const kubeconfig = await rights(user, namespaced);
				for (const command of ["plan", "certs"]) {
					const ran = await execute([...source, command], kubeconfig);
					expect([ran.stdout, ran.code]).toEqual(["", 1]);
					expect(ran.stderr).toMatch(error);
				}
			},
			30_000,
		);
	});
});

test("what plan says of a fresh EtcdStorage is what the controller then does", async () => {
	await on.controller.stop();
	await on.cluster.apply(
		...apiServerNamespace("k8s-fresh"),
		etcdStorage("fresh", "k8s-fresh"),
	);
	const { plan, certs } = await ofOne("fresh");
	expect(plan.steps).toEqual([
		{ domain: "client", step: "make", reason: "not there" },
		{ domain: "serving", step: "make", reason: "not there" },
	]);
	expect(
		certs.breaks.map(({ already, message }) => [already, message]),
	).toEqual([
		[true, "server is not there: proxies that start cannot serve"],
		[
			true,
			"client/k8s-fresh/etcd-client-cert is not there: API servers that start cannot connect",
		],
	]);
	// The finalizer comes before all else, and is no news.
	expect(plan.written[0]).toBe("EtcdStorage fresh patched");
	// What the proxies run is not known from the command line.
	const image = "--etcd-proxy-image=registry.example.com/etcdproxy:1";
	const controller = await startController(on.cluster, { flags: [image] });
	await on.api.condition("fresh", "CertificatesReady", /^True /);
	const line = await until(
		() => /fresh: (issued .*)/.exec(controller.log())?.[1],
		"the controller tells what it has done",
	);
	await controller.stop();
	const done = line.split("; ");
	expect(
		[
			...plan.issued.map(({ id, reason }) => `issued ${id} (${reason})`),
			...plan.written.slice(1),
		].sort(),
	).toEqual(done.sort());
	const after = await ofOne("fresh");
	expect([after.plan.written, after.plan.issued]).toEqual([[], []]);
	expect(after.plan.status?.conditions?.[0]).toMatchObject({
		type: "CertificatesReady",
		status: "True",
	});
}, 40_000);

test("what is edited behind the controller's back is what would be written", async () => {
	await kubectl(...["-n", NAMESPACE, "delete", "service,pdb", "etcd-fresh"]);
	await kubectl(
		...["-n", NAMESPACE, "scale", "deployment", "etcd-fresh", "--replicas=0"],
	);
	await kubectl(
		...["-n", "k8s-fresh", "patch", "configmap", "etcd-serving-ca"],
		...["--type=merge", "-p", '{"data":{"serving-ca.crt":"junk"}}'],
	);
	const { plan, certs } = await ofOne("fresh");
	// The last three at once.
	expect([...plan.written].sort()).toEqual([
		"ConfigMap k8s-fresh/etcd-serving-ca configured",
		`Deployment ${NAMESPACE}/etcd-fresh configured`,
		`PodDisruptionBudget ${NAMESPACE}/etcd-fresh created`,
		`Service ${NAMESPACE}/etcd-fresh created`,
	]);
	expect(certs.verifiers.at(-1)).toEqual({
		domain: "serving",
		who: "API servers that start with ConfigMap k8s-fresh/etcd-serving-ca",
		trusts: [],
	});
	expect(certs.breaks[0]).toMatchObject({
		already: true,
		message:
			"server is certified by no CA that is trusted: the endpoint is refused by API servers that start with ConfigMap k8s-fresh/etcd-serving-ca",
	});
	await kubectl("delete", "etcdstorage", "fresh", "--wait=false");
	expect((await ofOne("fresh")).plan).toMatchObject({
		written: [
			"ConfigMap k8s-fresh/etcd-serving-ca patched",
			"Secret k8s-fresh/etcd-client-cert patched",
			"EtcdStorage fresh patched",
		],
		events: [{ type: "Normal", reason: "DataRetained" }],
	});
}, 40_000);

test("a restart that is due is planned, and not made", async () => {
	const counts = { replicas: 1, updatedReplicas: 1, readyReplicas: 1 };
	await kubectl(
		...["-n", "k8s-spread", "patch", "deployment", "apiserver"],
		...["--subresource=status", "--type=merge", "-p"],
		JSON.stringify({
			status: { observedGeneration: 1, availableReplicas: 1, ...counts },
		}),
	);
	await until(
		async () =>
			(await ofOne("spread")).plan.written.join() ===
			"Deployment k8s-spread/apiserver restarted",
		"the restart is planned",
	);
	const { spec } = await on.api.get("Deployment", "apiserver", "k8s-spread");
	expect(spec.template.metadata.annotations).toBeUndefined();
}, 40_000);

test("none of it has written anything, by the API server's account", async () => {
	const requests = await audited(on.cluster, controllers);
	expect(requests.length).toBeGreaterThan(100);
	expect(requests.filter(isWrite)).toEqual([]);
	expect([...new Set(requests.map(({ verb }) => verb))].sort()).toEqual([
		"get",
		"list",
	]);
});

test("none of it has shown a key, nor a certificate's text", async () => {
	const text = said.join("\n");
	expect(text.length).toBeGreaterThan(20_000);
	expect(text).not.toContain("-----BEGIN");
	const secrets = JSON.parse(
		await kubectl("get", "secrets", "--all-namespaces", "-o", "json"),
	).items as Json[];
	const lines = secrets
		.flatMap(({ data }) => Object.values(data ?? {}) as string[])
		.flatMap((value) => [
			value,
			...Buffer.from(value, "base64").toString().split("\n"),
		])
		.filter((line) => line.length > 20 && !line.startsWith("-----"));
	expect(lines.length).toBeGreaterThan(100);
	for (const line of lines) expect(text.includes(line)).toBe(false);
});
