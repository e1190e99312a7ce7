"use strict";
// Rows, names and tags are data: they reach the page as text nodes only.
const $ = (id) => document.getElementById(id);
let state = null;
let annotator = "";
let editing = null; // side of a pair, or "single"
let busy = false;

function element(tag, kind, text) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const reply = await fetch(path, options);
  const value = await reply.json();
  if (!reply.ok) throw new Error(value.error || `the server said ${reply.status}`);
  return value;
}

function say(text, wrong) {
  $("said").textContent = text;
  $("said").className = wrong ? "error" : "";
}

async function act(action, rest) {
  if (busy || !annotator) return;
  busy = true;
  try {
    state = await ask("act", { annotator, action, hash: state && state.row && state.row.hash, ...rest });
    editing = null;
    say(state.said || "");
    draw(true);
  } catch (error) {
    say(error instanceof TypeError ? "luthier does not answer: is it still running?" : error.message, true);
  } finally {
    busy = false;
  }
}

function turn(block, texts) {
  const box = element("article", `turn ${/^[a-z]+$/.test(block.role) ? block.role : "other"}`);
  box.append(element("p", "role", block.role));
  if (editing !== null && block.slot !== null && texts.has(block.slot)) {
    box.classList.add("editing");
    const area = element("textarea");
    area.value = texts.get(block.slot);
    area.dataset.slot = block.slot;
    area.rows = Math.min(24, Math.max(3, area.value.split("\n").length + Math.ceil(area.value.length / 90)));
    area.setAttribute("aria-label", `Text of ${block.role}`);
    box.append(area);
  } else if (block.text || !block.notes.length) {
    const text = element("p", block.text ? "text" : "text empty", block.text || "(empty)");
    text.dir = "auto";
    box.append(text);
  }
  for (const [name, value] of block.notes) {
    const extra = element("p", "extra");
    extra.append(element("b", "", `${name}: `), element("span", "", value));
    box.append(extra);
  }
  return box;
}

function draw(moved) {
  const row = state.row;
  const { rows, decided, skipped } = state.counts;
  $("bar").max = Math.max(1, rows);
  $("bar").value = decided;
  $("counts").textContent = `${decided} of ${rows}` + (skipped ? `, ${skipped} skipped` : "");
  $("who").textContent = annotator;
  $("name-card").hidden = true;
  $("row-card").hidden = !row;
  $("actions").hidden = false;
  $("done-card").hidden = !!row;
  for (const id of ["for-single", "for-pair", "for-edit"]) $(id).hidden = true;
  if (!row) {
    $("done-text").textContent = skipped ? `${skipped} skipped.` : "Thank you. luthier data label --status shows what was said.";
    $("show-skipped").hidden = !skipped;
    return;
  }
  $("place").textContent = `Row ${row.number} of ${rows} · ${row.place}`;
  $("decision").textContent = row.decision ? `You said: ${row.decision}` : "";
  const warnings = [];
  if (row.changed) warnings.push(`This row changed since it was decided on (${row.changed}).`);
  if (row.empty) warnings.push(`Nothing to train on: ${row.empty}.`);
  if (row.copies) warnings.push(`The same row stands in the files ${row.copies + 1} times; your decision is for all.`);
  if (row.label !== null) warnings.push(`The row's own label: ${row.label ? "desired" : "not desired"}.`);
  $("warning").hidden = !warnings.length;
  $("warning").textContent = warnings.join(" ");
  $("tools").hidden = !row.tools;
  $("tools").querySelector("pre").textContent = row.tools || "";
  const texts = new Map(row.slots.map((text, slot) => [slot, text]));
  $("blocks").replaceChildren(...row.blocks.map((block) => turn(block, row.kind === "single" ? texts : new Map())));
  $("answers").hidden = row.kind !== "pair";
  document.querySelectorAll("#answers .chat").forEach((place, side) => {
    const name = side ? "right" : "left";
    place.replaceChildren(...(row.answers[side] || []).map((block) => turn(block, editing === name ? texts : new Map())));
  });
  $("columns").hidden = !row.columns.length;
  $("columns").replaceChildren(...row.columns.flatMap(([name, text]) => [element("dt", "", name), element("dd", "", text)]));
  $("tags").replaceChildren(...row.tags.map((tag) => {
    const button = element("button", "", `${tag} ×`);
    button.type = "button";
    button.setAttribute("aria-label", `Take off tag ${tag}`);
    button.addEventListener("click", () => act("untag", { text: tag }));
    return button;
  }));
  $("note").hidden = !row.note;
  $("note").textContent = row.note;
  $(editing !== null ? "for-edit" : row.kind === "pair" ? "for-pair" : "for-single").hidden = false;
  $("for-all").hidden = editing !== null;
  if (editing !== null) {
    const areas = document.querySelectorAll("textarea[data-slot]");
    if (areas.length) areas[areas.length - 1].focus();
  } else if (moved) {
    window.scrollTo(0, 0);
    $("main").focus({ preventScroll: true });
  }
}

function question(label, text, rows) {
  return new Promise((resolve) => {
    const box = $("ask");
    $("ask-label").textContent = label;
    $("ask-text").value = text;
    $("ask-text").rows = rows;
    const end = (value) => { box.close(); resolve(value); };
    $("ask-ok").onclick = () => end($("ask-text").value);
    $("ask-no").onclick = () => end(null);
    box.oncancel = () => resolve(null);
    $("ask-text").onkeydown = (event) => {
      if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); end($("ask-text").value); }
    };
    box.showModal();
    $("ask-text").focus();
  });
}

async function beginEdit() {
  if (!state.row.slots.length) return say("This row has no text that can be edited here.", true);
  if (state.row.kind === "pair") {
    const which = await question("Which answer do you edit? It becomes the better one. 1 or 2", "1", 1);
    if (which === null) return undefined;
    editing = which.trim() === "2" ? "right" : "left";
  } else {
    editing = "single";
  }
  return draw(false);
}

function save() {
  const edits = {};
  for (const area of document.querySelectorAll("textarea[data-slot]")) {
    if (area.value !== state.row.slots[Number(area.dataset.slot)]) edits[area.dataset.slot] = area.value;
  }
  if (!Object.keys(edits).length) return say("Nothing was changed.", true);
  return editing === "single" ? act("edit", { edits }) : act("choose", { side: editing, edits });
}

async function press(name) {
  if (name === "save") return save();
  if (name === "cancel") { editing = null; say(""); return draw(false); }
  if (name === "undo" || name === "back" || name === "forward") return act(name);
  if (name === "jump") {
    const number = await question("Number of the row", "", 1);
    return number === null ? undefined : act("jump", { number: Number.parseInt(number, 10) || 0 });
  }
  if (!state.row) return undefined;
  if (name === "left" || name === "right") return act("choose", { side: name });
  if (name === "edit") return beginEdit();
  if (name === "tag" || name === "note") {
    const text = await question(name === "tag" ? "Tag" : "Note", name === "note" ? state.row.note : "", name === "tag" ? 1 : 3);
    return text === null ? undefined : act(name, { text });
  }
  return act(name);
}

const KEYS = { a: "accept", r: "reject", e: "edit", 1: "left", 2: "right", "=": "tie", 0: "tie", s: "skip", u: "undo", t: "tag", n: "note", j: "jump", ArrowLeft: "back", ArrowRight: "forward" };
const ONLY = { accept: "single", left: "pair", right: "pair", tie: "pair" };

document.addEventListener("keydown", (event) => {
  if (!state || $("ask").open || $("name-card").hidden === false) return;
  if (editing !== null) {
    if (event.key === "Escape") press("cancel");
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) press("save");
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA)$/.test(event.target.tagName)) return;
  const name = KEYS[event.key];
  if (!name || (ONLY[name] && state.row && ONLY[name] !== state.row.kind)) return;
  event.preventDefault();
  press(name);
});

document.querySelectorAll("[data-act]").forEach((button) => button.addEventListener("click", () => press(button.dataset.act)));
$("show-skipped").addEventListener("click", () => act("show_skipped"));

async function begin(name) {
  try {
    state = await ask(`state?annotator=${encodeURIComponent(name)}`);
    annotator = state.annotator;
    try { sessionStorage.setItem("annotator", annotator); } catch { /* storage is off: the name is asked again */ }
    editing = null;
    say("");
    draw(true);
  } catch (error) {
    askName();
    say(error.message, true);
  }
}

function askName() {
  for (const id of ["row-card", "done-card", "actions"]) $(id).hidden = true;
  $("name-card").hidden = false;
  $("name").value = annotator;
  $("name").focus();
}

$("name-go").addEventListener("click", () => begin($("name").value));
$("name").addEventListener("keydown", (event) => { if (event.key === "Enter") begin($("name").value); });
$("who").addEventListener("click", askName);

(async () => {
  let stored = null;
  try { stored = sessionStorage.getItem("annotator"); } catch { /* as above */ }
  const start = await ask("start");
  const name = stored || start.annotator;
  if (name) begin(name); else askName();
})();
