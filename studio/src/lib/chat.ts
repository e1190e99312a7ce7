// Streamed answers of /v1/chat/completions, and the text of a client's program that asks the same.
import { refusal, WRITE } from "./api";
import type { Message } from "./types";

export type Sampling = { temperature: number; top_p: number; max_tokens: number; seed: number | null; top_logprobs: number };
export type Choice = { token: string; logprob: number; top: { token: string; logprob: number }[] };
export type Piece = { text: string; choices: Choice[]; finish: string | null; usage: { prompt_tokens: number; completion_tokens: number } | null };

type Chunk = {
  error?: { message?: string };
  choices?: { delta?: { content?: string | null }; finish_reason?: string | null; logprobs?: { content?: { token: string; logprob: number; top_logprobs?: { token: string; logprob: number }[] }[] | null } | null }[];
  usage?: { prompt_tokens: number; completion_tokens: number } | null;
};

/** Takes text as it arrives and gives the `data:` payloads of whole events (SSE, HTML standard section 9.2). */
export class EventText {
  private rest = "";

  push(text: string): string[] {
    this.rest = (this.rest + text).replaceAll("\r\n", "\n");
    const found: string[] = [];
    for (let end = this.rest.indexOf("\n\n"); end >= 0; end = this.rest.indexOf("\n\n")) {
      const data = this.rest.slice(0, end).split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).replace(/^ /, ""));
      if (data.length) found.push(data.join("\n"));
      this.rest = this.rest.slice(end + 2);
    }
    return found;
  }
}

export function piece(data: string): Piece {
  const chunk = JSON.parse(data) as Chunk;
  if (chunk.error) throw new Error(chunk.error.message ?? "The server ended the answer with an error");
  const choice = chunk.choices?.[0];
  const choices = (choice?.logprobs?.content ?? []).map((one) => ({ token: one.token, logprob: one.logprob, top: one.top_logprobs ?? [] }));
  return { text: choice?.delta?.content ?? "", choices, finish: choice?.finish_reason ?? null, usage: chunk.usage ?? null };
}

export function body(model: string, messages: readonly Message[], sampling: Sampling): Record<string, unknown> {
  const asked: Record<string, unknown> = { model, messages, temperature: sampling.temperature, top_p: sampling.top_p, max_tokens: sampling.max_tokens };
  if (sampling.seed !== null) asked["seed"] = sampling.seed;
  if (sampling.top_logprobs > 0) Object.assign(asked, { logprobs: true, top_logprobs: sampling.top_logprobs });
  return asked;
}

/** Asks one model and hands each piece to `take` as it comes. */
export async function chat(asked: Record<string, unknown>, take: (piece: Piece) => void, signal: AbortSignal): Promise<void> {
  const response = await fetch("/v1/chat/completions", { method: "POST", headers: WRITE, credentials: "same-origin", body: JSON.stringify({ ...asked, stream: true, stream_options: { include_usage: true } }), signal });
  if (!response.ok || !response.body) throw await refusal(response);
  const events = new EventText();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    for (const data of events.push(value)) {
      if (data === "[DONE]") return;
      take(piece(data));
    }
  }
}

/** A Python literal of a JSON value. */
export function python(value: unknown, indent = ""): string {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  // JSON's string escapes are Python's, but for surrogate pairs, which JSON.stringify leaves as characters.
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value !== "object") return String(value);
  const deeper = `${indent}    `;
  if (Array.isArray(value)) return value.length ? `[\n${value.map((one) => `${deeper}${python(one, deeper)},\n`).join("")}${indent}]` : "[]";
  return `{${Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${python(one, indent)}`).join(", ")}}`;
}

/** A program for the official `openai` client that asks what the page asks. */
export function snippet(asked: Record<string, unknown>, origin: string): string {
  const lines = Object.entries(asked).map(([key, value]) => `    ${key}=${python(value, "    ")},\n`);
  return `import os\n\nfrom openai import OpenAI\n\nclient = OpenAI(base_url="${origin}/v1", api_key=os.environ["LUTHIER_API_KEY"])\nanswer = client.chat.completions.create(\n${lines.join("")})\nprint(answer.choices[0].message.content)\n`;
}
