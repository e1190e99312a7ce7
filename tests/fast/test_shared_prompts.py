"""Contract: answers that share a prompt's computation give the loss and the gradients of the same answers, each behind
its own copy of the prompt; and no answer sees another one.

Planted and seen to fail: a prefix one token short; positions that start anew after the prompt; targets predicted from
the row before theirs.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from luthier.data.branches import collate_branched
from luthier.fast.engine import attach, inner_model
from luthier.fast.hidden import model_inputs
from luthier.fast.settings import EngineSettings
from tests.fast.families import FLAT, PADDED, build
from tests.fast.helpers import assert_same_gradients, gradients, make_pairs, relative, unshared
from tests.fast.test_linear import lora

SIZES = ((9, 3, 5), (1, 4, 4), (6, 1, 12), (17, 7, 2))


@pytest.mark.parametrize("name", [*FLAT, *PADDED])
def test_loss_and_all_gradients_are_those_of_answers_with_their_own_prompt(name):
    model = build(name)
    other = copy.deepcopy(model)
    engine, plain = attach(model), attach(other)
    rows = make_pairs(SIZES, vocab=601)
    got, want = engine.loss(collate_branched(rows)), plain.loss(unshared(rows))
    assert relative(got.loss, want.loss) < 1e-5
    assert int(got.correct) == int(want.correct)
    got.loss.backward()
    want.loss.backward()
    loose = name in {"qwen3-moe", "gpt-oss", "mamba"}  # they sum in another order for other shapes
    assert_same_gradients(gradients(model), gradients(other), 1e-4 if loose else 2e-5)


@pytest.mark.parametrize("recompute", ["none", "selective", "layer"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral-window"])
def test_in_double_precision_it_is_exact(name, method, recompute):
    model = build(name).double()
    if method == "lora":
        model = lora(model).double()
    other = copy.deepcopy(model)
    engine, plain = attach(model, EngineSettings(recompute=recompute)), attach(other)
    rows = make_pairs(SIZES, vocab=601)
    got, want = engine.loss(collate_branched(rows)), plain.loss(unshared(rows))
    got.loss.backward()
    want.loss.backward()
    assert_same_gradients(gradients(model), gradients(other), 1e-6)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma2"])
def test_an_answer_sees_its_prompt_and_nothing_of_the_other_answer(name):
    engine = attach(build(name).eval())
    rows = make_pairs(SIZES, vocab=601)

    def hidden(rows):
        batch = collate_branched(rows)
        inputs = model_inputs(batch, engine.layout)
        with torch.no_grad():
            states = inner_model(engine.module.model).get_decoder()(**inputs.kwargs)[0].flatten(0, 1)
        return states[inputs.rows(torch.arange(batch.tokens))]

    before = hidden(rows)
    first = rows[0]
    chosen, rejected = slice(9, 12), slice(12, 17)
    other_chosen = hidden([replace(first, answers=[[7, 8, 9], first.answers[1]]), *rows[1:]])
    assert torch.equal(before[rejected], other_chosen[rejected])
    assert not torch.equal(before[chosen], other_chosen[chosen])
    other_prompt = hidden([replace(first, prompt=[*first.prompt[:-1], 9]), *rows[1:]])
    assert not torch.equal(before[rejected], other_prompt[rejected])
    assert torch.equal(before[17:], other_prompt[17:])


def shorter(batch):
    return replace(batch, prefixes=tuple((start, max(0, tokens - 1)) for start, tokens in batch.prefixes))


def anew(batch):
    restart = torch.cat([torch.arange(length) for length in batch.doc_lengths])
    return replace(batch, position_ids=restart)


def off_by_a_row(batch):
    return replace(batch, row_of_target=(batch.row_of_target - 1).clamp_min(0))


@pytest.mark.parametrize("planted", [shorter, anew, off_by_a_row])
def test_a_planted_bug_is_seen(planted):
    engine = attach(build("llama"))
    rows = make_pairs(SIZES, vocab=601)
    want = engine.loss(unshared(rows)).loss
    assert relative(engine.loss(collate_branched(rows)).loss, want) < 1e-5
    assert relative(engine.loss(planted(collate_branched(rows))).loss, want) > 1e-3
