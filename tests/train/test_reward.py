"""Contract: a reward model trains as TRL's RewardTrainer does, on shared prompts, and plain transformers loads it."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from luthier.export.merge import merge
from luthier.model.adapters import apply_method
from luthier.model.load import load_base, load_tuned
from luthier.model.reward import is_reward_folder
from luthier.recipe.schema import MethodSection, ModelSection
from luthier.runtime.errors import RecipeError
from tests.support.pairs import pairs, preferences
from tests.support.tiny import save_tiny, tiny_tokenizer
from tests.train.preference_support import logged, tune
from tests.train.support import FULL, LORA, flat
from tests.train.test_trl_preferences import RATES, STEPS, as_prepared, settings

CPU = SimpleNamespace(type="cpu", torch_device=torch.device("cpu"), name="cpu")
REWARD = {"name": "reward"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base") / "tiny", tied=True)


def load(base, **more):
    return load_base(ModelSection(name_or_path=str(base)), device=CPU, dtype="float32", reward_seed=3, **more)


def rewards(model, rows) -> torch.Tensor:
    """(pairs, 2): by the library's own forward, one sequence at a time."""
    model.eval()
    with torch.no_grad():
        values = [
            [float(model(input_ids=torch.tensor([[*row.prompt, *answer]])).logits) for answer in row.answers]
            for row in rows
        ]
    return torch.tensor(values)


def rows_without_padding(n=48, **more):
    """The library takes a reward from the last token that is no padding: no answer may end in one (id 2)."""
    return pairs(n, **more)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_step_by_step_with_trl(tmp_path, base, method):
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rows = rows_without_padding()
    chosen: dict[str, Any] = {"full": FULL, "lora": LORA}[method]
    recipe = {
        "method": chosen, "objective": {**REWARD, "center_rewards_coefficient": 0.01}, "max_steps": STEPS,
        "shuffle": False, "per_device_train_batch_size": 8, "learning_rate": RATES[method],
        "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.01,
    }  # fmt: skip
    theirs = apply_method(load(base), MethodSection(**chosen), seed=0).model
    theirs.config.pad_token_id = 0
    start = {name: p.detach().clone() for name, p in theirs.named_parameters() if p.requires_grad}
    assert any("score" in name for name in start)
    ours = tune(tmp_path / "ours", preferences(rows), model=load(base), **recipe)
    assert torch.equal(flat(start), flat(ours.start))
    config = settings(
        RewardConfig, tmp_path / "trl", batch=8, accumulation=1, rate=RATES[method], center_rewards_coefficient=0.01
    )
    dataset = Dataset.from_dict({
        "chosen_ids": [[*row.prompt, *row.answers[0]] for row in rows],
        "rejected_ids": [[*row.prompt, *row.answers[1]] for row in rows],
    })  # fmt: skip
    trainer = as_prepared(RewardTrainer)(
        model=theirs, args=config, train_dataset=dataset, processing_class=tiny_tokenizer(pad_is_eos=False)
    )
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    final = flat({name: p for name, p in theirs.named_parameters() if p.requires_grad})
    assert float((final - flat(start)).abs().max()) >= 1e-3
    assert float((ours.weights - final).abs().max()) <= 5e-5
    assert [line["loss"] for line in lines] == pytest.approx(ours.losses, abs=1e-5)
    assert [line["margin"] for line in lines] == pytest.approx(logged(ours, "rewards/margins"), abs=1e-5)
    assert [line["accuracy"] for line in lines] == pytest.approx(logged(ours, "rewards/accuracies"))
    assert [line["mean_reward"] for line in lines] == pytest.approx(logged(ours, "mean_reward"), abs=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_plain_transformers_and_peft_load_the_result(tmp_path, base, method):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    held_out = pairs(5, seed=7)
    recipe = {"method": {"full": FULL, "lora": LORA}[method], "objective": REWARD, "max_steps": 3}
    run = tune(tmp_path, preferences(validation=3), model=load(base), learning_rate=1e-2, **recipe)
    final = tmp_path / "final"
    assert is_reward_folder(final)
    if method == "full":
        theirs = AutoModelForSequenceClassification.from_pretrained(final)
    else:
        fresh = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
        theirs = PeftModel.from_pretrained(fresh, final)
    want = rewards(run.model, held_out)
    assert float(want.std()) > 1e-2
    assert torch.allclose(rewards(theirs, held_out), want, atol=1e-5)


def test_the_merged_folder_is_the_adapter_on_its_base(tmp_path, base):
    from transformers import AutoModelForSequenceClassification

    held_out = pairs(5, seed=7)
    run = tune(tmp_path, model=load(base), learning_rate=1e-2, method=LORA, objective=REWARD, max_steps=3)
    report = merge(ModelSection(name_or_path=str(base)), tmp_path / "final", tmp_path / "merged", device=CPU)
    assert report.passed
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert torch.allclose(rewards(merged, held_out), rewards(run.model, held_out), atol=1e-4)


def test_the_new_head_depends_on_the_seed_alone_and_an_old_one_is_kept(tmp_path, base):
    torch.manual_seed(1)
    one = load(base)
    torch.manual_seed(2)
    assert torch.equal(one.score.weight, load(base).score.weight)
    section = ModelSection(name_or_path=str(base))
    other = load_base(section, device=CPU, dtype="float32", reward_seed=4)
    assert not torch.equal(one.score.weight, other.score.weight)
    tune(tmp_path, model=load(base), objective=REWARD, max_steps=1, learning_rate=1e-2)
    again = load_base(ModelSection(name_or_path=str(tmp_path / "final")), device=CPU, dtype="float32", reward_seed=9)
    assert torch.allclose(rewards(again, pairs(2)), rewards(again, pairs(2)))
    assert not torch.equal(again.score.weight, one.score.weight)


def test_a_margin_asks_for_more(tmp_path, base):
    from dataclasses import replace

    rows = [replace(row, margin=0.5) for row in pairs(8)]
    plain = tune(tmp_path / "a", preferences(pairs(8)), model=load(base), objective=REWARD, max_steps=1)
    wider = tune(tmp_path / "b", preferences(rows), model=load(base), objective=REWARD, max_steps=1)
    assert wider.losses[0] > plain.losses[0]


def test_a_reward_model_is_not_asked_for_text(tmp_path, base):
    tune(tmp_path, model=load(base), objective=REWARD, max_steps=1)
    with pytest.raises(RecipeError, match="rates answers") as caught:
        load_tuned(ModelSection(name_or_path=str(base)), tmp_path / "final", device=CPU, dtype="float32")
    assert caught.value.problems[0].code == "M335"


def test_an_adapter_of_a_language_model_is_no_start_of_a_reward_model(tmp_path, base):
    section = ModelSection(name_or_path=str(base))
    language = load_base(section, device=CPU, dtype="float32")
    tune(tmp_path / "dpo", model=language, method=LORA, max_steps=1)
    method = {**LORA, "init_from": str(tmp_path / "dpo" / "final")}
    with pytest.raises(RecipeError, match="adapter of a language model"):
        tune(tmp_path / "reward", model=load(base), method=method, objective=REWARD, max_steps=1)


def test_freezing_trains_the_new_head(tmp_path, base):
    run = tune(
        tmp_path, model=load(base), method={"name": "freeze", "last_n_layers": 1}, objective=REWARD, max_steps=1
    )  # fmt: skip
    assert "score.weight" in run.start
    assert copy.copy(run.result.steps) == 1
