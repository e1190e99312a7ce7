"""Contract: training from a start out of the base is what plain PEFT does, resumes bit for bit, and is saved plain."""

from __future__ import annotations

import pytest
import torch

from luthier.fast.engine import attach
from luthier.model.adapters import apply_method
from luthier.model.starts import start_of
from luthier.runtime.errors import RecipeError
from luthier.train import loop, running
from tests.model.support import base_folder, load, section
from tests.support.tiny import tiny_model
from tests.train.support import LORA, data, distance, examples, flat, reference_nll, resolved, train
from tests.train.test_rates import Crash

STEPS, RATE = 6, 5e-3


def train_with_peft(model, source) -> list[float]:
    """Plain PEFT and torch: forward row by row, clipping, AdamW, constant rate."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    losses = []
    model.train()
    for step in range(STEPS):
        rows = source.train[step * 8 : (step + 1) * 8]
        loss = torch.stack([reference_nll(model, row)[0] for row in rows]).sum()
        loss = loss / sum(sum(row.weights[1:]) for row in rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("start", ["pissa", "olora", "gaussian", "orthogonal"])
def test_the_engine_trains_as_plain_peft_does(tmp_path, start, packed):
    """The engine must see what is left in the base: with the whole base the first loss would be another."""
    from peft import LoraConfig, get_peft_model

    method = {**LORA, "init_lora_weights": start}
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=start, task_type="CAUSAL_LM"
    )  # fmt: skip
    source = data(packed=packed)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = get_peft_model(tiny_model(), config, autocast_adapter_dtype=False)
    if packed:
        rows = [row for pack in source.packs for row in pack.examples]
        with torch.no_grad():
            nll = sum(reference_nll(theirs.eval(), source.train[row])[0] for row in rows)
        weight = sum(sum(source.train[row].weights[1:]) for row in rows)
        ours = train(tmp_path, source, method=method, max_steps=1, per_device_train_batch_size=len(source.packs))
        assert ours.losses[0] == pytest.approx(float(nll) / weight, abs=1e-5)
        return
    ours = train(tmp_path, source, method=method, max_steps=STEPS, shuffle=False, learning_rate=RATE)
    begin = flat({name: p for name, p in theirs.named_parameters() if p.requires_grad})
    assert float((begin - flat(ours.start)).abs().max()) <= 1e-5
    losses = train_with_peft(theirs, source)
    final = flat({name: p for name, p in theirs.named_parameters() if p.requires_grad})
    assert ours.moved > 1e-3
    assert max(abs(a - b) for a, b in zip(ours.losses, losses, strict=True)) <= 1e-5
    assert float((ours.weights - final).abs().max()) <= 5e-5


@pytest.fixture
def base(tmp_path):
    return section(base_folder(tmp_path / "base"))


def run_from(base, folder, *, start="pissa_niter_2", kept=True, **settings):
    """`fit` as the pipeline calls it: the base from its folder, the start from the run folder."""
    recipe = resolved(
        method={**LORA, "init_lora_weights": start}, learning_rate=RATE, per_device_train_batch_size=4,
        num_train_epochs=1, save_steps=1, **settings,
    )  # fmt: skip
    model = load(base)
    made = apply_method(
        model, recipe.recipe.method, seed=0, start_folder=folder / loop.START_FOLDER if kept else None
    )  # fmt: skip
    return made, recipe


def fit_it(made, recipe, folder):
    from luthier.runs.folder import RunFolder
    from tests.support.tiny import tiny_tokenizer
    from tests.train.support import Run

    start = {name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad}
    run = RunFolder(folder)
    run.create()
    result = loop.fit(
        made, data(examples(24)), recipe, run=run, tokenizer=tiny_tokenizer(), fingerprint={"base": "b"}
    )  # fmt: skip
    return Run(result, made.model, run, start)


def cut(base, folder, monkeypatch):
    real = running.update

    def dies(trainer, micro_batches, *, step, stop_requested):
        if step == 3:
            raise Crash
        return real(trainer, micro_batches, step=step, stop_requested=stop_requested)

    monkeypatch.setattr(running, "update", dies)
    with pytest.raises(Crash):
        fit_it(*run_from(base, folder), folder)
    monkeypatch.setattr(running, "update", real)


def test_a_resumed_run_makes_no_new_start_and_ends_the_same(tmp_path, monkeypatch, base):
    from peft.tuners.lora import LoraLayer

    whole = fit_it(*run_from(base, tmp_path / "whole"), tmp_path / "whole")
    cut(base, tmp_path / "cut", monkeypatch)
    assert (tmp_path / "cut/start/start.safetensors").is_file()
    monkeypatch.setattr(LoraLayer, "pissa_init", lambda *_: pytest.fail("made anew"))
    resumed = fit_it(*run_from(base, tmp_path / "cut"), tmp_path / "cut")
    assert resumed.result.resumed_from == 3
    assert resumed.metrics == whole.metrics
    assert distance(whole, resumed) == 0.0
    names = [f"{run}/final/adapter_model.safetensors" for run in ("whole", "cut")]
    assert (tmp_path / names[0]).read_bytes() == (tmp_path / names[1]).read_bytes()


def test_another_start_under_a_checkpoint_is_refused(tmp_path, monkeypatch, base):
    """As a random SVD that is made anew elsewhere would be: the checkpoint's A and B do not fit its base."""
    cut(base, tmp_path / "cut", monkeypatch)
    made, recipe = run_from(base, tmp_path / "cut", kept=False)
    start_of(made.model).factors[next(iter(start_of(made.model).factors))].add_(1e-3)
    with pytest.raises(RecipeError, match=r"start: .* -> "):
        fit_it(made, recipe, tmp_path / "cut")
    assert fit_it(*run_from(base, tmp_path / "cut"), tmp_path / "cut").result.resumed_from == 3, "nothing was lost"


def test_the_engine_takes_these_adapters_over_and_says_why_it_leaves_dora_alone():
    def report(**more):
        model = apply_method(tiny_model(), resolved(method={**LORA, **more}).recipe.method, seed=0).model
        engine = attach(model)
        engine.detach()
        return {part.name: (part.runs, part.reason) for part in engine.report}

    plain = report()
    assert "one function each (2 layers)" in plain["decoder layers"][0]
    for start in ("gaussian", "orthogonal", "pissa", "olora"):
        assert report(init_lora_weights=start) == plain
    assert report(use_rslora=True) == plain
    assert any(
        "DoraLinearVariant" in reason or "DoraLinearVariant" in runs for runs, reason in report(use_dora=True).values()
    )
