"""Contract: online RL on CUDA learns, keeps trained weights in float32 under bfloat16, and resumes on the device."""

import pytest
import torch
from safetensors.torch import load_file

from luthier.runtime.errors import Interrupted
from tests.online.support import World, metrics, rewards_of, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("world"))


def test_the_mean_reward_rises(world, tmp_path):
    train(world.recipe(tmp_path / "run", train={"max_steps": 14}))
    rewards = rewards_of(tmp_path / "run")
    assert sum(rewards[:2]) / 2 < 0.6 and sum(rewards[-2:]) / 2 > 0.75


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_small_steps_are_not_lost_in_bfloat16(world, tmp_path, method):
    recipe = world.recipe(
        tmp_path / "run", model={"dtype": "bfloat16"}, grpo={"beta": 0.01},
        method={"name": method, **({} if method == "full" else {"r": 4})},
        train={"max_steps": 2, "learning_rate": 1e-6},
    )  # fmt: skip
    result = train(recipe).stages["train"]
    assert result["peak_bytes"] > 0
    (file,) = (tmp_path / "run" / "checkpoints" / "checkpoint-2").glob("*model.safetensors")
    kept = load_file(file)
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    if method != "full":
        assert 0 < max(float(tensor.abs().max()) for name, tensor in kept.items() if "lora_B" in name) < 1e-5


def test_a_stopped_run_goes_on(world, tmp_path):
    settings = {"rewards": [world.python("stops")], "train": {"save_steps": 2, "deterministic": False}}
    with pytest.raises(Interrupted):
        train(world.recipe(tmp_path / "run", **settings))
    result = train(world.recipe(tmp_path / "run", **settings)).stages["train"]
    assert result["resumed_from"] == 3
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
