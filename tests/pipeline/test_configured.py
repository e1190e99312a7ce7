"""Contract: what `accelerate launch` exported chooses, and nothing else in the process sees it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.pipeline.configured import settle
from luthier.recipe.load import recipe_from_dict
from luthier.runtime.env import read_env, without_launcher_variables
from luthier.runtime.errors import RecipeError

EXPORTED = {
    "ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_SHARDING_STRATEGY": "FULL_SHARD", "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
}  # fmt: skip


@pytest.fixture
def make(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')

    def recipe(**sections):
        value = {
            "model": {"name_or_path": "some/model"}, "data": {"train": [{"path": str(tmp_path / "rows.jsonl")}]},
            "output_dir": str(tmp_path / "run"), **sections,
        }  # fmt: skip
        return recipe_from_dict(value, origin="test")

    return recipe


def test_auto_takes_what_was_exported_and_says_why(make):
    recipe, configured = settle(make(), EXPORTED)
    assert recipe.distributed.strategy == "fsdp2"
    (taken,) = configured.taken
    assert taken.reason == "`accelerate launch`: FSDP_VERSION=2" and configured.launched
    assert any("ACCELERATE_DYNAMO_BACKEND=INDUCTOR: without effect" in line for line in configured.notes)


def test_a_recipe_without_a_file_has_no_key_that_nobody_wrote(make):
    recipe, _ = settle(make(), {})
    assert "distributed" not in recipe.model_dump(exclude_unset=True)


def test_the_recipes_own_word_against_the_environment(make):
    with pytest.raises(RecipeError, match="is ddp in the recipe, and fsdp2 by") as caught:
        settle(make(distributed={"strategy": "ddp"}), EXPORTED)
    assert caught.value.problems[0].file == "environment: FSDP_VERSION"
    kept = make(distributed={"strategy": "fsdp2", "reshard_after_forward": False})
    assert settle(kept, EXPORTED)[0] == kept, "true is exported unasked"


def test_what_was_exported_is_held_against_the_rules(make):
    with pytest.raises(RecipeError) as caught:
        settle(make(method={"name": "full"}, train={"optim": "adafactor"}), EXPORTED)
    assert [problem.code for problem in caught.value.problems] == ["L112"]


def test_without_a_launcher_nothing_changes(make):
    recipe = make()
    assert settle(recipe, {})[0] == recipe


def test_variables_are_hidden_and_put_back(monkeypatch):
    for name, value in {**EXPORTED, "ACCELERATE_USE_CPU": "True", "FSDP_NEW_ONE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    before = dict(os.environ)
    with without_launcher_variables() as hidden:
        assert set(EXPORTED) < set(hidden)
        assert not set(EXPORTED) & set(os.environ) and "FSDP_NEW_ONE" not in os.environ
        assert os.environ["ACCELERATE_TORCH_DEVICE"] == "cpu"
        assert read_env().force_cpu, "accelerate follows ACCELERATE_USE_CPU, and so do we"
    assert dict(os.environ) == before


PROGRAM = """
import torch
from luthier.train.processes import make_accelerator
accelerator = make_accelerator(torch.device("cpu"), report_to=[], logging_dir="unused")
state = accelerator.state
print(state.mixed_precision, state.dynamo_plugin.backend.value, accelerator.gradient_accumulation_steps,
      getattr(state, "fsdp_plugin", None), state.distributed_type.value)
"""


@pytest.mark.slow
def test_our_accelerator_is_not_changed_behind_our_back():
    environment = {**os.environ, **EXPORTED, "ACCELERATE_MIXED_PRECISION": "bf16", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[2], env=environment, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["no", "NO", "1", "None", "NO"]
