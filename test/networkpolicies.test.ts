/** Who may reach whom, by the NetworkPolicies of the manifest: https://kubernetes.io/docs/concepts/services-networking/network-policies/ */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { type Json, NAMESPACE } from "./harness.ts";
import { manifest, manifestFile, objectsIn, one } from "./installation.ts";

/** A pod, or, without labels, somebody on the network of a node or outside of the cluster. */
interface Peer {
	address: string;
	namespace?: string;
	labels?: Record<string, string>;
}

const podLabels = (objects: Json[]): Record<string, string> =>
	one(objects, "Deployment").spec.template.metadata.labels;
const golden = join(import.meta.dir, "golden/workload.yaml");

const controller: Peer = {
	...{ address: "10.244.0.1", namespace: NAMESPACE },
	labels: podLabels(manifest()),
};
const gateway: Peer = {
	...{ address: "10.244.0.2", namespace: NAMESPACE },
	labels: podLabels(objectsIn(await Bun.file(golden).text())),
};
const apiServer: Peer = {
	...{ address: "10.244.0.3", namespace: "k8s-sample-apiserver" },
	labels: { app: "sample-apiserver" },
};
const core: Peer = {
	...{ address: "10.244.0.4", namespace: "etcd" },
	labels: { app: "etcd" },
};
const prometheus: Peer = {
	...{ address: "10.244.0.5", namespace: "monitoring" },
	labels: { app: "prometheus" },
};
const stranger: Peer = {
	address: "10.244.0.6",
	namespace: "default",
	labels: {},
};
const dns: Peer = {
	...{ address: "10.244.0.7", namespace: "kube-system" },
	labels: { "k8s-app": "kube-dns" },
};
const nodeCache: Peer = { address: "169.254.20.10" };
const controlPlane: Peer = { address: "192.0.2.1" };
const outside: Peer = { address: "198.51.100.1" };

const matches = ({ matchLabels = {}, matchExpressions = [] }: Json, on: Json) =>
	Object.entries(matchLabels).every(([key, value]) => on[key] === value) &&
	matchExpressions.every(({ key, operator }: Json) => {
		if (operator !== "Exists") throw new Error(`${operator} is not known here`);
		return key in on;
	});

/** IPv4 only. */
function within(address: string, cidr: string): boolean {
	const [network = "", bits] = cidr.split("/");
	const number = (text: string) =>
		text.split(".").reduce((all, part) => all * 256 + Number(part), 0);
	const size = 2 ** (32 - Number(bits));
	return (
		Math.floor(number(address) / size) === Math.floor(number(network) / size)
	);
}

/** Whether one end of a connection lets it be. */
function lets(
	policies: Json[],
	direction: "Ingress" | "Egress",
	own: Peer,
	other: Peer,
	port: number,
	protocol: string,
): boolean {
	const about = policies.filter(
		({ metadata, spec }) =>
			own.labels !== undefined &&
			metadata.namespace === own.namespace &&
			spec.policyTypes.includes(direction) &&
			matches(spec.podSelector, own.labels),
	);
	if (about.length === 0) return true;
	const [rules, peers] =
		direction === "Ingress" ? ["ingress", "from"] : ["egress", "to"];
	const isPeer = (namespace: string, peer: Json): boolean => {
		if (peer.ipBlock) return within(other.address, peer.ipBlock.cidr);
		if (other.labels === undefined) return false;
		const { podSelector = {}, namespaceSelector } = peer;
		return (
			matches(podSelector, other.labels) &&
			(namespaceSelector
				? matches(namespaceSelector, {
						"kubernetes.io/metadata.name": other.namespace,
					})
				: other.namespace === namespace)
		);
	};
	return about.some(({ metadata, spec }) =>
		(spec[rules] ?? []).some(
			(rule: Json) =>
				rule.ports.some(
					(one: Json) => one.port === port && one.protocol === protocol,
				) &&
				(rule[peers] === undefined ||
					rule[peers].some((peer: Json) => isPeer(metadata.namespace, peer))),
		),
	);
}

const allowed = (
	policies: Json[],
	from: Peer,
	to: Peer,
	port: number,
	protocol = "TCP",
) =>
	lets(policies, "Egress", from, to, port, protocol) &&
	lets(policies, "Ingress", to, from, port, protocol);

const policiesOf = (objects: Json[]) =>
	objects.filter(({ kind }) => kind === "NetworkPolicy");

const peers = {
	...{ controller, gateway, apiServer, core, prometheus, stranger },
	...{ dns, nodeCache, controlPlane, outside },
};
type Name = keyof typeof peers;

/** Everything that is let through, of all pairs with a controller or a gateway and all ports that anybody has. */
function through(policies: Json[]): string[] {
	const names = Object.keys(peers) as Name[];
	const doors = [53, 443, 2379, 2380, 2381, 6443, 8080, 8443, 10250]
		.map((port): [number, string] => [port, "TCP"])
		.concat([[53, "UDP"]], [[2379, "UDP"]]);
	return names.flatMap((from) =>
		names.flatMap((to) => {
			const own = [controller, gateway];
			if (![peers[from], peers[to]].some((one) => own.includes(one))) return [];
			const open = doors
				.filter(([port, protocol]) =>
					allowed(policies, peers[from], peers[to], port, protocol),
				)
				.map(([port, protocol]) => `${port}/${protocol}`);
			return open.length > 0 ? [`${from} -> ${to}: ${open.join(" ")}`] : [];
		}),
	);
}

const toCore = "53/TCP 2379/TCP 53/UDP";
const toApiServers = "53/TCP 443/TCP 6443/TCP 8443/TCP 53/UDP";

test("controllers and gateways reach, and are reached by, whom they have to, at these ports and no others", () => {
	expect(through(policiesOf(manifest()))).toEqual([
		// Neither has anything to say to the other: the controller asks gateways by way of the control plane.
		`controller -> apiServer: ${toApiServers}`,
		`controller -> core: ${toApiServers}`,
		`controller -> prometheus: ${toApiServers}`,
		`controller -> stranger: ${toApiServers}`,
		`controller -> dns: ${toApiServers}`,
		`controller -> nodeCache: ${toApiServers}`,
		`controller -> controlPlane: ${toApiServers}`,
		`controller -> outside: ${toApiServers}`,
		"gateway -> gateway: 2379/TCP",
		`gateway -> apiServer: ${toCore}`,
		`gateway -> core: ${toCore}`,
		`gateway -> prometheus: ${toCore}`,
		`gateway -> stranger: ${toCore}`,
		`gateway -> dns: ${toCore}`,
		`gateway -> nodeCache: ${toCore}`,
		`gateway -> controlPlane: ${toCore}`,
		`gateway -> outside: ${toCore}`,
		...["apiServer", "core", "prometheus", "stranger"].flatMap(inbound),
		...["dns", "nodeCache", "controlPlane", "outside"].flatMap(inbound),
	]);
});

const inbound = (who: string) => [
	`${who} -> controller: 8080/TCP`,
	`${who} -> gateway: 2379/TCP 2381/TCP`,
];

test("whoever else lives in the namespace is not theirs to restrict", () => {
	const policies = policiesOf(manifest());
	const lodger = { ...stranger, namespace: NAMESPACE };
	for (const other of Object.values(peers))
		for (const port of [53, 443, 2379, 2381, 8080]) {
			expect(lets(policies, "Egress", lodger, other, port, "TCP")).toBe(true);
			expect(lets(policies, "Ingress", lodger, other, port, "TCP")).toBe(true);
		}
});

describe("as the comments say it is tightened", () => {
	/** The manifest with the comments' examples put in: the n-th of each rule. */
	const tightened = (n: number) => {
		const text = readFileSync(manifestFile, "utf8").replace(
			/((?: +# {3}(?:to|from): .*\n)+)( +)- ports:\n/g,
			(_, comments: string, indent: string) => {
				const lines = comments.trimEnd().split("\n");
				const line = lines[Math.min(n, lines.length - 1)] ?? "";
				return `${indent}- ${line.replace(/^ +# +/, "")}\n${indent}  ports:\n`;
			},
		);
		return policiesOf(objectsIn(text));
	};
	test.each<[what: string, n: number, core: Name]>([
		["with members by their addresses", 0, "controlPlane"],
		["with members that are pods", 1, "core"],
	])(
		"(%s) only those are reached and let in that are named, and DNS",
		(_, n, member) => {
			const found = through(tightened(n)).filter(
				(line) => !/: (53.TCP )?53.UDP$/.test(line),
			);
			expect(found).toEqual([
				`controller -> controlPlane: ${toApiServers}`,
				`gateway -> ${member}: ${toCore}`,
				"apiServer -> gateway: 2379/TCP",
				"prometheus -> controller: 8080/TCP",
				"prometheus -> gateway: 2381/TCP",
				"controlPlane -> controller: 8080/TCP",
				"controlPlane -> gateway: 2381/TCP",
			]);
		},
	);
});
