/** What package-lock.json pins. */
import { join } from "node:path";

export const root = join(import.meta.dirname, "..");

/** A package as package-lock.json has it. */
export interface LockedPackage {
	/** Where it is installed, from the root: "node_modules/pkijs". */
	folder: string;
	name: string;
	version: string;
	/** Of its tarball, hexadecimal. */
	sha512: string;
	/** An SPDX expression. */
	license: string;
	/** Names of the packages that it needs. */
	dependencies: string[];
}

/** @throws Error when package-lock.json has no such package, or not its SHA-512 and its licence */
export async function lockedPackage(folder: string): Promise<LockedPackage> {
	const { packages } = await Bun.file(join(root, "package-lock.json")).json();
	const found = packages[folder];
	// https://www.w3.org/TR/SRI/
	const [, hash] = /^sha512-(\S+)$/.exec(found?.integrity ?? "") ?? [];
	if (hash === undefined || !found.license)
		throw new Error(
			`package-lock.json does not have ${folder} with its SHA-512 and its licence: npm install`,
		);
	return {
		folder,
		name: folder.slice(folder.lastIndexOf("node_modules/") + 13),
		version: found.version,
		sha512: Buffer.from(hash, "base64").toString("hex"),
		license: found.license,
		dependencies: Object.keys(found.dependencies ?? {}),
	};
}

/**
 * The packages that files come from.
 * @param files paths from the root
 * @throws Error also when one is installed in another version than package-lock.json has
 */
export async function packagesOf(files: string[]): Promise<LockedPackage[]> {
	const folders = files.flatMap(
		(file) => /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(file) ?? [],
	);
	return Promise.all([...new Set(folders)].sort().map(installedPackage));
}

async function installedPackage(folder: string): Promise<LockedPackage> {
	const locked = await lockedPackage(folder);
	const manifest = join(root, folder, "package.json");
	const { version } = await Bun.file(manifest).json();
	if (version !== locked.version)
		throw new Error(
			`${folder} is of version ${version}, and package-lock.json has ${locked.version}: npm ci`,
		);
	return locked;
}
