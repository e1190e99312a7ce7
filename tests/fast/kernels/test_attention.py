"""Contract: packed attention is the plain definition, and the definition is what autograd says.

    python -m pytest tests/fast/kernels/test_attention.py                         the definition, the tiles
    TRITON_INTERPRET=1 python -m pytest tests/fast/kernels/test_attention.py      the Triton kernels too

Compiled kernels are checked on a GPU by `benchmarks/gpu/attention.py`.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch import Tensor

from luthier.fast.kernels.attention import (
    Schedule,
    packed_attention,
    packed_attention_backward,
    packed_attention_backward_reference,
    packed_attention_reference,
    supports,
)
from luthier.fast.kernels.attention_schedule import Blocks
from luthier.fast.kernels.rope import rope_reference

interpreted = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs triton and TRITON_INTERPRET=1",
)
LENGTHS = (5, 1, 37, 16, 50, 1, 33)
# Document 1 goes on from 4 tokens of document 0, 3 from all of 2, 5 from the first of 4.
PREFIXES = ((0, 0), (0, 4), (0, 0), (6, 37), (0, 0), (59, 1), (0, 0))
MARGIN = 7.0


def heads_of(stacked: Tensor, heads: int, groups: int) -> tuple[Tensor, ...]:
    return stacked.unflatten(1, (heads + 2 * groups, -1)).split((heads, groups, groups), dim=1)


def inputs(lengths, heads, groups, width, dtype, seed=0):
    """(stacked q|k|v, dout, cos, sin, room for the gradient); views of wider buffers."""
    made = torch.Generator().manual_seed(seed)
    tokens, total = sum(lengths), (heads + 2 * groups) * width
    rows = [torch.randn(tokens, n + 16, generator=made).to(dtype)[:, :n] for n in (total, heads * width, width, width)]
    room = torch.full((tokens, total + 16), MARGIN, dtype=dtype)
    return rows[0], rows[1].unflatten(1, (heads, width)), rows[2], rows[3], room


def plain(stacked, lengths, heads, groups, scale, window, prefixes=()):
    """Attention written another way: one softmax over all tokens at once, with a mask by document and position."""
    q, k, v = (part.transpose(0, 1) for part in heads_of(stacked, heads, groups))
    k, v = (part[:, None].expand(-1, heads // groups, -1, -1).flatten(0, 1) for part in (k, v))
    prefixes = prefixes or ((0, 0),) * len(lengths)
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    position = torch.cat([torch.arange(p, p + n) for n, (_, p) in zip(lengths, prefixes, strict=True)])
    seen = number[:, None] == number[None, :]
    for document, (start, tokens) in enumerate(prefixes):
        seen[number == document, start : start + tokens] = True
    distance = position[:, None] - position[None, :]
    seen &= distance >= 0
    if window is not None:
        seen &= distance < window
    scores = torch.where(seen, torch.einsum("hik,hjk->hij", q, k) * scale, float("-inf"))
    return torch.einsum("hij,hjk->ihk", scores.softmax(-1), v), scores.logsumexp(-1)


@pytest.mark.parametrize("prefixes", [(), PREFIXES])
@pytest.mark.parametrize("window", [None, 1, 7, 40])
@pytest.mark.parametrize(("heads", "groups"), [(3, 3), (6, 2)])
def test_definition_is_what_autograd_says(heads, groups, window, prefixes):
    width, scale = 8, 0.3
    raw, dout, cos, sin, room = inputs(LENGTHS, heads, groups, width, torch.float64)
    schedule = Schedule.of(LENGTHS, "cpu", prefixes)
    raw = raw.clone().requires_grad_()
    turned = raw.unflatten(1, (-1, width))
    half = width // 2
    swapped = torch.cat([-turned[..., half:], turned[..., :half]], dim=-1)
    rotated = turned * cos[:, None] + swapped * sin[:, None]
    stacked = torch.cat([rotated[:, : heads + groups], turned[:, heads + groups :]], dim=1).flatten(1)
    want_out, want_lse = plain(stacked, LENGTHS, heads, groups, scale, window, prefixes)
    (want,) = torch.autograd.grad(want_out, raw, dout)

    q, k, v = heads_of(stacked.detach(), heads, groups)
    out, lse = packed_attention(q, k, v, schedule, scale=scale, window=window)
    place = room[:, : stacked.shape[1]]
    packed_attention_backward(
        dout, q, k, v, out, lse, schedule, scale=scale, window=window, cos_sin=(cos, sin), dqkv_out=place
    )
    torch.testing.assert_close(out, want_out.detach())
    torch.testing.assert_close(lse, want_lse.detach())
    torch.testing.assert_close(place, want)
    assert (room[:, stacked.shape[1] :] == MARGIN).all()


def test_without_a_rotation_the_gradient_is_left_as_it_is():
    raw, dout, cos, sin, room = inputs(LENGTHS, 2, 1, 8, torch.float64)
    schedule, (q, k, v) = Schedule.of(LENGTHS, "cpu"), heads_of(raw, 2, 1)
    out, lse = packed_attention(q, k, v, schedule, scale=0.3)
    plain_place, turned_place = room[:, :32].clone(), room[:, :32].clone()
    for place, tables in ((plain_place, None), (turned_place, (cos, sin))):
        packed_attention_backward(dout, q, k, v, out, lse, schedule, scale=0.3, cos_sin=tables, dqkv_out=place)
    turned = rope_reference(plain_place[:, :24].unflatten(1, (3, 8)), cos, sin, inverse=True)
    torch.testing.assert_close(turned_place, torch.cat([turned.flatten(1), plain_place[:, 24:]], dim=1))


def test_out_is_written_where_it_is_wanted():
    raw, _, _, _, _ = inputs(LENGTHS, 2, 1, 8, torch.float32)
    room = torch.full((sum(LENGTHS), 24), MARGIN)
    place = room[:, :16].unflatten(1, (2, 8))
    schedule, heads = Schedule.of(LENGTHS, "cpu"), heads_of(raw, 2, 1)
    out, _ = packed_attention(*heads, schedule, scale=0.3, out_thk=place)
    assert out is place and (room[:, 16:] == MARGIN).all()
    torch.testing.assert_close(place, packed_attention(*heads, schedule, scale=0.3)[0])


def test_supports():
    assert supports(64, torch.bfloat16) and supports(128, torch.float16) and supports(256, torch.bfloat16)
    assert not supports(96, torch.bfloat16) and not supports(128, torch.float32)


@pytest.mark.parametrize("group", [1, 3, 4, 7])
def test_tiles_hold_each_token_once_and_the_heaviest_come_first(group):
    lengths = (300, 1, 640, 20)
    plan = Schedule.of(lengths, "cpu").plan(group, 64)
    for tiles, size in (
        (plan.forward, plan.forward.blocks.rows // plan.forward.pack),
        (plan.dq, plan.dq.blocks.rows // plan.dq.pack),
        (plan.dkdv, plan.dkdv.blocks.keys),
    ):
        table = tiles.table.tolist()
        tokens = [start + at for start, length, first, *_ in table for at in range(first, min(first + size, length))]
        assert sorted(tokens) == list(range(sum(lengths)))
        assert tiles.table.dtype == torch.int32 and tiles.table.shape[1] == 5 and tiles.table.is_contiguous()
        assert all(first < length for _, length, first, *_ in table), "an empty tile"
        longest = [length for _, length, *_ in table]
        assert longest == sorted(longest, reverse=True)
        work = [first if tiles is not plan.dkdv else -first for start, _, first, *_ in table if start == 301]
        assert len(work) > 4 and work == sorted(work, reverse=True)


def test_tiles_name_the_prefix_of_queries_and_the_followers_of_keys():
    plan = Schedule.of((40, 5, 7), "cpu", ((0, 0), (0, 30), (0, 0))).plan(1, 64)
    assert {tuple(row) for row in plan.forward.table[:, [0, 3, 4]].tolist()} == {(0, 0, 0), (40, 0, 30), (45, 0, 0)}
    assert {tuple(row) for row in plan.dkdv.table[:, [0, 3, 4]].tolist()} == {(0, 30, 5), (40, 0, 0), (45, 0, 0)}


@pytest.mark.parametrize(
    "prefixes",
    [((0, 0), (0, 9), (0, 0)), ((0, 0), (1, 2), (0, 0)), ((0, 0), (0, 2), (0, 2)), ((0, 0), (0, 0), (0, 2)), ((0, 0),)],
)
def test_a_prefix_is_the_beginning_of_the_document_before(prefixes):
    with pytest.raises(ValueError, match=r"prefix|goes on from"):
        Schedule.of((8, 3, 4), "cpu", prefixes)


def test_a_schedule_builds_its_tiles_once():
    schedule = Schedule.of((300, 20), "cpu")
    assert schedule.plan(4, 128) is schedule.plan(4, 128)
    assert schedule.plan(4, 128) is not schedule.plan(1, 128)


def test_packed_rows_are_a_divisor_of_the_group():
    assert Blocks(64, 64, 4, 2).pack(7) == 7
    assert Blocks(64, 64, 4, 2).pack(24) == 12
    assert Blocks(64, 64, 4, 2, packed=False).pack(4) == 1


SMALL = {
    "packed": Blocks(16, 8, 4, 2),
    "packed, wide": Blocks(8, 16, 4, 2),
    "single heads": Blocks(8, 8, 4, 2, packed=False),
    "single heads, wide": Blocks(16, 16, 4, 2, packed=False),
}


@interpreted
@pytest.mark.parametrize(
    ("name", "heads", "groups", "window"),
    [
        ("packed", 6, 2, None),
        ("packed", 6, 2, 5),
        ("packed", 7, 1, 21),
        ("packed, wide", 4, 1, None),
        ("packed, wide", 2, 2, 1),
        ("packed, wide", 7, 1, 9),
        ("single heads", 4, 2, None),
        ("single heads", 2, 2, 12),
        ("single heads, wide", 2, 2, None),
        ("single heads, wide", 3, 1, 21),
    ],
)
@pytest.mark.parametrize("prefixes", [(), ((0, 0), (0, 5), (0, 0), (6, 19)), ((0, 0), (0, 2), (0, 0), (6, 32))])
def test_kernels_are_the_definition(name, heads, groups, window, prefixes):
    rotated = (heads, groups) != (2, 2)
    check_kernels(SMALL[name], heads, groups, window, torch.float32, 4e-5, rotated=rotated, prefixes=prefixes)


@interpreted
def test_kernels_in_16_bits_are_near_the_definition():
    """Not bfloat16: the interpreter multiplies its bits as integers."""
    check_kernels(SMALL["packed"], 4, 2, None, torch.float16, 4 * torch.finfo(torch.float16).eps, rotated=True)


def check_kernels(blocks, heads, groups, window, dtype, limit, *, rotated, prefixes=()):
    from luthier.fast.kernels import attention_triton

    width, scale, total = 16, 0.3, (heads + 2 * groups) * 16
    lengths = (5, 1, 33, 16)
    raw, dout, cos, sin, room = inputs(lengths, heads, groups, width, dtype)
    tables = (cos, sin) if rotated else None
    schedule, (q, k, v) = Schedule.of(lengths, "cpu", prefixes), heads_of(raw, heads, groups)
    chosen = (blocks, blocks, blocks)
    out, lse = attention_triton.forward(q, k, v, schedule, scale, window, None, chosen)
    exact = [part.double() for part in (q, k, v)]
    want_out, want_lse = packed_attention_reference(*exact, schedule, scale=scale, window=window)
    near("out", out, want_out, limit)
    near("lse", lse, want_lse, limit)

    place = room[:, :total]
    attention_triton.backward(dout, q, k, v, out, lse, schedule, scale, window, tables, place, chosen)
    want = torch.empty(sum(lengths), total, dtype=torch.float64)
    packed_attention_backward_reference(
        dout.double(), *exact, want_out, want_lse, schedule, scale=scale, window=window,
        cos_sin=None if tables is None else (cos.double(), sin.double()), dqkv_out=want,
    )  # fmt: skip
    for name, got, wanted in zip(
        ("dq", "dk", "dv"), heads_of(place, heads, groups), heads_of(want, heads, groups), strict=True
    ):
        near(name, got, wanted, limit)
    assert (room[:, total:] == MARGIN).all(), "the gradient's margin was written"


def near(name: str, got: Tensor, want: Tensor, limit: float) -> None:
    error = float((got.double() - want).norm() / want.norm().clamp_min(1.0))
    assert error <= limit, f"{name}: relative error {error:.2e} over {limit:.1e}"
