"""Contract: the parts of a batch have every token and every target of it once, and know where all documents lie.

Planted and seen to fail: targets named after the split (that of a part's last row is lost); documents without that of
the padding; padding of one token too few; a part without targets that has none.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.branches import collate_rows
from luthier.data.sequence_parts import take_part
from luthier.train.feed import without_weight
from tests.fast.helpers import make_batch, make_pairs
from tests.support.often import often


def parts_of(batch, size):
    return [take_part(batch, index=index, size=size) for index in range(size)]


@settings(max_examples=often(60), deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), size=st.integers(2, 8),
    share=st.sampled_from([0.0, 0.1, 0.7]), seed=st.integers(0, 9),
)  # fmt: skip
def test_parts_are_the_whole(lengths, size, share, seed):
    batch = make_batch(lengths, share=share, seed=seed)
    parts = parts_of(batch, size)
    rows = len(parts[0].input_ids)
    padding = rows * size - batch.tokens
    assert 0 <= padding < size
    assert torch.equal(torch.cat([part.input_ids for part in parts])[: batch.tokens], batch.input_ids)
    assert torch.equal(torch.cat([part.position_ids for part in parts])[: batch.tokens], batch.position_ids)
    found = [
        (index * rows + int(row), int(target), float(weight))
        for index, part in enumerate(parts)
        for row, target, weight in zip(part.source_index, part.target_ids, part.target_weights, strict=True)
        if weight
    ]
    wanted = zip(
        batch.source_index.tolist(), batch.target_ids.tolist(), batch.target_weights.tolist(), strict=True
    )  # fmt: skip
    assert found == list(wanted)
    assert sum(part.tokens for part in parts) == batch.tokens
    assert sum(part.trained_tokens for part in parts) == batch.trained_tokens
    assert sum(part.weight_sum for part in parts) == pytest.approx(batch.weight_sum, abs=1e-9)
    for index, part in enumerate(parts):
        assert part.part == (index, size)
        assert len(part.input_ids) == len(part.position_ids) == len(part.doc_ids) == rows
        assert part.doc_lengths == batch.doc_lengths + ((padding,) if padding else ())
        assert part.cu_seqlens.tolist() == [0, *torch.tensor(part.doc_lengths).cumsum(0).tolist()]
        assert part.max_doc == max(part.doc_lengths)
        assert len(part.source_index) > 0, "a process without a target still takes part in the backward pass"
        assert int(part.source_index.max()) < rows
        assert part.refs == batch.refs


def test_a_target_beyond_the_split_belongs_to_the_process_before_it():
    batch = make_batch([8], share=1.0)
    first, second = parts_of(batch, 2)
    assert first.source_index.tolist() == [0, 1, 2, 3]
    assert int(first.target_ids[-1]) == int(second.input_ids[0])
    assert second.source_index.tolist() == [0, 1, 2]


def test_a_batch_that_counts_nothing_counts_nothing_in_parts():
    for part in parts_of(without_weight(make_batch([5], share=1.0)), 2):
        assert (part.tokens, part.trained_tokens, part.weight_sum) == (0, 0, 0.0)
        assert not part.target_weights.any()


def test_one_process_has_the_batch_itself_and_others_are_refused():
    batch = make_batch([5])
    assert take_part(batch, index=0, size=1) is batch
    with pytest.raises(ValueError, match="whole batches"):
        take_part(take_part(batch, index=0, size=2), index=0, size=2)
    with pytest.raises(ValueError, match="single answers"):
        take_part(collate_rows(make_pairs([(3, 2, 2)])), index=0, size=2)
