import { describe, expect, test } from "bun:test";
import { createPublicKey, X509Certificate } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { BlockList, isIPv6 } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import {
	bundle,
	type CertificateFacts,
	crossSign,
	issueCA,
	issueLeaf,
	type KeyPair,
	keyMatches,
	parseCertificates,
	parseFirst,
	UnreadableError,
	type Validity,
	verifies,
} from "../pki.ts";

const DAY = 86_400_000;
const NOW = Date.UTC(2026, 5, 1);
const VALIDITY: Validity = { notBefore: NOW, notAfter: NOW + 30 * DAY };

const newCA = (validity = VALIDITY) =>
	issueCA({ commonName: "client CA", organization: "tenant", validity });
const newServer = (signer: KeyPair, validity = VALIDITY) =>
	issueLeaf({
		signer,
		commonName: "etcd-tenant",
		usage: "serverAuth",
		dnsNames: ["localhost", "etcd-tenant.storage.svc"],
		ipAddresses: ["127.0.0.1", "2001:DB8:0::1"],
		validity,
	});
const newClient = (signer: KeyPair, validity = VALIDITY) =>
	issueLeaf({
		signer,
		commonName: "tenant",
		organization: "clients",
		usage: "clientAuth",
		validity,
	});
const only = (pem: string): CertificateFacts => {
	const [facts, ...others] = parseCertificates(pem);
	if (!facts || others.length > 0) throw new Error("expected one certificate");
	return facts;
};
const blocks = (pem: string) =>
	pem.split(/(?=-----BEGIN )/).map((block) => block.split("-----")[2] ?? "");
const der = (pem: string) => Buffer.from(blocks(pem)[0] ?? "", "base64");
const toPEM = (bytes: Uint8Array, label = "CERTIFICATE") =>
	`-----BEGIN ${label}-----\n${Buffer.from(bytes).toString("base64")}\n-----END ${label}-----\n`;

function openssl(args: string[], files: Record<string, string> = {}) {
	const directory = mkdtempSync(join(tmpdir(), "pki-"));
	try {
		for (const [name, text] of Object.entries(files))
			writeFileSync(join(directory, name), text);
		const run = Bun.spawnSync(["openssl", ...args], { cwd: directory });
		return { ok: run.success, text: `${run.stdout}${run.stderr}` };
	} finally {
		rmSync(directory, { recursive: true });
	}
}
function opensslVerify(leaf: string, roots: string, purpose: string, at = NOW) {
	const time = String(Math.floor(at / 1000) + 60);
	const args = ["-x509_strict", "-purpose", purpose, "-attime", time];
	return openssl(
		["verify", ...args, "-CAfile", "roots", "-untrusted", "leaf", "leaf"],
		{ leaf, roots },
	);
}

describe("a certificate's profile", () => {
	test("openssl reads in a CA what RFC 5280 asks of one", async () => {
		const { certificate } = await newCA();
		const { text } = openssl(["x509", "-in", "ca", "-noout", "-text"], {
			ca: certificate,
		});
		expect(text).toContain("Version: 3");
		expect(text).toMatch(/Basic Constraints: critical\s+CA:TRUE, pathlen:1\n/);
		expect(text).toMatch(/Key Usage: critical\s+Certificate Sign, CRL Sign\n/);
		expect(text.match(/ecdsa-with-SHA256/g)).toHaveLength(2);
		expect(text).toContain("NIST CURVE: P-256");
		expect(text).not.toContain("Extended Key Usage");
		expect(opensslVerify(certificate, certificate, "any").text).toContain("OK");
	});

	test("openssl reads in a leaf one purpose and no authority", async () => {
		const ca = await newCA();
		for (const [leaf, purpose] of [
			[await newServer(ca), "TLS Web Server Authentication"],
			[await newClient(ca), "TLS Web Client Authentication"],
		] as const) {
			const { text } = openssl(["x509", "-in", "leaf", "-noout", "-text"], {
				leaf: leaf.certificate,
			});
			expect(text).toMatch(/Basic Constraints: critical\s+CA:FALSE\n/);
			expect(text).toMatch(/ Key Usage: critical\s+Digital Signature\n/);
			const uses = /Extended Key Usage: \s+(.*)\n/.exec(text)?.[1];
			expect(uses).toBe(purpose);
			const identifiers = [
				...text.matchAll(/Key Identifier: \s+([\dA-F:]+)\n/g),
			].map(([, id]) => id?.replaceAll(":", "").toLowerCase());
			expect(identifiers).toEqual([
				only(leaf.certificate).keyIdentifier,
				only(ca.certificate).keyIdentifier,
			]);
			// basicConstraints SEQUENCE {}, critical: DER does not encode cA FALSE
			expect(
				der(leaf.certificate).includes(
					Buffer.from("0603551d130101ff04023000", "hex"),
				),
			).toBe(true);
		}
	});

	test("the bits of key usage are encoded without trailing zeros", async () => {
		const ca = await newCA();
		const usage = (pem: string) =>
			/0603551d0f0101ff0404(.{8})/.exec(der(pem).toString("hex"))?.[1];
		expect(usage(ca.certificate)).toBe("03020106");
		expect(usage((await newServer(ca)).certificate)).toBe("03020780");
	});

	test("a signer made elsewhere is named by the key identifier that it states", async () => {
		for (const identifier of ["hash", "none"]) {
			const args = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
			const extensions = ["keyUsage=critical,keyCertSign"].concat(
				`subjectKeyIdentifier=${identifier}`,
			);
			const { text } = openssl(
				[
					"req",
					"-x509",
					"-nodes",
					...args,
					"-keyout",
					"-",
					"-subj",
					"/CN=x",
				].concat(extensions.flatMap((value) => ["-addext", value])),
			);
			const certificate = text.slice(text.indexOf("-----BEGIN CERT"));
			const signer = { certificate, key: text.slice(0, -certificate.length) };
			const { notBefore, notAfter } = only(certificate);
			const leaf = await newServer(signer, { notBefore, notAfter });
			const strict = identifier === "hash" ? ["-x509_strict"] : [];
			const verified = openssl(["verify", ...strict, "-CAfile", "ca", "leaf"], {
				ca: certificate,
				leaf: leaf.certificate,
			});
			expect(verified.text).toBe("leaf: OK\n");
		}
	});

	test("a leaf serves only its own purpose", async () => {
		const ca = await newCA();
		const server = (await newServer(ca)).certificate;
		const client = (await newClient(ca)).certificate;
		expect(opensslVerify(server, ca.certificate, "sslserver").ok).toBe(true);
		expect(opensslVerify(server, ca.certificate, "sslclient").ok).toBe(false);
		expect(opensslVerify(client, ca.certificate, "sslclient").ok).toBe(true);
		expect(opensslVerify(client, ca.certificate, "sslserver").ok).toBe(false);
	});

	test("PEM is that of RFC 7468, as openssl writes it", async () => {
		const ca = await newCA();
		const leaf = await newServer(ca);
		for (const pem of [ca.certificate, leaf.certificate])
			expect(openssl(["x509", "-in", "pem"], { pem }).text).toBe(pem);
		for (const pem of [ca.key, leaf.key])
			expect(openssl(["pkey", "-in", "pem"], { pem }).text).toBe(pem);
	});

	test("subjects differ from generation to generation", async () => {
		const subjects = [await newCA(), await newCA()].map(
			({ certificate }) => only(certificate).subject,
		);
		expect(subjects[0]).toMatch(/^CN=client CA [\da-f]{8},O=tenant$/);
		expect(subjects[0]).not.toBe(subjects[1]);
	});

	test("serial numbers are positive, canonical, unique and of 128 bits", async () => {
		const ca = await newCA();
		const leaves = await Promise.all(
			Array.from({ length: 64 }, () => newClient(ca)),
		);
		const serials = leaves.map(({ certificate }) => only(certificate).serial);
		expect(new Set(serials).size).toBe(64);
		expect(serials.some((serial) => /^[89a-f].{31}$/.test(serial))).toBe(true);
		for (const { certificate } of leaves) {
			const { text } = openssl(["asn1parse", "-in", "pem"], {
				pem: certificate,
			});
			// the serial number is the second INTEGER, after the version
			const [, serial] = [...text.matchAll(/INTEGER\s+:(\S+)/g)];
			expect(serial?.[1]).toMatch(/^[\dA-F]{1,32}$/);
			expect(new X509Certificate(certificate).serialNumber.toLowerCase()).toBe(
				only(certificate).serial,
			);
		}
	}, 60_000);

	test("names of more than 64 characters are refused, 64 of any script are not", async () => {
		const signer = await newCA();
		const leaf = (commonName: string) =>
			issueLeaf({
				signer,
				commonName,
				usage: "clientAuth",
				validity: VALIDITY,
			});
		for (const commonName of ["", "x".repeat(65)])
			await expect(leaf(commonName)).rejects.toBeInstanceOf(RangeError);
		const { certificate } = await leaf("ß".repeat(64));
		expect(only(certificate).commonName).toBe("ß".repeat(64));
		expect(new X509Certificate(certificate).subject).toBe(
			`CN=${"ß".repeat(64)}`,
		);
	});

	test("names that are no host names or addresses are refused", async () => {
		const signer = await newCA();
		const leaf = (dnsNames: string[], ipAddresses: string[]) =>
			issueLeaf({
				signer,
				commonName: "x",
				usage: "serverAuth",
				dnsNames,
				ipAddresses,
				validity: VALIDITY,
			});
		for (const name of ["", "a b", "é.example", "a..b", "a\n"])
			await expect(leaf([name], [])).rejects.toBeInstanceOf(RangeError);
		for (const address of [
			"",
			"1.2.3",
			"1.2.3.256",
			"fe80::1%eth0",
			"::1]",
			"localhost",
		])
			await expect(leaf([], [address])).rejects.toBeInstanceOf(RangeError);
	});
});

describe("dates", () => {
	const at = (date: string) => Date.parse(date);
	test("UTCTime reaches through 2049, GeneralizedTime begins with 2050, fractions are dropped", async () => {
		for (const [date, encoded] of [
			["2049-12-31T23:59:59.000Z", "UTCTIME           :491231235959Z"],
			["2049-12-31T23:59:59.999Z", "UTCTIME           :491231235959Z"],
			["2050-01-01T00:00:00.000Z", "GENERALIZEDTIME   :20500101000000Z"],
			["2050-01-01T00:00:00.500Z", "GENERALIZEDTIME   :20500101000000Z"],
			["9999-12-31T23:59:59.000Z", "GENERALIZEDTIME   :99991231235959Z"],
		] as const) {
			const { certificate } = await newCA({
				notBefore: at("1950-01-01T00:00:00Z"),
				notAfter: at(date),
			});
			const { text } = openssl(["asn1parse", "-in", "pem"], {
				pem: certificate,
			});
			expect(text).toContain("UTCTIME           :500101000000Z");
			expect(text).toContain(encoded);
		}
	});

	test("any validity from 1970 to 2400 is what node reads, in whole seconds", async () => {
		const instant = fc.integer({ min: 0, max: Date.UTC(2400, 0) });
		await fc.assert(
			fc.asyncProperty(instant, instant, async (one, other) => {
				const validity = {
					notBefore: Math.min(one, other),
					notAfter: Math.max(one, other),
				};
				const { certificate } = await newCA(validity);
				const judge = new X509Certificate(certificate);
				const facts = only(certificate);
				expect(facts.notBefore).toBe(
					Math.floor(validity.notBefore / 1000) * 1000,
				);
				expect(facts.notAfter).toBe(
					Math.floor(validity.notAfter / 1000) * 1000,
				);
				expect(Date.parse(judge.validFrom)).toBe(facts.notBefore);
				expect(Date.parse(judge.validTo)).toBe(facts.notAfter);
			}),
		);
	}, 60_000);

	test("what cannot be a validity is refused", async () => {
		for (const validity of [
			{ notBefore: 2000, notAfter: 1000 },
			{ notBefore: Number.NaN, notAfter: NOW },
			{ notBefore: NOW, notAfter: Number.POSITIVE_INFINITY },
			{ notBefore: Date.UTC(1949, 11, 31), notAfter: NOW },
			{ notBefore: NOW, notAfter: Date.UTC(10_000, 0) },
		])
			await expect(newCA(validity)).rejects.toBeInstanceOf(RangeError);
	});

	test("nothing outlives or predates its signer, whose own validity fits exactly", async () => {
		const validity = { notBefore: NOW + 400, notAfter: NOW + DAY + 700 };
		const signer = await newCA(validity);
		const subject = (await newCA(validity)).certificate;
		expect(only((await newServer(signer, validity)).certificate).notAfter).toBe(
			NOW + DAY,
		);
		for (const wrong of [
			{ ...validity, notBefore: NOW - 1 },
			{ ...validity, notAfter: NOW + DAY + 1000 },
		]) {
			await expect(newServer(signer, wrong)).rejects.toBeInstanceOf(RangeError);
			await expect(
				crossSign({ signer, subject, validity: wrong }),
			).rejects.toBeInstanceOf(RangeError);
		}
	});
});

describe("facts", () => {
	test("they are those that node reads", async () => {
		const ca = await newCA();
		for (const { certificate } of [
			ca,
			await newServer(ca),
			await newClient(ca),
		]) {
			const facts = only(certificate);
			const judge = new X509Certificate(certificate);
			expect(facts.subject.split(",").reverse().join("\n")).toBe(judge.subject);
			expect(facts.issuer.split(",").reverse().join("\n")).toBe(judge.issuer);
			expect(facts.serial).toBe(judge.serialNumber.toLowerCase());
			expect(facts.fingerprint).toBe(
				judge.fingerprint256.replaceAll(":", "").toLowerCase(),
			);
			expect(facts.isCA).toBe(judge.ca);
			const spki = judge.publicKey.export({ type: "spki", format: "der" });
			expect(facts.keyIdentifier).toBe(
				new Bun.CryptoHasher("sha256").update(spki).digest("hex"),
			);
			expect(facts.pem).toBe(certificate);
		}
	});

	test("they are what was asked for: names, purposes, addresses", async () => {
		const label = fc.stringMatching(/^[a-z\d]([a-z\d-]{0,20}[a-z\d])?$/);
		const host = fc
			.array(label, { minLength: 1, maxLength: 4 })
			.map((labels) => labels.join("."));
		const address = fc.oneof(fc.ipV4(), fc.ipV6());
		const text = fc
			.string({ unit: "grapheme", minLength: 1, maxLength: 30 })
			.filter((name) => [...name].length <= 64);
		const signer = await newCA();
		await fc.assert(
			fc.asyncProperty(
				text,
				fc.option(text, { nil: undefined }),
				fc.array(host),
				fc.array(address),
				fc.constantFrom("serverAuth", "clientAuth"),
				async (commonName, organization, dnsNames, ipAddresses, usage) => {
					const named = organization === undefined ? {} : { organization };
					const leaf = await issueLeaf({
						signer,
						commonName,
						...named,
						usage,
						dnsNames,
						ipAddresses,
						validity: VALIDITY,
					});
					const facts = only(leaf.certificate);
					expect(facts.commonName).toBe(commonName);
					expect(facts.extendedKeyUsages).toEqual([usage]);
					expect(facts.dnsNames).toEqual(dnsNames);
					expect(facts.ipAddresses).toHaveLength(ipAddresses.length);
					for (const [index, ip] of ipAddresses.entries()) {
						const same = new BlockList();
						same.addAddress(ip, isIPv6(ip) ? "ipv6" : "ipv4");
						const read = facts.ipAddresses[index] ?? "";
						expect(same.check(read, isIPv6(read) ? "ipv6" : "ipv4")).toBe(true);
					}
					expect(keyMatches(facts, leaf.key)).toBe(true);
					const judge = new X509Certificate(leaf.certificate);
					for (const ip of ipAddresses) expect(judge.checkIP(ip)).toBeDefined();
					for (const name of dnsNames)
						expect(judge.checkHost(name)).toBeDefined();
					expect(judge.verify(createPublicKey(signer.key))).toBe(true);
				},
			),
			{ numRuns: 60 },
		);
	}, 60_000);

	test("IPv6 addresses are 16 octets in network order", async () => {
		const { certificate } = await newServer(await newCA());
		expect(
			der(certificate).includes(
				Buffer.from("871020010db8000000000000000000000001", "hex"),
			),
		).toBe(true);
		expect(only(certificate).ipAddresses).toEqual(["127.0.0.1", "2001:db8::1"]);
	});

	test("openssl's certificates are read too: several attributes, RSA, no extensions", () => {
		const run = (subject: string, ...args: string[]) =>
			openssl([
				"req",
				"-x509",
				"-nodes",
				"-newkey",
				"rsa:2048",
				"-keyout",
				"/dev/null",
				"-days",
				"1",
				"-multivalue-rdn",
				"-subj",
				subject,
				...args,
			]).text.replace(/^[\s\S]*?(?=-----BEGIN)/, "");
		const facts = only(run("/C=DE/O=a, b/OU=x+CN=#1 \\+ 2 "));
		expect(facts.subject).toBe("OU=x+CN=\\#1 \\+ 2\\ ,O=a\\, b,C=DE");
		expect(facts.isCA).toBe(true);
		const other = only(
			run("/O=none", "-addext", "extendedKeyUsage=serverAuth,codeSigning"),
		);
		expect(other.commonName).toBe("");
		expect(other.extendedKeyUsages).toEqual([
			"serverAuth",
			"1.3.6.1.5.5.7.3.3",
		]);
	});
});

describe("keys", () => {
	test("every usual kind and form of key is matched with its certificate", () => {
		for (const [algorithm, forms] of [
			[
				["-newkey", "rsa:2048"],
				[["-traditional"], []],
			],
			[
				["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
				[["-traditional"], []],
			],
			[
				["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
				[["-traditional"], []],
			],
			[
				["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"],
				[["-traditional"], []],
			],
			[["-newkey", "ed25519"], [[]]],
		] as const) {
			const { text } = openssl([
				"req",
				"-x509",
				"-nodes",
				...algorithm,
				"-keyout",
				"-",
				"-subj",
				"/CN=x",
				"-days",
				"1",
			]);
			const pem = (label: string) =>
				new RegExp(
					`-----BEGIN ${label}-----[\\s\\S]*-----END ${label}-----\n`,
				).exec(text)?.[0] ?? "";
			for (const form of forms) {
				const key = openssl(["pkey", "-in", "key", ...form], {
					key: pem("PRIVATE KEY"),
				}).text;
				expect(keyMatches(pem("CERTIFICATE"), key)).toBe(true);
			}
		}
	}, 60_000);

	test("another's key does not match, and a chain is matched by its first", async () => {
		const ca = await newCA();
		const leaf = await newServer(ca);
		expect(keyMatches(leaf.certificate + ca.certificate, leaf.key)).toBe(true);
		expect(keyMatches(leaf.certificate + ca.certificate, ca.key)).toBe(false);
	});

	test("an unreadable key is an error that tells nothing of it", async () => {
		const leaf = await newServer(await newCA());
		const secret = blocks(leaf.key)[0]?.replace(/\s/g, "") ?? "";
		for (const key of [
			"",
			"junk",
			leaf.certificate,
			leaf.key.slice(0, 150),
			leaf.key.replace("MI", "MJ"),
			leaf.key.replaceAll("PRIVATE", "ENCRYPTED PRIVATE"),
		])
			expectUnreadable(() => keyMatches(leaf.certificate, key), secret);
		expectUnreadable(() => parseCertificates(leaf.key), secret);
		expectUnreadable(
			() => parseCertificates(leaf.certificate + leaf.key),
			secret,
		);
		expectUnreadable(
			() => parseCertificates(toPEM(Buffer.from(secret, "base64"))),
			secret,
		);
	});

	test("a signer whose key is another's, or that is no CA, signs nothing", async () => {
		const [one, other] = [await newCA(), await newCA()];
		const swapped = { ...one, key: other.key };
		for (const signer of [swapped, await newServer(one), { ...one, key: "" }]) {
			await expect(newServer(signer)).rejects.toBeInstanceOf(UnreadableError);
			await expect(
				crossSign({ signer, subject: other.certificate, validity: VALIDITY }),
			).rejects.toBeInstanceOf(UnreadableError);
		}
	});
});

describe("signatures", () => {
	test("the issuer's is verified, another's and a changed certificate's is not", async () => {
		const [ca, other] = [await newCA(), await newCA()];
		const { certificate } = await newServer(ca);
		expect(await verifies(certificate, ca.certificate)).toBe(true);
		expect(await verifies(ca.certificate, ca.certificate)).toBe(true);
		expect(await verifies(certificate, other.certificate)).toBe(false);
		const changed = der(certificate);
		changed[changed.indexOf("etcd-tenant")] = "E".charCodeAt(0);
		expect(await verifies(toPEM(changed), ca.certificate)).toBe(false);
	});

	test("RSA and every ECDSA curve are verified as node verifies them", async () => {
		const own = await newCA();
		for (const algorithm of [
			["-newkey", "rsa:2048", "-sha384"],
			["-newkey", "rsa:2048", "-sigopt", "rsa_padding_mode:pss"],
			["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-sha384"],
			["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521", "-sha512"],
		]) {
			const { text } = openssl([
				"req",
				"-x509",
				"-nodes",
				...algorithm,
				"-keyout",
				"/dev/null",
				"-subj",
				"/CN=x",
				"-days",
				"1",
			]);
			const certificate = text.slice(text.indexOf("-----BEGIN"));
			expect(await verifies(certificate, certificate)).toBe(true);
			expect(await verifies(certificate, own.certificate)).toBe(false);
		}
	}, 60_000);
});

test("a cross-certificate has the new CA's name and key, the old one's signature, and no CA below it", async () => {
	const [old, next] = [await newCA(), await newCA()];
	const cross = await crossSign({
		signer: old,
		subject: next.certificate,
		validity: VALIDITY,
	});
	const [crossed, oldCA, nextCA] = [
		cross,
		old.certificate,
		next.certificate,
	].map(only);
	expect(crossed?.subject).toBe(nextCA?.subject ?? "");
	expect(crossed?.keyIdentifier).toBe(nextCA?.keyIdentifier ?? "");
	expect(crossed?.issuer).toBe(oldCA?.subject ?? "");
	expect(await verifies(cross, old.certificate)).toBe(true);
	expect(await verifies(cross, next.certificate)).toBe(false);
	const { text } = openssl(["x509", "-in", "cross", "-noout", "-text"], {
		cross,
	});
	expect(text).toMatch(/Basic Constraints: critical\s+CA:TRUE, pathlen:0\n/);
	expect(opensslVerify(cross, old.certificate, "any").ok).toBe(true);
});

describe("a bundle", () => {
	test("is the same for the same certificates, without doubles and expired ones", async () => {
		const lives = [10, 10, 20, 30];
		const all = await Promise.all(
			lives.map((days, index) =>
				newCA({ notBefore: NOW + index * DAY, notAfter: NOW + days * DAY }),
			),
		);
		const facts = all.flatMap(({ certificate }) =>
			parseCertificates(certificate),
		);
		await fc.assert(
			fc.property(fc.array(fc.constantFrom(...facts)), (some) => {
				const text = bundle(some);
				expect(bundle([...some].reverse())).toBe(text);
				expect(bundle([...some, ...some])).toBe(text);
				const kept = text === "" ? [] : parseCertificates(text);
				expect(bundle(kept)).toBe(text);
				const expected = new Set(some.map(({ fingerprint }) => fingerprint));
				expect(new Set(kept.map(({ fingerprint }) => fingerprint))).toEqual(
					expected,
				);
				expect(kept).toHaveLength(expected.size);
				expect(kept.map(({ notBefore }) => notBefore)).toEqual(
					kept.map(({ notBefore }) => notBefore).sort(),
				);
				if (text !== "") expect(text).toEndWith("-----END CERTIFICATE-----\n");
			}),
		);
	});
});

function expectUnreadable(run: () => unknown, secret?: string): string {
	try {
		run();
	} catch (error) {
		if (!(error instanceof UnreadableError)) throw error;
		for (let i = 0; secret && i + 8 <= secret.length; i++)
			expect(Bun.inspect(error).includes(secret.slice(i, i + 8))).toBe(false);
		return error.message;
	}
	throw new Error("was read");
}

describe("unreadable input", () => {
	test("says what is wrong, and where", async () => {
		const ca = await newCA();
		const pem = ca.certificate;
		const lines = pem.split("\n");
		const message = (text: string) =>
			expectUnreadable(() => parseCertificates(text));
		const nothing = "no certificate, or damaged PEM";
		expect(message("")).toBe(nothing);
		expect(message("a letter\n")).toBe(nothing);
		expect(message(lines.slice(1).join("\n"))).toBe(nothing);
		expect(message(`${lines.slice(1).join("\n")}${pem}`)).toBe(nothing);
		expect(message(pem + pem.slice(0, 300))).toBe(
			"certificate 2 of 2: damaged PEM",
		);
		expect(message(pem + pem.replace("M", "*"))).toBe(
			"certificate 2 of 2: damaged PEM",
		);
		expect(message(`${pem}${lines.slice(1).join("\n")}${pem}`)).toBe(
			"certificate 1 of 2: damaged PEM",
		);
		expect(message(pem + ca.key)).toBe("certificate 2 of 2: PRIVATE KEY");
		expect(message(pem + lines.toSpliced(3, 1).join("\n"))).toStartWith(
			"certificate 2 of 2: ",
		);
		const trailing = Buffer.concat([der(pem), Buffer.from([0])]);
		expect(message(pem + toPEM(trailing) + pem)).toBe(
			"certificate 2 of 3: malformed, or not DER",
		);
	});

	test("of a text that others may write, only the first certificate is taken apart, and none that is enormous", async () => {
		const ca = await newCA();
		const dnsNames = Array.from({ length: 500 }, (_, i) => `${i}.example.com`);
		const issued = await issueLeaf({
			...{ signer: ca, commonName: "large", usage: "serverAuth" },
			...{ dnsNames, ipAddresses: [], validity: VALIDITY },
		});
		// Not the very one, which is known: with another signature.
		const octets = der(issued.certificate);
		octets.writeUInt8(octets.at(-1) === 0 ? 1 : 0, octets.length - 1);
		const large = toPEM(octets);
		expect(der(large).length).toBeGreaterThan(8192);
		const message = (text: string) => expectUnreadable(() => parseFirst(text));
		expect(message(large)).toBe("certificate 1 of 1: larger than 8 KiB");
		const facts = parseFirst(ca.certificate);
		expect(parseFirst(ca.certificate + large)).toEqual(facts);
		const cut = toPEM(octets.subarray(0, -9));
		expect(message(ca.certificate + cut)).toBe(
			"certificate 2 of 2: not an X.509 certificate",
		);
		expect(message(ca.certificate + ca.key)).toBe(
			"certificate 2 of 2: PRIVATE KEY",
		);
	});

	test("base64 without its padding is refused, as Go refuses it", async () => {
		let { certificate } = await newCA();
		while (!certificate.includes("=")) ({ certificate } = await newCA());
		expectUnreadable(() => parseCertificates(certificate.replaceAll("=", "")));
	});

	test("a malformed extension is not an absent one", async () => {
		const { certificate } = await newServer(await newCA());
		for (const [id, extension] of [
			["2.5.29.19", "0603551d130101ff040230"], // basic constraints
			["2.5.29.37", "0603551d25040c30"], // extended key usage
			["2.5.29.17", /0603551d1104..30/], // alternative names
		] as const) {
			const hex = der(certificate).toString("hex");
			const [found = ""] = hex.match(extension) ?? [];
			expect(found).not.toBe("");
			// a SET where a SEQUENCE belongs
			const changed = hex.replace(found, found.replace(/30$/, "31"));
			expect(
				expectUnreadable(() =>
					parseCertificates(toPEM(Buffer.from(changed, "hex"))),
				),
			).toBe(`certificate 1 of 1: malformed extension ${id}`);
		}
	});

	test("text around the blocks and any line ends are no matter", async () => {
		const { certificate } = await newCA();
		const text = `subject=x\n${certificate}issuer=y\n${certificate}`;
		for (const variant of [text, text.replaceAll("\n", "\r\n")])
			expect(parseCertificates(variant).map(({ pem }) => pem)).toEqual([
				certificate,
				certificate,
			]);
	});

	test("a mutated certificate is read as node reads it, or not at all", async () => {
		const original = der((await newServer(await newCA())).certificate);
		let parsed = 0;
		fc.assert(
			fc.property(
				fc.array(fc.tuple(fc.nat(original.length - 1), fc.nat(255)), {
					minLength: 1,
					maxLength: 3,
				}),
				fc.nat({ max: 3 }),
				(changes, cut) => {
					const bytes = Buffer.from(
						original.subarray(0, original.length - Math.max(0, cut - 2)),
					);
					for (const [index, value] of changes)
						if (index < bytes.length) bytes[index] = value;
					let facts: CertificateFacts;
					try {
						facts = only(toPEM(bytes));
					} catch (error) {
						expect(error).toBeInstanceOf(UnreadableError);
						return;
					}
					parsed++;
					let judge: X509Certificate;
					try {
						judge = new X509Certificate(toPEM(bytes));
					} catch {
						return; // node refuses more, such as a point that is not on its curve
					}
					expect(Date.parse(judge.validFrom)).toBe(facts.notBefore);
					expect(Date.parse(judge.validTo)).toBe(facts.notAfter);
					expect(judge.ca).toBe(facts.isCA);
					expect(judge.fingerprint256.replaceAll(":", "").toLowerCase()).toBe(
						facts.fingerprint,
					);
				},
			),
			{ numRuns: 2000 },
		);
		expect(parsed).toBeGreaterThan(100);
	}, 120_000);

	test("junk is refused as unreadable, whatever it is", () => {
		const base64 = fc
			.uint8Array({ maxLength: 300 })
			.map((bytes) => toPEM(bytes));
		const fragment = fc.constantFrom(
			"-----BEGIN ",
			"CERTIFICATE",
			"-----",
			"-----END ",
			"\n",
			"MIIB",
			"=",
			"PRIVATE KEY",
		);
		const fragments = fc
			.array(fragment, { maxLength: 40 })
			.map((parts) => parts.join(""));
		fc.assert(
			fc.property(
				fc.oneof(base64, fragments, fc.string({ unit: "binary" })),
				(text) => {
					expectUnreadable(() => parseCertificates(text));
				},
			),
			{ numRuns: 1000 },
		);
	}, 60_000);

	test("a megabyte of junk is refused in linear time", () => {
		for (const unit of [
			"-----BEGIN ",
			"-----BEGIN CERTIFICATE-----\n",
			"-----BEGIN A-----",
			"A",
			"-----END ",
			"-----",
		]) {
			const started = performance.now();
			expectUnreadable(() =>
				parseCertificates(unit.repeat(1_000_000 / unit.length)),
			);
			expectUnreadable(() =>
				parseCertificates(
					`-----BEGIN CERTIFICATE-----\n${unit.repeat(1_000_000 / unit.length)}`,
				),
			);
			expect(performance.now() - started).toBeLessThan(10_000);
		}
		const nested = Buffer.alloc(300_000, 0x30);
		expectUnreadable(() => parseCertificates(toPEM(nested)));
	}, 60_000);
});
