"""Checks of loss, gradient, precision, schedule and validation (section 3, 1 to 12)."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from tests.acceptance.lab import Check, Lab, Run, check, distance, tensors, write_rows
from tests.acceptance.reference import encode_chat, load_llama, summed_nll
from tests.support.tiny import conversations

TIME_FIELDS = ("seconds", "tokens_per_second")


def run_a(lab: Lab) -> Run:
    """A: full fine-tuning, 8 x 1, 8 steps = 2 epochs of 32 rows, a checkpoint every 2 steps."""
    return lab.run("A", train__save_steps=2, train__save_total_limit=10).ok


def full_batch(lab: Lab, name: str, **changes: Any) -> Run:
    """All 32 rows in each of 4 steps, however they are laid out."""
    return lab.run(name, train__num_train_epochs=4, **{"train__per_device_train_batch_size": 64, **changes}).ok


def unpacked(lab: Lab) -> Run:
    """Rows as they are, one micro-batch."""
    return full_batch(lab, "F")


def packed(lab: Lab) -> Run:
    """P: the same rows in packs of 256 tokens, one pack a micro-batch."""
    return full_batch(
        lab, "P", data__packing=True, train__per_device_train_batch_size=1, train__gradient_accumulation_steps=16
    )


@check("1", "the same run twice")
def same_run_twice(lab: Lab, c: Check) -> None:
    a = run_a(lab)
    b = lab.run("A2", train__save_steps=2, train__save_total_limit=10).ok
    c.equal("d(A, A')", distance(a.weights(), b.weights()), 0.0)
    lines = [[{k: v for k, v in line.items() if k not in TIME_FIELDS} for line in run.metrics] for run in (a, b)]
    c.equal("metrics lines equal", lines[0] == lines[1], True)
    other = lab.run("A3", train__seed=1).ok
    c.at_least("d(A, other seed)", distance(a.weights(), other.weights()), 1e-3)


@check("2", "batch x accumulation changes nothing")
def accumulation(lab: Lab, c: Check) -> None:
    a = run_a(lab)
    c.at_least("|W - W0|", distance(a.weights(), tensors(lab.base)), 1e-3)
    for batch, count in ((1, 8), (2, 4)):
        name = f"G{batch}x{count}"
        g = lab.run(name, train__per_device_train_batch_size=batch, train__gradient_accumulation_steps=count).ok
        c.at_most(f"d(8x1, {batch}x{count})", distance(a.weights(), g.weights()), 5e-5)
        apart = max(abs(x - y) for x, y in zip(a.losses(), g.losses(), strict=True))
        c.at_most("loss apart", apart, 1e-5)


@check("5", "the layout of a batch changes nothing (no padding exists: rows, packs of 256, packs of 512)")
def layout(lab: Lab, c: Check) -> None:
    f = unpacked(lab)
    c.at_least("|W - W0|", distance(f.weights(), tensors(lab.base)), 1e-3)
    wide = full_batch(lab, "P512", data__packing=True, data__max_length=512)
    for name, run in (("packs of 256", packed(lab)), ("packs of 512", wide)):
        c.at_most(f"d(rows, {name})", distance(f.weights(), run.weights()), 5e-5)
        c.at_most("loss apart", max(abs(x - y) for x, y in zip(f.losses(), run.losses(), strict=True)), 1e-5)


@check("6", "first logged loss against 40 lines of plain torch")
def first_loss(lab: Lab, c: Check) -> None:
    nll, count = _reference(lab, _rows(lab.rows))
    line = unpacked(lab).steps[0]
    c.equal("trained tokens", line["trained_tokens"], count)
    c.at_most("relative difference of the loss", abs(line["loss"] / (nll / count) - 1), 1e-5)
    short = [{"messages": [{"role": "user", "content": "time"}, {"role": "assistant", "content": "year"}]}]
    one = lab.run(
        "one",
        data__train=[{"path": str(write_rows(lab.folder / "one.jsonl", short))}],
        train__max_steps=1,
        train__num_train_epochs=None,
    )
    nll, count = _reference(lab, short)
    c.at_most(f"one row of {count} trained tokens", abs(one.ok.steps[0]["loss"] / (nll / count) - 1), 1e-5)
    smooth = lab.run("smooth", data__train=[{"path": str(lab.folder / "one.jsonl")}], train__max_steps=1,
                     train__num_train_epochs=None, objective={"label_smoothing": 0.1}).ok  # fmt: skip
    c.at_most("label smoothing 0.1", abs(smooth.steps[0]["loss"] / _smoothed(lab, short[0], 0.1) - 1), 1e-5)


@check("8", "a number that is not finite", refuses=True)
def not_finite(lab: Lab, c: Check) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    rows = conversations(40)
    rows[36]["messages"][1]["content"] += " @"
    path = write_rows(lab.folder / "nan.jsonl", rows)
    [token] = lab.tokenizer.encode("@", add_special_tokens=False).ids[-1:]
    for name, value in (("nan", math.nan), ("overflow", 3e38)):
        base = lab.folder / f"base-{name}"
        shutil.copytree(lab.base, base)
        weights = load_file(base / "model.safetensors")
        weights["model.embed_tokens.weight"][token] = value
        save_file(weights, base / "model.safetensors", {"format": "pt"})
        changes = {"model__name_or_path": str(base), "data__train": [{"path": str(path)}], "train__save_steps": 1}
        run = lab.run(name, **changes)
        if name == "nan":
            c.refused("NaN in the base", run.ran, 1, "model.embed_tokens.weight")
            c.equal("steps taken with it", len(run.metrics), 0)
        else:
            c.refused(
                f"overflow in row 37, stopped before step {len(run.metrics) + 1}",
                run.ran,
                1,
                "nan.jsonl:37",
                f"step {len(run.metrics) + 1} ",
            )
        stored = list(run.folder.rglob("*.safetensors"))
        mine = set(range(600)) - {token}
        bad = sum(
            not bool(torch.isfinite(value[sorted(mine)] if value.shape[:1] == (600,) else value).all())
            for file in stored for value in load_file(file).values()
        )  # fmt: skip
        if bad or (run.folder / "final").exists():
            c.equal(f"{name}: tensors on disk that are not finite", bad, 0)
            c.equal(f"{name}: a result was left", (run.folder / "final").exists(), False)


@check("9", "LoRA with and without recomputation")
def recomputation(lab: Lab, c: Check) -> None:
    before = lab.base.joinpath("model.safetensors").read_bytes()
    plain, again = lora(lab), lab.run("Lck", method=LORA, train__gradient_checkpointing=True).ok
    c.equal("d(off, on)", distance(plain.weights(), again.weights()), 0.0)
    smallest = min(float(value.abs().max()) for name, value in plain.weights().items() if "lora_B" in name)
    c.at_least("smallest lora_B", smallest, 1e-5)
    c.at_least("lora_B matrices", sum("lora_B" in name for name in plain.weights()), 14)
    c.equal("base file unchanged", lab.base.joinpath("model.safetensors").read_bytes() == before, True)


LORA = {"name": "lora", "r": 8, "lora_alpha": 16.0}


def lora(lab: Lab) -> Run:
    """L: LoRA on the linear layers."""
    return lab.run("L", method=LORA).ok


@check("10", "bf16 weights at learning rate 1e-5 move (fp32 masters)")
def masters_move(lab: Lab, c: Check) -> None:
    run = lab.run(
        "bf16", model__dtype="bfloat16", train__learning_rate=1e-5, train__max_steps=20,
        train__num_train_epochs=None, train__warmup_steps=None, train__lr_scheduler_type="constant",
    ).ok  # fmt: skip
    saved = tensors(run.folder / "checkpoints" / "step-20", "trainable-*.safetensors")
    base = tensors(lab.base)
    seen = sorted({token for row in _rows(lab.rows) for token in encode_chat(lab.tokenizer, row["messages"])[0]})
    moved = total = 0
    for name, value in saved.items():
        start = base[_plain(name, base)].bfloat16().float()
        if "embed_tokens" in name:  # rows of tokens that no row holds have no gradient
            value, start = value[seen[:-1]], start[seen[:-1]]
        moved += int((value != start).sum())
        total += value.numel()
    c.at_least("share of master weights that moved", moved / total, 0.95)
    c.equal("type of the masters", str(next(iter(saved.values())).dtype), "torch.float32")
    c.equal("type of the result", str(next(iter(run.weights().values())).dtype), "torch.bfloat16")


@check("11", "learning rate, steps and epochs by the formula; the smaller last step of an epoch")
def schedule(lab: Lab, c: Check) -> None:
    ten = str(write_rows(lab.folder / "ten.jsonl", conversations(10, seed=3)))
    worst, runs = 0.0, {}
    for shape, warmup, batch, count in (
        ("cosine", 0, 4, 1), ("cosine", 0, 1, 4), ("linear", 3, 4, 1), ("linear", 3, 1, 4), ("cosine", 3, 2, 2),
        ("linear", 0, 2, 2),
    ):  # fmt: skip
        run = lab.run(
            f"lr-{shape}-{warmup}-{batch}x{count}", data__train=[{"path": ten}], train__lr_scheduler_type=shape,
            train__warmup_steps=warmup, train__per_device_train_batch_size=batch,
            train__gradient_accumulation_steps=count,
        ).ok  # fmt: skip
        runs[shape, warmup, batch] = run
        rates = [line["learning_rate"] for line in run.steps]
        if len(rates) != 6:
            c.equal(f"{shape} {warmup} {batch}x{count}: steps", len(rates), 6)
        worst = max(worst, *(abs(rate - 1e-3 * _factor(shape, step, warmup, 6)) for step, rate in enumerate(rates)))
    run = runs["cosine", 0, 4]
    c.at_most("largest difference from the formula, 6 schedules", worst, 1e-12)
    c.equal("epoch after each of 6 steps", [round(line["epoch"], 9) for line in run.steps], [0.4, 0.8, 1, 1.4, 1.8, 2])
    tokens = sum(line["trained_tokens"] for line in run.steps)
    c.equal("trained tokens of 2 epochs", tokens, 2 * _reference(lab, _rows(Path(ten)))[1])
    c.at_most("d(4x1, 1x4), 10 rows", distance(run.weights(), runs["cosine", 0, 1].weights()), 5e-5)


@check("12", "validation loss: any batch size, twice, with dropout and noise on")
def validation_loss(lab: Lab, c: Check) -> None:
    task = {"tasks": [{"name": "held", "path": str(lab.held_out), "metric": "loss"}]}
    nll, count = _reference(lab, _rows(lab.held_out))
    scores = []
    for batch in (1, 7, 64):
        recipe = lab.recipe(f"eval-{batch}", evaluate={**task, "batch_size": batch})
        scores.append(lab.luthier("eval", recipe, "--json").json["tasks"][0]["score"])
    c.at_most("relative spread over batch 1, 7, 64", max(scores) / min(scores) - 1, 1e-6)
    c.at_most("from the plain reference", abs(scores[0] / (nll / count) - 1), 1e-6)
    run = lab.run(
        "noisy", method={**LORA, "lora_dropout": 0.5}, objective={"neftune_noise_alpha": 5.0}, evaluate=task,
        data__validation={"path": str(lab.held_out)}, train__eval_steps=4,
    ).ok  # fmt: skip
    in_training = [line for line in run.metrics if "eval_loss" in line]
    after = [
        lab.luthier("eval", lab.folder / "noisy.yaml", "--model", run.folder / "final", "--json").json for _ in "12"
    ]
    scores = [value["tasks"][0]["score"] for value in after]
    c.equal("eval twice: difference", scores[0] - scores[1], 0.0)
    c.at_most("in training against `eval`", abs(in_training[-1]["eval_loss"] / scores[0] - 1), 1e-6)
    c.equal("validation tokens", in_training[-1]["eval_tokens"], count)
    quiet = lab.run("quiet", method=LORA).ok
    c.at_least("dropout and noise change training by", abs(run.losses()[-1] - quiet.losses()[-1]), 1e-4)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _reference(lab: Lab, rows: list[dict[str, Any]]) -> tuple[float, int]:
    """Summed NLL and trained tokens of rows under the base, each row alone."""
    model = load_llama(lab.base)
    found = [summed_nll(model, *encode_chat(lab.tokenizer, row["messages"])) for row in rows]
    return math.fsum(nll for nll, _ in found), sum(count for _, count in found)


def _smoothed(lab: Lab, row: dict[str, Any], share: float) -> float:
    """(1 - e) NLL + e mean(-log p) over the trained tokens of a row."""
    import torch

    from tests.acceptance.reference import logits

    ids, trained = encode_chat(lab.tokenizer, row["messages"])
    logp = torch.log_softmax(logits(load_llama(lab.base), ids)[:-1], -1)
    mine = torch.tensor(trained[1:])
    nll = -logp[range(len(ids) - 1), ids[1:]][mine].mean()
    return float((1 - share) * nll - share * logp[mine].mean())


def _factor(shape: str, step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return step / warmup
    done = (step - warmup) / max(1, total - warmup)
    return 1 - done if shape == "linear" else (1 + math.cos(math.pi * done)) / 2


def _plain(name: str, known: dict[str, Any]) -> str:
    return name if name in known else next(other for other in known if name.endswith(other))
