import { describe, expect, it } from "vitest";
import { ago, bytes, count, digitsApart, duration, number, percent, plain, pValue, signed, tail, when } from "../src/lib/format";

describe("numbers", () => {
  it("keeps significant digits and drops zeros", () => {
    expect(number(0.0204)).toBe("0.0204");
    expect(number(1.5)).toBe("1.5");
    expect(number(12345.678)).toBe("12,346");
    expect(number(0.00000123)).toBe("1.23e-6");
    expect(number(-0.5)).toBe("−0.5");
    expect(number(0)).toBe("0");
  });
  it("takes as many digits as tell the ends of an interval apart", () => {
    for (const [low, high] of [[-1.898, -1.872], [6.393, 6.415], [0.1, 0.4], [-1234.5, -1234.4], [-0.0212, -0.0208]] as const) {
      const digits = digitsApart(Math.max(Math.abs(low), Math.abs(high)), high - low);
      expect(number(low, digits)).not.toBe(number(high, digits));
    }
    expect(digitsApart(0.4, 0.3)).toBe(2);
    expect(digitsApart(0, 0)).toBe(2);
  });
  it("says what is not known, and what is not finite", () => {
    for (const format of [number, count, percent, duration, bytes, pValue, signed]) {
      expect(format(null)).toBe("—");
      expect(format(undefined)).toBe("—");
      expect(format(Number.NaN)).toBe("—");
    }
    expect(number(Infinity)).toBe("∞");
    expect(number(-Infinity)).toBe("−∞");
  });
  it("carries a sign, always", () => {
    expect(signed(0.75)).toBe("+0.75");
    expect(signed(-0.02)).toBe("−0.02");
    expect(signed(0)).toBe("0");
  });
  it("never shows a p-value of 0", () => {
    expect(pValue(0)).toBe("p < 1e-15");
    expect(pValue(5.7e-14)).toBe("p = 6e-14");
    expect(pValue(0.0421)).toBe("p = 0.042");
  });
});

describe("units", () => {
  it.each([[0, "0 s"], [0.001, "< 0.01 s"], [4.25, "4.3 s"], [59.4, "59 s"], [60, "1 min 00 s"], [3599.6, "1 h 00 min"], [7500, "2 h 05 min"], [86400 * 3 + 7200, "3 d 2 h"]])("duration %d", (seconds, text) => {
    expect(duration(seconds)).toBe(text);
  });
  it.each([[0, "0 B"], [1023, "1023 B"], [1024, "1 KiB"], [2165640520, "2.02 GiB"], [5e15, "4,547 TiB"]])("bytes %d", (size, text) => {
    expect(bytes(size)).toBe(text);
  });
  it("tells how long ago", () => {
    const now = Date.parse("2026-11-26T12:00:00Z");
    expect(ago("2026-11-26T11:59:40Z", now)).toBe("just now");
    expect(ago("2026-11-26T11:00:00Z", now)).toBe("1 h ago");
    expect(ago("2026-11-24T12:00:00Z", now)).toBe("2 d ago");
    expect(ago("not a time", now)).toBe("—");
    expect(when(null)).toBe("—");
  });
  it("shortens paths, not names of a hub", () => {
    expect(["org/model", "smol", "/home/me/model", "runs/a/train.jsonl", "./m", ""].map(tail)).toEqual(["org/model", "smol", "model", "train.jsonl", "m", ""]);
  });
  it("shows values of settings as they are written", () => {
    expect(plain("<b>")).toBe("<b>");
    expect(plain([1, "a"])).toBe('[1,"a"]');
    expect(plain(null)).toBe("—");
  });
});
