/** The controller as artifacts/deployment installs it: two replicas in pods, of which one leads. */
import { type Json, NAMESPACE } from "../harness.ts";
import type { Cluster } from "./node.ts";
import { processesWith, processFile, until } from "./processes.ts";

const DEPLOYMENT = "deployment/etcdproxy-controller-deployment";
const MINUTE = 60_000;

export class InstalledController {
	readonly #cluster: Cluster;

	constructor(cluster: Cluster) {
		this.#cluster = cluster;
	}

	#kubectl(...args: string[]): Promise<string> {
		return this.#cluster.kubectl([`--namespace=${NAMESPACE}`, ...args]);
	}

	/** With those that are on their way out. */
	async pods(): Promise<Json[]> {
		const list = await this.#kubectl(
			...["get", "pods", "--selector=controller=etcdproxy", "--output=json"],
		);
		return JSON.parse(list).items;
	}

	/** Resolves when all pods are as the Deployment says, and no others are there. */
	async rolledOut(): Promise<void> {
		await this.#kubectl("rollout", "status", DEPLOYMENT, "--timeout=120s");
		const { spec } = JSON.parse(
			await this.#kubectl("get", DEPLOYMENT, "--output=json"),
		);
		await until(
			"the former controllers are gone",
			async () => (await this.pods()).length === spec.replicas,
		);
	}

	/** What those say that are there. */
	logs(): Promise<string> {
		return this.#kubectl(
			...["logs", "--selector=controller=etcdproxy", "--prefix", "--tail=30"],
		);
	}

	/** Resolves to the name of the pod that leads. */
	async leader(): Promise<string> {
		const holder = await this.#kubectl(
			...["get", "lease", "etcdproxy-controller"],
			"--output=jsonpath={.spec.holderIdentity}",
		);
		return holder.split("_")[0] ?? "";
	}

	/** Resolves when another one leads. */
	async leaderOtherThan(pod: string): Promise<string> {
		return until(
			`another one than ${pod} leads`,
			async () => {
				const leader = await this.leader();
				return leader !== "" && leader !== pod && leader;
			},
			{ timeout: MINUTE },
		);
	}

	/** The process of a pod. */
	pid(pod: string): number {
		const found = processesWith("--leader-elect").find((pid) =>
			processFile(pid, "environ")?.split("\0").includes(`HOSTNAME=${pod}`),
		);
		if (found === undefined) throw new Error(`pod ${pod} has no process`);
		return found;
	}

	/** SIGKILL for the leader. Its pod goes, too: a kubelet starts the same one later each time. */
	async kill(): Promise<void> {
		const leader = await this.leader();
		process.kill(this.pid(leader), "SIGKILL");
		await this.#kubectl(
			...["delete", "pod", leader, "--grace-period=1", "--wait=false"],
		);
	}

	/** Resolves when none is there any more. */
	async stop(): Promise<void> {
		await this.#kubectl("scale", DEPLOYMENT, "--replicas=0");
		await until(
			"no controller is left",
			async () => (await this.pods()).length === 0,
		);
	}

	async start(): Promise<void> {
		await this.#kubectl("scale", DEPLOYMENT, "--replicas=2");
		await this.rolledOut();
	}

	/** Gives the proxies another image, and resolves when the controllers know it. */
	async setProxyImage(image: string): Promise<void> {
		await this.#kubectl("set", "env", DEPLOYMENT, `ETCDPROXY_IMAGE=${image}`);
		await this.rolledOut();
	}
}
