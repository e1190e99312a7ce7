import { fileURLToPath } from "node:url";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";
import { buildRecord } from "./build-record.ts";

const here = fileURLToPath(new URL(".", import.meta.url));
const out = fileURLToPath(new URL("../luthier/studio/static", import.meta.url));

export default defineConfig({
  root: here,
  base: "/studio/",
  plugins: [svelte(), buildRecord(here, out)],
  build: {
    outDir: out,
    emptyOutDir: true,
    target: "es2022",
    // The content security policy has neither inline scripts nor data: links.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    sourcemap: false,
  },
  server: { proxy: { "/studio/api": "http://127.0.0.1:8765", "/v1": "http://127.0.0.1:8765" } },
});
