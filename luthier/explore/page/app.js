// Wiring.
function option(select, value, text) {
  const item = make("option", "", text);
  item.value = value;
  select.append(item);
}
const colourSelect = byId("colour"), sortSelect = byId("sort");
for (const cat of cats) if (cat.values.length > 1 || cat.key === "cluster") option(colourSelect, cat.key, cat.name);
if (head.threshold !== null) option(colourSelect, "coverage", "coverage by training");
option(colourSelect, "is outlier", "outlier or not");
for (const num of nums) option(colourSelect, num.key, num.name);
option(sortSelect, "place", "in order");
for (const num of nums) {
  option(sortSelect, `${num.key} down`, `${num.name}, highest first`);
  option(sortSelect, `${num.key} up`, `${num.name}, lowest first`);
}

function tell() {
  const parts = [`${count(state.shownCount)} of ${count(n)} rows`];
  if (state.selectedCount) parts.push(`${count(state.selectedCount)} selected`);
  byId("count").textContent = parts.join(", ");
  byId("unselect").hidden = !state.selectedCount;
  byId("export").textContent = `Save list of ${count(state.selectedCount || state.shownCount)} rows`;
}
onChange(tell);
onChange(fillList);
onChange(queue);

function setColour(key) {
  colourBy = key;
  colourSelect.value = key;
  recolour();
  for (const cat of cats) if (cat.dots) cat.dots();
  drawList();
}
colourSelect.addEventListener("change", () => setColour(colourSelect.value));
sortSelect.addEventListener("change", () => { state.sort = sortSelect.value; fillList(); });
const number = (input) => (input.value.trim() === "" || Number.isNaN(Number(input.value)) ? null : Number(input.value));
for (const id of ["low", "high"]) byId(id).addEventListener("change", () => { state[id] = number(byId(id)); applyFilters(); });
for (const id of ["outliers", "uncovered"]) byId(id).addEventListener("change", () => { state[id] = byId(id).checked; applyFilters(); });
byId("uncovered").parentElement.hidden = head.threshold === null;
let typing = 0;
byId("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => search(byId("search").value, (text) => { byId("found").textContent = text; }), 250);
  if (!byId("search").value.trim()) byId("found").textContent = "";
});
function clearAll() {
  for (const cat of cats) if (cat.reset) cat.reset();
  Object.assign(state, { low: null, high: null, outliers: false, uncovered: false, matches: null, query: "" });
  for (const id of ["low", "high", "search"]) byId(id).value = "";
  for (const id of ["outliers", "uncovered"]) byId(id).checked = false;
  byId("found").textContent = "";
  searching++;
  state.selected.fill(0);
  applyFilters();
}
byId("clear").addEventListener("click", clearAll);
byId("unselect").addEventListener("click", () => select([]));
byId("zoom-in").addEventListener("click", () => zoomAt(view.width / 2, view.height / 2, 1.6));
byId("zoom-out").addEventListener("click", () => zoomAt(view.width / 2, view.height / 2, 1 / 1.6));
byId("whole").addEventListener("click", resetView);
function setLasso(on) {
  lassoMode = on;
  byId("lasso").setAttribute("aria-pressed", String(on));
  stage.classList.toggle("drawing", on);
}
byId("lasso").addEventListener("click", () => setLasso(!lassoMode));
byId("labels").addEventListener("click", () => {
  labelsOn = !labelsOn;
  byId("labels").setAttribute("aria-pressed", String(labelsOn));
  queue();
});
byId("export").addEventListener("click", () => {
  const text = listedRows().map((i) => `${refOf(i)}\n`).join("");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  link.download = "rows.txt";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});

byId("close").addEventListener("click", closeRow);
byId("next").addEventListener("click", () => step(1));
byId("previous").addEventListener("click", () => step(-1));
byId("there").addEventListener("click", () => state.open >= 0 && moveTo(X[state.open], Y[state.open], Math.max(view.scale, base() * 8)));
for (const tab of document.querySelectorAll("[role=tab]")) {
  tab.addEventListener("click", () => {
    view_as = tab.dataset.view;
    for (const other of document.querySelectorAll("[role=tab]")) other.setAttribute("aria-selected", String(other === tab));
    if (state.open >= 0) showBody(state.open);
  });
}
for (const line of document.querySelectorAll("[data-cluster]")) {
  line.addEventListener("click", () => {
    const k = Number(line.dataset.cluster);
    if (catOf.cluster.show) catOf.cluster.show(k);
    if (line.dataset.uncovered) { byId("uncovered").checked = true; state.uncovered = true; applyFilters(); }
    byId("explorer").scrollIntoView();
  });
}
document.addEventListener("keydown", (event) => {
  const typed = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape") {
    if (typed) event.target.blur();
    else if (state.open >= 0) closeRow();
    else if (state.selectedCount) select([]);
    else clearAll();
  } else if (event.key === "/" && !typed) { event.preventDefault(); byId("search").focus(); }
  else if ((event.key === "j" || event.key === "k") && !typed) step(event.key === "j" ? 1 : -1);
  else if (event.key === "l" && !typed) setLasso(!lassoMode);
});
dark.addEventListener("change", () => setColour(colourBy));

buildFilters();
if (matchMedia("(max-width: 860px)").matches) byId("filters").open = false;
new ResizeObserver(resize).observe(stage);
resize();
setColour("cluster");
applyFilters();
// For tests and measurements: what is shown, and how long the last frame, filter and search took (ms).
const place = (i) => [X[i] * view.scale + view.x, Y[i] * view.scale + view.y];
window.luthierMap = { state, place, timings, view, applyFilters, search, openRow, select, draw, setColour, refOf, moving };
