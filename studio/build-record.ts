// Writes `build.json` beside the built files: what they were built from, so that a test can tell stale ones.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join, relative, sep } from "node:path";
import type { Plugin } from "vite";

const SOURCES = ["index.html", "package.json", "package-lock.json", "vite.config.ts", "build-record.ts", "svelte.config.js", "tsconfig.json", "src"];

function filesUnder(path: string): string[] {
  if (!statSync(path).isDirectory()) return [path];
  return readdirSync(path).flatMap((name) => filesUnder(join(path, name)));
}

const sha256 = (bytes: Uint8Array | string): string => createHash("sha256").update(bytes).digest("hex");
const posix = (root: string, path: string): string => relative(root, path).split(sep).join("/");
/** By code point, as Python sorts. */
const order = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

/** Hash over `path NUL sha256 newline` of every source file, paths sorted by code point. */
export function sourceHash(root: string): string {
  const files = SOURCES.flatMap((name) => filesUnder(join(root, name)));
  const lines = files.map((file) => [posix(root, file), sha256(readFileSync(file))] as const);
  lines.sort((a, b) => order(a[0], b[0]));
  return sha256(lines.map(([path, hash]) => `${path}\0${hash}\n`).join(""));
}

/** A Vite plugin that leaves `build.json` in the output folder. */
export function buildRecord(root: string, out: string): Plugin {
  return {
    name: "luthier-build-record",
    apply: "build",
    closeBundle() {
      const built = filesUnder(out).filter((file) => !file.endsWith("build.json"));
      const files = Object.fromEntries(built.map((file) => [posix(out, file), sha256(readFileSync(file))] as const).sort((a, b) => order(a[0], b[0])));
      writeFileSync(join(out, "build.json"), JSON.stringify({ sources: sourceHash(root), files }, null, 2) + "\n");
    },
  };
}
