// Pointer and keys on the map: pan, zoom, pick, lasso.
const GRID = 256, cellStart = new Uint32Array(GRID * GRID + 1), cellRows = new Uint32Array(n);
const cellOf = (x, y) => Math.min(GRID - 1, Math.floor(y * GRID)) * GRID + Math.min(GRID - 1, Math.floor(x * GRID));
for (let i = 0; i < n; i++) cellStart[cellOf(X[i], Y[i]) + 1]++;
for (let c = 0; c < GRID * GRID; c++) cellStart[c + 1] += cellStart[c];
{
  const next = cellStart.slice();
  for (let i = 0; i < n; i++) cellRows[next[cellOf(X[i], Y[i])]++] = i;
}

function pick(px, py) { // the nearest shown row within 12 pixels, or -1
  const reach = 12 / view.scale, x = (px - view.x) / view.scale, y = (py - view.y) / view.scale;
  const cell = (value) => Math.min(GRID - 1, Math.max(0, Math.floor(value * GRID)));
  let best = reach * reach, found = -1;
  for (let cy = cell(y - reach); cy <= cell(y + reach); cy++) {
    for (let cx = cell(x - reach); cx <= cell(x + reach); cx++) {
      const c = cy * GRID + cx;
      for (let k = cellStart[c]; k < cellStart[c + 1]; k++) {
        const i = cellRows[k], gap = (X[i] - x) ** 2 + (Y[i] - y) ** 2;
        if (gap < best && state.shown[i]) { best = gap; found = i; }
      }
    }
  }
  return found;
}

let lasso = [], lassoMode = false;
const pointers = new Map();
let pressed = null;
const local = (event) => {
  const box = stage.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};
overlay.addEventListener("pointerdown", (event) => {
  overlay.setPointerCapture(event.pointerId);
  overlay.focus({ preventScroll: true });
  const [x, y] = local(event);
  pointers.set(event.pointerId, [x, y]);
  pressed = { x, y, moved: false, lasso: (lassoMode || event.shiftKey) && pointers.size === 1 };
  lasso = pressed.lasso ? [[x, y]] : [];
});
overlay.addEventListener("pointermove", (event) => {
  const [x, y] = local(event), last = pointers.get(event.pointerId);
  if (!last) {
    if (event.pointerType === "mouse") hover(pick(x, y), x, y);
    return;
  }
  if (pointers.size === 2) {
    const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
    const before = Math.hypot(last[0] - other[0], last[1] - other[1]), after = Math.hypot(x - other[0], y - other[1]);
    if (before > 0) zoomAt((x + other[0]) / 2, (y + other[1]) / 2, after / before);
    pressed = null;
    lasso = [];
  } else if (pressed) {
    if (Math.hypot(x - pressed.x, y - pressed.y) > 4) pressed.moved = true;
    if (pressed.lasso) lasso.push([x, y]);
    else if (pressed.moved) { view.x += x - last[0]; view.y += y - last[1]; }
    if (pressed.lasso) queue(); else moving();
    hover(-1);
  }
  pointers.set(event.pointerId, [x, y]);
});
for (const kind of ["pointerup", "pointercancel"]) {
  overlay.addEventListener(kind, (event) => {
    pointers.delete(event.pointerId);
    if (!pressed || kind === "pointercancel") { lasso = []; pressed = null; return; }
    const [x, y] = local(event), done = pressed;
    pressed = null;
    if (done.lasso && lasso.length > 3) select(inside(lasso));
    else if (!done.moved) { const i = pick(x, y); if (i >= 0) openRow(i); }
    lasso = [];
    queue();
  });
}
overlay.addEventListener("pointerleave", () => hover(-1));
overlay.addEventListener("wheel", (event) => {
  event.preventDefault();
  const [x, y] = local(event);
  zoomAt(x, y, Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)));
}, { passive: false });
overlay.addEventListener("keydown", (event) => {
  const step = 60, moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
  if (moves[event.key]) { view.x += moves[event.key][0]; view.y += moves[event.key][1]; moving(); }
  else if (event.key === "+" || event.key === "=") zoomAt(view.width / 2, view.height / 2, 1.4);
  else if (event.key === "-") zoomAt(view.width / 2, view.height / 2, 1 / 1.4);
  else if (event.key === "0") resetView();
  else if (event.key === "Enter") { const i = pick(view.width / 2, view.height / 2); if (i >= 0) openRow(i); }
  else return;
  event.preventDefault();
});

function inside(line) { // shown rows within the closed line
  const stride = Math.max(1, Math.floor(line.length / 250));
  const path = line.filter((_, k) => k % stride === 0).map(([x, y]) => [(x - view.x) / view.scale, (y - view.y) / view.scale]);
  const xs = path.map((p) => p[0]), ys = path.map((p) => p[1]), found = [];
  const left = Math.min(...xs), right = Math.max(...xs), top = Math.min(...ys), bottom = Math.max(...ys);
  for (let i = 0; i < n; i++) {
    const x = X[i], y = Y[i];
    if (!state.shown[i] || x < left || x > right || y < top || y > bottom) continue;
    let within = false;
    for (let a = 0, b = path.length - 1; a < path.length; b = a++) {
      if (path[a][1] > y !== path[b][1] > y && x < ((path[b][0] - path[a][0]) * (y - path[a][1])) / (path[b][1] - path[a][1]) + path[a][0]) within = !within;
    }
    if (within) found.push(i);
  }
  return found;
}

const tip = byId("tip");
async function hover(i, x, y) {
  if (i === state.hover) return;
  state.hover = i;
  queue();
  tip.hidden = i < 0;
  if (i < 0) return;
  tip.replaceChildren(make("b", "", refOf(i).split("/").pop()), make("span", "", catOf.cluster.values[catOf.cluster.data[i]]));
  tip.style.left = `${Math.min(view.width - 290, x + 14)}px`;
  tip.style.top = `${Math.min(view.height - 90, y + 12)}px`;
  const turns = await chatOf(i);
  if (state.hover === i) tip.append(make("p", "", firstWords(turns)));
}
function firstWords(turns) {
  const turn = turns.find((one) => one[0] !== "system" && one[0] !== "tools") || turns[0];
  return turn ? turn[1].slice(0, 160).replace(/\s+/g, " ") : "";
}
