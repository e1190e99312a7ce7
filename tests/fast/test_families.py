"""Contract: for every family, packed loss and gradients are those of the documents run one by one through the
stock model, and no document changes another one's hidden states by a single bit (B30).

Planted and seen to fail: attention over the whole pack; positions that run on (GPT-2 sees it: rotary positions are
relative); a window that is dropped; the logit scale left out; rows of the padded rectangle off by a column.
"""

from __future__ import annotations

import copy

import pytest
import torch

from luthier.fast.attention import NAME
from luthier.fast.engine import attach, inner_model
from luthier.fast.hidden import model_inputs
from luthier.fast.settings import EngineSettings
from tests.fast.families import FLAT, PADDED, build
from tests.fast.helpers import assert_same_gradients, gradients, make_batch, one_by_one, relative

LENGTHS = (9, 3, 3, 1, 17, 6)


def hidden_states(engine, batch):
    trunk = inner_model(engine.module.model).get_decoder()
    inputs = model_inputs(batch, engine.layout)
    with torch.no_grad():
        hidden = trunk(**inputs.kwargs)[0].flatten(0, 1)
    return hidden[inputs.rows(torch.arange(batch.tokens))]


@pytest.mark.parametrize("name", [*FLAT, *PADDED])
def test_packed_loss_and_all_gradients_are_those_of_each_document_alone(name):
    model = build(name)
    stock = copy.deepcopy(model)
    engine = attach(model)
    assert engine.layout == ("flat" if name in FLAT else "padded"), engine.report
    batch = make_batch(LENGTHS, vocab=601)
    sums = engine.loss(batch, label_smoothing=0.1)
    want, correct = one_by_one(stock, batch, label_smoothing=0.1)
    assert relative(sums.loss, want) < 1e-5
    assert int(sums.correct) == correct
    sums.loss.backward()
    want.backward()
    # Mixtures of experts and state-space models sum in another order for other shapes.
    assert_same_gradients(
        gradients(model), gradients(stock), 1e-4 if name in {"qwen3-moe", "gpt-oss", "mamba"} else 1e-5
    )


@pytest.mark.parametrize("name", [*FLAT, *PADDED])
def test_replacing_the_first_document_changes_no_later_hidden_state_by_a_bit(name):
    engine = attach(build(name).eval())
    before = hidden_states(engine, make_batch(LENGTHS, vocab=601))
    after = hidden_states(engine, make_batch(LENGTHS, vocab=601, first=range(40, 49)))
    assert not torch.equal(before[:9], after[:9])
    difference = (before[9:] - after[9:]).abs().max()
    # Experts compute other numbers of rows then, which may round differently; nothing else may.
    assert difference <= (1e-5 if name in {"qwen3-moe", "gpt-oss"} else 0.0)


def test_contamination_is_seen_when_it_is_planted(monkeypatch):
    from luthier.fast import attention, split

    def whole_pack(query, key, value, groups, **kwargs):
        tokens = sum(group.documents * group.length for group in groups)
        return split.sdpa_documents(query, key, value, [split.Group(0, 1, tokens)], **kwargs)

    engine = attach(build("llama").eval())
    monkeypatch.setattr(attention, "sdpa_documents", whole_pack)
    before = hidden_states(engine, make_batch(LENGTHS, vocab=601))
    after = hidden_states(engine, make_batch(LENGTHS, vocab=601, first=range(40, 49)))
    assert (before[9:] - after[9:]).abs().max() > 1e-3
    engine.detach()
    assert attach(engine.module.model).layout == "padded"  # and the probe refuses such an attention


def test_the_reason_for_the_padded_layout_is_in_the_report():
    reasons = {name: attach(build(name)).report[0] for name in PADDED}
    assert "softcap" in reasons["gemma2"].reason
    assert "s_aux" in reasons["gpt-oss"].reason or "sinks" in reasons["gpt-oss"].reason
    assert "does not take attention functions" in reasons["bloom"].reason
    assert all("padded" in part.runs for part in reasons.values())


def test_a_window_that_the_model_does_not_pass_on_is_refused(monkeypatch):
    from transformers.models.mistral import modeling_mistral

    stock = modeling_mistral.MistralAttention.forward
    model = build("mistral-window")

    def forgets(self, *args, **kwargs):
        config, self.config = self.config, copy.copy(self.config)
        self.config.sliding_window = None
        try:
            return stock(self, *args, **kwargs)
        finally:
            self.config = config

    monkeypatch.setattr(modeling_mistral.MistralAttention, "forward", forgets)
    engine = attach(model, EngineSettings(replace_layers=False))
    assert engine.layout == "padded"
    assert "windows" in engine.report[0].reason


def test_heads_with_scale_or_cap_are_recognised_and_an_unknown_one_goes_through_the_model():
    scaled = attach(build("granite"))
    assert scaled.module.finding.transform.scale == pytest.approx(0.25)
    assert attach(build("gemma2")).module.finding.transform.softcap == pytest.approx(3.0)

    class Odd(type(build("llama"))):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.sin()
            return out

    model = build("llama")
    model.__class__ = Odd
    stock = copy.deepcopy(model)
    engine = attach(model)
    assert engine.module.finding.kind == "model"
    batch = make_batch(LENGTHS, vocab=601)
    sums = engine.loss(batch)
    want, _ = one_by_one(stock, batch)
    assert relative(sums.loss, want) < 1e-5
    sums.loss.backward()
    want.backward()
    assert_same_gradients(gradients(model), gradients(stock), 1e-5)


def test_an_encoder_decoder_model_is_refused_with_a_problem():
    from transformers import T5Config, T5ForConditionalGeneration

    from luthier.runtime.errors import RunFailed

    config = T5Config(vocab_size=60, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(RunFailed, match="encoder-decoder"):
        attach(T5ForConditionalGeneration(config))


def test_inference_gives_generation_its_own_attention_and_returns_to_packed():
    model = build("llama").eval()
    stock = copy.deepcopy(model)
    engine = attach(model)
    prompt = torch.arange(5, 12)[None]
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with engine.inference():
        assert model.config._attn_implementation == stock.config._attn_implementation
        generated = model.generate(prompt, **settings)
    assert torch.equal(generated, stock.generate(prompt, **settings))
    assert model.config._attn_implementation == NAME
    engine.detach()
    assert model.config._attn_implementation == stock.config._attn_implementation
    assert [type(m) for m in model.modules()] == [type(m) for m in stock.modules()]
