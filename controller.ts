/**
 * The program: which of its two halves a command line asks for, or which look into them. The other one is not even loaded:
 * there is a gateway for every EtcdStorage, three times over, and none has a use for X.509 and Kubernetes' client in its memory.
 * No top-level await: `bun build --compile --bytecode` does not know it (https://github.com/oven-sh/bun/issues/40968).
 */

import { UsageError } from "./flags.ts";
import { explain } from "./log.ts";

async function main(args: string[]): Promise<void> {
	const [command, action, ...rest] = args;
	// The executable starts with a compiler to machine code that holds back (build/program.ts): nothing for a gateway's hot paths.
	if (["plan", "certs", "grpc-proxy"].includes(command ?? ""))
		Bun.unsafe.setJITPolicy(1);
	if (command === "plan" || command === "certs") {
		const { runInspect } = await import("./inspect.ts");
		return runInspect(command, args.slice(1));
	}
	if (command !== "grpc-proxy") {
		const { runController } = await import("./operator.ts");
		return runController(args);
	}
	if (action !== "start")
		throw new UsageError(
			`"grpc-proxy${action === undefined ? "" : ` ${action}`}" is no command; the gateway is started by: etcdproxy-controller grpc-proxy start --help`,
		);
	const { runGateway } = await import("./gateway.ts");
	return runGateway(rest);
}

if (import.meta.main)
	main(process.argv.slice(2)).catch((error: unknown) => {
		process.stderr.write(`etcdproxy-controller: ${explain(error)}\n`);
		process.exit(error instanceof UsageError ? 2 : 1);
	});
