/** A command line from a table: the parser, `--help` and the README's reference are made of the same rows. Pure. */
import { parseArgs } from "node:util";

export interface Flag {
	/** One letter: `-k`. */
	short?: string;
	/** A former name that still works. */
	alias?: string;
	/** What stands for the value in `--help`; a flag without one is a switch. */
	value?: string;
	/** As it is shown; a list's flag may be repeated. */
	default: string | string[] | boolean;
	description: string;
}

export type Flags<Name extends string = string> = Record<Name, Flag>;
export type Values<Name extends string> = Record<
	Name,
	string | string[] | boolean
>;

/** Bad words on the command line; the message says which, and what would be right. */
export class UsageError extends Error {}

/**
 * The value of every flag of the table, unchecked: the one given, else the one under its former name, else its default.
 * @param args without the program's name
 * @param words gets the words that belong to no flag
 * @throws UsageError for an unknown flag, a flag without its value, and, without `words`, words that belong to none
 */
export function parseFlags<Name extends string>(
	flags: Flags<Name>,
	args: string[],
	words?: string[],
): Values<Name> | { help: true } {
	const given = parse(
		flags,
		// pflag, which the 2018 controller used, also took -k=file.
		args.flatMap((word) => {
			const match = /^-([a-z])=(.*)$/s.exec(word);
			return match ? [`-${match[1]}`, match[2] ?? ""] : [word];
		}),
		words,
	);
	if (given.help) return { help: true };
	return Object.fromEntries(
		Object.entries<Flag>(flags).map(([name, flag]) => [
			name,
			given[name] ??
				(flag.alias === undefined ? undefined : given[flag.alias]) ??
				flag.default,
		]),
	) as Values<Name>;
}

function parse(
	flags: Flags,
	args: string[],
	words: string[] | undefined,
): Record<string, string | string[] | boolean | undefined> {
	try {
		const { values, positionals } = parseArgs({
			args,
			options: Object.fromEntries([
				...Object.entries(flags).flatMap(([name, flag]) => {
					const option = {
						type:
							typeof flag.default === "boolean"
								? ("boolean" as const)
								: ("string" as const),
						multiple: Array.isArray(flag.default),
						...(flag.short !== undefined && { short: flag.short }),
					};
					return [
						[name, option] as const,
						...(flag.alias === undefined
							? []
							: [[flag.alias, { type: option.type }] as const]),
					];
				}),
				["help", { type: "boolean" as const, short: "h" }],
			]),
			strict: true,
			allowPositionals: words !== undefined,
		});
		words?.push(...positionals);
		return values as ReturnType<typeof parse>;
	} catch (error) {
		throw new UsageError(
			`${(error as Error).message.replace(/\.? To specify.*$/s, "")}; see --help`,
			{ cause: error },
		);
	}
}

/** The items of a list that may be repeated, separated by commas, or both. */
export const listOf = (values: string[]): string[] =>
	values
		.flatMap((list) => list.split(","))
		.map((item) => item.trim())
		.filter((item) => item !== "");

/** Whether it is a URL of that scheme with a host and nothing behind it. */
export const isUrl = (scheme: "http" | "https", text: string): boolean =>
	text.startsWith(`${scheme}://`) &&
	/^[a-z]+:\/\/[^/?#@\s]+$/.test(text) &&
	URL.canParse(text);

/** Whether it is host:port, where the host may be empty or an IPv6 address in brackets. */
export const isAddress = (text: string): boolean =>
	Number(/^.*:(\d+)$/.exec(text)?.[1]) <= 65_535;

/** Rows of flag, default and description, as `--help` and the README show them. */
export function flagRows(
	flags: Flags,
): [flag: string, fallback: string, description: string][] {
	return Object.entries(flags).map(([name, flag]) => [
		[
			`--${name}`,
			...(flag.short ? [`-${flag.short}`] : []),
			...(flag.alias ? [`--${flag.alias}`] : []),
		].join(", ") + (flag.value ? ` <${flag.value}>` : ""),
		String(flag.default),
		flag.description,
	]);
}

/** The text of `--help`: what comes before the flags, and the flags. */
export function helpText(introduction: string, flags: Flags): string {
	const rows = flagRows({
		...flags,
		help: { short: "h", default: false, description: "Print this." },
	}).map(
		([flag, fallback, description]) =>
			`  ${flag}\n      ${description}${fallback && fallback !== "false" ? ` Default: ${fallback}` : ""}`,
	);
	return `${introduction}\n\n${rows.join("\n")}\n`;
}
