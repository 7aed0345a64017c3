/** The licences of all that is in the program. */
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { root } from "./lockfile.ts";
import type { Program } from "./program.ts";

/**
 * The texts, by what may be a path: ours, those of the npm packages, and Bun's, which names those of the libraries in it.
 * @throws Error when a package comes without one
 */
export async function licenses({
	packages,
}: Program): Promise<Record<string, string>> {
	const texts: Record<string, string> = {
		LICENSE: await Bun.file(join(root, "LICENSE")).text(),
		// The runtime's own package has none; this one is of the same version.
		"bun/license.mdx": await Bun.file(
			join(root, "node_modules/bun-types/docs/project/license.mdx"),
		).text(),
	};
	for (const { name, folder } of packages) {
		const files = (await readdir(join(root, folder))).filter((file) =>
			/^(licen[cs]e|copying|notice)\b/i.test(file),
		);
		if (files.length === 0)
			throw new Error(`${folder} has no licence text: it may not be shipped`);
		for (const file of files)
			texts[`${name}/${file}`] = await Bun.file(
				join(root, folder, file),
			).text();
	}
	return texts;
}
