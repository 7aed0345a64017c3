/** What is taken back when an EtcdStorage goes, or no longer names a target. */
import {
	type EtcdStorage,
	readSpec,
	sameTarget,
	type TargetStatus,
} from "./etcdstorage.ts";
import { ApiError } from "./kube.ts";
import { FILLED_BY, withoutOurs } from "./manifests.ts";
import type { Context } from "./observe.ts";

export const FINALIZER = "etcd.xmudrii.com/targets";
/** A target that cannot be reached is given up this long after its EtcdStorage was deleted: deletion never hangs. */
const CLEANUP_PATIENCE = 5 * 60_000;

/** Takes back what was written into targets, then lets the EtcdStorage go. Its owned objects go with it, by their owner references. */
export async function finalize(
	storage: EtcdStorage,
	context: Context,
): Promise<void> {
	if (!storage.metadata.finalizers?.includes(FINALIZER)) return;
	const spec = readSpec(storage);
	const recorded = storage.status?.targets ?? [];
	const targets = [
		...recorded,
		...("targets" in spec ? spec.targets : []).filter(
			(target) => !recorded.some((other) => sameTarget(other, target)),
		),
	];
	const deadline =
		Date.parse(storage.metadata.deletionTimestamp ?? "") + CLEANUP_PATIENCE;
	for (const target of targets)
		await clean(storage, context, target, context.now() >= deadline);
	const { name } = storage.metadata;
	await context.event(storage, {
		type: "Normal",
		reason: "DataRetained",
		message: `the keys under /${name}/ stay in the core etcd; once nobody needs them: etcdctl del --prefix /${name}/`,
	});
	await setFinalizers(
		storage,
		context,
		storage.metadata.finalizers.filter((one) => one !== FINALIZER),
	);
}

/** Takes back what was written into a target. What a person must do instead, where that fails for good, is an event. */
export async function clean(
	storage: EtcdStorage,
	context: Context,
	target: TargetStatus,
	giveUp: boolean,
): Promise<void> {
	try {
		const live = await context.targets.read(target, 0);
		if (live?.metadata.annotations?.[FILLED_BY] !== storage.metadata.name)
			return;
		const ref = { ...target, apiVersion: live.apiVersion };
		await context.kube.patch(ref, withoutOurs(live), "merge");
		context.targets.forget(target);
	} catch (error) {
		if (!(error instanceof ApiError)) throw error;
		if (isTransient(error) && !giveUp) throw error;
		await context.event(storage, {
			type: "Warning",
			reason: "TargetCleanupFailed",
			message: `what was written into ${target.kind} ${target.namespace}/${target.name} could not be taken back; where it still is, remove it by hand: ${error.message}`,
		});
	}
}

const isTransient = (error: ApiError) =>
	error.code === 0 ||
	error.code === 409 ||
	error.code === 429 ||
	error.code >= 500;

export async function setFinalizers(
	storage: EtcdStorage,
	context: Context,
	finalizers: string[],
): Promise<void> {
	const { apiVersion, kind, metadata } = storage;
	const { name, uid, resourceVersion } = metadata;
	const patch = { metadata: { uid, resourceVersion, finalizers } };
	const written = await context.kube.patch<EtcdStorage>(
		{ apiVersion, kind, name },
		patch,
		"merge",
	);
	// With its last finalizer a deleted EtcdStorage is gone, whatever the answer shows. It is forgotten at once: its objects
	// go now, and whoever hears of that before the watch tells would finalize it again.
	const { deletionTimestamp, finalizers: left = [] } = written.metadata;
	if (deletionTimestamp && left.length === 0)
		context.storages.event("DELETED", written);
	else context.storages.wrote(written);
}
