/**
 * Images without a container engine: files in, OCI archive out. The same content gives the same bytes.
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/spec.md
 */

/** A file, folder or symbolic link of an image. */
export interface Entry {
	/** Absolute. Folders above it are made where they are not listed. */
	path: string;
	/** Of a file. */
	content?: Uint8Array | string;
	/** Where a symbolic link points to. What has neither is a folder. */
	target?: string;
	/** Permissions; default 0o644 for a file, 0o755 for a folder. */
	mode?: number;
	/** User and group; default 0. */
	owner?: number;
}

/** An image for one platform. */
export interface Image {
	/** As Go says it: "amd64". */
	architecture: string;
	layers: Entry[][];
	/** https://github.com/opencontainers/image-spec/blob/v1.1.1/config.md#properties, `config` */
	config: {
		User: string;
		Env?: string[];
		Entrypoint?: string[];
		Cmd?: string[];
		WorkingDir?: string;
		Labels?: Record<string, string>;
	};
}

export interface ArchiveOptions {
	/** With host and tag: "docker.io/library/busybox:1". What the image is called where it is imported. */
	name: string;
	/** Of the images, and of their files; as in RFC 3339. Default: 1970. */
	created?: string;
	/** gzip, which takes 4 s for 100 MB; without it, the layers are as they are. */
	compress?: boolean;
}

/**
 * Writes an archive with an index of images, one for each platform.
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
 * @throws Error when the file cannot be written, or not whole
 */
export async function writeArchive(
	file: string,
	images: Image[],
	{ name, created, compress = false }: ArchiveOptions,
): Promise<void> {
	const seconds = created === undefined ? 0 : Date.parse(created) / 1000;
	const blobs: Blob[] = [];
	const add = (blob: Blob): Descriptor => {
		blobs.push(blob);
		return blob.descriptor;
	};
	const manifests = images.map((image) => {
		const layers = image.layers.map((entries) => {
			const bytes = Buffer.concat(tar(withFolders(entries), seconds));
			const type = "application/vnd.oci.image.layer.v1.tar";
			return {
				diffId: digest(bytes),
				descriptor: add(
					compress
						? blobOf(`${type}+gzip`, Bun.gzipSync(bytes, { level: 6 }))
						: blobOf(type, bytes),
				),
			};
		});
		const platform = { architecture: image.architecture, os: "linux" };
		const config = add(
			jsonBlob("application/vnd.oci.image.config.v1+json", {
				...(created !== undefined && { created }),
				...platform,
				config: image.config,
				rootfs: { type: "layers", diff_ids: layers.map((one) => one.diffId) },
			}),
		);
		const mediaType = "application/vnd.oci.image.manifest.v1+json";
		const manifest = add(
			jsonBlob(mediaType, {
				schemaVersion: 2,
				mediaType,
				config,
				layers: layers.map((one) => one.descriptor),
				...(image.config.Labels && { annotations: image.config.Labels }),
			}),
		);
		return { ...manifest, platform };
	});
	const mediaType = "application/vnd.oci.image.index.v1+json";
	const annotations = images[0]?.config.Labels;
	const index = add(
		jsonBlob(mediaType, {
			schemaVersion: 2,
			mediaType,
			manifests,
			...(annotations && { annotations }),
		}),
	);
	// Importers look for a name in the outer index: containerd for the first, others for the second.
	const names = {
		"io.containerd.image.name": name,
		"org.opencontainers.image.ref.name": name.slice(name.lastIndexOf(":") + 1),
	};
	const chunks = tar(
		withFolders([
			{
				path: "/oci-layout",
				content: JSON.stringify({ imageLayoutVersion: "1.0.0" }),
			},
			{
				path: "/index.json",
				content: JSON.stringify({
					schemaVersion: 2,
					mediaType,
					manifests: [{ ...index, annotations: names }],
				}),
			},
			// Platforms may share a layer.
			...new Map(
				blobs.map(({ descriptor, content }) => [
					`/blobs/${descriptor.digest.replace(":", "/")}`,
					content,
				]),
			)
				.entries()
				.map(([path, content]) => ({ path, content })),
		]),
		seconds,
	);
	// Unlike writev(), whose count of bytes may be short of all: a full disk is an error.
	await Bun.write(file, chunks);
}

interface Descriptor {
	mediaType: string;
	digest: string;
	size: number;
}

interface Blob {
	descriptor: Descriptor;
	content: Uint8Array;
}

const digest = (content: Uint8Array): string =>
	`sha256:${new Bun.CryptoHasher("sha256").update(content).digest("hex")}`;

const blobOf = (mediaType: string, content: Uint8Array): Blob => ({
	descriptor: { mediaType, digest: digest(content), size: content.length },
	content,
});

const jsonBlob = (mediaType: string, content: object): Blob =>
	blobOf(mediaType, Buffer.from(JSON.stringify(content)));

/** Sorted, and with all folders above them. @throws Error when a path is there twice */
function withFolders(entries: Entry[]): Entry[] {
	const byPath = new Map<string, Entry>();
	for (const entry of entries) {
		if (byPath.has(entry.path)) throw new Error(`${entry.path} is there twice`);
		byPath.set(entry.path, entry);
	}
	for (const { path } of entries)
		for (let end = path.lastIndexOf("/"); end > 0; ) {
			const folder = path.slice(0, end);
			if (!byPath.has(folder)) byPath.set(folder, { path: folder });
			end = folder.lastIndexOf("/");
		}
	// A folder's path is the beginning of those of its content, so that it comes before them.
	return [...byPath.values()].sort((a, b) => (a.path < b.path ? -1 : 1));
}

/**
 * Chunks of an archive in the format ustar (POSIX.1-1988).
 * @param seconds since 1970: the date of all entries
 */
export function tar(entries: Entry[], seconds: number): Uint8Array[] {
	const chunks = entries.flatMap(
		({ path, content, target, mode, owner = 0 }) => {
			const isFile = content !== undefined;
			const type = isFile ? "0" : target === undefined ? "5" : "2";
			const name = `${path.slice(1)}${type === "5" ? "/" : ""}`;
			for (const text of [name, target ?? ""])
				if (Buffer.byteLength(text) > 100)
					throw new Error(`path of more than 100 bytes: ${text}`);
			const bytes =
				typeof content === "string" ? Buffer.from(content) : content;
			const header = Buffer.alloc(512);
			const octal = (value: number, offset: number, digits: number) =>
				header.write(value.toString(8).padStart(digits, "0"), offset);
			header.write(name, 0);
			octal(mode ?? (isFile ? 0o644 : type === "2" ? 0o777 : 0o755), 100, 7);
			octal(owner, 108, 7);
			octal(owner, 116, 7);
			octal(bytes?.length ?? 0, 124, 11);
			octal(seconds, 136, 11);
			header.write(type, 156);
			header.write(target ?? "", 157);
			header.write("ustar\x0000", 257);
			// The checksum is that of the header with spaces in the checksum's place.
			header.write(" ".repeat(8), 148);
			octal(
				header.reduce((total, byte) => total + byte, 0),
				148,
				6,
			);
			header.write("\0 ", 154);
			return bytes
				? [header, bytes, new Uint8Array(-bytes.length & 511)]
				: [header];
		},
	);
	return [...chunks, new Uint8Array(1024)];
}
