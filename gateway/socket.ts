/** A socket as the transport of an HTTP/2 session. */
import type { Socket } from "node:net";
import type { Transport } from "../http2.ts";

/** After as much, others come first: a large answer goes out in many turns of the event loop. */
const TURN_BYTES = 32_768;

export const overSocket = (socket: Socket): Transport => ({
	write(bytes, done) {
		socket.write(
			bytes,
			bytes.length < TURN_BYTES ? done : () => setImmediate(done),
		);
	},
	end() {
		socket.end();
	},
});
