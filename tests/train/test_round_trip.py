"""Updates of tensors in host memory in pieces that travel: bit for bit the update of all tensors where they are."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.plan.states import TRAVELLING
from luthier.train.adamw8 import AdamW8
from luthier.train.master_adamw import MasterAdamW
from luthier.train.round_trip import IN_FLIGHT, PIECE, AtOnce, RoundTrip
from tests.support.often import often

CPU = torch.device("cpu")


class Travelling(RoundTrip):
    """Everything but gradients is copied, as between host memory and a GPU."""

    def __init__(self, piece: int, away: set[int] | None = None) -> None:
        super().__init__(CPU, piece=piece)
        self.away, self.most = away, 0

    def _stays(self, tensor: torch.Tensor) -> bool:
        return self.away is not None and tensor.untyped_storage().data_ptr() in self.away

    def update(self, kernel, lists, **settings):
        def counting(*there, **more):
            assert all(mine.data_ptr() != one.data_ptr() for mine in lists[0] for one in there[0])
            self.most = max(self.most, sum(one.numel() for one in there[0]))
            kernel(*there, **more)

        super().update(counting, lists, **settings)


def update(kind, sizes, run, *, live_type=torch.bfloat16, steps=3):
    """Masters, live parameters and states after some steps."""
    generator = torch.Generator().manual_seed(5)
    masters = [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in sizes]
    live = {one: one if live_type is None else torch.nn.Parameter(one.detach().to(live_type)) for one in masters}
    optimizer = kind([{"params": masters[::2], "weight_decay": 0.1}, {"params": masters[1::2]}], lr=1e-2)
    for _ in range(steps):
        pairs = [(one, torch.randn(one.shape, generator=generator).bfloat16()) for one in masters]
        optimizer.step_with(pairs, live, 0.5, run=run)
    states = [{name: value.clone() for name, value in optimizer.state[one].items()} for one in masters]
    return [one.detach().clone() for one in masters], [live[one].detach().clone() for one in masters], states


def equal(one, other):
    return all(
        torch.equal(a, b)
        for left, right in zip(one[:2], other[:2], strict=True)
        for a, b in zip(left, right, strict=True)
    ) and all(torch.equal(a[name], b[name]) for a, b in zip(one[2], other[2], strict=True) for name in a)


@settings(max_examples=often(40))
@given(
    kind=st.sampled_from([MasterAdamW, AdamW8]), live=st.sampled_from([torch.bfloat16, None]),
    sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=6), blocks=st.integers(1, 40),
)  # fmt: skip
def test_pieces_change_no_bit(kind, live, sizes, blocks):
    travelling = Travelling(256 * blocks)
    alone = update(kind, sizes, AtOnce(), live_type=live)
    assert equal(alone, update(kind, sizes, travelling, live_type=live))
    assert 0 < travelling.most <= 256 * blocks


def test_a_matrix_is_cut_between_blocks():
    trip = RoundTrip(CPU, piece=512)
    pieces = list(trip._pieces([100, 1300, 256]))
    # A tensor's last block counts whole: 100 of the first piece are 256.
    assert pieces == [
        [(0, 0, 100), (1, 0, 256)], [(1, 256, 768)], [(1, 768, 1280)], [(1, 1280, 1300), (2, 0, 256)],
    ]  # fmt: skip


def test_a_matrix_keeps_its_shape():
    masters = [torch.nn.Parameter(torch.ones(6, 300))]
    optimizer = MasterAdamW(masters, lr=0.1)
    optimizer.step_with([(masters[0], torch.ones(6, 300))], {masters[0]: masters[0]}, 1.0, run=Travelling(256))
    assert masters[0].shape == optimizer.state[masters[0]]["exp_avg"].shape == (6, 300)
    torch.testing.assert_close(masters[0].detach(), torch.full((6, 300), 1 - 0.1 - 0.1 * 0.01), rtol=1e-5, atol=0)


def test_the_norm_is_that_of_all_at_once():
    """Bit for bit: clipping by another last bit is another run."""
    generator = torch.Generator().manual_seed(1)
    kinds = (torch.bfloat16, torch.float32, torch.bfloat16)
    gradients = [torch.randn(900, generator=generator).to(kinds[place % 3]) for place in range(40)]
    for blocks in (1, 8, 20):  # a gradient at a time, and several
        found = RoundTrip(CPU, piece=256 * blocks).norm(gradients)
        assert torch.equal(found, AtOnce().norm(gradients))
    expected = torch.cat([one.double() for one in gradients]).norm()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [MasterAdamW, AdamW8])
def test_a_scale_that_is_no_number_changes_nothing(kind):
    """Nor parameters, of which the kernel only writes the pieces that it was given."""
    masters = [torch.nn.Parameter(torch.randn(5000)) for _ in range(2)]
    live = {one: torch.nn.Parameter(one.detach().bfloat16()) for one in masters}
    before = [one.detach().clone() for one in [*masters, *live.values()]]
    optimizer = kind(masters, lr=0.1)
    pairs = [(one, torch.ones(5000)) for one in masters]
    optimizer.step_with(pairs, live, torch.tensor(torch.nan), run=Travelling(512))
    assert all(torch.equal(one, other) for one, other in zip(before, [*masters, *live.values()], strict=True))


class Stream:
    """Counts how often it was waited for."""

    waits = 0

    def synchronize(self):
        self.waits += 1


def test_nothing_is_under_way_after_an_error():
    class Broken(RoundTrip):
        def _travel(self, kernel, lists, settings):
            raise torch.OutOfMemoryError

    trip = Broken(CPU)
    trip._up, trip._down = Stream(), Stream()
    with pytest.raises(torch.OutOfMemoryError):
        trip.update(lambda *lists, **more: None, [[], [], []])
    assert trip._up.waits == trip._down.waits == 1


class Queue:
    """Stands for a stream: the operations that are over when the next one of it begins."""

    def __init__(self, name):
        self.name, self.over, self.count = name, set(), 0

    def record_event(self):
        return frozenset(self.over)

    def wait_event(self, event):
        self.over |= event

    def synchronize(self):
        pass

    def begins(self, needed):
        assert needed <= self.over, f"{self.name} {self.count} does not wait for {sorted(needed - self.over)}"
        self.over.add((self.name, self.count))
        self.count += 1


class Ordered(Travelling):
    """`Travelling` over three streams: whatever they do, each piece has come before its update, and gone after it,
    and its memory is used again when it is gone."""

    def __init__(self, piece):
        super().__init__(piece)
        self._up, self._down, self.now = Queue("up"), Queue("down"), Queue("update")
        self.there, self.gone, self.highest = 0, set(), 0

    def _bring(self, parts, lists, *, whole):
        self.there += parts is not None
        self.highest = max(self.highest, self.there)
        return super()._bring(parts, lists, whole=whole)

    @contextmanager
    def stream(self, stream):
        stream.begins(self.gone if stream is self._up else {("update", stream.count)})
        yield

    def _forget(self, piece):
        super()._forget(piece)
        assert not piece.there and ("down", len(self.gone)) in self.now.over
        self.gone.add(("down", len(self.gone)))
        self.there -= 1

    def update(self, kernel, lists, **settings):
        def ordered(*there, **more):
            self.now.begins({("up", self.now.count)})
            kernel(*there, **more)

        super().update(ordered, lists, **settings)


@pytest.mark.parametrize("sizes", [[100], [5000], [256, 7, 3000, 1, 900, 4096]])
def test_streams_wait_for_one_another(monkeypatch, sizes):
    trip = Ordered(512)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: trip.now)
    monkeypatch.setattr(torch.cuda, "stream", trip.stream)
    assert equal(update(MasterAdamW, sizes, AtOnce()), update(MasterAdamW, sizes, trip))
    assert trip.now.count == trip._up.count == trip._down.count == len(trip.gone) and not trip.there
    assert trip.highest <= IN_FLIGHT + 1, "pieces on the device"
    assert trip.highest * PIECE <= TRAVELLING


class Pages:
    """Stands for CUDA's runtime: which addresses are registered. What is refused leaves an error, as there."""

    def __init__(self, *, refuses=False):
        self.held, self.refuses = {}, refuses

    def cudaHostRegister(self, address, size, flags):
        if self.refuses:
            return 2
        assert address not in self.held
        self.held[address] = size
        return 0

    def cudaHostUnregister(self, address):
        del self.held[address]


class Pinning(Travelling):
    """`Travelling`, which pins as on a GPU."""

    def update(self, kernel, lists, **settings):
        self._pin([one for tensors in (lists[0], *lists[3:]) for one in tensors])
        super().update(kernel, lists, **settings)


def walk(masters, run):
    """A step of an optimizer of its own; returns the addresses of masters and moments."""
    optimizer = MasterAdamW(masters, lr=0.1)
    optimizer.step_with([(one, torch.ones_like(one)) for one in masters], {one: one for one in masters}, 1.0, run=run)
    return {one.data_ptr() for one in masters} | {
        optimizer.state[one][name].data_ptr() for one in masters for name in ("exp_avg", "exp_avg_sq")
    }


@pytest.fixture
def pages(monkeypatch):
    found = Pages()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: found)
    return found


def test_pages_of_an_optimizer_that_is_gone_are_given_back(pages):
    """`lr-find` makes an optimizer for each walk."""
    masters, run = [torch.nn.Parameter(torch.randn(3000)) for _ in range(3)], Pinning(512)
    for _ in range(3):
        assert walk(masters, run) == set(pages.held)
        assert set(pages.held.values()) == {12000}
        run.release()
        assert not pages.held and not run._seen


def test_pages_stay_while_they_are_registered(pages):
    """Also if the parameter has got others: what is freed while CUDA knows it would be another's."""
    master, run = torch.nn.Parameter(torch.randn(3000)), Pinning(512)
    walk([master], run)
    old = master.data_ptr()
    master.data = torch.randn(3000)
    walk([master], run)
    assert {old, master.data_ptr()} <= set(pages.held) and old != master.data_ptr()
    assert {one.data_ptr() for one in run._pinned} == set(pages.held)
    run.release()
    assert not pages.held


def test_refused_pages_are_said_once_and_the_step_is_made(pages, monkeypatch):
    pages.refuses = True
    cleared, said = [], []
    monkeypatch.setattr("luthier.train.round_trip.note", said.append)
    monkeypatch.setattr("luthier.train.round_trip._clear_error", cleared.append)
    masters, run = [torch.nn.Parameter(torch.ones(3000)) for _ in range(2)], Pinning(512)
    walk(masters, run)
    assert all(one.max() < 0.95 for one in masters)
    assert len(cleared) == 6, "each refusal leaves an error"
    assert len(said) == 1 and "could not be pinned" in said[0]
