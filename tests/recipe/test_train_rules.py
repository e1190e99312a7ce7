"""Contract: settings of optimizer, schedule, rates and starts are checked against what reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.recipe.load import dump_yaml, load_recipe
from luthier.recipe.optimizers import OPTIMIZERS, REFUSED
from luthier.recipe.resolve import recipe_to_dict
from luthier.recipe.schedules import REQUIRED, SCHEDULES
from tests.recipe.support import BASE, load, problem_of, problems_of
from tests.recipe.test_check import with_validation

pytestmark = pytest.mark.usefixtures("work")


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("train: {optim: sgd, optim_args: {momentun: 0.9}}", "C111", 'did you mean "momentum"'),
        ("train: {optim_args: {momentum: 0.9}}", "C111", "optim adamw_torch_fused takes no settings"),
        ("train: {optim: sgd, optim_args: {momentum: high}}", "C103", "must be a number"),
        ("train: {optim: sgd, optim_args: {momentum: true}}", "C103", "must be a number"),
        ("train: {optim: sgd, optim_args: {nesterov: true}}", "C110", "needs momentum"),
        ("train: {optim: muon, optim_args: {adjust_lr_fn: mine}}", "C103", "one of match_rms_adamw, original"),
        ("train: {optim: muon, optim_args: {ns_steps: 2.5}}", "C103", "a whole number"),
        ("train: {optim: lion_8bit, adam_epsilon: 1.0e-6}", "C111", "optim lion_8bit has no such setting"),
        ("train: {optim: rmsprop, adam_beta1: 0.8}", "C111", "optim rmsprop has no such setting"),
        ("train: {lr_scheduler_kwargs: {min_lr: 1.0e-5}}", "C111", "lr_scheduler_type cosine takes num_cycles"),
        ("train: {lr_scheduler_type: linear, lr_scheduler_kwargs: {power: 2}}", "C111", "takes no settings"),
        ("train: {lr_scheduler_type: cosine_with_min_lr}", "C110", "min_lr_rate"),
        ("train: {lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr: 0.1, min_lr_rate: 0.1}}", "C110",
         "exclude each other"),
        ("train: {lr_scheduler_type: warmup_stable_decay}", "C110", "num_decay_steps"),
        ("train: {lr_scheduler_type: warmup_stable_decay, lr_scheduler_kwargs: {num_decay_steps: 5, decay_type: log}}",
         "C103", "one of linear, cosine, 1-sqrt"),
        ("train: {lr_scheduler_type: cosine_with_restarts, lr_scheduler_kwargs: {num_cycles: 1.5}}", "C103", "whole"),
        ("train: {lr_scheduler_type: reduce_lr_on_plateau}", "C110", "no validation data"),
        ("method: {name: full}\ntrain: {loraplus_lr_ratio: 16}", "C111", "method full has no adapters"),
        ("train: {loraplus_lr_embedding: 1.0e-5}", "C111", "there is no loraplus_lr_ratio"),
        ("train: {embedding_learning_rate: 1.0e-5}", "C111", "method.modules_to_save trains them"),
        ("train: {layerwise_lr_decay: 0}", "C103", "> 0"),
        ("train: {loraplus_lr_ratio: -1}", "C103", "> 0"),
        ("method: {name: qlora, init_lora_weights: pissa}", "C110", "4 bits"),
        ("method: {name: lora, init_lora_weights: pisa}", "C103", 'did you mean "pissa"'),
        ("method: {name: lora, init_lora_weights: pissa_niter_0}", "C103", "pissa_niter_"),
        ("method: {name: lora, init_lora_weights: false}", "C103", "true"),
        ("method: {name: lora, r: 5, init_lora_weights: orthogonal}", "C110", "two halves"),
        ("method: {name: lora, init_from: ., init_lora_weights: gaussian}", "C111", "init_from says"),
        ("method: {name: full, init_lora_weights: pissa}", "C111", "method full has no adapters"),
    ],
)  # fmt: skip
def test_what_would_not_work_or_be_ignored_is_refused(text, code, words):
    found = problem_of(text)
    assert (found.code, words in found.render()) == (code, True), found.render()


def test_all_of_them_come_at_once():
    text = (
        "train: {optim: sgd, optim_args: {a: 1, momentum: x}, lr_scheduler_type: linear, lr_scheduler_kwargs: {b: 1}}"
    )
    assert [problem.code for problem in problems_of(text)] == ["C111", "C103", "C111"]


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_an_optimizer_that_cannot_work_is_refused_with_the_reason(name):
    found = problem_of(f"train: {{optim: {name}}}")
    assert found.code == "C103"
    assert REFUSED[name] in found.render().replace("\n        ", " ")


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_loads_and_loads_again(name):
    loads_again(load(f"train: {{optim: {name}}}"))


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_loads_and_loads_again(name, work):
    keys = REQUIRED.get(name, ((), ""))[0][-1:]
    kwargs = ", ".join(f"{key}: 1" for key in keys)
    text = with_validation(f"train: {{lr_scheduler_type: {name}, lr_scheduler_kwargs: {{{kwargs}}}}}")
    loads_again(load(text, base=False))


@pytest.mark.parametrize(
    "text",
    [
        "train: {loraplus_lr_ratio: 16, loraplus_lr_embedding: 1.0e-5, layerwise_lr_decay: 0.9}",
        "method: {name: lora, modules_to_save: [lm_head]}\ntrain: {embedding_learning_rate: 1.0e-5}",
        "model: {name_or_path: smollm2-135m-instruct, new_tokens: [<a>]}\ntrain: {embedding_learning_rate: 1.0e-5}",
        "method: {name: full}\ntrain: {embedding_learning_rate: 1.0e-5}",
        "method: {name: lora, init_lora_weights: pissa_niter_16}",
        "method: {name: qlora, init_lora_weights: orthogonal}",
    ],
)
def test_what_fits_together_loads_and_loads_again(text):
    base = BASE.replace("model: {name_or_path: smollm2-135m-instruct}\n", "") if "model:" in text else BASE
    loads_again(load(base + text, base=False))


def test_a_rate_that_follows_the_loss_needs_losses_during_training():
    text = with_validation("train: {lr_scheduler_type: reduce_lr_on_plateau, eval_steps: null}")
    assert "eval_steps" in problem_of(text, base=False).message


def loads_again(recipe) -> None:
    """A resolved recipe is written with every value and must be read back as it is."""
    Path("again.yaml").write_text(dump_yaml(recipe_to_dict(recipe)))
    assert load_recipe(Path("again.yaml")).recipe == recipe
