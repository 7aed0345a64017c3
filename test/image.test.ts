/**
 * A release: made by its program in a copy of the work tree, and judged by others: crane (a registry's client, and a registry),
 * tar, sha256sum, and qemu for the CPUs that are not here.
 */
import {
	afterAll,
	beforeAll,
	describe,
	expect,
	setDefaultTimeout,
	test,
} from "bun:test";
import { mkdir, mkdtemp, readdir, rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import { fetchPackages, readPins, unpack } from "../build/debian.ts";
import { imageConfig, imagePlatforms, programImage } from "../build/image.ts";
import { cached, run } from "../build/machine.ts";
import { writeArchive } from "../build/oci.ts";
import { compile } from "../build/program.ts";
import { obstacles } from "../build/release.ts";
import packageJson from "../package.json" with { type: "json" };
import type { Build } from "../version.ts";
import { binaries } from "./cluster/binaries.ts";
import { readExecutable } from "./executable.ts";
import { FIRST_BUILD, until } from "./harness.ts";

setDefaultTimeout(300_000);

const root = resolve(import.meta.dir, "..");
const { version } = packageJson;
const architectures = ["amd64", "arm64"] as const;
const date = "2026-11-23T12:00:00Z";

/** In the repository's own file system, so that node_modules can be linked. */
let dir: string;
/** The copy's dist/. */
let dist: string;
let build: Build;
let crane: string;
let registry: Bun.Subprocess;
let reference: string;

const log = () => undefined;
const archive = () => join(dist, `etcdproxy-controller-${version}.oci.tar`);

/** Why it cannot be made here. */
const reason =
	Bun.which("apt-get") === null || Bun.which("dpkg-deb") === null
		? "the image takes files from Debian's packages, and this is no Debian"
		: undefined;
if (reason !== undefined) console.log(`skipped: ${reason}`);

describe.skipIf(reason !== undefined)("a release", () => {
	beforeAll(async () => {
		const scratch = join(root, "dist");
		await mkdir(scratch, { recursive: true });
		dir = await mkdtemp(join(scratch, "release-test-"));
		const copy = join(dir, "copy");
		dist = join(copy, "dist");
		await copyWorkTree(copy);
		const git = async (...args: string[]) =>
			(await run(["git", ...args], { cwd: copy, env: committer })).trim();
		await git("init", "--quiet");
		await git("add", "--all");
		await git("commit", "--quiet", "--message=A release");
		build = { version, commit: await git("rev-parse", "HEAD"), date };
		await expect(release(copy)).rejects.toThrow(
			`no release of ${version}: the commit is not tagged: git tag --sign v${version}`,
		);
		await git("tag", `v${version}`);
		await release(copy);

		crane = (await binaries(["crane"])).crane;
		registry = Bun.spawn(
			[crane, "registry", "serve", "--address=127.0.0.1:0"],
			{
				stdin: "ignore",
				stdout: "ignore",
				stderr: Bun.file(join(dir, "registry.log")),
			},
		);
		const [, port] = await until(async () => {
			const text = await Bun.file(join(dir, "registry.log")).text();
			return /serving on port (\d+)/.exec(text);
		}, "the registry serves");
		reference = `127.0.0.1:${port}/etcdproxy-controller:v${version}`;
		await mkdir(join(dir, "layout"));
		await run(["tar", "-xf", archive(), "-C", join(dir, "layout")]);
		await run([crane, "push", join(dir, "layout"), reference]);
	}, FIRST_BUILD);
	afterAll(async () => {
		registry?.kill();
		await registry?.exited;
		await rm(dir, { recursive: true });
	});

	const committer = {
		GIT_AUTHOR_NAME: "release test",
		GIT_AUTHOR_EMAIL: "release-test@localhost",
		GIT_COMMITTER_NAME: "release test",
		GIT_COMMITTER_EMAIL: "release-test@localhost",
		GIT_COMMITTER_DATE: date,
		GIT_AUTHOR_DATE: date,
	};

	/** As it is here, with the date of a release in the changelog. */
	async function copyWorkTree(copy: string): Promise<void> {
		const list = ["ls-files", "--cached", "--others", "--exclude-standard"];
		const files = (await run(["git", ...list], { cwd: root }))
			.trim()
			.split("\n");
		for (const file of files)
			if (await Bun.file(join(root, file)).exists())
				await Bun.write(join(copy, file), Bun.file(join(root, file)));
		const changelog = join(copy, "CHANGELOG.md");
		const text = await Bun.file(changelog).text();
		await Bun.write(
			changelog,
			text.replace(`[${version}] - unreleased`, `[${version}] - 2026-11-23`),
		);
		const modules = join(root, "node_modules");
		await run(["cp", "--recursive", "--link", modules, copy]);
	}

	const release = (copy: string) =>
		run([process.execPath, "build/release.ts"], { cwd: copy });

	/** What an image has for a platform: crane, as JSON. */
	const ask = async (what: "config" | "manifest", architecture: string) =>
		JSON.parse(
			await run([crane, what, `--platform=linux/${architecture}`, reference]),
		);

	/** The image's files in a folder: made once. */
	const exported = new Map<string, Promise<string>>();
	function rootfs(architecture: string): Promise<string> {
		const made = exported.get(architecture) ?? exportTo(architecture);
		exported.set(architecture, made);
		return made;
	}
	async function exportTo(architecture: string): Promise<string> {
		const folder = join(dir, architecture);
		await mkdir(folder);
		const tar = `${folder}.tar`;
		await run([
			crane,
			"export",
			`--platform=linux/${architecture}`,
			reference,
			tar,
		]);
		await run(["tar", "-xf", tar, "-C", folder]);
		return folder;
	}

	/** Mode, owner and path of everything in the image, as tar says them. */
	async function listing(architecture: string): Promise<string[]> {
		const tar = `${await rootfs(architecture)}.tar`;
		const list = ["--list", "--verbose", "--numeric-owner", "--full-time"];
		const text = await run(["tar", ...list, `--file=${tar}`], {
			env: { TZ: "UTC" },
		});
		return text.trim().split("\n");
	}

	test("is refused for changes, without a tag, and without a changelog", () => {
		const good = `# Changelog\n\n## [${version}] - 2026-11-23\n`;
		expect(obstacles(build, [`v${version}`], good)).toEqual([]);
		expect(
			obstacles(
				{ ...build, commit: "0a1b-dirty" },
				["v0.9.0"],
				good.replace(" - 2026-11-23", ""),
			),
		).toEqual([
			"the work tree is not a commit: git status",
			`the commit is not tagged: git tag --sign v${version}`,
			`CHANGELOG.md has no "## [${version}] - " with a date`,
		]);
		// A dot is a dot.
		expect(
			obstacles(build, [`v${version}`], good.replaceAll(".", "x")),
		).toHaveLength(1);
	});

	test("has an executable for each platform, the image, bills of materials, licences, and checksums that hold", async () => {
		const names = (await readdir(dist, { withFileTypes: true }))
			.filter((entry) => entry.isFile())
			.map(({ name }) => name)
			.sort();
		const program = "etcdproxy-controller";
		expect(names).toEqual([
			"SHA256SUMS",
			`${program}-${version}-licenses.tar.gz`,
			`${program}-${version}.oci.linux-amd64.cdx.json`,
			`${program}-${version}.oci.linux-arm64.cdx.json`,
			`${program}-${version}.oci.tar`,
			...["darwin-arm64", "linux-arm64", "linux-x64"].flatMap((platform) => [
				`${program}-${platform}`,
				`${program}-${platform}.cdx.json`,
			]),
		]);
		const checked = await run(
			["sha256sum", "--check", "--strict", "SHA256SUMS"],
			{
				cwd: dist,
			},
		);
		expect(checked.trim().split("\n")).toEqual(
			names.slice(1).map((name) => `${name}: OK`),
		);
		const texts = await run(
			["tar", "-tzf", `${program}-${version}-licenses.tar.gz`],
			{ cwd: dist },
		);
		for (const path of [
			"LICENSE",
			"pkijs/LICENSE",
			"bun/license.mdx",
			"common/LGPL-2.1",
		])
			expect(texts).toContain(`licenses/${path}\n`);
	});

	test("made again, in another folder, is the same to the byte", async () => {
		const images = [];
		for (const platform of imagePlatforms) {
			const program = await compile(join(dir, "again"), platform, build);
			images.push((await programImage(program, { log })).image);
		}
		const again = join(dir, "again.tar");
		await writeArchive(again, images, {
			name: `docker.io/xmudrii/etcdproxy-controller:v${version}`,
			created: date,
			compress: true,
		});
		const sums = await run(["sha256sum", again, archive()]);
		const [first, second] = sums.split("\n").map((line) => line.slice(0, 64));
		expect(first).toBe(second as string);
	});

	test("goes into a registry, and crane finds nothing wrong with either image", async () => {
		for (const architecture of architectures)
			await run([
				crane,
				"validate",
				`--platform=linux/${architecture}`,
				`--remote=${reference}`,
			]);
		const index = JSON.parse(await run([crane, "manifest", reference]));
		expect(
			index.manifests.map(({ platform }: { platform: object }) => platform),
		).toEqual(
			architectures.map((architecture) => ({ architecture, os: "linux" })),
		);
		expect(index.annotations["org.opencontainers.image.version"]).toBe(version);
		const layout = await Bun.file(join(dir, "layout/index.json")).json();
		expect(layout.manifests[0].annotations).toEqual({
			"io.containerd.image.name": `docker.io/xmudrii/etcdproxy-controller:v${version}`,
			"org.opencontainers.image.ref.name": `v${version}`,
		});
	});

	test("has a small image: under 130 MB unpacked, and half of that to fetch", async () => {
		for (const architecture of architectures) {
			const { layers } = await ask("manifest", architecture);
			const packed = layers.reduce(
				(sum: number, { size }: { size: number }) => sum + size,
				0,
			);
			const unpacked = Bun.file(`${await rootfs(architecture)}.tar`).size;
			console.log(
				`${architecture}: ${(packed / 1e6).toFixed(0)} MB packed, ${(unpacked / 1e6).toFixed(0)} MB unpacked`,
			);
			expect(unpacked).toBeLessThan(130e6);
			expect(packed).toBeLessThan(65e6);
		}
	});

	test.each([...architectures])(
		"in the image for %s there is what the program needs, and no shell",
		async (architecture) => {
			const triplet = { amd64: "x86_64-linux-gnu", arm64: "aarch64-linux-gnu" }[
				architecture
			];
			const loader = {
				amd64: "ld-linux-x86-64.so.2",
				arm64: "ld-linux-aarch64.so.1",
			}[architecture];
			const entries = await listing(architecture);
			const found = entries
				.map((line) => line.replace(/ +\d+ 2026-11-23 12:00:00/, ""))
				.filter(
					(line) => !line.startsWith("d") && !/(licenses|copyright)/.test(line),
				)
				.sort();
			expect(found).toEqual(
				[
					"-rwxr-xr-x 0/0 usr/local/bin/etcdproxy-controller",
					`-rwxr-xr-x 0/0 lib/${triplet}/${loader}`,
					...["libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0"].map(
						(name) => `-rw-r--r-- 0/0 lib/${triplet}/${name}`,
					),
					`lrwxrwxrwx 0/0 ${architecture === "amd64" ? "lib64" : "lib"}/${loader} -> ../lib/${triplet}/${loader}`,
					"-rw-r--r-- 0/0 etc/group",
					"-rw-r--r-- 0/0 etc/nsswitch.conf",
					"-rw-r--r-- 0/0 etc/passwd",
					"-rw-r--r-- 0/0 etc/ssl/certs/ca-certificates.crt",
					"lrwxrwxrwx 0/0 etc/os-release -> ../usr/lib/os-release",
					"-rw-r--r-- 0/0 usr/lib/os-release",
					"-rw-r--r-- 0/0 usr/share/doc/etcdproxy-controller/etcdproxy-controller.cdx.json",
					...["base-files", "ca-certificates", "libc6"].map(
						(name) => `-rw-r--r-- 0/0 var/lib/dpkg/status.d/${name}`,
					),
				].sort(),
			);
			const folders = entries.filter((line) => line.startsWith("d"));
			const special = folders
				.filter((line) => !line.startsWith("drwxr-xr-x 0/0 "))
				.map((line) => line.replace(/ +\d+ 2026-11-23 12:00:00/, ""));
			expect(special.sort()).toEqual([
				"drwx------ 0/0 root",
				"drwx------ 65532/65532 home/nonroot",
				"drwxrwxrwt 0/0 tmp",
			]);
			const folder = await rootfs(architecture);
			expect(await Bun.file(join(folder, "etc/passwd")).text()).toContain(
				"nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n",
			);
			expect(
				(
					await Bun.file(
						join(folder, "etc/ssl/certs/ca-certificates.crt"),
					).text()
				).match(/^-----BEGIN CERTIFICATE-----$/gm)?.length,
			).toBeGreaterThan(100);
		},
	);

	test.each([...architectures])(
		"the program for %s finds its loader and every library in the image",
		async (architecture) => {
			const folder = await rootfs(architecture);
			const {
				machine,
				interpreter = "",
				needed = [],
			} = readExecutable(
				await Bun.file(
					join(folder, "usr/local/bin/etcdproxy-controller"),
				).bytes(),
			);
			expect(machine).toBe(
				architecture === "amd64" ? "ELF x86-64" : "ELF aarch64",
			);
			const triplet =
				architecture === "amd64" ? "x86_64-linux-gnu" : "aarch64-linux-gnu";
			expect((await listing(architecture)).join("\n")).toContain(
				` ${interpreter.slice(1)} -> ../lib/${triplet}/`,
			);
			expect(needed.length).toBeGreaterThan(3);
			for (const name of needed)
				expect(
					readExecutable(
						await Bun.file(join(folder, "lib", triplet, name)).bytes(),
					).machine,
				).toBe(machine);
		},
	);

	test("the image's configuration is the same for both, and what the Dockerfile makes of distroless", async () => {
		const [amd64, arm64] = await Promise.all(
			architectures.map((one) => ask("config", one)),
		);
		expect(amd64.config).toEqual(imageConfig(build));
		expect({ ...arm64, rootfs: null }).toEqual({
			...amd64,
			architecture: "arm64",
			rootfs: null,
		});
		expect(amd64.created).toBe(date);
		expect(amd64.config.User).toBe("65532:65532");

		const { config, copies } = await dockerfile();
		expect(config).toEqual(amd64.config);
		const paths = (await listing("amd64")).map(
			(line) => `/${line.split(/ +/)[5]}`,
		);
		for (const { source, target } of copies) {
			expect(paths).toContain(target);
			expect(await readdir(dist)).toContain(source);
		}
		expect(copies.map(({ target }) => target)).toContain(
			amd64.config.Entrypoint[0],
		);
	});

	/** What artifacts/image/Dockerfile makes, as far as we use its language. */
	async function dockerfile() {
		const text = await Bun.file(
			join(root, "artifacts/image/Dockerfile"),
		).text();
		const args: Record<string, string> = {
			REVISION: build.commit,
			CREATED: date,
		};
		const config = {
			User: "",
			// The base's: https://github.com/GoogleContainerTools/distroless/blob/main/static/static.bzl
			Env: [
				"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
				"SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt",
			],
			Entrypoint: [] as string[],
			WorkingDir: "/home/nonroot",
			Labels: {} as Record<string, string>,
		};
		const copies: { source: string; target: string }[] = [];
		const bases: string[] = [];
		for (const line of text
			.split("\n")
			.filter((one) => one !== "" && !one.startsWith("#"))) {
			const [, word, rest = ""] = /^([A-Z]+) (.*)$/.exec(line) ?? [];
			const filled = rest.replace(
				/\$\{(\w+)\}/g,
				(_, name) => args[name] ?? `no ${name}`,
			);
			const [first = "", second = ""] = rest.split(/[ =]/);
			if (word === "ARG") args[first] ??= second;
			else if (word === "FROM") bases.push(rest);
			else if (word === "COPY") copies.push({ source: first, target: second });
			else if (word === "LABEL") {
				const [, name = "", value = ""] =
					/^([\w.]+)="(.*)"$/.exec(filled) ?? [];
				config.Labels[name] = value;
			} else if (word === "USER") config.User = filled;
			else if (word === "WORKDIR") config.WorkingDir = filled;
			else if (word === "ENTRYPOINT") config.Entrypoint = JSON.parse(filled);
			else throw new Error(`this test does not know: ${line}`);
		}
		expect(bases).toEqual([
			"gcr.io/distroless/base-nossl-debian12:nonroot AS base",
			"base AS amd64",
			"base AS arm64",
			// biome-ignore lint/suspicious/noTemplateCurlyInString: a Dockerfile's
			"${TARGETARCH}",
		]);
		return { config, copies };
	}

	test("the bill of materials in the image is the one beside the archive, and names what is Debian's", async () => {
		for (const architecture of architectures) {
			const inside = await Bun.file(
				join(
					await rootfs(architecture),
					"usr/share/doc/etcdproxy-controller/etcdproxy-controller.cdx.json",
				),
			).text();
			expect(inside).toBe(
				await Bun.file(
					join(
						dist,
						`etcdproxy-controller-${version}.oci.linux-${architecture}.cdx.json`,
					),
				).text(),
			);
			const { metadata, components } = JSON.parse(inside);
			const [, release] =
				/^VERSION_ID="(\d+)"$/m.exec(
					await Bun.file(
						join(await rootfs(architecture), "usr/lib/os-release"),
					).text(),
				) ?? [];
			expect(metadata.component.type).toBe("container");
			const debian = components
				.map(({ purl = "" }) => purl)
				.filter((purl: string) => purl.startsWith("pkg:deb/"));
			expect(debian).toEqual(
				(await readPins())
					.filter((pin) => ["all", architecture].includes(pin.architecture))
					.map((pin) =>
						expect.stringMatching(
							new RegExp(
								`^pkg:deb/debian/${pin.name}@${RegExp.escape(encodeURIComponent(pin.version))}\\?arch=${pin.architecture}&distro=debian-${release}&upstream=`,
							),
						),
					),
			);
			const own = components.find(
				(one: { type: string }) => one.type === "application",
			);
			const name = architecture === "amd64" ? "linux-x64" : "linux-arm64";
			expect(await Bun.file(join(dist, "SHA256SUMS")).text()).toContain(
				`${own.hashes[0].content}  etcdproxy-controller-${name}\n`,
			);
		}
	});

	/** Emulators of CPUs; the folder of them. */
	function emulators(): Promise<string> {
		const pin = {
			name: "qemu-user-static",
			architecture: "amd64",
			version: "1:7.2+dfsg-7+deb12u18+b3",
			sha256:
				"c3e3ba2bd87f8c5b9a5da5ef21b5a3b82d7c63b89dd448d9ddaa4eabc5b6e402",
		} as const;
		return cached(`qemu-${pin.sha256.slice(0, 16)}`, async (made) => {
			for (const one of await fetchPackages([pin], { log }))
				await unpack(one, join(dir, "qemu"));
			for (const name of ["qemu-aarch64-static", "qemu-x86_64-static"])
				await run(["cp", join(dir, "qemu/usr/bin", name), made]);
		});
	}

	// The emulators are for this CPU.
	test.skipIf(process.arch !== "x64")(
		"runs on an arm64 CPU, and on an x86-64 CPU of 2008",
		async () => {
			const folder = await emulators();
			for (const [emulator, cpu, architecture] of [
				["qemu-aarch64-static", "cortex-a53", "arm64"],
				["qemu-x86_64-static", "Nehalem", "amd64"],
			] as const) {
				const image = await rootfs(architecture);
				const program = join(image, "usr/local/bin/etcdproxy-controller");
				// The loader and the libraries, too, are the image's.
				const emulated = [
					join(folder, emulator),
					"-cpu",
					cpu,
					"-L",
					image,
				] as const;
				expect(await run([...emulated, program, "--version"])).toBe(
					`etcdproxy-controller ${version}, commit ${build.commit} of ${date}\n`,
				);
			}
		},
	);

	test("takes the pinned ones of Debian's packages or none, and a build says when it takes others", async () => {
		const pin = {
			name: "netbase",
			architecture: "all",
			version: "0.0",
			sha256: "",
		} as const;
		const said: string[] = [];
		const gone =
			"Debian does not serve it any more: Version '0.0' for 'netbase' was not found: npm run pin:debian pins what is served";
		await expect(fetchPackages([pin], { log, strict: true })).rejects.toThrow(
			gone,
		);
		const [served] = await fetchPackages([pin], {
			log: (line) => said.push(line),
		});
		expect(said).toEqual([`${gone}, which is taken meanwhile`]);
		expect(served?.control).toContain("Package: netbase\n");
		const forged = {
			...pin,
			version: served?.version ?? "",
			sha256: "0".repeat(64),
		};
		await expect(fetchPackages([forged], { log })).rejects.toThrow(
			`netbase ${served?.version} for all of Debian's is another than is pinned: its SHA-256 is ${served?.sha256}, not 000`,
		);
	});
});
