/**
 * Who certifies a signer beside itself. With such a cross-certificate, whoever trusts only the certifying one accepts what
 * it has signed (RFC 5280, section 3.2, as of "cross-certificate"). Pure.
 */
import type { Validity } from "./pki.ts";
import { type Cross, isValid, type Signers } from "./signers.ts";

/**
 * The newest of the present signers that everybody is known to trust, if it can.
 * @param validity of the signer to be certified; its certificate does not go beyond that, nor beyond its own signer's
 */
export function certifier(
	{ current, previous }: Signers,
	validity: Validity,
	now: number,
): Cross | undefined {
	const able = (by: Cross["by"], one: Signers["previous"]) => {
		if (!one?.pair || !one.facts.isCA || now >= one.facts.notAfter)
			return undefined;
		const both = within(validity, one.facts);
		return both.notBefore < both.notAfter ? { by, validity: both } : undefined;
	};
	// One that is not valid yet is able: when our own clock is behind, everybody else trusts it already.
	const own =
		"facts" in current && current.keyMatches
			? able("current", current)
			: undefined;
	return able("previous", previous) ?? own;
}

const within = (inner: Validity, outer: Validity): Validity => ({
	notBefore: Math.max(inner.notBefore, outer.notBefore),
	notAfter: Math.min(inner.notAfter, outer.notAfter),
});

/** Who can make a cross-certificate that there ought to be, and is not: lost, or damaged. */
export function lostCross(
	signers: Signers,
	of: "current" | "next",
	now: number,
): Cross | undefined {
	const subject = signers[of];
	const present = of === "next" ? signers.nextCross : signers.cross;
	if (!("facts" in subject) || isValid(present, now)) return undefined;
	const cross = certifier(signers, subject.facts, now);
	// Of the current one only as long as its predecessor is needed; by itself it is certified anyhow.
	return of === "next" || cross?.by === "previous" ? cross : undefined;
}
