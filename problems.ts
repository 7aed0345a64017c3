/**
 * What can be wrong around an EtcdStorage, as sentences that name the object and the way out. Pure.
 */

import {
	type EtcdStorage,
	readSpec,
	readStatus,
	sameTarget,
	type TargetStatus,
} from "./etcdstorage.ts";
import { domains } from "./lifetimes.ts";
import {
	type Data,
	type Environment,
	FILLED_BY,
	names,
	ownerOf,
	secretText,
} from "./manifests.ts";
import { type ApiError, type KubeObject, refText } from "./objects.ts";
import type { CertificateFacts } from "./pki.ts";
import type { Problem } from "./status.ts";
import { dataPlane } from "./workload.ts";

const certificatesProblem = (
	object: string,
	reason: string,
	message: string,
): Problem => ({
	condition: "CertificatesReady",
	object,
	reason,
	message,
	userError: true,
});

/** A certificate that waits for a signer: the former one is lost, and the next one not yet trusted by all. */
export const signerPending = (id: string): Problem =>
	certificatesProblem(
		id,
		"SignerPending",
		`${id} can be issued only once the new CA is trusted; what that waits for is told by the condition RotationBlocked and in status.certificates`,
	);

/** A spec that cannot be acted on keeps everything from being ready; what was deployed before stays as it is. */
export const invalidSpec = (message: string): Problem[] =>
	(["CertificatesReady", "Deployed"] as const).map((condition) => ({
		condition,
		reason: "InvalidSpec",
		message,
		userError: true,
	}));

/**
 * Why a target must not, or cannot, be filled.
 * @param found the object as read just now; undefined when it is not there
 * @param others every other EtcdStorage
 */
export function targetProblem(
	storage: EtcdStorage,
	environment: Environment,
	target: TargetStatus,
	found: Data | undefined,
	others: Iterable<EtcdStorage>,
): Problem | undefined {
	const what = refText(target);
	const kind = target.kind.toLowerCase();
	if (isOurOwn(environment, target, found))
		return certificatesProblem(
			what,
			"TargetIsOwn",
			`${what} belongs to etcdproxy-controller itself and is not overwritten; name another ${target.kind} in the EtcdStorage's spec`,
		);
	if (!found)
		return certificatesProblem(
			what,
			"TargetMissing",
			`${what} is not there; create it (and its namespace): kubectl -n ${target.namespace} create ${kind === "secret" ? "secret generic" : kind} ${target.name}`,
		);
	const claim = found.metadata.annotations?.[FILLED_BY];
	if (claim !== undefined && claim !== storage.metadata.name)
		for (const other of others)
			if (other.metadata.name === claim && claims(other, target))
				return certificatesProblem(
					what,
					"TargetTaken",
					`${what} is filled by EtcdStorage ${claim}; name another ${target.kind} here, or remove it there`,
				);
	return undefined;
}

function isOurOwn(
	environment: Environment,
	target: TargetStatus,
	found: Data | undefined,
): boolean {
	if (target.namespace !== environment.namespace) return false;
	const core =
		target.kind === "ConfigMap"
			? environment.coreCAConfigMap
			: environment.coreCertsSecret;
	return (
		target.name === core ||
		/-(ca-cert|server-cert|client-signer|serving-signer)$/.test(target.name) ||
		(found !== undefined && ownerOf(found) !== undefined)
	);
}

/** Whether an EtcdStorage claims the target: by its spec, or because it still has to take back what it wrote there. */
function claims(storage: EtcdStorage, target: TargetStatus): boolean {
	const spec = readSpec(storage);
	return [
		...("targets" in spec ? spec.targets : []),
		...(readStatus(storage).targets ?? []),
	].some((one) => sameTarget(one, target));
}

/** A target that exists but could not be read or written. */
export function targetError(
	target: TargetStatus,
	error: ApiError,
	immutable: boolean,
): Problem {
	const what = refText(target);
	const resource = `${target.kind.toLowerCase()}s`;
	if (error.code === 403)
		return certificatesProblem(
			what,
			"TargetForbidden",
			`${what} may not be read and written by etcdproxy-controller; create the namespace if it is not there (kubectl create namespace ${target.namespace}) and grant get, patch on it: kubectl -n ${target.namespace} create role etcdproxy-${target.name} --verb=get,patch --resource=${resource} --resource-name=${target.name}, and a rolebinding to its ServiceAccount. (${error.message})`,
		);
	if (immutable)
		return certificatesProblem(
			what,
			"TargetImmutable",
			`${what} is immutable and cannot be filled; delete it and create it again without "immutable: true": kubectl -n ${target.namespace} delete ${target.kind.toLowerCase()} ${target.name}`,
		);
	if (error.code === 404)
		return certificatesProblem(what, "TargetMissing", `${what} has just gone`);
	if (error.code === 422 || error.code === 400)
		return certificatesProblem(
			what,
			"TargetRefused",
			`${what} cannot be filled: ${error.message}`,
		);
	return {
		condition: "CertificatesReady",
		object: what,
		reason: "TargetUnreachable",
		message: `${what} could not be read or written: ${error.message}`,
		userError: false,
	};
}

/** An object of ours that could not be written. */
export const writeError = (
	condition: Problem["condition"],
	object: KubeObject,
	error: ApiError,
): Problem => ({
	condition,
	object: refText({ ...object, ...object.metadata }),
	reason: "FailedDeploying",
	message: error.message,
	userError: false,
});

/** An object of ours that somebody has frozen. To take a signer's place would lose its key, so that is for a person to do. */
export function frozen(
	condition: Problem["condition"],
	object: KubeObject,
): Problem {
	const { kind, metadata } = object;
	const what = refText({ kind, ...metadata });
	return {
		condition,
		object: what,
		reason: "ObjectImmutable",
		message: `${what} is immutable and cannot be kept up to date; delete it, and it is made again: kubectl -n ${metadata.namespace} delete ${kind.toLowerCase()} ${metadata.name}`,
		userError: true,
	};
}

/** An object of somebody else in the place of one of ours. It is neither adopted nor deleted. */
export function nameTaken(
	condition: Problem["condition"],
	storage: EtcdStorage,
	found: KubeObject,
	kind: string,
	namespace: string,
): Problem {
	const { name } = found.metadata;
	const what = refText({ kind, namespace, name });
	// The garbage collector is about to remove it: https://kubernetes.io/docs/concepts/architecture/garbage-collection/
	if (ownerOf(found) === storage.metadata.name)
		return {
			condition,
			object: what,
			reason: "PredecessorNotGone",
			message: `${what} still belongs to a deleted EtcdStorage of the same name and goes with it`,
			userError: false,
		};
	// What is in a ConfigMap or a Secret of ours is what we trust, and sign with: nobody should give us another's signer.
	const isSigner = domains.some(
		(domain) => name === names.signer(storage.metadata.name, domain),
	);
	const consequence = ["ConfigMap", "Secret"].includes(kind)
		? "if the certificates in it are to be trusted"
		: "to be overwritten";
	const handOver =
		found.metadata.ownerReferences?.length || isSigner
			? ""
			: `, hand it over ${consequence} (kubectl -n ${namespace} label ${kind.toLowerCase()} ${name} ${FILLED_BY}=${storage.metadata.name})`;
	return {
		condition,
		object: what,
		reason: "NameTaken",
		message: `${what} is there but does not belong to EtcdStorage ${storage.metadata.name}; delete it if nobody needs it (kubectl -n ${namespace} delete ${kind.toLowerCase()} ${name})${handOver}, or create the EtcdStorage under another name`,
		userError: true,
	};
}

/** The core etcd's credentials as they lie in the controller's namespace; absent where the object is. */
export interface CoreCredentials {
	ca?: {
		object: Data;
		certificates: CertificateFacts[] | { unreadable: string };
	};
	client?: {
		object: Data;
		certificate:
			| { facts: CertificateFacts; keyMatches: boolean }
			| { unreadable: string };
	};
}

/** What is wrong with the core etcd's credentials, found before pods crash over it. */
export function coreProblem(
	environment: Environment,
	core: CoreCredentials,
	now: number,
): Problem | undefined {
	const { namespace } = environment;
	const ca = `ConfigMap ${namespace}/${environment.coreCAConfigMap}`;
	const secret = `Secret ${namespace}/${environment.coreCertsSecret}`;
	const problem = (reason: string, message: string): Problem => ({
		condition: "Deployed",
		reason,
		message,
		userError: true,
	});
	const createCA = `kubectl -n ${namespace} create configmap ${environment.coreCAConfigMap} --from-file=ca.crt`;
	const createSecret = `kubectl -n ${namespace} create secret tls ${environment.coreCertsSecret} --cert=client.crt --key=client.key`;

	if (!core.ca)
		return problem(
			"CoreCredentialsMissing",
			`${ca} with the core etcd's CA is not there; create it: ${createCA}`,
		);
	if (core.ca.object.data?.["ca.crt"] === undefined)
		return problem(
			"CoreCredentialsInvalid",
			`${ca} has no key ca.crt; create it again: ${createCA}`,
		);
	const authorities = core.ca.certificates;
	if ("unreadable" in authorities)
		return problem(
			"CoreCredentialsInvalid",
			`${ca}, key ca.crt, is unreadable (${authorities.unreadable}); put the core etcd's CA there, PEM`,
		);
	if (authorities.every((one) => one.notAfter <= now))
		return problem(
			"CoreCredentialsExpired",
			`${ca}, key ca.crt, has expired; put the core etcd's present CA there`,
		);

	if (!core.client)
		return problem(
			"CoreCredentialsMissing",
			`${secret} with the client certificate for the core etcd is not there; create it: ${createSecret}`,
		);
	for (const key of ["tls.crt", "tls.key"])
		if (!secretText(core.client.object, key))
			return problem(
				"CoreCredentialsInvalid",
				`${secret} has no key ${key}; create it again: ${createSecret}`,
			);
	const { certificate } = core.client;
	if ("unreadable" in certificate)
		return problem(
			"CoreCredentialsInvalid",
			`${secret} is unreadable (${certificate.unreadable}); create it again: ${createSecret}`,
		);
	const { facts, keyMatches } = certificate;
	if (!keyMatches)
		return problem(
			"CoreCredentialsInvalid",
			`${secret}: tls.key does not belong to tls.crt; create it again: ${createSecret}`,
		);
	if (facts.notAfter <= now)
		return problem(
			"CoreCredentialsExpired",
			`${secret}: tls.crt expired at ${new Date(facts.notAfter).toISOString()}; issue another client certificate from the core etcd's CA`,
		);
	// https://github.com/etcd-io/etcd/issues/11970
	if (facts.commonName !== "" && dataPlane(environment.proxyImage) === "etcd")
		return problem(
			"CoreCredentialsInvalid",
			`${secret}: tls.crt has the Common Name "${facts.commonName}", and etcd grpc-proxy refuses to start with a client certificate that has one; issue one without (openssl req -subj "/O=etcdproxy"), or let the proxies be gateways (see --etcd-proxy-image)`,
		);
	return undefined;
}
