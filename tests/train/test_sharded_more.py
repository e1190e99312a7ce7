"""Contract: what FSDP2 is combined with (preferences, modules trained in full beside adapters, new tokens, ...) takes
the trajectory of one process.

One torchrun launch (gloo) runs all cases of `sharded_worker.py`; the same cases run here in one process.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.runs.folder import RunFolder
from luthier.train.checkpoint import load_tensors
from luthier.train.distributed.shards import load_whole
from tests.train.sharded_worker import CASES, RESUMED
from tests.train.test_processes import half
from tests.train.torchrun import run_workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
EXACT = 5e-5
APART = {"adamw8_odd": 5e-3}
"""Where state differs from one process' by design."""


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    torch.set_num_threads(1)
    return {name: case(folder / name, 1) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def two(one, tmp_path_factory) -> Path:
    """Folder of the two-process runs."""
    folder = tmp_path_factory.mktemp("two")
    for name in RESUMED:
        half(one[name.removeprefix("resumed_")].folder.path, folder / name)
    run_workers("tests.train.sharded_worker", folder, processes=2, timeout=800)
    return folder


def facts(folder: Path, name: str, rank: int) -> dict:
    return json.loads((folder / f"{name}-{rank}.json").read_text())


@pytest.mark.parametrize("name", [*CASES, *RESUMED])
def test_two_processes_take_the_trajectory_of_one(two, one, name):
    single = one[name.removeprefix("resumed_")]
    mine = {key: p.detach() for key, p in single.model.named_parameters() if p.requires_grad}
    theirs = [load_file(two / f"{name}-{rank}.safetensors") for rank in (0, 1)]
    assert single.moved >= 1e-3
    assert set(mine) == set(theirs[0])
    assert max(float((mine[key] - theirs[0][key]).abs().max()) for key in mine) <= APART.get(name, EXACT)
    assert all(torch.equal(theirs[0][key], theirs[1][key]) for key in mine), "both processes hold the same weights"
    if name in APART:
        return
    lines = RunFolder(two / name).read_lines("metrics.jsonl")
    for ours, other in zip(single.folder.read_lines("metrics.jsonl"), lines, strict=True):
        assert set(ours) == set(other)
        for key in ("step", "tokens", "trained_tokens", "eval_tokens", "epoch", "learning_rate"):
            assert ours.get(key) == other.get(key), "no row is dropped or repeated"
        for key in set(ours) - {"seconds", "tokens_per_second", "token_accuracy"}:
            assert ours[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), key
        for key in ("loss", "eval_loss"):
            assert ours.get(key, 0.0) == pytest.approx(other.get(key, 0.0), rel=5e-6)


@pytest.mark.parametrize("name", [*CASES, *RESUMED])
def test_the_shards_are_real(two, name):
    for rank in (0, 1):
        found = facts(two, name, rank)
        assert found["processes"] == 2
        assert "FSDPModule" in found["layer"]
        adapters = any("lora" in key for key in found["names"])
        assert found["trained"] == (["Tensor"] if adapters else ["DTensor"])
        assert found["frozen"] == (["DTensor"] if adapters else [])


@pytest.mark.parametrize("name", ["saved", "saved_tied", "tokens", "tokens_tied"])
def test_what_is_trained_beside_adapters_is_what_was_asked_for(two, name):
    names = [key for key in facts(two, name, 0)["names"] if "lora" not in key]
    kind = "modules_to_save" if name.startswith("saved") else "trainable_tokens"
    tables = 1 if name.endswith("tied") else 2
    assert len(names) == tables and all(kind in key for key in names), names


@pytest.mark.parametrize("name", [*CASES])
def test_the_result_is_that_of_one_process_in_plain_files(two, one, name):
    (mine,), (theirs,) = (
        sorted((folder / "final").glob("*.safetensors")) for folder in (one[name].folder.path, two / name)
    )
    first, second = load_file(mine), load_file(theirs)
    assert {key: value.shape for key, value in first.items()} == {key: value.shape for key, value in second.items()}
    assert max(float((first[key] - second[key]).abs().max()) for key in first) <= APART.get(name, EXACT)


@pytest.mark.parametrize("name", ["halved_forward", "halved_backward", "halved_lora", "halved_before"])
def test_memory_that_ran_out_in_one_process_halves_the_micro_batches_of_both(two, name):
    sizes = [facts(two, name, rank)["micro_batch"] for rank in (0, 1)]
    assert sizes[0] == sizes[1]
    events = [line for line in RunFolder(two / name).read_lines("events.jsonl") if line["event"] == "memory_halved"]
    if name == "halved_before":
        assert sizes[0]["tokens"] <= 120
        assert {line["during"] for line in events} == {"calibration"}
    else:
        assert sizes[0] == {"sequences": 1, "tokens": None}
        assert [line["step"] for line in events] == [2]


def test_moments_are_in_8_bits_where_shards_are_whole_blocks(two, one):
    def of_tables(folder, load):
        return {key for key in load(folder / "checkpoints/step-6", "optimizer") if key.startswith("lm_head")}

    codes = {f"lm_head.weight/{key}" for key in ("step", "state1", "absmax1", "state2", "absmax2")}
    moments = {f"lm_head.weight/{key}" for key in ("step", "exp_avg", "exp_avg_sq")}
    assert of_tables(two / "adamw8", load_whole) == codes
    assert of_tables(two / "adamw8_odd", load_whole) == moments
    assert of_tables(one["adamw8_odd"].folder.path, load_tensors) == codes
    mine = load_tensors(one["adamw8"].folder.path / "checkpoints/step-6", "optimizer")
    theirs = load_whole(two / "adamw8/checkpoints/step-6", "optimizer")
    assert {key: value.numel() for key, value in mine.items()} == {key: value.numel() for key, value in theirs.items()}
    assert all(torch.equal(theirs[key], mine[key]) for key in mine if "/state" in key)


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_of_one_process_goes_on_with_two(two, name):
    assert facts(two, name, 0)["resumed_from"] == 3


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_of_two_processes_goes_on_with_one(two, one, tmp_path, name):
    whole = name.removeprefix("resumed_")
    half(two / whole, tmp_path / "run")
    if (two / "reference").exists():
        shutil.copytree(two / "reference", tmp_path / "reference")
    run = RESUMED[name](tmp_path / "run", 1)
    assert run.result.resumed_from == 3
    assert float((run.weights - one[whole].weights).abs().max()) <= EXACT
