"""Contract: what DeepSpeed's strategies are combined with takes the trajectory of one process: preferences, modules
trained in full beside adapters, new tokens, a 4-bit base; and ZeRO-1.

One torchrun launch (gloo) runs all cases of `zero_more_worker.py`; the same cases run here in one process.
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

from luthier.runs.folder import RunFolder
from luthier.train.checkpoint import verify
from tests.train.test_processes import half
from tests.train.torchrun import run_workers
from tests.train.zero_compared import EXACT, require_same_result, require_same_trajectory, require_same_way
from tests.train.zero_more_worker import CASES, FACTS, RESUMED, RUNS

pytest.importorskip("deepspeed", reason="pip install 'luthier[deepspeed]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
ROOT = Path(__file__).parents[2]
EXACT_RUNS = [(name, strategy) for name, strategy in RUNS if not name.endswith("bf16")]
BF16_RUNS = [(name, strategy) for name, strategy in RUNS if name.endswith("bf16")]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    torch.set_num_threads(1)
    return {name: case(folder / name, 1, "ddp") for name, case in CASES.items()}


@pytest.fixture(scope="module")
def two(one, tmp_path_factory) -> Path:
    """Folder of the two-process runs."""
    folder = tmp_path_factory.mktemp("two")
    for name, strategy in RESUMED:
        half(one[name].folder.path, folder / f"resumed_{name}-{strategy}")
    run_workers("tests.train.zero_more_worker", folder, processes=2, timeout=2400)
    return folder


def facts(folder: Path, label: str, rank: int) -> dict:
    return json.loads((folder / f"{label}-{rank}.json").read_text())


@pytest.mark.parametrize(("name", "strategy"), [*EXACT_RUNS, *((f"resumed_{n}", s) for n, s in RESUMED)])
def test_two_processes_take_the_trajectory_of_one(two, one, name, strategy):
    single = one[name.removeprefix("resumed_")]
    if name.endswith("bf16"):
        assert facts(two, f"{name}-{strategy}", 0)["resumed_from"] == 3
        return
    require_same_trajectory(single, two, f"{name}-{strategy}")


@pytest.mark.parametrize(("name", "strategy"), RUNS)
def test_the_parts_are_real(two, name, strategy):
    for rank in (0, 1):
        found = facts(two, f"{name}-{strategy}", rank)
        assert (found["processes"], found["wrapper"]) == (2, "Passes")
        assert found["under_zero3"] == (["all"] if strategy == "zero3" else ["none"])


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_deepspeed_holds_what_is_trained_and_a_pass_finds_it_whole(two, name, strategy):
    for rank in (0, 1):
        found = facts(two, f"facts_{name}-{strategy}", rank)
        assert (found["processes"], found["root"], found["stage"]) == (2, "DeepSpeedEngine", int(strategy[-1]))
        in_16_bits = name == "bf16" and strategy == "zero1"
        kinds = {"zero3": "DeepSpeedZeroOptimizer_Stage3", "zero1": "BF16_Optimizer"}
        assert found["optimizer"] == (
            kinds[strategy] if strategy == "zero3" or in_16_bits else "DeepSpeedZeroOptimizer"
        )
        assert 0.49 * found["trained"] <= found["masters"] <= 0.52 * found["trained"]
        assert found["tables"], "embeddings, head or rows of new tokens are trained"
        assert all(whole == size for whole, size in found["tables"].values())
        if name == "saved":
            wanted = 0 if strategy == "zero3" else 600 * 64
            assert set(found["originals"].values()) == {wanted}, "the frozen tables of what is trained are not gathered"
        if name == "nf4":
            assert found["packed"]["kinds"] == ["torch.int32"]
            assert found["packed"]["held"] == (0 if strategy == "zero3" else found["packed"]["whole"])
            share = 0.5 if strategy == "zero3" else 1.0
            assert found["packed"]["mine"] == pytest.approx(share * found["packed"]["whole"], rel=0.01)
            assert found["packed"]["whole"] > 0
        assert found["report"].startswith("one function each (2 layers), gathered")


@pytest.mark.parametrize(("name", "strategy"), EXACT_RUNS)
def test_the_result_is_that_of_one_process_in_plain_files(two, one, name, strategy):
    require_same_result(one[name], two / f"{name}-{strategy}")


@pytest.mark.parametrize(("name", "strategy"), BF16_RUNS)
def test_masters_of_16_bit_weights_are_fp32_and_go_the_same_way(two, one, name, strategy):
    """A backward pass in bf16 rounds the gradients of other sums, so this bound is one of the whole movement."""
    require_same_way(one[name], two / f"{name}-{strategy}")


@pytest.mark.parametrize(("name", "strategy"), RESUMED)
def test_a_run_of_one_process_goes_on_with_two(two, name, strategy):
    assert facts(two, f"resumed_{name}-{strategy}", 0)["resumed_from"] == 3


@pytest.mark.parametrize(("name", "strategy"), RESUMED)
def test_a_run_of_two_processes_goes_on_with_one(two, one, tmp_path, name, strategy):
    assert verify(two / f"{name}-{strategy}" / "checkpoints/step-3") == []
    half(two / f"{name}-{strategy}", tmp_path / "run")
    for cache in two.glob("reference-*"):
        shutil.copytree(cache, tmp_path / cache.name)
    run = CASES[name](tmp_path / "run", 1, "ddp")
    assert run.result.resumed_from == 3
    if not name.endswith("bf16"):
        assert float((run.weights - one[name].weights).abs().max()) <= EXACT


def test_the_cached_reference_is_that_of_one_process(two, one):
    """The reference is measured once, by all processes, and a later run takes it from the cache."""
    for strategy in ("zero1", "zero2", "zero3"):
        first = RunFolder(two / f"dpo_lora-{strategy}").read_lines("metrics.jsonl")[0]
        mine = one["dpo_lora"].folder.read_lines("metrics.jsonl")[0]
        assert first["loss"] == pytest.approx(mine["loss"], rel=5e-6)
        assert list((two / f"reference-{strategy}").iterdir())


def test_saving_a_model_on_a_cpu_says_nothing_of_deepspeed(tmp_path):
    """accelerate imports it for that, and it would warn that there is no GPU."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom luthier.model.save import save_model_files\n"
        "from tests.support.tiny import tiny_model\nsave_model_files(tiny_model(), Path(sys.argv[1]))\n"
        "assert 'deepspeed' in sys.modules and 'DS_ACCELERATOR' not in os.environ\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "DS_ACCELERATOR"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "accelerator" not in done.stdout + done.stderr
