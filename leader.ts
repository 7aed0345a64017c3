/**
 * Leader election by a Lease, as https://kubernetes.io/docs/concepts/architecture/leases/ describes it. Clocks of
 * different machines are never compared: a lease is over when it has not changed for its duration by our own clock.
 */
import { ApiError, type Kube, type KubeObject } from "./kube.ts";

interface Lease extends KubeObject {
	spec?: {
		holderIdentity?: string;
		leaseDurationSeconds?: number;
		acquireTime?: string;
		renewTime?: string;
		leaseTransitions?: number;
	};
}

export interface ElectionOptions {
	namespace: string;
	name: string;
	/** Distinguishes this process from every other one, now and later. */
	identity: string;
	signal: AbortSignal;
	/** Told once for each other leader that is seen. */
	onLeader?(identity: string): void;
	/** Told of what keeps this candidate from leading, once; of undefined when it does no more. */
	onTrouble?(error: ApiError | undefined): void;
}

/** With what a candidate takes to notice, another leads within 15 s after a leader has died without a word. */
const LEASE_MS = 10_000;
const RETRY_MS = 2_000;
/** A leader that could not renew for this long stops, well before anybody else may take over. */
const RENEW_DEADLINE_MS = 8_000;
/** For the client that is used here: short enough to try again on another connection before the deadline, if soon. */
export const REQUEST_TIMEOUT_MS = 3_000;
const RETRY_FAILED_MS = 500;

/** Being the leader. */
export interface Leadership {
	/** Resolves with the reason when the lease could not be kept. */
	lost: Promise<string>;
	/**
	 * Whether this is the leader at this very moment. To be asked right before every write: a process that was paused, or
	 * whose event loop was blocked, goes on where it was, and its timers tell it only later that its time is up. What was
	 * handed over to be sent before that cannot be called back.
	 */
	holds(): boolean;
	/** Ends it, so that another replica takes over at once. Rejects with ApiError where the lease has to run out instead. */
	release(): Promise<void>;
}

/** Waits until this process leads. Resolves to undefined when the signal aborts first. */
export async function elect(
	kube: Kube,
	options: ElectionOptions,
): Promise<Leadership | undefined> {
	let seen = { version: "", at: 0, leader: "" };
	let trouble: ApiError | undefined;
	const tell = (error: ApiError | undefined) => {
		if (error?.message !== trouble?.message) options.onTrouble?.(error);
		trouble = error;
	};
	while (!options.signal.aborted) {
		let met: ApiError | undefined;
		const meet = (error: ApiError) => {
			// Another candidate was faster: nothing is wrong.
			if (error.code !== 409) met = error;
		};
		const lease = await attempt(
			() => kube.get<Lease>(reference(options)),
			meet,
		);
		if (lease) {
			const version = lease.metadata.resourceVersion ?? "";
			const leader = lease.spec?.holderIdentity ?? "";
			if (leader && leader !== seen.leader && leader !== options.identity)
				options.onLeader?.(leader);
			if (version !== seen.version)
				seen = { version, at: performance.now(), leader };
		}
		const free =
			!lease?.spec?.holderIdentity ||
			performance.now() - seen.at >
				(lease.spec.leaseDurationSeconds ?? 15) * 1000;
		if (free) {
			const asked = performance.now();
			const mine = await attempt(() => take(kube, options, lease), meet);
			if (mine) {
				tell(undefined);
				return keep(kube, options, mine, asked);
			}
		}
		tell(met);
		await pause(RETRY_MS, options.signal);
	}
	return undefined;
}

const reference = ({ namespace, name }: ElectionOptions) => ({
	apiVersion: "coordination.k8s.io/v1",
	kind: "Lease",
	namespace,
	name,
});

/** Kubernetes' MicroTime. */
const microTime = () => new Date().toISOString().replace("Z", "000Z");

/** The resource version makes sure that of two candidates only one gets it. */
function take(
	kube: Kube,
	options: ElectionOptions,
	old: Lease | undefined,
): Promise<Lease> {
	const spec = {
		holderIdentity: options.identity,
		leaseDurationSeconds: LEASE_MS / 1000,
		acquireTime: microTime(),
		renewTime: microTime(),
		leaseTransitions: (old?.spec?.leaseTransitions ?? -1) + 1,
	};
	const ref = reference(options);
	if (!old) {
		const { apiVersion, kind, ...metadata } = ref;
		return kube.create<Lease & KubeObject>({
			apiVersion,
			kind,
			metadata,
			spec,
		});
	}
	const { resourceVersion } = old.metadata;
	return kube.patch(ref, { metadata: { resourceVersion }, spec }, "merge");
}

/** @param asked when the lease was asked for, by performance.now(): from then on others count its time, or later */
function keep(
	kube: Kube,
	options: ElectionOptions,
	taken: Lease,
	asked: number,
): Leadership {
	const ref = reference(options);
	const over = new AbortController();
	const lost = Promise.withResolvers<string>();
	let version = taken.metadata.resourceVersion;
	let trouble = "no answer";
	let renewed = asked;
	const left = () => renewed + RENEW_DEADLINE_MS - performance.now();
	const end = (reason: string) => {
		over.abort();
		clearTimeout(deadline);
		lost.resolve(reason);
	};
	// A timer, since a request on a dead connection does not even fail in time.
	const giveUp = () =>
		end(`not renewed for ${RENEW_DEADLINE_MS / 1000}s: ${trouble}`);
	let deadline = setTimeout(giveUp, left());

	/** Resolves to the milliseconds until the next time. */
	const renew = async (): Promise<number> => {
		const now = performance.now();
		const patch = {
			metadata: { resourceVersion: version },
			// The duration as well: with one that somebody has made longer, others would wait for so long.
			spec: {
				renewTime: microTime(),
				leaseDurationSeconds: LEASE_MS / 1000,
			},
		};
		try {
			const lease = await kube.patch<Lease>(ref, patch, "merge");
			version = lease.metadata.resourceVersion;
			renewed = now;
			clearTimeout(deadline);
			if (!over.signal.aborted) deadline = setTimeout(giveUp, left());
			return RETRY_MS;
		} catch (error) {
			if (!(error instanceof ApiError)) throw error;
			trouble = error.message;
			if (error.code === 404) end("its Lease was deleted");
			// Not lost yet: it may be our own renewal, whose answer did not arrive, or somebody's label.
			if (error.code !== 409) return RETRY_FAILED_MS;
			const lease = await attempt(
				() => kube.get<Lease>(ref),
				(error) => {
					trouble = error.message;
				},
			);
			const leader = lease?.spec?.holderIdentity;
			if (lease && leader !== options.identity)
				end(`${leader || "nobody"} leads`);
			version = lease?.metadata.resourceVersion ?? version;
			return RETRY_FAILED_MS;
		}
	};
	const renewals = (async () => {
		let next = RETRY_MS;
		while (!over.signal.aborted) {
			await pause(next, over.signal);
			if (!over.signal.aborted) next = await renew();
		}
	})();
	return {
		lost: lost.promise,
		holds: () => !over.signal.aborted && left() > 0,
		async release() {
			end("released");
			await renewals;
			const patch = {
				metadata: { resourceVersion: version },
				spec: { holderIdentity: "", leaseDurationSeconds: 1 },
			};
			await kube.patch(ref, patch, "merge");
		},
	};
}

/** What fails is tried again by the caller. */
async function attempt<T>(
	request: () => Promise<T>,
	onError: (error: ApiError) => void,
): Promise<T | undefined> {
	try {
		return await request();
	} catch (error) {
		if (!(error instanceof ApiError)) throw error;
		onError(error);
		return undefined;
	}
}

const pause = (ms: number, signal: AbortSignal) =>
	new Promise<void>((resolve) => {
		if (signal.aborted) return resolve();
		const timer = setTimeout(resolve, ms);
		signal.addEventListener(
			"abort",
			() => {
				clearTimeout(timer);
				resolve();
			},
			{ once: true },
		);
	});
