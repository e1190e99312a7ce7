"""Contract: what a recording is fed does not change the documents it is asked about.

The recording itself needs CUDA (`tests/gpu/test_graph_gpu.py`); filling up and tables are tested here.
Planted and seen to fail: a shape without room for the filling; spare tiles that are not copies of one; no second
attempt.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.fast import graph
from luthier.fast.attention import Documents
from luthier.fast.engine import attach
from luthier.fast.graph import DOCUMENTS, SHORTEST, TOKENS, Shape, shape_for
from luthier.fast.kernels.attention_schedule import FixedSchedule, Schedule
from luthier.fast.settings import EngineSettings
from tests.fast.families import build
from tests.fast.helpers import make_batch

LENGTHS = st.lists(st.integers(1, 900), min_size=1, max_size=40)


@given(LENGTHS)
def test_the_shape_holds_the_documents_and_their_filling(lengths):
    shape = shape_for(lengths)
    assert 0 <= shape.tokens - sum(lengths) < TOKENS and shape.tokens % TOKENS == 0
    assert len(lengths) + 1 <= shape.documents <= len(lengths) + DOCUMENTS
    assert max(*lengths, TOKENS) <= shape.longest and (shape.longest == SHORTEST or shape.longest < 2 * max(lengths))


@given(st.lists(LENGTHS, min_size=2, max_size=3), st.sampled_from([(4, 128), (3, 64), (1, 64)]))
def test_fixed_tables_hold_the_tiles_of_each_batch_and_copies_of_the_last(batches, heads):
    shapes = [shape_for(lengths) for lengths in batches]
    shape = Shape(
        tokens=max(s.tokens for s in shapes), documents=max(s.documents for s in shapes),
        longest=max(max(s.longest for s in shapes), max(s.tokens for s in shapes)),
    )  # fmt: skip
    fixed = FixedSchedule(
        tokens=shape.tokens, documents=shape.documents, longest=shape.longest, device=torch.device("cpu")
    )
    places = None
    for lengths in batches:
        spare = shape.tokens - sum(lengths)
        filled = [*lengths, spare] if spare else lengths
        fixed.load(filled)
        plan = fixed.plan(*heads)
        blocks = tuple(tiles.blocks for tiles in plan)
        own = Schedule.of(filled, "cpu").plan(*heads, blocks)
        for tiles, expected in zip(plan, own, strict=True):
            count = len(expected.table)
            assert torch.equal(tiles.table[:count], expected.table)
            assert (tiles.table[count:] == expected.table[-1]).all()
        found = [tiles.table.data_ptr() for tiles in plan]
        assert places in (None, found)
        places = found


def test_documents_that_do_not_fit_are_refused():
    fixed = FixedSchedule(tokens=512, documents=2, longest=512, device=torch.device("cpu"))
    for lengths in ([511], [256, 128, 128], [600]):
        with pytest.raises(AssertionError):
            fixed.load(lengths)


def test_a_broken_recording_is_tried_once_more_and_then_given_up_with_its_first_cause(monkeypatch):
    said = []
    monkeypatch.setattr(graph, "note", lambda text, **_: said.append(text))
    model = build("llama")
    graphs = graph.Graphs(model.model, always=True)
    attach(model)
    tries = []

    def breaks(*_):
        tries.append(1)
        try:
            raise RuntimeError(f"the cause {len(tries)}")
        finally:
            raise RuntimeError("the end of the recording")

    monkeypatch.setattr(graph, "_Recording", breaks)
    embeds, positions = torch.zeros(9, 32, requires_grad=True), torch.arange(9)
    assert graphs.hidden(embeds, positions, (9,)) is None and graphs.failure is None
    assert "the cause 1" in said[0] and "tried again" in said[0]
    assert graphs.hidden(embeds, positions, (9,)) is None
    assert graphs.failure == "the cause 1; then the cause 2"
    assert graphs.hidden(embeds, positions, (9,)) is None and len(tries) == 2
    assert len(said) == 2 and said[1].startswith("  launches: one by one")


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_the_filling_document_changes_no_hidden_state_of_the_others(name):
    model = build(name).eval()
    engine = attach(model, EngineSettings(attention="packed"))
    batch = make_batch((9, 3, 3, 17, 6), vocab=601)
    shape = shape_for(batch.doc_lengths)
    spare = shape.tokens - batch.tokens
    fixed = FixedSchedule(
        tokens=shape.tokens, documents=shape.documents, longest=shape.longest, device=torch.device("cpu")
    )
    fixed.load((*batch.doc_lengths, spare))
    documents = Documents(cu_seqlens=batch.cu_seqlens, lengths=(shape.tokens,), longest=shape.longest, groups=())
    documents.__dict__["schedule"] = fixed
    positions = torch.cat([batch.position_ids, torch.arange(spare)])
    embeds = model.get_input_embeddings()(torch.cat([batch.input_ids, torch.zeros(spare, dtype=torch.int64)]))
    with torch.no_grad():
        got = model.model(
            inputs_embeds=embeds[None], position_ids=positions[None], luthier_documents=documents, use_cache=False
        )[0][0, : batch.tokens]  # fmt: skip
        want = model.model(
            input_ids=batch.input_ids[None], position_ids=batch.position_ids[None], use_cache=False,
            luthier_documents=Documents.of(batch.cu_seqlens, batch.doc_lengths),
        )[0][0]  # fmt: skip
    assert np.allclose(got.numpy(), want.numpy(), atol=1e-5)
    assert engine.module.graphs is None  # nothing is recorded on a CPU
