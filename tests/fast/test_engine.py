"""Contract: the engine's loss survives what training does to a model: checkpointing, bf16, 4-bit, noise, DDP.

Planted and seen to fail: noise in evaluation mode (B17); noise scaled by the pack instead of the document; packed
attention switched off after the loss; bitsandbytes left to repack 4-bit weights; module modes not restored.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from luthier.fast.attention import NAME
from luthier.fast.engine import attach
from luthier.fast.hidden import model_inputs
from luthier.fast.settings import EngineSettings
from tests.fast.families import build
from tests.fast.helpers import assert_same_gradients, gradients, make_batch, one_by_one, relative

LENGTHS = (9, 3, 3, 17, 6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral-window", "gemma2"])
def test_gradient_checkpointing_changes_nothing(name):
    model = build(name)
    engine = attach(model)
    batch = make_batch(LENGTHS, vocab=601)
    engine.loss(batch).loss.backward()
    want = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    sums = engine.loss(batch)
    # The backward pass computes the layers again: it must find the attention of the forward pass.
    assert (model.config._attn_implementation == NAME) is (engine.layout == "flat")
    sums.loss.backward()
    assert_same_gradients(gradients(model), want, 1e-6)


def test_checkpointing_with_frozen_embeddings_still_trains_the_adapters():
    from tests.fast.test_linear import lora

    model = lora(build("llama"))
    engine = attach(model)
    batch = make_batch(LENGTHS, vocab=601)
    engine.loss(batch).loss.backward()
    want = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    engine.loss(batch).loss.backward()
    assert_same_gradients(gradients(model), want, 1e-6)
    assert all(float(g.norm()) > 0 for g in want.values())


@pytest.mark.parametrize("name", ["llama", "smollm3", "gpt2", "gemma2", "bloom"])
@pytest.mark.parametrize("tuned", [False, True])
def test_layers_that_are_not_replaced_run_again_when_that_is_asked_for(name, tuned):
    from tests.fast.test_linear import lora

    batch, found = make_batch(LENGTHS, vocab=601), []
    for settings in (EngineSettings(replace_layers=False), EngineSettings(replace_layers=False, recompute="layer")):
        model = lora(build(name)) if tuned else build(name)
        engine = attach(model, settings)
        trunk = engine_trunk(model)
        calls = []
        for layer in getattr(trunk, "layers", None) or trunk.h:
            next(layer.children()).register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        engine.loss(batch).loss.backward()
        found.append((len(calls), gradients(model), [part.name for part in engine.report]))
    (once, want, _), (twice, got, report) = found
    assert (once, twice) == (2, 4) and "recomputation" in report
    assert_same_gradients(got, want, 1e-6)


def engine_trunk(model):
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    return base.get_decoder()


def test_bf16_is_as_close_to_fp32_as_the_stock_model_in_bf16():
    batch = make_batch(LENGTHS, vocab=601)
    exact, _ = one_by_one(build("llama"), batch)
    stock = build("llama").bfloat16()
    theirs, _ = one_by_one(stock, batch)
    engine = attach(build("llama").bfloat16())
    assert engine.layout == "flat"
    sums = engine.loss(batch)
    assert sums.loss.dtype == torch.float32
    assert relative(sums.loss, exact) <= max(2 * relative(theirs, exact), 1e-2)
    sums.loss.backward()


def four_bit():
    import bitsandbytes as bnb

    from tests.fast.test_linear import lora

    model = build("llama", hidden_size=64, intermediate_size=64, head_dim=16)
    for module in list(model.model.layers.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                settings = {"bias": False, "quant_type": "nf4", "compute_dtype": torch.float32}
                packed = bnb.nn.Linear4bit(child.in_features, child.out_features, **settings)
                packed.weight = bnb.nn.Params4bit(child.weight.data, requires_grad=False, quant_type="nf4")
                setattr(module, name, packed.to("cpu"))
    return lora(model)


def test_a_four_bit_base_trains_as_under_peft_alone_also_after_an_evaluation():
    pytest.importorskip("bitsandbytes")
    model = four_bit()
    stock = copy.deepcopy(model)
    engine = attach(model)
    assert engine.layout == "flat"
    batch = make_batch(LENGTHS, vocab=601)
    sums = engine.loss(batch)
    want, _ = one_by_one(stock, batch)
    assert relative(sums.loss, want) < 1e-5
    sums.loss.backward()
    want.backward()
    want_gradients = gradients(stock)
    assert_same_gradients(gradients(model), want_gradients, 1e-4)
    # bitsandbytes packs 4-bit weights anew when a CPU with AVX512-BF16 meets them in evaluation mode, and the
    # packed product has no gradient: a validation pass must not end the training of all layers below.
    model.eval()
    with torch.no_grad(), engine.inference():
        model(input_ids=torch.arange(4, 20)[None])
    model.train()
    engine.loss(batch).loss.backward()
    assert_same_gradients(gradients(model), want_gradients, 1e-4)


def test_a_four_bit_base_that_was_evaluated_before_still_trains():
    pytest.importorskip("bitsandbytes")
    model = four_bit()
    batch = make_batch(LENGTHS, vocab=601)
    one_by_one(model, batch)[0].backward()
    want = gradients(model)
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.arange(4, 20)[None])
    model.train()
    engine = attach(model)
    engine.loss(batch).loss.backward()
    assert_same_gradients(gradients(model), want, 5e-2)  # bitsandbytes rounds the scales when it repacks: reported
    packs = getattr(model.get_base_model().model.layers[0].mlp.up_proj.base_layer, "support_avx512bf16_for_cpu", None)
    assert packs is False
    if any(part.name == "4-bit layers" for part in engine.report):
        assert any("rounded" in part.reason for part in engine.report)


def test_noise_on_one_document_is_that_of_transformers():
    """Same generator, same numbers. In padded batches theirs counts padding as length, so short rows get less noise."""
    from transformers.integrations.neftune import neftune_post_forward_hook

    model = build("llama")
    batch = make_batch((40,), vocab=601)
    engine = attach(model, neftune_noise_alpha=5.0)
    embeddings = model.get_input_embeddings()
    inputs = model_inputs(batch, engine.layout)
    torch.manual_seed(3)
    inputs.embed(embeddings, noise_alpha=5.0)
    embeddings.neftune_noise_alpha = 5.0
    plain = embeddings(batch.input_ids[None]).detach()
    torch.manual_seed(3)
    theirs = neftune_post_forward_hook(embeddings.train(), None, plain)
    assert float((theirs - plain).abs().max()) > 0.05
    assert torch.allclose(inputs.kwargs["inputs_embeds"], theirs, atol=1e-6)
    engine.detach()


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_noise_has_the_papers_size_in_each_document_and_only_in_training(name):
    model = build(name)
    engine = attach(model, neftune_noise_alpha=5.0)
    lengths = (4, 100)
    batch = make_batch(lengths, vocab=601)
    embeddings = model.get_input_embeddings()
    inputs = model_inputs(batch, engine.layout)
    inputs.embed(embeddings, noise_alpha=5.0)
    noise = (
        inputs.kwargs["inputs_embeds"].flatten(0, 1)[inputs.rows(torch.arange(104))] - embeddings(batch.input_ids)
    ).split(lengths)
    for part, length in zip(noise, lengths, strict=True):
        bound = 5.0 / (length * 32) ** 0.5
        assert float(part.abs().max()) <= bound * 1.0001
        assert float(part.abs().mean()) == pytest.approx(bound / 2, rel=0.25)
    torch.manual_seed(0)
    first = engine.loss(batch).loss
    torch.manual_seed(0)
    assert torch.equal(engine.loss(batch).loss, first)
    assert not torch.equal(engine.loss(batch).loss, first)
    with_alpha = engine_loss_in_evaluation(model, engine, batch)
    engine.detach()
    assert torch.equal(engine_loss_in_evaluation(model, attach(model), batch), with_alpha)


def engine_loss_in_evaluation(model, engine, batch):
    model.eval()
    return engine.loss(batch).loss


def test_the_probe_leaves_modes_gradients_and_random_numbers_alone():
    model = build("gpt2", attn_pdrop=0.1)
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    attach(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_the_report_has_a_reason_for_every_part():
    report = attach(build("llama")).report
    assert [part.name for part in report][:2] == ["attention", "head"]
    assert report[-1].name == "memory"
    assert all(part.runs and part.reason for part in report)


def test_attaching_twice_is_refused():
    model = build("llama")
    attach(model)
    with pytest.raises(RuntimeError, match="detach"):
        attach(model)


def test_calling_the_model_directly_while_packed_attention_is_on_is_refused():
    from luthier.fast.attention import UnsupportedAttention

    model = build("llama")
    attach(model)
    with pytest.raises(UnsupportedAttention, match="inference"):
        model(input_ids=torch.arange(4, 9)[None])


def test_the_loss_runs_inside_the_distributed_wrapper(tmp_path):
    import torch.distributed as dist

    model = build("llama")
    stock = copy.deepcopy(model)
    engine = attach(model)
    batch = make_batch(LENGTHS, vocab=601)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        wrapper = engine.distribute(nn.parallel.DistributedDataParallel)
        fired = []
        wrapper.register_comm_hook(None, lambda _, bucket: (fired.append(1), done(bucket))[1])
        engine.loss(batch).loss.backward()
    finally:
        dist.destroy_process_group()
    assert fired
    want, _ = one_by_one(stock, batch)
    want.backward()
    assert_same_gradients(gradients(model), gradients(stock), 1e-5)


def done(bucket):
    future: torch.futures.Future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future
