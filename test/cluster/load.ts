/**
 * A constant load on the sample-apiserver, as a process of its own in the cluster's network: Flunders are created, read,
 * listed and deleted, and one watch must tell of each creation and each deletion. `bun load.ts KUBECONFIG`; SIGTERM ends it,
 * and its last line says as JSON what came of it.
 */
import { readFile } from "node:fs/promises";

/** What came of it. */
export interface LoadReport {
	requests: number;
	/** "time verb: answer" of requests that did not succeed. */
	failures: string[];
	/** Objects of whose creation and deletion the watch did not tell once and in this order. */
	missed: string[];
	/** Events that the watch told of. */
	events: number;
	/** Times that the watch ended, or was cut off when its API server was replaced, and was taken up again where it was. */
	interruptions: number;
	slowestMs: Record<string, number>;
}

const WRITERS = 3;
/** Requests at once: the writers' and a list. */
export const CONCURRENCY = WRITERS + 1;
/** Between the requests of a writer and between lists. */
const PAUSE_MS = 50;
/** How long the watch may take to tell of what was last done. */
const LAST_EVENTS_MS = 10_000;
const PATH = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders";

/** Somebody whom the API server knows. */
export interface User {
	server: string;
	tls: { ca: string; cert: string; key: string };
}

/** Whom a kubeconfig of the cluster makes one. */
export async function user(kubeconfig: string): Promise<User> {
	const {
		clusters: [{ cluster }],
		users: [{ user }],
	} = JSON.parse(await readFile(kubeconfig, "utf8"));
	const text = (data: string) => Buffer.from(data, "base64").toString();
	return {
		server: cluster.server,
		tls: {
			ca: text(cluster["certificate-authority-data"]),
			cert: text(user["client-certificate-data"]),
			key: text(user["client-key-data"]),
		},
	};
}

class Load {
	readonly #user: User;
	readonly #stopped = new AbortController();
	readonly #watchEnd = new AbortController();
	/** What was done, and what the watch told of, by object: "ADDED", "DELETED". */
	readonly #done = new Map<string, string[]>();
	readonly #told = new Map<string, string[]>();
	readonly report: LoadReport = {
		requests: 0,
		failures: [],
		missed: [],
		events: 0,
		interruptions: 0,
		slowestMs: {},
	};

	constructor(user: User) {
		this.#user = user;
	}

	stop(): void {
		this.#stopped.abort();
	}

	async run(): Promise<void> {
		const { metadata } = await this.#fetch("list", PATH);
		const watch = this.#watch(metadata.resourceVersion);
		await Promise.all([
			this.#lists(),
			...Array.from({ length: WRITERS }, (_, index) => this.#writes(index)),
		]);
		const deadline = performance.now() + LAST_EVENTS_MS;
		while (this.#missing().length > 0 && performance.now() < deadline)
			await Bun.sleep(PAUSE_MS);
		this.#watchEnd.abort();
		await watch;
		this.report.missed = this.#missing();
	}

	/** @throws Error with what was answered, for a failure that has been noted */
	async #fetch(verb: string, path: string, init: RequestInit = {}) {
		const start = performance.now();
		this.report.requests++;
		try {
			const response = await fetch(`${this.#user.server}${path}`, {
				...init,
				headers: { "content-type": "application/json" },
				signal: AbortSignal.timeout(60_000),
				tls: this.#user.tls,
			});
			const text = await response.text();
			if (!response.ok) throw new Error(`${response.status} ${text}`);
			return JSON.parse(text);
		} catch (error) {
			this.#failed(verb, error);
			throw error;
		} finally {
			this.report.slowestMs[verb] = Math.round(
				Math.max(this.report.slowestMs[verb] ?? 0, performance.now() - start),
			);
		}
	}

	#failed(verb: string, error: unknown): void {
		const time = new Date().toISOString();
		this.report.failures.push(`${time} ${verb}: ${(error as Error).message}`);
	}

	async #loop(turn: (count: number) => Promise<void>): Promise<void> {
		for (let count = 1; !this.#stopped.signal.aborted; count++) {
			// What failed has been noted, and the next turn is another request.
			await turn(count).catch(() => undefined);
			await Bun.sleep(PAUSE_MS);
		}
	}

	#lists(): Promise<void> {
		return this.#loop(async () => {
			await this.#fetch("list", PATH);
		});
	}

	#writes(writer: number): Promise<void> {
		return this.#loop(async (count) => {
			const name = `load-${writer}-${process.pid}-${count}`;
			await this.#fetch("create", PATH, {
				method: "POST",
				body: JSON.stringify({
					apiVersion: "wardle.example.com/v1alpha1",
					kind: "Flunder",
					metadata: { name },
					spec: { reference: "" },
				}),
			});
			this.#done.set(name, ["ADDED"]);
			// From etcd, not from the API server's cache.
			await this.#fetch("get", `${PATH}/${name}`).catch(() => undefined);
			await this.#fetch("delete", `${PATH}/${name}`, {
				method: "DELETE",
			}).catch((error: Error) => {
				// It may have been deleted all the same.
				this.#done.delete(name);
				throw error;
			});
			this.#done.set(name, ["ADDED", "DELETED"]);
		});
	}

	async #watch(from: string): Promise<void> {
		let version = from;
		while (!this.#watchEnd.signal.aborted) {
			let begun = false;
			try {
				const response = await fetch(
					`${this.#user.server}${PATH}?watch=1&allowWatchBookmarks=true&resourceVersion=${version}`,
					{ tls: this.#user.tls, signal: this.#watchEnd.signal },
				);
				if (!response.ok)
					throw new Error(`${response.status} ${await response.text()}`);
				let rest = "";
				const decoder = new TextDecoder();
				begun = true;
				for await (const chunk of response.body ?? []) {
					rest += decoder.decode(chunk, { stream: true });
					const lines = rest.split("\n");
					rest = lines.pop() ?? "";
					for (const line of lines) {
						const { type, object } = JSON.parse(line);
						if (type === "ERROR") {
							begun = false;
							throw new Error(`${object.code} ${object.message}`);
						}
						version = object.metadata.resourceVersion;
						if (type !== "BOOKMARK") this.#tell(object.metadata.name, type);
					}
				}
			} catch (error) {
				if (this.#watchEnd.signal.aborted) return;
				// A stream may end at any time, as long as it can be taken up again.
				if (!begun) this.#failed("watch", error);
			}
			this.report.interruptions++;
			await Bun.sleep(PAUSE_MS);
		}
	}

	#tell(name: string, type: string): void {
		this.report.events++;
		this.#told.set(name, [...(this.#told.get(name) ?? []), type]);
	}

	#missing(): string[] {
		return [...this.#done]
			.filter(([name, types]) => this.#told.get(name)?.join() !== types.join())
			.map(
				([name, types]) => `${name}: ${types} told as ${this.#told.get(name)}`,
			);
	}
}

async function main(): Promise<void> {
	const load = new Load(await user(process.argv[2] ?? ""));
	process.once("SIGTERM", () => load.stop());
	await load.run();
	console.log(JSON.stringify(load.report));
}

if (import.meta.main)
	main().catch((error: Error) => {
		console.log(JSON.stringify({ crashed: error.message }));
		process.exitCode = 1;
	});
