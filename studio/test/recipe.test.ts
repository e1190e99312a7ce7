import { describe, expect, it } from "vitest";
import { colourLine, placeAt } from "../src/lib/caret";
import { read, shown, typed } from "../src/lib/form";
import { allowed, at, keysAt, valuesAt, type Schema } from "../src/lib/schema";

const text = `version: 1
model:
  name_or_path: smol  # the base
data:
  train:
    - path: "a.jsonl"
      format: auto
  max_length: 256
train:
  lear`;
const placed = (needle: string, extra = 0) => placeAt(text, text.indexOf(needle) + needle.length + extra);

describe("where the caret stands", () => {
  it("knows the keys around", () => {
    expect(placed("  max_length: 25")).toEqual({ path: ["data"], part: "value", word: "25", key: "max_length" });
    expect(placed("      format: au")).toEqual({ path: ["data", "train"], part: "value", word: "au", key: "format" });
    expect(placed('    - path: "a')).toMatchObject({ path: ["data", "train"], key: "path", part: "value" });
    expect(placed("train:\n  lear")).toEqual({ path: ["train"], part: "key", word: "lear", key: null });
    expect(placed("vers")).toMatchObject({ path: [], part: "key", word: "vers", key: "version" });
  });
  it("never throws, wherever the caret is", () => {
    for (let offset = 0; offset <= text.length; offset += 1) expect(placeAt(text, offset).path.length).toBeLessThan(4);
  });
});

describe("colours", () => {
  it("keeps every letter", () => {
    for (const line of [...text.split("\n"), "a: 'it # is' # yes", "#", "  - 1", "key:", "x: 1e-4", "<b>: \"</b>\""]) {
      expect(colourLine(line).map((bit) => bit.text).join("")).toBe(line);
    }
  });
  it("tells numbers, texts and comments apart", () => {
    expect(colourLine("x: 1e-4 # small").map((bit) => bit.kind)).toEqual(["key", "number", "comment"]);
    expect(colourLine("x: 'a # b'").map((bit) => bit.kind)).toEqual(["key", "string"]);
  });
});

const schema: Schema = {
  $defs: {
    Train: { type: "object", properties: { rate: { description: "Peak rate.", anyOf: [{ type: "number", exclusiveMinimum: 0 }, { const: "auto", type: "string" }] }, deterministic: { type: "boolean" } }, required: ["rate"] },
    Source: { type: "object", properties: { path: { type: "string", description: "A file." } } },
  },
  properties: { train: { anyOf: [{ $ref: "#/$defs/Train" }, { type: "null" }], description: "The loop." }, data: { type: "array", items: { $ref: "#/$defs/Source" } }, mode: { enum: ["a", "b"] } },
};

describe("schema", () => {
  it("finds a key through references, choices and lists", () => {
    expect(at(schema, ["train", "rate"]).node?.description).toBe("Peak rate.");
    expect(at(schema, ["data", "path"]).node?.description).toBe("A file.");
    expect(at(schema, ["train", "nothing"]).node).toBeNull();
  });
  it("lists keys and values", () => {
    expect(keysAt(schema, []).map((one) => one.key)).toEqual(["train", "data", "mode"]);
    expect(keysAt(schema, ["train"])).toEqual([{ key: "rate", description: "Peak rate.", required: true }, { key: "deterministic", description: "", required: false }]);
    expect(valuesAt(schema, ["mode"])).toEqual(["a", "b"]);
    expect(valuesAt(schema, ["train", "deterministic"])).toEqual(["true", "false"]);
    expect(valuesAt(schema, ["data", "path"])).toEqual([]);
  });
  it("says what is allowed", () => {
    expect(allowed(schema, ["train", "rate"])).toBe("number, more than 0 or auto");
    expect(allowed(schema, ["mode"])).toBe("a | b");
  });
});

describe("short form", () => {
  it("reads dotted keys, also in lists", () => {
    const recipe = { data: { train: [{ path: "a" }] }, name: null };
    expect(read(recipe, "data.train.0.path")).toBe("a");
    expect(read(recipe, "data.train.1.path")).toBeUndefined();
    expect(read(null, "name")).toBeUndefined();
  });
  it("turns what is typed into values and back", () => {
    expect([typed("2e-4", "number"), typed(" auto ", "number"), typed("", "number"), typed("007", "text")]).toEqual([0.0002, "auto", null, "007"]);
    expect([shown(0.0002), shown(0.5), shown(null), shown("x")]).toEqual(["2e-4", "0.5", "", "x"]);
  });
});
