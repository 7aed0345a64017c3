/** How objects are brought into being: what is not as it is to be is written, and what cannot be written is a problem. */
import { isOwnedBy } from "./adoption.ts";
import type { Cache } from "./cache.ts";
import { hasLeftovers, isSubset, takeOver } from "./drift.ts";
import type { EtcdStorage, TargetStatus } from "./etcdstorage.ts";
import { ApiError, type KubeObject, refText } from "./kube.ts";
import { type Data, FILLED_BY } from "./manifests.ts";
import { type Context, isAnswer } from "./observe.ts";
import { frozen, nameTaken, targetError, writeError } from "./problems.ts";
import type { Outcome, Problem } from "./status.ts";

/** Each of its methods tells whether the object is in place, and throws an ApiError where nothing is known about that. */
export class Writer {
	readonly #storage: EtcdStorage;
	readonly #context: Context;
	/** Gets what was written, and what could not be. */
	readonly #outcome: Pick<Outcome, "problems" | "written">;

	constructor(
		storage: EtcdStorage,
		context: Context,
		outcome: Pick<Outcome, "problems" | "written">,
	) {
		this.#storage = storage;
		this.#context = context;
		this.#outcome = outcome;
	}

	/** One of ours that is not there, as far as was seen: of two writers only one wins. */
	create(
		condition: Problem["condition"],
		desired: KubeObject,
	): Promise<boolean> {
		return this.#attempt(condition, desired, async () => {
			this.#cache(desired).wrote(await this.#context.kube.create(desired));
			this.#wrote(desired, "created");
		});
	}

	/**
	 * One of ours.
	 * @param desired with a resourceVersion where it must not have changed since
	 */
	async ensure(
		condition: Problem["condition"],
		desired: KubeObject,
	): Promise<boolean> {
		const { kube } = this.#context;
		const { name, namespace = "" } = desired.metadata;
		const cache = this.#cache(desired);
		const live = cache.get(name);
		if (live && !isOwnedBy(live, this.#storage)) {
			this.#outcome.problems.push(
				nameTaken(condition, this.#storage, live, desired.kind, namespace),
			);
			return false;
		}
		const inPlace =
			live !== undefined &&
			isSubset(withoutVersion(desired), live) &&
			!hasLeftovers(desired, live);
		if (inPlace && isApplied(live)) return true;
		if (live && (live as Data).immutable) {
			this.#outcome.problems.push(frozen(condition, desired));
			return false;
		}
		return this.#attempt(condition, desired, async () => {
			if (live) await this.#takeOver(desired, live, inPlace);
			cache.wrote(await kube.apply(desired));
			const adopted = live && !live.metadata.ownerReferences?.length;
			this.#wrote(
				desired,
				!live ? "created" : adopted ? "adopted" : "configured",
			);
		});
	}

	/** Makes those fields ours that an apply would else leave as they are. */
	async #takeOver(
		desired: KubeObject,
		live: KubeObject,
		inPlace: boolean,
	): Promise<void> {
		const { kube } = this.#context;
		const { apiVersion, kind, metadata } = desired;
		const { name, namespace = "", labels, ownerReferences } = metadata;
		let { managedFields = [], resourceVersion } = live.metadata;
		const written = (answer: KubeObject) => {
			({ managedFields = [], resourceVersion } = answer.metadata);
			// What had to be as observed was, and is newer now.
			if (metadata.resourceVersion && resourceVersion)
				metadata.resourceVersion = resourceVersion;
		};
		// It is older than any note of whose its fields are: with the first apply, the API server notes them.
		if (managedFields.length === 0)
			written(
				await kube.apply({
					...{ apiVersion, kind },
					metadata: {
						...{ name, namespace, labels, ownerReferences },
						resourceVersion: metadata.resourceVersion ?? resourceVersion,
					},
				} as KubeObject),
			);
		const value = takeOver(managedFields, !inPlace);
		if (!value) return;
		const version = metadata.resourceVersion ?? resourceVersion;
		written(
			await kube.patch(
				{ apiVersion, kind, name, namespace },
				[
					{ op: "replace", path: "/metadata/managedFields", value },
					{ op: "replace", path: "/metadata/resourceVersion", value: version },
				],
				"json",
			),
		);
	}

	/**
	 * A target: somebody else's, of which a part is ours.
	 * @param live as it was read
	 */
	async fill(
		target: TargetStatus,
		desired: Data,
		live: Data | undefined,
	): Promise<boolean> {
		const { targets, kube } = this.#context;
		if (isSubset(desired, live)) return true;
		// The first to claim a target gets it: the other one's read is outdated by then.
		const { annotations, resourceVersion } = live?.metadata ?? {};
		const claimed = annotations?.[FILLED_BY] === this.#storage.metadata.name;
		if (!claimed && resourceVersion)
			desired.metadata.resourceVersion = resourceVersion;
		try {
			targets.wrote(target, await kube.apply<Data>(desired));
			this.#wrote(desired, "configured");
			return true;
		} catch (error) {
			targets.forget(target);
			if (!isAnswer(error)) throw error;
			this.#outcome.problems.push(
				targetError(target, error, live?.immutable ?? false),
			);
			return false;
		}
	}

	#cache({ kind }: KubeObject): Cache<KubeObject> {
		const { owned } = this.#context;
		return owned[kind as keyof typeof owned];
	}

	/** What the API server refuses is a problem, and tried again. */
	async #attempt(
		condition: Problem["condition"],
		object: KubeObject,
		write: () => Promise<void>,
	): Promise<boolean> {
		this.#mustStay(object);
		try {
			await write();
			return true;
		} catch (error) {
			if (!isAnswer(error)) throw error;
			this.#outcome.problems.push(writeError(condition, object, error));
			return false;
		}
	}

	/**
	 * An object that was orphaned meanwhile (`kubectl delete --cascade=orphan`) would get its owner back, and go with it.
	 * @throws ApiError (409), which ends the visit, where the EtcdStorage is about to go
	 */
	#mustStay({ apiVersion, kind, metadata }: KubeObject): void {
		const { name, uid } = this.#storage.metadata;
		const now = this.#context.storages.get(name)?.metadata;
		if (now?.uid === uid && now?.deletionTimestamp === undefined) return;
		throw new ApiError(
			"apply",
			{ ...metadata, apiVersion, kind },
			{
				...{ code: 409, reason: "Conflict" },
				message: `EtcdStorage ${name} was deleted meanwhile`,
			},
		);
	}

	#wrote(object: KubeObject, how: "created" | "adopted" | "configured"): void {
		this.#outcome.written.push(
			`${refText({ ...object, ...object.metadata })} ${how}`,
		);
	}
}

/** Whether nobody but us has a say in its fields, as far as the API server has noted it. */
const isApplied = ({ metadata: { managedFields = [] } }: KubeObject) =>
	managedFields.length > 0 && takeOver(managedFields) === undefined;

function withoutVersion(object: KubeObject): KubeObject {
	const { resourceVersion: _, ...metadata } = object.metadata;
	return { ...object, metadata };
}
