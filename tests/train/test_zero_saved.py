"""Contract: DeepSpeed's strategies write the checkpoints that FSDP2 writes, part for part and bit for bit; any strategy
goes on from them; one that a process cannot write is absent, and the one before it is the newest.

One torchrun launch (gloo) runs `zero_saved_worker.py`. Planted and seen to fail: shards of two processes swapped, what
fills a partition up read in place of numbers, a last number left out of a span, a moment left out, one moment restored
as the other, counters lost, weights that are not set with their masters, a sum with zeros in place of an exchange.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.pipeline.score import _with_checkpoint
from luthier.train.checkpoint import checkpoints, verify
from tests.support.tiny import tiny_model, tiny_tokenizer
from tests.train.support import FULL, resolved
from tests.train.test_processes import half
from tests.train.torchrun import run_workers
from tests.train.worker import thirteen
from tests.train.zero_saved_support import facts_of, require_drawn, require_same_shards
from tests.train.zero_saved_worker import FEW

pytest.importorskip("deepspeed", reason="pip install 'luthier[deepspeed]'")
pytestmark = pytest.mark.slow  # a launch of two processes with DeepSpeed
CROSSED = [name for name in FEW if " to " in name]
ZERO = [name for name in FEW if name.startswith("zero") and " " not in name]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Folder of the two processes."""
    folder = tmp_path_factory.mktemp("two")
    run_workers("tests.train.zero_saved_worker", folder, *FEW, processes=2, timeout=280)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The same run in one process."""
    torch.set_num_threads(1)
    return thirteen(tmp_path_factory.mktemp("one"), 1, FULL)


@pytest.mark.parametrize("name", ZERO)
def test_partitions_become_the_shards_of_fsdp2(two, name):
    """From a whole checkpoint (2), from FSDP2's (3), and from this one by FSDP2 (4)."""
    require_drawn(two / "fsdp2/step-2")
    for step in (2, 3, 4):
        require_drawn(two / name / f"step-{step}")
        require_same_shards(two / name / f"step-{step}", two / "fsdp2/step-2", processes=2)
    assert facts_of(two, 0)[name] == facts_of(two, 1)[name] == [], "weights are their masters, rounded"


@pytest.mark.parametrize("name", CROSSED)
def test_a_run_goes_on_under_another_strategy(two, one, name):
    result = json.loads((two / name / "result.json").read_text())
    assert (result["resumed_from"], result["processes"]) == (3, 2)
    mine, theirs = dict(one.model.named_parameters()), load_file(two / name / "weights.safetensors")
    assert one.moved >= 1e-3 and set(mine) == set(theirs)
    assert max(float((mine[key].detach() - theirs[key]).abs().max()) for key in mine) <= 5e-5


@pytest.mark.parametrize("first", [name.split(" to ")[0] for name in CROSSED])
def test_one_process_goes_on_from_shards(two, one, tmp_path, first):
    half(two / f"started-{first}", tmp_path / "run")
    run = thirteen(tmp_path / "run", 1, FULL)
    assert run.result.resumed_from == 3
    assert float((run.weights - one.weights).abs().max()) <= 5e-5


@pytest.mark.parametrize("first", [name.split(" to ")[0] for name in CROSSED])
def test_what_is_in_shards_is_scored_and_is_the_result(two, first):
    """`luthier eval --checkpoint`; the result's weights, which are put together one by one, are the same bits."""
    run = two / f"started-{first}"
    recipe = resolved(method=FULL).recipe
    model = _with_checkpoint(tiny_model(seed=9), tiny_tokenizer(), recipe, run / "checkpoints/step-6")
    final = load_file(run / "final/model.safetensors")
    found = dict(model.named_parameters())
    assert set(final) == set(found) and all(torch.equal(found[name].detach(), final[name]) for name in final)


def test_a_process_that_cannot_write_leaves_the_checkpoint_before(two):
    found = [facts_of(two, rank)["failing"] for rank in (0, 1)]
    told, follows = found[1]["told"], found[0]["told"]
    assert (told["type"], told["exit_code"]) == ("EnvironmentProblem", 4) and "File too large" in told["text"]
    assert follows["type"] == "RunFailed" and "process 1 could not write" in follows["text"]
    assert found[0]["left"] == found[1]["left"] == ["step-4"], "nothing of step 5 is left"
    assert found[0]["kept"] == ["step-4", "step-7"], "later ones are written; of old ones the best stays"
    assert [item.step for item in checkpoints(two / "failing")] == [4, 7] and verify(two / "failing/step-7") == []
