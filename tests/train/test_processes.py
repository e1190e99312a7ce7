"""Contract: two processes take the trajectory of one, see every row once, and fail together.

One torchrun launch (gloo) runs all cases of `worker.py`; the same cases run here in one process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.runs.folder import RunFolder
from luthier.train.checkpoint import load_tensors, verify
from luthier.train.distributed.shards import load_whole
from tests.support.tiny import save_tiny
from tests.train.packed_cases import fp8_base
from tests.train.worker import CASES, RESUMED

pytestmark = pytest.mark.slow  # `make test-processes`, which CI runs

ROOT = Path(__file__).parents[2]

EXPORTED = {
    "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
}  # fmt: skip
"""Of `accelerate launch`: whatever it exports, our own wrapper and precision stay (`train/processes.py`)."""


def half(source: Path, target: Path) -> None:
    """A run that was interrupted after its checkpoint of step 3."""
    shutil.copytree(source, target)
    shutil.rmtree(target / "checkpoints/step-6")
    shutil.rmtree(target / "final")


@pytest.fixture(scope="module")
def two(one, tmp_path_factory) -> Path:
    """Folder of the two-process runs."""
    folder = tmp_path_factory.mktemp("two")
    save_tiny(folder / "base")
    for name in RESUMED:
        half(one[name.removeprefix("resumed_")].folder.path, folder / name)
    environment = {
        **os.environ, **EXPORTED, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "LUTHIER_FORCE_CPU": "1",
    }  # fmt: skip
    launch = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "tests.train.worker", str(folder),
    ]  # fmt: skip
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    torch.set_num_threads(1)
    return {name: case(folder / name, 1) for name, case in CASES.items()}


def facts(folder: Path, rank: int) -> dict:
    return json.loads((folder / f"facts-{rank}.json").read_text())


def weights(folder: Path, name: str, rank: int = 0) -> torch.Tensor:
    tensors = load_file(folder / f"{name}-{rank}.safetensors")
    return torch.cat([tensors[key].double().flatten() for key in sorted(tensors)])


def test_there_really_are_two_processes_under_ddp(two):
    for rank in (0, 1):
        assert facts(two, rank)["processes"] == 2
        assert facts(two, rank)["wrapper"] == "DistributedDataParallel"
        assert "CPU" in facts(two, rank)["kind"]


def test_there_really_are_shards_under_fsdp2_and_the_engine_runs_its_layers(two):
    held = [facts(two, rank)["sharded"]["held"] for rank in (0, 1)]
    for rank in (0, 1):
        found = facts(two, rank)["sharded"]
        assert found["wrapper"] == "Passes"
        assert found["root"] == "FSDPRoot"
        assert found["layer"] == "PackedFSDPLlamaDecoderLayer"
        assert found["parameter"] == "DTensor"
    assert sum(held) == facts(two, 0)["sharded"]["whole"]
    assert max(held) <= 0.51 * sum(held)
    assert facts(two, 0)["held"] == facts(two, 0)["whole"]


def test_shards_read_by_rows_are_the_shards_of_a_whole_model(two):
    assert torch.equal(weights(two, "sharded_hollow"), weights(two, "sharded_full"))


def test_offload_is_in_place(two):
    for rank in (0, 1):
        plain, moved, updated = (facts(two, rank)[name] for name in ("sharded", "offload all", "offload optimizer"))
        assert (plain["weights"], moved["weights"], updated["weights"]) == (
            "ShardedWeights", "ShardedWeights", "HostShards",
        )  # fmt: skip
        assert (plain["policies"], updated["policies"]) == (["OffloadPolicy"], ["OffloadPolicy"])
        assert moved["policies"] == ["CPUOffloadPolicy"]
        assert moved["devices"] == updated["devices"] == ["cpu"]
        assert plain["masters"] == 0 and updated["masters"] > 0, "fp32 weights have a copy in host memory, too"
        assert moved["held"] == updated["held"] == plain["held"]


def test_each_process_really_has_half_of_the_tokens_and_half_of_the_heads(two):
    """53 tokens and 1 of padding: 27 rows each outside attention; inside, 54 rows of 2 of 4 heads and 1 of 2."""
    for rank in (0, 1):
        found = facts(two, rank)["shared"]
        assert (found["wrapper"], found["layer"]) == ("DistributedDataParallel", "PackedLlamaDecoderLayer")
        assert (found["groups"], found["sequences"]) == (1, 2)
        assert found["embedded"] == [[1, 27, 64]]
        assert found["layers"] == [[1, 27, 64]] * 2
        assert found["attended"] == [[[54, 2, 16], [54, 1, 16], [54, 1, 16]]] * 2
        assert found["tokens"] == (27 if rank == 0 else 26)


def test_a_4bit_base_in_shards_unpacks_to_the_values_of_a_whole_one(two):
    """Planted and seen to fail: the quantisation state of another layer; the bytes cast; the scales left out."""
    held = [facts(two, rank)["packed"]["nf4"]["held"] for rank in (0, 1)]
    for rank in (0, 1):
        found = facts(two, rank)["packed"]["nf4"]
        assert found["layer"] == "PackedFSDPLlamaDecoderLayer"
        assert (found["linear"], found["parameter"], found["bases"]) == (
            "PackedLinear",
            "DTensor",
            ["GatheredQuantized"],
        )
        assert found["compared"] == found["matrices"] == 14 and found["same_values"]
        assert facts(two, rank)["packed"]["bytes_kept"] == {"as they are": True, "cast": False}
    assert sum(held) == facts(two, 0)["packed"]["nf4"]["all"]
    assert max(held) <= 0.51 * sum(held)


def test_an_fp8_base_in_shards_is_fitted_to_that_of_one_process_bit_for_bit(two):
    mine, _ = fp8_base()
    for rank in (0, 1):
        found, theirs = facts(two, rank)["packed"]["fp8"], load_file(two / f"fp8_base-{rank}.safetensors")
        assert found["bases"] == ["GatheredFp8"] and found["fitted"] == 8 and found["matrices_left"] == 0
        assert max(found["held"] / found["all"], 1 - found["held"] / found["all"]) <= 0.51
        assert set(mine) == set(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_result_of_shards_is_plain_files(two, one):
    files = sorted(path.name for path in (two / "sharded_full/final").glob("*.safetensors"))
    assert files == ["model.safetensors"]
    mine = load_file(one["sharded_full"].folder.path / "final/model.safetensors")
    theirs = load_file(two / "sharded_full/final/model.safetensors")
    assert {name: tensor.shape for name, tensor in mine.items()} == {n: t.shape for n, t in theirs.items()}
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in mine) <= 5e-5


def test_checkpoints_of_shards_are_served_as_plain_files(two):
    run = two / "sharded_full"
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert len(kept) >= 2 and sorted(path.name for path in (run / "served").iterdir()) == kept
    final = load_file(run / "final/model.safetensors")
    last = load_file(run / "served" / max(kept, key=lambda name: int(name[5:])) / "model.safetensors")
    assert all(torch.equal(final[name], last[name]) for name in final)


@pytest.mark.parametrize(
    "name",
    [
        "full", "lora", "uneven_tail", "one_row_in_the_last_step", "halved", "halved_by_documents", "dpo", "kto",
        "thirteen_full", "thirteen_lora", "thirteen_spectrum", "sharded_full", "sharded_lora", "sharded_spectrum",
        "sharded_hollow", "offloaded_all", "offloaded_optimizer", "shared_full", "shared_lora", "shared_spectrum",
        "shared_one_half",
        "sharded_kto", "sharded_halved", "sharded_qlora", "sharded_qlora_unpacked", "sharded_fp8", *RESUMED,
    ],
)  # fmt: skip
def test_two_processes_take_the_trajectory_of_one(two, one, name):
    """B04, B05. Mean of per-process means would give d of about 1e-2."""
    single = one[name.removeprefix("resumed_")]
    parameters = {key: p for key, p in single.model.named_parameters() if p.requires_grad}
    reference = torch.cat([parameters[key].detach().double().flatten() for key in sorted(parameters)])
    assert single.moved >= 1e-3
    assert float((weights(two, name) - reference).abs().max()) <= 5e-5
    lines = RunFolder(two / name).read_lines("metrics.jsonl")
    for mine, theirs in zip(single.folder.read_lines("metrics.jsonl"), lines, strict=True):
        assert mine["step"] == theirs["step"]
        for key in ("loss", "eval_loss"):
            if key in mine:
                assert mine[key] == pytest.approx(theirs[key], rel=2e-6)
        for key in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "kl", "eval_kl"):
            assert (key in mine) == (key in theirs)
            assert mine.get(key, 0.0) == pytest.approx(theirs.get(key, 0.0), rel=1e-3, abs=1e-5)
        for key in ("tokens", "trained_tokens", "eval_tokens", "epoch", "learning_rate"):
            assert mine.get(key) == theirs.get(key), "no row is dropped or repeated"


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_of_one_process_goes_on_with_two(two, name):
    assert json.loads((two / f"{name}-0.json").read_text())["resumed_from"] == 3
    events = [line["event"] for line in RunFolder(two / name).read_lines("events.jsonl")]
    assert "resumed_on_other_processes" in events


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_of_two_processes_goes_on_with_one(two, one, tmp_path, name):
    whole = name.removeprefix("resumed_")
    assert verify(two / whole / "checkpoints/step-3") == []
    half(two / whole, tmp_path / "run")
    run = RESUMED[name](tmp_path / "run", 1)
    assert run.result.resumed_from == 3
    assert float((run.weights - one[whole].weights).abs().max()) <= 5e-5


@pytest.mark.parametrize("name", [*CASES, *RESUMED])
def test_both_processes_hold_the_same_weights_bit_for_bit(two, name):
    assert torch.equal(weights(two, name, 0), weights(two, name, 1))


@pytest.mark.parametrize("name", ["bf16", "sharded_bf16"])
def test_masters_of_two_processes_are_those_of_one(two, one, name):
    """bf16: a forward pass of four rows rounds differently from one of eight, so the bound is wider."""
    step = "checkpoints/step-6"
    mine = load_tensors(one["bf16"].folder.path / step, "trainable")
    load = load_whole if name.startswith("sharded") else load_tensors
    theirs = load(two / name / step, "trainable")
    assert set(mine) == set(theirs)
    start = {name: tensor.float() for name, tensor in one["bf16"].start.items()}
    moved = torch.cat([(mine[name] - start[name]).flatten() for name in mine])
    apart = torch.cat([(mine[name] - theirs[name]).flatten() for name in mine])
    assert moved.norm() > 0.1
    assert apart.norm() <= 0.1 * moved.norm()


def test_a_nan_of_one_process_ends_all_and_names_the_row(two):
    for rank in (0, 1):
        found = facts(two, rank)["nan"]
        assert found["type"] == "RunFailed"
        assert "rows.jsonl:10" in found["text"]
        assert "step 2" in found["text"]


def test_a_save_that_fails_in_process_0_ends_all(two):
    first, second = facts(two, 0)["blocked"], facts(two, 1)["blocked"]
    assert (first["type"], first["exit_code"]) == ("EnvironmentProblem", 4)
    assert second["type"] == "RunFailed"
    assert "process 0 failed" in second["text"]


@pytest.mark.parametrize("name", ["halved", "halved_by_documents", "sharded_halved"])
def test_memory_that_ran_out_in_one_process_halves_the_micro_batches_of_both(two, name):
    results = [json.loads((two / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    assert results[0]["micro_batch"] == results[1]["micro_batch"]
    events = [line for line in RunFolder(two / name).read_lines("events.jsonl") if line["event"] == "memory_halved"]
    if name != "halved_by_documents":
        assert results[0]["micro_batch"] == {"sequences": 1, "tokens": None}
        assert [line["step"] for line in events] == [2], "two passes a step: the third is in step 2"
    else:
        assert results[0]["micro_batch"]["tokens"] <= 120
        assert {line["during"] for line in events} == {"calibration"}


def test_a_document_too_long_for_one_process_ends_both(two):
    for rank in (0, 1):
        found = facts(two, rank)["too long"]
        assert (found["type"], found["exit_code"]) == ("OutOfMemory", 5)
        assert "a single document of 40 tokens" in found["text"]
