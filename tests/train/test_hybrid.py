"""Contract: four processes that hold two copies of the model, each in two shards (HSDP), take the trajectory of one.

One torchrun launch (gloo) runs all cases of `hybrid_worker.py`; the same cases run here in one process. Planted and
seen to fail: a norm over all copies instead of one, gradients not averaged between copies, files of both copies.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.runs.folder import RunFolder
from luthier.train.checkpoint import verify
from tests.train.hybrid_worker import CASES, RESUMED, half
from tests.train.torchrun import run_workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
EXACT = 5e-5
RANKS = range(4)
REGROUPED = ("four_to_hybrid", "hybrid_to_four")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    torch.set_num_threads(1)
    return {name: case(folder / name, 1) for name, case in CASES.items() if not name.endswith("_hollow")}


@pytest.fixture(scope="module")
def four(one, tmp_path_factory) -> Path:
    """Folder of the runs of four processes."""
    folder = tmp_path_factory.mktemp("four")
    for name in RESUMED:
        half(one[name.removeprefix("resumed_")].folder.path, folder / name)
    run_workers("tests.train.hybrid_worker", folder, processes=4, timeout=1200)
    return folder


def facts(folder: Path, name: str, rank: int) -> dict:
    return json.loads((folder / f"{name}-{rank}.json").read_text())


def single(one, name: str):
    name = "full" if name in REGROUPED else name.removeprefix("resumed_").removesuffix("_hollow")
    return one[name]


@pytest.mark.parametrize("name", [*CASES, *RESUMED, *REGROUPED])
def test_four_processes_take_the_trajectory_of_one(four, one, name):
    alone = single(one, name)
    wanted = {key: p.detach() for key, p in alone.model.named_parameters() if p.requires_grad}
    assert alone.moved >= 1e-3
    found = [load_file(four / f"{name}-{rank}.safetensors") for rank in RANKS]
    assert found[0].keys() == wanted.keys()
    apart = max(float((found[0][key] - wanted[key]).abs().max()) for key in wanted)
    print(f"{name}: {apart:.1e}")
    assert apart <= EXACT
    assert all(torch.equal(other[key], found[0][key]) for other in found for key in wanted), "copies are equal"
    lines = RunFolder(four / name).read_lines("metrics.jsonl")
    for mine, theirs in zip(alone.folder.read_lines("metrics.jsonl"), lines, strict=True):
        assert set(mine) == set(theirs)
        for key in ("step", "tokens", "trained_tokens", "eval_tokens", "epoch", "learning_rate"):
            assert mine.get(key) == theirs.get(key), "no row is dropped or repeated"
        for key in set(mine) - {"seconds", "tokens_per_second", "token_accuracy"}:
            assert mine[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), key
        for key in ("loss", "eval_loss"):
            assert mine.get(key, 0.0) == pytest.approx(theirs.get(key, 0.0), rel=5e-6)


@pytest.mark.parametrize("name", [*CASES, *RESUMED, "four_to_hybrid"])
def test_there_really_are_two_copies_in_two_shards_each(four, name):
    for rank in RANKS:
        found = facts(four, name, rank)
        assert (found["world"], found["processes"], found["wrapper"]) == (4, 4, "Passes")
        assert "FSDPModule" in found["layer"]
        assert found["mesh"] == [[0, 1], [2, 3]]
        assert found["placements"] == ["(Replicate(), Shard(dim=0))"]
        assert found["copy"] == ([0, 1] if rank < 2 else [2, 3])
        assert found["timeouts"] == [1020.0, 1020.0], "the watch speaks before torch does"
        assert 0.49 <= found["held"] / found["whole"] <= 0.51
        adapters = "lora" in name or "shared_by_all" in name
        assert found["trained"] == (["Tensor"] if adapters else ["DTensor"])
    assert sum(facts(four, name, rank)["held"] for rank in (0, 1)) == facts(four, name, 0)["whole"]


def test_the_other_numbers_are_four_shards(four):
    for name in ("four", "hybrid_to_four"):
        found = [facts(four, name, rank) for rank in RANKS]
        assert all(one["mesh"] == [0, 1, 2, 3] and one["copy"] == [0, 1, 2, 3] for one in found)
        assert sum(one["held"] for one in found) == found[0]["whole"]


def test_one_copy_writes_the_checkpoint_and_it_is_whole(four, one):
    step = four / "full/checkpoints/step-3"
    assert verify(step) == []
    written = sorted(path.name for path in step.glob("*.safetensors"))
    assert [name[:11] for name in written] == ["shard-00001", "shard-00002"], "of processes 0 and 1 alone"
    held = sum((step / name).stat().st_size for name in written)
    of_one = single(one, "full").folder.path.glob("checkpoints/step-3/*.safetensors")
    whole = sum(path.stat().st_size for path in of_one)
    assert held <= 1.1 * whole


@pytest.mark.parametrize("name", ["full", "lora", "qlora", "lora_fp8", "spectrum", "full_offloaded"])
def test_the_result_is_that_of_one_process_in_plain_files(four, one, name):
    folders = (single(one, name).folder.path, four / name)
    (mine,), (theirs,) = (sorted((folder / "final").glob("*.safetensors")) for folder in folders)
    first, second = load_file(mine), load_file(theirs)
    assert {key: value.shape for key, value in first.items()} == {key: value.shape for key, value in second.items()}
    assert max(float((first[key] - second[key]).abs().max()) for key in first) <= EXACT


@pytest.mark.parametrize("name", ["full", "lora"])
def test_shards_read_by_rows_are_the_shards_of_a_whole_model(four, name):
    mine, theirs = (load_file(four / f"{which}-0.safetensors") for which in (name, f"{name}_hollow"))
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_memory_that_ran_out_in_the_second_copy_halves_the_micro_batches_of_both(four):
    sizes = [facts(four, "halved", rank)["micro_batch"] for rank in RANKS]
    assert sizes == [{"sequences": 1, "tokens": None}] * 4
    lines = RunFolder(four / "halved").read_lines("events.jsonl")
    events = [line for line in lines if line["event"] == "memory_halved"]
    assert [line["step"] for line in events] == [2]


@pytest.mark.parametrize("name", [*RESUMED, *REGROUPED])
def test_runs_of_other_numbers_went_on(four, name):
    assert facts(four, name, 0)["resumed_from"] == 3


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_in_two_copies_goes_on_with_one_process(four, one, tmp_path, name):
    whole = name.removeprefix("resumed_")
    half(four / whole, tmp_path / "run")
    run = RESUMED[name](tmp_path / "run", 1)
    assert run.result.resumed_from == 3
    assert float((run.weights - one[whole].weights).abs().max()) <= EXACT
