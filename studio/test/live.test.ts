import { describe, expect, it } from "vitest";
import { append, appendNumbered } from "../src/lib/append";
import { body, EventText, piece, python, snippet } from "../src/lib/chat";

describe("rows that arrive", () => {
  const row = (line: number, extra = {}) => ({ line, step: line, loss: 1, ...extra });
  it("takes each line once, in order", () => {
    const first = append([], [row(0), row(1)]);
    expect(append(first, [row(1), row(2)]).map((one) => one.line)).toEqual([0, 1, 2]);
    expect(append(first, [row(1)])).toBe(first);
  });
  it("thins the older half and keeps validation rows", () => {
    let rows = [row(0, { eval_loss: 2 }), row(1, { eval_loss: 2 })];
    for (let line = 2; line < 500; line += 1) rows = append(rows, [row(line)], 100) as typeof rows;
    expect(rows.length).toBeLessThanOrEqual(100);
    expect(rows.slice(0, 2).map((one) => one.line)).toEqual([0, 1]);
    expect(rows.at(-1)!.line).toBe(499);
    expect([...rows].sort((a, b) => a.line - b.line)).toEqual(rows);
  });
  it("keeps the last events", () => {
    const list = appendNumbered([{ n: 1 }, { n: 2 }], [{ n: 2 }, { n: 3 }, { n: 4 }], 3);
    expect(list.map((one) => one.n)).toEqual([2, 3, 4]);
  });
});

describe("streamed answers", () => {
  it("reads events however the bytes are cut", () => {
    const whole = 'data: {"a":1}\n\ndata: {"b":"x\\ny"}\r\n\r\n: idle\n\ndata: [DONE]\n\n';
    for (let size = 1; size < whole.length; size += 1) {
      const events = new EventText();
      const found: string[] = [];
      for (let from = 0; from < whole.length; from += size) found.push(...events.push(whole.slice(from, from + size)));
      expect(found).toEqual(['{"a":1}', '{"b":"x\\ny"}', "[DONE]"]);
    }
  });
  it("takes text, choices, the end and the count out of a chunk", () => {
    const one = piece('{"choices":[{"delta":{"content":"Hi"},"finish_reason":null,"logprobs":{"content":[{"token":"Hi","logprob":-0.1,"top_logprobs":[{"token":"Hi","logprob":-0.1}]}]}}]}');
    expect(one).toEqual({ text: "Hi", choices: [{ token: "Hi", logprob: -0.1, top: [{ token: "Hi", logprob: -0.1 }] }], finish: null, usage: null });
    expect(piece('{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}').usage?.completion_tokens).toBe(2);
    expect(() => piece('{"error":{"message":"out of memory"}}')).toThrow("out of memory");
  });
});

describe("code for the openai client", () => {
  const sampling = { temperature: 0, top_p: 1, max_tokens: 64, seed: 7, top_logprobs: 0 };
  it("writes Python literals", () => {
    expect(python({ a: null, b: [true, "x\"y\n"] }, "")).toBe('{"a": None, "b": [\n    True,\n    "x\\"y\\n",\n]}');
  });
  it("holds the same request and no key", () => {
    const text = snippet(body("m", [{ role: "user", content: 'Say "hi"' }], sampling), "http://127.0.0.1:1");
    expect(text).toContain('base_url="http://127.0.0.1:1/v1"');
    expect(text).toContain('"content": "Say \\"hi\\""');
    expect(text).toContain("seed=7");
    expect(text).toContain('os.environ["LUTHIER_API_KEY"]');
  });
  it("asks for log probabilities only when they are shown", () => {
    expect(body("m", [], { ...sampling, top_logprobs: 3, seed: null })).toEqual({ model: "m", messages: [], temperature: 0, top_p: 1, max_tokens: 64, logprobs: true, top_logprobs: 3 });
    expect(body("m", [], sampling)).not.toHaveProperty("logprobs");
  });
});
