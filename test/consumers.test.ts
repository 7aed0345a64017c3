/** Who has read the serving CA bundle: decisions in tables, and against a real API server, its controllers and kubectl. */

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
	type ConsumerFacts,
	judge,
	judgeUnnamed,
	type Published,
	type Question,
	readersBehind,
	restart,
	restartError,
	SERVING_CA,
	unnamed,
} from "../consumers.ts";
import type { Consumer } from "../etcdstorage.ts";
import { ApiError, Kube, kinds, loadKubeConfig } from "../kube.ts";
import { type Pod, selectorText, type Workload } from "../rollout.ts";
import type { Wait } from "../rotation.ts";
import { identity } from "./audit.ts";
import {
	type Cluster,
	FIRST_BUILD,
	type Json,
	NAMESPACE,
	startCluster,
	until,
} from "./harness.ts";

const W = Date.parse("2030-01-01T00:00:00Z");
const SECOND = 1000;
const MINUTE = 60 * SECOND;
const GENERATION = "0123abcd";
const at = (seconds: number) =>
	new Date(W + seconds * SECOND).toISOString().replace(".000", "");

const consumer = (
	name: string,
	kind: Consumer["kind"] = "Deployment",
	namespace = "api",
): Consumer => ({ kind, name, namespace });
const published: Published[] = [
	{ namespace: "api", name: "etcd-serving-ca", writtenAt: W },
];
const question = (more: Partial<Question> = {}): Question => ({
	...{ consumers: [], early: [], restarted: [] },
	published,
	generation: GENERATION,
	now: W + MINUTE,
	namespace: NAMESPACE,
	...more,
});

const ours = { [SERVING_CA]: GENERATION };
const RESTARTED_AT = "kubectl.kubernetes.io/restartedAt";
type Edit = {
	spec?: Partial<Workload["spec"]>;
	status?: Partial<NonNullable<Workload["status"]>>;
	annotations?: Record<string, string>;
	managedFields?: Workload["metadata"]["managedFields"];
	generation?: number;
};
/** A workload with two pods, its rollout complete, but for the edits. */
function workload(one: Consumer, edit: Edit = {}): Workload {
	const { spec, status, annotations = {}, managedFields } = edit;
	const { kind, name, namespace } = one;
	const own = {
		Deployment: {
			spec: {},
			status: {
				...{ replicas: 2, updatedReplicas: 2, availableReplicas: 2 },
				conditions: [progressing("NewReplicaSetAvailable")],
			},
		},
		StatefulSet: {
			spec: {
				updateStrategy: {
					type: "RollingUpdate",
					rollingUpdate: { partition: 0 },
				},
			},
			status: {
				...{ replicas: 2, updatedReplicas: 2, readyReplicas: 2 },
				...{ currentRevision: "b", updateRevision: "b" },
			},
		},
		DaemonSet: {
			spec: { updateStrategy: { type: "RollingUpdate" } },
			status: {
				desiredNumberScheduled: 2,
				...{ updatedNumberScheduled: 2, numberAvailable: 2 },
			},
		},
	}[kind];
	return {
		apiVersion: "apps/v1",
		kind,
		metadata: {
			...{ name, namespace, generation: edit.generation ?? 3 },
			...(managedFields && { managedFields }),
		},
		spec: {
			...(kind !== "DaemonSet" && { replicas: 2 }),
			selector: { matchLabels: { app: name } },
			template: { metadata: { annotations } },
			...own.spec,
			...spec,
		},
		status: { observedGeneration: 3, ...own.status, ...status },
	};
}
const progressing = (reason: string) => ({
	type: "Progressing",
	status: reason === "ProgressDeadlineExceeded" ? "False" : "True",
	reason,
});

interface PodEdit {
	name?: string;
	/** Seconds after the bundle was written. */
	created: number;
	/** Of each container; undefined: it does not run. */
	started?: (number | undefined)[];
	waiting?: string;
	phase?: string;
	annotations?: Record<string, string>;
	spec?: Partial<Pod["spec"]>;
	metadata?: Partial<Pod["metadata"]>;
}
function pod(edit: PodEdit): Pod {
	const { name = "p", created, started = [created], waiting } = edit;
	return {
		apiVersion: "v1",
		kind: "Pod",
		metadata: {
			...{ name, namespace: "api", creationTimestamp: at(created) },
			annotations: edit.annotations ?? {},
			...edit.metadata,
		},
		spec: {
			containers: started.map((_, index) => ({ name: `c${index}` })),
			...edit.spec,
		},
		status: {
			phase: edit.phase ?? "Running",
			containerStatuses: started.map((seconds, index) => ({
				name: `c${index}`,
				state: waiting
					? { waiting: { reason: waiting } }
					: seconds === undefined
						? {}
						: { running: { startedAt: at(seconds) } },
			})),
		},
	};
}
const NEW = pod({ name: "new", created: 30 });
const OLD = pod({ name: "old", created: -3600 });

const refused = (code: number, kind = "Deployment") =>
	new ApiError(
		"get",
		{ apiVersion: "apps/v1", kind, namespace: "api", name: "a" },
		{ code, reason: code === 403 ? "Forbidden" : "HTTP", message: "refused" },
	);

/** `Deployment api/a: ConsumerStuck!`, with the mark for an obstacle, and `restart Deployment api/a`. */
const short = ({ waits, restart: next }: ReturnType<typeof judge>) => [
	...waits.map(
		({ who, reason, obstacle }) => `${who}: ${reason}${obstacle ? "!" : ""}`,
	),
	...(next ? [`restart ${next.kind} ${next.namespace}/${next.name}`] : []),
];
const seen = (
	one: Consumer,
	edit: Edit = {},
	pods: Pod[] | ApiError = refused(403, "Pod"),
): ConsumerFacts => ({ consumer: one, workload: workload(one, edit), pods });
const verdict = (facts: ConsumerFacts[], more: Partial<Question> = {}) =>
	short(
		judge(
			facts,
			question({ consumers: facts.map((one) => one.consumer), ...more }),
		),
	);
const only = (facts: ConsumerFacts, more: Partial<Question> = {}) =>
	judge([facts], question({ consumers: [facts.consumer], ...more })).waits[0];

const kindsOf = ["Deployment", "StatefulSet", "DaemonSet"] as const;
const [D, S, DS] = kindsOf.map((kind) => consumer("a", kind)) as [
	Consumer,
	Consumer,
	Consumer,
];
const DUE = (one: Consumer) => [
	`${one.kind} api/a: ConsumerWaiting`,
	`restart ${one.kind} api/a`,
];
const ROLLING = (one: Consumer) => [`${one.kind} api/a: ConsumerRollingOut`];
const STUCK = (one: Consumer) => [`${one.kind} api/a: ConsumerStuck!`];

describe("a consumer that cannot be looked at", () => {
	test("is an obstacle when it is not there, and the message says what to do", () => {
		expect(only({ consumer: S, workload: undefined })).toEqual({
			who: "StatefulSet api/a",
			reason: "ConsumerMissing",
			message:
				"StatefulSet api/a is not there; correct spec.consumers, or create it",
			obstacle: true,
		});
	});

	test.each([
		["Deployment", "deployments"],
		["StatefulSet", "statefulsets"],
		["DaemonSet", "daemonsets"],
	] as const)(
		"is an obstacle when the %s may not be read, and the message has the commands that let it",
		(kind, resource) => {
			const one = consumer("a", kind);
			const wait = only({ consumer: one, workload: refused(403, kind) });
			expect(wait).toMatchObject({
				reason: "ConsumerForbidden",
				obstacle: true,
			});
			const role = `etcdproxy-${kind.toLowerCase()}-a`;
			expect(wait?.message).toContain(
				`kubectl -n api create role ${role} --verb=get,patch --resource=${resource}.apps --resource-name=a && kubectl -n api create rolebinding ${role} --role=${role} --serviceaccount=kube-apiserver-storage:etcdproxy-controller-sa`,
			);
			expect(wait?.message).toContain("refused");
		},
	);

	const owner = (kind: string, name: string) => ({
		ownerReferences: [{ apiVersion: "apps/v1", kind, name, uid: "u" }],
		labels: { "pod-template-hash": "5d4f" },
	});
	const made = (created: number, kind: string, name: string) =>
		pod({ created, metadata: owner(kind, name) });
	const FORBIDDEN = (one: Consumer) => [
		`${one.kind} api/a: ConsumerForbidden!`,
	];
	test.each([
		[
			"all of a Deployment's are newer",
			D,
			[made(30, "ReplicaSet", "a-5d4f")],
			[],
		],
		[
			"one is older",
			D,
			[made(30, "ReplicaSet", "a-5d4f"), made(-9, "ReplicaSet", "a-5d4f")],
			FORBIDDEN(D),
		],
		[
			"another Deployment's older ones do not matter",
			D,
			[made(30, "ReplicaSet", "a-5d4f"), made(-9, "ReplicaSet", "a-b-5d4f")],
			[],
		],
		[
			"another Deployment's newer ones do not help",
			D,
			[made(30, "ReplicaSet", "a-b-5d4f")],
			FORBIDDEN(D),
		],
		["all of a StatefulSet's are newer", S, [made(30, "StatefulSet", "a")], []],
		[
			"a DaemonSet of its name is another",
			S,
			[made(30, "DaemonSet", "a")],
			FORBIDDEN(S),
		],
		["there is none", D, [], FORBIDDEN(D)],
		["they may not be listed", D, refused(403), FORBIDDEN(D)],
		["they cannot be listed", D, refused(500), FORBIDDEN(D)],
	] as [string, Consumer, Pod[] | ApiError, string[]][])(
		"though it may not be read is judged by its pods: %s",
		(_, one, pods, expected) => {
			expect(
				verdict([{ consumer: one, workload: refused(403), pods }]),
			).toEqual(expected);
		},
	);

	test.each([500, 503, 429, 401])(
		"is waited for when the API server answers %d",
		(code) => {
			const wait = only({ consumer: D, workload: refused(code) });
			expect(wait).toMatchObject({
				who: "Deployment api/a",
				reason: "ConsumerUnreadable",
				obstacle: false,
			});
			expect(wait?.message).toContain("refused");
		},
	);

	test("keeps others from being restarted when it may be the one that was restarted just now", () => {
		const other = consumer("b");
		const facts = (code: number) => [
			{ consumer: D, workload: refused(code) },
			seen(other),
		];
		expect(verdict(facts(500))).toEqual([
			"Deployment api/a: ConsumerUnreadable",
			"Deployment api/b: ConsumerWaiting",
		]);
		// But that may last for ever.
		expect(verdict(facts(403))).toContain("restart Deployment api/b");
		expect(
			verdict([{ consumer: D, workload: undefined }, seen(other)]),
		).toContain("restart Deployment api/b");
	});
});

describe("a consumer has read the bundle", () => {
	test.each(kindsOf)(
		"when its template, a %s's, has our annotation for this CA and its rollout is complete",
		(kind) => {
			const one = consumer("a", kind);
			expect(verdict([seen(one, { annotations: ours })])).toEqual([]);
			expect(
				verdict([seen(one, { annotations: { [SERVING_CA]: "ffffffff" } })]),
			).toEqual(DUE(one));
			expect(verdict([seen(one)])).toEqual(DUE(one));
		},
	);

	const incomplete: [string, Consumer, Edit][] = [
		["was not observed yet", D, { generation: 4 }],
		["has pods to be updated", D, { status: { updatedReplicas: 1 } }],
		["has old pods left", D, { status: { replicas: 3 } }],
		["has one that is about to end", D, { status: { terminatingReplicas: 1 } }],
		[
			"has pods that are not available",
			D,
			{ status: { availableReplicas: 1 } },
		],
		["was not observed yet", S, { generation: 4 }],
		["was never observed", S, { status: { observedGeneration: 0 } }],
		[
			"has pods to be updated",
			S,
			{ status: { updatedReplicas: 1, currentRevision: "a" } },
		],
		["has one pod too many", S, { status: { replicas: 3 } }],
		["has pods that are not ready", S, { status: { readyReplicas: 1 } }],
		["was not observed yet", DS, { generation: 4 }],
		["has pods to be updated", DS, { status: { updatedNumberScheduled: 1 } }],
		["has pods that are not available", DS, { status: { numberAvailable: 1 } }],
	];
	test.each(incomplete)(
		"only after its rollout: it %s (%o)",
		(_, one, edit) => {
			expect(verdict([seen(one, { ...edit, annotations: ours })])).toEqual(
				ROLLING(one),
			);
		},
	);

	const noted = (key: string, seconds: number): Edit["managedFields"] => [
		{
			...{ manager: "kubectl-rollout", operation: "Update" },
			...{ apiVersion: "apps/v1", fieldsType: "FieldsV1", time: at(seconds) },
			fieldsV1: {
				"f:spec": {
					"f:template": { "f:metadata": { "f:annotations": { [key]: {} } } },
				},
			},
		},
	];
	const own = `f:${RESTARTED_AT}`;
	test.each([
		["when every kubelet had the bundle", 10, undefined, []],
		["a little too early", 9, undefined, DUE(D)],
		["before", -1, undefined, DUE(D)],
		["by a clock that is ahead, in truth before", 3600, noted(own, -5), DUE(D)],
		["after, as the API server noted, too", 60, noted(own, 61), []],
		["after; something else was changed before", 60, noted("f:other", -60), []],
	])(
		"when somebody else restarted it: %s",
		(_, seconds, managedFields, expected) => {
			const annotations = { [RESTARTED_AT]: at(seconds) };
			const edit = { annotations, ...(managedFields && { managedFields }) };
			expect(verdict([seen(D, edit)])).toEqual(expected);
			expect(
				verdict([seen(D, { ...edit, status: { availableReplicas: 0 } })]),
			).toEqual(expected.length > 0 ? DUE(D) : ROLLING(D));
		},
	);

	test("that we have restarted, and has not, because somebody took that back, is not restarted again, and the next one is", () => {
		const undone = { restarted: [D] };
		expect(verdict([seen(D)], undone)).toEqual([
			"Deployment api/a: ConsumerStuck!",
		]);
		const other = consumer("b");
		expect(verdict([seen(D), seen(other)], undone)).toEqual([
			"Deployment api/a: ConsumerStuck!",
			"Deployment api/b: ConsumerWaiting",
			"restart Deployment api/b",
		]);
		// Not taken back, it is like any other.
		const kept = { annotations: ours };
		expect(verdict([seen(D, kept)], undone)).toEqual([]);
	});

	test("and a time that is none, or of another zone, is read for what it is", () => {
		const restarted = (text: string) =>
			verdict([seen(D, { annotations: { [RESTARTED_AT]: text } })]);
		expect(restarted("yesterday")).toEqual(DUE(D));
		expect(restarted("2030-01-01T02:00:30+02:00")).toEqual([]);
		expect(restarted("2030-01-01T00:00:30+02:00")).toEqual(DUE(D));
	});

	test("when it was restarted after every ConfigMap of its namespace was written, or of all if none is there", () => {
		const facts = [seen(D, { annotations: { [RESTARTED_AT]: at(100) } })];
		const late = (namespace: string) => ({
			published: [
				...published,
				{ namespace, name: "late", writtenAt: W + 200 * SECOND },
			],
			now: W + 1000 * SECOND,
		});
		expect(verdict(facts, late("api"))).toEqual(DUE(D));
		expect(verdict(facts, late("other"))).toEqual([]);
		const elsewhere = consumer("a", "Deployment", "third");
		const far = [{ ...facts[0], consumer: elsewhere } as ConsumerFacts];
		expect(verdict(far, late("other"))).toContain("restart Deployment third/a");
		expect(verdict(far)).toEqual([]);
	});

	test.each([
		["created after the kubelets had it", [pod({ created: 10 })], []],
		["created a little too early", [pod({ created: 9 })], DUE(D)],
		["one older than it", [NEW, OLD], DUE(D)],
		["none", [], DUE(D)],
		[
			"ended ones beside new ones",
			[
				NEW,
				pod({ created: -9, phase: "Succeeded" }),
				pod({ created: -9, phase: "Failed" }),
			],
			[],
		],
		["ended ones alone", [pod({ created: 30, phase: "Succeeded" })], DUE(D)],
		[
			"started again when the volume had it",
			[pod({ created: -9, started: [121, 121] })],
			[],
		],
		["started again too early", [pod({ created: -9, started: [120] })], DUE(D)],
		[
			"one container that was not started again",
			[pod({ created: -9, started: [121, -9] })],
			DUE(D),
		],
		[
			"one container that does not run",
			[pod({ created: -9, started: [121, undefined] })],
			DUE(D),
		],
		[
			"a new one that does not run yet",
			[pod({ created: 30, started: [undefined], phase: "Pending" })],
			[],
		],
		[
			"an old sidecar",
			[
				pod({
					created: -9,
					started: [121],
					spec: { initContainers: [{ name: "side", restartPolicy: "Always" }] },
				}),
			],
			DUE(D),
		],
		[
			"an old init container, which has ended",
			[
				pod({
					created: -9,
					started: [121],
					spec: { initContainers: [{ name: "init" }] },
				}),
			],
			[],
		],
	] as [string, Pod[], string[]][])(
		"when its pods say so: %s",
		(_, pods, expected) => {
			expect(verdict([seen(D, {}, pods)])).toEqual(expected);
		},
	);

	test("when the sidecar was started again, too", () => {
		const restarted = pod({
			...{ created: -9, started: [121] },
			spec: { initContainers: [{ name: "side", restartPolicy: "Always" }] },
		});
		restarted.status = {
			...restarted.status,
			initContainerStatuses: [
				{ name: "side", state: { running: { startedAt: at(125) } } },
			],
		};
		expect(verdict([seen(D, {}, [restarted])])).toEqual([]);
	});

	test("when its pods say so, even if its rollout is not complete or was never ours", () => {
		expect(verdict([seen(D, { status: { replicas: 3 } }, [NEW])])).toEqual([]);
		expect(verdict([seen(D, { spec: { paused: true } }, [NEW])])).toEqual([]);
	});

	test("when it has no pods: whoever starts reads it", () => {
		const zero = { replicas: 0, updatedReplicas: 0 };
		const none = {
			Deployment: { ...zero, availableReplicas: 0 },
			StatefulSet: { ...zero, readyReplicas: 0 },
			DaemonSet: {
				...{ desiredNumberScheduled: 0, updatedNumberScheduled: 0 },
				numberAvailable: 0,
			},
		};
		for (const kind of kindsOf) {
			const edit = { spec: { replicas: 0 }, status: none[kind] };
			const one = consumer("a", kind);
			expect(verdict([seen(one, edit)])).toEqual([]);
			expect(verdict([seen(one, { ...edit, generation: 4 })])).toEqual(
				ROLLING(one),
			);
		}
		const left = { replicas: 1, numberMisscheduled: 1 };
		for (const kind of kindsOf) {
			const one = consumer("a", kind);
			const status = { ...none[kind], ...left, updatedReplicas: 1 };
			expect(verdict([seen(one, { spec: { replicas: 0 }, status })])).toEqual(
				ROLLING(one),
			);
		}
	});

	test("when nothing was published", () => {
		expect(verdict([seen(D)], { published: [] })).toEqual([]);
	});
});

describe("a rollout under way", () => {
	const half = {
		updatedReplicas: 1,
		conditions: [progressing("ReplicaSetUpdated")],
	};
	test.each([
		["foreign, of a Deployment", D, { status: half }],
		[
			"in its last step",
			D,
			{ status: { availableReplicas: 1, conditions: half.conditions } },
		],
		[
			"foreign, of a StatefulSet",
			S,
			{ status: { updatedReplicas: 1, currentRevision: "a" } },
		],
		[
			"in its last step",
			S,
			{ status: { readyReplicas: 1, currentRevision: "a" } },
		],
		["foreign, of a DaemonSet", DS, { status: { updatedNumberScheduled: 1 } }],
	] as [string, Consumer, Edit][])(
		"is waited for, and not disturbed: %s (%o)",
		(_, one, edit) => {
			expect(verdict([seen(one, edit)])).toEqual(ROLLING(one));
		},
	);

	test.each([
		[
			"exceeded its deadline",
			D,
			{
				status: {
					updatedReplicas: 1,
					conditions: [progressing("ProgressDeadlineExceeded")],
				},
			},
			/kubectl -n api rollout status deployment\/a, kubectl -n api describe deployment\/a$/,
		],
		[
			"exceeded its deadline, all are updated",
			D,
			{
				status: {
					availableReplicas: 1,
					conditions: [progressing("ProgressDeadlineExceeded")],
				},
			},
			/kubectl -n api rollout status deployment\/a/,
		],
		[
			"is paused",
			D,
			{ spec: { paused: true } },
			/kubectl -n api rollout resume deployment\/a$/,
		],
		[
			"is paused half-way",
			D,
			{ spec: { paused: true }, status: half },
			/rollout resume/,
		],
		[
			"is OnDelete",
			S,
			{
				spec: { updateStrategy: { type: "OnDelete" } },
				status: { updatedReplicas: 1, currentRevision: "a" },
				annotations: ours,
			},
			/OnDelete.*kubectl -n api describe statefulset\/a$/,
		],
		[
			"is OnDelete",
			DS,
			{
				spec: { updateStrategy: { type: "OnDelete" } },
				status: { updatedNumberScheduled: 1 },
				annotations: ours,
			},
			/OnDelete.*kubectl -n api describe daemonset\/a$/,
		],
		[
			"has a partition",
			S,
			{
				spec: {
					updateStrategy: {
						type: "RollingUpdate",
						rollingUpdate: { partition: 1 },
					},
				},
				status: { updatedReplicas: 1, currentRevision: "a" },
				annotations: ours,
			},
			/partition.*set it to 0/,
		],
	] as [string, Consumer, Edit, RegExp][])(
		"needs a person when it %s (%o), and the message has the way out",
		(_, one, edit, message) => {
			expect(verdict([seen(one, edit)])).toEqual(STUCK(one));
			expect(only(seen(one, edit))?.message).toMatch(message);
		},
	);

	test("has exceeded its deadline for kubectl even when nothing is missing", () => {
		const conditions = [progressing("ProgressDeadlineExceeded")];
		const edit = { status: { conditions }, annotations: ours };
		expect(verdict([seen(D, edit)])).toEqual(STUCK(D));
	});

	test("has not exceeded its deadline before it was observed", () => {
		const conditions = [progressing("ProgressDeadlineExceeded")];
		const edit = { generation: 4, status: { conditions }, annotations: ours };
		expect(verdict([seen(D, edit)])).toEqual(ROLLING(D));
	});

	const crashing = (annotations: Record<string, string>, waiting: string) =>
		pod({ name: "new-1", created: 30, waiting, annotations });
	test.each([
		["CrashLoopBackOff", true],
		["ImagePullBackOff", true],
		["ErrImagePull", true],
		["CreateContainerConfigError", true],
		["ContainerCreating", false],
		["PodInitializing", false],
	])("with a pod in %s needs a person: %p", (waiting, expected) => {
		const edit = { annotations: ours, status: half };
		const facts = seen(D, edit, [OLD, crashing(ours, waiting)]);
		expect(verdict([facts])).toEqual(expected ? STUCK(D) : ROLLING(D));
		if (expected)
			expect(only(facts)?.message).toMatch(
				/pod new-1 is in .*: kubectl -n api describe pod new-1, kubectl -n api rollout status deployment\/a$/,
			);
	});

	test("is not held up by an old pod that it replaces, but a StatefulSet is", () => {
		const old = crashing({}, "CrashLoopBackOff");
		expect(
			verdict([seen(D, { annotations: ours, status: half }, [old, OLD])]),
		).toEqual(ROLLING(D));
		const status = { updatedReplicas: 1, currentRevision: "a" };
		expect(
			verdict([seen(S, { annotations: ours, status }, [old, OLD])]),
		).toEqual(STUCK(S));
	});

	test("with OnDelete is over when a person has deleted the pods", () => {
		const updateStrategy = { type: "OnDelete" };
		const edit = { spec: { updateStrategy }, annotations: ours };
		// Its current revision never changes.
		const status = { currentRevision: "a" };
		expect(verdict([seen(S, { ...edit, status })])).toEqual([]);
		expect(verdict([seen(DS, edit)])).toEqual([]);
		// By pods, or by the annotation that is given first.
		expect(verdict([seen(S, { spec: edit.spec, status }, [NEW])])).toEqual([]);
		const spec = { updateStrategy };
		expect(verdict([seen(S, { spec, status })])).toEqual(DUE(S));
		// Also with a change of the template that nobody has brought into being.
		const pending = { ...status, updatedReplicas: 0 };
		expect(verdict([seen(S, { spec, status: pending })])).toEqual(DUE(S));
		expect(
			verdict([seen(S, { spec, status: { ...status, readyReplicas: 0 } })]),
		).toEqual(DUE(S));
		const falling = { ...pending, readyReplicas: 1 };
		expect(verdict([seen(S, { spec, status: falling })])).toEqual(STUCK(S));
	});
});

describe("the next one to be restarted", () => {
	const [a, b, c] = ["a", "b", "c"].map((name) => consumer(name)) as [
		Consumer,
		Consumer,
		Consumer,
	];
	const WAITING = (name: string) => `Deployment api/${name}: ConsumerWaiting`;
	const rolling = { annotations: ours, status: { replicas: 3 } };
	const message = (facts: ConsumerFacts[], name: string) =>
		judge(facts, question()).waits.find(({ who }) => who.endsWith(name))
			?.message;

	test("is the first that has not read it; the others wait, and say for whom", () => {
		const all = [seen(a), seen(b), seen(c)];
		expect(verdict(all)).toEqual([
			...["a", "b", "c"].map(WAITING),
			"restart Deployment api/a",
		]);
		expect(message(all, "/a")).toBe("Deployment api/a is restarted now");
		expect(message(all, "/c")).toBe(
			"Deployment api/c is restarted after Deployment api/a",
		);
		expect(verdict([seen(a, { annotations: ours }), seen(b)])).toEqual([
			WAITING("b"),
			"restart Deployment api/b",
		]);
	});

	test("waits while another one rolls, before or after it, whoever did that", () => {
		const ROLLS = "Deployment api/b: ConsumerRollingOut";
		expect(verdict([seen(a), seen(b, rolling)])).toEqual([WAITING("a"), ROLLS]);
		expect(verdict([seen(b, rolling), seen(a)])).toEqual([ROLLS, WAITING("a")]);
		const foreign = { status: { replicas: 3 } };
		const both = [seen(a), seen(b, foreign)];
		expect(verdict(both)).toEqual([WAITING("a"), ROLLS]);
		expect(message(both, "/a")).toBe(
			"Deployment api/a is restarted after Deployment api/b",
		);
	});

	test("waits for one that has read it already but is still rolling, and says so when that is stuck", () => {
		expect(verdict([seen(a), seen(b, rolling, [NEW])])).toEqual([WAITING("a")]);
		const conditions = [progressing("ProgressDeadlineExceeded")];
		const stuck = { ...rolling, status: { replicas: 3, conditions } };
		expect(verdict([seen(a), seen(b, stuck, [NEW])])).toEqual([
			WAITING("a"),
			"Deployment api/b: ConsumerStuck!",
		]);
		// Nobody waits for it.
		expect(
			verdict([seen(a, { annotations: ours }), seen(b, stuck, [NEW])]),
		).toEqual([]);
	});

	test("does not wait for one at rest that only a person can bring further", () => {
		const spec = { updateStrategy: { type: "OnDelete" } };
		const status = { updatedReplicas: 0, currentRevision: "a" };
		const facts = seen(S, { spec, status, annotations: ours });
		expect(verdict([facts, seen(b)])).toEqual([
			...STUCK(S),
			WAITING("b"),
			"restart Deployment api/b",
		]);
		const falling = { ...status, readyReplicas: 1 };
		expect(
			verdict([seen(S, { spec, status: falling, annotations: ours }), seen(b)]),
		).toEqual([...STUCK(S), WAITING("b")]);
		const partition = {
			updateStrategy: {
				type: "RollingUpdate",
				rollingUpdate: { partition: 1 },
			},
		};
		const upTo = (updatedReplicas: number) =>
			verdict([
				seen(S, {
					...{ spec: partition, annotations: ours },
					status: { updatedReplicas, currentRevision: "a" },
				}),
				seen(b),
			]);
		expect(upTo(1)).toContain("restart Deployment api/b");
		expect(upTo(0)).not.toContain("restart Deployment api/b");
	});

	test("may be one that fell ill after its rollout, perhaps because it does not know the CA", () => {
		for (const [one, status] of [
			[D, { availableReplicas: 0 }],
			[S, { readyReplicas: 0 }],
			[DS, { numberAvailable: 0 }],
		] as [Consumer, Edit["status"] & object][]) {
			const ill = pod({ created: -9, waiting: "CrashLoopBackOff" });
			expect(verdict([seen(one, { status }, [ill])])).toEqual(DUE(one));
			// Such ones do not wait for each other.
			expect(verdict([seen(b), seen(one, { status })])).toContain(
				"restart Deployment api/b",
			);
			// After a restart, being available is what is waited for.
			expect(verdict([seen(one, { status, annotations: ours })])).toEqual(
				ROLLING(one),
			);
			expect(
				verdict([seen(b), seen(one, { status, annotations: ours })]),
			).not.toContain("restart Deployment api/b");
		}
	});

	test("waits until every kubelet has what its pods are to read", () => {
		const facts = [seen(a), seen(b)];
		const now = W + 9999;
		expect(verdict(facts, { now })).toEqual([WAITING("a"), WAITING("b")]);
		expect(only(seen(a), { now })?.message).toBe(
			"Deployment api/a is restarted as soon as every kubelet has the new CA",
		);
		expect(verdict(facts, { now: now + 1 })).toContain(
			"restart Deployment api/a",
		);
	});

	test("is left alone while its pods cannot be read: they may be newer", () => {
		const facts = [seen(a, {}, refused(500, "Pod")), seen(b)];
		expect(verdict(facts)).toEqual([
			"Deployment api/a: ConsumerUnreadable",
			WAITING("b"),
			"restart Deployment api/b",
		]);
		expect(
			verdict([seen(a, { annotations: ours }, refused(500, "Pod"))]),
		).toEqual([]);
	});
});

describe("where no consumer is named", () => {
	const bundles = ["a", "b", "b"].map((namespace) => ({ namespace }));
	const [a, b, more] = bundles;
	test.each<[string, string[], unknown[]]>([
		["nobody", [], [a, b, more]],
		["one in a", ["a"], [b, more]],
		["one in b", ["b"], [a]],
		["one in each", ["a", "b"], []],
		["one who can read any, for none is in its namespace", ["c"], []],
		["that one and another", ["a", "c"], []],
	])("of bundles in a, b and b, with %s named", (_, namespaces, expected) => {
		const named = namespaces.map((one) => consumer("api", "Deployment", one));
		expect(unnamed(bundles, named)).toEqual(expected as typeof bundles);
	});

	const [configMap] = published as [Published];
	const mounts: Record<string, Partial<Pod["spec"]>> = {
		"a volume": { volumes: [{}, { configMap: { name: configMap.name } }] },
		"a projected volume": {
			volumes: [
				{
					projected: { sources: [{}, { configMap: { name: configMap.name } }] },
				},
			],
		},
		"its environment": {
			containers: [
				{
					name: "c0",
					envFrom: [{}, { configMapRef: { name: configMap.name } }],
				},
			],
		},
		"a variable": {
			containers: [
				{
					name: "c0",
					env: [
						{},
						{ valueFrom: { configMapKeyRef: { name: configMap.name } } },
					],
				},
			],
		},
		"the environment of an init container": {
			initContainers: [
				{ name: "i", envFrom: [{ configMapRef: { name: configMap.name } }] },
			],
		},
	};
	const reader = (created: number, name = "r") =>
		pod({ name, created, spec: mounts["a volume"] ?? {} });
	const judged = (pods: Pod[] | ApiError) =>
		judgeUnnamed({ published: configMap, pods });
	const UNKNOWN =
		"who reads ConfigMap api/etcd-serving-ca is not known: name its workloads in spec.consumers, and restart them";

	test.each(Object.entries(mounts))(
		"a pod that has the ConfigMap as %s tells",
		(_, spec) => {
			expect(judged([pod({ created: 30, spec })])).toBeUndefined();
			expect(judged([pod({ created: -9, spec })])?.message).toBe(
				"pods in api have not read the new CA from ConfigMap api/etcd-serving-ca: p; restart them, or name their Deployment in spec.consumers",
			);
		},
	);

	test("all pods must be newer, and others do not matter", () => {
		expect(judged([reader(30), OLD])).toBeUndefined();
		expect(judged([reader(30), reader(-9)])?.reason).toBe("ConsumerUnknown");
		const another = { volumes: [{ configMap: { name: "another" } }] };
		expect(judged([pod({ created: 30, spec: another })])?.message).toBe(
			UNKNOWN,
		);
		const ended = { ...reader(-9), status: { phase: "Failed" } };
		expect(judged([reader(30), ended])).toBeUndefined();
		expect(judged([ended])?.message).toBe(UNKNOWN);
		const restarted = { created: -9, started: [121] };
		const spec = { ...mounts["a volume"] };
		expect(judged([pod({ ...restarted, spec })])).toBeUndefined();
	});

	test("the message names three pods, and how many more there are", () => {
		const old = (count: number) =>
			judged(
				Array.from({ length: count }, (_, index) => reader(-9, `p${index}`)),
			);
		expect(old(3)?.message).toContain(": p0, p1, p2; restart");
		expect(old(5)?.message).toContain(": p0, p1, p2 and 2 more; restart");
		expect(old(5)).toMatchObject({
			who: "ConfigMap api/etcd-serving-ca",
			obstacle: true,
		});
	});

	test.each([
		["no pod has it", [NEW, OLD]],
		["there is no pod", []],
		["pods may not be listed", refused(403, "Pod")],
	])("nothing is known when %s", (_, pods) => {
		expect(judged(pods)).toEqual({
			who: "ConfigMap api/etcd-serving-ca",
			reason: "ConsumerUnknown",
			message: UNKNOWN,
			obstacle: true,
		});
	});

	test("an API server that is not well is waited for", () => {
		expect(judged(refused(503, "Pod"))).toMatchObject({
			reason: "ConsumerUnreadable",
			obstacle: false,
		});
	});
});

test("a restart that fails is something to wait for", () => {
	expect(restartError(D, refused(403), NAMESPACE)).toEqual(
		only({ consumer: D, workload: refused(403) }) as Wait,
	);
	for (const code of [404, 409, 422, 500])
		expect(restartError(D, refused(code), NAMESPACE)).toMatchObject({
			reason: "ConsumerUnreadable",
			obstacle: false,
		});
});

describe("whatever the facts", () => {
	const pods = fc.array(
		fc
			.record({
				created: fc.integer({ min: -300, max: 300 }),
				started: fc.array(
					fc.option(fc.integer({ min: -300, max: 300 }), { nil: undefined }),
					{ minLength: 1, maxLength: 2 },
				),
				phase: fc.constantFrom("Running", "Running", "Pending", "Failed"),
				waiting: fc.constantFrom("", "", "CrashLoopBackOff"),
			})
			.map(pod),
		{ maxLength: 3 },
	);
	const count = fc.integer({ min: 0, max: 3 });
	const edit: fc.Arbitrary<Edit> = fc.record({
		generation: fc.constantFrom(3, 3, 4),
		annotations: fc.constantFrom({}, {}, ours, { [RESTARTED_AT]: at(40) }),
		spec: fc.record(
			{
				paused: fc.boolean(),
				updateStrategy: fc.constantFrom(
					{ type: "OnDelete" },
					{ type: "RollingUpdate", rollingUpdate: { partition: 1 } },
				),
			},
			{ requiredKeys: [] },
		),
		status: fc.record(
			{
				...{ replicas: count, updatedReplicas: count, readyReplicas: count },
				...{ availableReplicas: count, numberAvailable: count },
				updatedNumberScheduled: count,
				currentRevision: fc.constantFrom("a", "b"),
				conditions: fc
					.constantFrom("ReplicaSetUpdated", "ProgressDeadlineExceeded")
					.map((reason) => [progressing(reason)]),
			},
			{ requiredKeys: [] },
		),
	});
	const facts = fc
		.array(
			fc.record({
				kind: fc.constantFrom(...kindsOf),
				edit: fc.oneof(edit, fc.constant({})),
				pods: fc.oneof(
					pods,
					fc.constantFrom(refused(403, "Pod"), refused(500, "Pod")),
				),
				readable: fc.constantFrom(true, true, true, 403, 500, undefined),
			}),
			{ maxLength: 4 },
		)
		.map((all) =>
			all.map(({ kind, edit: edits, pods: found, readable }, index) => {
				const one = consumer(`c${index}`, kind);
				const facts = seen(one, edits, found);
				if (readable === true) return facts;
				return {
					...facts,
					workload: readable ? refused(readable) : undefined,
				};
			}),
		);
	const now = fc.integer({ min: -20, max: 600 }).map((s) => W + s * SECOND);

	test("one is restarted at most, which waits, is whole and has no annotation, and nobody rolls", () => {
		fc.assert(
			fc.property(facts, now, (all, when) => {
				const { waits, restart: next } = judge(all, question({ now: when }));
				expect(new Set(waits.map(({ who }) => who)).size).toBe(waits.length);
				if (!next) return;
				const chosen = all.find((one) => one.consumer === next);
				const live = chosen?.workload as Workload;
				expect(live.spec.paused ?? false).toBe(false);
				expect(live.spec.template.metadata?.annotations?.[SERVING_CA]).toBe(
					undefined,
				);
				const mine = waits.filter(({ who }) => who.endsWith(`/${next.name}`));
				expect(mine.map(({ reason }) => reason)).toEqual(["ConsumerWaiting"]);
				expect(waits.map(({ reason }) => reason)).not.toContain(
					"ConsumerRollingOut",
				);
				for (const { workload: other } of all) {
					if (!other || other instanceof ApiError) continue;
					expect(other.status?.observedGeneration).toBe(
						other.metadata.generation,
					);
					if (other.kind === "Deployment")
						expect(other.status?.updatedReplicas).toBeGreaterThanOrEqual(2);
				}
			}),
			{ numRuns: 2000 },
		);
	});

	test("who has read it has read it later, too, and time alone brings nobody from ready to waiting", () => {
		fc.assert(
			fc.property(facts, now, fc.nat(1e9), (all, when, later) => {
				const first = judge(all, question({ now: when }));
				const then = judge(all, question({ now: when + later }));
				expect(then.waits.map(({ who }) => who)).toEqual(
					first.waits.map(({ who }) => who),
				);
				if (first.restart) expect(then.restart).toEqual(first.restart);
			}),
			{ numRuns: 1000 },
		);
	});

	test("all are restarted in turn, once each, and never two of them roll", () => {
		fc.assert(
			fc.property(
				fc.array(fc.constantFrom(...kindsOf), { minLength: 1, maxLength: 5 }),
				fc.infiniteStream(fc.nat(3)),
				(chosen, ticks) => {
					const all = chosen.map((kind, index) => consumer(`c${index}`, kind));
					/** Ticks until the rollout is complete; absent: not restarted. */
					const left = new Map<string, number>();
					const order: string[] = [];
					const look = () =>
						judge(
							all.map((one) => {
								const todo = left.get(one.name);
								if (todo === undefined) return seen(one);
								const status = {
									observedGeneration: todo === 3 ? 2 : 3,
									...(todo > 1 && {
										...{ updatedReplicas: 1, updatedNumberScheduled: 1 },
										currentRevision: "a",
									}),
									...(todo > 0 && {
										...{ availableReplicas: 1, readyReplicas: 1 },
										numberAvailable: 1,
									}),
								};
								return seen(one, { annotations: ours, status });
							}),
							question(),
						);
					for (let turn = 0; turn < 50; turn++) {
						const { waits, restart: next } = look();
						if (waits.length === 0) break;
						if (next) {
							order.push(next.name);
							left.set(next.name, ticks.next().value);
						} else
							for (const [name, todo] of left)
								left.set(name, Math.max(0, todo - 1));
						expect(
							[...left.values()].filter((todo) => todo > 0).length,
						).toBeLessThanOrEqual(1);
					}
					expect(look().waits).toEqual([]);
					expect(order).toEqual(all.map(({ name }) => name));
				},
			),
			{ numRuns: 300 },
		);
	});
});

describe("on a real API server", () => {
	let cluster: Cluster;
	/** With the rights of the controller's ServiceAccount. */
	let kube: Kube;
	let admin: Kube;
	const all = kindsOf.map((kind) => consumer("apiserver", kind, "real"));
	const [deployment, statefulSet, daemonSet] = all as [
		Consumer,
		Consumer,
		Consumer,
	];
	const which = ({ kind, name }: Consumer) => `${kind.toLowerCase()}/${name}`;
	const real = (...args: string[]) => cluster.kubectl(["-n", "real", ...args]);
	const live = (one: Consumer, namespace = one.namespace): Promise<Json> =>
		admin.get({
			...{ apiVersion: kinds[one.kind].apiVersion, kind: one.kind },
			...{ name: one.name, namespace },
		});
	const patch = (one: Consumer, change: object, ...flags: string[]) =>
		real(
			...["patch", which(one), "--type=merge", "-p"],
			...[JSON.stringify(change), ...flags],
		);
	const setStatus = async (one: Consumer, status: object) => {
		const { metadata } = await live(one);
		const observed = { observedGeneration: metadata.generation };
		// A merge patch leaves what it does not name.
		await patch(
			one,
			{ status: { ...observed, ...status } },
			"--subresource=status",
		);
	};
	const complete = {
		Deployment: {
			...{ replicas: 2, updatedReplicas: 2, readyReplicas: 2 },
			...{ availableReplicas: 2, unavailableReplicas: 0 },
			conditions: [progressing("NewReplicaSetAvailable")],
		},
		StatefulSet: {
			...{ replicas: 2, updatedReplicas: 2, readyReplicas: 2 },
			...{ availableReplicas: 2, currentReplicas: 2 },
			...{ currentRevision: "b", updateRevision: "b" },
		},
		DaemonSet: {
			...{ currentNumberScheduled: 2, desiredNumberScheduled: 2 },
			...{ updatedNumberScheduled: 2, numberAvailable: 2, numberReady: 2 },
			numberMisscheduled: 0,
		},
	};
	const made = (one: Consumer): object => ({
		apiVersion: "apps/v1",
		kind: one.kind,
		metadata: { name: one.name, namespace: one.namespace },
		spec: {
			...(one.kind !== "DaemonSet" && { replicas: 2 }),
			...(one.kind === "StatefulSet" && { serviceName: "none" }),
			selector: { matchLabels: { app: one.kind } },
			template: {
				metadata: { labels: { app: one.kind }, annotations: { other: "kept" } },
				spec: { containers: [{ name: "apiserver", image: "none" }] },
			},
		},
	});
	const namespace = (name: string): object[] => [
		{ apiVersion: "v1", kind: "Namespace", metadata: { name } },
		// Pods need it, and without controllers nobody makes it.
		{
			apiVersion: "v1",
			kind: "ServiceAccount",
			metadata: { name: "default", namespace: name },
		},
	];
	const madePod = (name: string, labels: object, spec: object = {}) => ({
		apiVersion: "v1",
		kind: "Pod",
		metadata: { name, namespace: "real", labels },
		spec: { containers: [{ name: "c", image: "none" }], ...spec },
	});
	/** As if the bundle had been written long ago, unless told. */
	const ask = (
		consumers: Consumer[],
		writtenAt = Date.now() - MINUTE,
		client = kube,
		more: Partial<Question> = {},
	) =>
		readersBehind(
			client,
			question({
				consumers,
				published: [{ namespace: "real", name: "etcd-serving-ca", writtenAt }],
				now: writtenAt + MINUTE,
				...more,
			}),
		);
	const createdAt = async (...names: string[]) => {
		const pods = await admin.list<Pod>("Pod", "real");
		return pods
			.filter(({ metadata }) => names.includes(metadata.name))
			.map(({ metadata }) => Date.parse(metadata.creationTimestamp ?? ""));
	};

	beforeAll(async () => {
		cluster = await startCluster();
		const { kubeconfig } = await identity(cluster, "consumers");
		const client = (path: string) =>
			new Kube(loadKubeConfig(path), { fieldManager: "etcdproxy-controller" });
		kube = client(kubeconfig);
		admin = client(cluster.kubeconfig);
		await cluster.apply(...namespace("real"), ...all.map(made));
	}, FIRST_BUILD);
	afterAll(() => cluster?.stop(), 30_000);

	test("a consumer without rights is forbidden, and the commands in the message are what was missing", async () => {
		const { waits, restart: next } = await ask(all);
		expect(next).toBeUndefined();
		expect(waits.map(({ reason }) => reason)).toEqual(
			Array(3).fill("ConsumerForbidden"),
		);
		for (const [index, one] of all.entries()) {
			const { message } = waits[index] as Wait;
			expect(message).toContain('cannot get resource "');
			const commands = message.match(
				/kubectl [^&.]+\.apps [^&]+|kubectl [^&(]+(?=\. \()/g,
			);
			expect(commands).toHaveLength(2);
			for (const command of commands ?? [])
				await cluster.kubectl(command.trim().split(" ").slice(1));
			await setStatus(one, complete[one.kind]);
			// It may not list pods; that is no obstacle.
			expect(short(await ask([one]))).toEqual([
				`${one.kind} real/apiserver: ConsumerWaiting`,
				`restart ${one.kind} real/apiserver`,
			]);
		}
		expect(short(await ask([{ ...deployment, name: "gone" }]))).toEqual([
			"Deployment real/gone: ConsumerForbidden!",
		]);
		expect(
			short(await ask([{ ...deployment, name: "gone" }], W, admin)),
		).toEqual(["Deployment real/gone: ConsumerMissing!"]);
	}, 60_000);

	test.each(all)(
		"a restart changes the annotation of the pod template and nothing else: $kind",
		async (one) => {
			const before = await live(one);
			await restart(kube, one, GENERATION);
			const after = await live(one);
			const { annotations } = after.spec.template.metadata;
			expect(annotations).toEqual({ other: "kept", ...ours });
			annotations[SERVING_CA] = undefined;
			expect(after.spec).toEqual(before.spec);
			expect(after.status).toEqual(before.status);
			expect(after.metadata.generation).toBe(before.metadata.generation + 1);
			expect(after.metadata.labels).toEqual(before.metadata.labels);
			// The API server's own copy of the generation.
			for (const { metadata } of [before, after])
				delete metadata.annotations["deprecated.daemonset.template.generation"];
			expect(after.metadata.annotations).toEqual(before.metadata.annotations);
			// Done twice, nothing rolls again.
			await restart(kube, one, GENERATION);
			expect((await live(one)).metadata.generation).toBe(
				after.metadata.generation,
			);
			const name = `${one.kind} real/apiserver`;
			expect(short(await ask([one]))).toEqual([`${name}: ConsumerRollingOut`]);
			await setStatus(one, complete[one.kind]);
			expect(short(await ask([one]))).toEqual([]);
		},
		30_000,
	);

	test("a restart that is not allowed says so, with the same commands", async () => {
		await real("create", "deployment", "readonly", "--image=none");
		await real(
			...["create", "role", "readonly", "--verb=get"],
			...["--resource=deployments.apps", "--resource-name=readonly"],
		);
		await real(
			...["create", "rolebinding", "readonly", "--role=readonly"],
			`--serviceaccount=${NAMESPACE}:etcdproxy-controller-sa`,
		);
		const one = { ...deployment, name: "readonly" };
		expect(short(await ask([one]))).toEqual([
			"Deployment real/readonly: ConsumerRollingOut",
		]);
		const error = await restart(kube, one, GENERATION).catch(
			(thrown: unknown) => thrown,
		);
		expect(error).toBeInstanceOf(ApiError);
		const wait = restartError(one, error as ApiError, NAMESPACE);
		expect(wait).toMatchObject({ reason: "ConsumerForbidden", obstacle: true });
		expect(wait.message).toContain('cannot patch resource "deployments"');
		expect(wait.message).toContain("--verb=get,patch");
	}, 30_000);

	const statuses: [Consumer, object][] = [
		...[
			{ updatedReplicas: 1 },
			{ updatedReplicas: 1, readyReplicas: 1, availableReplicas: 1 },
			{ replicas: 3 },
			{ readyReplicas: 1, availableReplicas: 1 },
			{ availableReplicas: 1 },
			{ availableReplicas: 0, readyReplicas: 0 },
			{ conditions: [progressing("ProgressDeadlineExceeded")] },
			{ conditions: [progressing("ReplicaSetUpdated")] },
			{},
		].map((status): [Consumer, object] => [deployment, status]),
		...[
			{ updatedReplicas: 1, currentRevision: "a" },
			{ readyReplicas: 1, availableReplicas: 1 },
			{ updatedReplicas: 0, currentReplicas: 2 },
			{},
		].map((status): [Consumer, object] => [statefulSet, status]),
		...[
			{ updatedNumberScheduled: 1 },
			{ numberAvailable: 1 },
			{ desiredNumberScheduled: 3 },
			{},
		].map((status): [Consumer, object] => [daemonSet, status]),
	];
	const rolledOut = (one: Consumer): Promise<boolean> =>
		real("rollout", "status", which(one), "--watch=false").then(
			(text) =>
				/successfully rolled out|roll ?out complete|rolling update complete/.test(
					text,
				),
			() => false,
		);
	test("a rollout is complete when kubectl says so", async () => {
		const found: boolean[] = [];
		for (const [one, status] of statuses) {
			await setStatus(one, { ...complete[one.kind], ...status });
			const confirmed = (await ask([one])).waits.length === 0;
			expect([one.kind, status, confirmed]).toEqual([
				...[one.kind, status],
				await rolledOut(one),
			]);
			found.push(confirmed);
		}
		// It would be easy to agree on always the same.
		expect(found.filter((one) => one).length).toBe(4);
		for (const one of all) {
			await setStatus(one, complete[one.kind]);
			const { generation } = (await live(one)).metadata;
			await patch(one, {
				spec: { template: { metadata: { annotations: { more: "1" } } } },
			});
			expect((await live(one)).metadata.generation).toBe(generation + 1);
			expect((await ask([one])).waits.length).toBe(1);
			expect(await rolledOut(one)).toBe(false);
		}
	}, 120_000);

	test("kubectl's restart counts from when it was, and by the API server's clock", async () => {
		await restart(kube, deployment, "ffffffff");
		const restarted = async () => {
			await real("rollout", "restart", which(deployment));
			await setStatus(deployment, complete.Deployment);
			const { annotations } = (await live(deployment)).spec.template.metadata;
			return Date.parse(annotations[RESTARTED_AT]);
		};
		const confirmed = async (writtenAt: number) =>
			(await ask([deployment], writtenAt)).waits.length === 0;
		const first = await restarted();
		expect(await confirmed(first - 10_000)).toBe(true);
		expect(await confirmed(first - 8000)).toBe(false);
		// The time that the API server notes moves with it.
		await until(() => Date.now() >= first + 2000, "two seconds are over");
		expect(await restarted()).toBeGreaterThanOrEqual(first + 2000);
		expect(await confirmed(first - 8000)).toBe(true);
		const ahead = new Date(Date.now() + 3600_000).toISOString();
		const annotations = { [RESTARTED_AT]: ahead };
		await patch(deployment, {
			spec: { template: { metadata: { annotations } } },
		});
		await setStatus(deployment, complete.Deployment);
		expect(await confirmed(Date.now() + 60_000)).toBe(false);
		expect(await confirmed(first - 8000)).toBe(true);
		await patch(deployment, {
			spec: {
				template: { metadata: { annotations: { [RESTARTED_AT]: null } } },
			},
		});
		await setStatus(deployment, complete.Deployment);
	}, 60_000);

	test("pods are those that the selector selects, by labels and expressions", async () => {
		const one = { ...deployment, name: "selecting" };
		const selector = {
			matchLabels: { app: "s" },
			matchExpressions: [
				{ key: "tier", operator: "In", values: ["a", "b"] },
				{ key: "env", operator: "NotIn", values: ["test", "dev"] },
				{ key: "here", operator: "Exists" },
				{ key: "away", operator: "DoesNotExist" },
			],
		};
		const labels = { app: "s", tier: "b", env: "prod", here: "" };
		const base = made(one) as Json;
		base.spec.selector = selector;
		base.spec.template.metadata.labels = labels;
		await cluster.apply(
			base,
			madePod("s-yes", labels),
			madePod("s-app", { ...labels, app: "t" }),
			madePod("s-tier", { ...labels, tier: "c" }),
			madePod("s-env", { ...labels, env: "dev" }),
			madePod("s-here", { app: "s", tier: "b", env: "prod" }),
			madePod("s-away", { ...labels, away: "" }),
		);
		const text = selectorText(selector);
		const names = (await admin.list("Pod", "real", text)).map(
			({ metadata }) => metadata.name,
		);
		expect(names).toEqual(["s-yes"]);
		const [created = 0] = await createdAt("s-yes");
		await setStatus(one, complete.Deployment);
		const asked = (writtenAt: number) => ask([one], writtenAt, admin);
		expect(short(await asked(created - 10_000))).toEqual([]);
		expect((await asked(created - 9000)).restart).toEqual(one);
		// Started again in place.
		const startedAt = new Date(created + 300_000).toISOString();
		const state = { running: { startedAt: startedAt.replace(/\.\d+/, "") } };
		const containerStatuses = [
			{
				...{ name: "c", image: "none", imageID: "", ready: true },
				...{ restartCount: 1, state },
			},
		];
		await real(
			...["patch", "pod", "s-yes", "--subresource=status", "--type=merge"],
			...["-p", JSON.stringify({ status: { containerStatuses } })],
		);
		expect(short(await asked(created + 179_000))).toEqual([]);
		expect((await asked(created + 180_000)).restart).toEqual(one);
		// Pods of an unreadable workload are no help without the right to list them.
		expect(short(await ask([one], created - 10_000))).toEqual([
			"Deployment real/selecting: ConsumerForbidden!",
		]);
	}, 60_000);

	test("where no consumer is named, pods that have the ConfigMap tell, once they may be listed", async () => {
		const volume = {
			name: "ca",
			configMap: { name: "etcd-serving-ca" },
		};
		const projected = {
			name: "ca",
			projected: { sources: [{ configMap: { name: "etcd-serving-ca" } }] },
		};
		await cluster.apply(
			madePod("reader-1", {}, { volumes: [volume] }),
			madePod("reader-2", {}, { volumes: [projected] }),
		);
		const created = await createdAt("reader-1", "reader-2");
		expect(created).toHaveLength(2);
		const old = Math.min(...created) - MINUTE;
		expect(short(await ask([], old))).toEqual([
			"ConfigMap real/etcd-serving-ca: ConsumerUnknown!",
		]);
		await real("create", "role", "pods", "--verb=list", "--resource=pods");
		await real(
			...["create", "rolebinding", "pods", "--role=pods"],
			`--serviceaccount=${NAMESPACE}:etcdproxy-controller-sa`,
		);
		expect(short(await ask([], old))).toEqual([]);
		const { waits } = await ask([], Math.max(...created));
		expect(waits[0]?.message).toContain("reader-1, reader-2; restart them");
		const two = [
			{ namespace: "real", name: "etcd-serving-ca", writtenAt: old },
			{ namespace: "real", name: "nobody", writtenAt: old },
			{ namespace: "foreign", name: "etcd-serving-ca", writtenAt: old },
		];
		expect(short(await ask([], old, kube, { published: two }))).toEqual([
			"ConfigMap real/nobody: ConsumerUnknown!",
			"ConfigMap foreign/etcd-serving-ca: ConsumerUnknown!",
		]);
		expect(await ask([], old, kube, { published: [] })).toEqual({ waits: [] });
	}, 60_000);

	test("an API server that cannot be reached is no fact about anybody", async () => {
		const config = await Bun.file(cluster.kubeconfig).json();
		config.clusters[0].cluster.server = "https://127.0.0.1:1";
		const path = `${cluster.dir}/unreachable.kubeconfig`;
		await Bun.write(path, JSON.stringify(config));
		const away = new Kube(loadKubeConfig(path), { fieldManager: "test" });
		for (const consumers of [all, []])
			expect(
				await ask(consumers, W, away).catch((error: unknown) => error),
			).toMatchObject({ name: "ApiError", code: 0 });
		// With nothing published, there is nothing to be asked.
		expect(await ask(all, W, away, { published: [] })).toEqual({ waits: [] });
	}, 30_000);

	test("three consumers are rolled one after the other by Kubernetes' own controllers, and confirmed when kubectl agrees", async () => {
		const names = kindsOf.map((kind) => consumer("rolled", kind, "rolled"));
		await cluster.apply(
			...namespace("rolled"),
			...names.map((one) => {
				const object = made(one) as Json;
				if (one.kind !== "DaemonSet") object.spec.replicas = 1;
				return object;
			}),
			{ apiVersion: "v1", kind: "Node", metadata: { name: "node" } },
		);
		await cluster.startControllerManager();
		const rolled = (...args: string[]) =>
			cluster.kubectl(["-n", "rolled", ...args]);
		const uids = async () =>
			(await admin.list<Pod>("Pod", "rolled")).map((one) => one.metadata.uid);
		/** What a kubelet does: pods run, and become ready. */
		const run = async () => {
			for (const { metadata, status } of await admin.list<Pod>("Pod", "rolled"))
				if (status?.phase !== "Running")
					await rolled(
						...["patch", "pod", metadata.name, "--subresource=status"],
						...["--type=merge", "-p"],
						JSON.stringify({
							status: {
								phase: "Running",
								conditions: [{ type: "Ready", status: "True" }],
							},
						}),
					);
		};
		// In the future, so that no pod is newer: the rollouts alone tell.
		const writtenAt = Date.now() + 3600_000;
		const asked = () =>
			readersBehind(
				admin,
				question({
					consumers: names,
					published: [{ namespace: "rolled", name: "ca", writtenAt }],
					now: writtenAt + MINUTE,
				}),
			);
		const done = async (one: Consumer) =>
			/successfully rolled out|roll ?out complete|rolling update complete/.test(
				await rolled("rollout", "status", which(one), "--watch=false"),
			);
		await until(
			async () => {
				await run();
				// That a DaemonSet's pods were never available, it does not tell by itself.
				for (const one of names) if (!(await done(one))) return false;
				return (await asked()).restart;
			},
			"all are rolled out for the first time",
			60_000,
		);
		const before = await uids();
		const order: string[] = [];
		await until(
			async () => {
				const { waits, restart: next } = await asked();
				if (next) {
					// All are whole whenever one is to be restarted.
					for (const one of names) expect(await done(one)).toBe(true);
					order.push(next.kind);
					await restart(admin, next, GENERATION);
					return false;
				}
				if (waits.length > 0) await run();
				return waits.length === 0;
			},
			"all have read it",
			60_000,
		);
		expect(order).toEqual([...kindsOf]);
		for (const one of names) expect(await done(one)).toBe(true);
		const after = await uids();
		expect(after.filter((uid) => before.includes(uid))).toEqual([]);
		expect(after).toHaveLength(3);
		// Without pods.
		const zero = consumer("zero", "Deployment", "rolled");
		const object = made(zero) as Json;
		object.spec.replicas = 0;
		await cluster.apply(object);
		await until(
			async () => (await ask([zero], writtenAt, admin)).waits.length === 0,
			"a Deployment without pods is complete",
		);
	}, 180_000);
});
