"""Contract on a CUDA device: groups have their rates in our kernels, starts and paged optimizers work and resume.

Run on a machine with one CUDA device: `make test-gpu`.
"""

from __future__ import annotations

import pytest

from luthier.recipe.optimizers import OPTIMIZERS
from tests.support.tiny import tiny_model
from tests.train.support import FULL, LORA, data, distance, examples, resolved, train

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

BNB = [name for name, facts in OPTIMIZERS.items() if facts.package == "bitsandbytes"]


def model(dtype=None):
    return tiny_model(hidden_size=128).to("cuda", dtype or torch.bfloat16)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_8bit"])
def test_rates_of_groups_reach_the_kernels(tmp_path, optim):
    """B matrices at 8 times the rate go another way than all at one rate, and as torch's AdamW takes them."""
    common = {"method": LORA, "max_steps": 6, "learning_rate": 1e-3, "shuffle": False, "deterministic": True}
    plus = train(tmp_path / "plus", recipe=resolved(optim=optim, loraplus_lr_ratio=8.0, **common), model=model())
    plain = train(tmp_path / "plain", recipe=resolved(optim=optim, **common), model=model())
    torchs = resolved(optim="adamw_torch", loraplus_lr_ratio=8.0, **common)
    reference = train(tmp_path / "torch", recipe=torchs, model=model())
    assert distance(plus, plain) > 1e-3
    assert distance(plus, reference) < (2e-4 if optim == "adamw_torch_fused" else 5e-3)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_the_first_loss_of_a_start_is_that_of_the_base(tmp_path, start, kind):
    """Through the engine's extended matrices, which must hold what is left of the base."""
    settings = {"max_steps": 2, "learning_rate": 1e-3, "deterministic": True}
    dtype = getattr(torch, kind)
    plain = train(tmp_path / "0", recipe=resolved(method=LORA, **settings), model=model(dtype))
    method = {**LORA, "init_lora_weights": start}
    ours = train(tmp_path / "1", recipe=resolved(method=method, **settings), model=model(dtype))
    assert ours.losses[0] == pytest.approx(plain.losses[0], abs=1e-4 if kind == "float32" else 2e-2)
    again = train(tmp_path / "2", recipe=resolved(method=method, **settings), model=model(dtype))
    assert distance(ours, again) == 0.0, "the random SVD on the device is seeded"


@pytest.mark.parametrize("optim", [*BNB, "muon", "rmsprop", "adagrad"])
def test_an_optimizer_of_another_package_trains_and_resumes(tmp_path, monkeypatch, optim):
    pytest.importorskip("bitsandbytes")
    from luthier.train import running

    settings = {
        "method": FULL, "optim": optim, "learning_rate": 1e-3, "save_steps": 1, "num_train_epochs": 1,
        "per_device_train_batch_size": 4, "deterministic": True,
    }  # fmt: skip
    rows = data(examples(24))
    whole = train(tmp_path / "whole", rows, recipe=resolved(**settings), model=model())
    assert whole.moved > 1e-4
    real = running.update

    def dies(trainer, micro_batches, *, step, stop_requested):
        if step == 3:
            raise KeyboardInterrupt
        return real(trainer, micro_batches, step=step, stop_requested=stop_requested)

    monkeypatch.setattr(running, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", rows, recipe=resolved(**settings), model=model())
    monkeypatch.setattr(running, "update", real)
    resumed = train(tmp_path / "cut", rows, recipe=resolved(**settings), model=model())
    assert resumed.result.resumed_from == 3
    assert distance(whole, resumed) == 0.0
