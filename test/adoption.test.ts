/** Which objects belong to an EtcdStorage, and which of those that nobody owns may: as the Go controller left them. */
import { beforeAll, describe, expect, test } from "bun:test";
import { isOwnedBy } from "../adoption.ts";
import { provenCAs, withoutUnused } from "../certificates.ts";
import type { EtcdStorage } from "../etcdstorage.ts";
import type { KubeObject } from "../kube.ts";
import type { Data } from "../manifests.ts";
import { parseCertificates } from "../pki.ts";
import { nameTaken } from "../problems.ts";
import { base64 } from "./client.ts";
import { etcdStorage, type Json } from "./harness.ts";
import * as predecessor from "./predecessor.ts";

const DAY = 86_400_000;
const NAME = "sample";
const dates = { issued: Date.now() - 20 * DAY, expires: Date.now() + 10 * DAY };
const storage = (name = NAME) => {
	const { metadata, ...rest } = etcdStorage(name, "api") as EtcdStorage;
	return { ...rest, metadata: { ...metadata, uid: "1" } } as EtcdStorage;
};

let material: predecessor.Material;
/** Without owners. */
let left: Record<string, Json>;
beforeAll(async () => {
	material = await predecessor.material(NAME, dates, 70);
	left = Object.fromEntries(
		predecessor
			.objects(NAME, "1", { material, ownerless: true })
			.map((object) => [(object as KubeObject).kind, object]),
	);
}, 60_000);

describe("an object without an owner", () => {
	/** As it was left, with something changed. */
	const changed = (kind: string, change: (object: Json) => void) => {
		const object = structuredClone(left[kind]);
		change(object);
		return object as KubeObject;
	};
	test.each(["ConfigMap", "Secret", "Service", "Deployment"])(
		"that the Go controller made (%s) may be adopted by its very EtcdStorage, and by no other",
		(kind) => {
			const object = changed(kind, () => {});
			expect(isOwnedBy(object, storage())).toBe(true);
			expect(isOwnedBy(object, storage("other"))).toBe(false);
		},
	);

	test.each<[string, string, (object: Json) => void]>([
		[
			...(["ConfigMap", "without CAs"] as const),
			(one) => {
				one.data = { a: "b" };
			},
		],
		[
			...(["ConfigMap", "with another CA"] as const),
			(one) => {
				one.data["client-ca.crt"] = material.servingCA;
			},
		],
		[
			...(["ConfigMap", "with junk"] as const),
			(one) => {
				one.data["client-ca.crt"] = "junk";
			},
		],
		[
			...(["ConfigMap", "of another namespace's controller"] as const),
			(one) => {
				one.metadata.namespace = "elsewhere";
			},
		],
		[
			...(["Secret", "with another certificate"] as const),
			(one) => {
				one.data["tls.crt"] = base64(material.client);
			},
		],
		[
			...(["Secret", "with its annotations alone"] as const),
			(one) => {
				one.data = {};
			},
		],
		[
			...(["Secret", "in the place of a signer"] as const),
			(one) => {
				one.metadata.name = `${NAME}-serving-signer`;
			},
		],
		[
			...(["Service", "that selects other pods, too"] as const),
			(one) => {
				one.spec.selector = {};
			},
		],
		[
			...(["Service", "that selects fewer"] as const),
			(one) => {
				one.spec.selector.more = "yes";
			},
		],
		[
			...(["Service", "of another port"] as const),
			(one) => {
				one.spec.ports.push({ port: 80 });
			},
		],
		[
			...(["Deployment", "of other pods"] as const),
			(one) => {
				one.spec.selector.matchLabels = { app: NAME };
			},
		],
		[
			...(["Deployment", "of another program"] as const),
			(one) => {
				one.spec.template.spec.containers[0].command = ["/bin/etcd"];
			},
		],
		[
			...(["Deployment", "with another prefix"] as const),
			(one) => {
				one.spec.template.spec.containers[0].args = ["--namespace=/other/"];
			},
		],
		[
			...(["Deployment", "without a spec"] as const),
			(one) => {
				delete one.spec;
			},
		],
		[
			...(["Pod", "of whatever kind"] as const),
			(one) => {
				one.kind = "Pod";
			},
		],
	])("(%s %s) is foreign, until it carries our label", (kind, _, change) => {
		const object = changed(kind === "Pod" ? "Service" : kind, change);
		expect(isOwnedBy(object, storage())).toBe(false);
		const label = (name: string) => ({
			...object,
			metadata: {
				...object.metadata,
				labels: { "etcd.xmudrii.com/etcdstorage": name },
			},
		});
		expect(isOwnedBy(label(NAME), storage())).toBe(true);
		expect(isOwnedBy(label("other"), storage())).toBe(false);
	});

	test("that has another owner is foreign, whatever else it has", () => {
		const object = changed("ConfigMap", ({ metadata }) => {
			metadata.labels = { "etcd.xmudrii.com/etcdstorage": NAME };
			metadata.ownerReferences = [
				{ apiVersion: "v1", kind: "Secret", name: NAME, uid: "1" },
			];
		});
		expect(isOwnedBy(object, storage())).toBe(false);
		// A label would not help.
		const message = (found: KubeObject) =>
			nameTaken("Deployed", storage(), found, "ConfigMap", "ns").message;
		expect(message(object)).not.toContain("label");
		expect(message(left.ConfigMap)).toContain(
			`kubectl -n ns label configmap ${NAME}-ca-cert etcd.xmudrii.com/etcdstorage=${NAME}`,
		);
	});
});

const secretOf = (pem: string): Data => ({
	...{ apiVersion: "v1", kind: "Secret", metadata: { name: "x" } },
	data: { "tls.crt": base64(pem) },
});
const subjects = (pem: string | undefined) =>
	pem ? parseCertificates(pem).map((one) => one.subject) : [];

describe("a serving CA whose key nobody has", () => {
	test("is known by the certificate that it has signed, wherever it lies", async () => {
		const [leaf = ""] = material.server.split(
			/(?<=-----END CERTIFICATE-----\n)/,
		);
		for (const secret of [left.Secret, secretOf(leaf)]) {
			const proven = await provenCAs(secret, [material.server]);
			expect(proven.map(({ pem }) => pem)).toEqual([material.servingCA]);
			expect(await provenCAs(secret, [])).toEqual([]);
		}
	});

	test("is not one of the same name that somebody has put into a target", async () => {
		const { servingCA: forged } = await predecessor.material(NAME, dates);
		expect(subjects(forged)).toEqual(subjects(material.servingCA));
		const proven = await provenCAs(left.Secret, [
			forged + material.unused,
			material.servingCA,
		]);
		expect(proven.map(({ pem }) => pem)).toEqual([material.servingCA]);
	}, 60_000);
});

describe("client CAs by the dozen", () => {
	const read = async (copy: Data | undefined, secrets?: Data[]) =>
		subjects((await withoutUnused(copy, secrets))?.data?.["client-ca.crt"]);

	test("are those that have signed what somebody has", async () => {
		expect(await read(left.ConfigMap, [secretOf(material.client)])).toEqual(
			subjects(material.clientCA),
		);
		expect(await read(left.ConfigMap, [])).toEqual([]);
		// What somebody has put into his own target is not among them.
		expect(await read(left.ConfigMap, [secretOf(material.server)])).toEqual([]);
	});

	test("are all, where it is not known what somebody has", async () => {
		expect(await read(left.ConfigMap, undefined)).toHaveLength(71);
	});

	test("are all, where there are no more than we could have made", async () => {
		const [...pems] = material.unused.split(/(?<=-----END CERTIFICATE-----\n)/);
		const few = {
			...left.ConfigMap,
			data: { "client-ca.crt": pems.slice(0, 64).join("") },
		};
		expect(await read(few, [])).toHaveLength(64);
		expect(await read(undefined, [])).toEqual([]);
	});
});
