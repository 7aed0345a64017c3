/** Targets live where nothing can be watched: they are read, and what was read is remembered for a while. */
import type { TargetStatus } from "./etcdstorage.ts";
import { type Kube, refText } from "./kube.ts";
import { type Data, emptyTarget } from "./manifests.ts";

export class TargetReader {
	readonly #kube: Kube;
	readonly #known = new Map<
		string,
		{ object: Data | undefined; readAt: number }
	>();

	constructor(kube: Kube) {
		this.#kube = kube;
	}

	/**
	 * @param maxAge milliseconds; what was read longer ago is read again
	 * @throws ApiError
	 */
	async read(target: TargetStatus, maxAge: number): Promise<Data | undefined> {
		const known = this.#known.get(refText(target));
		if (known && performance.now() - known.readAt < maxAge) return known.object;
		this.forget(target);
		const { apiVersion, kind } = emptyTarget(target);
		const { name, namespace } = target;
		const ref = { apiVersion, kind, name, namespace };
		const object = await this.#kube.get<Data>(ref);
		this.wrote(target, object);
		return object;
	}

	wrote(target: TargetStatus, object: Data | undefined): void {
		this.#known.set(refText(target), {
			object,
			readAt: performance.now(),
		});
	}

	forget(target: TargetStatus): void {
		this.#known.delete(refText(target));
	}
}
