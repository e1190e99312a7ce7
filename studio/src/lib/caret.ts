// Where the caret stands in a YAML text: the path of keys around it, by indentation. Enough for help; the server parses.
export type Place = { path: string[]; part: "key" | "value"; word: string; key: string | null };

const KEY = /^(\s*(?:- +)*)(?:"([^"]*)"|'([^']*)'|([^\s#:'"][^#:]*?)) *:(?= |$)/;

function keyOf(line: string): { indent: number; key: string; end: number } | null {
  const match = KEY.exec(line);
  if (!match) return null;
  return { indent: match[1]!.length, key: match[2] ?? match[3] ?? match[4] ?? "", end: match[0].length };
}

/** The keys above `line` that enclose something indented by `indent`. */
function enclosing(lines: readonly string[], line: number, indent: number): string[] {
  const path: string[] = [];
  let depth = indent;
  for (let at = line - 1; at >= 0 && depth > 0; at -= 1) {
    const found = keyOf(lines[at]!);
    if (!found || found.indent >= depth) continue;
    path.unshift(found.key);
    depth = found.indent;
    // `- key:` stands inside the list of a parent that may be indented as much as the dash.
    const dash = lines[at]!.search(/-/);
    if (dash >= 0 && dash < found.indent && /^\s*-/.test(lines[at]!)) depth = dash + 1;
  }
  return path;
}

/** What stands at `offset` of `text`. */
export function placeAt(text: string, offset: number): Place {
  const before = text.slice(0, offset);
  const lines = text.split("\n");
  const line = before.split("\n").length - 1;
  const column = offset - (before.lastIndexOf("\n") + 1);
  const whole = lines[line] ?? "";
  const found = keyOf(whole);
  const dashed = /^\s*(?:- +)*/.exec(whole)![0].length;
  const indent = found?.indent ?? (whole.trim() === "" ? column : dashed);
  const dash = /^\s*-/.test(whole) ? whole.indexOf("-") + 1 : indent;
  const parents = enclosing(lines, line, Math.min(indent, dash));
  if (found && column > found.end) return { path: parents, part: "value", word: whole.slice(found.end, column).trim(), key: found.key };
  return { path: parents, part: "key", word: whole.slice(indent, column).trim(), key: found?.key ?? null };
}

export type Bit = { kind: "key" | "comment" | "string" | "number" | "plain"; text: string };

/** One line of YAML in coloured bits; their texts joined give the line. */
export function colourLine(line: string): Bit[] {
  const bits: Bit[] = [];
  const hash = /(^|\s)#.*$/.exec(line);
  const start = hash && !insideQuotes(line, hash.index + hash[1]!.length) ? hash.index + hash[1]!.length : line.length;
  let code = line.slice(0, start);
  const found = keyOf(code);
  if (found) {
    bits.push({ kind: "plain", text: code.slice(0, found.indent) }, { kind: "key", text: code.slice(found.indent, found.end) });
    code = code.slice(found.end);
  }
  const value = code.trim().replace(/^- /, "");
  bits.push({ kind: /^["']/.test(value) ? "string" : /^(-?[\d.]+(e[+-]?\d+)?|true|false|null)$/i.test(value) ? "number" : "plain", text: code });
  if (start < line.length) bits.push({ kind: "comment", text: line.slice(start) });
  return bits.filter((bit) => bit.text !== "");
}

function insideQuotes(line: string, at: number): boolean {
  let quote = "";
  for (const letter of line.slice(0, at)) {
    if (quote) quote = letter === quote ? "" : quote;
    else if (letter === '"' || letter === "'") quote = letter;
  }
  return quote !== "";
}
