"""Contract: the policy moves towards its rewards, as TRL moves it, and its records say which reward is which.

The margin: a random model samples from the lower half of its 600 tokens about half of the time. One step scores 32
completions of up to 8 tokens, so the mean of a step scatters by at most 0.5 / sqrt(32) = 0.09 around its expectation,
and by less than half of that where tokens of a completion are nearly independent. A rise from 0.5 to above 0.75, and a
fall to below 0.25, are more than 2.5 of the larger number away from no change; runs are seeded besides.
"""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from luthier.online import trainer as online_trainer
from tests.online.support import metrics, rewards_of, train
from tests.support.tiny import conversations


@pytest.fixture(scope="module")
def learned(world, tmp_path_factory):
    run = tmp_path_factory.mktemp("learned") / "run"
    rewards = [world.python("low"), world.python("high", weight=0.0), {"name": "json_valid", "weight": 0.0}]
    result = train(world.recipe(run, rewards=rewards, train={"max_steps": 14}))
    return run, result.stages["train"]


def test_the_mean_reward_rises(learned):
    run, result = learned
    rewards = rewards_of(run)
    assert sum(rewards[:2]) / 2 < 0.6 and sum(rewards[-2:]) / 2 > 0.75
    assert result["final_reward"] > 0.75 > 0.6 > result["first_reward"]


def test_a_negated_reward_moves_the_policy_the_other_way(world, tmp_path):
    train(world.recipe(tmp_path / "run", rewards=[world.python("low", weight=-1.0)], train={"max_steps": 14}))
    assert sum(rewards_of(tmp_path / "run", "reward/low")[-2:]) / 2 < 0.25


def test_each_reward_is_logged_under_its_label_and_the_sum_has_the_weights(learned):
    run, result = learned
    for line in metrics(run):
        assert line["reward/low"] + line["reward/high"] == pytest.approx(1, abs=1e-5)
        assert line["reward"] == pytest.approx(line["reward/low"], abs=1e-5)
        assert line["reward/json_valid"] == 0
    assert set(result["rewards"]) == {"low", "high", "json_valid"}


def test_planted_rewards_in_another_order_than_their_weights_are_noticed(world, tmp_path, monkeypatch):
    """The test above can fail: with functions and weights shuffled, the sum is another one."""
    real = online_trainer.reward_functions
    monkeypatch.setattr(online_trainer, "reward_functions", lambda rewards, rows: real(rewards, rows)[::-1])
    sent = []
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **what: sent.append(what))
    monkeypatch.delenv("CI", raising=False)
    rewards = [world.python("low"), world.python("high", weight=0.0)]
    train(world.recipe(tmp_path / "run", rewards=rewards, train={"max_steps": 1}))
    (line,) = metrics(tmp_path / "run")
    assert line["reward"] != pytest.approx(line["reward/low"], abs=1e-3)
    assert sent == [], "and nothing of a run leaves the machine"


def test_metrics_have_our_names_and_samples_show_a_whole_group(learned):
    run, result = learned
    line = metrics(run, clock=True)[-1]
    assert {"step", "epoch", "loss", "reward", "reward_std", "entropy", "grad_norm", "learning_rate", "tokens",
            "completion_tokens", "clipped_completions", "equal_groups", "seconds", "tokens_per_second",
            "generation_seconds", "reward_seconds"} <= set(line)  # fmt: skip
    assert line["step"] == 14 and line["epoch"] == pytest.approx(14 * 4 / 24)
    assert 0 < line["generation_seconds"] < line["seconds"]
    sample = online_lines(run)[-1]
    assert len(sample["completions"]) == 8 and sample["row"].count("rows.jsonl:") == 1
    asked = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in conversations(24)}
    assert asked[sample["prompt"][0]["content"]] == sample["reference"]
    assert set(sample["completions"][0]["rewards"]) == {"low", "high", "json_valid"}
    assert 0 < result["generation_share"] < 1 and result["tokens"] > result["completions"] == 14 * 32


def online_lines(run):
    import json

    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def test_the_trajectory_is_that_of_trl_called_by_hand(world, tmp_path):
    """Same prompts, rewards and settings: our wrapping changes no number."""
    rows = [{"prompt": f"time year {n}", "completion": " way"} for n in range(12)]
    import json

    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = world.recipe(
        tmp_path / "run", data={"train": [{"path": str(tmp_path / "raw.jsonl")}]}, grpo={"beta": 0.02},
        train={"max_steps": 3, "shuffle": False, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 2},
    )  # fmt: skip
    train(recipe)

    def low(prompts, completions, completion_ids, **columns):
        return [sum(token < 300 for token in ids) / len(ids) for ids in completion_ids]

    model = AutoModelForCausalLM.from_pretrained(world.folder / "model")
    arguments = GRPOConfig(
        output_dir=str(tmp_path / "trl"), max_steps=3, learning_rate=0.01, lr_scheduler_type="constant", beta=0.02,
        per_device_train_batch_size=16, gradient_accumulation_steps=2, num_generations=8, max_completion_length=8,
        shuffle_dataset=False, seed=0, bf16=False, use_cpu=True, gradient_checkpointing=False, logging_steps=1,
        save_strategy="no", report_to="none", disable_dropout=True, disable_tqdm=True, adam_epsilon=1e-8,
        weight_decay=0.0, max_grad_norm=1.0,
    )  # fmt: skip

    class Quiet(GRPOTrainer):
        def _send_telemetry(self):
            pass

    plain = Quiet(
        model=model, reward_funcs=[low], args=arguments,
        train_dataset=Dataset.from_dict({"prompt": [row["prompt"] for row in rows]}),
        processing_class=AutoTokenizer.from_pretrained(world.folder / "model"),
    )  # fmt: skip
    plain.train()
    theirs = [line for line in plain.state.log_history if "reward" in line]
    ours = metrics(tmp_path / "run")
    for key in ("reward", "reward_std", "loss", "kl", "entropy", "grad_norm"):
        assert [line[key] for line in ours] == [line[key] for line in theirs], key
    final = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final").state_dict()
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, final[name]), name
