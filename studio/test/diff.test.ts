import { describe, expect, it } from "vitest";
import { alike, diff, words } from "../src/lib/diff";

const side = (pieces: ReturnType<typeof diff>, drop: string): string => pieces.filter((piece) => piece.kind !== drop).map((piece) => piece.text).join("");

describe("word diff", () => {
  it("splits without losing a letter", () => {
    for (const text of ["", "a b", "{\"x\": [1,2]}\n\tç 漢字 🙂", "  two  spaces "]) expect(words(text).join("")).toBe(text);
  });
  it("gives back both texts", () => {
    // A small generator with a fixed seed: 300 pairs over few words, so that parts repeat and move.
    let state = 7;
    const random = (below: number): number => {
      state = (state * 1103515245 + 12345) % 2147483648;
      return state % below;
    };
    const vocabulary = ["a", "b", "cat", " ", "\n", ",", "é", "<script>"];
    const text = (): string => Array.from({ length: random(14) }, () => vocabulary[random(vocabulary.length)]).join("");
    for (let round = 0; round < 300; round += 1) {
      const [before, after] = [text(), text()];
      const pieces = diff(before, after);
      expect(side(pieces, "ins")).toBe(before);
      expect(side(pieces, "del")).toBe(after);
      pieces.slice(1).forEach((piece, index) => expect(piece.kind).not.toBe(pieces[index]!.kind));
    }
  });
  it("marks one changed word only", () => {
    expect(diff("the red drill", "the blue drill")).toEqual([
      { kind: "same", text: "the " }, { kind: "del", text: "red" }, { kind: "ins", text: "blue" }, { kind: "same", text: " drill" },
    ]);
  });
  it("stays quick on long texts that share nothing", () => {
    const began = performance.now();
    diff("a b ".repeat(20000), "c d ".repeat(20000));
    expect(performance.now() - began).toBeLessThan(1500);
  });
  it("tells how alike texts are", () => {
    expect(alike(diff("same words", "same words"))).toBe(1);
    expect(alike(diff("one thing", "other text"))).toBe(0);
    expect(alike(diff("", ""))).toBe(1);
  });
});
