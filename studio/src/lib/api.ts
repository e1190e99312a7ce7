// Requests to the studio's own server; nothing else is ever asked.
import type { Problem } from "./types";

export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code: string | null = null,
    readonly hint: string | null = null,
    readonly problems: Problem[] = [],
  ) {
    super(message);
  }
}

type Query = Record<string, string | number | boolean | null | undefined>;

export function address(path: string, query: Query = {}): string {
  const search = new URLSearchParams();
  for (const [key, value] of Object.entries(query)) if (value !== null && value !== undefined && value !== "") search.set(key, String(value));
  const text = search.toString();
  return `${path}${text ? `?${text}` : ""}`;
}

/** Turns an answer that is not 2xx into an ApiError with the server's own words. */
export async function refusal(response: Response): Promise<ApiError> {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text) as { error?: { message?: string; code?: string; hint?: string; problems?: Problem[] } };
    if (error?.message) return new ApiError(error.message, response.status, error.code ?? null, error.hint ?? null, error.problems ?? []);
  } catch {
    // Not JSON: a proxy's page, or a server that is going down.
  }
  return new ApiError(`The server answered ${response.status} ${response.statusText}`.trim(), response.status);
}

/** The header of every writing request: another site cannot send it. */
export const WRITE = { "content-type": "application/json", "x-luthier-studio": "1" };

async function ask(method: string, path: string, query: Query, body: unknown, signal?: AbortSignal): Promise<Response> {
  const init: RequestInit = { method, headers: method === "GET" ? { accept: "application/json" } : WRITE, credentials: "same-origin" };
  if (signal) init.signal = signal;
  if (body !== undefined) init.body = JSON.stringify(body);
  let response: Response;
  try {
    response = await fetch(address(path, query), init);
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError("The studio's server does not answer. Is `luthier studio` still running?", 0);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

export type Working = { state: "working"; what: string; done: number | null; total: number | null; elapsed: number };
const pause = (ms: number, signal?: AbortSignal): Promise<void> =>
  new Promise((resolve, reject) => {
    const end = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(end);
      reject(new DOMException("aborted", "AbortError"));
    });
  });

/** Asks until the work behind the answer is done (202 while it goes on, told to `working`). */
async function settled<T>(make: () => Promise<Response>, signal?: AbortSignal, working?: (state: Working) => void): Promise<T> {
  for (let wait = 300; ; wait = Math.min(1000, wait * 1.4)) {
    const response = await make();
    if (response.status === 204) return undefined as T;
    const body = (await response.json()) as T | Working;
    if (response.status !== 202 || (body as Working).state !== "working") return body as T;
    working?.(body as Working);
    await pause(wait, signal);
  }
}

export async function get<T>(path: string, query: Query = {}, signal?: AbortSignal, working?: (state: Working) => void): Promise<T> {
  return settled<T>(() => ask("GET", path, query, undefined, signal), signal, working);
}

export async function send<T>(method: "POST" | "PATCH" | "DELETE", path: string, body?: unknown, signal?: AbortSignal, working?: (state: Working) => void): Promise<T> {
  return settled<T>(() => ask(method, path, {}, body, signal), signal, working);
}

export const api = (path: string): string => `/studio/api/${path}`;
export const ofRun = (id: string, part = ""): string => api(`runs/${encodeURIComponent(id)}${part ? `/${part}` : ""}`);

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

export function words(error: unknown): string {
  if (error instanceof ApiError && error.hint) return `${error.message}\n${error.hint}`;
  return error instanceof Error ? error.message : String(error);
}
