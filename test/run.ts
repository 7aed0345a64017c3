/** `npm test`: builds what the tests need, runs all of them, and counts them in its last line. */
import { allBinaries, allClients, binaries } from "./cluster/binaries.ts";
import { obstacle, prerequisites } from "./cluster/prerequisites.ts";
import { terminalLog } from "./cluster/steps.ts";

const controlPlaneBinaries = [
	"etcd",
	"etcdctl",
	"kube-apiserver",
	"kubectl",
	"kube-controller-manager",
	"sample-apiserver",
] as const;

/** @throws Error that says what is missing and the way out */
async function prepare(): Promise<void> {
	const log = terminalLog();
	const whole = (await obstacle()) === undefined;
	if (whole) await prerequisites(log);
	await binaries(
		[...(whole ? allBinaries : controlPlaneBinaries), ...allClients],
		log,
	);
}

async function relay(
	from: ReadableStream<Uint8Array>,
	to: NodeJS.WriteStream,
): Promise<string> {
	const decoder = new TextDecoder();
	let text = "";
	for await (const chunk of from) {
		to.write(chunk);
		text += decoder.decode(chunk, { stream: true });
	}
	return text;
}

async function main(): Promise<void> {
	await prepare();
	const child = Bun.spawn(
		// Bun's own 5 s for a test are few on two busy cores. No test is about how long it takes.
		[process.execPath, "test", "--timeout=60000", ...process.argv.slice(2)],
		{ stdin: "ignore", stdout: "pipe", stderr: "pipe" },
	);
	// Bun counts on stderr; what tests say of themselves may go to either.
	const [output, errors] = await Promise.all([
		relay(child.stdout, process.stdout),
		relay(child.stderr, process.stderr),
	]);
	const exitCode = await child.exited;
	const count = (what: string) =>
		Number(new RegExp(`^ *(\\d+) ${what}$`, "m").exec(errors)?.[1] ?? 0);
	const [passed, failed, skipped] = [
		count("pass"),
		count("fail"),
		count("skip"),
	];
	const reasons = `${output}\n${errors}`.matchAll(/^skipped: .*$/gm);
	for (const [reason] of reasons) console.log(reason);
	const crashed = exitCode !== 0 && failed === 0 ? 1 : 0;
	console.log(
		`${passed} passed, ${failed + crashed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`,
	);
	process.exitCode = passed === 0 ? 1 : exitCode;
}

main().catch((error: Error) => {
	console.error(error.message);
	console.log("0 passed, 1 failed");
	process.exitCode = 1;
});
