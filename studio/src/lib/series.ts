// From rows of metrics to lines of a chart.
import type { Maybe } from "./smooth";
import type { MetricRow } from "./types";

export type Axis = "step" | "tokens" | "time";
export type Series = { x: number[]; y: Maybe[] };

/** Where a row stands on the axis; validation rows, which have no token count or time, take the one of the training row before them. */
export function places(rows: readonly MetricRow[], axis: Axis): Maybe[] {
  if (axis === "step") return rows.map((row) => row.step);
  const key = axis === "tokens" ? "tokens" : "seconds";
  let last: Maybe = null;
  return rows.map((row) => {
    const value = row[key];
    if (typeof value === "number" && "loss" in row) last = value;
    return last;
  });
}

/** The numbers under `key`, at the places where a row has that key; null stands for a value that was not finite. */
export function series(rows: readonly MetricRow[], key: string, axis: Axis, at = places(rows, axis)): Series {
  const x: number[] = [];
  const y: Maybe[] = [];
  rows.forEach((row, index) => {
    const place = at[index];
    if (!(key in row) || place === null || place === undefined) return;
    // Two rows on one place (a resume, a validation twice): the later one holds.
    if (x.at(-1) === place) {
      y[y.length - 1] = row[key] ?? null;
      return;
    }
    x.push(place);
    y.push(row[key] ?? null);
  });
  return { x, y };
}

const USUAL = new Set(["line", "step", "epoch", "loss", "eval_loss", "grad_norm", "learning_rate", "tokens", "trained_tokens", "seconds", "tokens_per_second", "eval_tokens"]);

/** Keys of numbers beside the usual ones: accuracies, rewards, KL and so on. */
export function further(rows: readonly MetricRow[]): string[] {
  const keys = new Set<string>();
  for (const row of rows) for (const [key, value] of Object.entries(row)) if (!USUAL.has(key) && typeof value === "number") keys.add(key);
  return [...keys].sort();
}

/** What is wrong with the last training rows. */
export function alarms(rows: readonly MetricRow[], last = 20): string[] {
  const training = rows.filter((row) => "loss" in row).slice(-last);
  const found: string[] = [];
  if (training.some((row) => row["loss"] === null || ("grad_norm" in row && row["grad_norm"] === null))) found.push("A loss or gradient norm was not a finite number");
  if (training.length > 0 && training.every((row) => row["grad_norm"] === 0)) found.push("The gradient norm is 0: nothing is being learned");
  else if (training.some((row) => row["grad_norm"] === 0)) found.push("A gradient norm was 0");
  return found;
}
