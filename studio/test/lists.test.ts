import { describe, expect, it } from "vitest";
import { chosen, COLUMNS, layout, nextSort } from "../src/lib/columns";
import { pagesOf, scrollTo, windowOf } from "../src/lib/window";
import { parse, runPath, to } from "../src/lib/route";
import { parts } from "../src/lib/plan";

describe("rows in sight", () => {
  it("draws what is seen and a little more, never beyond the ends", () => {
    expect(windowOf(0, 400, 40, 1000)).toEqual({ first: 0, last: 18 });
    expect(windowOf(40 * 990, 400, 40, 1000)).toEqual({ first: 982, last: 1000 });
    expect(windowOf(0, 400, 40, 0)).toEqual({ first: 0, last: 0 });
    expect(windowOf(1e9, 400, 40, 10).last).toBe(10);
  });
  it("never draws a whole long list, even without bounds", () => {
    const { first, last } = windowOf(0, 1e7, 40, 100_000);
    expect(last - first).toBeLessThanOrEqual(400);
  });
  it("asks for the pages of a window", () => {
    expect(pagesOf({ first: 95, last: 205 }, 100)).toEqual([0, 1, 2]);
    expect(pagesOf({ first: 100, last: 200 }, 100)).toEqual([1]);
    expect(pagesOf({ first: 5, last: 5 }, 100)).toEqual([]);
  });
  it("scrolls as little as needed", () => {
    expect(scrollTo(5, 0, 400, 40)).toBe(0);
    expect(scrollTo(20, 0, 400, 40)).toBe(440);
    expect(scrollTo(2, 400, 400, 40)).toBe(80);
  });
});

describe("columns", () => {
  it("shows the usual ones when none is named", () => {
    expect(chosen("")).toEqual(COLUMNS.filter((column) => column.shown));
    expect(chosen("nonsense").length).toBeGreaterThan(1);
    expect(chosen("tags,status").map((column) => column.key)).toEqual(["name", "status", "tags"]);
  });
  it("fits a page of 1440 px", () => {
    expect(layout(chosen("")).least).toBeLessThanOrEqual(1372);
  });
  it("turns the order: down, up, none", () => {
    expect([nextSort("", "loss"), nextSort("-loss", "loss"), nextSort("loss", "loss"), nextSort("-name", "loss")]).toEqual(["-loss", "loss", "", "-loss"]);
  });
});

describe("addresses", () => {
  it("goes there and back for any name", () => {
    for (const name of ["quickstart", "exp~1run", "a b", "50%", "<script>", "ü?&#"]) {
      for (const part of ["", "data", "evals"]) {
        const path = new URL(to(runPath(name, part)), "http://localhost").pathname;
        expect(parse(path)).toEqual({ screen: { "": "live", data: "rundata", evals: "evals" }[part], name });
      }
    }
  });
  it("knows the pages and what is none", () => {
    expect(parse("/studio/").screen).toBe("runs");
    expect(parse("/studio/play").screen).toBe("play");
    expect(parse("/studio/nothing").screen).toBe("missing");
    expect(parse("/studio/runs/a/b").screen).toBe("missing");
    expect(parse("/studio/runs/%E0%A4%A").name).toBe("%E0%A4%A");
  });
  it("leaves empty values out of the query", () => {
    expect(to("data", { q: "", row: 0, view: null, packs: false, x: "a&b" })).toBe("/studio/data?row=0&x=a%26b");
  });
});

describe("plan", () => {
  it("adds up to the total", () => {
    const list = parts({ weights: 100, adapters: 0, odd: 5 }, 200);
    expect(list.reduce((sum, part) => sum + part.bytes, 0)).toBe(200);
    expect(list.map((part) => part.key)).toEqual(["weights", "rest", "odd"]);
    expect(parts({ weights: 100 }, 100)).toHaveLength(1);
  });
});
