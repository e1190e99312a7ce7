// The map: points blended into one pixel buffer (no WebGL needed), labels and marks on a second canvas above.
const timings = {};
const canvas = byId("points"), overlay = byId("marks"), stage = byId("stage");
const paint = canvas.getContext("2d", { alpha: false }), marks = overlay.getContext("2d");
const view = { scale: 1, x: 0, y: 0, width: 1, height: 1, ratio: 1 };
let pixels = null, buffer = null, colours = new Uint32Array(n), queued = false, labelsOn = true;
const dark = matchMedia("(prefers-color-scheme: dark)");

const order = new Uint32Array(n); // mixed, so that no source lies over the others
for (let i = 0; i < n; i++) order[i] = i;
for (let i = n - 1, seed = 12345; i > 0; i--) {
  seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
  const j = Math.floor((seed / 4294967296) * (i + 1)), held = order[i];
  order[i] = order[j];
  order[j] = held;
}

function resize() {
  const box = stage.getBoundingClientRect();
  const before = view.width > 1 ? centre() : null;
  view.width = Math.max(1, Math.floor(box.width));
  view.height = Math.max(1, Math.floor(box.height));
  view.ratio = Math.min(2, window.devicePixelRatio || 1);
  overlay.width = Math.round(view.width * view.ratio);
  overlay.height = Math.round(view.height * view.ratio);
  if (before) moveTo(before[0], before[1], view.scale);
  else resetView();
}
const centre = () => [(view.width / 2 - view.x) / view.scale, (view.height / 2 - view.y) / view.scale];
function moveTo(x, y, scale) {
  view.scale = Math.min(400, Math.max(0.3, scale / base())) * base();
  view.x = view.width / 2 - x * view.scale;
  view.y = view.height / 2 - y * view.scale;
  queue();
}
const base = () => Math.min(view.width, view.height) * 0.94;
function resetView() {
  view.scale = base();
  const stretch = (view.width - view.scale) / 2, room = (view.height - view.scale) / 2;
  view.x = stretch;
  view.y = room;
  queue();
}
function zoomAt(px, py, factor) {
  const scale = Math.min(400 * base(), Math.max(0.3 * base(), view.scale * factor));
  view.x = px - ((px - view.x) / view.scale) * scale;
  view.y = py - ((py - view.y) / view.scale) * scale;
  view.scale = scale;
  moving();
}

let settle = 0, coarse = false;
function moving() { // one pixel a dot while the hand moves, the screen's own resolution when it rests
  coarse = true;
  clearTimeout(settle);
  settle = setTimeout(() => { coarse = false; queue(); }, 140);
  queue();
}
function queue() {
  if (queued) return;
  queued = true;
  requestAnimationFrame(() => { queued = false; draw(); });
}

function stamp(radius) { // offsets and opacity (0 to 255) of a soft disc
  const reach = Math.ceil(radius), found = [];
  for (let dy = -reach; dy <= reach; dy++) {
    for (let dx = -reach; dx <= reach; dx++) {
      const inside = Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(dx, dy)));
      if (inside > 0.05) found.push([dx, dy, Math.round(inside * 255)]);
    }
  }
  return found;
}

function draw() {
  const started = performance.now(), ratio = coarse ? 1 : view.ratio;
  const width = Math.round(view.width * ratio), height = Math.round(view.height * ratio);
  if (canvas.width !== width || canvas.height !== height || !pixels) {
    canvas.width = width;
    canvas.height = height;
    pixels = paint.createImageData(width, height);
    buffer = new Uint32Array(pixels.data.buffer);
  }
  const paper = cssColour("--card");
  buffer.fill(paper);
  const zoom = view.scale / base(), crowd = Math.sqrt(Math.max(1, 20000 / n));
  const radius = Math.min(5.5, Math.max(0.75, 0.9 * crowd) * Math.pow(Math.max(1, zoom), 0.45)) * ratio;
  const some = state.selectedCount > 0, all = state.shownCount === n && !some;
  const faint = cssColour("--rest");
  if (!all) blend(width, height, ratio, Math.max(0.7, radius * 0.7), (i) => (state.shown[i] && (!some || state.selected[i]) ? -1 : faint), 110);
  blend(width, height, ratio, radius, (i) => (state.shown[i] && (!some || state.selected[i]) ? colours[i] : -1), 215);
  const stands = standsOut(); // the few rows that this colouring is about, larger and on top
  if (stands) blend(width, height, ratio, radius * 1.7, (i) => (stands(i) && state.shown[i] && (!some || state.selected[i]) ? colours[i] : -1), 240);
  paint.putImageData(pixels, 0, 0);
  drawMarks();
  timings.frame = performance.now() - started;
  if (timings.first === undefined) timings.first = performance.now();
}

function blend(width, height, ratio, radius, colourOf, opacity) {
  const shape = stamp(radius), reach = Math.ceil(radius), pieces = shape.length;
  const offset = new Int32Array(pieces), weight = new Int32Array(pieces);
  shape.forEach(([dx, dy, inside], k) => { offset[k] = dy * width + dx; weight[k] = (inside * opacity) >> 8; });
  const sx = view.scale * ratio, tx = view.x * ratio, ty = view.y * ratio;
  const right = width - reach - 1, bottom = height - reach - 1;
  for (let place = 0; place < n; place++) {
    const i = order[place];
    const x = Math.round(X[i] * sx + tx), y = Math.round(Y[i] * sx + ty);
    if (x < reach || y < reach || x > right || y > bottom) continue;
    const colour = colourOf(i);
    if (colour === -1) continue;
    const r = colour & 255, g = (colour >> 8) & 255, b = (colour >> 16) & 255, at = y * width + x;
    for (let k = 0; k < pieces; k++) {
      const p = at + offset[k], w = weight[k], old = buffer[p];
      const or = old & 255, og = (old >> 8) & 255, ob = (old >> 16) & 255;
      buffer[p] = 0xff000000 | ((ob + (((b - ob) * w) >> 8)) << 16) | ((og + (((g - og) * w) >> 8)) << 8) | (or + (((r - or) * w) >> 8));
    }
  }
}

const cssCache = new Map();
function cssColour(name) {
  if (!cssCache.has(name)) cssCache.set(name, toPixel(cssText(name)));
  return cssCache.get(name);
}
const cssText = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function toPixel(hex) { // #rrggbb -> little-endian pixel, never -1
  const value = parseInt(hex.slice(1), 16);
  return (0xff000000 | ((value & 255) << 16) | (value & 0xff00) | (value >> 16)) >>> 0;
}

function drawMarks() {
  const ratio = view.ratio;
  marks.setTransform(ratio, 0, 0, ratio, 0, 0);
  marks.clearRect(0, 0, view.width, view.height);
  if (labelsOn) drawLabels();
  for (const [i, width] of [[state.hover, 1.5], [state.open, 2.5]]) {
    if (i < 0) continue;
    marks.beginPath();
    marks.arc(X[i] * view.scale + view.x, Y[i] * view.scale + view.y, 7, 0, 7);
    marks.lineWidth = width;
    marks.strokeStyle = cssText("--ink");
    marks.stroke();
  }
  if (lasso.length > 1) {
    marks.beginPath();
    lasso.forEach(([x, y], k) => (k ? marks.lineTo(x, y) : marks.moveTo(x, y)));
    marks.closePath();
    marks.lineWidth = 1.5;
    marks.strokeStyle = cssText("--accent");
    marks.fillStyle = `${cssText("--accent")}22`;
    marks.fill();
    marks.stroke();
  }
}

function drawLabels() { // larger clusters first; a label that would lie on another is left out
  const small = view.width < 560, size = small ? 11 : 12.5, taken = [];
  marks.font = `600 ${size}px system-ui, sans-serif`;
  marks.textAlign = "center";
  marks.textBaseline = "middle";
  marks.lineJoin = "round";
  const paper = cssText("--card"), ink = cssText("--ink");
  head.clusters.forEach((cluster, k) => {
    if (state.off.cluster.has(k)) return;
    const x = (cluster.x / 65535) * view.scale + view.x, y = (cluster.y / 65535) * view.scale + view.y;
    const half = marks.measureText(cluster.label).width / 2 + 4;
    if (x - half < 0 || x + half > view.width || y < 12 || y > view.height - 12) return;
    if (taken.some((other) => Math.abs(other.x - x) < other.half + half && Math.abs(other.y - y) < size + 5)) return;
    taken.push({ x, y, half });
    marks.lineWidth = 4;
    marks.strokeStyle = paper;
    marks.strokeText(cluster.label, x, y);
    marks.fillStyle = ink;
    marks.fillText(cluster.label, x, y);
  });
}
