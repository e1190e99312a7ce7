"""Contract: as `test_zero_saved.py`, for ZeRO-1, weights in bf16, three processes and more changes of strategy; and
what writing and going on takes of host memory."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.train.support import FULL
from tests.train.torchrun import run_workers
from tests.train.worker import thirteen
from tests.train.zero_saved_memory_worker import FILE
from tests.train.zero_saved_support import facts_of, require_drawn, require_same_shards
from tests.train.zero_saved_worker import MORE

pytest.importorskip("deepspeed", reason="pip install 'luthier[deepspeed]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MIB = 1 << 20


def require_shards(folder, names, *, processes):
    require_drawn(folder / "fsdp2/step-2")
    for name in names:
        for step in (2, 3, 4):
            require_drawn(folder / name / f"step-{step}")
            require_same_shards(folder / name / f"step-{step}", folder / "fsdp2/step-2", processes=processes)
        for rank in range(processes):
            assert facts_of(folder, rank)[name] == []


def test_more_strategies(tmp_path):
    run_workers("tests.train.zero_saved_worker", tmp_path / "two", *MORE, processes=2, timeout=600)
    require_shards(tmp_path / "two", [name for name in MORE if " " not in name], processes=2)
    torch.set_num_threads(1)
    one = thirteen(tmp_path / "one", 1, FULL)
    mine = dict(one.model.named_parameters())
    for name in (name for name in MORE if " to " in name):
        assert json.loads((tmp_path / "two" / name / "result.json").read_text())["resumed_from"] == 3
        theirs = load_file(tmp_path / "two" / name / "weights.safetensors")
        assert max(float((mine[key].detach() - theirs[key]).abs().max()) for key in mine) <= 5e-5


def test_three_processes_whose_rows_are_cut_elsewhere(tmp_path):
    """64 rows: 22, 22 and 20, while ZeRO-3 cuts within a row."""
    run_workers("tests.train.zero_saved_worker", tmp_path, "zero2", "zero3", "zero3-bf16", processes=3, timeout=600)
    require_shards(tmp_path, ["zero2", "zero3", "zero3-bf16"], processes=3)


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_no_process_holds_a_checkpoint(tmp_path, strategy):
    """What `malloc` gave out above what was there before, and `RssAnon` (`anonymous.py`)."""
    run_workers("tests.train.zero_saved_memory_worker", tmp_path, strategy, processes=2, timeout=600)
    whole, largest = (facts_of(tmp_path, 0)[name] for name in ("bytes", "largest"))
    for rank in (0, 1):
        found = facts_of(tmp_path, rank)[strategy]
        print({name: f"{size / MIB:.1f} MiB" for name, size in found.items()}, f"{whole / MIB:.1f} MiB of masters")
        assert found["writing held"] <= 3 * FILE + 2 * largest + 4 * MIB, "of a checkpoint of 3 times `whole`"
        assert found["writing"] <= whole
        assert found["from shards held"] <= 4 * largest, "the moments are twice `whole`"
        assert found["result held"] <= 2 * FILE + 4 * MIB
