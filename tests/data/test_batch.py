"""Contract 3: documents end to end, positions restart, every target and its source lie in one document."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.batch import collate
from luthier.data.types import Example, RowRef


def example(ids, weights, line=1):
    return Example(ids=ids, weights=weights, ref=RowRef("f.jsonl", line))


@st.composite
def examples(draw):
    made = []
    for line in range(draw(st.integers(1, 6))):
        ids = draw(st.lists(st.integers(0, 99), min_size=1, max_size=12))
        weights = [0.0] + [draw(st.sampled_from([0.0, 1.0, 0.5, 2.0])) for _ in ids[1:]]
        made.append(example(ids, weights, line + 1))
    return made


def test_the_picture_in_the_docstring():
    batch = collate([example([10, 11, 12, 13], [0, 0, 1, 0.5]), example([20, 21, 22], [0, 0, 1], 2)])
    assert batch.input_ids.tolist() == [10, 11, 12, 13, 20, 21, 22]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 4, 7] and batch.cu_seqlens.dtype == torch.int32
    assert batch.doc_ids.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert batch.source_index.tolist() == [1, 2, 5]
    assert batch.target_ids.tolist() == [12, 13, 22]
    assert batch.target_weights.tolist() == [1.0, 0.5, 1.0] and batch.target_weights.dtype == torch.float32
    assert (batch.weight_sum, batch.tokens, batch.trained_tokens, batch.max_doc) == (2.5, 7, 3, 4)
    assert batch.doc_lengths == (4, 3) and [ref.line for ref in batch.refs] == [1, 2]


@given(examples())
def test_targets_are_exactly_the_weighted_tokens_and_never_cross_a_document(rows):
    batch = collate(rows)
    expected, offset = [], 0
    for row in rows:
        for place, (token, weight) in enumerate(zip(row.ids, row.weights, strict=True)):
            if weight:
                expected.append((offset + place - 1, token, weight))
        offset += len(row)
    found = zip(batch.source_index.tolist(), batch.target_ids.tolist(), batch.target_weights.tolist(), strict=True)
    assert list(found) == expected
    assert torch.equal(batch.target_ids, batch.input_ids[batch.source_index + 1])
    assert torch.equal(batch.doc_ids[batch.source_index], batch.doc_ids[batch.source_index + 1])
    assert torch.equal(batch.position_ids[batch.source_index] + 1, batch.position_ids[batch.source_index + 1])
    assert batch.weight_sum == sum(weight for _, _, weight in expected)
    assert batch.max_doc == max(batch.doc_lengths) and sum(batch.doc_lengths) == batch.tokens == len(batch.input_ids)


def test_a_document_without_targets_gives_an_empty_list_not_an_error():
    batch = collate([example([1, 2], [0, 0])])
    assert batch.trained_tokens == 0 and batch.weight_sum == 0.0 and batch.source_index.dtype == torch.int64


@pytest.mark.parametrize("bad", [example([], []), example([1, 2], [0]), example([1, 2], [1, 0])])
def test_malformed_examples_are_refused_with_their_row(bad):
    with pytest.raises(ValueError, match=r"f\.jsonl:1"):
        collate([bad])
    with pytest.raises(ValueError, match="at least one example"):
        collate([])


def test_moving_a_batch_moves_every_tensor_and_keeps_the_rest():
    batch = collate([example([1, 2, 3], [0, 1, 1])])
    moved = batch.to("meta")
    tensors = [getattr(moved, name) for name in moved.__slots__ if isinstance(getattr(moved, name), torch.Tensor)]
    assert len(tensors) == 7 and all(tensor.device.type == "meta" for tensor in tensors)
    assert moved.doc_lengths == batch.doc_lengths and moved.weight_sum == 2.0
