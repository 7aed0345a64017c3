/**
 * Debian packages, fetched and verified, but not installed. debian.json pins those that the image takes files from;
 * `npm run pin:debian` pins what Debian serves today.
 */
import { rmSync } from "node:fs";
import { mkdir, mkdtemp, rename } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cached, inScratchFolder, type Log, run } from "./machine.ts";

/** A name of Debian's, and of the Open Container Initiative's. */
export type Architecture = "amd64" | "arm64";

/** One .deb and no other. */
export interface Pin {
	name: string;
	architecture: Architecture | "all";
	version: string;
	/** Of the .deb, hexadecimal. */
	sha256: string;
}

/** A fetched package. */
export interface DebianPackage extends Pin {
	/** What it says of itself, deb-control(5). */
	control: string;
	/** Path of the .deb. */
	file: string;
}

const pinFile = join(import.meta.dirname, "debian.json");

/** The packages that the image takes files from. */
export const readPins = (): Promise<Pin[]> => Bun.file(pinFile).json();

/**
 * Fetches packages, unless they are in the cache. Where Debian does not serve these versions any more, for an update has
 * taken their place, it takes what is served and says so.
 * @param options `strict`: or rather fails
 * @throws Error also when what is served as a pinned version has other bytes
 */
export async function fetchPackages(
	pins: Pin[],
	{ strict = false, log }: { strict?: boolean; log: Log },
): Promise<DebianPackage[]> {
	const hash = new Bun.CryptoHasher("sha256").update(JSON.stringify(pins));
	const name = `debian-${hash.digest("hex").slice(0, 16)}`;
	const folder = await cached(name, async (made) => {
		await download(pins, made, true);
		const got = await read(pins, made);
		for (const [index, { sha256 }] of pins.entries())
			if (got[index]?.sha256 !== sha256)
				throw new Error(
					`Debian serves another ${titleOf(pins[index])} than is pinned: its SHA-256 is ${got[index]?.sha256}, not ${sha256}`,
				);
	}).catch((error: unknown) => {
		if (!(error instanceof NotServed)) throw error;
		const message = `${error.message}: npm run pin:debian pins what is served`;
		if (strict) throw new Error(message, { cause: error });
		log(`${message}, which is taken meanwhile`);
		// So that it is looked for once a day, and not each time.
		const today = new Date().toISOString().slice(0, 10);
		return cached(`${name}-${today}`, (made) => download(pins, made, false));
	});
	return read(pins, folder);
}

/** Unpacks a package into a folder. */
export async function unpack(
	{ file }: DebianPackage,
	folder: string,
): Promise<void> {
	await run(["dpkg-deb", "--extract", file, folder]);
}

/** Debian does not serve the pinned version. */
class NotServed extends Error {}

const titleOf = (pin: Pin | undefined): string =>
	`${pin?.name} ${pin?.version} for ${pin?.architecture}`;

const debOf = (pin: Pin, folder: string): string =>
	join(folder, `${pin.name}_${pin.architecture}.deb`);

/** @throws NotServed */
async function download(
	pins: Pin[],
	folder: string,
	pinned: boolean,
): Promise<void> {
	apt ??= prepareApt();
	const { env, warnings } = await apt;
	const specs = pins.map(
		({ name, architecture, version }) =>
			`${name}${architecture === "all" ? "" : `:${architecture}`}${pinned ? `=${version}` : ""}`,
	);
	await inScratchFolder(folder, async (scratch) => {
		const options = { cwd: scratch, env };
		await run(["apt-get", "--quiet", "download", ...specs], options).catch(
			(error: Error) => {
				const [gone] =
					/Version '.*' for '.*' was not found/.exec(error.message) ?? [];
				throw gone === undefined
					? new Error(`${error.message}${warnings}`, { cause: error })
					: new NotServed(`Debian does not serve it any more: ${gone}`);
			},
		);
		for (const pin of pins) {
			const found = new Bun.Glob(`${pin.name}_*_${pin.architecture}.deb`);
			const [file = ""] = await Array.fromAsync(found.scan(scratch));
			await rename(join(scratch, file), debOf(pin, folder));
		}
	});
}

/** What Debian serves is looked up once. */
let apt: ReturnType<typeof prepareApt> | undefined;

/**
 * Lets apt, which verifies what it fetches by Debian's signatures, use the machine's sources for both architectures, and
 * write nothing where the system would look.
 */
async function prepareApt(): Promise<{
	env: Record<string, string>;
	warnings: string;
}> {
	if (Bun.which("apt-get") === null)
		throw new Error(
			"files of Debian's are fetched by apt-get, which is not here: with a container engine, artifacts/image/Dockerfile makes the image",
		);
	const folder = await mkdtemp(join(tmpdir(), "apt-"));
	process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
	for (const each of ["state/lists/partial", "cache/archives/partial"])
		await mkdir(join(folder, each), { recursive: true });
	await Bun.write(join(folder, "status"), "");
	const config = join(folder, "apt.conf");
	await Bun.write(
		config,
		`Dir::State "${folder}/state";
Dir::State::status "${folder}/status";
Dir::Cache "${folder}/cache";
APT::Architecture "amd64";
APT::Architectures { "amd64"; "arm64"; };
// A user of apt's own could not write here.
APT::Sandbox::User "";
Acquire::Languages "none";
`,
	);
	const env = { APT_CONFIG: config, LC_ALL: "C" };
	// A source that has nothing to do with it may fail. What is missing then, is told when it is asked for.
	const warnings = await run(["apt-get", "--quiet", "update"], { env }).then(
		() => "",
		(error: Error) => `\n${error.message}`,
	);
	return { env, warnings };
}

async function read(pins: Pin[], folder: string): Promise<DebianPackage[]> {
	return Promise.all(
		pins.map(async (pin) => {
			const file = debOf(pin, folder);
			const control = await run(["dpkg-deb", "--field", file]);
			const [, version = ""] = /^Version: (.*)$/m.exec(control) ?? [];
			const hash = new Bun.CryptoHasher("sha256");
			const sha256 = hash.update(await Bun.file(file).bytes()).digest("hex");
			return { ...pin, version, sha256, control, file };
		}),
	);
}

async function pinServed(): Promise<void> {
	const pins = await readPins();
	await inScratchFolder(join(tmpdir(), "pins"), async (folder) => {
		await download(pins, folder, false);
		const served = (await read(pins, folder)).map(
			({ name, architecture, version, sha256 }) => ({
				name,
				architecture,
				version,
				sha256,
			}),
		);
		for (const [index, pin] of served.entries())
			if (pin.sha256 !== pins[index]?.sha256)
				console.log(`${titleOf(pins[index])} -> ${pin.version}`);
		await Bun.write(pinFile, `${JSON.stringify(served, null, "\t")}\n`);
	});
}

if (import.meta.main) await pinServed();
