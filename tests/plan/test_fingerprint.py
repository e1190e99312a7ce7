"""Contract: a run goes on with another recompute policy and ends with the same bits; other changes are refused.

In fp32 on a CPU. Seen to fail with `per_device_train_batch_size` left out as well: the split of a step changes sums.
"""

from types import SimpleNamespace

import pytest

from luthier.pipeline.train_stage import training_fingerprint
from luthier.runtime.errors import RecipeError
from luthier.train import running
from tests.train.support import FULL, LORA, data, distance, examples, resolved, train

ROWS = examples(20)
COMMON = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "save_steps": 1, "learning_rate": 5e-3}
POLICIES = [(False, None), ("selective", None), (True, None), (True, 1), ("selective", 1)]
KINDS = {
    "full": FULL, "lora": LORA, "lora with dropout": {**LORA, "lora_dropout": 0.3},
    "freeze": {"name": "freeze", "last_n_layers": 1},
}  # fmt: skip


class Crash(Exception):
    """Stands for a kill between two steps."""


def _keys(policy):
    return {"gradient_checkpointing": policy[0], "gradient_checkpointing_layers": policy[1]}


def _fingerprint(recipe):
    session = SimpleNamespace(
        resolved=recipe, identity={"base": "b0"}, device=SimpleNamespace(type="cpu"),
        stage_result=lambda _: {"hash": "d0"},
    )  # fmt: skip
    return training_fingerprint(session)


def _run(folder, method, **settings):
    recipe = resolved(method=method, **{**COMMON, **settings})
    return train(folder, data(ROWS), recipe=recipe, fingerprint=_fingerprint(recipe))


def _cut(folder, monkeypatch, method, before, **settings):
    """A run that dies before a step (from 0)."""
    real = running.update

    def update(trainer, micro_batches, *, step, stop_requested):
        if step == before:
            raise Crash
        return real(trainer, micro_batches, step=step, stop_requested=stop_requested)

    with monkeypatch.context() as patch:
        patch.setattr(running, "update", update)
        with pytest.raises(Crash):
            _run(folder, method, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_every_policy_gives_the_same_bits(tmp_path, kind):
    runs = [_run(tmp_path / str(index), KINDS[kind], **_keys(policy)) for index, policy in enumerate(POLICIES)]
    assert runs[0].moved > 1e-3
    for policy, run in zip(POLICIES, runs, strict=True):
        assert distance(runs[0], run) == 0.0, policy
        assert run.losses == runs[0].losses, policy


@pytest.mark.parametrize("policy", POLICIES[1:], ids=str)
def test_a_run_goes_on_with_another_policy(tmp_path, monkeypatch, policy):
    method = KINDS["lora with dropout"]
    whole = _run(tmp_path / "whole", method)
    _cut(tmp_path / "cut", monkeypatch, method, 3)
    resumed = _run(tmp_path / "cut", method, **_keys(policy))
    assert resumed.result.resumed_from == 3
    assert distance(whole, resumed) == 0.0
    assert whole.losses == resumed.losses


@pytest.mark.parametrize(
    "change",
    [
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}, {"learning_rate": 1e-3},
        {"optim": "adamw_torch"}, {"seed": 1},
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_bits_is_refused(tmp_path, monkeypatch, change):
    _cut(tmp_path, monkeypatch, FULL, 2)
    with pytest.raises(RecipeError) as caught:
        _run(tmp_path, FULL, **change)
    assert caught.value.problems[0].code == "T432"


def test_the_split_of_a_step_changes_rounding(tmp_path):
    """Why it is part of the fingerprint."""
    one = _run(tmp_path / "one", FULL)
    other = _run(tmp_path / "other", FULL, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    assert 0.0 < distance(one, other) < 1e-3


def test_the_base_kept_unpacked_is_part_of_it():
    recipe = resolved()
    model = recipe.recipe.model.model_copy(update={"dequantize_base": True})
    other = SimpleNamespace(recipe=recipe.recipe.model_copy(update={"model": model}))
    assert _fingerprint(recipe) != _fingerprint(other)
