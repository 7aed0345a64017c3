/** A Kubernetes Service in small: one TCP address in front of some gateways. */
import net from "node:net";
import { freePort, type Gateway } from "./dataplane.ts";

export class Service {
	readonly url: string;
	/** Who gets new connections, in turn. The others keep those they have. */
	endpoints: Gateway[];
	/** New connections that nobody took. */
	refused = 0;
	readonly #server: net.Server;
	readonly #sockets = new Set<net.Socket>();
	#turn = 0;

	private constructor(endpoints: Gateway[], port: number) {
		this.endpoints = endpoints;
		this.url = `https://127.0.0.1:${port}`;
		this.#server = net.createServer((client) => this.#forward(client));
	}

	static async start(endpoints: Gateway[]): Promise<Service> {
		const port = freePort();
		const service = new Service(endpoints, port);
		await new Promise<void>((resolve) =>
			service.#server.listen(port, "127.0.0.1", resolve),
		);
		return service;
	}

	stop(): void {
		this.#server.close();
		for (const socket of this.#sockets) socket.destroy();
	}

	#forward(client: net.Socket): void {
		const gateway = this.endpoints[this.#turn++ % this.endpoints.length];
		if (!gateway) throw new Error("a Service without endpoints");
		const upstream = net.connect(
			Number(new URL(gateway.url).port),
			"127.0.0.1",
		);
		let connected = false;
		upstream.once("connect", () => {
			connected = true;
		});
		for (const [from, to] of [
			[client, upstream],
			[upstream, client],
		] as const) {
			this.#sockets.add(from);
			from.pipe(to);
			from.on("error", () => to.destroy());
			from.once("close", () => {
				this.#sockets.delete(from);
				to.destroy();
			});
		}
		upstream.once("close", () => {
			if (!connected) this.refused++;
		});
	}
}
