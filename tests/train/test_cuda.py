"""Contract on a CUDA device: real lack of memory halves, 8-bit and fused optimizers resume exactly, one wait a step."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch

from luthier.train import running
from tests.support.tiny import tiny_model
from tests.train.support import FULL, LORA, data, distance, examples, resolved, train
from tests.train.test_memory import events, size

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def model(**changes):
    return tiny_model(hidden_size=128, **changes).to("cuda", torch.bfloat16)


def run(folder, rows=None, *, base=None, **settings):
    recipe = resolved(**{"method": FULL, "deterministic": True, **settings})
    return train(folder, rows or data(), recipe=recipe, model=base or model())


def test_memory_that_really_runs_out_halves(tmp_path):
    """64 rows of 512 tokens at once, with less and less room beside what the process holds, until they do not fit."""
    rows = data(examples(64, low=512, high=512), capacity=512)
    total = torch.cuda.get_device_properties(0).total_memory
    small = run(tmp_path / "small", rows, max_steps=2, **size(1, 64))
    for room in (512, 384, 256, 192, 128):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + (room << 20)) / total))
        try:
            halved = run(tmp_path / f"halved-{room}", rows, max_steps=2, **size(64))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        if events(halved):
            break
    assert events(halved), "it fitted: make the rows longer"
    assert events(halved)[0]["during"] == "calibration"
    assert halved.result.micro_batch.sequences < 64
    assert [line["tokens"] for line in halved.metrics] == [64 * 512] * 2
    assert abs(halved.losses[0] - small.losses[0]) <= 1e-3


@pytest.mark.parametrize("optim", ["adamw_8bit", "adamw_torch_fused"])
@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_resumed_equals_uninterrupted(tmp_path, monkeypatch, optim, method):
    settings = {"method": method, "optim": optim, "max_steps": 6, "save_steps": 1, "learning_rate": 5e-3, **size(4, 2)}
    whole = run(tmp_path / "whole", **settings)
    real = running.update

    def update(trainer, micro_batches, *, step, stop_requested):
        if step == 3:
            raise KeyboardInterrupt
        return real(trainer, micro_batches, step=step, stop_requested=stop_requested)

    monkeypatch.setattr(running, "update", update)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", **settings)
    monkeypatch.setattr(running, "update", real)
    again = run(tmp_path / "cut", **settings)
    assert again.result.resumed_from == 3
    assert distance(whole, again) == 0.0
    assert whole.metrics == again.metrics


def test_the_kernel_s_adamw_is_torch_s(tmp_path, monkeypatch):
    from luthier.train import optim

    ours = run(tmp_path / "ours", max_steps=4)
    monkeypatch.setattr(optim, "backend", lambda device: ("reference", "for comparison"))
    torchs = run(tmp_path / "torch", max_steps=4)
    assert ours.losses == pytest.approx(torchs.losses, rel=1e-3)
    # A bf16 weight below 1 has steps of at most 2^-8: no weight may be more than one of them away.
    assert distance(ours, torchs) <= 2**-8


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_the_host_waits_once_a_step(tmp_path, monkeypatch, shape):
    """And once a forward pass in transformers' own look at the position ids, as long as it does that."""
    waits: list[int] = []
    real = running.update

    def update(*args, **kwargs):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                done = real(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits.append(sum("synchroniz" in str(item.message) for item in seen))
        return done

    monkeypatch.setattr(running, "update", update)
    run(tmp_path, max_steps=4, deterministic=False, **size(*shape))
    assert all(1 <= count <= 1 + shape[1] for count in waits[1:]), waits
