import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { compile } from "../build/program.ts";
import { flagRows, UsageError } from "../flags.ts";
import { gatewayHelp } from "../gateway/options.ts";
import { flags, help, type Options, parseOptions } from "../options.ts";
import packageJson from "../package.json" with { type: "json" };
import { dataPlane } from "../workload.ts";
import { commandLine, manifest, one } from "./installation.ts";

const URL = "https://core:2379";
const given = (...args: string[]) =>
	parseOptions([`--etcd-core-url=${URL}`, ...args]) as Options;

describe("the command line of the 2018 controller", () => {
	test("means what it meant", () => {
		expect(
			parseOptions([
				"--kubeconfig=/etc/kubeconfig",
				"--etcd-core-url=https://etcd-svc-1.etcd.svc:2379",
				"--etcd-core-ca-configmap=core-ca",
				"--etcd-core-ca-secret=core-client",
				"--namespace=storage",
				"--etcd-proxy-image=quay.io/coreos/etcd:v3.2.24",
			]),
		).toMatchObject({
			kubeconfig: "/etc/kubeconfig",
			"etcd-core-url": ["https://etcd-svc-1.etcd.svc:2379"],
			"etcd-core-ca-configmap": "core-ca",
			"etcd-core-certs-secret": "core-client",
			namespace: "storage",
			"etcd-proxy-image": "quay.io/coreos/etcd:v3.2.24",
		});
	});

	test.each([
		["-k=file", "kubeconfig"],
		["-kfile", "kubeconfig"],
		["-n=file", "namespace"],
	] as const)("may be written %s", (word, option) => {
		expect(given(word)[option]).toBe("file");
	});

	test("may have a flag and its value as two words", () => {
		expect(given("-k", "file", "--namespace", "storage")).toMatchObject({
			kubeconfig: "file",
			namespace: "storage",
		});
	});

	test("may give -k an equals sign of its own", () => {
		expect(given("-k=/a=b")).toMatchObject({ kubeconfig: "/a=b" });
	});
});

test("with nothing but the URL everything has its documented default", () => {
	expect(given()).toEqual({
		kubeconfig: "",
		"etcd-core-url": [URL],
		"etcd-core-ca-configmap": "etcd-coreserving-ca",
		"etcd-core-certs-secret": "etcd-coreserving-cert",
		namespace: "kube-apiserver-storage",
		"etcd-proxy-image": `xmudrii/etcdproxy-controller:v${packageJson.version}`,
		"etcd-proxy-priority-class": "",
		"listen-addr": "0.0.0.0:8080",
		"log-format": "text",
		"leader-elect": false,
	});
});

test("the present name of a flag goes before its former one", () => {
	expect(
		given("--etcd-core-certs-secret=present", "--etcd-core-ca-secret=former"),
	).toMatchObject({ "etcd-core-certs-secret": "present" });
});

test.each<[string, string[]]>([
	["repeated", ["--etcd-core-url=https://a:1", "--etcd-core-url=https://b:2"]],
	["separated by commas", ["--etcd-core-url=https://a:1,https://b:2"]],
	["short", ["-u", "https://a:1", "-u=https://b:2"]],
	["with blanks and empty ones between", ["-u= https://a:1 ,, https://b:2,"]],
])("the URLs may be %s", (_, args) => {
	expect(parseOptions(args)).toMatchObject({
		"etcd-core-url": ["https://a:1", "https://b:2"],
	});
});

test("--leader-elect takes no value, --listen-addr may be empty, an IPv6 address has brackets", () => {
	expect(given("--leader-elect", "--listen-addr=")).toMatchObject({
		"leader-elect": true,
		"listen-addr": "",
	});
	expect(given("--listen-addr=[::1]:80")).toMatchObject({
		"listen-addr": "[::1]:80",
	});
});

test.each<[string, string[], string]>([
	[
		"no URL",
		[],
		"--etcd-core-url is required, for example --etcd-core-url=https://",
	],
	["an empty URL", ["-u="], "--etcd-core-url is required"],
	[
		"a URL without TLS",
		["-u=http://core:2379"],
		'--etcd-core-url "http://core:2379" must look like https://host:2379',
	],
	[
		"one bad URL among good ones",
		["-u=https://a:1,b:2379"],
		'--etcd-core-url "b:2379" must look like',
	],
	[
		"a URL with a path",
		["-u=https://a:1/path"],
		'--etcd-core-url "https://a:1/path" must look like',
	],
	[
		"a URL with a port that is none",
		["-u=https://a:99999"],
		'--etcd-core-url "https://a:99999" must look like',
	],
	[
		"a URL with a user",
		["-u=https://me@a:1"],
		'--etcd-core-url "https://me@a:1" must look like',
	],
	[
		"a namespace that can be none",
		["-u", URL, "--namespace=Storage_1"],
		'--namespace "Storage_1" is not the name of a Kubernetes object',
	],
	[
		"an empty namespace",
		["-u", URL, "--namespace="],
		'--namespace "" is not the name of a Kubernetes object',
	],
	[
		"a ConfigMap's name that can be none",
		["-u", URL, "--etcd-core-ca-configmap=a/b"],
		'--etcd-core-ca-configmap "a/b" is not the name of a Kubernetes object',
	],
	[
		"a Secret's name that can be none, by the former flag",
		["-u", URL, "--etcd-core-ca-secret=-"],
		'--etcd-core-certs-secret "-" is not the name of a Kubernetes object',
	],
	[
		"an empty image",
		["-u", URL, "--etcd-proxy-image="],
		"--etcd-proxy-image must not be empty",
	],
	[
		"a PriorityClass's name that can be none",
		["-u", URL, "--etcd-proxy-priority-class=Very High"],
		'--etcd-proxy-priority-class "Very High" is not the name of a Kubernetes object',
	],
	[
		"a log format that is none",
		["-u", URL, "--log-format=xml"],
		'--log-format "xml" must be text or json',
	],
	[
		"an address without a port",
		["-u", URL, "--listen-addr=localhost"],
		'--listen-addr "localhost" must be host:port, or empty for none',
	],
	[
		"an address with a port that is none",
		["-u", URL, "--listen-addr=localhost:70000"],
		'--listen-addr "localhost:70000" must be host:port, or empty for none',
	],
	["an unknown flag", ["--etcd-core-urls=x"], "'--etcd-core-urls'"],
	["a flag without its value", ["--namespace"], "--namespace"],
	["a value where there is none", ["--leader-elect=yes"], "--leader-elect"],
	["a stray word", ["-u", URL, "stray"], "'stray'"],
])("%s is refused, and the message says what is wrong", (_, args, message) => {
	expect(() => parseOptions(args)).toThrow(UsageError);
	expect(() => parseOptions(args)).toThrow(message);
	// One line, for a log.
	expect(() => parseOptions(args)).not.toThrow(/\n/);
});

test("the manifest's controller and its proxies run one image, and what it says are the defaults, but for the election and the priority", () => {
	const installed = manifest();
	const [{ image }] = one(installed, "Deployment").spec.template.spec
		.containers;
	const options = parseOptions(commandLine(installed)) as Options;
	expect(options).toEqual({
		...given(),
		"etcd-core-url": ["https://etcd-svc-1.etcd.svc:2379"],
		"etcd-proxy-priority-class": one(installed, "PriorityClass").metadata.name,
		"leader-elect": true,
	});
	expect(image).toBe(options["etcd-proxy-image"]);
	expect(dataPlane(image)).toBe("gateway");
});

test("--help and --version go before everything else, also before what is missing", () => {
	expect(parseOptions(["--help"])).toEqual({ help: true });
	expect(parseOptions(["-h", "-u=nonsense"])).toEqual({ help: true });
	expect(parseOptions(["--version"])).toEqual({ version: true });
});

test("--help lists every flag with its short form, former name, value and default", () => {
	const text = help();
	for (const [name, flag] of Object.entries(flags)) {
		const [row = ""] = text
			.split("\n")
			.filter((line) => line.includes(`--${name}`))
			.slice(-1);
		expect(row).toContain(`--${name}`);
		if (flag.short) expect(row).toContain(`-${flag.short}`);
		if (flag.alias) expect(row).toContain(`--${flag.alias}`);
		if (flag.value) expect(row).toContain(`<${flag.value}>`);
		expect(text).toContain(flag.description);
		if (typeof flag.default === "string" && flag.default !== "")
			expect(text).toContain(`Default: ${flag.default}`);
	}
	for (const other of ["--version", "--help, -h"])
		expect(text).toContain(other);
	expect(flagRows(flags)).toHaveLength(Object.keys(flags).length);
});

describe("the compiled binary", () => {
	let dir: string;
	let binary: string;
	beforeAll(async () => {
		dir = await mkdtemp(join(tmpdir(), "options-test-"));
		binary = join(dir, "etcdproxy-controller");
		await compile(binary, undefined, {
			...{ version: packageJson.version, commit: "0a1b2c3" },
			date: "2026-11-23T12:00:00Z",
		});
	}, 60_000);
	afterAll(() => rm(dir, { recursive: true }));

	const run = async (...args: string[]) => {
		const child = Bun.spawn([binary, ...args], {
			stdout: "pipe",
			stderr: "pipe",
		});
		return {
			stdout: await child.stdout.text(),
			stderr: await child.stderr.text(),
			code: await child.exited,
		};
	};

	test("prints its version", async () => {
		expect(await run("--version")).toEqual({
			stdout: `etcdproxy-controller ${packageJson.version}, commit 0a1b2c3 of 2026-11-23T12:00:00Z\n`,
			stderr: "",
			code: 0,
		});
	}, 20_000);

	test("prints its help", async () => {
		expect(await run("--help")).toEqual({
			stdout: help(),
			stderr: "",
			code: 0,
		});
	}, 20_000);

	test("prints the gateway's help", async () => {
		expect(await run("grpc-proxy", "start", "--help")).toEqual({
			stdout: gatewayHelp(),
			stderr: "",
			code: 0,
		});
	}, 20_000);

	test.each<[string, string[], string]>([
		[
			"grpc-proxy is not followed by start",
			["grpc-proxy"],
			'"grpc-proxy" is no command; the gateway is started by: etcdproxy-controller grpc-proxy start --help',
		],
		[
			"grpc-proxy is followed by another word",
			["grpc-proxy", "stop", "start"],
			'"grpc-proxy stop" is no command; the gateway is started by: etcdproxy-controller grpc-proxy start --help',
		],
		[
			"the gateway is called wrongly",
			["grpc-proxy", "start", "--namespace=/a/"],
			"--endpoints is required, for example --endpoints=https://etcd-svc-1.etcd.svc:2379",
		],
		[
			"a flag of the gateway's is the controller's",
			["grpc-proxy", "start", "--kubeconfig=x"],
			"Unknown option '--kubeconfig'; see --help",
		],
	])(
		"ends with 2 and one line when %s",
		async (_, args, message) => {
			expect(await run(...args)).toEqual({
				stdout: "",
				stderr: `etcdproxy-controller: ${message}\n`,
				code: 2,
			});
		},
		20_000,
	);

	test("ends with 2 and one line when it is called wrongly", async () => {
		expect(await run("--namespace=x")).toEqual({
			stdout: "",
			stderr:
				"etcdproxy-controller: --etcd-core-url is required, for example --etcd-core-url=https://etcd-svc-1.etcd.svc:2379\n",
			code: 2,
		});
	}, 20_000);

	test("ends with 1 and one line when its kubeconfig is missing", async () => {
		const { stderr, code } = await run(`-u=${URL}`, "-k=/no/such/file");
		expect(code).toBe(1);
		expect(stderr).toMatch(
			/^etcdproxy-controller: kubeconfig \/no\/such\/file: .*\n$/,
		);
	}, 20_000);
});
