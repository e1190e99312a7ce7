"""Contract: a process that goes on from another's checkpoint reads its own rows, never the whole file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from luthier.train.checkpoint import save
from tests.train.rows_worker import LAYERS, ROWS, WIDTH

MIB = 1 << 20


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_process_holds_the_checkpoint(tmp_path):
    drawn = torch.Generator().manual_seed(0)
    masters = {
        f"{n}.weight": torch.randn(ROWS if n == LAYERS - 1 else WIDTH, WIDTH, generator=drawn) for n in range(LAYERS)
    }
    moments = {f"{name}/{key}": tensor * 2 for name, tensor in masters.items() for key in ("exp_avg", "exp_avg_sq")}
    steps = {f"{name}/step": torch.tensor(7.0) for name in masters}
    tensors = {"trainable": masters, "optimizer": {**moments, **steps}}
    save(tmp_path / "step-1", tensors=tensors, state={"step": 1})
    launch = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "tests.train.rows_worker", str(tmp_path),
    ]  # fmt: skip
    root = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(launch, cwd=root, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    of_masters = sum(tensor.nbytes for tensor in masters.values())
    largest = max(tensor.nbytes for tensor in masters.values())
    for rank in (0, 1):
        facts = json.loads((tmp_path / f"facts-{rank}.json").read_text())
        print(facts)
        assert (facts["processes"], facts["wrapper"]) == (2, "FSDPSequential")
        assert facts["trainable odd"] == facts["optimizer odd"] == []
        for group, whole in (("trainable", of_masters), ("optimizer", 2 * of_masters)):
            assert 0.5 * whole - largest <= facts[group] <= 0.5 * whole + largest + 96 * MIB
        assert facts["one by one"] <= 2 * largest + 96 * MIB
