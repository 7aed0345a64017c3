/**
 * What the watches have told: the objects of one kind, by name. Objects are replaced, never changed, so that their
 * identity can serve as a key for what was computed from them.
 */
import type { KubeObject } from "./kube.ts";

export class Cache<T extends KubeObject> {
	readonly #objects = new Map<string, T>();
	#newest = 0n;
	/** Whether the first complete list has arrived. */
	synced = false;

	get(name: string): T | undefined {
		return this.#objects.get(name);
	}

	values(): Iterable<T> {
		return this.#objects.values();
	}

	get size(): number {
		return this.#objects.size;
	}

	/** A complete list: what is not in it is gone. Returns the objects that came, changed or went. */
	replace(objects: T[]): T[] {
		const before = new Map(this.#objects);
		this.#objects.clear();
		const changed: T[] = [];
		for (const object of objects) {
			const old = before.get(object.metadata.name);
			before.delete(object.metadata.name);
			const same = old && version(old) === version(object);
			this.#objects.set(object.metadata.name, same ? old : object);
			if (!same) changed.push(object);
			this.#advance(object);
		}
		this.synced = true;
		return [...changed, ...before.values()];
	}

	/** One watch event. Returns false when it tells nothing new, as an event does that answers a write of our own. */
	event(type: "ADDED" | "MODIFIED" | "DELETED", object: T): boolean {
		const { name } = object.metadata;
		const known = this.#objects.get(name);
		this.#advance(object);
		if (type === "DELETED") {
			if (known && version(known) > version(object)) return false;
			return this.#objects.delete(name);
		}
		if (known && version(known) >= version(object)) return false;
		this.#objects.set(name, object);
		return true;
	}

	/**
	 * The answer to a write of our own, which the watch may bring only later. Older answers than what the watch has
	 * already told are dropped: the object may have changed or gone since.
	 */
	wrote(object: T): void {
		if (version(object) > this.#newest)
			this.#objects.set(object.metadata.name, object);
	}

	#advance(object: T): void {
		if (version(object) > this.#newest) this.#newest = version(object);
	}
}

/** Resource versions of one resource can be compared as numbers: https://kep.k8s.io/5504 */
const version = (object: KubeObject) =>
	BigInt(object.metadata.resourceVersion ?? "0");
