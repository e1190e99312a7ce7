// Filters, list and the open row.
function buildFilters() {
  const box = byId("kinds");
  for (const cat of cats) {
    if (cat.values.length < 2) continue;
    const group = make("details", "group");
    const title = make("summary", "", cat.name);
    const note = make("small", "", `${cat.values.length}`);
    title.append(note);
    group.append(title);
    if (cat.key === "split") group.open = true;
    const counts = new Uint32Array(cat.values.length);
    for (let i = 0; i < n; i++) counts[cat.data[i]]++;
    const all = make("button", "link", "all"), none = make("button", "link", "none"), boxes = [];
    const bar = make("p", "allnone");
    bar.append(all, none);
    if (cat.values.length > 3) group.append(bar);
    const list = make("div", "checks");
    cat.values.forEach((value, k) => {
      const label = make("label"), input = document.createElement("input");
      input.type = "checkbox";
      input.checked = true;
      input.addEventListener("change", () => {
        state.off[cat.key][input.checked ? "delete" : "add"](k);
        applyFilters();
      });
      boxes.push(input);
      const dot = make("i", "dot");
      label.append(input, dot, make("span", "", value), make("small", "", count(counts[k])));
      list.append(label);
    });
    group.append(list);
    const setAll = (on) => {
      boxes.forEach((input, k) => { input.checked = on; state.off[cat.key][on ? "delete" : "add"](k); });
      applyFilters();
    };
    all.addEventListener("click", () => setAll(true));
    none.addEventListener("click", () => setAll(false));
    cat.show = (only) => {
      boxes.forEach((input, k) => { input.checked = k === only; state.off[cat.key][k === only ? "delete" : "add"](k); });
      applyFilters();
    };
    cat.reset = () => { boxes.forEach((input) => { input.checked = true; }); state.off[cat.key].clear(); };
    cat.dots = () => list.querySelectorAll(".dot").forEach((dot, k) => {
      dot.style.setProperty("--dot", kindColour(k));
      dot.classList.toggle("off", colourBy !== cat.key);
    });
    onChange(() => { note.textContent = state.off[cat.key].size ? `${cat.values.length - state.off[cat.key].size} of ${cat.values.length}` : `${cat.values.length}`; });
    box.append(group);
  }
}

// -- the list: only the rows in sight are in the document
const LINE = 58;
const list = byId("list"), listInner = byId("list-inner");
let listTurn = 0;
function fillList() {
  state.order = listedRows();
  listInner.style.height = `${Math.min(state.order.length * LINE, 8e6)}px`;
  list.scrollTop = 0;
  drawList();
}
async function drawList() {
  const turn = ++listTurn, rows = state.order;
  const real = rows.length * LINE, tall = Math.min(real, 8e6); // browsers end at some height; then the bar stands for shares
  const share = tall > list.clientHeight ? list.scrollTop / (tall - list.clientHeight) : 0;
  const first = real > tall ? Math.floor(share * (rows.length - list.clientHeight / LINE)) : Math.floor(list.scrollTop / LINE);
  const from = Math.max(0, first), to = Math.min(rows.length, from + Math.ceil(list.clientHeight / LINE) + 2);
  const shownTop = real > tall ? list.scrollTop : from * LINE;
  const texts = await Promise.all(rows.slice(from, to).map(chatOf));
  if (turn !== listTurn) return;
  listInner.replaceChildren(...texts.map((turns, k) => listLine(rows[from + k], turns, shownTop + k * LINE)));
}
function listLine(i, turns, top) {
  const line = make("button", state.open === i ? "line open" : "line");
  line.style.top = `${top}px`;
  const dot = make("i", "dot");
  dot.style.setProperty("--dot", colourText(i));
  const value = state.sort === "place" ? null : numOf[state.sort.split(" ")[0]];
  const meta = make("small", "", `${refOf(i).split("/").pop()} · ${value && value.key !== "length" ? `${value.name} ${short(value.data[i])}` : `${count(numOf.length.data[i])} ${numOf.length.unit}`}`);
  line.append(dot, make("span", "words", firstWords(turns) || "(empty)"), meta);
  line.addEventListener("click", () => openRow(i));
  line.addEventListener("pointerenter", () => { state.hover = i; queue(); });
  return line;
}
list.addEventListener("scroll", drawList, { passive: true });
list.addEventListener("keydown", (event) => {
  const way = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!way || !state.order.length) return;
  event.preventDefault();
  step(way);
});
function step(way) {
  const at = state.order.indexOf(state.open), next = Math.min(state.order.length - 1, Math.max(0, at + way));
  openRow(state.order[next]);
  const top = next * LINE;
  if (top < list.scrollTop || top + LINE > list.scrollTop + list.clientHeight) list.scrollTop = top - list.clientHeight / 2;
}

// -- the open row
let view_as = "chat";
async function openRow(i) {
  state.open = i;
  queue();
  const panel = byId("row");
  panel.hidden = false;
  byId("row-ref").textContent = refOf(i).split("/").pop();
  byId("row-ref").title = refOf(i);
  const facts = byId("row-facts");
  facts.replaceChildren();
  const fact = (text, kind) => facts.append(make("span", kind || "badge", text));
  fact(catOf.split.values[catOf.split.data[i]]);
  fact(`cluster: ${catOf.cluster.values[catOf.cluster.data[i]]}`);
  fact(`${count(numOf.length.data[i])} ${numOf.length.unit}`);
  if (catOf.language) fact(catOf.language.values[catOf.language.data[i]]);
  if (isOutlier(i)) fact("outlier", "badge warn");
  if (isUncovered(i)) fact("no training row near", "badge warn");
  for (const num of nums) if (!["length"].includes(num.key) && !Number.isNaN(num.data[i])) fact(`${num.name} ${short(num.data[i])}`, "badge soft");
  if (head.why[i]) fact(head.why[i], "badge warn");
  byId("row-body").replaceChildren();
  await showBody(i);
  const near = byId("row-near");
  near.replaceChildren();
  if (heldOut.has(i)) {
    const other = heldOut.get(i), title = make("h3", "", "Nearest training row ");
    const open = make("button", "link", refOf(other).split("/").pop());
    open.addEventListener("click", () => openRow(other));
    title.append(open, make("small", "", `distance ${short(numOf.distance.data[i])}`));
    const turns = await chatOf(other);
    if (state.open === i) near.replaceChildren(title, chatView(turns));
  }
  drawList();
}
async function showBody(i) {
  const body = byId("row-body"), turns = await chatOf(i);
  let content;
  if (view_as === "chat") content = chatView(turns);
  else {
    const packed = head.tokens ? await tokensOf(i) : null;
    if (!packed) content = make("p", "absent", head.tokens ? "This row is not trained, so it has no tokens." : "No tokenizer is known: give a recipe, or --tokenizer, to see rows as the model does.");
    else {
      const text = packed.p.map((piece) => (typeof piece === "string" ? piece : turns[piece][1])).join("");
      content = view_as === "text" ? make("pre", "rendered", text) : tokenView(text, packed);
    }
  }
  if (state.open === i) body.replaceChildren(content);
}
function chatView(turns) {
  const box = make("div", "chat");
  for (const [role, text, mark] of turns) {
    const item = make("div", `turn ${["user", "assistant", "system", "tool", "completion"].includes(role) ? role : "other"} ${mark ? `m-${mark}` : ""}`);
    item.append(make("h4", "", mark ? `${role} · ${mark}` : role), make("p", "said", text));
    box.append(item);
  }
  return box;
}
const TOKEN_KINDS = head.kinds;
function tokenView(text, packed) {
  const box = make("div"), words = make("p", "tokens"), counts = new Array(TOKEN_KINDS.length).fill(0);
  let at = 0, token = 0;
  const most = 3000;
  for (let r = 0; r < packed.k.length; r += 2) {
    for (let k = 0; k < packed.k[r + 1]; k++, token++) {
      const end = at + packed.l[token];
      counts[packed.k[r]]++;
      if (token < most) words.append(make("span", `t ${TOKEN_KINDS[packed.k[r]]}`, text.slice(at, end)));
      at = end;
    }
  }
  if (token > most) words.append(make("em", "", ` and ${count(token - most)} more`));
  const legend = make("p", "legend");
  TOKEN_KINDS.forEach((kind, k) => { if (counts[k]) legend.append(make("span", `t ${kind}`, `${kind} ${count(counts[k])}`)); });
  box.append(legend, words);
  return box;
}
function closeRow() {
  state.open = -1;
  byId("row").hidden = true;
  queue();
  drawList();
}
