/** What a test file plays on: one real API server and one controller, from its first test to its last. */
import { afterAll, beforeAll } from "bun:test";
import { type Client, client } from "./client.ts";
import {
	type Cluster,
	type Controller,
	FIRST_BUILD,
	startCluster,
	startController,
} from "./harness.ts";

export interface Stage {
	cluster: Cluster;
	controller: Controller;
	api: Client;
}

/**
 * To be called at the top of a test file; filled before its first test.
 * @param prepare runs on the cluster before the controller starts
 * @param flags more of the controller's
 */
export function stage(
	prepare?: (cluster: Cluster) => Promise<void>,
	flags: string[] = [],
): Stage {
	const on = {} as Stage;
	beforeAll(async () => {
		on.cluster = await startCluster();
		await prepare?.(on.cluster);
		on.controller = await startController(on.cluster, { flags });
		on.api = client(on.cluster);
	}, FIRST_BUILD);
	afterAll(async () => {
		await on.controller?.stop();
		await on.cluster?.stop();
	}, 30_000);
	return on;
}
