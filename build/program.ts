/**
 * `npm run build [-- PLATFORM ...]`: the program as it is shipped, one executable for each platform, into dist/.
 * The same commit gives the same bytes, in whatever folder and on whatever machine.
 */
import { existsSync } from "node:fs";
import { link, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import type { Build } from "../version.ts";
import type { DebianPackage } from "./debian.ts";
import { licenses } from "./licenses.ts";
import {
	type LockedPackage,
	lockedPackage,
	packagesOf,
	root,
} from "./lockfile.ts";
import { cached, inScratchFolder, run } from "./machine.ts";
import { billOfMaterials } from "./sbom.ts";

export const dist = join(root, "dist");

/** As Node.js says platform and architecture. */
export const platforms = [
	// Starts on every x86-64 CPU since 2008 (Nehalem): Bun chooses what is newer when it runs, and its package "baseline" has the same bytes.
	"linux-x64",
	"linux-arm64",
	"darwin-arm64",
] as const;

export type Platform = (typeof platforms)[number];

/** A compiled program, and what went into it. */
export interface Program {
	platform: Platform;
	/** Path of the executable. */
	file: string;
	build: Build;
	/** The npm package with the runtime that it contains. */
	runtime: LockedPackage;
	/** The npm packages of which there is code in it. */
	packages: LockedPackage[];
}

/** How it is compiled, for tests and benchmarks, too. */
const flags = [
	"--compile",
	"--minify",
	// What goes wrong is told with our own files and lines.
	"--sourcemap",
	// What only a half of the program needs is loaded by that half alone.
	"--splitting",
	// Starts in half the time, and is 3 MB smaller in memory. Its default, CommonJS, cannot be split.
	...["--bytecode", "--format=esm"],
	// Compiles no JavaScript to machine code until the program says so, which the controller does not while it has little to do: 10 MB less.
	"--compile-jit-policy=1000",
	// What lies around where it is started is not ours: a bunfig.toml can name code to run first.
	...["--no-compile-autoload-dotenv", "--no-compile-autoload-bunfig"],
];

/**
 * Compiles the program.
 * @param file where the executable goes; its name does not get into the bytes
 * @param platform default: this machine's
 * @param build default: that of the work tree
 * @throws Error when it does not compile, or the runtime is not the one that package-lock.json pins
 */
export async function compile(
	file: string,
	platform: Platform = here(),
	build?: Build,
): Promise<Program> {
	if (Bun.version !== packageJson.devDependencies.bun)
		throw new Error(
			`this is Bun ${Bun.version}, and ${packageJson.devDependencies.bun} is pinned: use npm run build`,
		);
	const made = build ?? (await workTree());
	return inScratchFolder(file, async (folder) => {
		const { executable, locked } = await runtime(platform, folder);
		// Always the same name, for Bun writes it into the executable.
		const outfile = join(folder, "etcdproxy-controller");
		const metafile = join(folder, "metafile.json");
		await run(
			[
				...([process.execPath, "build", ...flags] as const),
				`--define=BUILD_COMMIT=${JSON.stringify(made.commit)}`,
				`--define=BUILD_DATE=${JSON.stringify(made.date)}`,
				`--target=bun-${platform}`,
				`--compile-executable-path=${executable}`,
				`--metafile=${metafile}`,
				`--outfile=${outfile}`,
				"controller.ts",
			],
			{ cwd: root },
		);
		const inputs = inputsOf(await Bun.file(metafile).json());
		const packages = await packagesOf(inputs);
		await rename(outfile, file);
		return { platform, file, build: made, runtime: locked, packages };
	});
}

/** @throws Error naming the platforms when this machine's is none of them */
function here(): Platform {
	return platformOf(`${process.platform}-${process.arch}`);
}

function platformOf(name: string): Platform {
	const found = platforms.find((platform) => platform === name);
	if (found === undefined)
		throw new Error(
			`the program is not built for ${name}, but for ${platforms.join(", ")}`,
		);
	return found;
}

/** What git says of the work tree. SOURCE_DATE_EPOCH, where set, is the date: https://reproducible-builds.org/specs/source-date-epoch/ */
export async function workTree(): Promise<Build> {
	const git = async (...args: string[]) =>
		(await run(["git", ...args], { cwd: root })).trim();
	// An unpacked archive of the sources may lie in somebody else's work tree.
	const known = existsSync(join(root, ".git"));
	const commit = known ? await git("rev-parse", "HEAD") : "unknown";
	const dirty = known && (await git("status", "--porcelain")) !== "";
	const seconds =
		process.env.SOURCE_DATE_EPOCH ??
		(known ? await git("log", "-1", "--format=%ct") : "0");
	if (!/^\d+$/.test(seconds))
		throw new Error(
			`SOURCE_DATE_EPOCH "${seconds}" is not a number of seconds since 1970`,
		);
	return {
		version: packageJson.version,
		commit: `${commit}${dirty ? "-dirty" : ""}`,
		date: new Date(Number(seconds) * 1000)
			.toISOString()
			.replace(/\.\d+Z$/, "Z"),
	};
}

/**
 * Bun for a platform, fetched by npm. Left to itself, `bun build` would download one, and not look at what it gets. It
 * becomes part of the executable, so that what is in the cache is trusted no more than what is fetched.
 * @param folder it is unpacked there
 */
async function runtime(
	platform: Platform,
	folder: string,
): Promise<{ executable: string; locked: LockedPackage }> {
	const name = `@oven/bun-${platform.replace("arm64", "aarch64")}`;
	const locked = await lockedPackage(`node_modules/${name}`);
	const { version, sha512 } = locked;
	const file = `${name.slice(1).replace("/", "-")}-${version}.tgz`;
	const verified = async (parent: string, fault: string) => {
		const tarball = await Bun.file(join(parent, file)).bytes();
		const hash = new Bun.CryptoHasher("sha512");
		const got = hash.update(tarball).digest("hex");
		if (got !== sha512)
			throw new Error(
				`${fault} another ${name}@${version} than package-lock.json pins: its SHA-512 is ${got}, not ${sha512}`,
			);
		return tarball;
	};
	const kept = await cached(
		`bun-tarball-${platform}-${version}-${sha512.slice(0, 16)}`,
		async (made) => {
			const options = ["--silent", "--prefer-offline"];
			const where = `--pack-destination=${made}`;
			await run(["npm", "pack", ...options, where, `${name}@${version}`], {
				cwd: root,
			});
			await verified(made, "npm served");
		},
	);
	const tarball = await verified(kept, `remove ${kept}, which holds`);
	const glob = "package/bin/bun";
	await new Bun.Archive(tarball).extract(folder, { glob });
	return { executable: join(folder, glob), locked };
}

/** Those files of Bun's metafile of which something is left in the output. */
function inputsOf(metafile: {
	outputs: Record<
		string,
		{ inputs: Record<string, { bytesInOutput: number }> }
	>;
}): string[] {
	const used = Object.values(metafile.outputs)
		.flatMap(({ inputs }) => Object.entries(inputs))
		.filter(([, { bytesInOutput }]) => bytesInOutput > 0);
	return [...new Set(used.map(([path]) => path))].sort();
}

/** The bill of materials of a program or of its image, see billOfMaterials(), as text. */
export async function sbomOf(
	program: Program,
	image?: DebianPackage[],
): Promise<string> {
	const hash = new Bun.CryptoHasher("sha256");
	const sha256 = hash
		.update(await Bun.file(program.file).bytes())
		.digest("hex");
	const bill = billOfMaterials(program, sha256, process.versions, image);
	return `${JSON.stringify(bill, null, "\t")}\n`;
}

/** Compiles the program for a platform into dist/, and writes its bill of materials beside it, and licences/. */
export async function buildProgram(
	platform: Platform,
	build: Build,
): Promise<Program> {
	const file = join(dist, `etcdproxy-controller-${platform}`);
	const program = await compile(file, platform, build);
	await Bun.write(`${file}.cdx.json`, await sbomOf(program));
	for (const [path, text] of Object.entries(await licenses(program)))
		await Bun.write(join(dist, "licenses", path), text);
	// For whom it is enough to call it by its name.
	if (platform === `${process.platform}-${process.arch}`) {
		const plain = join(dist, "etcdproxy-controller");
		await rm(plain, { force: true });
		await link(file, plain);
	}
	return program;
}

async function main(names: string[]): Promise<void> {
	const build = await workTree();
	for (const platform of names.length > 0 ? names.map(platformOf) : platforms)
		console.log((await buildProgram(platform, build)).file);
}

if (import.meta.main)
	main(process.argv.slice(2)).catch((error: Error) => {
		console.error(error.message);
		process.exitCode = 1;
	});
