/** Preloaded into a controller: its wall clock is off by the milliseconds in the file that CLOCK_OFFSET names. */
import { readFileSync } from "node:fs";

const RealDate = Date;
const now = () =>
	RealDate.now() + Number(readFileSync(process.env.CLOCK_OFFSET ?? "", "utf8"));

globalThis.Date = class extends RealDate {
	static override now = now;
	constructor(...args: [] | [string | number | Date]) {
		super(args.length === 0 ? now() : args[0]);
	}
} as DateConstructor;
