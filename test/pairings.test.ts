/**
 * Who accepts whose certificate while signers are replaced (README.md, Certificates): one rule, and with it compared the whole
 * table of each judge: openssl, Go's TLS on both sides, our gateway as the server, Go and Bun as its clients.
 */
import {
	afterAll,
	beforeAll,
	describe,
	expect,
	setDefaultTimeout,
	test,
} from "bun:test";
import { X509Certificate } from "node:crypto";
import { mkdir, rename, symlink, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import fc from "fast-check";
import {
	crossSign,
	issueCA,
	issueLeaf,
	type KeyPair,
	parseCertificates,
	type Validity,
} from "../pki.ts";
import { binaries } from "./cluster/binaries.ts";
import { run, until } from "./cluster/processes.ts";
import { type DataPlane, type Gateway, startDataPlane } from "./dataplane.ts";
import { Raw } from "./gatewayclient.ts";
import { FIRST_BUILD } from "./harness.ts";

const HOUR = 3_600_000;
const DAY = 24 * HOUR;
const NOW = Math.floor(Date.now() / 1000) * 1000;
const ALIVE: Validity = { notBefore: NOW - 2 * DAY, notAfter: NOW + 30 * DAY };
const ENDED: Validity = { notBefore: NOW - 3 * DAY, notAfter: NOW - HOUR };

setDefaultTimeout(120_000);

/** Of signers. 0 has expired. */
type Generation = 0 | 1 | 2 | 3;
/** What is handed out: a leaf, and behind it the cross-certificate of its signer. */
interface Issued {
	signer: Generation;
	cross?: { by: Generation; validity: Validity };
}
const issued = {
	old: { signer: 1 },
	new: { signer: 2, cross: { by: 1, validity: ALIVE } },
	// That everybody trusts 2 was never confirmed.
	third: { signer: 3, cross: { by: 1, validity: ALIVE } },
	"new, cross-certificate expired": {
		signer: 2,
		cross: { by: 1, validity: ENDED },
	},
	"new, cross-certificate and its CA expired": {
		signer: 2,
		cross: { by: 0, validity: ENDED },
	},
} satisfies Record<string, Issued>;
type LeafName = keyof typeof issued;
const leafNames = Object.keys(issued) as LeafName[];

const bundles: Generation[][] = [
	[1],
	[1, 2],
	[2],
	[1, 2, 3],
	[1, 3],
	[3],
	[0, 2],
	[0, 1, 2],
];
const bundleName = (bundle: Generation[]) => `{${bundle.join()}}`;

/** The rule: a bundle vouches for the signer, or by a cross-certificate that has not expired for who made that. */
function accepted(leaf: LeafName, bundle: Generation[]): boolean {
	const { signer, cross }: Issued = issued[leaf];
	return (
		bundle.includes(signer) ||
		(cross?.validity === ALIVE && bundle.includes(cross.by))
	);
}

const domains = ["serving", "client"] as const;
type Domain = (typeof domains)[number];

interface Cell {
	domain: Domain;
	leaf: LeafName;
	bundle: Generation[];
}
const cells: Cell[] = domains.flatMap((domain) =>
	leafNames.flatMap((leaf) =>
		bundles.map((bundle) => ({ domain, leaf, bundle })),
	),
);
type Table = Record<string, "accepted" | "refused">;
const row = ({ domain, leaf, bundle }: Cell) =>
	`${domain}: leaf ${leaf}; bundle ${bundleName(bundle)}`;
const verdict = (is: boolean): Table[string] => (is ? "accepted" : "refused");
const table = (of: Cell[], judge: (cell: Cell, index: number) => boolean) =>
	Object.fromEntries(
		of.map((cell, index): [string, Table[string]] => [
			row(cell),
			verdict(judge(cell, index)),
		]),
	);
const expected = table(cells, ({ leaf, bundle }) => accepted(leaf, bundle));

/** A judge that refuses for another reason than trust has not judged. */
function refusedFor(reasons: RegExp, error: string): boolean {
	if (error === "ok") return false;
	if (reasons.test(error)) return true;
	throw new Error(`refused for another reason: ${error}`);
}

/** What one trust domain has issued. */
interface Issuer {
	authorities: Record<Generation, KeyPair>;
	leaves: Record<LeafName, KeyPair>;
}
let issuers: Record<Domain, Issuer>;
let plane: DataPlane;
let tlspair: string;

const bundleText = (domain: Domain, bundle: Generation[]) =>
	bundle
		.map((generation) => issuers[domain].authorities[generation].certificate)
		.join("");
const leafFile = (domain: Domain, leaf: LeafName) =>
	join(plane.dir, domain, `leaf-${leafNames.indexOf(leaf)}`, "tls.crt");
const keyFileOf = (certFile: string) => certFile.replace(/crt$/, "key");
const bundleFile = (domain: Domain, bundle: Generation[]) =>
	join(plane.dir, domain, `bundle-${bundle.join("")}`, "ca.crt");

const newLeaf = (domain: Domain, signer: KeyPair, validity: Validity) =>
	issueLeaf({
		signer,
		commonName: "tenant",
		validity,
		...(domain === "serving"
			? {
					usage: "serverAuth",
					dnsNames: ["localhost"],
					ipAddresses: ["127.0.0.1"],
				}
			: { usage: "clientAuth" }),
	});

async function issueAll(domain: Domain): Promise<Issuer> {
	const authority = (validity: Validity) =>
		issueCA({ commonName: `${domain} CA`, organization: "tenant", validity });
	const authorities = {
		0: await authority(ENDED),
		1: await authority({ ...ALIVE, notBefore: ENDED.notBefore }),
		2: await authority({ ...ALIVE, notBefore: ENDED.notBefore }),
		3: await authority(ALIVE),
	};
	const chain = async ({ signer, cross }: Issued): Promise<KeyPair> => {
		const leaf = await newLeaf(domain, authorities[signer], ALIVE);
		if (!cross) return leaf;
		const certificate = await crossSign({
			signer: authorities[cross.by],
			subject: authorities[signer].certificate,
			validity: cross.validity,
		});
		return { ...leaf, certificate: leaf.certificate + certificate };
	};
	const leaves = {} as Issuer["leaves"];
	for (const name of leafNames) leaves[name] = await chain(issued[name]);
	return { authorities, leaves };
}

beforeAll(async () => {
	plane = await startDataPlane();
	({ tlspair } = await binaries(["tlspair"]));
	issuers = {
		serving: await issueAll("serving"),
		client: await issueAll("client"),
	};
	for (const domain of domains) {
		const files = [
			...leafNames.flatMap((name): [string, string][] => {
				const { certificate, key } = issuers[domain].leaves[name];
				const file = leafFile(domain, name);
				return [
					[file, certificate],
					[keyFileOf(file), key],
				];
			}),
			...bundles.map((bundle): [string, string] => [
				bundleFile(domain, bundle),
				bundleText(domain, bundle),
			]),
		];
		for (const [file, text] of files) {
			await mkdir(dirname(file), { recursive: true });
			await writeFile(file, text);
		}
	}
}, FIRST_BUILD);

afterAll(() => plane?.stop());

test("by the rule, a leaf fails only under a bundle with neither its CA nor the one that certified that", () => {
	const refused = (leaf: LeafName) =>
		bundles.filter((bundle) => !accepted(leaf, bundle)).map(bundleName);
	expect(refused("old")).toEqual(["{2}", "{3}", "{0,2}"]);
	expect(refused("new")).toEqual(["{3}"]);
	expect(refused("third")).toEqual(["{2}", "{0,2}"]);
});

/** "ok", or how openssl's first error is called. */
async function opensslVerify(
	certificate: string,
	bundle: string,
	domain: Domain,
): Promise<string> {
	const child = Bun.spawn(
		[
			...["openssl", "verify", "-x509_strict"],
			...["-purpose", domain === "serving" ? "sslserver" : "sslclient"],
			...["-attime", String(NOW / 1000)],
			// The bundle and nothing else.
			...["-no-CApath", "-no-CAstore", "-CAfile", bundle],
			...["-untrusted", certificate, certificate],
		],
		{ stdin: "ignore", stdout: "pipe", stderr: "pipe" },
	);
	const [text, code] = await Promise.all([child.stderr.text(), child.exited]);
	return code === 0 ? "ok" : (/lookup: (.*)/.exec(text)?.[1] ?? text);
}
const OPENSSL_REFUSES =
	/^(unable to get (local )?issuer certificate|certificate has expired)$/;

test("openssl's table is that of the rule", async () => {
	const errors = await Promise.all(
		cells.map(({ domain, leaf, bundle }) =>
			opensslVerify(leafFile(domain, leaf), bundleFile(domain, bundle), domain),
		),
	);
	expect(
		table(
			cells,
			(_, index) => !refusedFor(OPENSSL_REFUSES, errors[index] ?? ""),
		),
	).toEqual(expected);
});

/** One side of a handshake, as tlspair reads it. */
interface Side extends KeyPair {
	roots: string;
}
interface Pairing {
	client: Side;
	server?: Side;
	address?: string;
	shy?: boolean;
}
async function go(pairings: Pairing[]) {
	const stdin = pairings.map((one) => JSON.stringify(one)).join("\n");
	const lines = (await run([tlspair], { stdin })).trim().split("\n");
	expect(lines).toHaveLength(pairings.length);
	return lines.map((line): { server?: string; client: string } =>
		JSON.parse(line),
	);
}
const GO_REFUSES =
	/: x509: certificate (signed by unknown authority|has expired)/;

/** The side that a pairing is not about: it accepts everybody, and everybody accepts it. */
const neutral = (domain: Domain): Side => ({
	...issuers[domain].leaves.third,
	roots: bundleText(domain === "serving" ? "client" : "serving", [1, 2, 3]),
});
/** The side that shows a leaf, and the one that trusts a bundle. */
const pairingOf = ({ domain, leaf, bundle }: Cell): Pairing => {
	const other = domain === "serving" ? "client" : "serving";
	const shows = { ...neutral(domain), ...issuers[domain].leaves[leaf] };
	const trusts = { ...neutral(other), roots: bundleText(domain, bundle) };
	return domain === "serving"
		? { server: shows, client: trusts }
		: { server: trusts, client: shows };
};

test.each([false, true])(
	"the table of Go's TLS is that of the rule, on both sides (with shy clients: %p)",
	async (shy) => {
		const outcomes = await go(
			cells.map((cell) => ({ ...pairingOf(cell), shy })),
		);
		expect(
			table(cells, ({ domain }, index) => {
				const { server = "", client = "" } = outcomes[index] ?? {};
				if (domain === "serving") return !refusedFor(GO_REFUSES, client);
				return !refusedFor(
					shy ? /didn't provide a certificate|has expired/ : GO_REFUSES,
					server,
				);
			}),
		).toEqual(expected);
	},
);

test("verifiers disagree on a cross-certificate as the only anchor, so that bundles hold none", async () => {
	const { certificate } = issuers.serving.leaves.new;
	const cross = parseCertificates(certificate)[1]?.pem ?? "";
	const file = join(plane.dir, "cross.crt");
	await writeFile(file, cross);
	const leaf = leafFile("serving", "new");
	expect(await opensslVerify(leaf, file, "serving")).toMatch(OPENSSL_REFUSES);
	const pairing = pairingOf({ domain: "serving", leaf: "new", bundle: [2] });
	pairing.client.roots = cross;
	expect(await go([pairing])).toEqual([{ server: "ok", client: "ok" }]);
});

/** Lets a gateway show a leaf and trust a bundle: all files at once, as the kubelet changes them. */
async function mount(leaf: LeafName, bundle: Generation[]): Promise<void> {
	const folder = join(plane.dir, `mount-${bundle.join("")}`);
	await mkdir(folder);
	const { certificate, key } = issuers.serving.leaves[leaf];
	await Promise.all([
		writeFile(join(folder, "tls.crt"), certificate),
		writeFile(join(folder, "tls.key"), key),
		writeFile(join(folder, "ca.crt"), bundleText("client", bundle)),
	]);
	await symlink(folder, mounted("next"));
	await rename(mounted("next"), mounted("now"));
}
const mounted = (...path: string[]) => join(plane.dir, "mounted", ...path);

/** What a client of the gateway shows and trusts, to learn about one cell. */
interface GatewayClient {
	cell: Cell;
	leaf: LeafName;
	bundle: Generation[];
}

/** @returns for each client "ok", or the error that it has */
type Connect = (url: string, clients: GatewayClient[]) => Promise<string[]>;

const asGo =
	(shy: boolean): Connect =>
	async (url, clients) => {
		const outcomes = await go(
			clients.map(({ leaf, bundle }) => ({
				address: new URL(url).host,
				shy,
				client: {
					...issuers.client.leaves[leaf],
					roots: bundleText("serving", bundle),
				},
			})),
		);
		return outcomes.map(({ client }) => client);
	};

const asBun: Connect = (url, clients) =>
	Promise.all(
		clients.map(async ({ leaf, bundle }) => {
			const certFile = leafFile("client", leaf);
			const raw = await Raw.connect({
				url,
				caFile: bundleFile("serving", bundle),
				certFile,
				keyFile: keyFileOf(certFile),
			});
			raw.destroy();
			return raw.ready ? "ok" : raw.error;
		}),
	);
const BUN_REFUSES =
	/^(UNABLE_TO_(VERIFY_LEAF_SIGNATURE|GET_ISSUER_CERT_LOCALLY)|CERT_HAS_EXPIRED)$/;
const REFUSALS = "etcdproxy_gateway_tls_refusals_total";

const counted = (gateway: Gateway, refusals: number) =>
	until(
		"the refused ones are counted",
		async () => (await gateway.metric(REFUSALS)) === refusals,
	);
const reloaded = (gateway: Gateway, times: number) =>
	until("it is loaded", async () => {
		const labels = { files: "server", result: "loaded" };
		const count = "etcdproxy_gateway_reloads_total";
		return (await gateway.metric(count, labels)) === times;
	});

test("our gateway's tables are that of the rule, with Go and Bun as its clients", async () => {
	await mkdir(mounted());
	const core = await plane.etcd();
	let gateway: Gateway | undefined;
	const judges: [string, Connect, RegExp][] = [
		["Go", asGo(false), GO_REFUSES],
		["Go, shy", asGo(true), GO_REFUSES],
		["Bun", asBun, BUN_REFUSES],
	];
	const tables = new Map<string, Table>();
	for (const [step, trusted] of bundles.entries()) {
		const shown = leafNames[step % leafNames.length] ?? "old";
		await mount(shown, trusted);
		gateway ??= await plane.gateway(core, {
			flags: [
				`--cert-file=${mounted("now", "tls.crt")}`,
				`--key-file=${mounted("now", "tls.key")}`,
				`--trusted-ca-file=${mounted("now", "ca.crt")}`,
			],
		});
		await reloaded(gateway, step);
		const known = leafNames.find((leaf) => accepted(leaf, trusted)) ?? "old";
		const ofClients = leafNames.map((leaf): GatewayClient => {
			const cell: Cell = { domain: "client", leaf, bundle: trusted };
			return { cell, leaf, bundle: [1, 2, 3] };
		});
		const ofServer = bundles.map((bundle): GatewayClient => {
			const cell: Cell = { domain: "serving", leaf: shown, bundle };
			return { cell, leaf: known, bundle };
		});
		for (const [name, connect, reasons] of judges) {
			const before = await gateway.metric(REFUSALS);
			const clients = await connect(gateway.url, ofClients);
			// It only hangs up, for which clients have many words; but it counts.
			const refused = clients.filter((error) => error !== "ok").length;
			await counted(gateway, before + refused);
			const server = await connect(gateway.url, ofServer);
			tables.set(name, {
				...tables.get(name),
				...table(
					ofClients.map(({ cell }) => cell),
					(_, index) => clients[index] === "ok",
				),
				...table(
					ofServer.map(({ cell }) => cell),
					(_, index) => !refusedFor(reasons, server[index] ?? ""),
				),
			});
		}
	}
	for (const [name, found] of tables)
		expect([name, found]).toEqual([name, expected]);
	expect(tables.size).toBe(judges.length);
});

describe("any history of signers", () => {
	/** A CA, and which of the earlier ones has certified it. The first is certified by nobody. */
	const history = fc.array(
		fc.record({ anchor: fc.nat(), expired: fc.boolean() }),
		{ minLength: 2, maxLength: 5 },
	);

	/** Whether node:crypto finds a way from the leaf to a root, over what came with it or not. */
	function nodeVerify(chain: string, roots: string): boolean {
		const read = (pem: string) =>
			parseCertificates(pem).map((facts) => new X509Certificate(facts.pem));
		const [leaf, ...others] = read(chain);
		const anchors = read(roots);
		const alive = (one: X509Certificate) =>
			Date.parse(one.validFrom) <= NOW && NOW <= Date.parse(one.validTo);
		const signed = (one: X509Certificate, issuer: X509Certificate) =>
			alive(issuer) && one.checkIssued(issuer) && one.verify(issuer.publicKey);
		const leads = (one: X509Certificate | undefined): boolean =>
			one !== undefined &&
			alive(one) &&
			(anchors.some((anchor) => signed(one, anchor)) ||
				others.some((other) => signed(one, other) && leads(other)));
		return leads(leaf);
	}

	test("a chain is accepted under the bundles with its signer, or with the one that certified it, if that has not expired", async () => {
		const [chainFile, rootsFile] = ["history.crt", "history-roots.crt"].map(
			(name) => join(plane.dir, name),
		) as [string, string];
		const seen = { accepted: 0, refused: 0 };
		const judge = async (
			generations: { anchor: number; expired: boolean }[],
			chosen: number,
			subset: number,
		) => {
			const signer = chosen % generations.length;
			const validities = generations.map(
				({ expired }, index): Validity => ({
					notBefore: NOW - (10 - index) * DAY,
					notAfter:
						expired && index !== signer ? NOW - HOUR : NOW + (10 - index) * DAY,
				}),
			);
			const authorities = await Promise.all(
				validities.map((validity, index) =>
					issueCA({
						commonName: `CA ${index}`,
						organization: "tenant",
						validity,
					}),
				),
			);
			const at = <T>(list: T[], index: number) => list[index] as T;
			const own = at(validities, signer);
			const leaf = await newLeaf("client", at(authorities, signer), own);
			const anchor = signer === 0 ? 0 : at(generations, signer).anchor % signer;
			const cross =
				signer === 0
					? ""
					: await crossSign({
							signer: at(authorities, anchor),
							subject: at(authorities, signer).certificate,
							validity: {
								notBefore: own.notBefore,
								notAfter: Math.min(
									own.notAfter,
									at(validities, anchor).notAfter,
								),
							},
						});
			const chain = leaf.certificate + cross;
			await writeFile(chainFile, chain);
			const all = generations.map((_, index) => index);
			const mask = 1 + (subset % (2 ** all.length - 1));
			for (const bundle of [
				[signer],
				[anchor],
				all.filter((index) => mask & (1 << index)),
			]) {
				const roots = bundle
					.map((index) => at(authorities, index).certificate)
					.join("");
				await writeFile(rootsFile, roots);
				const rule = bundle.some(
					(index) =>
						(index === signer || index === anchor) &&
						NOW <= at(validities, index).notAfter,
				);
				const error = await opensslVerify(chainFile, rootsFile, "client");
				expect(!refusedFor(OPENSSL_REFUSES, error)).toBe(rule);
				expect(nodeVerify(chain, roots)).toBe(rule);
				seen[verdict(rule)]++;
			}
		};
		await fc.assert(fc.asyncProperty(history, fc.nat(), fc.nat(), judge), {
			numRuns: 40,
		});
		expect(Math.min(seen.accepted, seen.refused)).toBeGreaterThan(0);
	});
});
