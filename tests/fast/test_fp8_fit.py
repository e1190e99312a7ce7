"""Contract: an fp8 base fitted to rows computes nearer to its 16-bit model on rows like them, the same way after every
restart, and says so.

Planted and seen to fail: only the first group of matrices fitted.
"""

from __future__ import annotations

import torch

from luthier.fast.engine import attach, inner_model
from luthier.fast.hidden import model_inputs
from luthier.fast.settings import EngineSettings
from tests.fast.families import build
from tests.fast.helpers import make_batch
from tests.fast.test_linear import lora


def hidden(engine, batch):
    with torch.no_grad():
        return inner_model(engine.module.model).get_decoder()(**model_inputs(batch, engine.layout).kwargs)[0]


def model_of():
    model = build("llama", hidden_size=64, intermediate_size=96)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.2 if parameter.ndim > 1 else 1.0)
    return lora(model)


def test_a_fitted_base_is_nearer_to_the_model():
    kinds = ("as_loaded", "fp8", "fp8")
    exact, plain, fitted = (attach(model_of(), EngineSettings(frozen_base=base)) for base in kinds)
    part = fitted.fit_frozen_base(lambda: make_batch((40, 60, 90, 30) * 8, vocab=601, seed=1))
    assert part in fitted.report and "fitted to 1,760 tokens" in part.runs
    batch = make_batch((50, 70), vocab=601, seed=2)
    want = hidden(exact, batch)
    errors = [float((hidden(engine, batch) - want).norm() / want.norm()) for engine in (plain, fitted)]
    assert errors[1] < 0.9 * errors[0], errors
    bases = [projection.base for program in fitted._decoder.programs for projection in program.projections]
    assert all(base.kept_error is not None and base.kept_error < 1.0 for base in bases)
    assert not any(base.fitting for base in bases)


def test_the_same_rows_give_the_same_base():
    engines = [attach(model_of(), EngineSettings(frozen_base="fp8")) for _ in range(2)]
    for engine in engines:
        engine.fit_frozen_base(lambda: make_batch((40, 60), vocab=601))
    for one, two in zip(*(engine._decoder.programs for engine in engines), strict=True):
        for first, second in zip(one.projections, two.projections, strict=True):
            assert torch.equal(first.base.rows_nk.float(), second.base.rows_nk.float())


def test_training_mode_comes_back_and_other_bases_make_no_batch():
    engine = attach(model_of().train(), EngineSettings(frozen_base="fp8"))
    engine.fit_frozen_base(lambda: make_batch((40,), vocab=601))
    assert engine.module.model.training
    other = attach(model_of(), EngineSettings())
    assert other.fit_frozen_base(lambda: 1 / 0) is None
