/** Which header fields make a request, a response, trailers: https://www.rfc-editor.org/rfc/rfc9113#section-8. Pure. */
import type { Header } from "./hpack.ts";

/** There is something in the fields that must not be there, or something is missing: a stream error. */
export const MALFORMED = -2;
/** There is no content-length. */
export const NO_LENGTH = -1;

const METHOD = 1;
const SCHEME = 2;
const PATH = 4;
const AUTHORITY = 8;
const STATUS = 16;
const PSEUDO = 31;
const FORBIDDEN = 32;
const TE = 64;
const CONTENT_LENGTH = 128;

/** Names that mean something here. */
const KINDS = new Map([
	[":method", METHOD],
	[":scheme", SCHEME],
	[":path", PATH],
	[":authority", AUTHORITY],
	[":status", STATUS],
	// Fields of HTTP/1.1 connections: https://www.rfc-editor.org/rfc/rfc9113#section-8.2.2
	["connection", FORBIDDEN],
	["proxy-connection", FORBIDDEN],
	["keep-alive", FORBIDDEN],
	["transfer-encoding", FORBIDDEN],
	["upgrade", FORBIDDEN],
	["te", TE],
	["content-length", CONTENT_LENGTH],
	// The usual ones, which need no closer look.
	...["content-type", "user-agent", "grpc-accept-encoding", "hasleader"].map(
		(name) => [name, 0] as const,
	),
	...["grpc-timeout", "grpc-status", "grpc-message"].map(
		(name) => [name, 0] as const,
	),
]);

/** https://www.rfc-editor.org/rfc/rfc9113#section-8.2.1 */
const NAME = /^[!-9;-@[-~]+$/;
/** The RFC also forbids white space at the ends, which grpc-message may have (gRPC does not encode it). */
const BAD_VALUE = /[\0\r\n]/;

/** @returns content-length, NO_LENGTH or MALFORMED */
export function checkRequest(headers: readonly Header[]): number {
	return check(
		headers,
		METHOD | SCHEME | PATH | AUTHORITY,
		METHOD | SCHEME | PATH,
	);
}

/** @returns content-length, NO_LENGTH or MALFORMED */
export function checkResponse(headers: readonly Header[]): number {
	return check(headers, STATUS, STATUS);
}

/** @returns MALFORMED, or any other number */
export function checkTrailers(headers: readonly Header[]): number {
	return check(headers, 0, 0);
}

/** Of a response that checkResponse has let through: whether another one follows, as after 103. */
export function isInformational(headers: readonly Header[]): boolean {
	const [first] = headers;
	return first !== undefined && first[0] === ":status" && first[1][0] === "1";
}

function check(
	headers: readonly Header[],
	allowed: number,
	required: number,
): number {
	let seen = 0;
	let regular = false;
	let length = NO_LENGTH;
	for (const header of headers) {
		const name = header[0];
		const value = header[1];
		const kind = KINDS.get(name);
		if (BAD_VALUE.test(value)) return MALFORMED;
		if (kind === undefined) {
			if (!NAME.test(name)) return MALFORMED;
			regular = true;
		} else if ((kind & PSEUDO) !== 0) {
			// Each at most once, and before all others.
			if (regular || (kind & allowed & ~seen) === 0) return MALFORMED;
			if (kind === PATH && value === "") return MALFORMED;
			seen |= kind;
		} else {
			regular = true;
			if (kind === FORBIDDEN || (kind === TE && value !== "trailers"))
				return MALFORMED;
			if (kind === CONTENT_LENGTH) {
				if (length !== NO_LENGTH || !/^\d{1,15}$/.test(value)) return MALFORMED;
				length = Number(value);
			}
		}
	}
	return (seen & required) === required ? length : MALFORMED;
}
