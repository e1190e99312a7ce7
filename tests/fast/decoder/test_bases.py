"""Contract: the ways of storing a frozen base: 4-bit kept unpacked is 4-bit to the bit; fp8 is near and named.

Planted and seen to fail: fp8 rows with the scales of others; an fp8 input gradient through rows in another order; the
adapter left out where a base is unpacked for each product.
"""

from __future__ import annotations

import copy

import pytest
import torch

from luthier.fast.decoder.fp8_base import Fp8
from luthier.fast.decoder.linears import view_linear
from luthier.fast.engine import attach
from luthier.fast.settings import EngineSettings
from tests.fast.families import build
from tests.fast.helpers import assert_same_gradients, gradients, make_batch, relative
from tests.fast.test_linear import lora

LENGTHS = (9, 3, 3, 17, 6)


def packed_model():
    """A tiny Llama with NF4 layers and adapters."""
    bnb = pytest.importorskip("bitsandbytes")
    model = build("llama", hidden_size=64, intermediate_size=128)
    for layer in model.model.layers:
        for parent, names in (
            (layer.self_attn, "q_proj k_proj v_proj o_proj"),
            (layer.mlp, "gate_proj up_proj down_proj"),
        ):
            for name in names.split():
                old = getattr(parent, name)
                new = bnb.nn.Linear4bit(
                    old.in_features, old.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4"
                )
                new.weight = bnb.nn.Params4bit(old.weight.data, requires_grad=False, quant_type="nf4")
                setattr(parent, name, new.to("cpu"))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return lora(model)


def step(model, settings, batch):
    engine = attach(model, settings)
    loss = engine.loss(batch).loss
    loss.backward()
    return engine, loss.detach(), gradients(model)


@pytest.mark.parametrize("fuse", [False, True])
def test_a_4bit_base_kept_unpacked_gives_the_same_bits_as_one_unpacked_for_each_product(fuse):
    batch = make_batch(LENGTHS, vocab=601)
    engine, loss, got = step(packed_model(), EngineSettings(fuse_adapters=fuse), batch)
    assert any("dequantized matrices" in part.runs for part in engine.report)
    kept_engine, kept, kept_got = step(
        packed_model(), EngineSettings(frozen_base="dequantized", fuse_adapters=False), batch
    )
    assert any("dense matrices" in part.runs for part in kept_engine.report)
    if fuse:
        assert relative(loss, kept) < 1e-6
        assert_same_gradients(got, kept_got, 1e-5)
    else:
        assert torch.equal(loss, kept)
        assert all(torch.equal(got[name], kept_got[name]) for name in got)


def test_a_4bit_base_gives_what_bitsandbytes_and_peft_give():
    batch = make_batch(LENGTHS, vocab=601)
    _, loss, got = step(packed_model(), EngineSettings(), batch)
    _, plain, want = step(packed_model(), EngineSettings(replace_layers=False), batch)
    assert relative(loss, plain) < 1e-5
    assert_same_gradients(got, want, 1e-4)


def test_fp8_products_are_within_the_rounding_of_e4m3():
    """Both sides have 3 bits of mantissa: a relative error of 2^-4 at most each, of random sign."""
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(256, 96)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(96, 256, generator=generator) * torch.logspace(-2, 1, 96)[:, None])
    base = Fp8([view_linear(linear)], torch.float32)
    x, g = torch.randn(40, 256, generator=generator), torch.randn(40, 96, generator=generator)
    y, want = base.forward(x), linear(x)
    assert relative(y, want) < 0.05
    row_errors = (y - want).norm(dim=0) / want.norm(dim=0)
    assert float(row_errors.max()) < 0.08  # rows of very different size are served alike: a scale each
    assert relative(base.input_gradient(g), g @ linear.weight) < 0.05
    assert relative(y, want) > 1e-3  # it really is rounded


def test_fp8_trains_the_adapters_towards_the_same_place_and_says_that_it_is_inexact():
    batch = make_batch((40, 33, 64), vocab=601)
    model = lora(build("llama", hidden_size=64, intermediate_size=128))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    other = copy.deepcopy(model)
    engine, loss, got = step(model, EngineSettings(frozen_base="fp8"), batch)
    _, exact, want = step(other, EngineSettings(), batch)
    assert any("fp8 matrices" in part.runs for part in engine.report)
    assert engine.layout == "flat"
    assert 0 < relative(loss, exact) < 2e-2
    assert got.keys() == want.keys()
    for name in want:
        cosine = torch.nn.functional.cosine_similarity(got[name].flatten(), want[name].flatten(), dim=0)
        assert cosine > 0.9, name


def test_the_fp8_base_leaves_the_weights_of_the_modules_alone():
    model = lora(build("llama"))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    engine = attach(model, EngineSettings(frozen_base="fp8"))
    engine.detach()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
