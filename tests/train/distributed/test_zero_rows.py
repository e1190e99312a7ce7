"""How numbers go from DeepSpeed's cuts to rows, for any shapes, cuts and numbers of processes; without processes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.train.distributed import zero_rows
from luthier.train.distributed.zero_rows import Rows, _make, exchange, rows_of

SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(torch.Size)


def equal_parts(numel: int, processes: int) -> list[tuple[int, int]]:
    """As ZeRO-3 cuts, without what fills the last parts up."""
    size = -(-numel // processes)
    return [(min(rank * size, numel), min((rank + 1) * size, numel)) for rank in range(processes)]


@st.composite
def cut(draw) -> tuple[torch.Size, list[tuple[int, int]]]:
    """A shape, and any way to cut its numbers: as they lie in a group of ZeRO-2's, or as ZeRO-3 cuts them."""
    shape, processes = draw(SHAPES), draw(st.integers(1, 6))
    if draw(st.booleans()):
        return shape, equal_parts(shape.numel(), processes)
    inner = sorted(draw(st.lists(st.integers(0, shape.numel()), min_size=processes - 1, max_size=processes - 1)))
    return shape, list(pairwise([0, *inner, shape.numel()]))


def exchanged(monkeypatch, tensor: torch.Tensor, have, want) -> list[torch.Tensor]:
    """What each process has after all have exchanged; the collective is made by hand, after all have called it."""
    sent: dict[int, list[torch.Tensor]] = {}
    for giving in (True, False):
        found = []
        for rank in range(len(have)):

            def all_to_all(out, given, take, give, rank=rank, giving=giving):
                assert sum(give) == len(given) and sum(take) == len(out)
                if giving:
                    sent[rank] = list(given.split(give))
                else:
                    out.copy_(torch.cat([sent[other][rank] for other in range(len(have))]))

            monkeypatch.setattr(zero_rows.dist, "get_rank", lambda rank=rank: rank)
            monkeypatch.setattr(zero_rows.dist, "all_to_all_single", all_to_all)
            found.append(exchange(tensor[slice(*have[rank])], have=have, want=want))
    return found


@given(cut())
def test_each_process_gets_its_rows(found):
    shape, have = found
    whole = torch.randperm(shape.numel()).view(shape)
    expected = list(whole.chunk(len(have)))  # as torch cuts shards; the last processes may have none
    with pytest.MonkeyPatch.context() as patch:
        rows = exchanged(patch, whole.flatten(), have, rows_of(shape, len(have)))
    assert torch.equal(torch.cat(rows), whole.flatten())
    for rank, mine in enumerate(rows):
        assert torch.equal(mine, expected[rank].flatten() if rank < len(expected) else whole.flatten()[:0])


def test_nothing_is_sent_where_the_cuts_are_the_same(monkeypatch):
    """ZeRO-3, and a number of processes that divides the rows."""
    monkeypatch.setattr(zero_rows.dist, "all_to_all_single", lambda *_: pytest.fail("sent"))
    assert equal_parts(64 * 3, 4) == rows_of(torch.Size([64, 3]), 4)
    part = torch.arange(48)
    assert exchange(part, have=equal_parts(192, 4), want=rows_of(torch.Size([64, 3]), 4)) is part


@pytest.mark.parametrize(
    ("spans", "whole"),
    [
        ([(0, 3), (3, 6)], True), ([(0, 6), (0, 0)], True), ([(0, 0), (0, 6)], True), ([(0, 6), (6, 6)], True),
        ([(3, 6), (0, 3)], False),  # in another order
        ([(0, 3), (2, 6)], False), ([(0, 3), (4, 6)], False), ([(0, 3), (3, 5)], False), ([(0, 0), (0, 0)], False),
    ],
)  # fmt: skip
def test_spans_have_to_be_each_number_once(spans, whole):
    assert _make(spans, 6) is whole


class Parts:
    """Of one process, whose neighbour has the same numbers."""

    def __init__(self):
        self.shapes = {"a": torch.Size([2, 3])}

    def span(self, name):
        return 0, 3


def test_a_layout_that_is_not_known_ends_the_run(monkeypatch):
    from luthier.runtime.errors import RunFailed

    def gather(found, mine):
        found[:] = [mine, mine]

    monkeypatch.setattr(zero_rows.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(zero_rows.dist, "all_gather_object", gather)
    with pytest.raises(RunFailed, match="DeepSpeed holds a in another way") as caught:
        Rows(Parts(), {}, None)  # type: ignore[arg-type]
    assert caught.value.problems[0].code == "L317"
