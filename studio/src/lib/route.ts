// Addresses of the pages: /studio/... with the state of a screen in the query.
export type Route = { screen: "runs" | "new" | "data" | "compare" | "play" | "live" | "rundata" | "evals" | "missing"; name: string };

export const BASE = "/studio";
const OF_RUN: Record<string, Route["screen"]> = { "": "live", data: "rundata", evals: "evals" };
const TOP: Record<string, Route["screen"]> = { "": "runs", runs: "runs", new: "new", data: "data", compare: "compare", play: "play" };

export function parse(path: string): Route {
  const parts = path.replace(BASE, "").split("/").filter(Boolean).map(decode);
  if (parts[0] === "runs" && parts[1]) {
    const screen = OF_RUN[parts[2] ?? ""];
    return screen && parts.length <= 3 ? { screen, name: parts[1] } : { screen: "missing", name: path };
  }
  const screen = parts.length <= 1 ? TOP[parts[0] ?? ""] : undefined;
  return screen ? { screen, name: "" } : { screen: "missing", name: path };
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

type Query = Record<string, string | number | boolean | null | undefined>;

/** An address inside the studio; empty values of the query are left out. */
export function to(path: string, query: Query = {}): string {
  const search = new URLSearchParams();
  for (const [key, value] of Object.entries(query)) if (value !== null && value !== undefined && value !== "" && value !== false) search.set(key, String(value));
  const text = search.toString();
  return `${BASE}/${path}${text ? `?${text}` : ""}`;
}

export function runPath(name: string, part = ""): string {
  return `runs/${encodeURIComponent(name)}${part ? `/${part}` : ""}`;
}
