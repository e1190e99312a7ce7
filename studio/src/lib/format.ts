// Numbers as people read them, with their units. `—` stands for a value that is not known.
export const NONE = "—";
type Maybe = number | null | undefined;
const known = (value: Maybe): value is number => typeof value === "number" && !Number.isNaN(value);

/** A whole number with thin grouping: 12,345. */
export function count(value: Maybe): string {
  return known(value) ? Math.round(value).toLocaleString("en-US") : NONE;
}

/** A number with `digits` significant digits, without a trailing run of zeros; very small and large ones as 1.2e-5. */
export function number(value: Maybe, digits = 4): string {
  if (!known(value)) return NONE;
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e7) return minus(value.toExponential(Math.max(0, digits - 2)).replace(/\.?0+e/, "e").replace("e+", "e"));
  const places = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
  const text = value.toLocaleString("en-US", { maximumFractionDigits: places });
  return minus(text);
}

/** A share (0 to 1) as per cent. */
export function percent(value: Maybe, places = 1): string {
  return known(value) ? `${minus((100 * value).toFixed(places))} %` : NONE;
}

/** So many significant digits that the ends of an interval of this width differ, for numbers up to this size. */
export function digitsApart(size: number, width: number): number {
  if (!(size > 0 && width > 0)) return 2;
  return Math.min(6, Math.max(2, 2 + Math.floor(Math.log10(size)) - Math.floor(Math.log10(width))));
}

/** A number with its sign, always: +0.75, −0.02. */
export function signed(value: Maybe, digits = 3): string {
  if (!known(value)) return NONE;
  return value > 0 ? `+${number(value, digits)}` : number(value, digits);
}

/** Seconds: 4.2 s, 3 min 10 s, 2 h 05 min, 3 d 4 h. */
export function duration(seconds: Maybe): string {
  if (!known(seconds) || !Number.isFinite(seconds)) return NONE;
  if (seconds < 0.01) return seconds === 0 ? "0 s" : "< 0.01 s";
  if (seconds < 60) return `${seconds < 10 ? number(seconds, 2) : Math.round(seconds)} s`;
  const whole = Math.round(seconds);
  const pad = (value: number): string => String(value).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${pad(whole % 60)} s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${pad(minutes % 60)} min`;
  const hours = Math.round(minutes / 60);
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** Bytes in binary units: 3.1 GiB. */
export function bytes(value: Maybe): string {
  if (!known(value)) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = value;
  let unit = 0;
  while (Math.abs(size) >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? Math.round(size) : number(size, 3)} ${units[unit]}`;
}

/** GiB, given in GiB. */
export function gib(value: Maybe): string {
  return known(value) ? bytes(value * 2 ** 30) : NONE;
}

/** A p-value: never 0. */
export function pValue(value: Maybe): string {
  if (!known(value)) return NONE;
  if (value < 0.001) return value < 1e-15 ? "p < 1e-15" : `p = ${value.toExponential(0)}`;
  return `p = ${value.toFixed(3)}`;
}

/** A point in time (seconds since 1970, or ISO text) in the reader's zone; `ago` puts it relative to `now` (ms). */
export function when(value: string | Maybe): string {
  const date = toDate(value);
  return date ? date.toLocaleString(undefined, { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" }) : NONE;
}

export function ago(value: string | Maybe, now = Date.now()): string {
  const date = toDate(value);
  if (!date) return NONE;
  const seconds = (now - date.getTime()) / 1000;
  if (seconds < 45) return "just now";
  const steps: [number, string][] = [[60, "min"], [3600, "h"], [86400, "d"]];
  let text = "";
  for (const [size, unit] of steps) if (seconds >= size * 0.75) text = `${Math.max(1, Math.round(seconds / size))} ${unit} ago`;
  return seconds > 30 * 86400 ? date.toLocaleDateString(undefined, { year: "numeric", month: "short", day: "numeric" }) : text;
}

function toDate(value: string | Maybe): Date | null {
  if (value === null || value === undefined || value === "") return null;
  const date = typeof value === "number" ? new Date(value * 1000) : new Date(value);
  return Number.isNaN(date.getTime()) ? null : date;
}

/** A true minus sign. */
function minus(text: string): string {
  return text.replace(/^-/, "−");
}

/** Any JSON value on one line, for tables of settings. */
export function plain(value: unknown): string {
  if (value === null || value === undefined) return NONE;
  if (typeof value === "string") return value;
  return JSON.stringify(value);
}

/** A model or file as lists show it: names of a hub (owner/model) whole, longer paths by their end. */
export function tail(path: string): string {
  const parts = path.split("/").filter(Boolean);
  return path.startsWith("/") || path.startsWith(".") || parts.length > 2 ? parts.at(-1) ?? path : path;
}
