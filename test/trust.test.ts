import { expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import {
	type CertificateFacts,
	crossSign,
	issueCA,
	issueLeaf,
	type KeyPair,
	parseCertificates,
	type Validity,
} from "../pki.ts";
import { generationOf } from "../signers.ts";
import {
	acceptedUntil,
	breaks,
	issuerOf,
	knownToAll,
	type Presented,
	type Verifier,
} from "../trust.ts";

const DAY = 86_400_000;
const NOW = Date.UTC(2026, 10, 23, 12);
const days = (from: number, until: number): Validity => ({
	notBefore: NOW + from * DAY,
	notAfter: NOW + until * DAY,
});
const within = (a: Validity, b: Validity): Validity => ({
	notBefore: Math.max(a.notBefore, b.notBefore),
	notAfter: Math.min(a.notAfter, b.notAfter),
});
const first = (pem: string) => parseCertificates(pem)[0] as CertificateFacts;

interface CA {
	pair: KeyPair;
	facts: CertificateFacts;
	/** By its predecessor. */
	cross?: CertificateFacts;
}

async function makeCA(validity: Validity, by?: CA): Promise<CA> {
	const pair = await issueCA({
		commonName: "etcd serving CA",
		organization: "x",
		validity,
	});
	const ca: CA = { pair, facts: first(pair.certificate) };
	if (by)
		ca.cross = first(
			await crossSign({
				signer: by.pair,
				subject: pair.certificate,
				validity: within(by.facts, validity),
			}),
		);
	return ca;
}

async function makeLeaf(
	{ pair, facts }: CA,
	validity: Validity,
	usage: "serverAuth" | "clientAuth" = "serverAuth",
): Promise<CertificateFacts> {
	const leaf = await issueLeaf({
		signer: pair,
		commonName: "etcd-x",
		usage,
		dnsNames: ["etcd-x"],
		validity: within(validity, facts),
	});
	return first(leaf.certificate);
}

/** Whether OpenSSL accepts a chain at an instant. */
function accepted(
	chain: CertificateFacts[],
	trusted: CertificateFacts[],
	at: number,
): boolean {
	const dir = mkdtempSync(join(tmpdir(), "trust-test-"));
	const text = (list: CertificateFacts[]) =>
		list.map(({ pem }) => pem).join("");
	try {
		writeFileSync(join(dir, "bundle"), text(trusted));
		writeFileSync(join(dir, "chain"), text(chain));
		const args = ["-x509_strict", "-purpose", "sslserver"];
		const time = ["-attime", `${Math.floor(at / 1000)}`];
		const files = ["-CAfile", "bundle", "-untrusted", "chain", "chain"];
		return Bun.spawnSync(["openssl", "verify", ...args, ...time, ...files], {
			cwd: dir,
		}).success;
	} finally {
		rmSync(dir, { recursive: true });
	}
}

test("the end of a chain's acceptance is the instant at which OpenSSL begins to refuse it", async () => {
	let ended = 0;
	let refused = 0;
	const begin = fc.integer({ min: -40, max: 3 });
	const life = fc.integer({ min: 1, max: 80 });
	const dates = fc.tuple(begin, life);
	await fc.assert(
		fc.asyncProperty(
			// Three generations, of which the older ones end first, as their validities have it.
			fc.array(dates, { minLength: 3, maxLength: 3 }),
			fc.integer({ min: 0, max: 2 }),
			dates,
			fc.subarray([1, 2]),
			fc.subarray([0, 1, 2], { minLength: 1 }),
			fc.nat(),
			async (all, by, leafDates, crosses, roots, instant) => {
				const cas: CA[] = [];
				const sorted = all
					.map(([from, length]) => days(from, from + length))
					.sort((a, b) => a.notAfter - b.notAfter);
				for (const validity of sorted) {
					const before = cas.at(-1);
					const overlap =
						before &&
						within(before.facts, validity).notBefore <
							within(before.facts, validity).notAfter;
					cas.push(await makeCA(validity, overlap ? before : undefined));
				}
				const signer = cas[by] as CA;
				const [from, length] = leafDates;
				const wanted = within(days(from, from + length), signer.facts);
				const leaf = await makeLeaf(
					signer,
					wanted.notBefore < wanted.notAfter ? wanted : signer.facts,
				);
				const chain = [
					leaf,
					...crosses.flatMap((index) => cas[index]?.cross ?? []),
				];
				const trusted = roots.map((index) => (cas[index] as CA).facts);
				const end = acceptedUntil(chain, trusted, NOW);
				expect(accepted(chain, trusted, NOW)).toBe(end.at > NOW);
				if (end.at <= NOW) {
					refused++;
					return;
				}
				ended++;
				expect(end.by?.notAfter).toBe(end.at);
				const between = NOW + (instant % (end.at - NOW));
				for (const [at, ok] of [
					[between, true],
					[end.at - 1000, true],
					[end.at + 1000, false],
				] as const)
					expect([at, accepted(chain, trusted, at)]).toEqual([at, ok]);
			},
		),
		{ numRuns: 40 },
	);
	expect(ended).toBeGreaterThan(0);
	expect(refused).toBeGreaterThan(0);
}, 120_000);

test("over two cross-certificates leads no way, for theirs is a path length of 0", async () => {
	const oldest = await makeCA(days(-10, 20));
	const old = await makeCA(days(-10, 20), oldest);
	const ca = await makeCA(days(-10, 20), old);
	const leaf = await makeLeaf(ca, days(-10, 10));
	const crosses = [old.cross, ca.cross] as CertificateFacts[];
	const chain = [leaf, ...crosses];
	expect(acceptedUntil(chain, [oldest.facts], NOW)).toEqual({
		at: NOW,
	});
	expect(accepted(chain, [oldest.facts], NOW)).toBe(false);
});

test("a chain whose certificate of one way begins where that of another ends is accepted throughout", async () => {
	const old = await makeCA(days(-10, 20));
	const young = await makeCA(days(10, 40), old);
	const leaf = await makeLeaf(young, days(10, 30));
	const early = { ...leaf, ...days(-10, 30) };
	const self = { ...young.facts, ...days(15, 40) };
	const cross = { ...young.cross, ...days(-10, 20) } as CertificateFacts;
	expect(acceptedUntil([early, cross], [old.facts, self], NOW)).toEqual({
		at: NOW + 30 * DAY,
		by: early,
	});
	const late = { ...young.facts, ...days(21, 40) };
	expect(acceptedUntil([early, cross], [old.facts, late], NOW)).toEqual({
		at: NOW + 20 * DAY,
		by: cross,
	});
});

test("an issuer is shown by its generation, one that is not of ours by its name", async () => {
	const { pair, facts } = await makeCA(days(-1, 1));
	expect(issuerOf(facts)).toBe(generationOf(facts));
	// Of 2018: the end is a time.
	const issuer = "CN=etcd-x.ns.svc-server-signer-1533000000";
	expect(issuerOf({ ...first(pair.certificate), issuer })).toBe(issuer);
});

test("a certificate that only bears the name of its CA is accepted by nobody", async () => {
	const ca = await makeCA(days(-10, 20));
	const leaf = await makeLeaf(ca, days(-10, 10));
	const other = await makeCA(days(-10, 20));
	const { subject } = ca.facts;
	expect(acceptedUntil([leaf], [{ ...other.facts, subject }], NOW)).toEqual({
		at: NOW,
	});
	expect(acceptedUntil([leaf], [ca.facts], NOW).by).toEqual(leaf);
});

test("what breaks when is told once for all whom it hits, the earliest first", async () => {
	const old = await makeCA(days(-20, 20));
	const ca = await makeCA(days(-5, 60), old);
	const clientCA = await makeCA(days(-5, 60));
	const server = await makeLeaf(ca, days(-5, 40));
	const expired = await makeLeaf(clientCA, days(-5, -1), "clientAuth");
	const alive = await makeLeaf(clientCA, days(-5, 30), "clientAuth");
	const cross = ca.cross as CertificateFacts;
	const [generation, former] = [ca.facts, old.facts].map(generationOf);
	const presented: Presented[] = [
		{ id: "server", domain: "serving", chain: [server, cross] },
		{ id: "client/a/cert", domain: "client", chain: [expired] },
		{ id: "client/b/cert", domain: "client", chain: [alive] },
		{
			id: "client/c/cert",
			domain: "client",
			chain: [],
			trouble: "is not there",
		},
	];
	const verifiers: Verifier[] = [
		{ domain: "serving", who: "Deployment a/one", trusted: [old.facts] },
		{ domain: "serving", who: "Deployment b/two", trusted: [old.facts] },
		{
			domain: "serving",
			who: "API servers that start with ConfigMap a/ca",
			trusted: [old.facts, ca.facts],
		},
		{
			domain: "serving",
			who: "API servers that start with ConfigMap b/ca",
			trusted: [],
		},
		{ domain: "client", who: "Pod s/p-1", trusted: [clientCA.facts] },
		{ domain: "client", who: "Pod s/p-2", trusted: [clientCA.facts] },
	];
	const found = breaks(presented, verifiers, NOW);
	expect(
		found.map(({ at, already, message }) => [
			(at - NOW) / DAY,
			already,
			message,
		]),
	).toEqual([
		[-1, true, "client/a/cert has expired: it is refused by every proxy"],
		[
			0,
			true,
			"server is certified by no CA that is trusted: the endpoint is refused by API servers that start with ConfigMap b/ca",
		],
		[
			0,
			true,
			"client/c/cert is not there: API servers that start cannot connect",
		],
		[
			20,
			false,
			`the cross-certificate of CA ${generation} by CA ${former} ends: the endpoint is refused by Deployment a/one; Deployment b/two`,
		],
		[30, false, "client/b/cert expires: it is refused by every proxy"],
		[40, false, "server expires: the endpoint is refused by every API server"],
	]);
	expect(found.map((one) => [one.certificates, one.refusedBy])).toEqual([
		[["client/a/cert"], ["every proxy"]],
		[["server"], ["API servers that start with ConfigMap b/ca"]],
		[["client/c/cert"], []],
		[["server"], ["Deployment a/one", "Deployment b/two"]],
		[["client/b/cert"], ["every proxy"]],
		[["server"], ["every API server"]],
	]);
});

test("of several certificates that one date ends, all are named", async () => {
	const old = await makeCA(days(-20, 20));
	const ca = await makeCA(days(-5, 60), old);
	const cross = ca.cross as CertificateFacts;
	const leaves = await Promise.all(
		[50, 55].map((until) => makeLeaf(ca, days(-5, until), "clientAuth")),
	);
	const presented = leaves.map(
		(leaf, index): Presented => ({
			id: `client/a/${index}`,
			domain: "client",
			chain: [leaf, cross],
		}),
	);
	const who: Verifier = {
		domain: "client",
		who: "Pod s/p-1, not known to have loaded the present bundle",
		trusted: [old.facts],
	};
	expect(breaks(presented, [who], NOW)).toEqual([
		{
			at: NOW + 20 * DAY,
			already: false,
			domain: "client",
			certificates: ["client/a/0", "client/a/1"],
			refusedBy: [who.who],
			message: `the cross-certificate of CA ${generationOf(cross)} by CA ${generationOf(old.facts)} ends: client/a/0, client/a/1 are refused by ${who.who}`,
		},
	]);
});

test("a certificate that is not valid yet is refused now", async () => {
	const ca = await makeCA(days(-5, 60));
	const leaf = await makeLeaf(ca, days(1, 40));
	const who: Verifier = {
		domain: "serving",
		who: "Deployment a/one",
		trusted: [ca.facts],
	};
	expect(
		breaks([{ id: "server", domain: "serving", chain: [leaf] }], [who], NOW),
	).toMatchObject([
		{
			at: NOW,
			already: true,
			message:
				"server is not valid yet: the endpoint is refused by every API server",
		},
	]);
});

test("everybody is known to trust the newest CA whose spread is confirmed, and no younger one", async () => {
	const [old, ca, next] = await Promise.all([
		makeCA(days(-20, 20)),
		makeCA(days(-5, 60)),
		makeCA(days(0, 60)),
	]);
	const authority = ({ pair, facts }: CA) => ({
		pair,
		facts,
		keyMatches: true,
	});
	const trusted = [old, ca, next].map((one) => one.facts);
	const missing = { missing: true } as const;
	const signers = { trusted, answered: {}, next: missing };
	const current = authority(ca);
	const names = (list: CertificateFacts[]) => list.map(generationOf);
	const [oldName = "", name = ""] = names(trusted);
	expect(names(knownToAll({ ...signers, current }))).toEqual([name]);
	expect(
		names(knownToAll({ ...signers, current, next: authority(next) })),
	).toEqual([name]);
	expect(
		names(knownToAll({ ...signers, current, previous: { facts: old.facts } })),
	).toEqual([oldName]);
	// Nobody knows what it has replaced.
	expect(
		knownToAll({ ...signers, current, previous: { facts: ca.facts } }),
	).toEqual([]);
	// The current one is lost.
	expect(
		names(knownToAll({ ...signers, current: missing, next: authority(next) })),
	).toEqual([oldName, name]);
});
