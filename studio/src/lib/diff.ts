// Word diff: the longest common subsequence over words and white space.
export type Piece = { kind: "same" | "del" | "ins"; text: string };

/** Beyond this many cells of the table (words x words) the differing middle is shown as one change. */
const MOST_CELLS = 4_000_000;

export function words(text: string): string[] {
  return text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];
}

/** What turns `before` into `after`; the texts of same+del give `before`, those of same+ins `after`. */
export function diff(before: string, after: string): Piece[] {
  const a = words(before);
  const b = words(after);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let endA = a.length;
  let endB = b.length;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) {
    endA -= 1;
    endB -= 1;
  }
  const pieces: Piece[] = [];
  push(pieces, "same", a.slice(0, start).join(""));
  middle(pieces, a.slice(start, endA), b.slice(start, endB));
  push(pieces, "same", a.slice(endA).join(""));
  return pieces;
}

/** The share of letters that both texts have in common, of the longer one: below about a quarter, marks are noise. */
export function alike(pieces: readonly Piece[]): number {
  const size = (kinds: Piece["kind"][]): number => pieces.filter((piece) => kinds.includes(piece.kind)).reduce((sum, piece) => sum + piece.text.trim().length, 0);
  const longer = Math.max(size(["same", "del"]), size(["same", "ins"]));
  return longer === 0 ? 1 : size(["same"]) / longer;
}

function middle(pieces: Piece[], a: string[], b: string[]): void {
  if (a.length * b.length > MOST_CELLS || a.length === 0 || b.length === 0) {
    push(pieces, "del", a.join(""));
    push(pieces, "ins", b.join(""));
    return;
  }
  const width = b.length + 1;
  const table = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      table[i * width + j] = a[i] === b[j]
        ? (table[(i + 1) * width + j + 1] ?? 0) + 1
        : Math.max(table[(i + 1) * width + j] ?? 0, table[i * width + j + 1] ?? 0);
    }
  }
  let i = 0;
  let j = 0;
  while (i < a.length && j < b.length) {
    if (a[i] === b[j]) {
      push(pieces, "same", a[i]!);
      i += 1;
      j += 1;
    } else if ((table[(i + 1) * width + j] ?? 0) >= (table[i * width + j + 1] ?? 0)) push(pieces, "del", a[i++]!);
    else push(pieces, "ins", b[j++]!);
  }
  push(pieces, "del", a.slice(i).join(""));
  push(pieces, "ins", b.slice(j).join(""));
}

function push(pieces: Piece[], kind: Piece["kind"], text: string): void {
  if (text === "") return;
  const last = pieces.at(-1);
  if (last?.kind === kind) last.text += text;
  else pieces.push({ kind, text });
}
