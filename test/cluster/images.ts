/** Container images without a container engine: files in, OCI archive out. */
import { open } from "node:fs/promises";
import { run } from "./processes.ts";

export interface Image {
	/** With host and tag, e.g. "localhost/etcd:v3.7.3". */
	name: string;
	/** Absolute path in the image to path on this machine; symbolic links are followed. Mode 0755, owner root. */
	files: Record<string, string>;
	entrypoint?: string[];
	command?: string[];
	/** Numeric "uid:gid", default "65532:65532", the nonroot user of distroless images. */
	user?: string;
}

/**
 * Writes an image of one layer as an uncompressed OCI archive, for `ctr images import`.
 * The same files give the same bytes.
 * @see https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
 */
export async function writeImage(image: Image, archive: string): Promise<void> {
	const folders = new Set(Object.keys(image.files).flatMap(parents));
	const layer = tar([
		...[...folders].sort().map((path) => ({
			path: `${path.slice(1)}/`,
			content: new Uint8Array(),
		})),
		...(await Promise.all(
			Object.entries(image.files).map(async ([path, source]) => ({
				path: path.slice(1),
				content: await Bun.file(source).bytes(),
			})),
		)),
	]);
	const layerBlob = blob("application/vnd.oci.image.layer.v1.tar", layer);
	const config = blob("application/vnd.oci.image.config.v1+json", {
		architecture: process.arch === "x64" ? "amd64" : process.arch,
		os: "linux",
		config: {
			Env: ["PATH=/usr/local/bin:/usr/bin:/bin"],
			User: image.user ?? "65532:65532",
			...(image.entrypoint && { Entrypoint: image.entrypoint }),
			...(image.command && { Cmd: image.command }),
		},
		rootfs: { type: "layers", diff_ids: [layerBlob.descriptor.digest] },
	});
	const manifest = blob("application/vnd.oci.image.manifest.v1+json", {
		schemaVersion: 2,
		mediaType: "application/vnd.oci.image.manifest.v1+json",
		config: config.descriptor,
		layers: [layerBlob.descriptor],
	});
	const index = {
		schemaVersion: 2,
		manifests: [
			{
				...manifest.descriptor,
				annotations: { "io.containerd.image.name": image.name },
			},
		],
	};
	const entries: Entry[] = [
		{
			path: "oci-layout",
			content: Buffer.from(JSON.stringify({ imageLayoutVersion: "1.0.0" })),
		},
		{ path: "index.json", content: Buffer.from(JSON.stringify(index)) },
		...[layerBlob, config, manifest].map(({ descriptor, content }) => ({
			path: `blobs/${descriptor.digest.replace(":", "/")}`,
			content,
		})),
	];
	const file = await open(archive, "w");
	try {
		await file.writev(tar(entries));
	} finally {
		await file.close();
	}
}

/**
 * The shared libraries and the loader that a dynamically linked binary needs, as `files` of an image:
 * a Bun binary and these are all it takes.
 */
export async function sharedLibraries(
	binary: string,
): Promise<Record<string, string>> {
	const paths = (await run(["ldd", binary])).matchAll(/(?:=> )?(\/\S+) \(0x/g);
	return Object.fromEntries([...paths].map(([, path = ""]) => [path, path]));
}

interface Entry {
	/** Relative; a folder's ends in a slash. */
	path: string;
	content: Uint8Array;
}

/** Chunks of a ustar archive (POSIX.1-1988), all entries with mode 0755, owner root and date 0. */
function tar(entries: Entry[]): Uint8Array[] {
	const chunks = entries.flatMap(({ path, content }) => {
		if (Buffer.byteLength(path) > 100)
			throw new Error(`path longer than 100 bytes: ${path}`);
		const header = Buffer.alloc(512);
		header.write(path, 0);
		header.write("0000755\0" + "0000000\0" + "0000000\0", 100);
		header.write(
			`${content.length.toString(8).padStart(11, "0")}\0${"0".repeat(11)}\0`,
			124,
		);
		header.write(path.endsWith("/") ? "5" : "0", 156);
		header.write("ustar\x0000", 257);
		// The checksum is that of the header with spaces in the checksum's place.
		header.write(" ".repeat(8), 148);
		const sum = header.reduce((total, byte) => total + byte, 0);
		header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
		return [header, content, new Uint8Array(-content.length & 511)];
	});
	return [...chunks, new Uint8Array(1024)];
}

/** A blob of an OCI layout with the descriptor that refers to it. */
function blob(mediaType: string, data: object | Uint8Array[]) {
	const content = Array.isArray(data)
		? Buffer.concat(data)
		: Buffer.from(JSON.stringify(data));
	const digest = `sha256:${new Bun.CryptoHasher("sha256").update(content).digest("hex")}`;
	return { content, descriptor: { mediaType, digest, size: content.length } };
}

/** All folders above an absolute path, without the root. */
function parents(path: string): string[] {
	const parts = path.split("/").slice(1, -1);
	return parts.map((_, index) => `/${parts.slice(0, index + 1).join("/")}`);
}
