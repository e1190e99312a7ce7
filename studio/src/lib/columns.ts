// The columns of the table of runs: which there are, which are shown, and how wide they are.
export type Column = { key: string; label: string; width: string; sort: string | null; num: boolean; shown: boolean };

const column = (key: string, label: string, width: string, sort: string | null, num = false, shown = true): Column => ({ key, label, width, sort, num, shown });

export const COLUMNS: readonly Column[] = [
  column("name", "Run", "minmax(190px, 2fr)", "name"),
  column("status", "Status", "104px", "status"),
  column("base", "Base model", "minmax(120px, 1fr)", "base"),
  column("data", "Data", "minmax(110px, 1fr)", null, false, false),
  column("method", "Method", "92px", "method"),
  column("steps", "Steps", "92px", "steps", true),
  column("spark", "Loss", "138px", "loss"),
  column("eval_loss", "Eval loss", "82px", "eval_loss", true),
  column("headline", "Change against base", "minmax(196px, 1.2fr)", "delta"),
  column("speed", "Tokens/s", "84px", "tokens_per_second", true),
  column("peak", "Peak memory", "100px", "peak_bytes", true),
  column("seconds", "Duration", "100px", "seconds", true),
  column("started", "Started", "96px", "started_at", true, false),
  column("updated", "Updated", "96px", "updated_at", true),
  column("tags", "Tags", "minmax(90px, 1fr)", null, false, false),
];

/** The columns named in `text` (comma list), in the table's order; the usual ones when it is empty or names none. */
export function chosen(text: string): Column[] {
  const keys = new Set(text.split(",").filter(Boolean));
  const found = COLUMNS.filter((one) => one.key === "name" || keys.has(one.key));
  return found.length > 1 ? found : COLUMNS.filter((one) => one.shown);
}

/** The order after a click on a column's head: descending first, then ascending, then the default again. */
export function nextSort(now: string, key: string): string {
  if (now === `-${key}`) return key;
  return now === key ? "" : `-${key}`;
}
