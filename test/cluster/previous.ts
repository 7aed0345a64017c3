/** The version before this one: what somebody has installed who upgrades, or goes back to who does not like the new one. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { programImage } from "../../build/image.ts";
import type { Program } from "../../build/program.ts";
import type { Cluster } from "./node.ts";
import { type Log, run } from "./processes.ts";

const root = join(import.meta.dirname, "../..");
const image = "localhost/etcdproxy-controller:previous";

const git = async (...args: string[]) =>
	(await run(["git", ...args], { cwd: root })).trim();

/** Resolves to the last release before this commit, or to the commit before it; to undefined without git's history. */
export async function previousRevision(): Promise<string | undefined> {
	const parent = await git("rev-parse", "--verify", "HEAD^").catch(
		() => undefined,
	);
	if (parent === undefined) return undefined;
	const release = git("describe", "--tags", "--abbrev=0", "--match=v*", parent);
	return release.catch(() => parent);
}

/**
 * Builds that version and gives the node its image.
 * @param program of this version, in whose place it is
 * @returns its manifest
 */
export async function importPrevious(
	cluster: Cluster,
	revision: string,
	program: Program,
	log: Log,
): Promise<string> {
	const folder = join(cluster.dir, "previous");
	await mkdir(folder);
	const archive = join(folder, "sources.tar");
	await git("archive", `--output=${archive}`, revision);
	await run(["tar", "-xf", archive, "-C", folder]);
	const quietly = ["--no-audit", "--no-fund", "--prefer-offline"];
	await run(["npm", "ci", ...quietly], { cwd: folder });
	await run(["npm", "run", "--silent", "build"], { cwd: folder });
	const file = join(folder, "dist/etcdproxy-controller");
	const previous = await programImage({ ...program, file }, { log });
	await cluster.importImage(image, previous.image);
	const manifest = "artifacts/deployment/00-etcdproxy-controller.yaml";
	return (await Bun.file(join(folder, manifest)).text()).replaceAll(
		/\S+\/etcdproxy-controller:\S+/g,
		image,
	);
}
