/** `npm test`: all tests, and a last line that counts them. */
const child = Bun.spawn([process.execPath, "test", ...process.argv.slice(2)], {
	stdin: "ignore",
	stdout: "pipe",
	stderr: "pipe",
});

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

// Bun counts on stderr; what tests say of themselves may go to either.
const [output, errors] = await Promise.all([
	relay(child.stdout, process.stdout),
	relay(child.stderr, process.stderr),
]);
const exitCode = await child.exited;
const count = (what: string) =>
	Number(new RegExp(`^ *(\\d+) ${what}$`, "m").exec(errors)?.[1] ?? 0);
const [passed, failed, skipped] = [count("pass"), count("fail"), count("skip")];

for (const [, reason] of `${output}\n${errors}`.matchAll(/^skipped: (.*)$/gm))
	console.log(`skipped: ${reason}`);
const crashed = exitCode !== 0 && failed === 0 ? 1 : 0;
console.log(
	`${passed} passed, ${failed + crashed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`,
);
process.exit(passed === 0 ? 1 : exitCode);
