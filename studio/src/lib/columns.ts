// The columns of the table of runs: which there are, which are shown, and how wide they are.
/** `least` is the smallest width in px, `grow` its share of the room that is left. */
export type Column = { key: string; label: string; least: number; grow: number; sort: string | null; num: boolean; shown: boolean };

const column = (key: string, label: string, least: number, grow: number, sort: string | null, num = false, shown = true): Column => ({ key, label, least, grow, sort, num, shown });

export const COLUMNS: readonly Column[] = [
  column("name", "Run", 160, 2, "name"),
  column("status", "Status", 100, 0, "status"),
  column("base", "Base model", 112, 1, "base"),
  column("data", "Data", 96, 0.8, null),
  column("method", "Method", 76, 0, "method"),
  column("steps", "Steps", 72, 0, "steps", true),
  column("spark", "Loss", 122, 0, "loss"),
  column("eval_loss", "Eval loss", 66, 0, "eval_loss", true, false),
  column("headline", "Change against base", 178, 1, "delta"),
  column("speed", "Tokens/s", 66, 0, "tokens_per_second", true),
  column("peak", "Peak memory", 84, 0, "peak_bytes", true),
  column("seconds", "Duration", 92, 0, "seconds", true),
  column("started", "Started", 84, 0, "started_at", true, false),
  column("updated", "Updated", 84, 0, "updated_at", true, false),
  column("tags", "Tags", 90, 1, null, false, false),
];

/** The columns named in `text` (comma list), in the table's order; the usual ones when it is empty or names none. */
export function chosen(text: string): Column[] {
  const keys = new Set(text.split(",").filter(Boolean));
  const found = COLUMNS.filter((one) => one.key === "name" || keys.has(one.key));
  return found.length > 1 ? found : COLUMNS.filter((one) => one.shown);
}

const GAP = 12;
const PICK = 26;

/** The grid of these columns (after the one of check boxes), and the least width of a line in px. */
export function layout(columns: readonly Column[]): { grid: string; least: number } {
  const tracks = columns.map((one) => (one.grow ? `minmax(${one.least}px, ${one.grow}fr)` : `${one.least}px`));
  return { grid: `${PICK}px ${tracks.join(" ")}`, least: columns.reduce((sum, one) => sum + one.least + GAP, PICK + 32) };
}

/** The order after a click on a column's head: descending first, then ascending, then the default again. */
export function nextSort(now: string, key: string): string {
  if (now === `-${key}`) return key;
  return now === key ? "" : `-${key}`;
}
