"""Contract: a replaced decoder layer computes what transformers' and PEFT's modules compute, loss and every gradient.

Planted and seen to fail: the residual's gradient left out of the MLP norm; trained rows put back at other places; an
adapter's scale twice in the backward pass; one scale for all adapters; the spare columns unused in the input
gradient; the window forgotten; Gemma's 1 + w forgotten where a norm is computed again; dropout drawn anew in the
backward pass; the gradient of the head norms skipped; views left behind by `detach`; a disabled adapter used.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch

from luthier.fast.engine import attach
from luthier.fast.settings import EngineSettings
from tests.fast.families import FLAT, build
from tests.fast.helpers import assert_same_gradients, gradients, make_batch, one_by_one, relative
from tests.fast.test_linear import lora

LENGTHS = (9, 3, 3, 17, 6)
KNOWN = [
    "llama", "llama-tied-bias", "qwen2", "qwen2-window", "qwen3", "mistral", "mistral-window", "gemma", "gemma3",
    "phi3", "phi3-window",
]  # fmt: skip
POLICIES = {
    "none": EngineSettings(),
    "selective": EngineSettings(recompute="selective"),
    "layer": EngineSettings(recompute="layer"),
    "first": EngineSettings(recompute="layer", recompute_layers=1),
    "attention kept": EngineSettings(recompute="layer", keep_attention=True, attending_layers=1),
}


def train(model, method: str):
    """Make `model` trainable in one of the ways that touch different parts of a layer."""
    if method == "full":
        return model
    if method == "lora":
        return lora(model)
    if method == "lora-some":
        names = (
            ["qkv_proj", "down_proj"]
            if hasattr(model.model.layers[0].mlp, "gate_up_proj")
            else ["q_proj", "v_proj", "up_proj"]
        )
        return lora(model, target_modules=names)
    if method == "lora-scales":
        return lora(model, rank_pattern={"k_proj": 2, "up_proj": 3}, alpha_pattern={"k_proj": 5})
    trained = {
        "last-layer": lambda name: "layers.1." in name,
        "norms": lambda name: "norm" in name,
        "one-matrix": lambda name: "layers.1.self_attn.o_proj" in name,
        "keys": lambda name: "layers.0.self_attn.k_proj" in name or "layers.0.self_attn.qkv" in name,
        "embeddings": lambda name: "embed_tokens" in name,
    }[method]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))
    return model


def step(model, settings: EngineSettings, batch):
    engine = attach(model, settings)
    assert (
        any(part.name == "decoder layers" and "one function" in part.runs for part in engine.report)
        is settings.replace_layers
    )
    sums = engine.loss(batch)
    sums.loss.backward()
    return engine, sums.loss.detach(), gradients(model)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("method", ["full", "lora", "lora-some", "lora-scales", "last-layer", "norms"])
def test_loss_and_every_gradient_are_those_of_the_stock_model_one_document_at_a_time(name, method):
    model = train(build(name).double(), method)
    stock = copy.deepcopy(model)
    batch = make_batch(LENGTHS, vocab=601)
    engine, loss, got = step(model, EngineSettings(), batch)
    want, _ = one_by_one(stock, batch)
    want.backward()
    assert engine.layout == "flat"
    # The stock norms compute in fp32 whatever the model's type.
    assert relative(loss, want) < 1e-6
    assert_same_gradients(got, gradients(stock), 3e-6)


@pytest.mark.parametrize("name", ["llama-tied-bias", "qwen3", "gemma3", "phi3-window"])
@pytest.mark.parametrize("method", ["full", "lora", "last-layer", "one-matrix", "keys", "norms", "embeddings"])
def test_recomputation_and_extended_matrices_change_nothing(name, method):
    batch = make_batch(LENGTHS, vocab=601)
    _, loss, want = step(train(build(name).double(), method), EngineSettings(fuse_adapters=False), batch)
    # Only a model with adapters has matrices to extend.
    for policy, extended in itertools.product(POLICIES.values(), (False, True) if method == "lora" else (False,)):
        settings = dataclasses.replace(policy, fuse_adapters=extended)
        _, again, got = step(train(build(name).double(), method), settings, batch)
        assert relative(again, loss) < 1e-12, settings
        assert_same_gradients(got, want, 1e-9)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_replaced_or_not_is_the_same_within_1e6_in_fp32(name, method):
    batch = make_batch(LENGTHS, vocab=601)
    model = train(build(name), method)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)  # well-conditioned: rounding is not blown up by saturated attention
    other = copy.deepcopy(model)
    _, loss, got = step(model, EngineSettings(), batch)
    _, plain, want = step(other, EngineSettings(replace_layers=False), batch)
    assert relative(loss, plain) < 1e-6
    assert_same_gradients(got, want, 3e-6)


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("extended", [False, True])
def test_dropout_draws_pefts_numbers_under_every_policy(policy, extended):
    settings = dataclasses.replace(POLICIES[policy], fuse_adapters=extended)
    batch = make_batch((9, 3), vocab=601)
    found = []
    for chosen in (settings, EngineSettings(replace_layers=False)):
        model = lora(build("llama").double(), lora_dropout=0.4)
        engine = attach(model, chosen)
        torch.manual_seed(7)
        loss = engine.loss(batch).loss
        after = torch.rand(1)
        torch.manual_seed(8)
        loss.backward()
        found.append((loss.detach(), after, gradients(model)))
    (loss, after, got), (plain, after_plain, want) = found
    assert torch.equal(after, after_plain)
    assert relative(loss, plain) < 1e-6
    assert_same_gradients(got, want, 3e-6)


def test_bf16_gradients_are_as_close_to_fp32_as_those_of_the_stock_modules():
    batch = make_batch((40, 33, 64), vocab=601)
    reference = build("llama", num_hidden_layers=3)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(0.5).copy_(parameter.bfloat16())
    half = copy.deepcopy(reference).bfloat16()
    _, _, exact = step(reference, EngineSettings(replace_layers=False), batch)
    _, _, stock = step(copy.deepcopy(half), EngineSettings(replace_layers=False), batch)
    _, _, mine = step(half, EngineSettings(), batch)
    for name, value in exact.items():
        assert relative(mine[name], value) < max(1e-2, 1.1 * relative(stock[name], value)), name


def test_rows_that_are_not_trained_cost_nothing_in_the_last_layer():
    """The last MLP sees trained rows only, and the result is the same as with all rows."""
    model = build("llama")
    batch = make_batch(LENGTHS, vocab=601)
    engine = attach(model)
    seen = []
    last = model.model.layers[-1].luthier_program.down
    stock = last.forward
    last.forward = lambda x, masks: (seen.append(x.body.shape[0]), stock(x, masks))[1]
    engine.loss(batch)
    assert seen == [batch.trained_tokens]
    assert batch.trained_tokens < batch.tokens


def test_a_layer_below_every_trained_one_has_no_backward_pass():
    model = train(build("llama", num_hidden_layers=4), "last-layer")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.2." in name)
    engine = attach(model)
    loss = engine.loss(make_batch(LENGTHS, vocab=601)).loss
    depth, node = 0, loss.grad_fn
    seen, queue = set(), [node]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        depth += "_Layer" in type(node).__name__
        queue += [parent for parent, _ in node.next_functions]
    assert depth == 2  # layers 2 and 3


@pytest.mark.parametrize("method", ["full", "lora"])
def test_detach_gives_every_parameter_a_tensor_of_its_own(method):
    model = train(build("qwen2"), method)
    stock = copy.deepcopy(model)
    engine = attach(model, EngineSettings(fuse_adapters=True))
    shared = {id(p.untyped_storage()) for p in model.parameters()}
    engine.detach()
    assert len(shared)
    assert [type(m) for m in model.modules()] == [type(m) for m in stock.modules()]
    pointers = [p.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(pointers)) == len(pointers)
    for mine, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        assert mine.is_contiguous() and torch.equal(mine, theirs)
        assert mine.untyped_storage().nbytes() == theirs.numel() * theirs.element_size()


def test_an_update_in_place_reaches_the_stacked_matrices():
    """Parameters are views: an optimizer step changes what the layer computes, and what PEFT sees."""
    model = lora(build("llama"))
    engine = attach(model, EngineSettings(fuse_adapters=True))
    batch = make_batch(LENGTHS, vocab=601)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05)
    loss = engine.loss(batch).loss.detach()
    engine.detach()
    want, _ = one_by_one(model, batch)
    assert relative(loss, want) < 1e-5


def test_disabled_merged_or_exchanged_adapters_go_through_peft():
    model = lora(build("llama"))
    stock = copy.deepcopy(model)
    engine = attach(model)
    batch = make_batch(LENGTHS, vocab=601)
    with model.disable_adapter(), stock.disable_adapter():
        want, _ = one_by_one(stock, batch)
        assert relative(engine.loss(batch).loss, want) < 1e-5
    want, _ = one_by_one(stock, batch)
    assert relative(engine.loss(batch).loss, want) < 1e-5


@pytest.mark.parametrize("name", sorted(set(FLAT) - set(KNOWN)))
def test_other_families_are_left_alone_and_the_report_says_why(name):
    engine = attach(build(name))
    lines = [part for part in engine.report if part.name == "decoder layers"]
    if hasattr(engine.module.model.get_decoder(), "layers"):
        assert lines and "as transformers wrote them" in lines[0].runs
        assert "not in the table" in lines[0].reason


def test_a_layer_with_a_hook_or_another_class_inside_is_left_alone():
    model = build("llama")
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *_: None)

    class Odd(type(model.model.layers[1].mlp)):
        pass

    model.model.layers[1].mlp.__class__ = Odd
    engine = attach(model)
    reasons = " ".join(part.reason for part in engine.report if part.name == "decoder layers")
    assert "hooks" in reasons and "Odd inside LlamaDecoderLayer" in reasons


def test_a_wrong_replacement_is_given_up_after_its_probe(monkeypatch):
    from luthier.fast.decoder import layer

    stock = layer.glu
    monkeypatch.setattr(layer, "glu", lambda *a, **k: stock(*a, **k).mul_(1.01))
    model = build("llama")
    engine = attach(model)
    assert any("failed its probe" in part.reason for part in engine.report)
    batch = make_batch(LENGTHS, vocab=601)
    want, _ = one_by_one(build("llama"), batch)
    assert engine.layout == "flat" and relative(engine.loss(batch).loss, want) < 1e-5


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3-window", "phi3-partial"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_engines_own_attention_is_sdpa_of_each_document(name, method):
    """Through the kernels' plain definition, rotation of the gradient included."""
    overrides = {}
    if name == "phi3-partial":
        name, overrides = "phi3", {"head_dim": 16, "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}  # fmt: skip
    batch = make_batch(LENGTHS, vocab=601)
    _, loss, want = step(train(build(name, **overrides).double(), method), EngineSettings(), batch)
    packed = train(build(name, **overrides).double(), method)
    _, again, got = step(packed, EngineSettings(attention="packed"), batch)
    assert relative(again, loss) < 1e-10
    assert_same_gradients(got, want, 1e-8)


def test_an_attachment_that_breaks_off_leaves_the_model_as_it_was(monkeypatch):
    from luthier.fast import engine as module

    def breaks(*_, **__):
        raise MemoryError("in the probe")

    for name in ("probe_layout", "probe_head"):
        model = lora(build("llama"))
        kinds, shapes = [type(m) for m in model.modules()], [p.untyped_storage().nbytes() for p in model.parameters()]
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(module, name, breaks)
            attach(model)
        assert [type(m) for m in model.modules()] == kinds
        assert [p.untyped_storage().nbytes() for p in model.parameters()] == shapes
        attach(model).detach()
