"""Contract: with `export.checkpoints` every checkpoint can be loaded by a server, and its weights are that step's."""

import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from luthier.runtime.errors import RecipeError
from luthier.train.checkpoint import load_tensors
from tests.support.tiny import tiny_model
from tests.train.support import train

SETTINGS = {"max_steps": 6, "save_steps": 2, "eval_steps": 2}


def _train(folder, *, served=True):
    return train(folder, method={"name": "lora", "r": 4}, served=served, **SETTINGS)


def _served(run):
    return sorted(path.name for path in (run.folder.path / "served").iterdir())


def test_adapters_of_the_kept_checkpoints(tmp_path):
    run = _train(tmp_path)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert _served(run) == kept and "step-6" in kept and "step-2" not in kept
    events = [line for line in run.folder.read_lines("events.jsonl") if line["event"].startswith("checkpoint_")]
    assert [line["step"] for line in events if line["event"] == "checkpoint_served"] == [2, 4, 6]
    assert 2 in [line["step"] for line in events if line["event"] == "checkpoint_unserved"]
    for name in kept:
        trained = load_tensors(tmp_path / "checkpoints" / name, "trainable")
        adapter = load_file(tmp_path / "served" / name / "adapter_model.safetensors")
        assert len(adapter) == len(trained)
        for key, tensor in trained.items():
            assert torch.equal(adapter[key.replace(".default.", ".")], tensor.float())
    final = load_file(tmp_path / "final/adapter_model.safetensors")
    last = load_file(tmp_path / "served/step-6/adapter_model.safetensors")
    assert all(torch.equal(final[key], last[key]) for key in final)
    PeftModel.from_pretrained(tiny_model(), tmp_path / "served/step-6")


def test_it_changes_no_number_of_the_run(tmp_path):
    plain, served = _train(tmp_path / "a", served=False), _train(tmp_path / "b")
    assert plain.metrics == served.metrics
    assert torch.equal(plain.weights, served.weights)
    assert not (tmp_path / "a/served").exists()


def test_one_that_a_kill_left_out_is_written_on_resuming(tmp_path):
    _train(tmp_path)
    shutil.rmtree(tmp_path / "served/step-6")
    run = _train(tmp_path)
    assert run.result.resumed_from == 6
    final = load_file(tmp_path / "final/adapter_model.safetensors")
    again = load_file(tmp_path / "served/step-6/adapter_model.safetensors")
    assert all(torch.equal(final[key], again[key]) for key in final)


def test_online_rl_refuses_it():
    from luthier.recipe.load import recipe_from_dict

    with pytest.raises(RecipeError, match=r"export.checkpoints. has no effect with objective grpo"):
        recipe_from_dict({
            "model": {"name_or_path": "smollm2-135m-instruct"}, "data": {"train": [{"path": "x.jsonl"}]},
            "objective": {"name": "grpo", "grpo": {"rewards": [{"name": "length", "max_tokens": 8}]}},
            "export": {"checkpoints": True}, "output_dir": "runs/x",
        }, origin="test")  # fmt: skip
