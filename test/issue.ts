/** Certificates with any extensions and dates, made with the openssl command. */
import { randomBytes } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Certificate } from "./cluster/certificates.ts";
import { run } from "./cluster/processes.ts";

/** The files, and what is in them. */
export interface Issued extends Certificate {
	cert: string;
	key: string;
}

export interface Profile {
	/** As openssl takes it; default: the name as CN. */
	subject?: string;
	/** Lines of openssl's configuration file. */
	extensions: string[];
	/** Default 30; a negative number gives a certificate that has expired. */
	days?: number;
	/** Default: self-signed. */
	issuer?: Certificate;
	/** Default: a new one. */
	keyFile?: string;
}

export const CA = [
	"basicConstraints=critical,CA:TRUE",
	"keyUsage=critical,keyCertSign",
];
/** @param usage extended key usages, "" for none */
export const leaf = (usage: string, names = "") => [
	"basicConstraints=critical,CA:FALSE",
	"keyUsage=critical,digitalSignature",
	...(usage ? [`extendedKeyUsage=${usage}`] : []),
	...(names ? [`subjectAltName=${names}`] : []),
];

/** @param name of its files in the folder, without the extension */
export async function issue(
	dir: string,
	name: string,
	profile: Profile,
): Promise<Issued> {
	const path = join(dir, name);
	const keyFile = profile.keyFile ?? `${path}.key`;
	if (profile.keyFile === undefined)
		await run([
			...["openssl", "genpkey", "-algorithm", "EC"],
			...["-pkeyopt", "ec_paramgen_curve:P-256", "-out", keyFile],
		]);
	await writeFile(`${path}.ext`, profile.extensions.join("\n"));
	await run([
		...["openssl", "req", "-new", "-key", keyFile],
		...["-subj", profile.subject ?? `/CN=${name}`, "-out", `${path}.csr`],
	]);
	const { issuer } = profile;
	await run([
		...["openssl", "x509", "-req", "-in", `${path}.csr`],
		...(issuer
			? ["-CA", issuer.certFile, "-CAkey", issuer.keyFile]
			: ["-signkey", keyFile]),
		...["-set_serial", `0x${randomBytes(15).toString("hex")}`],
		...["-days", String(profile.days ?? 30)],
		...["-extfile", `${path}.ext`, "-out", `${path}.crt`],
	]);
	return {
		certFile: `${path}.crt`,
		keyFile,
		cert: await readFile(`${path}.crt`, "utf8"),
		key: await readFile(keyFile, "utf8"),
	};
}
