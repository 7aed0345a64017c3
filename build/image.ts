/**
 * `npm run image`: the image of controller and gateway as an OCI archive in dist/, without a container engine. It is what
 * distroless' base-nossl-debian12:nonroot and artifacts/image/Dockerfile make together, less what the program does not use.
 */
import { readdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import packageJson from "../package.json" with { type: "json" };
import type { Build } from "../version.ts";
import {
	type Architecture,
	type DebianPackage,
	fetchPackages,
	readPins,
	unpack,
} from "./debian.ts";
import { licenses } from "./licenses.ts";
import { inScratchFolder, type Log } from "./machine.ts";
import { type Entry, type Image, writeArchive } from "./oci.ts";
import {
	buildProgram,
	dist,
	type Platform,
	type Program,
	sbomOf,
	workTree,
} from "./program.ts";

export const imagePlatforms = [
	"linux-x64",
	"linux-arm64",
] as const satisfies Platform[];

const executable = "/usr/local/bin/etcdproxy-controller";
const documents = "/usr/share/doc/etcdproxy-controller";
const commonLicenses = "/usr/share/common-licenses";

/**
 * The image of a program for Linux.
 * @param options of fetchPackages()
 */
export async function programImage(
	program: Program,
	options: { strict?: boolean; log: Log },
): Promise<{ image: Image; sbom: string }> {
	const architecture = architectureOf(program.platform);
	const packages = (await fetchPackages(await readPins(), options)).filter(
		(one) => one.architecture === architecture || one.architecture === "all",
	);
	const sbom = await sbomOf(program, packages);
	const texts = Object.entries(await licenses(program));
	const image = {
		architecture,
		layers: [
			await baseLayer(packages, architecture),
			[
				{
					path: executable,
					content: await Bun.file(program.file).bytes(),
					mode: 0o755,
				},
				// Scanners find it by the end of its name.
				{ path: `${documents}/etcdproxy-controller.cdx.json`, content: sbom },
				...texts.map(([path, content]) => ({
					path: `${documents}/licenses/${path}`,
					content,
				})),
			],
		],
		config: imageConfig(program.build),
	};
	return { image, sbom };
}

/** What the Dockerfile says with ENV, LABEL, USER and ENTRYPOINT, or has from its base. */
export const imageConfig = ({ version, commit, date }: Build) => ({
	User: "65532:65532",
	Env: [
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
	],
	Entrypoint: [executable],
	// Not the user's home, as in distroless: a cluster may give the pod another user, who could not go there.
	WorkingDir: "/",
	// https://github.com/opencontainers/image-spec/blob/v1.1.1/annotations.md
	Labels: {
		"org.opencontainers.image.title": packageJson.name,
		"org.opencontainers.image.description": packageJson.description,
		"org.opencontainers.image.licenses": packageJson.license,
		"org.opencontainers.image.version": version,
		"org.opencontainers.image.revision": commit,
		"org.opencontainers.image.created": date,
	},
});

/** Of distroless, what a program that is linked to glibc needs: no shell, no package manager, no time zones. */
async function baseLayer(
	packages: DebianPackage[],
	architecture: Architecture,
): Promise<Entry[]> {
	const users = [
		["root", 0, "/root"],
		["nobody", 65534, "/nonexistent"],
		["nonroot", 65532, "/home/nonroot"],
	] as const;
	const lines = (rows: string[]) => rows.map((row) => `${row}\n`).join("");
	return inScratchFolder(join(tmpdir(), "image"), async (folder) => {
		for (const one of packages) await unpack(one, folder);
		const file = async (path: string, mode?: number) => ({
			path,
			content: await Bun.file(join(folder, path)).bytes(),
			...(mode !== undefined && { mode }),
		});
		const files = (parent: string, names: string[]) =>
			Promise.all(names.map((name) => file(`${parent}/${name}`)));
		const [triplet, loader, link] =
			architecture === "amd64"
				? ["x86_64-linux-gnu", "ld-linux-x86-64.so.2", "/lib64"]
				: ["aarch64-linux-gnu", "ld-linux-aarch64.so.1", "/lib"];
		const shared = `/lib/${triplet}`;
		// Bun is linked to these. What names mean, of hosts and of users, glibc since 2.34 finds out without any other.
		const libraries = [
			...["libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0"],
		];
		const authorities = "/usr/share/ca-certificates/mozilla";
		const certificates = await files(
			authorities,
			(await readdir(join(folder, authorities))).sort(),
		);
		return [
			...(await files(shared, libraries)),
			await file(`${shared}/${loader}`, 0o755),
			// The path of the interpreter that an executable names.
			{ path: `${link}/${loader}`, target: `..${shared}/${loader}` },
			{
				path: "/etc/ssl/certs/ca-certificates.crt",
				content: Buffer.concat(certificates.map(({ content }) => content)),
			},
			{
				path: "/etc/passwd",
				content: lines(
					users.map(
						([name, id, home]) =>
							`${name}:x:${id}:${id}:${name}:${home}:/sbin/nologin`,
					),
				),
			},
			{
				path: "/etc/group",
				content: lines(users.map(([name, id]) => `${name}:x:${id}:`)),
			},
			{ path: "/etc/nsswitch.conf", content: "hosts: files dns\n" },
			await file("/usr/lib/os-release"),
			{ path: "/etc/os-release", target: "../usr/lib/os-release" },
			{ path: "/home/nonroot", mode: 0o700, owner: 65532 },
			{ path: "/root", mode: 0o700 },
			{ path: "/tmp", mode: 0o1777 },
			// What copyright files and Bun's licence refer to.
			...(await files(commonLicenses, [
				...["Apache-2.0", "BSD", "GPL-2", "GPL-3", "LGPL-2", "LGPL-2.1"],
				"MPL-2.0",
			])),
			...(await Promise.all(
				packages.map(({ name }) => file(`/usr/share/doc/${name}/copyright`)),
			)),
			// Scanners learn from it which packages there is something of.
			...packages.map(({ name, control }) => ({
				path: `/var/lib/dpkg/status.d/${name}`,
				content: control,
			})),
		];
	});
}

const architectureOf = (platform: Platform): Architecture => {
	if (platform === "linux-x64") return "amd64";
	if (platform === "linux-arm64") return "arm64";
	throw new Error(`there is no image for ${platform}`);
};

/**
 * Writes the archive of images into dist/, beside it a bill of materials of each, and the texts that licences refer to.
 * @param programs those for Linux, all of this build
 * @param options of fetchPackages()
 * @returns the archive's path
 */
export async function buildImage(
	{ version, date }: Build,
	programs: Program[],
	options: { strict?: boolean; log: Log },
): Promise<string> {
	const name = join(dist, `etcdproxy-controller-${version}.oci`);
	const images: Image[] = [];
	for (const program of programs) {
		const { image, sbom } = await programImage(program, options);
		images.push(image);
		await Bun.write(`${name}.linux-${image.architecture}.cdx.json`, sbom);
		for (const { path, content } of image.layers.flat())
			if (path.startsWith(commonLicenses) && content !== undefined)
				await Bun.write(join(dist, "licenses/common", basename(path)), content);
	}
	await writeArchive(`${name}.tar`, images, {
		name: `docker.io/xmudrii/etcdproxy-controller:v${version}`,
		created: date,
		compress: true,
	});
	return `${name}.tar`;
}

async function main(): Promise<void> {
	const build = await workTree();
	const programs: Program[] = [];
	for (const platform of imagePlatforms)
		programs.push(await buildProgram(platform, build));
	console.log(await buildImage(build, programs, { log: console.error }));
}

if (import.meta.main)
	main().catch((error: Error) => {
		console.error(error.message);
		process.exitCode = 1;
	});
