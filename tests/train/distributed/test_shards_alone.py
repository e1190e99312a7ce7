"""What is decided about shards without other processes: whole blocks, what stays whole, how passes are dealt."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard

from luthier.model.adapters import apply_method
from luthier.recipe.schema import MethodSection
from luthier.runtime.errors import RunFailed
from luthier.train.distributed.fsdp import kept_whole_line
from luthier.train.distributed.roll_call import GivenUp, RollCall
from luthier.train.distributed.sharded_weights import _row_group
from luthier.train.passes import dealt
from luthier.train.processes import require_equal
from tests.support.tiny import tiny_model


def like(*shape: int, processes: int, copies: int = 1) -> SimpleNamespace:
    """What of a DTensor is asked for; with copies its mesh has an axis for them."""
    sizes, placements = [processes], [Shard(0)]
    if copies > 1:
        sizes, placements = [copies, processes], [Replicate(), Shard(0)]
    mesh = SimpleNamespace(size=lambda axis=None: math.prod(sizes) if axis is None else sizes[axis])
    numel = torch.Size(shape).numel()
    return SimpleNamespace(shape=torch.Size(shape), numel=lambda: numel, device_mesh=mesh, placements=placements)


@pytest.mark.parametrize(
    ("shape", "processes", "rows"),
    [
        ((4096, 4096), 8, 1),  # each row is 16 blocks
        ((600, 64), 2, 4),  # four rows are a block, and 300 rows are 75 of them
        ((602, 64), 2, None),  # the last shard would end within a block
        ((600, 64), 16, None),  # shards of 38 rows
        ((49152, 576), 8, 4),
        ((8192,), 8, 256),  # a norm
        ((1, 256), 2, 1),  # one process has the row, the other nothing
    ],
)  # fmt: skip
def test_rows_that_are_whole_blocks(shape, processes, rows):
    assert _row_group(like(*shape, processes=processes), 256) == rows
    # Copies of the model cut no more rows.
    assert _row_group(like(*shape, processes=processes, copies=3), 256) == rows


@pytest.mark.parametrize(
    ("method", "tokens", "said"),
    [
        ({"name": "lora", "r": 4}, (), "adapters ("),
        ({"name": "lora", "r": 4, "modules_to_save": ["embed_tokens", "lm_head"]}, (), "trained of lm_head (0.1 MiB)"),
        ({"name": "lora", "r": 4}, (7, 9), "trained of embed_tokens (0.0 MiB)"),
    ],
)
def test_what_stays_whole_beside_shards_is_said(method, tokens, said):
    model = apply_method(tiny_model(), MethodSection(**method), seed=0, new_token_ids=tokens).model
    line = kept_whole_line(model)
    assert line is not None and said in line


def test_nothing_of_a_model_that_is_trained_itself_stays_whole():
    assert kept_whole_line(apply_method(tiny_model(), MethodSection(name="full"), seed=0).model) is None


@pytest.mark.parametrize(("rank", "together", "expected"), [(0, True, ([0, 2, 4], 0)), (1, True, ([1, 3], 1)),
                                                            (1, False, ([1, 3], 0))])  # fmt: skip
def test_every_process_makes_as_many_passes_where_they_are_made_together(rank, together, expected):
    trainer = SimpleNamespace(dealt=(rank, 2), engine=SimpleNamespace(passes_together=together))
    assert dealt(trainer, range(5)) == expected  # type: ignore[arg-type]


@pytest.fixture
def alone(tmp_path):
    """A group of one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_pass_that_was_left_can_be_made_again(alone, monkeypatch):
    """A gradient of whole weights must not be there twice."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    mesh = init_device_mesh("cpu", (1,))
    for part in (*model, model):
        fully_shard(part, mesh=mesh)
    if not RollCall.possible(model):
        pytest.skip("this torch cannot begin a pass again")
    roll, inputs = RollCall(model), torch.ones(2, 4)
    model(inputs).sum().backward()
    expected = [parameter.grad.full_tensor() for parameter in model.parameters()]
    model.zero_grad()

    def missing(answers, **_):
        answers += 1

    with monkeypatch.context() as others:
        others.setattr(torch.distributed, "all_reduce", missing)
        with pytest.raises(GivenUp), roll.calling(True):
            model(inputs).sum().backward()
    roll.leave(missing=False)
    assert all(parameter.grad is None for parameter in model.parameters())
    with roll.calling(True):
        model(inputs).sum().backward()
    assert all(torch.equal(p.grad.full_tensor(), e) for p, e in zip(model.parameters(), expected, strict=True))


def test_different_starts_of_processes_end_the_run(monkeypatch):
    import accelerate.utils

    accelerator = SimpleNamespace(num_processes=3)
    monkeypatch.setattr(accelerate.utils, "gather_object", lambda mine: [*mine, *mine, "another"])
    with pytest.raises(RunFailed, match="differs between process 0 and 2"):
        require_equal(accelerator, "one", what="it")  # type: ignore[arg-type]
    monkeypatch.setattr(accelerate.utils, "gather_object", lambda mine: mine * 3)
    require_equal(accelerator, "one", what="it")  # type: ignore[arg-type]


@pytest.mark.parametrize(("device", "asked", "every"), [("cpu", "", True), ("meta", "", False), ("meta", "1", True)])
def test_calls_in_every_step_beside_a_gpu_are_asked_for(alone, monkeypatch, device, asked, every):
    """`meta` stands for any device that is no CPU."""
    monkeypatch.setenv("LUTHIER_ROLL_CALL", asked)
    assert RollCall(torch.nn.Linear(2, 2, device=device)).in_every_step is every
