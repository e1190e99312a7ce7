// Rows and events that arrive over a stream, put behind those that are there.
import type { MetricRow } from "./types";

/** Charts hold at most this many rows; beyond, every second training row of the older half is let go. */
export const MOST_ROWS = 6000;

/** Appends rows in order of their line, each line once; halves the older part when there are too many. */
export function append(rows: readonly MetricRow[], more: readonly MetricRow[], most = MOST_ROWS): MetricRow[] {
  const last = rows.at(-1)?.line ?? -1;
  const fresh = more.filter((row) => row.line > last);
  if (fresh.length === 0) return rows as MetricRow[];
  const all = [...rows, ...fresh];
  if (all.length <= most) return all;
  const half = Math.floor(all.length / 2);
  return all.filter((row, index) => index >= half || index % 2 === 0 || Object.keys(row).some((key) => key.startsWith("eval_")));
}

/** Appends what has a number `n`, each once, and keeps the last `most`. */
export function appendNumbered<T extends { n: number }>(list: readonly T[], more: readonly T[], most: number): T[] {
  const last = list.at(-1)?.n ?? -1;
  const fresh = more.filter((one) => one.n > last);
  return fresh.length ? [...list, ...fresh].slice(-most) : (list as T[]);
}
