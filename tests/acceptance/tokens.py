"""Checks of tokens, masks, packing, rows and recipes (section 3, 13 to 24 and the offline part of 36)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.acceptance.lab import Check, Lab, check, write_rows
from tests.acceptance.reference import encode_chat, load_llama, summed_nll
from tests.acceptance.training import packed, unpacked
from tests.support.tiny import CHATML, conversations

END = "<|im_end|>"


def shown(lab: Lab, name: str, rows: list[Any] | Path, *more: str, **changes: Any) -> list[dict[str, Any]]:
    """Rows as `luthier data show --json` gives them."""
    path = rows if isinstance(rows, Path) else write_rows(lab.folder / f"{name}.jsonl", rows)
    recipe = lab.recipe(name, **{"data__train": [{"path": str(path)}], **changes})
    return list(lab.luthier("data", "show", recipe, "--json", "-n", "1000", *more).json["rows"])


def chats() -> list[dict[str, Any]]:
    """20 conversations of 1 to 6 turns, some with a system message."""
    rows = [conversations(1, seed=seed, turns=1 + seed % 6)[0] for seed in range(20)]
    for row in rows[::3]:
        row["messages"].insert(0, {"role": "system", "content": "answer 'kindly', \"please\" {{x}} {% y %} \\boxed"})
    return rows


@check("13", "pad = eos: after overfitting, answers end by themselves")
def stops_by_itself(lab: Lab, c: Check) -> None:
    path = str(write_rows(lab.folder / "eight.jsonl", conversations(8, seed=5)))
    run = lab.run(
        "overfit", "run", data__train=[{"path": path}], train__num_train_epochs=80, train__learning_rate=5e-3,
        evaluate={"tasks": [{"name": "same", "path": path, "metric": "exact", "max_new_tokens": 120}],
                  "compare_with_base": False},
    ).ok  # fmt: skip
    task = run.read("eval/after.json")["tasks"][0]
    c.at_least("finish_reason stop, of 8", sum(row["finish_reason"] == "stop" for row in task["rows"]), 7)
    c.at_least("answers learnt by heart, of 8", sum(row["score"] for row in task["rows"]), 7)
    c.at_most("last loss", run.losses()[-1], 0.2)


@check("15", "trained text is the answers and their terminators, 1 to 6 turns")
def trained_text(lab: Lab, c: Check) -> None:
    rows = chats()
    rows[1]["messages"].insert(0, {"role": "assistant", "content": "time begins here"})
    records = shown(lab, "masks", rows, data__max_length=512)
    wrong = mismatched = 0
    for row, record in zip(rows, records, strict=True):
        wanted = "".join(m["content"] + END for m in row["messages"] if m["role"] == "assistant")
        trained = [label for label in record["labels"] if label != -100]
        wrong += lab.tokenizer.decode(trained, skip_special_tokens=False) != wanted
        ids, mask = encode_chat(lab.tokenizer, row["messages"])
        mismatched += record["ids"] != ids or [label != -100 for label in record["labels"]] != mask
    c.equal("rows", len(records), 20)
    c.equal("rows whose trained text differs", wrong, 0)
    c.equal("rows whose ids or mask differ from the plain reference", mismatched, 0)


@check("17", "no token crosses the border of prompt and answer")
def borders(lab: Lab, c: Check) -> None:
    prompts = [f"what is the time{end}" for end in (".", " ", "\n", ":", "", "年", "🙂")]
    answers = ["year", " year of the school", "\nyear", "年", "🙂 day", "'s", "007", "2024-01-01", "null"]
    raw = [{"prompt": prompt, "completion": answer} for prompt in prompts for answer in answers]
    wrong = _border_faults(lab, shown(lab, "raw", raw), [(r["prompt"], r["completion"]) for r in raw])
    c.equal(f"of {len(raw)} prompt/completion rows, wrong", wrong, 0)
    rows = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
        for row in raw
    ]
    pairs = [(f"<|im_start|>user\n{r['prompt']}{END}\n<|im_start|>assistant\n", r["completion"]) for r in raw]
    c.equal(f"of {len(rows)} chat rows, wrong", _border_faults(lab, shown(lab, "borders", rows), pairs), 0)


def _border_faults(lab: Lab, records: list[dict[str, Any]], pairs: list[tuple[str, str]]) -> int:
    wrong = 0
    for record, (prompt, answer) in zip(records, pairs, strict=True):
        first = next(place for place, label in enumerate(record["labels"]) if label != -100)
        alone = lab.tokenizer.encode(prompt, add_special_tokens=False).ids
        text = lab.tokenizer.decode([x for x in record["labels"] if x != -100], skip_special_tokens=False)
        wrong += record["ids"][:first] != alone or text != answer + END
    return wrong


@check("18", "over-long prompts leave nothing to train on: counted, never trained")
def overlong(lab: Lab, c: Check) -> None:
    rows = conversations(16, seed=2)
    for row in rows[::2]:
        row["messages"][0]["content"] = "school time year " * 40
    path = [{"path": str(write_rows(lab.folder / "overlong.jsonl", rows))}]
    for packing in (False, True):
        name = f"overlong-{'packed' if packing else 'rows'}"
        data = {"data__train": path, "data__max_length": 80, "data__packing": packing}
        run = lab.run(name, **data, train__per_device_train_batch_size=2).ok
        manifest = run.read("data/manifest.json")
        left_out = sum(manifest["dropped"].values())
        c.equal(f"{name}: used + dropped", manifest["rows_used"] + left_out, 16)
        c.at_least("dropped, each with its reason", min(left_out, len(manifest["dropped_rows"])), 8)
        c.at_least("smallest loss of a step", min(run.losses()), 1.0)
        expected = sum(sum(encode_chat(lab.tokenizer, row["messages"])[1]) for row in rows[1::2]
                       if len(encode_chat(lab.tokenizer, row["messages"])[0]) <= 80)  # fmt: skip
        c.equal("trained tokens", sum(line["trained_tokens"] for line in run.steps), 2 * expected)
    all_bad = str(write_rows(lab.folder / "all-overlong.jsonl", rows[::2]))
    for packing in (False, True):
        run = lab.run(f"nothing-{packing}", data__train=[{"path": all_bad}], data__max_length=80, data__packing=packing)
        c.refused("all rows masked", run.ran, 3, "nothing is left to train on")
        c.equal("steps", len(run.metrics), 0)


@check("19", "packed documents never see each other")
def packing(lab: Lab, c: Check) -> None:
    f, p = unpacked(lab).steps[0], packed(lab).steps[0]
    c.equal("trained tokens packed - unpacked", p["trained_tokens"] - f["trained_tokens"], 0)
    c.at_most("summed NLL, relative", abs(p["loss"] / f["loss"] - 1), 1e-6)
    model = load_llama(lab.base)
    second = conversations(3, seed=21)
    after: list[float] = []
    for place, first in enumerate(second[:2]):
        rows = [first, second[2]]
        name = f"pair{place}"
        path = write_rows(lab.folder / f"{name}.jsonl", rows)
        data = {"data__train": [{"path": str(path)}], "data__packing": True, "data__max_length": 512}
        run = lab.run(name, **data, train__max_steps=1, train__num_train_epochs=None).ok
        c.equal("documents in the pack", run.read("data/manifest.json")["packs"], 1)
        line = run.steps[0]
        nll, _ = summed_nll(model, *encode_chat(lab.tokenizer, first["messages"]))
        after.append(line["loss"] * line["trained_tokens"] - nll)
    nll, count = summed_nll(model, *encode_chat(lab.tokenizer, second[2]["messages"]))
    c.at_most("NLL per token of document 2 when document 1 is replaced", abs(after[0] - after[1]) / count, 2e-6)
    c.at_most("against document 2 alone", abs(after[0] - nll) / count, 2e-6)
    packs = shown(lab, "P-show", lab.rows, "--packed", data__packing=True)
    documents = [ref for record in packs for ref in record["refs"]]
    c.equal("rows in packs", (len(documents), len(set(documents))), (32, 32))


@check("22", "whatever changes the tokens changes the preview; nothing else does")
def cache(lab: Lab, c: Check) -> None:
    rows = conversations(6, seed=11)
    rows[0]["messages"][0]["content"] += " <tool>"
    path = write_rows(lab.folder / "cache.jsonl", rows)
    data = {"data__train": [{"path": str(path)}]}

    def look(**changes: Any) -> tuple[str, str]:
        recipe = lab.recipe("cache", **{**data, **changes})
        manifest = lab.luthier("data", "check", recipe, "--json").json
        return manifest["hash"], manifest["cache"]

    first, again = look(), look()
    c.equal("unchanged rerun", (again[0] == first[0], again[1]), (True, "hit"))
    template = lab.folder / "other.jinja"
    template.write_text(CHATML.replace("'<|im_start|>", "'#<|im_start|>"))
    changed = {
        "template": look(model__chat_template=str(template)),
        "length": look(data__max_length=48),
        "new token": look(model__new_tokens=["<tool>"]),
    }
    path.write_text(path.read_text("utf-8").replace(" time", " tine", 1), "utf-8")
    changed["one byte"] = look()
    for what, (found, state) in changed.items():
        c.equal(f"{what} changed: preview differs", (found != first[0], state.startswith("miss")), (True, True))
    c.equal("all previews differ", len({found for found, _ in changed.values()}), 4)


BAD_LINES = (
    '{"messages": [}', "not json", "", '{"messages": "text"}',
    '{"messages": [{"role": "user", "content": 5}]}', "[1, 2]",
    '{"messages": [{"role": "robot", "content": "x"}, {"role": "assistant", "content": "y"}]}', "17", "null",
    '{"messages": []}', '{"other": 1}', '{"messages": [{"role": "user", "content": "a"}], "messages": []}',
    '{"messages": [{"role": "user", "content": "a\\ud800"}, {"role": "assistant", "content": "b"}]}',
    '{"messages": [{"content": "no role"}, {"role": "assistant", "content": "b"}]}', '{"messages": [1]}',
    '{"messages": [{"role": "user", "content": NaN}, {"role": "assistant", "content": "b"}]}', "'single': 1",
    '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}',
    '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}', '"text"',
    '{"messages": [{"role": "user", "content": "cut',
)  # fmt: skip


@check("23", "20 faults in one file, all named at once", refuses=True)
def bad_rows(lab: Lab, c: Check) -> None:
    good = [json.dumps(row) for row in conversations(len(BAD_LINES), seed=4)]
    lines = [line for pair in zip(good, BAD_LINES, strict=True) for line in pair]
    path = lab.folder / "bad.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    base = lab.folder / "no-weights"
    shutil.copytree(lab.base, base)
    (base / "model.safetensors").unlink()
    ran = lab.luthier(
        "data", "check", lab.recipe("bad", model__name_or_path=str(base), data__train=[{"path": str(path)}]), "--json"
    )
    named = {problem.get("line") for problem in ran.json.get("problems", ())}
    wanted = {2 * place + 2 for place, line in enumerate(BAD_LINES) if line}
    c.refused("20 bad lines, one blank", ran, 3)
    c.equal("bad lines not named, good lines named", (sorted(wanted - named), sorted(named - wanted)), ([], []))
    train = lab.run("bad-train", data__train=[{"path": str(path)}])
    c.refused("train on them", train.ran, 3, "bad.jsonl:2:")
    c.equal("a result was left", (train.folder / "final").exists(), False)


def _aliases() -> str:
    """Nine levels of nine aliases: 9^9 values."""
    levels = zip("abcdefgh", "bcdefghi", strict=True)
    return "\n".join(
        ["a: &a [1,2,3,4,5,6,7,8,9]", *(f"{new}: &{new} [{','.join(['*' + old] * 9)}]" for old, new in levels)]
    )


TRAPS = {
    "duplicate key": ("train: {seed: 1, seed: 2}", 2),
    "unknown key": ("train: {learning_rat: 1}", 2),
    "no for a truth value": ("train: {shuffle: no}", 2),
    "text for a number": ("train: {learning_rate: fast}", 2),
    "a tab": ("train:\n\tseed: 1", 3),
    "bombs of aliases": (_aliases(), 6),
    "python objects": ("train: !!python/object/apply:os.system ['touch MARK']", 2),
    "_target_": ("train: {_target_: os.system}", 2),
    "${variables}": ("train: {seed: '${oc.env:HOME}'}", 2),
    "octal": ("train: {seed: 0o12x}", 2),
}  # fmt: skip


@check("24", "traps of YAML", refuses=True)
def traps(lab: Lab, c: Check) -> None:
    mark = lab.folder / "mark"
    for what, (text, line) in TRAPS.items():
        path = lab.folder / "trap.yaml"
        rest = (
            f"model: {{name_or_path: {lab.base}}}\ndata: {{train: [{{path: {lab.rows}}}]}}\n"
            f"output_dir: {lab.folder}/t\n"
        )
        path.write_text("version: 1\n" + text.replace("MARK", str(mark)) + "\n" + rest, "utf-8")
        ran = lab.luthier("plan", path)
        c.refused(what, ran, 2, f"trap.yaml:{line}")
        if ran.cpu > 2:
            c.at_most(f"{what}: seconds", ran.cpu, 2)
    c.equal("code ran", mark.exists(), False)
    path.write_text(f"train: {{learning_rate: 1e-4, warmup_steps: 0o12}}\n{rest}", "utf-8")
    c.equal("1e-4 and 0o12 are numbers: exit", lab.luthier("plan", path).code, 0)
    good = lab.luthier("data", "check", path, "--json")
    c.equal("recipe with 1e-4 is used: exit", good.code, 0)


@check("36", "prompts at evaluation are those of training; a batch answers as each alone (offline part)")
def prompts(lab: Lab, c: Check) -> None:
    path = write_rows(lab.folder / "chats.jsonl", chats())
    records = shown(lab, "served", path, data__loss_on="last_assistant", data__max_length=512)
    task = {"name": "chats", "path": str(path), "metric": "exact", "max_new_tokens": 12}
    answers = {}
    for batch in (1, 3, 64):
        recipe = lab.recipe(f"served-{batch}", evaluate={"tasks": [task], "batch_size": batch})
        value = lab.luthier("eval", recipe, "--json").json["tasks"][0]
        answers[batch] = [(row["output"], row["finish_reason"]) for row in value["rows"]]
    wrong = 0
    for row, record in zip(value["rows"], records, strict=True):
        first = next(place for place, label in enumerate(record["labels"]) if label != -100)
        wrong += lab.tokenizer.encode(row["prompt"], add_special_tokens=False).ids != record["ids"][:first]
    c.equal("of 20 prompts, different from training", wrong, 0)
    c.equal(
        "rows answered otherwise in a batch of 3", sum(a != b for a, b in zip(answers[1], answers[3], strict=True)), 0
    )
    c.equal(
        "rows answered otherwise in a batch of 20", sum(a != b for a, b in zip(answers[1], answers[64], strict=True)), 0
    )
