// Series for the charts.
export type Maybe = number | null;

/**
 * Exponential moving average without the start's bias (the average of Adam's first moment, Kingma and Ba 2015, section 3).
 * @param weight share of the past in each point: 0 gives the raw line, 0.9 looks back about 10 points. Gaps stay gaps.
 */
export function smooth(values: readonly Maybe[], weight: number): Maybe[] {
  let sum = 0;
  let norm = 0;
  return values.map((value) => {
    if (value === null || !Number.isFinite(value)) return null;
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + (1 - weight);
    return sum / norm;
  });
}

/** Puts several series with their own x onto one sorted x axis; missing places are null. */
export function align(series: readonly { x: readonly number[]; y: readonly Maybe[] }[]): { x: number[]; y: Maybe[][] } {
  const places = new Set<number>();
  for (const one of series) for (const x of one.x) places.add(x);
  const x = [...places].sort((a, b) => a - b);
  const at = new Map(x.map((value, index) => [value, index]));
  const y = series.map((one) => {
    const row: Maybe[] = new Array<Maybe>(x.length).fill(null);
    one.x.forEach((value, index) => {
      row[at.get(value)!] = one.y[index] ?? null;
    });
    return row;
  });
  return { x, y };
}

/** At most `most` indices out of `length`, evenly spread, with the first and the last. */
export function thin(length: number, most: number): number[] {
  if (length <= most) return Array.from({ length }, (_, index) => index);
  return Array.from({ length: most }, (_, index) => Math.round((index * (length - 1)) / (most - 1)));
}
