"""Contract: packed attention is the attention of each document alone, and refuses what it does not compute.

Planted and seen to fail: attention over the whole sequence; a window off by one; grouped heads in another order.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.fast.attention import Documents, UnsupportedAttention, varlen_attention
from luthier.fast.reference import attention_one_document
from luthier.fast.split import group_by_length
from tests.fast.helpers import relative


def documents_of(lengths) -> Documents:
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return Documents.of(bounds, tuple(lengths))


def random_qkv(tokens, heads, groups, width=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(1, heads, tokens, width), (1, groups, tokens, width), (1, groups, tokens, width)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("lengths", [[13], [1, 1, 1], [5, 5, 9, 1, 9, 9], [2, 31]])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 1, 4, 64])
def test_outputs_and_gradients_equal_each_document_alone(lengths, heads, groups, window):
    query, key, value = random_qkv(sum(lengths), heads, groups)
    documents = documents_of(lengths)
    out, _ = varlen_attention(
        nn.Identity(), query, key, value, None, scaling=0.3, sliding_window=window, luthier_documents=documents
    )
    parts = [t.split(lengths, dim=2) for t in (query, key, value)]
    alone = [attention_one_document(q[0], k[0], v[0], scale=0.3, window=window) for q, k, v in zip(*parts, strict=True)]
    want = torch.cat(alone, dim=1).transpose(0, 1)[None]
    assert out.shape == want.shape
    assert relative(out, want) < 1e-5
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))
    got_grads = torch.autograd.grad((out * upstream).sum(), [query, key, value])
    want_grads = torch.autograd.grad((want * upstream).sum(), [query, key, value])
    for got, expected in zip(got_grads, want_grads, strict=True):
        # A query that sees only itself has gradient 0: measured against the upstream gradient then.
        assert float((got - expected).norm()) < 1e-5 * max(float(expected.norm()), float(upstream.norm()))


def test_neighbours_of_one_length_share_a_call_and_nothing_is_lost():
    groups = group_by_length([5, 5, 9, 1, 9, 9])
    assert [(g.start, g.documents, g.length) for g in groups] == [(0, 2, 5), (10, 1, 9), (19, 1, 1), (20, 2, 9)]


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"softcap": 50.0}, "softcap"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"something_new": 1}, "something_new"),
        ({"is_causal": False}, "causal"),
        ({"attention_mask": torch.ones(1, 1, 6, 6)}, "mask"),
        ({"luthier_documents": None}, "boundaries"),
    ],
)
def test_what_it_does_not_compute_it_refuses(kwargs, word):
    query, key, value = random_qkv(6, 4, 4)
    settings = {"attention_mask": None, "luthier_documents": documents_of([6]), **kwargs}
    with pytest.raises(UnsupportedAttention, match=word):
        varlen_attention(nn.Identity(), query, key, value, **settings)


def test_a_cache_that_makes_keys_longer_than_queries_is_refused():
    query, key, _ = random_qkv(6, 4, 4)
    longer = torch.cat([key, key], dim=2)
    with pytest.raises(UnsupportedAttention, match="one flat sequence"):
        varlen_attention(nn.Identity(), query, longer, longer, None, luthier_documents=documents_of([6]))


def test_harmless_keywords_and_absent_ones_are_accepted():
    query, key, value = random_qkv(6, 4, 4)
    harmless = {"position_ids": torch.arange(6)[None], "use_cache": False, "softcap": None, "output_attentions": False}
    out, _ = varlen_attention(nn.Identity(), query, key, value, None, luthier_documents=documents_of([6]), **harmless)
    assert out.shape == (1, 6, 4, 16)
