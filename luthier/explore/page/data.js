// Reading what the page holds: typed arrays at once, texts of rows when they are looked at.
const byId = (id) => document.getElementById(id);
const head = JSON.parse(byId("head").textContent);
const n = head.n;

const TYPES = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f32: Float32Array };
function readColumn(column) {
  return new TYPES[column.type](fromBase64(column.data).buffer);
}
function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

const rawX = readColumn(head.x), rawY = readColumn(head.y);
const X = new Float32Array(n), Y = new Float32Array(n);
for (let i = 0; i < n; i++) { X[i] = rawX[i] / 65535; Y[i] = rawY[i] / 65535; }
const fileOf = readColumn(head.file), lineOf = readColumn(head.line);
const cats = head.cats.map((cat) => ({ ...cat, data: readColumn(cat.data) }));
const nums = head.nums.map((num) => {
  const data = readColumn(num.data);
  return { ...num, data, sparse: data.some(Number.isNaN) };
});
const catOf = Object.fromEntries(cats.map((cat) => [cat.key, cat]));
const numOf = Object.fromEntries(nums.map((num) => [num.key, num]));
const heldOut = new Map();
if (head.nearest) {
  const rows = readColumn(head.nearest.rows), of = readColumn(head.nearest.of);
  rows.forEach((row, place) => heldOut.set(row, of[place]));
}
const isOutlier = (i) => numOf.outlier.data[i] > head.fence;
const isUncovered = (i) => head.threshold !== null && heldOut.has(i) && numOf.distance.data[i] > head.threshold;
const refOf = (i) => `${head.files[fileOf[i]]}:${lineOf[i]}`;

// -- blocks of texts, inflated on demand; the last ones are kept
const kept = new Map();
async function block(kind, number) {
  const name = `${kind}-${number}`;
  if (kept.has(name)) {
    const found = kept.get(name);
    kept.delete(name);
    kept.set(name, found);
    return found;
  }
  const found = inflate(name);
  kept.set(name, found);
  if (kept.size > 48) kept.delete(kept.keys().next().value);
  return found;
}
async function inflate(name) {
  if (document.readyState === "loading") await new Promise((done) => document.addEventListener("DOMContentLoaded", done, { once: true }));
  const bytes = fromBase64(byId(name).textContent);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}
async function rowOf(kind, i) {
  return (await block(kind, Math.floor(i / head.block)))[i % head.block];
}
const chatOf = (i) => rowOf("chat", i);
const tokensOf = (i) => rowOf("tokens", i);
const blockCount = Math.ceil(n / head.block);

// -- making elements: text only ever becomes text
function make(tag, kind, text) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== undefined) element.textContent = text;
  return element;
}
const count = (value) => Math.round(value).toLocaleString("en");
const short = (value) => (Math.abs(value) >= 100 ? count(value) : String(Number(value.toPrecision(3))));
