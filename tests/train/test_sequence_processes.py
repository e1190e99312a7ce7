"""Contract: four processes that share sequences in groups of two, or all together, take the trajectory of one.

Two processes are in `test_processes.py`; gradients by family and policy in `tests/fast/test_sequence_parallel.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.runs.folder import RunFolder
from tests.train.sequence_worker import CASES

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "LUTHIER_FORCE_CPU": "1"}
    launch = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4",
        "-m", "tests.train.sequence_worker", str(folder),
    ]  # fmt: skip
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", CASES)
def test_four_processes_take_the_trajectory_of_one(four, tmp_path, name):
    torch.set_num_threads(1)
    single = CASES[name](tmp_path / name, 1)
    wanted = {key: p.detach().double() for key, p in single.model.named_parameters() if p.requires_grad}
    assert single.moved >= (1e-5 if name.startswith("double") else 1e-3)
    # Those in fp64 take sgd: AdamW magnifies the rounding of tiny gradients. The head's gradient is summed in fp32 in
    # any model; adapters have none there.
    limit = {"double_full": 1e-7, "double_lora": 1e-9}.get(name, 5e-5)
    for rank in range(4):
        facts = json.loads((four / f"{name}-{rank}.json").read_text())
        assert (facts["processes"], facts["world"]) == (4, 4)
        found = load_file(four / f"{name}-{rank}.safetensors")
        assert found.keys() == wanted.keys()
        apart = max(float((found[key].double() - wanted[key]).abs().max()) for key in wanted)
        print(f"{name}: {apart:.2e}")
        assert apart <= limit
    lines = RunFolder(four / name).read_lines("metrics.jsonl")
    for mine, theirs in zip(single.folder.read_lines("metrics.jsonl"), lines, strict=True):
        for key in ("tokens", "trained_tokens", "eval_tokens", "epoch", "learning_rate"):
            assert mine.get(key) == theirs.get(key), "no token is dropped or counted twice"
        for key in ("loss", "eval_loss", "token_accuracy"):
            assert (key in mine) == (key in theirs)
            assert mine.get(key, 0.0) == pytest.approx(theirs.get(key, 0.0), rel=2e-6)
