import { describe, expect, test } from "bun:test";
import { UsageError } from "../flags.ts";
import { ApiError } from "../kube.ts";
import { explain } from "../log.ts";

describe("an error is explained", () => {
	test.each([
		["that was thrown with a sentence", new Error("the disk is full")],
		["of the command line", new UsageError("the disk is full")],
		[
			"of the API server",
			new ApiError(
				"get",
				{ apiVersion: "v1", kind: "Secret", name: "a", namespace: "b" },
				{ code: 507, reason: "Full", message: "the disk is full" },
			),
		],
	])("(one %s) by its sentence alone", (_, error) => {
		expect(explain(error)).toBe(error.message);
		expect(explain(error)).toMatch(/^[^\n]*the disk is full$/);
	});

	test("(a bug) with the place where it is", () => {
		for (const make of [
			() => (undefined as unknown as { a: 1 }).a,
			() => new Array(-1),
			() => JSON.parse("{"),
			() => decodeURIComponent("%"),
		]) {
			let bug: unknown;
			try {
				make();
			} catch (error) {
				bug = error;
			}
			expect(explain(bug)).toContain("log.test.ts");
			expect(explain(bug)).toContain((bug as Error).message);
		}
	});

	test("(something that is none) as it is", () => {
		expect(explain({ odd: 1 })).toBe("{\n  odd: 1,\n}");
	});
});
