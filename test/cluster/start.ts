/**
 * `npm start`: the whole thing on a real one-node cluster, to look at until Ctrl-C.
 * `npm start -- --exit`: the same, ends by itself; exit code 1 if anything was not so.
 */
import { parseArgs } from "node:util";
import { NAMESPACE } from "../harness.ts";
import { type Demo, etcdctl, runDemo } from "./demo.ts";
import { type Cluster, startCluster } from "./node.ts";
import { terminalLog } from "./steps.ts";

const { values } = parseArgs({
	options: { exit: { type: "boolean", default: false } },
});
const log = terminalLog();
const start = performance.now();
const seconds = () => `${Math.round((performance.now() - start) / 1000)} s`;

// While it starts, what there is ends with this process; later on Ctrl-C is the usual end.
let interrupt: () => void = () => process.exit(130);
for (const signal of ["SIGINT", "SIGTERM"] as const)
	process.on(signal, () => interrupt());

/** Prints a command and what it says. */
async function show(command: string, output: Promise<string>): Promise<void> {
	log(`\n$ ${command}\n${(await output).trimEnd()}`);
}

async function tour(cluster: Cluster, { core }: Demo): Promise<void> {
	await show(
		"kubectl get etcdstorages",
		cluster.kubectl(["get", "etcdstorages"]),
	);
	await show("kubectl get flunders", cluster.kubectl(["get", "flunders"]));
	await show(
		"etcdctl get --prefix --keys-only /sample-apiserver/     # in the core etcd",
		etcdctl(cluster, core, [
			"get",
			"--prefix",
			"--keys-only",
			"/sample-apiserver/",
		]),
	);
	if (values.exit) return;
	log(`
Look around in another terminal, as root:

  export KUBECONFIG=${cluster.kubeconfig}
  alias kubectl='nsenter --net=${cluster.netns} ${cluster.binary("kubectl")}'
  kubectl get etcdstorages,pods --all-namespaces
  kubectl describe etcdstorage sample-apiserver
  kubectl logs --namespace=${NAMESPACE} --selector=controller=etcdproxy --prefix --follow

Ctrl-C ends it all.`);
	// Children do not keep this process alive, nor does a promise.
	const alive = setInterval(() => {}, 2 ** 30);
	await new Promise<void>((resolve) => {
		interrupt = resolve;
	});
	clearInterval(alive);
}

async function main(): Promise<void> {
	const cluster = await startCluster(log);
	try {
		const demo = await runDemo(cluster, log);
		log(
			`\nThe API server stores its objects through the EtcdStorage (${seconds()}).`,
		);
		await tour(cluster, demo);
	} finally {
		await cluster.stop();
		log("Everything is cleaned up.");
	}
}

main().catch((error: Error) => {
	log(`\n${error.message}`);
	process.exitCode = 1;
});
