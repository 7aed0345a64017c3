/** The API server for a dry run: read as it is, and never written to. */

import { ApiError, Kube, type KubeObject, type Ref, refText } from "./kube.ts";
import { type Data, FIELD_MANAGER } from "./manifests.ts";

/** A request that would have changed something. */
export interface Write {
	verb: "create" | "apply" | "patch";
	/** `Secret api/etcd-client-cert` */
	object: string;
}

/** As the API server calls the controller, whatever its namespace: artifacts/deployment. */
const CONTROLLER = /"system:serviceaccount:[^:"]+:etcdproxy-controller-sa"/;

/** What is written is noted, and answered about as it would be; but what another right or a webhook refuses is not known. */
export class DryKube extends Kube {
	/** In order. */
	writes: Write[] = [];
	readonly #immutable = new Set<string>();

	override async get<T extends KubeObject>(ref: Ref): Promise<T | undefined> {
		const found = await reading(super.get<T & Data>(ref));
		if (found?.immutable) this.#immutable.add(refText(ref));
		return found;
	}

	override list<T extends KubeObject>(
		...args: Parameters<Kube["list"]>
	): Promise<T[]> {
		return reading(super.list<T>(...args));
	}

	override podProxy<T>(...args: Parameters<Kube["podProxy"]>): Promise<T> {
		return reading(super.podProxy<T>(...args));
	}

	override create<T extends KubeObject>(object: T): Promise<T> {
		return this.#write("create", { ...object, ...object.metadata }, object);
	}

	override apply<T extends KubeObject>(object: T): Promise<T> {
		return this.#write("apply", { ...object, ...object.metadata }, object);
	}

	override patch<T extends KubeObject>(ref: Ref): Promise<T> {
		return this.#write("patch", ref, { ...ref, metadata: ref } as object as T);
	}

	async #write<T>(verb: Write["verb"], ref: Ref, answer: T): Promise<T> {
		const object = refText(ref);
		if (this.#immutable.has(object))
			throw new ApiError(verb, ref, {
				code: 422,
				reason: "Invalid",
				message: "field is immutable when `immutable` is set",
			});
		this.writes.push({ verb, object });
		return answer;
	}
}

/**
 * What the controller may not read is a fact like others; what somebody else may not read is not known.
 * @throws Error, no ApiError, which would be taken for the API server's word on the object
 */
async function reading<T>(answer: Promise<T>): Promise<T> {
	try {
		return await answer;
	} catch (cause) {
		const denied = cause instanceof ApiError && cause.reason === "Forbidden";
		if (!denied || CONTROLLER.test(cause.message)) throw cause;
		throw new Error(
			`${cause.message}; this takes the rights to read that ${FIELD_MANAGER} has`,
			{ cause },
		);
	}
}
