/** `plan` and `certs` against a real API server, in each phase, with the rights of different people. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { UsageError } from "../flags.ts";
import { inspectFlags, inspectHelp, parseInspect } from "../inspect.ts";
import type { CertsReport, Planned, Report } from "../report.ts";
import { audited, type Identity, identity, isWrite } from "./audit.ts";
import { secretText } from "./client.ts";
import { compileController } from "./cluster/compile.ts";
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
					"etcd-proxy-image": "",
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

const on = stage();

interface Ran {
	stdout: string;
	stderr: string;
	code: number;
}
let controllers: Identity;
let other: Identity;
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
	certs: CertsReport["etcdStorages"][number];
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
	await compileController(binary);
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
		await on.cluster.apply(consumer("spread"));
		await immutable("configmap", "etcd-serving-ca", "k8s-publish");
		await immutable("secret", "etcd-client-cert", "k8s-sign");
		await annotate("publish", "rotate-serving=drill");
		await annotate("sign", "rotate-client=drill");
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
			const rotation = plan.rotations.find((one) => one.domain === domain);
			expect(rotation).toMatchObject({
				phase: wanted,
				generation: said.rotation.generation,
				since: said.rotation.since,
			});
			expect(rotation?.nextStepAt).toBe(said.rotation.nextStepAt);
			expect(rotation?.step).toBeUndefined();
			expect(rotation?.waits.map(({ who }) => who)).toEqual(
				{
					Publish: ["ConfigMap k8s-publish/etcd-serving-ca"],
					Sign: ["Secret k8s-sign/etcd-client-cert"],
					Spread: ["Deployment k8s-spread/apiserver"],
				}[wanted] ?? [],
			);
			const told = certs.domains.find((one) => one.domain === domain);
			expect(told).toMatchObject({
				phase: wanted,
				generation: said.rotation.generation,
			});
			expect(plan.certificates.map((one) => one.certificate).sort()).toEqual(
				status.certificates.map((one: Json) => one.name).sort(),
			);
			for (const { certificate, renewalTime } of plan.certificates)
				if (wanted !== "Publish" || certificate !== "serving-signer")
					expect([certificate, renewalTime]).toEqual([
						certificate,
						status.certificates.find((one: Json) => one.name === certificate)
							.renewalTime,
					]);
		},
		20_000,
	);

	test("what is wrong with a target is said in the controller's own sentence", async () => {
		const { plan } = await ofOne("sign");
		const { status } = await on.api.get("EtcdStorage", "sign");
		expect(
			plan.objects.filter(({ object }) => object.startsWith("Secret k8s-sign")),
		).toEqual([
			{ object: "Secret k8s-sign/etcd-client-cert", change: "configure" },
		]);
		const condition = status.conditions.find(
			(one: Json) => one.type === "CertificatesReady",
		);
		expect(condition.reason).toBe("TargetImmutable");
		expect(plan.issue).toEqual([
			{
				certificate: "client/k8s-sign/etcd-client-cert",
				reason: "signer replaced",
			},
		]);
	}, 20_000);

	test("a consumer that may not be restarted needs a person, one that may be is waited for", async () => {
		const before = await run("plan", "spread");
		expect(before.stdout).toMatch(
			/\nspread {7}serving {2}Spread {2}[0-9a-f]{8} {2}blocked: ConsumerForbidden {2}\d/,
		);
		expect(before.stdout).toContain(
			"kubectl -n k8s-spread create role etcdproxy-deployment-apiserver --verb=get,patch",
		);
		expect(before.stdout).toContain(": 1 needs a person, ");
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
			return plan.rotations[1]?.waits[0]?.reason === "ConsumerRollingOut";
		}, "it is waited for");
	}, 40_000);

	test("what breaks when is judged by OpenSSL with what lies in the cluster", async () => {
		const { certs } = await ofOne("spread");
		const [, serving] = certs.domains;
		const [current, former] = serving?.authorities ?? [];
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
			`the cross-certificate of CA ${current?.generation} by CA ${former?.generation} ends: the endpoint is refused by Deployment k8s-spread/apiserver, not known to have loaded CA ${current?.generation}`,
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
		expect(serving?.verifiers).toMatchObject([
			{
				who: "Deployment k8s-spread/apiserver",
				behind: true,
				trusts: [former?.generation ?? ""],
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
		expect(plan.stdout).not.toContain("steady: https://");
		expect(plan.stdout).toContain("publish: https://");
		const [tables = ""] = plan.stdout.split("\npublish: ");
		for (const line of tables.split("\n"))
			expect([line, line.length < 120]).toEqual([line, true]);
		const certs = await run("certs");
		expect([certs.stderr, certs.code]).toEqual(["", 0]);
		const [, overview = ""] = certs.stdout.split("\n\n");
		expect(overview).toMatch(/^What breaks first, if nothing is done/);
		for (const name of ["all", "publish", "retire", "sign", "spread", "steady"])
			expect(overview).toMatch(new RegExp(`  ${name} +\\S`));
		expect(certs.stdout).toContain(
			"  core-client  Secret kube-apiserver-storage/etcd-coreserving-cert  ",
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
			expect(JSON.parse(its.stdout).etcdStorages).toEqual(
				JSON.parse(ours.stdout).etcdStorages,
			);
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
		const rights = async (
			user: string,
			namespaced: string[],
			clusterwide = "etcdstorages.etcd.xmudrii.com",
		) => {
			const kubeconfig = await on.cluster.kubeconfigFor(user);
			if (clusterwide) {
				await kubectl(
					...["create", "clusterrole", user, "--verb=get,list"],
					`--resource=${clusterwide}`,
				);
				await kubectl(
					...["create", "clusterrolebinding", user, `--clusterrole=${user}`],
					`--user=${user}`,
				);
			}
			if (namespaced.length > 0) {
				await kubectl(
					...["-n", NAMESPACE, "create", "role", user, "--verb=get,list"],
					`--resource=${namespaced.join(",")}`,
				);
				await kubectl(
					...["-n", NAMESPACE, "create", "rolebinding", user],
					...[`--role=${user}`, `--user=${user}`],
				);
			}
			return kubeconfig;
		};

		test("to read EtcdStorages, nothing can be told", async () => {
			const kubeconfig = await rights("nobody", [], "");
			const { stdout, stderr, code } = await execute(
				[...source, "plan"],
				kubeconfig,
			);
			expect([stdout, code]).toEqual(["", 1]);
			expect(stderr).toMatch(
				/^etcdproxy-controller: list EtcdStorage: Forbidden: .*"nobody" cannot list.*\n$/,
			);
		}, 20_000);

		test("to read Secrets, what the controller has said is told", async () => {
			const kubeconfig = await rights("modest", [
				"configmaps",
				"services",
				"deployments.apps",
			]);
			const { stdout, code } = await execute(
				[...source, "plan", "spread"],
				kubeconfig,
			);
			expect(code).toBe(1);
			expect(stdout).toMatch(
				/^NOTE: not permitted: list Secret kube-apiserver-storage: Forbidden: .*"modest" cannot list/m,
			);
			expect(stdout).toContain(
				"NOTE: without Secret in namespace kube-apiserver-storage, only what the controller has said in status can be told\n",
			);
			expect(stdout).toMatch(/^spread +serving +Spread +[0-9a-f]{8} +/m);
			expect(stdout).toContain(", as the controller has said last\n");
			const certs = await execute([...source, "certs", "spread"], kubeconfig);
			expect(certs.code).toBe(1);
			expect(certs.stdout).toMatch(/^ {4}server +- +- +20/m);
			expect(certs.stdout).toMatch(
				/\n {2}What breaks at the latest when, .*\n.*\n(.*\n)* {4}\d{4}-\S+ \S+ {2}in 30d \S+ +server expires: the endpoint is refused by every API server\n/,
			);
		}, 20_000);

		test("to read targets, the rest is told", async () => {
			const kubeconfig = await rights("nearly", [
				"configmaps",
				"services",
				"deployments.apps",
				"secrets",
				"pods",
			]);
			const { stdout, code } = await execute(
				[...source, "certs", "steady", "-o=json"],
				kubeconfig,
			);
			expect(code).toBe(1);
			const report: CertsReport = JSON.parse(stdout);
			expect(report.notes).toEqual([
				expect.stringMatching(
					/^not permitted: get (ConfigMap|Secret) k8s-steady\//,
				),
				expect.stringMatching(
					/^not permitted: get (ConfigMap|Secret) k8s-steady\//,
				),
				"what could not be read is judged as the controller would judge it without that right; it may have it",
			]);
			const [client, serving] = report.etcdStorages[0]?.domains ?? [];
			expect(client?.bundles[0]?.generations).toEqual([
				client?.generation ?? "",
			]);
			expect(serving?.certificates[0]?.signedBy).toBe(
				serving?.generation as string,
			);
			// Nothing is said of a bundle that was not seen.
			expect(report.etcdStorages[0]?.breaks).toMatchObject([
				{ certificates: ["server"], refusedBy: ["every API server"] },
			]);
		}, 20_000);

		test("to list EtcdStorages, one that may be read by its name is told", async () => {
			other = await identity(on.cluster, "unused");
			await kubectl(
				...["create", "clusterrole", "single", "--verb=get"],
				...["--resource=etcdstorages.etcd.xmudrii.com"],
				"--resource-name=steady",
			);
			await kubectl(
				...["create", "clusterrolebinding", "single", "--clusterrole=single"],
				"--user=single",
			);
			const kubeconfig = await rights("single", ["secrets"], "");
			const { stdout, code } = await execute(
				[...source, "plan", "steady"],
				kubeconfig,
			);
			expect(code).toBe(1);
			expect(stdout).toMatch(/^steady +serving +Steady /m);
		}, 20_000);
	});
});

test("what plan says of a fresh EtcdStorage is what the controller then does", async () => {
	await on.controller.stop();
	await on.cluster.apply(
		...apiServerNamespace("k8s-fresh"),
		etcdStorage("fresh", "k8s-fresh"),
	);
	const { plan, certs } = await ofOne("fresh");
	expect(plan.rotations).toMatchObject([
		{ domain: "client", step: "make-current", reason: "not there" },
		{ domain: "serving", step: "make-current", reason: "not there" },
	]);
	expect(
		certs.breaks.map(({ already, message }) => [already, message]),
	).toEqual([
		[
			true,
			"client/k8s-fresh/etcd-client-cert is not there: API servers that start cannot connect",
		],
		[true, "server is not there: proxies that start cannot serve"],
	]);
	// The finalizer comes before all else, and is no news.
	expect(plan.objects[0]).toEqual({
		object: "EtcdStorage fresh",
		change: "configure",
	});
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
	const past = { create: "created", configure: "configured" } as Json;
	expect(
		[
			...plan.rotations.map(
				({ domain, reason }) => `issued ${domain}-signer (${reason})`,
			),
			...plan.issue.map(
				({ certificate, reason }) => `issued ${certificate} (${reason})`,
			),
			...plan.objects
				.slice(1)
				.map(({ object, change }) => `${object} ${past[change]}`),
		].sort(),
	).toEqual(done.sort());
	const after = await ofOne("fresh");
	expect([after.plan.objects, after.plan.issue]).toEqual([[], []]);
	const problems = after.plan.problems.map(({ reason }) => reason);
	expect(problems).toEqual([]);
}, 40_000);

test("what is edited behind the controller's back is what would be written", async () => {
	await kubectl(...["-n", NAMESPACE, "delete", "service", "etcd-fresh"]);
	await kubectl(
		...["-n", NAMESPACE, "scale", "deployment", "etcd-fresh", "--replicas=0"],
	);
	await kubectl(
		...["-n", "k8s-fresh", "patch", "configmap", "etcd-serving-ca"],
		...["--type=merge", "-p", '{"data":{"serving-ca.crt":"junk"}}'],
	);
	const { plan, certs } = await ofOne("fresh");
	expect(plan.objects).toEqual([
		{ object: "ConfigMap k8s-fresh/etcd-serving-ca", change: "configure" },
		{ object: `Service ${NAMESPACE}/etcd-fresh`, change: "create" },
		{ object: `Deployment ${NAMESPACE}/etcd-fresh`, change: "configure" },
	]);
	expect(certs.domains[1]?.bundles).toEqual([
		{
			object: "ConfigMap k8s-fresh/etcd-serving-ca",
			key: "serving-ca.crt",
			generations: [],
			trouble: "is damaged",
		},
	]);
	expect(certs.breaks[0]).toMatchObject({
		already: true,
		message:
			"server is certified by no CA that is trusted: the endpoint is refused by API servers that start with ConfigMap k8s-fresh/etcd-serving-ca",
	});
	await kubectl("delete", "etcdstorage", "fresh", "--wait=false");
	expect((await ofOne("fresh")).plan.objects).toEqual([
		{ object: "ConfigMap k8s-fresh/etcd-serving-ca", change: "clean" },
		{ object: "Secret k8s-fresh/etcd-client-cert", change: "clean" },
		{ object: "EtcdStorage fresh", change: "delete" },
	]);
}, 40_000);

test("none of it has written anything, by the API server's account", async () => {
	const requests = await audited(on.cluster, controllers, other);
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
