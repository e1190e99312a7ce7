"""Contract: under DeepSpeed's ZeRO two processes take the trajectory of one, and checkpoints are everyone's.

One torchrun launch (gloo) runs all cases of `zero_worker.py`; the same cases run here in one process.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.runs.folder import RunFolder
from luthier.train.checkpoint import load_tensors, verify
from luthier.train.distributed.shards import load_whole
from tests.support.tiny import tiny_model
from tests.train.packed_cases import fp8_base
from tests.train.test_processes import half
from tests.train.torchrun import run_workers
from tests.train.zero_worker import CASES, RESUMED, STRATEGIES

ROOT = Path(__file__).parents[2]
pytest.importorskip("deepspeed", reason="pip install 'luthier[deepspeed]'")
pytestmark = pytest.mark.slow  # two launches' worth of DeepSpeed: half a minute and more
ADAPTERS = ("fp8", "dora", "pissa", "olora")
BOTH = pytest.mark.parametrize("strategy", STRATEGIES)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    torch.set_num_threads(1)
    return {name: case(folder / name, 1, "ddp") for name, case in CASES.items()}


@pytest.fixture(scope="module")
def two(one, tmp_path_factory) -> Path:
    """Folder of the two-process runs."""
    folder = tmp_path_factory.mktemp("two")
    for name in RESUMED:
        for strategy in STRATEGIES:
            half(one[name].folder.path, folder / f"resumed_{name}-{strategy}")
    run_workers("tests.train.zero_worker", folder, processes=2, timeout=500)
    return folder


def facts(folder: Path, strategy: str, rank: int) -> dict:
    return json.loads((folder / f"facts-{rank}.json").read_text())[strategy]


def weights(folder: Path, name: str, strategy: str, rank: int = 0) -> torch.Tensor:
    tensors = load_file(folder / f"{name}-{strategy}-{rank}.safetensors")
    return torch.cat([tensors[key].double().flatten() for key in sorted(tensors)])


@BOTH
def test_deepspeed_really_holds_the_parts(two, strategy):
    for rank in (0, 1):
        found = facts(two, strategy, rank)
        assert found["processes"] == 2
        assert (found["wrapper"], found["root"]) == ("Passes", "DeepSpeedEngine")
        assert found["stage"] == int(strategy[-1])
        assert found["layer"] == "PackedLlamaDecoderLayer"
        assert found["names"] and found["clipping"] == 1.0
        assert "one function each (2 layers), gathered matrices" in found["report"]["decoder layers"]
        assert "chunked linear cross-entropy" in found["report"]["head"]
    held = [facts(two, strategy, rank) for rank in (0, 1)]
    whole = held[0]["whole"]
    assert all(0.49 * whole <= each["masters"] <= 0.52 * whole for each in held)
    if strategy == "zero3":
        assert all(each["optimizer"] == "DeepSpeedZeroOptimizer_Stage3" and each["leaf"] for each in held)
        assert all(each["status"] == "NOT_AVAILABLE" and each["matrix"] == [0] for each in held)
        assert all(0.49 * whole <= each["weights"] <= 0.52 * whole for each in held)
    else:
        assert all(each["optimizer"] == "DeepSpeedZeroOptimizer" for each in held)
        assert all(each["weights"] == whole for each in held)


@BOTH
@pytest.mark.parametrize("name", [*(n for n in CASES if n != "bf16"), *(f"resumed_{n}" for n in RESUMED)])
def test_two_processes_take_the_trajectory_of_one(two, one, name, strategy):
    """A mean of per-process means, a gradient that is lost, a clip by a part's norm: all are far above the bound."""
    single = one[name.removeprefix("resumed_")]
    parameters = {key: p for key, p in single.model.named_parameters() if p.requires_grad}
    reference = torch.cat([parameters[key].detach().double().flatten() for key in sorted(parameters)])
    apart = (weights(two, name, strategy) - reference).abs()
    assert single.moved >= 1e-3
    assert float(apart.max()) <= 5e-5
    assert float(apart.mean()) <= 5e-7
    lines = RunFolder(two / f"{name}-{strategy}").read_lines("metrics.jsonl")
    for mine, theirs in zip(single.folder.read_lines("metrics.jsonl"), lines, strict=True):
        for key in ("loss", "eval_loss"):
            if key in mine:
                assert mine[key] == pytest.approx(theirs[key], rel=2e-6)
        if "grad_norm" in mine:
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        for key in ("step", "tokens", "trained_tokens", "eval_tokens", "epoch", "learning_rate"):
            assert mine.get(key) == theirs.get(key), "no row is dropped or repeated"


@BOTH
@pytest.mark.parametrize("name", CASES)
def test_both_processes_hold_the_same_weights_bit_for_bit(two, name, strategy):
    assert torch.equal(weights(two, name, strategy, 0), weights(two, name, strategy, 1))


@BOTH
@pytest.mark.parametrize("name", ["full", "lora", "tied_full", *ADAPTERS])
def test_the_result_is_plain_files(two, one, name, strategy):
    file = "adapter_model.safetensors" if name in ("lora", *ADAPTERS) else "model.safetensors"
    written = sorted(path.name for path in (two / f"{name}-{strategy}/final").glob("*.safetensors"))
    assert written == [file]
    mine = load_file(one[name].folder.path / "final" / file)
    theirs = load_file(two / f"{name}-{strategy}/final" / file)
    assert {key: tensor.shape for key, tensor in mine.items()} == {key: tensor.shape for key, tensor in theirs.items()}
    assert max(float((mine[key] - theirs[key]).abs().max()) for key in mine) <= 5e-5


@BOTH
def test_what_is_saved_of_pissa_is_what_was_trained_on_the_untouched_base(two, strategy):
    """The base in the partitions is what PiSSA left of it; the file is a plain adapter for the base as it was."""
    from peft import PeftModel

    trained = [load_file(two / f"matrices_pissa-{strategy}-{rank}.safetensors") for rank in (0, 1)]
    merged = PeftModel.from_pretrained(tiny_model(), two / f"pissa-{strategy}/final").merge_and_unload()
    untouched = tiny_model()
    assert trained[0] and set(trained[0]) == set(trained[1])
    for name, matrix in trained[0].items():
        assert torch.equal(matrix, trained[1][name])
        assert float((merged.get_submodule(name).weight.detach() - matrix).abs().max()) <= 1e-6
        assert float((untouched.get_submodule(name).weight.detach() - matrix).abs().max()) >= 1e-3


@BOTH
def test_an_fp8_base_is_fitted_to_that_of_one_process_bit_for_bit(two, strategy):
    """Under ZeRO-3 put together from the partitions, which the fit must have reached."""
    mine, _ = fp8_base()
    for rank in (0, 1):
        found, theirs = facts(two, strategy, rank)["fp8"], load_file(two / f"fp8_base-{strategy}-{rank}.safetensors")
        assert found["bases"] == (["GatheredFp8"] if strategy == "zero3" else ["Fp8"])
        assert found["fitted"] == 8 and found["matrices_left"] == 0
        if strategy == "zero3":
            assert found["kinds"] == ["torch.int32"], "DeepSpeed casts what is a float"
            assert 0.49 <= found["held"] / found["all"] <= 0.51
        assert set(mine) == set(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


@BOTH
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_of_one_process_goes_on_with_two(two, name, strategy):
    assert json.loads((two / f"resumed_{name}-{strategy}-0.json").read_text())["resumed_from"] == 3


@BOTH
@pytest.mark.parametrize("name", [*RESUMED, "spectrum", "offloaded"])
def test_a_run_of_two_processes_goes_on_with_one(two, one, tmp_path, name, strategy):
    assert verify(two / f"{name}-{strategy}" / "checkpoints/step-3") == []
    half(two / f"{name}-{strategy}", tmp_path / "run")
    run = CASES[name](tmp_path / "run", 1, "ddp")
    assert run.result.resumed_from == 3
    assert float((run.weights - one[name].weights).abs().max()) <= 5e-5


@BOTH
def test_masters_are_fp32_and_rotary_frequencies_are_not_rounded(two, one, strategy):
    """bf16: a forward pass of four rows rounds differently from one of eight, so the bound is wider."""
    step = "checkpoints/step-6"
    mine = load_tensors(one["bf16"].folder.path / step, "trainable")
    theirs = load_whole(two / f"bf16-{strategy}" / step, "trainable")
    assert set(mine) == set(theirs) and all(tensor.dtype == torch.float32 for tensor in theirs.values())
    start = {name: tensor.float() for name, tensor in one["bf16"].start.items()}
    moved = torch.cat([(mine[name] - start[name]).flatten() for name in mine])
    apart = torch.cat([(mine[name] - theirs[name]).flatten() for name in mine])
    assert moved.norm() > 0.1
    assert apart.norm() <= 0.1 * moved.norm()


@BOTH
def test_a_nan_of_one_process_ends_all_before_the_update(two, strategy):
    found = [facts(two, strategy, rank)["nan"] for rank in (0, 1)]
    assert all(each["type"] == "RunFailed" and "step 2 is not finite" in each["text"] for each in found)
    assert "rows.jsonl:10" in found[1]["text"], "process 1 has the row"
