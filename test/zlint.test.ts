/** The certificates that the controller makes, judged by zlint (https://github.com/zmap/zlint) against RFC 5280 and others. */
import {
	afterAll,
	beforeAll,
	describe,
	expect,
	setDefaultTimeout,
	test,
} from "bun:test";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { issue, materialOf } from "../certificates.ts";
import type { Spec } from "../etcdstorage.ts";
import { BACKDATE } from "../lifetimes.ts";
import { type CertificateFacts, parseCertificates } from "../pki.ts";
import { decide, type Observed } from "../reconcile.ts";
import type { Signers } from "../signers.ts";
import { binaries } from "./cluster/binaries.ts";
import { removeFolder, run, workFolder } from "./cluster/processes.ts";
import { FIRST_BUILD } from "./harness.ts";

setDefaultTimeout(60_000);

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const YEAR = 8760 * HOUR;
const NOW = Date.UTC(2026, 10, 23, 12);
const CLIENT = "client/api/crt";

const kinds = ["CA", "cross-certificate", "server", "client"] as const;
type Kind = (typeof kinds)[number];

function kindOf({
	isCA,
	subject,
	issuer,
	extendedKeyUsages,
}: CertificateFacts): Kind {
	if (isCA) return subject === issuer ? "CA" : "cross-certificate";
	return extendedKeyUsages.includes("serverAuth") ? "server" : "client";
}

const specFor = (signing: number, leaves: number, name = "sample"): Spec => ({
	name,
	replicas: 1,
	targets: [{ kind: "Secret", name: "crt", namespace: "api" }],
	consumers: [],
	validity: { signing, serving: leaves, client: leaves },
	requests: { client: {}, serving: {} },
	warnings: [],
});

/** What three visits make: the first certificates, the next signers on request, and what those issue. */
async function made(spec: Spec, now: number): Promise<CertificateFacts[]> {
	const nobody = {
		unwritten: [],
		undelivered: [],
		unread: [],
		handedOut: true,
	};
	const reach = { client: nobody, serving: nobody };
	const none = (): Signers => ({
		current: { missing: true },
		next: { missing: true },
		trusted: [],
		answered: {},
	});
	let observed: Observed = {
		reach,
		signers: { client: none(), serving: none() },
		leaves: { server: { missing: true }, [CLIENT]: { missing: true } },
	};
	const all: string[] = [];
	const rotate = { rotate: "asked for" };
	const requests = { client: rotate, serving: rotate };
	for (const asked of [spec, { ...spec, requests }, { ...spec, requests }]) {
		const plan = decide(asked, "kube-apiserver-storage", observed, now);
		const { signers, leaves } = materialOf(
			{
				client: await issue("client", plan, observed, now),
				serving: await issue("serving", plan, observed, now),
			},
			"",
		);
		observed = {
			reach,
			signers,
			leaves: Object.fromEntries(
				Object.entries(leaves).map(([id, { pair, facts }]) => [
					id,
					{
						pair,
						facts,
						keyMatches: true,
						chain: pair.certificate,
						signedBySigner: true,
					},
				]),
			),
		};
		all.push(
			...Object.values(signers).map(({ bundle }) => bundle),
			...Object.values(leaves).map(({ pair }) => pair.certificate),
		);
	}
	const facts = parseCertificates(all.join(""));
	return [...new Map(facts.map((one) => [one.fingerprint, one])).values()];
}

let folder: string;
let zlint: string;
/** Where a lint comes from, by its name. */
let sources: Map<string, string>;

beforeAll(async () => {
	folder = await workFolder();
	({ zlint } = await binaries(["zlint"]));
	const lines = (await run([zlint, "-list-lints-json"])).trim().split("\n");
	sources = new Map(
		lines.map((line) => {
			const { name, source } = JSON.parse(line);
			return [name, source];
		}),
	);
}, FIRST_BUILD);

afterAll(() => folder && removeFolder(folder));

/** Of each certificate the lints that apply to it, with what they have found. */
async function lint(pems: string[]): Promise<Record<string, string>[]> {
	const files = pems.map((_, index) => join(folder, `${index}.pem`));
	await Promise.all(
		files.map((file, index) => writeFile(file, pems[index] ?? "")),
	);
	const lines = (await run([zlint, ...files])).trim().split("\n");
	expect(lines).toHaveLength(pems.length);
	return lines.map((line) => {
		const results: Record<string, { result: string }> = JSON.parse(line);
		return Object.fromEntries(
			Object.entries(results)
				.map(([name, { result }]) => [name, result])
				.filter(([, result]) => result !== "NA" && result !== "NE"),
		);
	});
}

const LAST_OF_UTC_TIME = Date.UTC(2049, 11, 31, 23, 59, 59);
const FIRST_OF_GENERALIZED_TIME = Date.UTC(2050, 0);
/** Its certificates end at an instant. */
const until = (end: number) => specFor(end - NOW, end - NOW);
const scenarios: [string, Spec, number][] = [
	["usual", specFor(730 * HOUR, 730 * HOUR), NOW],
	["of the shortest validity", specFor(MINUTE, MINUTE), NOW],
	["of a long validity", specFor(30 * YEAR, 20 * YEAR), NOW],
	["of the longest name", specFor(YEAR, YEAR, "n".repeat(58)), NOW],
	["to the last second of UTCTime", until(LAST_OF_UTC_TIME), NOW],
	[
		"to the first second of GeneralizedTime",
		until(FIRST_OF_GENERALIZED_TIME),
		NOW,
	],
	[
		"from the last second of UTCTime",
		specFor(YEAR, YEAR),
		LAST_OF_UTC_TIME + BACKDATE,
	],
	[
		"from the first second of GeneralizedTime",
		specFor(YEAR, YEAR),
		FIRST_OF_GENERALIZED_TIME + BACKDATE,
	],
];

/**
 * What zlint objects to, by kind, and may. All of it are rules for authorities that browsers trust ("CABF": the Baseline
 * Requirements of the CA/Browser Forum), which let strangers learn who vouches for whom. Here each authority has one
 * tenant, both sides have its certificate from the same controller, and the validities are the user's.
 */
const ALLOWED: Record<Kind, string[]> = {
	CA: [
		// An authority of one tenant has no country, and its common name tells the generation.
		"e_ca_country_name_missing",
		// Of a root that others sign with: whether it limits the path is up to it. Ours lets one cross-certificate in.
		"w_root_ca_basic_constraints_path_len_constraint_field_present",
	],
	"cross-certificate": [
		"e_ca_country_name_missing",
		// Policies tell how an authority has checked whom it vouches for. Nobody asks for any.
		"e_sub_ca_certificate_policies_missing",
		"e_invalid_ca_certificate_policies",
		// Nothing is revoked one by one: a compromised signer goes from every bundle.
		"e_sub_ca_crl_distribution_points_missing",
		// Where to fetch the issuer: it lies in the bundle, and nobody here fetches.
		"w_sub_ca_aia_missing",
	],
	server: [
		// Names of Services are not public, and port-forwards go to localhost.
		"e_dnsname_not_valid_tld",
		"e_ext_san_contains_reserved_ip",
		// As above: policies, revocation, where to fetch the issuer.
		"e_sub_cert_cert_policy_empty",
		"e_sub_cert_certificate_policies_missing",
		"e_missing_crl_distrib_point",
		"e_sub_cert_aia_missing",
		"w_sub_cert_aia_does_not_contain_issuing_ca_url",
		// RFC 5280 section 4.2.1.2 recommends it in leaves, too.
		"w_ext_subject_key_identifier_not_recommended_subscriber",
		// It is one of the DNS names as well, and makes logs readable.
		"w_subject_common_name_included",
		// The user's choice.
		"w_server_cert_valid_time_longer_than_46_days",
		"e_server_cert_valid_time_longer_than_47_days",
		"w_server_cert_valid_time_longer_than_199_days",
		"e_server_cert_valid_time_longer_than_200_days",
		"w_tls_server_cert_valid_time_longer_than_397_days",
		"e_tls_server_cert_valid_time_longer_than_398_days",
		"e_sub_cert_valid_time_longer_than_825_days",
		"e_sub_cert_valid_time_longer_than_39_months",
	],
	// The forum's rules for certificates of clients are those of e-mail and code signing, which ours do not claim to be for.
	client: [],
};

/** Lints of RFC 5280 that must have had something to say, so that their silence means something. */
const HEARD: Record<Kind, string[]> = {
	CA: [
		"e_basic_constraints_not_critical",
		"e_ca_key_cert_sign_not_set",
		"e_ca_subject_field_empty",
		"e_ext_subject_key_identifier_missing_ca",
	],
	"cross-certificate": ["e_ext_authority_key_identifier_no_key_identifier"],
	server: [
		"e_ext_authority_key_identifier_no_key_identifier",
		"e_ext_san_dns_not_ia5_string",
	],
	client: ["e_ext_authority_key_identifier_no_key_identifier"],
};
const HEARD_OF_ALL = [
	"e_wrong_time_format_pre2050",
	"e_serial_number_not_positive",
	"e_serial_number_longer_than_20_octets",
];

describe("the certificates of a tenant", () => {
	/** By scenario, what zlint has to say of each. */
	const heard = new Map<
		string,
		{ kind: Kind; lints: Record<string, string> }[]
	>();
	const objections = (lints: Record<string, string>) =>
		Object.keys(lints).filter((name) =>
			/^(warn|error|fatal)$/.test(lints[name] ?? ""),
		);

	beforeAll(async () => {
		for (const [name, spec, now] of scenarios) {
			const facts = await made(spec, now);
			const results = await lint(facts.map(({ pem }) => pem));
			heard.set(
				name,
				facts.map((one, index) => ({
					kind: kindOf(one),
					lints: results[index] ?? {},
				})),
			);
		}
	}, FIRST_BUILD);

	test.each(scenarios)(
		"%s: zlint objects to nothing by RFCs, and else to what may be",
		(name) => {
			const certificates = heard.get(name) ?? [];
			expect(
				kinds.map(
					(each) => certificates.filter(({ kind }) => kind === each).length,
				),
			).toEqual([4, 2, 2, 2]);
			for (const { kind, lints } of certificates) {
				const byRFCs = objections(lints).filter((lint) =>
					sources.get(lint)?.startsWith("RFC"),
				);
				expect([kind, byRFCs]).toEqual([kind, []]);
				const others = objections(lints).filter(
					(lint) => !ALLOWED[kind].includes(lint),
				);
				expect([kind, others]).toEqual([kind, []]);
				const silent = [...HEARD[kind], ...HEARD_OF_ALL].filter(
					(lint) => lints[lint] !== "pass",
				);
				expect([kind, silent]).toEqual([kind, []]);
			}
		},
	);

	test("nothing is allowed that zlint does not object to", () => {
		for (const each of kinds) {
			const found = [...heard.values()]
				.flat()
				.filter(({ kind }) => kind === each)
				.flatMap(({ lints }) => objections(lints));
			expect([...new Set(found)].sort()).toEqual([...ALLOWED[each]].sort());
		}
	});
});
