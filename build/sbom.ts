/** The bill of materials, as CycloneDX 1.6: what is in an executable, or in an image. https://cyclonedx.org/docs/1.6/json/ Pure. */
import { createHash } from "node:crypto";
import packageJson from "../package.json" with { type: "json" };
import type { DebianPackage } from "./debian.ts";
import type { LockedPackage } from "./lockfile.ts";
import type { Program } from "./program.ts";

interface Component {
	type: string;
	"bom-ref": string;
	name: string;
	version: string;
	purl?: string;
	[field: string]: unknown;
}

/** Of the libraries in Bun, as it tells their versions itself; the others are what it claims to be compatible with. */
const inBun = [
	...["ares", "boringssl", "icu", "libarchive", "libdeflate", "llhttp"],
	...["lolhtml", "lshpack", "mimalloc", "picohttpparser", "sqlite", "tinycc"],
	...["usockets", "uwebsockets", "webkit", "zig", "zlib", "zstd"],
];

/**
 * What is in a program, or in an image of it.
 * @param sha256 of the executable, hexadecimal
 * @param versions of the libraries in Bun: its `process.versions`
 * @param image the packages of Debian's that the image has files of; without them it is about the executable alone
 * @throws Error when these are of no release of Debian's
 */
export function billOfMaterials(
	{ platform, build, runtime, packages }: Program,
	sha256: string,
	versions: Record<string, string | undefined>,
	image?: DebianPackage[],
): object {
	const program: Component = {
		type: "application",
		"bom-ref": `etcdproxy-controller-${platform}`,
		name: "etcdproxy-controller",
		version: build.version,
		description: packageJson.description,
		hashes: [{ alg: "SHA-256", content: sha256 }],
		licenses: licensed(packageJson.license),
		properties: [
			{ name: "commit", value: build.commit },
			{ name: "platform", value: platform },
		],
	};
	const container: Component | undefined = image && {
		...program,
		type: "container",
		"bom-ref": `image-${platform}`,
		hashes: undefined,
	};
	const bun = npmComponent(runtime, {
		type: "platform",
		// Of all that is linked into it: its licence says which.
		licenses: [
			...licensed(runtime.license),
			{ license: { name: "and those that its licence names" } },
		],
		components: inBun.map((name) => ({
			type: "library",
			"bom-ref": `bun/${name}`,
			name,
			version: versions[name],
		})),
	});
	const npm = packages.map((one) => npmComponent(one));
	const debian = image ? debianComponents(image) : [];
	const refs = (names: string[]) =>
		npm
			.filter((_, index) => names.includes(packages[index]?.name ?? ""))
			.map((one) => one["bom-ref"]);
	const parts = {
		bomFormat: "CycloneDX",
		specVersion: "1.6",
		version: 1,
		metadata: { timestamp: build.date, component: container ?? program },
		components: [...(container ? [program] : []), bun, ...npm, ...debian],
		dependencies: [
			...(container
				? [
						{
							ref: container["bom-ref"],
							dependsOn: [program, ...debian].map((one) => one["bom-ref"]),
						},
					]
				: []),
			{
				ref: program["bom-ref"],
				dependsOn: [
					bun["bom-ref"],
					...refs(Object.keys(packageJson.dependencies)),
				],
			},
			...packages.map((one, index) => ({
				ref: npm[index]?.["bom-ref"],
				dependsOn: refs(one.dependencies),
			})),
		],
	};
	return { ...parts, serialNumber: serialNumber(parts) };
}

function npmComponent(
	{ name, version, license, sha512 }: LockedPackage,
	more: object = {},
): Component {
	const purl = `pkg:npm/${name.replace("@", "%40")}@${version}`;
	const [, group, base = name] = /^(@[^/]+)\/(.*)$/.exec(name) ?? [];
	return {
		type: "library",
		"bom-ref": purl,
		...(group !== undefined && { group }),
		name: base,
		version,
		hashes: [{ alg: "SHA-512", content: sha512 }],
		licenses: licensed(license),
		purl,
		...more,
	};
}

function debianComponents(packages: DebianPackage[]): Component[] {
	const base = packages.find(({ name }) => name === "base-files")?.version;
	// Its version begins with the release's: 12.4+deb12u15.
	const [, release] = /^(\d+)[\d.]*(?:\+deb\d+u\d+)?$/.exec(base ?? "") ?? [];
	if (release === undefined)
		throw new Error(
			`base-files ${base} is of no release of Debian's, from which the image takes files: artifacts/image/Dockerfile makes it elsewhere`,
		);
	return packages.map(({ name, version, architecture, sha256, control }) => {
		// Scanners look vulnerabilities up by the source package.
		const [, upstream = name] = /^Source: (\S+)/m.exec(control) ?? [];
		const purl = `pkg:deb/debian/${name}@${encodeURIComponent(version)}?arch=${architecture}&distro=debian-${release}&upstream=${upstream}`;
		return {
			type: "library",
			"bom-ref": purl,
			name,
			version,
			hashes: [{ alg: "SHA-256", content: sha256 }],
			licenses: [{ license: { name: `/usr/share/doc/${name}/copyright` } }],
			purl,
		};
	});
}

const licensed = (license: string): object[] =>
	/[ (]/.test(license)
		? [{ expression: license }]
		: [{ license: { id: license } }];

/** The same for the same content: a UUID of version 8, which is made of what one likes (RFC 9562, section 5.8). */
function serialNumber(content: object): string {
	const hex = createHash("sha256")
		.update(JSON.stringify(content))
		.digest("hex");
	return `urn:uuid:${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`;
}
