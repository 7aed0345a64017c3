/** What the headers of an executable tell, read here and not with the tools of a system. */

export interface Executable {
	machine: string;
	/** The dynamic loader's path; of ELF. */
	interpreter?: string;
	/** Names of shared libraries; of ELF. */
	needed?: string[];
	/** Whether it has a signature that holds, be it nobody's; of Mach-O, which macOS ends at once without one. */
	signed?: boolean;
}

/** @throws Error for anything but a 64-bit ELF or Mach-O executable */
export function readExecutable(bytes: Uint8Array): Executable {
	const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
	// https://github.com/apple-oss-distributions/xnu/blob/main/EXTERNAL_HEADERS/mach-o/loader.h
	if (view.getUint32(0, true) === 0xfeedfacf) {
		if (
			view.getUint32(4, true) !== 0x0100000c ||
			view.getUint32(12, true) !== 2
		)
			throw new Error("no executable for arm64");
		return { machine: "Mach-O arm64", signed: hasSignature(bytes, view) };
	}
	// https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html
	if (view.getUint32(0) !== 0x7f454c46 || bytes[4] !== 2)
		throw new Error("neither 64-bit ELF nor Mach-O");
	const machine = { 62: "ELF x86-64", 183: "ELF aarch64" }[
		view.getUint16(18, true)
	];
	if (machine === undefined) throw new Error("another machine's");
	const u64 = (offset: number) => Number(view.getBigUint64(offset, true));
	const text = (offset: number) =>
		Buffer.from(bytes.subarray(offset, bytes.indexOf(0, offset))).toString();
	const headers = Array.from(
		{ length: view.getUint16(56, true) },
		(_, index) => {
			const at = u64(32) + index * view.getUint16(54, true);
			return {
				type: view.getUint32(at, true),
				offset: u64(at + 8),
				address: u64(at + 16),
				size: u64(at + 32),
			};
		},
	);
	const [LOAD, DYNAMIC, INTERPRETER] = [1, 2, 3];
	const dynamic = headers.find(({ type }) => type === DYNAMIC);
	const entries = Array.from(
		{ length: (dynamic?.size ?? 0) / 16 },
		(_, index) => {
			const at = (dynamic?.offset ?? 0) + index * 16;
			return { tag: u64(at), value: u64(at + 8) };
		},
	);
	const [NEEDED, STRINGS] = [1, 5];
	const address = entries.find(({ tag }) => tag === STRINGS)?.value ?? 0;
	const segment = headers.find(
		(one) =>
			one.type === LOAD &&
			one.address <= address &&
			address < one.address + one.size,
	);
	const strings = address - (segment?.address ?? 0) + (segment?.offset ?? 0);
	return {
		machine,
		interpreter: text(
			headers.find(({ type }) => type === INTERPRETER)?.offset ?? 0,
		),
		needed: entries
			.filter(({ tag }) => tag === NEEDED)
			.map(({ value }) => text(strings + value)),
	};
}

/** https://github.com/apple-oss-distributions/xnu/blob/main/osfmk/kern/cs_blobs.h */
function hasSignature(bytes: Uint8Array, view: DataView): boolean {
	const SIGNATURE = 0x1d;
	let at = 32;
	for (let left = view.getUint32(16, true); left > 0; left--) {
		if (view.getUint32(at, true) === SIGNATURE) break;
		at += view.getUint32(at + 4, true);
	}
	if (view.getUint32(at, true) !== SIGNATURE) return false;
	const start = view.getUint32(at + 8, true);
	const directory = start + view.getUint32(start + 16);
	if (view.getUint32(directory) !== 0xfade0c02) return false;
	const field = (index: number) => view.getUint32(directory + 4 * index);
	const [hashes, count, limit] = [directory + field(4), field(7), field(8)];
	const pageSize = 1 << view.getUint8(directory + 39);
	const pages = Array.from({ length: count }, (_, index) =>
		bytes.subarray(index * pageSize, Math.min((index + 1) * pageSize, limit)),
	);
	return (
		limit === start &&
		pages.every((page, index) => {
			const hash = new Bun.CryptoHasher("sha256").update(page).digest();
			const wanted = hashes + 32 * index;
			return hash.equals(bytes.subarray(wanted, wanted + 32));
		})
	);
}
