import { afterAll, beforeAll, describe, expect, spyOn, test } from "bun:test";
import { createHash, X509Certificate } from "node:crypto";
import { writeFileSync } from "node:fs";
import {
	mkdir,
	mkdtemp,
	rename,
	rm,
	stat,
	symlink,
	utimes,
	writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
	CredentialFiles,
	type CredentialFilesOptions,
	CredentialsError,
	distrust,
	parseCredentials,
} from "../gateway/credentials.ts";
import { bundle, issueCA, parseCertificates } from "../pki.ts";
import { run } from "./cluster/processes.ts";
import { until } from "./harness.ts";
import { CA, type Issued, issue, leaf } from "./issue.ts";

const DAY = 24 * 3600_000;
let dir = "";
/** Two authorities, `forged` with the name of the first, `old` expired. */
let a: Issued, b: Issued, forged: Issued, old: Issued;
/** Clients of the first, and of the second. */
let one: Issued, two: Issued, other: Issued, expired: Issued;
/** The second authority, certified by the first. */
let cross: Issued;

beforeAll(async () => {
	dir = await mkdtemp(join(tmpdir(), "etcdproxy-credentials-"));
	[a, b, forged, old] = await Promise.all([
		issue(dir, "ca-a", { extensions: CA }),
		issue(dir, "ca-b", { extensions: CA }),
		issue(dir, "forged", { subject: "/CN=ca-a", extensions: CA }),
		issue(dir, "ca-old", { extensions: CA, days: -1 }),
	]);
	const extensions = leaf("clientAuth");
	[one, two, other, expired, cross] = await Promise.all([
		issue(dir, "one", { extensions, issuer: a, days: 20 }),
		issue(dir, "two", { extensions, issuer: a, days: 25 }),
		issue(dir, "other", { extensions, issuer: b }),
		issue(dir, "expired", { extensions, issuer: a, days: -1 }),
		issue(dir, "cross", {
			subject: "/CN=ca-b",
			extensions: CA,
			issuer: a,
			keyFile: b.keyFile,
		}),
	]);
});

afterAll(() => rm(dir, { recursive: true, force: true }));

const filesOf = (cert: string, key: string, ca: string) => ({
	cert: { path: "/c/tls.crt", content: cert },
	key: { path: "/c/tls.key", content: key },
	ca: { path: "/a/ca.crt", content: ca },
});
const parse = (cert: string, key: string, ca: string, now = Date.now()) =>
	parseCredentials(filesOf(cert, key, ca), now);
/** The message of the CredentialsError. */
function refusal(action: () => unknown): string {
	try {
		action();
	} catch (error) {
		if (error instanceof CredentialsError) return error.message;
		throw error;
	}
	return "";
}
const lines = (key: string) =>
	key.split("\n").filter((line) => line.length > 20 && !line.includes("-"));

describe("parseCredentials", () => {
	test("gives chain, key and bundle, with the dates that openssl reads", async () => {
		const credentials = parse(
			other.cert + cross.cert,
			other.key,
			a.cert + b.cert,
		);
		expect(credentials.cert).toBe(other.cert + cross.cert);
		expect(credentials.key).toBe(other.key);
		expect(credentials.ca).toBe(a.cert + b.cert);
		const dates = await run([
			...["openssl", "x509", "-in", other.certFile, "-noout", "-dates"],
			...["-dateopt", "iso_8601"],
		]);
		const iso = (milliseconds: number) =>
			new Date(milliseconds).toISOString().replace("T", " ").slice(0, 19);
		expect(dates).toBe(
			`notBefore=${iso(credentials.notBefore)}Z\nnotAfter=${iso(credentials.notAfter)}Z\n`,
		);
	});

	test("the hash of a bundle as pki.ts writes it is that of the file", async () => {
		const validity = {
			notBefore: Date.now() - DAY,
			notAfter: Date.now() + DAY,
		};
		const profile = { commonName: "x", organization: "y", validity };
		const [first, second] = await Promise.all([
			issueCA(profile),
			issueCA(profile),
		]);
		const text = bundle(
			parseCertificates(first.certificate + second.certificate),
		);
		const { caHash } = parse(one.cert, one.key, text);
		expect(caHash).toBe(createHash("sha256").update(text).digest("hex"));
	});

	test("each of the three files changes the hash, only the bundle that of the bundle", () => {
		const base = parse(one.cert, one.key, a.cert);
		const pair = parse(two.cert, two.key, a.cert);
		const ca = parse(one.cert, one.key, a.cert + b.cert);
		expect(pair.caHash).toBe(base.caHash);
		expect(ca.caHash).not.toBe(base.caHash);
		expect(new Set([base.hash, pair.hash, ca.hash]).size).toBe(3);
	});

	test("takes keys in PKCS #8, SEC 1 with parameters, and PKCS #1", async () => {
		const sec1 = await run(["openssl", "ec", "-in", one.keyFile]);
		const params = await run([
			...["openssl", "ecparam", "-name", "prime256v1"],
		]);
		const rsaFile = join(dir, "rsa.key");
		await run(["openssl", "genrsa", "-traditional", "-out", rsaFile, "2048"]);
		const rsa = await issue(dir, "rsa", { extensions: [], keyFile: rsaFile });
		expect(sec1).toStartWith("-----BEGIN EC PRIVATE KEY-----");
		expect(parse(one.cert, params + sec1, a.cert).key).toBe(one.key);
		expect(rsa.key).toStartWith("-----BEGIN RSA PRIVATE KEY-----");
		expect(parse(rsa.cert, rsa.key, a.cert).cert).toBe(rsa.cert);
	});

	test("ignores text around the blocks, and line ends of other systems", () => {
		const text = `\ufeff# subject: ${a.cert.replaceAll("\n", "\r\n")}# end\n`;
		expect(parse(one.cert, one.key, text).ca).toBe(a.cert);
	});

	test("names the file and what is wrong with it", () => {
		const cut = (text: string) => text.slice(0, text.length / 2);
		const garbage =
			"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
		const longer = `-----BEGIN CERTIFICATE-----\n${Buffer.concat([
			new X509Certificate(a.cert).raw,
			Buffer.from("more"),
		]).toString("base64")}\n-----END CERTIFICATE-----\n`;
		const cases: [string, string, string, string][] = [
			["", one.key, a.cert, "/c/tls.crt: it is empty"],
			[
				"nonsense",
				one.key,
				a.cert,
				"/c/tls.crt: no certificate in it, or damaged PEM",
			],
			[
				cut(one.cert),
				one.key,
				a.cert,
				"/c/tls.crt: certificate 1 of 1: damaged or incomplete PEM",
			],
			[
				one.cert + cut(cross.cert),
				one.key,
				a.cert,
				"/c/tls.crt: certificate 2 of 2: damaged or incomplete PEM",
			],
			[
				one.key,
				one.key,
				a.cert,
				"/c/tls.crt: certificate 1 of 1: it is a PRIVATE KEY",
			],
			[
				one.cert + garbage,
				one.key,
				a.cert,
				"/c/tls.crt: certificate 2 of 2: not an X.509 certificate",
			],
			[
				one.cert,
				cut(one.key),
				a.cert,
				"/c/tls.key: no private key in PEM, or a damaged one",
			],
			[
				one.cert,
				one.cert,
				a.cert,
				"/c/tls.key: no private key in PEM, or a damaged one",
			],
			[one.cert, "\n", a.cert, "/c/tls.key: it is empty"],
			[
				one.cert,
				two.key,
				a.cert,
				"/c/tls.key: the private key does not belong to the first certificate of /c/tls.crt",
			],
			[
				cross.cert + other.cert,
				other.key,
				a.cert,
				"/c/tls.key: the private key does not belong to the first certificate of /c/tls.crt",
			],
			[one.cert, one.key, "", "/a/ca.crt: it is empty"],
			[
				one.cert,
				one.key,
				a.cert + cut(b.cert),
				"/a/ca.crt: certificate 2 of 2: damaged or incomplete PEM",
			],
			[
				one.cert,
				one.key,
				a.cert + b.cert.slice(40),
				"/a/ca.crt: certificate 1 of 1: damaged or incomplete PEM",
			],
			[
				one.cert,
				one.key,
				b.cert.slice(40) + a.cert,
				"/a/ca.crt: no certificate in it, or damaged PEM",
			],
			[
				one.cert,
				one.key,
				longer,
				"/a/ca.crt: certificate 1 of 1: not an X.509 certificate",
			],
			[
				one.cert,
				one.key,
				old.cert,
				`/a/ca.crt: all of its certificates have expired, the last at ${new Date(new X509Certificate(old.cert).validTo).toISOString()}`,
			],
		];
		for (const [cert, key, ca, message] of cases)
			expect(refusal(() => parse(cert, key, ca))).toBe(message);
	});

	test("says that a key is encrypted", async () => {
		const encrypted = await run([
			...["openssl", "pkcs8", "-topk8", "-in", one.keyFile],
			...["-passout", "pass:secret"],
		]);
		expect(refusal(() => parse(one.cert, encrypted, a.cert))).toBe(
			"/c/tls.key: the private key is encrypted; only one that is not can be used",
		);
	});

	test("no error holds a part of a key, wherever the key has been put", () => {
		const places: [string, string, string][] = [
			[one.key, one.key, a.cert],
			[one.cert, one.key, one.key],
			[one.cert, `${one.key.slice(0, -40)}`, a.cert],
			[one.cert, two.key, a.cert],
			[one.cert + two.key, one.key, a.cert],
		];
		for (const [cert, key, ca] of places) {
			const message = refusal(() => parse(cert, key, ca));
			expect(message).not.toBe("");
			for (const line of [...lines(one.key), ...lines(two.key)])
				expect(message).not.toContain(line.slice(0, 20));
		}
	});

	test("takes a bundle of which one has not expired, and a leaf that has", () => {
		const { ca, notAfter } = parse(
			expired.cert,
			expired.key,
			old.cert + a.cert,
		);
		expect(ca).toBe(old.cert + a.cert);
		expect(notAfter).toBeLessThan(Date.now());
	});
});

/** Three files in a folder of their own, and what came of following them. */
async function follow(
	name: string,
	options: Partial<CredentialFilesOptions> = {},
) {
	const folder = join(dir, name);
	await mkdir(folder, { recursive: true });
	const path = (file: string) => join(folder, file);
	const paths = {
		cert: path("tls.crt"),
		key: path("tls.key"),
		ca: path("ca.crt"),
	};
	const loaded: { cert: string; ca: string; changed: object }[] = [];
	const errors: string[] = [];
	const warnings: string[] = [];
	const files = new CredentialFiles(paths, {
		onLoad: ({ cert, ca }, changed) => loaded.push({ cert, ca, changed }),
		onError: ({ message }) => errors.push(message.replaceAll(folder, "")),
		onWarning: (message) => warnings.push(message.replaceAll(folder, "")),
		...options,
	});
	const write = async (pair: Issued, ca: string) => {
		await writeFile(paths.cert, pair.cert);
		await writeFile(paths.key, pair.key);
		await writeFile(paths.ca, ca);
	};
	return { folder, paths, files, loaded, errors, warnings, write };
}

describe("CredentialFiles", () => {
	test("the first load gives the credentials, or says what is wrong", async () => {
		const { files, paths, loaded, write } = await follow("first");
		expect(files.load()).rejects.toThrow(
			new CredentialsError(`${paths.cert}: there is no such file`),
		);
		await write(one, a.cert);
		await writeFile(paths.key, two.key);
		expect(files.load()).rejects.toThrow(CredentialsError);
		expect(files.current).toBeUndefined();
		await write(one, a.cert);
		expect((await files.load()).cert).toBe(one.cert);
		expect(files.current?.ca).toBe(a.cert);
		expect(loaded).toEqual([]);
	});

	test("a directory or a file without rights is an error that names it", async () => {
		const { files, paths, write } = await follow("directory");
		await write(one, a.cert);
		await rm(paths.ca);
		await mkdir(paths.ca);
		expect(files.load()).rejects.toThrow(
			new CredentialsError(`${paths.ca}: cannot be read: EISDIR`),
		);
	});

	test("follows the kubelet's swap of a symbolic link", async () => {
		const folder = join(dir, "kubelet");
		await mkdir(folder);
		const publish = async (version: string, pair: Issued, ca: string) => {
			await mkdir(join(folder, version));
			await writeFile(join(folder, version, "tls.crt"), pair.cert);
			await writeFile(join(folder, version, "tls.key"), pair.key);
			await writeFile(join(folder, version, "ca.crt"), ca);
			await symlink(version, join(folder, "..data_tmp"));
			await rename(join(folder, "..data_tmp"), join(folder, "..data"));
		};
		await publish("..1", one, a.cert);
		for (const file of ["tls.crt", "tls.key", "ca.crt"])
			await symlink(join("..data", file), join(folder, file));
		const { files, loaded, errors } = await follow("kubelet");
		await files.load();
		await publish("..2", two, a.cert + b.cert);
		await rm(join(folder, "..1"), { recursive: true });
		await files.poll();
		expect(loaded).toEqual([
			{
				cert: two.cert,
				ca: a.cert + b.cert,
				changed: { pair: true, ca: true },
			},
		]);
		expect(errors).toEqual([]);
	});

	test("follows a file renamed over the old one, and says what has changed", async () => {
		const { files, paths, loaded, write } = await follow("rename");
		await write(one, a.cert);
		await files.load();
		await writeFile(`${paths.ca}.new`, b.cert);
		await rename(`${paths.ca}.new`, paths.ca);
		await files.poll();
		expect(loaded).toEqual([
			{ cert: one.cert, ca: b.cert, changed: { pair: false, ca: true } },
		]);
		await write(two, b.cert);
		await files.poll();
		expect(loaded[1]?.changed).toEqual({ pair: true, ca: false });
		expect(files.current?.cert).toBe(two.cert);
	});

	test("notices a rewrite in place that leaves size and time as they were", async () => {
		const { files, paths, write } = await follow("in-place");
		await write(one, a.cert.padEnd(2000));
		await files.load();
		const facts = async () => {
			const { size, ino, mtimeMs } = await stat(paths.ca);
			return { size, ino, mtimeMs };
		};
		const then = new Date(1_000_000_000_000);
		await utimes(paths.ca, then, then);
		const before = await facts();
		await writeFile(paths.ca, b.cert.padEnd(2000));
		await utimes(paths.ca, then, then);
		expect(await facts()).toEqual(before);
		await files.poll();
		expect(files.current?.ca).toBe(b.cert);
	});

	test("waits for the one who is still writing instead of complaining", async () => {
		const { files, paths, loaded, errors, write } = await follow("writing");
		await write(one, a.cert);
		await files.load();
		await writeFile(paths.cert, two.cert);
		const look = files.poll();
		await Bun.sleep(10);
		// At once, also where the next look is due by now.
		writeFileSync(paths.key, two.key);
		await look;
		expect(errors).toEqual([]);
		expect(loaded.map(({ cert }) => cert)).toEqual([two.cert]);
	});

	test("a bundle that is written certificate by certificate is not taken for a shorter one", async () => {
		const { files, paths, loaded, write } = await follow("partly");
		await write(one, a.cert + b.cert);
		await files.load();
		await writeFile(paths.ca, a.cert);
		const look = files.poll();
		await Bun.sleep(10);
		writeFileSync(paths.ca, a.cert + b.cert + cross.cert);
		await look;
		expect(loaded.map(({ ca }) => ca)).toEqual([a.cert + b.cert + cross.cert]);
	});

	test("never loads a mismatched pair: the old one stays, told once, and again after it was good", async () => {
		const { files, paths, loaded, errors, write } = await follow("mismatch");
		await write(one, a.cert);
		await files.load();
		const mismatch =
			"/tls.key: the private key does not belong to the first certificate of /tls.crt";
		await writeFile(paths.cert, two.cert);
		await files.poll();
		await files.poll();
		expect(errors).toEqual([mismatch]);
		expect(files.problems).toHaveLength(1);
		expect(files.current?.cert).toBe(one.cert);
		await writeFile(paths.cert, one.cert);
		await files.poll();
		expect(files.problems).toEqual([]);
		await writeFile(paths.cert, two.cert);
		await files.poll();
		expect(errors).toEqual([mismatch, mismatch]);
		await writeFile(paths.key, two.key);
		await files.poll();
		expect(loaded.map(({ cert }) => cert)).toEqual([two.cert]);
		expect(files.problems).toEqual([]);
	});

	test("each file that is half written, emptied or gone leaves the old credentials in use", async () => {
		const { files, paths, loaded, errors, write } = await follow("half");
		await write(one, a.cert + b.cert);
		await files.load();
		const { hash } = files.current ?? {};
		for (const [path, content] of [
			[paths.cert, one.cert],
			[paths.key, one.key],
			[paths.ca, a.cert + b.cert],
		] as const) {
			await writeFile(path, content.slice(0, -30));
			await files.poll();
			await writeFile(path, "");
			await files.poll();
			await rm(path);
			await files.poll();
			expect(errors.splice(0)).toHaveLength(3);
			expect(files.current?.hash).toBe(hash as string);
			await writeFile(path, content);
			await files.poll();
			expect(files.problems).toEqual([]);
		}
		expect(loaded).toEqual([]);
	});

	test("a broken pair keeps no authority trusted, and a broken bundle no certificate in use", async () => {
		const { files, paths, loaded, errors, write } = await follow("parts");
		await write(one, a.cert + b.cert);
		await files.load();
		await writeFile(paths.key, "");
		await writeFile(paths.ca, b.cert);
		await files.poll();
		expect(loaded.splice(0)).toEqual([
			{ cert: one.cert, ca: b.cert, changed: { pair: false, ca: true } },
		]);
		await write(two, "");
		await files.poll();
		expect(loaded).toEqual([
			{ cert: two.cert, ca: b.cert, changed: { pair: true, ca: false } },
		]);
		expect(errors).toEqual(["/tls.key: it is empty", "/ca.crt: it is empty"]);
	});

	test("what does not change the certificates is no change", async () => {
		const { files, paths, loaded, write } = await follow("comment");
		await write(one, a.cert);
		await files.load();
		await writeFile(paths.ca, `# the client CA\n${a.cert}`);
		await files.poll();
		expect(loaded).toEqual([]);
	});

	test("a certificate that is not valid replaces the current one only if it expires later", async () => {
		let now = Date.now();
		const { files, errors, warnings, write } = await follow("dates", {
			now: () => now,
		});
		await write(one, a.cert);
		await files.load();
		await write(expired, a.cert);
		await files.poll();
		expect(files.current?.cert).toBe(one.cert);
		expect(errors).toEqual([
			`/tls.crt: the certificate has expired at ${new Date(new X509Certificate(expired.cert).validTo).toISOString()}, and the one in use does not expire before it`,
		]);
		// Our clock runs ahead, behind: `two` expires later than `one`.
		for (const shift of [40, -5]) {
			await write(one, a.cert);
			now = Date.now();
			await files.load();
			now += shift * DAY;
			await write(two, a.cert + (shift > 0 ? "" : b.cert));
			await files.poll();
			expect(files.current?.cert).toBe(two.cert);
		}
		expect(warnings).toHaveLength(2);
		expect(warnings[0]).toStartWith(
			"/tls.crt: the certificate in use has expired at ",
		);
		expect(warnings[1]).toStartWith(
			"/tls.crt: the certificate in use is not valid before ",
		);
	});

	test("warns once when the certificate in use expires", async () => {
		let now = Date.now();
		const { files, warnings, errors, write } = await follow("expires", {
			now: () => now,
		});
		await write(one, a.cert);
		await files.load();
		expect(warnings).toEqual([]);
		now += 21 * DAY;
		await files.poll();
		await files.poll();
		expect(warnings).toHaveLength(1);
		expect(files.problems).toHaveLength(1);
		expect(errors).toEqual([]);
	});

	test("what cannot be put to use is told, and tried again at the next look", async () => {
		let broken = true;
		let calls = 0;
		const { files, errors, write } = await follow("use", {
			onLoad() {
				calls++;
				if (broken) throw new Error("no");
			},
		});
		await write(one, a.cert);
		await files.load();
		await write(two, a.cert);
		await files.poll();
		await files.poll();
		expect(errors).toEqual([
			"/tls.crt, /tls.key, /ca.crt: could not be put to use: no",
		]);
		expect([files.current?.cert, calls]).toEqual([one.cert, 2]);
		broken = false;
		await files.poll();
		expect(files.current?.cert).toBe(two.cert);
		expect(files.problems).toEqual([]);
	});

	test("two looks at once load once", async () => {
		const { files, loaded, write } = await follow("twice");
		await write(one, a.cert);
		await files.load();
		await write(two, a.cert);
		await Promise.all([files.poll(), files.poll()]);
		expect(loaded).toHaveLength(1);
	});

	test("looks by itself between start and stop", async () => {
		const { files, loaded, write } = await follow("timer", { intervalMs: 10 });
		await write(one, a.cert);
		await files.load();
		files.start();
		await write(two, a.cert);
		await until(() => loaded.length === 1, "the pair is loaded");
		await write(one, a.cert);
		await until(() => loaded.length === 2, "the pair is loaded again");
		files.stop();
		await write(two, a.cert);
		await files.poll();
		expect(loaded).toHaveLength(2);
	});

	test("files that are swapped all the time give whole pairs and no complaint", async () => {
		const { files, paths, loaded, errors, folder } = await follow("storm");
		for (const [name, pair] of Object.entries({ one, two })) {
			await mkdir(join(folder, name));
			await writeFile(join(folder, name, "tls.crt"), pair.cert);
			await writeFile(join(folder, name, "tls.key"), pair.key);
			await writeFile(join(folder, name, "ca.crt"), a.cert);
		}
		const swap = async (name: string) => {
			await symlink(name, join(folder, "tmp"));
			await rename(join(folder, "tmp"), join(folder, "data"));
		};
		await swap("one");
		for (const path of Object.values(paths))
			await symlink(path.replace(folder, "data"), path);
		await files.load();
		let swaps = 0;
		let stopped = false;
		const storm = (async () => {
			while (!stopped) {
				await swap(swaps++ % 2 === 0 ? "two" : "one");
				// Some too soon after the last for anybody to read them, some not.
				await Bun.sleep(20 + Math.random() * 200);
			}
		})();
		while (loaded.length < 4) await files.poll();
		stopped = true;
		await storm;
		expect(errors).toEqual([]);
	}, 20_000);
});

describe("distrust", () => {
	const peer = (leaf: Issued, ...intermediates: Issued[]) => ({
		certificate: new X509Certificate(leaf.cert).raw,
		intermediates: intermediates.map(
			({ cert }) => new X509Certificate(cert).raw,
		),
	});

	test("trusts a leaf of the bundle, and one that brings its cross-certificate along", () => {
		const now = Date.now();
		expect(distrust(peer(one), a.cert, now)).toBeUndefined();
		expect(distrust(peer(other, cross), a.cert, now)).toBeUndefined();
		// Anything may be sent along, in any order.
		expect(
			distrust(peer(other, forged, two, cross), a.cert, now),
		).toBeUndefined();
		expect(distrust(peer(other, cross), b.cert, now)).toBeUndefined();
		expect(distrust(peer(other), cross.cert, now)).toBeUndefined();
	});

	test("says why not", async () => {
		const date = (issued: Issued, field: "validTo" | "validFrom") =>
			new Date(new X509Certificate(issued.cert)[field]).toISOString();
		const [keyless, server, none, any, self, ofOld, ofLeaf] = await Promise.all(
			[
				issue(dir, "keyless", {
					extensions: [...leaf("clientAuth"), "authorityKeyIdentifier=none"],
					issuer: a,
				}),
				issue(dir, "server", { extensions: leaf("serverAuth"), issuer: a }),
				issue(dir, "none", { extensions: leaf(""), issuer: a }),
				issue(dir, "any", {
					extensions: leaf("anyExtendedKeyUsage"),
					issuer: a,
				}),
				issue(dir, "self", { extensions: leaf("clientAuth") }),
				issue(dir, "of-old", { extensions: leaf("clientAuth"), issuer: old }),
				issue(dir, "of-leaf", { extensions: leaf("clientAuth"), issuer: one }),
			],
		);
		const now = Date.now();
		const stranger = "is not signed by any CA of the bundle";
		const usage = "has no extended key usage clientAuth";
		const cases: [ReturnType<typeof peer>, string, number, string][] = [
			[peer(other), a.cert, now, `CN=other ${stranger}`],
			[peer(one), b.cert + forged.cert, now, `CN=one ${stranger}`],
			[peer(self), a.cert, now, `CN=self ${stranger}`],
			[peer(self, self), a.cert, now, `CN=self ${stranger}`],
			[peer(one), "", now, "CN=one cannot be verified: CA bundle: it is empty"],
			[peer(one), one.cert, now, `CN=one ${stranger}`],
			[peer(server), a.cert, now, `CN=server ${usage}`],
			[peer(none), a.cert, now, `CN=none ${usage}`],
			[peer(any), a.cert, now, `CN=any ${usage}`],
			// Of the right name, but another key: the signature alone tells.
			[peer(keyless), forged.cert, now, `CN=keyless ${stranger}`],
			[peer(ofLeaf, one), a.cert, now, `CN=of-leaf ${stranger}`],
			[
				peer(expired),
				a.cert,
				now,
				`CN=expired has expired at ${date(expired, "validTo")}`,
			],
			[
				peer(one),
				a.cert,
				now - DAY,
				`CN=one is not valid before ${date(one, "validFrom")}`,
			],
			[
				peer(ofOld),
				a.cert + old.cert,
				now,
				`CN=of-old is signed by CN=ca-old, which has expired at ${date(old, "validTo")}`,
			],
		];
		for (const [who, ca, at, reason] of cases)
			expect(distrust(who, ca, at)).toBe(`the certificate ${reason}`);
		expect(distrust(undefined, a.cert, now)).toBe(
			"it showed no certificate, or one that cannot be read",
		);
		expect(
			distrust(
				{ certificate: Buffer.from("x"), intermediates: [] },
				a.cert,
				now,
			),
		).toBe("it showed no certificate, or one that cannot be read");
	});

	test("agrees with openssl on every chain of these certificates", async () => {
		const [crossOld, noSign, noCA, plain, serverCA, lone] = await Promise.all([
			issue(dir, "cross-expired", {
				subject: "/CN=ca-b",
				extensions: CA,
				issuer: a,
				keyFile: b.keyFile,
				days: -1,
			}),
			issue(dir, "no-sign", {
				subject: "/CN=ca-b",
				extensions: [
					"basicConstraints=critical,CA:TRUE",
					"keyUsage=critical,digitalSignature",
				],
				issuer: a,
				keyFile: b.keyFile,
			}),
			issue(dir, "no-ca", {
				subject: "/CN=ca-b",
				extensions: leaf("clientAuth"),
				issuer: a,
				keyFile: b.keyFile,
			}),
			issue(dir, "plain", {
				subject: "/CN=ca-b",
				extensions: ["basicConstraints=critical,CA:FALSE"],
				issuer: a,
				keyFile: b.keyFile,
			}),
			issue(dir, "server-ca", {
				subject: "/CN=ca-b",
				extensions: [...CA, "extendedKeyUsage=serverAuth"],
				issuer: a,
				keyFile: b.keyFile,
			}),
			issue(dir, "lone", { extensions: leaf("clientAuth"), issuer: forged }),
		]);
		const now = Date.now();
		const leaves = { one, other, expired, lone };
		const intermediates = { cross, crossOld, noSign, noCA, plain, serverCA, b };
		const bundles = {
			a: a.cert,
			b: b.cert,
			forged: forged.cert,
			cross: cross.cert,
			noSign: noSign.cert,
			serverCA: serverCA.cert,
			plain: plain.cert,
			both: old.cert + a.cert,
		};
		const verdicts = { trusted: 0, refused: 0 };
		const compare = async (sentName: string, bundleName: string) => {
			const sent = intermediates[sentName as keyof typeof intermediates];
			const ca = bundles[bundleName as keyof typeof bundles];
			const caFile = join(dir, `bundle-${bundleName}-${sentName}.pem`);
			await writeFile(caFile, ca);
			// Its exit code tells whether all of them are trusted, its output which.
			const output = await run([
				...["sh", "-c", '"$@" 2>&1 || true', "sh"],
				...["openssl", "verify", "-purpose", "sslclient", "-partial_chain"],
				...["-untrusted", sent.certFile, "-CAfile", caFile],
				...Object.values(leaves).map(({ certFile }) => certFile),
			]);
			for (const [leafName, leaf] of Object.entries(leaves)) {
				const judged = output.includes(`${leaf.certFile}: OK\n`);
				verdicts[judged ? "trusted" : "refused"]++;
				const ours = distrust(peer(leaf, sent), ca, now) === undefined;
				const chain = `${leafName}, sent ${sentName}, bundle ${bundleName}`;
				expect([chain, ours]).toEqual([chain, judged]);
			}
		};
		for (const sentName of Object.keys(intermediates))
			await Promise.all(
				Object.keys(bundles).map((name) => compare(sentName, name)),
			);
		expect(verdicts.trusted).toBeGreaterThan(10);
		expect(verdicts.refused).toBeGreaterThan(10);
	});

	test("a chain has at most three intermediates", async () => {
		let issuer = a;
		const chain: Issued[] = [];
		for (let depth = 1; depth <= 4; depth++) {
			issuer = await issue(dir, `level-${depth}`, { extensions: CA, issuer });
			chain.push(issuer);
		}
		const [third = a, fourth = a] = chain.slice(2);
		const extensions = leaf("clientAuth");
		const near = await issue(dir, "near", { extensions, issuer: third });
		const far = await issue(dir, "far", { extensions, issuer: fourth });
		expect(distrust(peer(near, ...chain), a.cert, Date.now())).toBeUndefined();
		expect(distrust(peer(far, ...chain), a.cert, Date.now())).toBe(
			"the certificate CN=far is not signed by any CA of the bundle",
		);
	});

	test("certificates of which each could be the issuer do not cost more than some checks", async () => {
		const anonymous = await issue(dir, "anonymous", {
			extensions: [...leaf("clientAuth"), "authorityKeyIdentifier=none"],
			issuer: a,
		});
		const verify = spyOn(X509Certificate.prototype, "verify");
		const many = Array.from({ length: 100 }, () => forged);
		expect(distrust(peer(anonymous, ...many), b.cert, Date.now())).toContain(
			"is not signed",
		);
		expect(verify).toHaveBeenCalledTimes(32);
		verify.mockRestore();
	});

	test("a name is one line without control characters", async () => {
		const odd = await issue(dir, "odd", {
			subject: "/O=a\nb/CN=x\u001b[31m",
			extensions: leaf("clientAuth"),
			issuer: b,
		});
		const reason = distrust(peer(odd), a.cert, Date.now()) ?? "";
		expect(reason).toMatch(/^the certificate O=a\\0Ab,CN=x\\1B\[31m is not/);
		const nameless = await issue(dir, "nameless", {
			subject: "/",
			extensions: leaf("clientAuth"),
			issuer: b,
		});
		expect(distrust(peer(nameless), a.cert, Date.now())).toMatch(
			/^the certificate with serial number [0-9A-F]+ is not/,
		);
	});
});
