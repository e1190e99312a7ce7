// Requests to the studio's own server; nothing else is ever asked.
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code: string | null = null,
    readonly param: string | null = null,
    readonly details: unknown = null,
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
    const body = JSON.parse(text) as { error?: { message?: string; code?: string; param?: string } };
    if (body.error?.message) return new ApiError(body.error.message, response.status, body.error.code ?? null, body.error.param ?? null, body);
  } catch {
    // Not JSON: a proxy's page, or a server that is going down.
  }
  return new ApiError(`The server answered ${response.status} ${response.statusText}`.trim(), response.status);
}

async function ask(method: string, path: string, query: Query, body: unknown, signal?: AbortSignal): Promise<Response> {
  const init: RequestInit = { method, headers: { accept: "application/json" }, credentials: "same-origin" };
  if (signal) init.signal = signal;
  if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers = { ...init.headers, "content-type": "application/json" };
  }
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

export async function get<T>(path: string, query: Query = {}, signal?: AbortSignal): Promise<T> {
  return (await (await ask("GET", path, query, undefined, signal)).json()) as T;
}

export async function send<T>(method: "POST" | "PATCH" | "PUT" | "DELETE", path: string, body: unknown, signal?: AbortSignal): Promise<T> {
  return (await (await ask(method, path, {}, body, signal)).json()) as T;
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

export function words(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
