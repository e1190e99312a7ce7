"""Contract: processes that share a sequence have, added up, loss and gradients of one that has all of it.

Planted and seen to fail, besides those under "bugs that must show": key/value gradients of one copy instead of their
sum; heads of another process; gradients left rotated; the product before head norms lost; a target without weight
counted as correct.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from luthier.data.batch import collate
from luthier.data.sequence_parts import take_part
from luthier.data.types import Example, RowRef
from luthier.fast.engine import attach
from luthier.fast.settings import EngineSettings
from luthier.model.head_split import HeadSplit
from luthier.runtime.errors import RecipeError
from tests.fast.families import build
from tests.fast.helpers import assert_same_gradients, gradients, make_batch, relative
from tests.fast.sharing import DoubleRotary, groups, shared
from tests.fast.test_linear import lora

LENGTHS = (9, 3, 3, 17, 6)
"""38 tokens: documents cross every split, and 4 processes need 2 tokens of padding."""


def alone(model, batch, **settings):
    model = copy.deepcopy(model)
    sums = attach(model, EngineSettings(**settings)).loss(batch)
    sums.loss.backward()
    return sums.loss.detach(), int(sums.correct), gradients(model)


def check(model, batch, size, *, recompute="none", layers=None, keep=False):
    loss, correct, wanted = alone(model, batch)
    ours, ours_correct, found, members = shared(model, batch, size, recompute=recompute, layers=layers, keep=keep)
    assert relative(ours, loss) < 1e-6
    assert ours_correct == correct
    assert_same_gradients(found, wanted, 1e-6)
    return members


def ready(name, method, **settings):
    model = build(name, **settings).double()
    return lora(model) if method == "lora" else model


@pytest.mark.parametrize(
    ("name", "recompute"),
    [("llama", "none"), ("llama", "selective"), ("llama", "layer"), ("qwen3", "none"), ("gemma3", "layer")],
)
def test_two_processes_have_the_gradients_of_one(name, recompute):
    method = "lora" if recompute == "layer" else "full"
    check(ready(name, method), make_batch(LENGTHS, vocab=601), 2, recompute=recompute)


def test_in_fp64_nothing_but_the_order_of_sums_differs():
    model, batch = ready("llama", "full"), make_batch(LENGTHS, vocab=601)
    model.model.rotary_emb = DoubleRotary(model.model.rotary_emb)
    _, _, wanted = alone(model, batch)
    found = shared(model, batch, 2)[2]
    apart = {name: relative(found[name], wanted[name]) for name in wanted if name != "lm_head.weight"}
    assert max(apart.values()) < 1e-13, apart


@pytest.mark.parametrize(("key_value_heads", "size"), [(1, 2), (4, 2), (1, 4), (2, 4)])
def test_key_value_heads_are_divided_or_copied(key_value_heads, size):
    model = ready("llama", "full", num_key_value_heads=key_value_heads)
    check(model, make_batch(LENGTHS, vocab=601), size)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [("none", None), ("selective", None), ("layer", None), ("selective", 1)])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    "name", ["llama-tied-bias", "qwen2-window", "qwen3", "mistral-window", "gemma", "gemma3", "phi3-window"]
)
def test_every_family_and_policy(name, size, method, recompute):
    check(ready(name, method), make_batch(LENGTHS, vocab=601), size, recompute=recompute[0], layers=recompute[1])


@pytest.mark.parametrize("lengths", [(1, 1, 2), (37,)])
def test_odd_and_very_short_sequences(lengths):
    check(ready("llama", "full"), make_batch(lengths, vocab=601, share=1.0), 4)


def test_a_process_without_a_target():
    rows = [Example(ids=list(range(3, 24)), weights=[0.0] * 20 + [1.0], ref=RowRef("rows", 1))]
    check(ready("qwen3", "full"), collate(rows), 2)


def test_bytes_of_an_exchange_are_those_of_the_formula():
    """A forward pass sends (q + 2 g K S) and q numbers a token, the backward pass as many; see docs/distributed.md."""
    for key_value_heads, size in ((2, 2), (1, 4)):
        model = ready("llama", "full", num_key_value_heads=key_value_heads)
        members = check(model, make_batch((16, 8), vocab=601), size)
        rows, width, heads = 24 // size, 8, 4
        split = HeadSplit(heads, key_value_heads, size)
        stacked = rows * (heads + 2 * split.local_key_value_heads * size) * width * 8
        output = rows * heads * width * 8
        for member in members:
            assert member.exchanges == [stacked, output] * 2 + [output, stacked] * 2
        again = shared(model, make_batch((16, 8), vocab=601), size, recompute="layer")[3]
        assert again[0].exchanges == [stacked, output] * 2 + [stacked, output, output, stacked] * 2
        kept = check(model, make_batch((16, 8), vocab=601), size, recompute="layer", keep=True)
        assert kept[0].exchanges == [stacked, output] * 2 + [stacked, output, stacked] * 2


# -- bugs that must show


def differs(split) -> float:
    model, batch = ready("llama", "full"), make_batch(LENGTHS, vocab=601, share=1.0)
    _, _, wanted = alone(model, batch)
    found = shared(model, batch, 2, split=split)[2]
    return max(relative(found[name], wanted[name]) for name in wanted)


def test_a_target_lost_at_the_split_shows():
    def losing(batch, *, index, size):
        part = take_part(batch, index=index, size=size)
        kept = part.source_index < len(part.input_ids) - 1
        return replace(
            part, source_index=part.source_index[kept], target_ids=part.target_ids[kept],
            target_weights=part.target_weights[kept],
        )  # fmt: skip

    assert differs(losing) > 1e-3


def test_a_wrong_layout_of_documents_shows():
    def merged(batch, *, index, size):
        part = take_part(batch, index=index, size=size)
        return replace(
            part, doc_lengths=(sum(part.doc_lengths),), cu_seqlens=part.cu_seqlens[[0, -1]],
            max_doc=sum(part.doc_lengths),
        )  # fmt: skip

    assert differs(merged) > 1e-3


def test_positions_of_the_part_instead_of_the_document_show():
    def restarted(batch, *, index, size):
        part = take_part(batch, index=index, size=size)
        return replace(part, position_ids=torch.arange(len(part.position_ids)))

    assert differs(restarted) > 1e-3


# -- what is refused


def refusals(model, size) -> dict[str, str]:
    engine = attach(model, EngineSettings(cuda_graphs=False))
    try:
        with pytest.raises(RecipeError) as caught:
            engine.share_sequences(groups(size)[0])
    finally:
        engine.detach()
    return {problem.code: f"{problem.message} {problem.hint}" for problem in caught.value.problems}


def test_heads_that_cannot_be_divided_are_refused_with_the_numbers():
    assert "4 query heads" in refusals(build("llama"), 3)["L232"]
    found = refusals(build("llama", hidden_size=48, num_attention_heads=12, num_key_value_heads=4), 6)["L232"]
    assert "4 key/value heads" in found
    assert "2, 4, 12" in found


def test_models_without_the_engines_layers_are_refused():
    assert "GraniteDecoderLayer" in refusals(build("granite"), 2)["L233"]
    assert "as transformers wrote them" in refusals(build("gemma2"), 2)["L233"]


def test_a_rotary_embedding_that_depends_on_the_length_is_refused():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert "dynamic" in refusals(build("llama", rope_parameters=rope), 2)["L233"]


def test_attention_dropout_is_refused():
    assert "attention dropout" in refusals(build("llama", attention_dropout=0.1), 2)["L233"]


def test_a_part_of_a_sequence_is_refused_by_an_engine_that_shares_none():
    engine = attach(build("llama"), EngineSettings())
    with pytest.raises(ValueError, match="part"):
        engine.loss(take_part(make_batch(LENGTHS, vocab=601), index=0, size=2))
