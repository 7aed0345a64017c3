/** Bad weather between a client and the API server: a TCP relay that can refuse, cut, and fall silent. */
import { readFile, writeFile } from "node:fs/promises";
import net from "node:net";

export class Relay {
	/** Connections accepted so far. */
	connections = 0;
	readonly #pairs = new Set<{
		client: net.Socket;
		/** What the client says is lost. */
		mute: boolean;
		/** What the server says is lost. */
		deaf: boolean;
	}>();
	readonly #server: net.Server;
	readonly #target: URL;
	#port = 0;
	#muteNew = false;

	private constructor(server: string) {
		this.#target = new URL(server);
		this.#server = net.createServer((client) => this.#relay(client));
	}

	/** @param server URL of the API server */
	static async start(server: string): Promise<Relay> {
		const relay = new Relay(server);
		await relay.mend();
		return relay;
	}

	/** Where it listens. */
	get url(): string {
		return `${this.#target.protocol}//${this.#target.hostname}:${this.#port}`;
	}

	/** A copy of a kubeconfig that leads through the relay. Returns its path. */
	async kubeconfig(original: string, name: string): Promise<string> {
		const path = `${original}.${name}`;
		const text = await readFile(original, "utf8");
		await writeFile(path, text.replaceAll(this.#target.origin, this.url), {
			mode: 0o600,
		});
		return path;
	}

	/** Closes every connection; new ones are accepted. */
	cut(): void {
		for (const { client } of this.#pairs) client.destroy();
	}

	/** Closes every connection and refuses new ones. */
	async refuse(): Promise<void> {
		const closed = new Promise((resolve) => this.#server.close(resolve));
		this.cut();
		await closed;
	}

	/**
	 * What goes over the present connections from now on is lost, and nobody is told.
	 * @param alsoNew over all further connections, too
	 */
	mute(alsoNew = false): void {
		for (const pair of this.#pairs) pair.mute = pair.deaf = true;
		this.#muteNew = alsoNew;
	}

	/** The present connections still bring what the server says, but lose what the client says. */
	unanswered(): void {
		for (const pair of this.#pairs) pair.mute = true;
	}

	/** New connections are accepted and work. */
	async mend(): Promise<void> {
		this.#muteNew = false;
		if (this.#server.listening) return;
		await new Promise<void>((resolve, reject) => {
			this.#server.once("error", reject);
			this.#server.listen(this.#port, this.#target.hostname, resolve);
		});
		this.#port = (this.#server.address() as net.AddressInfo).port;
	}

	#relay(client: net.Socket): void {
		this.connections++;
		const pair = { client, mute: this.#muteNew, deaf: this.#muteNew };
		this.#pairs.add(pair);
		const { hostname, port } = this.#target;
		const upstream = net.connect(Number(port), hostname);
		client.on("data", (data) => {
			if (!pair.mute && !upstream.destroyed) upstream.write(data);
		});
		upstream.on("data", (data) => {
			if (!pair.deaf && !client.destroyed) client.write(data);
		});
		client.on("close", () => {
			this.#pairs.delete(pair);
			upstream.destroy();
		});
		upstream.on("close", () => {
			if (!pair.deaf) client.destroy();
		});
		for (const end of [client, upstream]) end.on("error", () => end.destroy());
	}
}
