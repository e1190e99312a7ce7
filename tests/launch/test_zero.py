"""`luthier launch` with a DeepSpeed configuration that a user already has (slow, real processes)."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests.launch.test_processes import launched, recipe, start, wait_for_step

pytest.importorskip("deepspeed", reason="pip install 'luthier[deepspeed]'")
pytestmark = pytest.mark.slow
__all__ = ["recipe"]

CONFIG = {
    "bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": "auto"},
    "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto", "steps_per_print": 10,
}  # fmt: skip


@pytest.fixture
def zero(recipe):
    (recipe.parent / "ds.json").write_text(json.dumps(CONFIG))
    recipe.write_text(recipe.read_text() + f"distributed: {{deepspeed_config: {recipe.parent}/ds.json}}\n")
    return recipe


def test_a_users_configuration_is_interrupted_and_goes_on(zero):
    process = launched(zero, "train.num_train_epochs=400")
    try:
        wait_for_step(zero, 3)
        os.kill(process.pid, signal.SIGINT)
        err = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "the checkpoint of step" in err[err.rindex("error[") :]
    assert "(DeepSpeed ZeRO-3)" in err and "ds.json: no effect here: `steps_per_print`" in err
    again = launched(zero, "train.num_train_epochs=400")
    step = json.loads((zero.parent / "run/processes/rank-1.json").read_text()).get("step") or 3
    try:
        wait_for_step(zero, step + 3)
        os.kill(again.pid, signal.SIGINT)
        err = again.communicate(timeout=120)[1]
    finally:
        again.kill()
    assert again.returncode == 130 and "going on from the checkpoint of step" in err


@pytest.mark.parametrize("how", ["kill", "finish"])
def test_the_end_of_a_launch(zero, how):
    epochs = "3" if how == "finish" else "4000"
    process = launched(zero, *(["--json"] if how == "finish" else []), f"train.num_train_epochs={epochs}")
    try:
        if how == "kill":
            beat = wait_for_step(zero, 3)
            began = time.monotonic()
            os.kill(beat["pid"], signal.SIGKILL)
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
    if how == "kill":
        assert process.returncode == 1 and time.monotonic() - began < 60
        assert f"process 1 (pid {beat['pid']}) was ended by SIGKILL in `" in err[err.rindex("error[") :]
        return
    assert process.returncode == 0, err
    assert json.loads(out)["stages"]["train"]["processes"] == 2
    assert [path.name for path in (zero.parent / "run/final").glob("*.safetensors")] == ["model.safetensors"]
    again = start("-m", "luthier", "run", str(zero))
    assert "train: reused" in again.communicate(timeout=200)[1] and again.returncode == 0
