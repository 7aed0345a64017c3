/**
 * `npm run release`: all that a release consists of, into an empty dist/. It publishes nothing.
 * What it refuses, and what to do with what it has made: CONTRIBUTING.md, "Releasing".
 */
import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { Build } from "../version.ts";
import { buildImage, imagePlatforms } from "./image.ts";
import { root } from "./lockfile.ts";
import { run } from "./machine.ts";
import { tar } from "./oci.ts";
import {
	buildProgram,
	dist,
	type Program,
	platforms,
	workTree,
} from "./program.ts";

/** What must be so before anything is released, as sentences with a way out for what is not. Pure. */
export function obstacles(
	{ version, commit }: Build,
	tags: string[],
	changelog: string,
): string[] {
	const heading = new RegExp(
		`^## \\[${RegExp.escape(version)}\\] - \\d{4}-\\d\\d-\\d\\d$`,
		"m",
	);
	return [
		...(/-dirty$|^unknown$/.test(commit)
			? ["the work tree is not a commit: git status"]
			: []),
		...(tags.includes(`v${version}`)
			? []
			: [`the commit is not tagged: git tag --sign v${version}`]),
		...(heading.test(changelog)
			? []
			: [`CHANGELOG.md has no "## [${version}] - " with a date`]),
	];
}

async function main(): Promise<void> {
	const build = await workTree();
	const tags = await run(["git", "tag", "--points-at"], { cwd: root });
	const changelog = await Bun.file(join(root, "CHANGELOG.md")).text();
	const found = obstacles(build, tags.split("\n"), changelog);
	if (found.length > 0)
		throw new Error(`no release of ${build.version}: ${found.join("; ")}`);

	await rm(dist, { recursive: true, force: true });
	const programs: Program[] = [];
	for (const platform of platforms)
		programs.push(await buildProgram(platform, build));
	const forImage = programs.filter(({ platform }) =>
		imagePlatforms.some((one) => one === platform),
	);
	await buildImage(build, forImage, { strict: true, log: console.error });
	await packLicenses(build);
	// It is one of the others.
	await rm(join(dist, "etcdproxy-controller"), { force: true });
	console.log(await writeChecksums());
}

/** One file of them, for executables are downloaded one by one. */
async function packLicenses({ version, date }: Build): Promise<void> {
	const folder = join(dist, "licenses");
	const paths = await Array.fromAsync(new Bun.Glob("**/*").scan(folder));
	const entries = await Promise.all(
		paths.sort().map(async (path) => ({
			path: `/licenses/${path}`,
			content: await Bun.file(join(folder, path)).bytes(),
		})),
	);
	const archive = Buffer.concat(tar(entries, Date.parse(date) / 1000));
	const name = `etcdproxy-controller-${version}-licenses.tar.gz`;
	await Bun.write(join(dist, name), Bun.gzipSync(archive));
}

/** SHA256SUMS of all files in dist/, as sha256sum(1) has it. @returns its text */
async function writeChecksums(): Promise<string> {
	const lines: string[] = [];
	for (const name of (
		await Array.fromAsync(new Bun.Glob("*").scan(dist))
	).sort()) {
		const hash = new Bun.CryptoHasher("sha256");
		hash.update(await Bun.file(join(dist, name)).bytes());
		lines.push(`${hash.digest("hex")}  ${name}\n`);
	}
	const text = lines.join("");
	await Bun.write(join(dist, "SHA256SUMS"), text);
	return text;
}

if (import.meta.main)
	main().catch((error: Error) => {
		console.error(error.message);
		process.exitCode = 1;
	});
