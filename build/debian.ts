/**
 * Debian packages, fetched and verified, but not installed. debian.json pins those that the image takes files from;
 * `npm run pin:debian` pins what Debian serves today.
 */
import { mkdir, rename } from "node:fs/promises";
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
	/** The .deb. */
	content: Uint8Array;
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
	try {
		const folder = await cached(name, async (made) => {
			await download(pins, made, true);
			await readPinned(pins, made);
		});
		return await readPinned(pins, folder);
	} catch (error) {
		if (!(error instanceof NotServed)) throw error;
		const message = `${error.message}: npm run pin:debian pins what is served`;
		if (strict) throw new Error(message, { cause: error });
		log(`${message}, which is taken meanwhile`);
	}
	return fetchServed(pins);
}

/** Unpacks a package into a folder. */
export async function unpack(
	{ content }: DebianPackage,
	folder: string,
): Promise<void> {
	await inScratchFolder(join(tmpdir(), "deb"), async (scratch) => {
		const file = join(scratch, "deb");
		await Bun.write(file, content);
		await run(["dpkg-deb", "--extract", file, folder]);
	});
}

/** The packages in the versions that Debian serves now. */
const fetchServed = (pins: Pin[]): Promise<DebianPackage[]> =>
	inScratchFolder(join(tmpdir(), "debs"), async (folder) => {
		await download(pins, folder, false);
		return read(pins, folder);
	});

/** Debian does not serve the pinned version. */
class NotServed extends Error {}

const titleOf = (pin: Pin | undefined): string =>
	`${pin?.name} ${pin?.version} for ${pin?.architecture}`;

const debOf = (pin: Pin, folder: string): string =>
	join(folder, `${pin.name}_${pin.architecture}.deb`);

/**
 * Fetches packages by apt, which verifies them by Debian's signatures. It uses the machine's sources, but for both
 * architectures, and writes nothing where the system would look.
 * @throws NotServed
 */
async function download(
	pins: Pin[],
	folder: string,
	pinned: boolean,
): Promise<void> {
	if (Bun.which("apt-get") === null)
		throw new Error(
			"files of Debian's are fetched by apt-get, which is not here: with a container engine, artifacts/image/Dockerfile makes the image",
		);
	await inScratchFolder(join(tmpdir(), "apt"), async (scratch) => {
		for (const each of ["state/lists/partial", "cache/archives/partial"])
			await mkdir(join(scratch, each), { recursive: true });
		await Bun.write(join(scratch, "status"), "");
		const options = [
			`Dir::State=${scratch}/state`,
			`Dir::State::status=${scratch}/status`,
			`Dir::Cache=${scratch}/cache`,
			// Debian's container images switch these off, and the lists are then parsed again and again.
			"Dir::Cache::pkgcache=pkgcache.bin",
			"Dir::Cache::srcpkgcache=srcpkgcache.bin",
			"APT::Architecture=amd64",
			"APT::Architectures=amd64,arm64",
			// A user of apt's own could not write here.
			"APT::Sandbox::User=",
			"Acquire::Languages=none",
			"Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		].map((option) => `--option=${option}`);
		const apt = async (...words: string[]) =>
			run(["apt-get", "--quiet", ...options, ...words], {
				cwd: folder,
				env: { LC_ALL: "C" },
			}).catch(({ message }: Error) => {
				const said = message.slice(message.indexOf("\n"));
				throw new Error(`apt-get ${words.join(" ")}:${said}`);
			});
		// A source that has nothing to do with it may fail. What is missing then, the next command says.
		const warning = await apt("update").then(
			() => "",
			(error: Error) => `\n${error.message}`,
		);
		const specs = pins.map(
			({ name, architecture, version }) =>
				`${name}${architecture === "all" ? "" : `:${architecture}`}${pinned ? `=${version}` : ""}`,
		);
		await apt("download", ...specs).catch((error: Error) => {
			const [gone] =
				/Version '.*' for '.*' was not found/.exec(error.message) ?? [];
			throw gone === undefined
				? new Error(`${error.message}${warning}`)
				: new NotServed(`Debian does not serve it any more: ${gone}`);
		});
	});
	for (const pin of pins) {
		const found = new Bun.Glob(`${pin.name}_*_${pin.architecture}.deb`);
		const [file = ""] = await Array.fromAsync(found.scan(folder));
		await rename(join(folder, file), debOf(pin, folder));
	}
}

async function read(pins: Pin[], folder: string): Promise<DebianPackage[]> {
	return Promise.all(
		pins.map(async (pin) => {
			const file = debOf(pin, folder);
			const control = await run(["dpkg-deb", "--field", file]);
			const [, version = ""] = /^Version: (.*)$/m.exec(control) ?? [];
			const content = await Bun.file(file).bytes();
			const hash = new Bun.CryptoHasher("sha256");
			const sha256 = hash.update(content).digest("hex");
			return { ...pin, version, sha256, control, content };
		}),
	);
}

/** @throws Error when they are not what is pinned */
async function readPinned(
	pins: Pin[],
	folder: string,
): Promise<DebianPackage[]> {
	const packages = await read(pins, folder);
	for (const [index, { sha256 }] of packages.entries())
		if (sha256 !== pins[index]?.sha256)
			throw new Error(
				`${titleOf(pins[index])} of Debian's is another than is pinned: its SHA-256 is ${sha256}, not ${pins[index]?.sha256}`,
			);
	return packages;
}

async function pinServed(): Promise<void> {
	const pins = await readPins();
	const served = (await fetchServed(pins)).map(
		({ name, architecture, version, sha256 }): Pin => ({
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
}

if (import.meta.main) await pinServed();
