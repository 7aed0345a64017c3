/** The program as it is shipped. */
import { join } from "node:path";
import packageJson from "../../package.json" with { type: "json" };
import { run } from "./processes.ts";

/** Compiles it with the flags of `npm run build`. @returns the path of the binary */
export async function compileController(outfile: string): Promise<string> {
	const [bun, ...args] = packageJson.scripts.build.split(" ");
	if (bun !== "bun")
		throw new Error(`package.json: the script "build" runs ${bun}`);
	await run(
		[
			process.execPath,
			...args.map((arg) => (arg.startsWith("dist/") ? outfile : arg)),
		],
		{ cwd: join(import.meta.dirname, "../..") },
	);
	return outfile;
}
