import { describe, expect, it } from "vitest";
import { alarms, further, places, series } from "../src/lib/series";
import { align, smooth, thin } from "../src/lib/smooth";
import type { MetricRow } from "../src/lib/types";

const rows: MetricRow[] = [
  { line: 0, step: 1, loss: 2, grad_norm: 1, tokens: 100, seconds: 1, "rewards/margins": 0.1 },
  { line: 1, step: 2, loss: null, grad_norm: null, tokens: 200, seconds: 2 },
  { line: 2, step: 2, eval_loss: 1.5 },
  { line: 3, step: 3, loss: 1, grad_norm: 0, tokens: 300, seconds: 3 },
];

describe("lines of charts", () => {
  it("takes a key at its places", () => {
    expect(series(rows, "loss", "step")).toEqual({ x: [1, 2, 3], y: [2, null, 1] });
    expect(series(rows, "eval_loss", "step")).toEqual({ x: [2], y: [1.5] });
  });
  it("puts validation where the training row before it stands", () => {
    expect(places(rows, "tokens")).toEqual([100, 200, 200, 300]);
    expect(series(rows, "eval_loss", "time")).toEqual({ x: [2], y: [1.5] });
  });
  it("lets the later of two rows on one place hold", () => {
    expect(series([...rows, { line: 4, step: 3, loss: 0.5 }], "loss", "step").y.at(-1)).toBe(0.5);
  });
  it("names what there is beside the usual", () => {
    expect(further(rows)).toEqual(["rewards/margins"]);
  });
  it("warns of values that are not finite and of gradients of 0", () => {
    expect(alarms(rows).join()).toMatch(/not a finite number.*norm was 0/);
    expect(alarms([{ line: 0, step: 1, loss: 1, grad_norm: 0 }])[0]).toMatch(/nothing is being learned/);
    expect(alarms([{ line: 0, step: 1, loss: 1, grad_norm: 0.5 }])).toEqual([]);
    expect(alarms([])).toEqual([]);
  });
});

describe("smoothing", () => {
  it("has no bias at the start and leaves a constant alone", () => {
    for (const value of smooth([3, 3, 3, 3], 0.9)) expect(value).toBeCloseTo(3, 12);
    expect(smooth([1, 5], 0)).toEqual([1, 5]);
    // Two points with weight w: (w(1-w)x0 + (1-w)x1) / (1 - w^2) = (w x0 + x1) / (1 + w).
    expect(smooth([1, 2], 0.5)[1]).toBeCloseTo((0.5 + 2) / 1.5, 12);
  });
  it("keeps gaps", () => {
    expect(smooth([1, null, 2], 0.5)[1]).toBeNull();
    expect(smooth([1, Infinity, 2], 0.5)[1]).toBeNull();
  });
});

describe("axes", () => {
  it("puts lines on one sorted axis", () => {
    expect(align([{ x: [3, 1], y: [30, 10] }, { x: [2], y: [5] }])).toEqual({ x: [1, 2, 3], y: [[10, null, 30], [null, 5, null]] });
  });
  it("thins evenly with both ends", () => {
    expect(thin(3, 10)).toEqual([0, 1, 2]);
    const some = thin(1000, 5);
    expect([some[0], some.at(-1), some.length]).toEqual([0, 999, 5]);
  });
});
