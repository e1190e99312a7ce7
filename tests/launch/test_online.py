"""Contract: `luthier launch` of online RL fails together, tells why, and the same command finishes the run (slow)."""

from __future__ import annotations

import json
import sys

import pytest

from luthier.recipe.load import dump_yaml
from luthier.runs.folder import RunFolder
from tests.launch.support import start
from tests.online.worker import full, make_world

pytestmark = pytest.mark.slow


def test_launch_tells_the_reward_that_failed_in_one_process_and_the_same_command_finishes(tmp_path):
    world = make_world(tmp_path)
    recipe = full(world, tmp_path / "run", 2)
    value = recipe.model_dump(mode="json", exclude_unset=True)
    value["objective"]["grpo"]["rewards"] = [world.python("breaks")]
    value["method"] = {"name": "lora", "r": 4}
    value["train"] |= {"save_steps": 2, "max_steps": 4}
    task = {"name": "held", "path": str(tmp_path / "held.jsonl"), "metric": "loss"}
    value |= {"evaluate": {"tasks": [task]}, "export": {"merge": True}}
    (tmp_path / "recipe.yaml").write_text(dump_yaml(value))
    command = [sys.executable, "-m", "luthier", "launch", str(tmp_path / "recipe.yaml"), "--num-processes", "2"]

    failed = start(*command, LUTHIER_CACHE=str(tmp_path / "cache"))
    _, err = failed.communicate(timeout=300)
    assert failed.returncode == 1, err
    last = err[err.rindex("error[") :]
    assert "process 1: reward `breaks` raised ValueError: only here" in last and "rewards.py" in last, err
    assert not (tmp_path / "run/final").exists()

    goes_on = start(*command, LUTHIER_CACHE=str(tmp_path / "cache"))
    out, err = goes_on.communicate(timeout=300)
    assert goes_on.returncode == 0, f"{out}\n{err}"
    run = tmp_path / "run"
    result = RunFolder(run).stage("train").result
    assert (result["resumed_from"], result["processes"], result["strategy"]) == (2, 2, "ddp")
    assert result["wrapper"] == "DistributedDataParallel" and "2 processes on cpu" in err
    assert (run / "final/adapter_model.safetensors").is_file() and (run / "merged/model.safetensors").is_file()
    scores = [json.loads((run / f"eval/{name}.json").read_text()) for name in ("before", "after")]
    assert all("held" in json.dumps(score) for score in scores)
    assert "ddp" in (run / "report.html").read_text()
