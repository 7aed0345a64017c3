/** Which build this is. Pure. */
import packageJson from "./package.json" with { type: "json" };

// build/program.ts has the bundler put values in the place of these; run from source there are none.
declare const BUILD_COMMIT: string | undefined;
declare const BUILD_DATE: string | undefined;

/** Also the labels of the metric etcdproxy_build_info. */
export interface Build {
	version: string;
	/** Of git; with "-dirty" behind it when files were changed or added. Empty when run from source. */
	commit: string;
	/** The commit's, as in RFC 3339: the time of building would make every build another one. Empty when run from source. */
	date: string;
}

export const build: Readonly<Build> = {
	version: packageJson.version,
	commit: typeof BUILD_COMMIT === "undefined" ? "" : BUILD_COMMIT,
	date: typeof BUILD_DATE === "undefined" ? "" : BUILD_DATE,
};

/** As `--version` and the first line of the log say it. */
export const versionText = ({ version, commit, date }: Build): string =>
	`etcdproxy-controller ${version}${commit === "" ? ", run from source" : `, commit ${commit} of ${date}`}`;
