"""Contract: ZeRO-3 gathers what the plan's formula says, not the whole model; traced on two gloo processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.plan import gathered
from luthier.plan.setting import Base, Setting, Way
from luthier.plan.shape import shape_from_config
from luthier.plan.sizes import sizes_of
from luthier.recipe.schema import MethodSection
from tests.train.zero_memory_worker import CASES, distance, model_of

ROOT = Path(__file__).parents[2]
pytest.importorskip("deepspeed", reason="pip install 'luthier[deepspeed]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def peaks(tmp_path_factory) -> list[dict[str, dict[str, int]]]:
    """Of each process, by case and kind, bytes."""
    folder = tmp_path_factory.mktemp("memory")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "LUTHIER_FORCE_CPU": "1"}
    launch = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "tests.train.zero_memory_worker", str(folder),
    ]  # fmt: skip
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"peaks-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_the_peak_is_that_of_the_formula(peaks, case, monkeypatch):
    """Sizes, depths and distances of reuse differ, so it is the formula and not a number. Were the whole model the
    root's, as it was once, the peak would be twice all layers; did a linear layer keep a view of what was gathered, as
    torch's own does, all layers once (DoRA, whose layers run as PEFT wrote them)."""
    monkeypatch.setattr(gathered, "REUSE_DISTANCE", distance(case))
    config = {"model_type": "llama", **model_of(case).config.to_dict()}
    method = CASES[case]["method"]
    sizes = sizes_of(shape_from_config(config, where="test", source="test"), MethodSection(**method))
    base: Base = {"qlora": "nf4", "fp8": "fp8"}.get(case, "plain")  # type: ignore[assignment]
    size = 2 if case == "dora" else 4
    setting = Setting(micro_tokens=100, dtype_bytes=size, world=2, way=Way(strategy="zero3"), base=base)
    planned = gathered.gathered_bytes(sizes, setting)
    bucket, ahead = 4 * sizes.shape.hidden_size**2, size * sizes.shape.hidden_size**2
    # Before the loss, the last layer lies there twice while it is gathered, and nothing is fetched ahead yet.
    again = gathered.layer_bytes(sizes, setting) + size * (sizes.adapter_parameters // sizes.shape.layers)
    most = planned["loss"] - bucket - ahead + again
    if case == "fp8":  # whose vectors are few and large: most is there when layers are fetched ahead, backwards
        most = planned["backward"] - bucket
    for process in peaks:
        assert process[case]["gathered"] == pytest.approx(most, rel=0.02)
        assert process[case]["step"] == pytest.approx(4 * (sizes.trainable - sizes.trained_vectors) / 2, rel=0.05)
    assert planned["loss"] < 0.8 * size * (2 * sizes.shape.layers * sizes.linear_per_layer)
