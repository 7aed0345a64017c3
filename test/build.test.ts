/** The program as it is shipped: compiled for each platform, the same bytes each time, and what is in it. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import {
	appendFile,
	chmod,
	mkdtemp,
	readdir,
	rm,
	writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { Spec, Validation } from "@cyclonedx/cyclonedx-library";
import { licenses } from "../build/licenses.ts";
import { run } from "../build/machine.ts";
import {
	compile,
	type Platform,
	type Program,
	platforms,
	sbomOf,
	workTree,
} from "../build/program.ts";
import { billOfMaterials } from "../build/sbom.ts";
import packageJson from "../package.json" with { type: "json" };
import { readExecutable } from "./executable.ts";

setDefaultTimeout(120_000);

const root = join(import.meta.dir, "..");
const build = {
	version: packageJson.version,
	commit: "0a1b2c3d",
	date: "2026-11-23T12:00:00Z",
};

let dir: string;
const programs = {} as Record<Platform, Program>;

beforeAll(async () => {
	dir = await mkdtemp(join(tmpdir(), "build-test-"));
	for (const platform of platforms)
		programs[platform] = await compile(join(dir, platform), platform, build);
}, 300_000);
afterAll(() => rm(dir, { recursive: true }));

const bytesOf = (program: Program) => Bun.file(program.file).bytes();
/** What tells two of them apart: they are too large to be shown. */
const digestOf = async (program: Program) =>
	new Bun.CryptoHasher("sha256").update(await bytesOf(program)).digest("hex");
const thisOne = () =>
	programs[`${process.platform}-${process.arch}` as Platform];

test.each([...platforms])(
	"two builds of one commit for %s are the same to the byte, under whatever name",
	async (platform) => {
		const again = await compile(join(dir, "other/name"), platform, build);
		expect(await digestOf(again)).toBe(await digestOf(programs[platform]));
	},
);

test("another commit is another program", async () => {
	const other = { ...build, commit: "4e5f6a7b" };
	const again = await compile(join(dir, "other/name"), "linux-x64", other);
	expect(await digestOf(again)).not.toBe(await digestOf(programs["linux-x64"]));
});

test("each is an executable for its platform", async () => {
	const found: Record<string, string> = {};
	for (const platform of platforms)
		found[platform] = readExecutable(await bytesOf(programs[platform])).machine;
	expect(found).toEqual({
		"linux-x64": "ELF x86-64",
		"linux-arm64": "ELF aarch64",
		"darwin-arm64": "Mach-O arm64",
	});
});

test("the one for macOS has the signature without which it would not start", async () => {
	const bytes = await bytesOf(programs["darwin-arm64"]);
	expect(readExecutable(bytes).signed).toBe(true);
	bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] ?? 0) ^ 1;
	expect(readExecutable(bytes).signed).toBe(false);
});

test("version, commit and date are inside", async () => {
	expect(await run([thisOne().file, "--version"])).toBe(
		`etcdproxy-controller ${packageJson.version}, commit 0a1b2c3d of 2026-11-23T12:00:00Z\n`,
	);
});

test("what lies in the folder where it is started is not obeyed", async () => {
	const cwd = await mkdtemp(join(dir, "elsewhere-"));
	await writeFile(
		join(cwd, "trap.js"),
		`require("node:fs").writeFileSync(${JSON.stringify(join(cwd, "sprung"))}, "");`,
	);
	await writeFile(join(cwd, "bunfig.toml"), 'preload = ["./trap.js"]\n');
	await writeFile(join(cwd, ".env"), "KUBECONFIG=/of/somebody/else\n");
	const options = { cwd, env: { HOME: cwd } };
	const program = [thisOne().file, "--etcd-core-url=https://core:2379"];
	await expect(
		run(["env", "-u", "KUBECONFIG", ...program], options),
	).rejects.toThrow(
		`: exit code 1\netcdproxy-controller: no kubeconfig: ${cwd}/.kube/config does not exist and this is not a Pod with a ServiceAccount; set --kubeconfig or KUBECONFIG`,
	);
	expect(await readdir(cwd)).not.toContain("sprung");
	// It is a trap that works: Bun itself walks into it.
	await writeFile(join(cwd, "own.js"), "");
	await run([process.execPath, "own.js"], options);
	expect(await readdir(cwd)).toContain("sprung");
});

test("a runtime that is not what package-lock.json pins is refused, and not kept", async () => {
	const fake = await mkdtemp(join(dir, "fake-"));
	const npm = join(fake, "npm");
	await writeFile(
		npm,
		`#!/bin/sh
for word; do case $word in --pack-destination=*) echo other > "\${word#*=}/oven-bun-linux-aarch64-1.4.5.tgz";; esac; done
`,
	);
	await chmod(npm, 0o755);
	await expect(
		run([process.execPath, "build/program.ts", "linux-arm64"], {
			cwd: root,
			env: {
				PATH: `${fake}:${process.env.PATH}`,
				XDG_CACHE_HOME: join(fake, "cache"),
			},
		}),
	).rejects.toThrow(
		/: exit code 1\nnpm served another @oven\/bun-linux-aarch64@1\.4\.5 than package-lock\.json pins: its SHA-512 is \w{128}, not \w{128}$/,
	);
	expect(await readdir(join(fake, "cache/etcdproxy-controller"))).toEqual([]);
});

test("a runtime in the cache is verified, too, each time that it is used", async () => {
	const cache = await mkdtemp(join(dir, "cache-"));
	const script = join(dir, "compile.ts");
	await writeFile(
		script,
		`import { compile } from ${JSON.stringify(join(root, "build/program.ts"))};
await compile(process.argv[2], "linux-arm64", ${JSON.stringify(build)});
`,
	);
	const file = join(dir, "other/cached");
	const again = () =>
		run([process.execPath, script, file], { env: { XDG_CACHE_HOME: cache } });
	await again();
	expect(await digestOf({ ...thisOne(), file })).toBe(
		await digestOf(programs["linux-arm64"]),
	);
	const [kept = ""] = await Array.fromAsync(
		new Bun.Glob("etcdproxy-controller/*/*.tgz").scan(cache),
	);
	await appendFile(join(cache, kept), "other");
	await expect(again()).rejects.toThrow(
		`remove ${join(cache, dirname(kept))}, which holds another @oven/bun-linux-aarch64@1.4.5 than package-lock.json pins: its SHA-512 is `,
	);
});

test("a platform that it is not built for is refused", async () => {
	await expect(
		run([process.execPath, "build/program.ts", "linux-riscv64"], { cwd: root }),
	).rejects.toThrow(
		": exit code 1\nthe program is not built for linux-riscv64, but for linux-x64, linux-arm64, darwin-arm64",
	);
});

test("SOURCE_DATE_EPOCH is the date", async () => {
	try {
		process.env.SOURCE_DATE_EPOCH = "1795521600";
		expect((await workTree()).date).toBe("2026-11-24T12:00:00Z");
		process.env.SOURCE_DATE_EPOCH = "yesterday";
		expect(workTree()).rejects.toThrow(
			'SOURCE_DATE_EPOCH "yesterday" is not a number of seconds since 1970',
		);
	} finally {
		delete process.env.SOURCE_DATE_EPOCH;
	}
});

/** The npm packages whose files Bun's source maps name: another account of what is in the program than the one that the bill is made from. */
async function mapped(): Promise<string[]> {
	const outdir = join(dir, "maps");
	await Bun.$`${process.execPath} build --target=bun --minify --splitting --sourcemap=external --outdir=${outdir} controller.ts`
		.cwd(root)
		.quiet();
	const maps = await Array.fromAsync(new Bun.Glob("*.map").scan(outdir));
	const sources: string[] = [];
	for (const map of maps)
		sources.push(...(await Bun.file(join(outdir, map)).json()).sources);
	const names = sources.flatMap(
		(source) => /.*node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(source)?.[1] ?? [],
	);
	return [...new Set(names)].sort();
}

test("its bill of materials names every package that is in it, with version, licence and address", async () => {
	const { components } = JSON.parse(await sbomOf(programs["linux-arm64"]));
	interface Component {
		name: string;
		group?: string;
		version: string;
		purl: string;
		licenses: object[];
		hashes: { alg: string; content: string }[];
	}
	const packages: Component[] = components;
	const nameOf = ({ group, name }: Component) =>
		group === undefined ? name : `${group}/${name}`;
	expect(packages.map(nameOf).sort()).toEqual(
		[...(await mapped()), "@oven/bun-linux-aarch64"].sort(),
	);
	const lock = await Bun.file(join(root, "package-lock.json")).json();
	for (const one of packages) {
		const locked = lock.packages[`node_modules/${nameOf(one)}`];
		expect(one.version).toBe(locked.version);
		expect(one.purl).toBe(
			`pkg:npm/${nameOf(one).replace("@", "%40")}@${one.version}`,
		);
		expect(one.licenses[0]).toEqual({ license: { id: locked.license } });
		expect(
			Buffer.from(one.hashes[0]?.content ?? "", "hex").toString("base64"),
		).toBe(locked.integrity.replace("sha512-", ""));
	}
});

test("its bill of materials is valid CycloneDX 1.6, the same each time, and about this very executable", async () => {
	const validator = new Validation.JsonStrictValidator(Spec.Version.v1dot6);
	const text = await sbomOf(programs["linux-x64"]);
	expect(await validator.validate(text)).toBeNull();
	expect(await sbomOf(programs["linux-x64"])).toBe(text);
	const { metadata, serialNumber, dependencies } = JSON.parse(text);
	expect(metadata).toMatchObject({
		timestamp: build.date,
		component: { name: "etcdproxy-controller", version: build.version },
	});
	expect(metadata.component.hashes[0].content).toBe(
		(await run(["sha256sum", programs["linux-x64"].file])).slice(0, 64),
	);
	// Whatever is in it is there because something needs it.
	const needed = dependencies.flatMap(
		(one: { dependsOn: string[] }) => one.dependsOn,
	);
	for (const { ref } of dependencies.slice(1)) expect(needed).toContain(ref);
	expect(serialNumber).not.toBe(
		JSON.parse(await sbomOf(programs["linux-arm64"])).serialNumber,
	);
	expect(
		await validator.validate(text.replace('"id": "MIT"', '"id": "free"')),
	).not.toBeNull();
});

test("an image's bill of materials names the release of Debian's that its files are of", () => {
	const distros = (base: string) => {
		const pin = { architecture: "all", sha256: "0".repeat(64) } as const;
		const more = { ...pin, control: "", content: new Uint8Array() };
		const bill = billOfMaterials(thisOne(), "0".repeat(64), process.versions, [
			{ ...more, name: "base-files", version: base },
			{ ...more, name: "netbase", version: "6.4" },
		]);
		return JSON.stringify(bill)
			.match(/"purl":"pkg:deb[^"]*/g)
			?.map((purl) => new URL(purl.slice(8)).searchParams.get("distro"));
	};
	for (const [base, distro] of [
		["12.4+deb12u15", "debian-12"],
		["13.8", "debian-13"],
		["14", "debian-14"],
	] as const)
		expect(distros(base)).toEqual([distro, distro]);
	expect(() => distros("12ubuntu4.6")).toThrow(
		"base-files 12ubuntu4.6 is of no release of Debian's, from which the image takes files: artifacts/image/Dockerfile makes it elsewhere",
	);
});

test("what is installed in another version than package-lock.json has is refused", async () => {
	const copy = join(dir, "stale");
	for (const file of ["build/lockfile.ts", "package-lock.json"])
		await Bun.write(join(copy, file), Bun.file(join(root, file)));
	const manifest = join(copy, "node_modules/pkijs/package.json");
	await Bun.write(manifest, '{ "version": "4.0.0" }');
	const { packagesOf } = await import(join(copy, "build/lockfile.ts"));
	const files = ["controller.ts", "node_modules/pkijs/build/index.es.js"];
	expect(await packagesOf(files)).toMatchObject([
		{ name: "pkijs", version: "4.0.0" },
	]);
	await Bun.write(manifest, '{ "version": "3.9.0" }');
	await expect(packagesOf(files)).rejects.toThrow(
		"node_modules/pkijs is of version 3.9.0, and package-lock.json has 4.0.0: npm ci",
	);
});

test("for each package there is the text of its licence, and for Bun", async () => {
	const texts = await licenses(thisOne());
	for (const { name } of thisOne().packages) {
		const [text = ""] = Object.entries(texts)
			.filter(([path]) => path.startsWith(`${name}/`))
			.map(([, content]) => content);
		expect(text).toMatch(/Copyright|Apache License/);
	}
	expect(texts["bun/license.mdx"]).toContain("LGPL-2");
	expect(texts.LICENSE).toContain("Apache License");
});

test("what has no licence text may not be shipped", () => {
	const [first] = thisOne().packages;
	const bare = { ...first, folder: "artifacts/demo" } as Program["packages"][0];
	expect(licenses({ ...thisOne(), packages: [bare] })).rejects.toThrow(
		"artifacts/demo has no licence text: it may not be shipped",
	);
});

test("an archive that does not fit on the disk is an error, and not a short archive", async () => {
	const script = join(dir, "archive.ts");
	await writeFile(
		script,
		`import { writeArchive } from ${JSON.stringify(join(root, "build/oci.ts"))};
const layers = [[{ path: "/file", content: new Uint8Array(300_000) }]];
const image = { architecture: "amd64", layers, config: { User: "0" } };
await writeArchive(process.argv[2], [image], { name: "docker.io/library/full:1" });
`,
	);
	const file = join(dir, "archive.tar");
	await run([process.execPath, script, file]);
	expect(Bun.file(file).size).toBeGreaterThan(300_000);
	await expect(
		run([
			...(["sh", "-c", 'ulimit -f 100; exec "$@"', "sh"] as const),
			...[process.execPath, script, file],
		]),
	).rejects.toThrow("EFBIG");
});
