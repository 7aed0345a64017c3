/**
 * Preloaded into a controller: its wall clock is off by the milliseconds in the file that CLOCK_OFFSET names. With
 * CLOCK_OF_ALL the API server seems to be off by as much, as if time had passed for everybody.
 */
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

if (process.env.CLOCK_OF_ALL) {
	const { get } = Headers.prototype;
	Object.defineProperty(Headers.prototype, "get", {
		value(this: Headers, name: string) {
			const value = get.call(this, name);
			return value !== null && name.toLowerCase() === "date"
				? new Date(Date.parse(value) + now() - RealDate.now()).toUTCString()
				: value;
		},
	});
}
