/**
 * Preloaded into a process, it blocks its event loop from SIGUSR2 on for as long as the file BLOCKED_BY is there, as a
 * machine that swaps may: other threads go on, so that requests go out and answers come in.
 */
import { existsSync } from "node:fs";

process.on("SIGUSR2", () => {
	while (existsSync(process.env.BLOCKED_BY ?? "")) Bun.sleepSync(20);
});
