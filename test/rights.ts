/** What the controller may, by a manifest, against what it has done, by the audit log. */
import type { AuditedRequest } from "./audit.ts";

interface Role {
	kind: string;
	metadata: { name: string };
	rules: { apiGroups: string[]; resources: string[]; verbs: string[] }[];
}

/**
 * @param manifest any objects
 * @returns a line for each verb on a resource: `ClusterRole NAME: watch etcdstorages.etcd.xmudrii.com`
 */
export const granted = (manifest: { kind: string }[]): string[] =>
	manifest
		.filter((one): one is Role => /^(Cluster)?Role$/.test(one.kind))
		.flatMap(({ kind, metadata, rules }) =>
			rules.flatMap(({ apiGroups, resources, verbs }) =>
				apiGroups.flatMap((apiGroup) =>
					resources.flatMap((resource) =>
						verbs.map((verb) =>
							right(`${kind} ${metadata.name}`, verb, resource, apiGroup),
						),
					),
				),
			),
		);

/** The rights, in such lines, by which requests were allowed. */
export const used = (requests: AuditedRequest[]): Set<string> =>
	new Set(
		requests.flatMap(({ verb, resource, apiGroup, reason, code }) => {
			const [, kind, name] = / of (\w+) "([^"]+)" to /.exec(reason) ?? [];
			// To apply what is not there takes the right to create it, too.
			const verbs =
				verb === "patch" && code === 201 ? [verb, "create"] : [verb];
			return verbs.map((one) =>
				right(`${kind} ${name}`, one, resource, apiGroup),
			);
		}),
	);

const right = (
	role: string,
	verb: string,
	resource: string,
	apiGroup: string,
) => `${role}: ${verb} ${resource}${apiGroup && `.${apiGroup}`}`;
