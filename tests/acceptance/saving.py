"""Checks of checkpoints, resuming, merging and frozen weights (section 3, 25 to 33)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.acceptance.lab import Check, Lab, Run, check, distance, tensors, write_rows
from tests.acceptance.training import LORA, run_a
from tests.support.tiny import conversations

KILLS = 8


def stopped(lab: Lab, name: str, step: int, **changes: Any) -> Run:
    """A run as A that is asked to stop (SIGTERM) when the line of `step` is written."""
    recipe = lab.recipe(name, train__save_steps=2, train__save_total_limit=10, **changes)
    plan = {"after_metrics": step, "under": "metrics.jsonl", "at": 1, "do": "term"}
    return Run(lab.folder / "runs" / name, lab.luthier("train", recipe, plan=plan))


@check("25", "stop and resume is never having stopped")
def resume(lab: Lab, c: Check) -> None:
    a = run_a(lab)
    for step in (1, 3, 4, 7):
        name = f"stop{step}"
        first = stopped(lab, name, step)
        if first.ran.code != 130 or len(first.steps) != step:
            c.equal(f"stopped at {step}: exit, steps", (first.ran.code, len(first.steps)), (130, step))
        second = lab.again(name).ok
        c.equal(f"stopped after {step}: d", distance(a.weights(), second.weights()), 0.0)
        c.equal("losses equal", second.losses() == a.losses(), True)
    adapters = {"method": {**LORA, "lora_dropout": 0.1}, "data__packing": True, "train__per_device_train_batch_size": 1}
    whole = lab.run("drop", **adapters).ok
    stopped(lab, "drop-stop", 5, **adapters)
    c.equal("LoRA, dropout, packed: d", distance(whole.weights(), lab.again("drop-stop").ok.weights()), 0.0)


@check("27", "killed inside a save")
def killed(lab: Lab, c: Check) -> None:
    a = run_a(lab)
    window = {"after_metrics": 4, "until_metrics": 4, "under": "checkpoints"}
    log = lab.folder / "operations"
    recipe = lab.recipe("watched", train__save_steps=2, train__save_total_limit=10)
    watched = lab.luthier("train", recipe, plan={**window, "log": str(log)})
    c.equal("watched run: exit", watched.code, 0)
    operations = log.read_text().splitlines()
    c.at_least("file operations of one save", len(operations), KILLS)
    torn = 0
    for place in range(KILLS):
        at = 1 + round(place * (len(operations) - 1) / (KILLS - 1))
        name = f"kill{place}"
        recipe = lab.recipe(name, train__save_steps=2, train__save_total_limit=10)
        ran = lab.luthier("train", recipe, plan={**window, "at": at, "do": "kill"})
        if ran.code != -9:
            c.equal(f"kill at {operations[at - 1]}: exit", ran.code, -9)
        folder = lab.folder / "runs" / name / "checkpoints"
        torn += sum(not _complete(path) for path in folder.glob("step-*"))
        again = lab.again(name).ok
        c.equal(f"killed at {operations[at - 1]}: d", distance(a.weights(), again.weights()), 0.0)
        if leftovers := [str(path) for path in again.folder.rglob(".tmp-*")]:
            c.equal("left behind", leftovers, [])
    c.equal("incomplete checkpoints", torn, 0)


def _complete(folder: Path) -> bool:
    """By the manifest beside the files, read here without luthier: every file there, of the size it should have."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return False
    files = json.loads(manifest.read_text("utf-8"))["files"]
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == entry["bytes"] for name, entry in files.items()
    )


@check("29", "damaged or foreign checkpoints are refused by name", refuses=True)
def damaged(lab: Lab, c: Check) -> None:
    a = run_a(lab)
    stopped(lab, "half", 5)
    files = sorted(path.name for path in (lab.folder / "runs/half/checkpoints/step-5").iterdir())
    for place, lost in enumerate(files):
        altered = files[(place + 1) % len(files)]
        name = lab.copy_of("half", f"hurt{place}")
        folder = lab.folder / "runs" / name / "checkpoints"
        (folder / "step-5" / lost).unlink()
        for step in (2, 4):
            _flip(folder / f"step-{step}" / altered)
        # An altered list of hashes accuses itself, or the file whose hash it no longer has.
        older = "step-4/" if altered == "manifest.json" else f"step-4/{altered}"
        c.refused(f"all damaged: {lost} gone, {altered} altered", lab.again(name).ran, 1, f"step-5/{lost}", older)
    name = lab.copy_of("half", "fallback")
    _flip(lab.folder / "runs/fallback/checkpoints/step-5" / files[-1])
    again = lab.again(name).ok
    c.equal("newest altered, older used: d", distance(a.weights(), again.weights()), 0.0)
    c.equal("it was named", f"step-5/{files[-1]}" in again.ran.err, True)
    changes = {
        "learning rate": "train.learning_rate=2e-3",
        "seed": "train.seed=3",
        "batch": "train.per_device_train_batch_size=4",
        "length": "data.max_length=64",
    }
    for what, change in changes.items():
        name = lab.copy_of("half", f"changed-{what.replace(' ', '-')}")
        word = change.split("=")[0].split(".")[-1] if what != "seed" else "seed"
        c.refused(f"other {what}", lab.again(name, "train", change).ran, 2, word, "--restart")
    own = write_rows(lab.folder / "own.jsonl", conversations(32))
    stopped(lab, "data", 3, data__train=[{"path": str(own)}])
    own.write_text(own.read_text("utf-8").replace(" time", " tide", 1), "utf-8")
    c.refused("one byte of the data changed", lab.again("data").ran, 2, "data", "--restart")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@check("30", "the disk is full in the middle of a save", refuses=True)
def disk_full(lab: Lab, c: Check) -> None:
    a = run_a(lab)
    stopped(lab, "full", 2)
    folder = lab.folder / "runs/full/checkpoints"
    size = max(file.stat().st_size for file in (folder / "step-2").iterdir())
    ran = lab.again("full", file_limit=size * 3 // 4).ran
    c.refused("save beyond the limit", ran, 4, "checkpoints/step-4", "File too large")
    c.equal("older checkpoint complete", _complete(folder / "step-2"), True)
    c.equal(
        "left behind",
        [str(path) for path in folder.parent.rglob(".tmp-*")] + [path.name for path in folder.glob("step-4*")],
        [],
    )
    c.equal("afterwards it goes on: d", distance(a.weights(), lab.again("full").ok.weights()), 0.0)


@check("31", "merged model = adapter on its base; stop ids agree; QLoRA says what it costs")
def merged(lab: Lab, c: Check) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    m = lab.run("M", "run", method=LORA, train__learning_rate=5e-3, export={"merge": True}).ok
    adapter, whole = m.folder / "final", m.folder / "merged"
    text = "what is the time of the year"
    ids = torch.tensor([lab.tokenizer.encode(text, add_special_tokens=False).ids])

    def logits(model: Any) -> Any:
        with torch.no_grad():
            return model.eval()(ids).logits

    base = AutoModelForCausalLM.from_pretrained(lab.base, dtype=torch.float32)
    plain = logits(base)
    tuned = logits(PeftModel.from_pretrained(base, adapter))
    served = logits(AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32))
    c.at_most("fp32 logits, adapter - merged", float((tuned - served).abs().max()), 1e-5)
    c.at_least("effect of the adapter", float((tuned - plain).abs().max()), 0.1)
    before, after = tensors(lab.base), tensors(whole)
    kept = [name for name in before if "proj" not in name]
    c.equal("tensors without adapter, changed", sum(not torch.equal(before[n], after[n]) for n in kept), 0)
    stops = AutoTokenizer.from_pretrained(whole).eos_token_id
    for name in ("config.json", "generation_config.json"):
        found = json.loads((whole / name).read_text("utf-8"))["eos_token_id"]
        c.equal(f"{name}: stops at the end of a turn", stops in (found if isinstance(found, list) else [found]), True)
    _quantised(lab, c, ids)


def _quantised(lab: Lab, c: Check, ids: Any) -> None:
    """KL of the adapter on its 4-bit base against the merged model, computed here and by the report."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    q = lab.run("Q", "run", method={**LORA, "name": "qlora"}, train__learning_rate=5e-3, export={"merge": True}).ok
    report = q.read("export/merge.json")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=torch.float32)  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(
        lab.base, dtype=torch.float32, quantization_config=config, device_map="cpu"
    )
    with torch.no_grad():
        plain = base.eval()(ids).logits.log_softmax(-1)
        tuned = PeftModel.from_pretrained(base, q.folder / "final").eval()(ids).logits.log_softmax(-1)
        whole = (
            AutoModelForCausalLM.from_pretrained(q.folder / "merged", dtype=torch.float32)
            .eval()(ids)
            .logits.log_softmax(-1)
        )

    def kl(p: Any, q: Any) -> float:
        return float((p.exp() * (p - q)).sum(-1).mean())

    c.equal("QLoRA: the report says 4-bit base", report["quantized_base"], True)
    c.at_most("KL(4-bit adapter, merged) / KL(4-bit adapter, base)", kl(tuned, whole) / kl(tuned, plain), 0.05)
    told = report["quantization_kl"] / report["quantization_adapter_kl"]
    c.at_most("the same by the report", told, 0.05)


@check("33", "frozen is frozen, selected is trained, and the list says which")
def frozen(lab: Lab, c: Check) -> None:
    pattern = r"layers\.1\.mlp\."
    run = lab.run("freeze", method={"name": "freeze", "trainable": [pattern, r"norm\.weight$"]}).ok
    before, after = tensors(lab.base), run.weights()
    changed = {name for name in before if before[name].numpy().tobytes() != after[name].numpy().tobytes()}
    expected = {name for name in before if "layers.1.mlp." in name or name.endswith("norm.weight")}
    c.equal("changed tensors are the selected ones", changed == expected, True)
    announced = run.read("stages/train.json")["result"]["method"]
    c.equal("announced names are the changed ones", set(announced["names"]) == changed, True)
    c.equal("announced weights", announced["trainable"], sum(before[name].numel() for name in changed))
    nothing = lab.run("freeze-nothing", method={"name": "freeze", "trainable": [r"layers\.9\."]})
    c.refused("a pattern that matches nothing", nothing.ran, (1, 2), "layers")
    c.equal("a result was left", (nothing.folder / "final").exists(), False)
