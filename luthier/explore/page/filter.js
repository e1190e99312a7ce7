// Which rows are shown (filters) and which of them are selected (lasso).
const state = {
  shown: new Uint8Array(n).fill(1), selected: new Uint8Array(n), shownCount: n, selectedCount: 0,
  off: {}, low: null, high: null, lengthKey: "length", outliers: false, uncovered: false, query: "", matches: null,
  open: -1, hover: -1, order: [], sort: "place",
};
for (const cat of cats) state.off[cat.key] = new Set();
const listeners = [];
const onChange = (listener) => listeners.push(listener);

function applyFilters() {
  const started = performance.now(), shown = state.shown;
  shown.fill(1);
  for (const cat of cats) {
    const off = state.off[cat.key];
    if (!off.size) continue;
    const hidden = new Uint8Array(cat.values.length);
    for (const value of off) hidden[value] = 1;
    for (let i = 0; i < n; i++) if (hidden[cat.data[i]]) shown[i] = 0;
  }
  const lengths = numOf.length.data;
  if (state.low !== null) for (let i = 0; i < n; i++) if (lengths[i] < state.low) shown[i] = 0;
  if (state.high !== null) for (let i = 0; i < n; i++) if (lengths[i] > state.high) shown[i] = 0;
  if (state.outliers) for (let i = 0; i < n; i++) if (!isOutlier(i)) shown[i] = 0;
  if (state.uncovered) for (let i = 0; i < n; i++) if (!isUncovered(i)) shown[i] = 0;
  if (state.matches) for (let i = 0; i < n; i++) if (!state.matches[i]) shown[i] = 0;
  recount();
  timings.filter = performance.now() - started;
  for (const listener of listeners) listener();
}

function recount() {
  let shown = 0, selected = 0;
  for (let i = 0; i < n; i++) {
    shown += state.shown[i];
    selected += state.shown[i] & state.selected[i];
  }
  state.shownCount = shown;
  state.selectedCount = selected;
}

function select(rows) {
  state.selected.fill(0);
  for (const i of rows) state.selected[i] = 1;
  recount();
  for (const listener of listeners) listener();
}

// Rows of the list: the selected ones if there are any, else all that are shown.
function listedRows() {
  const only = state.selectedCount > 0, rows = [];
  for (let i = 0; i < n; i++) if (state.shown[i] && (!only || state.selected[i])) rows.push(i);
  const [key, way] = state.sort.split(" ");
  if (key !== "place") {
    const data = numOf[key].data, sign = way === "down" ? -1 : 1;
    rows.sort((a, b) => {
      const missing = Number.isNaN(data[a]) - Number.isNaN(data[b]);
      return missing || sign * (data[a] - data[b]) || a - b;
    });
  }
  return rows;
}

// Text search: block by block, so that the page stays usable; a newer search ends an older one.
let searching = 0;
async function search(query, say) {
  const mine = ++searching, wanted = query.trim().toLowerCase(), started = performance.now();
  state.query = wanted;
  if (!wanted) {
    state.matches = null;
    applyFilters();
    return;
  }
  const matches = new Uint8Array(n);
  let found = 0, paused = performance.now();
  for (let number = 0; number < blockCount; number++) {
    const rows = await inflate(`chat-${number}`);
    if (mine !== searching) return;
    rows.forEach((turns, place) => {
      if (turns.some((turn) => turn[1].toLowerCase().includes(wanted))) {
        matches[number * head.block + place] = 1;
        found++;
      }
    });
    if (performance.now() - paused > 24) {
      say(`searching: ${count((100 * number) / blockCount)} %, ${count(found)} rows`);
      await new Promise((go) => setTimeout(go));
      paused = performance.now();
      if (mine !== searching) return;
    }
  }
  timings.search = performance.now() - started;
  state.matches = matches;
  applyFilters();
  say(`${count(found)} rows have it`);
}
