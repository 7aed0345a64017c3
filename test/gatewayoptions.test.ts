import { describe, expect, test } from "bun:test";
import { UsageError } from "../flags.ts";
import {
	type GatewayOptions,
	gatewayFlags,
	gatewayHelp,
	parseGatewayOptions,
} from "../gateway/options.ts";

const needed = {
	endpoints: "https://core:2379",
	namespace: "/a/",
	cacert: "core-ca",
	cert: "core-cert",
	key: "core-key",
	"trusted-ca-file": "client-ca",
	"cert-file": "server-cert",
	"key-file": "server-key",
};
const words = (values: Record<string, string>) =>
	Object.entries(values).map(([name, value]) => `--${name}=${value}`);
const given = (...args: string[]) =>
	parseGatewayOptions([...words(needed), ...args]) as GatewayOptions;

test("with nothing but what is required everything has its documented default", () => {
	expect(given()).toEqual({
		...needed,
		endpoints: ["https://core:2379"],
		"listen-addr": "127.0.0.1:23790",
		"metrics-addr": "",
		"advertise-client-url": "https://127.0.0.1:23790",
		"dial-keepalive-time": 10_000,
		"dial-keepalive-timeout": 5_000,
		"max-send-bytes": 2 * 1024 * 1024,
		"max-concurrent-streams": 2000,
		"max-watches": 10_000,
		"max-connections": 1000,
		"max-bytes-in-flight": 128 * 1024 * 1024,
		"drain-timeout": 20_000,
		"log-format": "text",
	});
});

test("every flag is taken, numbers as numbers and durations in milliseconds", () => {
	expect(
		given(
			...words({
				"listen-addr": "[::]:2379",
				"metrics-addr": "http://0.0.0.0:2381",
				"advertise-client-url": "https://etcd-a.storage.svc:2379",
				"dial-keepalive-time": "1m30s",
				"dial-keepalive-timeout": "250ms",
				"max-send-bytes": "1",
				"max-concurrent-streams": "2147483647",
				"max-watches": "3",
				"max-connections": "4",
				"max-bytes-in-flight": "8589934592",
				"drain-timeout": "0",
				"log-format": "json",
			}),
		),
	).toEqual({
		...needed,
		endpoints: ["https://core:2379"],
		"listen-addr": "[::]:2379",
		"metrics-addr": "http://0.0.0.0:2381",
		"advertise-client-url": "https://etcd-a.storage.svc:2379",
		"dial-keepalive-time": 90_000,
		"dial-keepalive-timeout": 250,
		"max-send-bytes": 1,
		"max-concurrent-streams": 2_147_483_647,
		"max-watches": 3,
		"max-connections": 4,
		"max-bytes-in-flight": 8_589_934_592,
		"drain-timeout": 0,
		"log-format": "json",
	});
});

test("the command line that etcd's own proxy gets is understood", () => {
	expect(
		parseGatewayOptions([
			"--endpoints=https://etcd-1:2379,https://etcd-2:2379",
			"--namespace=/a/",
			"--listen-addr=0.0.0.0:2379",
			"--metrics-addr=http://0.0.0.0:2381",
			"--advertise-client-url=",
			"--dial-keepalive-time=10s",
			"--cacert=a",
			"--cert=b",
			"--key=c",
			"--trusted-ca-file=d",
			"--cert-file=e",
			"--key-file=f",
		]),
	).toMatchObject({
		endpoints: ["https://etcd-1:2379", "https://etcd-2:2379"],
		"advertise-client-url": "https://0.0.0.0:2379",
	});
});

test("endpoints may be repeated and separated by commas", () => {
	expect(
		given("--endpoints= https://b:1 ,,", "--endpoints=https://c:1").endpoints,
	).toEqual(["https://core:2379", "https://b:1", "https://c:1"]);
});

describe("a message says which flag is wrong and what would be right:", () => {
	test.each(Object.keys(needed))("--%s is required", (name) => {
		for (const value of [[], [`--${name}=`]]) {
			const args = [
				...words(needed).filter((word) => !word.startsWith(`--${name}=`)),
				...value,
			];
			expect(() => parseGatewayOptions(args)).toThrow(UsageError);
			expect(() => parseGatewayOptions(args)).toThrow(
				new RegExp(`^--${name} is required, for example --${name}=\\S+$`),
			);
		}
	});

	test.each<[string, string, string]>([
		["endpoints", "core:2379", "must look like https://host:2379"],
		["endpoints", "http://core:2379", "must look like https://host:2379"],
		["endpoints", "https://core:2379/a", "must look like https://host:2379"],
		["endpoints", "https://core:23790000", "must look like https://host:2379"],
		["endpoints", "https://", "must look like https://host:2379"],
		["namespace", "/a", "without a slash at its end"],
		["namespace", "a/", "must look like /my-apiserver/"],
		["namespace", "/", "must look like /my-apiserver/"],
		["namespace", "//", "must look like /my-apiserver/"],
		["listen-addr", "2379", "must be host:port, for example 0.0.0.0:2379"],
		["listen-addr", "a:65536", "must be host:port, for example 0.0.0.0:2379"],
		["metrics-addr", "0.0.0.0:2381", "must look like http://host:port"],
		["metrics-addr", "https://a:1", "must look like http://host:port"],
		["metrics-addr", "http://a:1/metrics", "must look like http://host:port"],
		["advertise-client-url", "a:1", "must look like https://host:port"],
		["dial-keepalive-time", "10", "must be a Go duration from 1ms to 24h"],
		["dial-keepalive-time", "0s", "must be a Go duration from 1ms to 24h"],
		["dial-keepalive-timeout", "-1s", "must be a Go duration from 1ms to 24h"],
		["dial-keepalive-timeout", "", "must be a Go duration from 1ms to 24h"],
		["drain-timeout", "24h1ms", "must be a Go duration from 0ms to 24h"],
		["drain-timeout", "soon", "must be a Go duration from 0ms to 24h"],
		["max-send-bytes", "0", "must be a whole number from 1 to 2147483647"],
		["max-send-bytes", "2MiB", "must be a whole number from 1 to"],
		["max-watches", "1e3", "must be a whole number from 1 to 2147483647"],
		["max-watches", "-1", "must be a whole number from 1 to 2147483647"],
		["max-connections", "", "must be a whole number from 1 to 2147483647"],
		["max-concurrent-streams", "2147483648", "must be a whole number from 1"],
		["max-bytes-in-flight", "9007199254740992", "must be a whole number from"],
		["log-format", "xml", "must be text or json"],
	])("--%s=%s", (name, value, message) => {
		const call = () => given(`--${name}=${value}`);
		expect(call).toThrow(UsageError);
		expect(call).toThrow(`--${name} "${value}"`);
		expect(call).toThrow(message);
		// One line, for a log.
		expect(call).not.toThrow(/\n/);
	});

	test.each<[string, string]>([
		["--no-such-flag=1", "Unknown option '--no-such-flag'; see --help"],
		["stray", "'stray'"],
		["--cert", "--cert"],
	])("%s", (word, message) => {
		expect(() => given(word)).toThrow(UsageError);
		expect(() => given(word)).toThrow(message);
	});
});

test("--help goes before everything else, and lists every flag with value and default", () => {
	expect(parseGatewayOptions(["--help"])).toEqual({ help: true });
	expect(parseGatewayOptions(["-h", "--endpoints=x"])).toEqual({ help: true });
	const text = gatewayHelp();
	for (const [name, flag] of Object.entries(gatewayFlags)) {
		expect(text).toContain(
			`\n  --${name} <${flag.value}>\n      ${flag.description}${String(flag.default) === "" ? "" : ` Default: ${flag.default}`}\n`,
		);
	}
	expect(text).toContain("--help, -h");
});
