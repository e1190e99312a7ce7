"""Contract: a step over preferences is the mean of its rows' losses, whatever its split; the first one knows no
difference from the reference; the reference is the start.

The losses expected here come from the model's own forward, one answer at a time, and the formula written out.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from luthier.data.types import Pack, RowRef
from luthier.objective import dpo
from luthier.runtime.errors import DataError
from luthier.train import feed, loop, reference, running
from tests.support.pairs import Preferences, log_probs, pairs, preferences, rated, unshared
from tests.support.tiny import tiny_model
from tests.train.preference_support import DPO, logged, tune
from tests.train.short_of_memory import short_of_memory
from tests.train.support import FULL, LORA, data, distance, examples, resolved, train, tuned

LN2 = math.log(2.0)
OBJECTIVES = {
    "dpo": DPO, "ipo": {"name": "dpo", "beta": 0.5, "loss_type": "ipo"}, "orpo": {"name": "orpo", "beta": 0.1},
    "simpo": {"name": "simpo", "beta": 2.0, "simpo_gamma": 1.0}, "kto": {"name": "kto", "beta": 0.1},
}  # fmt: skip
DROPPED = {"method": {**LORA, "lora_dropout": 0.4}, "learning_rate": 3e-2}


def rows_of(name: str, n: int = 24, **settings):
    return (rated if name == "kto" else pairs)(n, **settings)


# -- the first step


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("method", [FULL, LORA, {**LORA, "lora_dropout": 0.4}, {**LORA, "use_dora": True}])
def test_the_first_loss_is_log_2_and_nothing_is_a_reward_yet(tmp_path, method, packed):
    run = tune(tmp_path, preferences(packed=packed), method=method, max_steps=2, per_device_train_batch_size=2)
    assert run.losses[0] == pytest.approx(LN2, abs=1e-6)
    assert run.metrics[0]["rewards/chosen"] == pytest.approx(0.0, abs=1e-5)
    assert run.metrics[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert run.moved > 1e-4


def trained_adapter(folder, *, dropout: float = 0.0):
    """Folder of an adapter that is far from nothing."""
    before = tune(folder, max_steps=4, method={**LORA, "lora_dropout": dropout}, learning_rate=3e-2)
    assert before.moved > 1e-2
    return folder / "final"


def test_with_an_adapter_to_go_on_from_the_reference_is_that_adapter(tmp_path):
    """As TRL's copy of it; not the bare base."""
    adapter = trained_adapter(tmp_path / "before")
    method = {**LORA, "init_from": str(adapter)}
    run = tune(tmp_path / "after", max_steps=2, method=method)
    assert run.losses[0] == pytest.approx(LN2, abs=1e-6)
    model = tuned(resolved(method=method)).model.eval()
    held_out = preferences(validation=3)
    run = tune(tmp_path / "again", held_out, max_steps=1, method=method, learning_rate=1e-9)
    found = json.loads((run.folder.path / "eval" / "preference_rows.json").read_text())["rows"]
    for row, item in zip(held_out.validation, found, strict=True):
        assert item["before"] == pytest.approx(log_probs(model, row).tolist(), abs=1e-4)
        assert item["before"] != pytest.approx(log_probs(tiny_model(), row).tolist(), abs=1e-2)


def test_planted_a_reference_with_dropout_is_seen(tmp_path, monkeypatch):
    """The adapter starts from something, so dropout in the reference pass would change it."""
    method = {**LORA, "init_from": str(trained_adapter(tmp_path / "before", dropout=0.4))}
    adapter = json.loads((tmp_path / "before" / "final" / "adapter_config.json").read_text())
    assert adapter["lora_dropout"] == 0.4, "the adapter brings its dropout"
    # The policy's dropout is there in the first step, so its loss is not log 2 either: compare the reference itself.
    held_out = preferences(validation=4)

    def before(folder):
        run = tune(folder, held_out, max_steps=1, method=method)
        found = json.loads((run.folder.path / "eval" / "preference_rows.json").read_text())["rows"]
        return [value for item in found for value in item["before"]]

    model = tuned(resolved(method=method)).model.eval()
    plain = [value for row in held_out.validation for value in log_probs(model, row).tolist()]
    assert before(tmp_path / "right") == pytest.approx(plain, abs=1e-4)
    monkeypatch.setattr(reference, "quiet", lambda module: torch.no_grad())
    assert before(tmp_path / "wrong") != pytest.approx(plain, abs=1e-2)


# -- the loss


def by_hand(objective, model, start, row):
    """(loss, chosen reward) of one pair."""
    policy, ref = log_probs(model, row), log_probs(start, row)
    tokens = [sum(weights) for weights in row.weights]
    if objective["name"] == "dpo" and objective.get("loss_type") == "ipo":
        gap = (policy - ref) / torch.tensor(tokens)
        return float((gap[0] - gap[1] - 1 / (2 * objective["beta"])) ** 2)
    if objective["name"] == "dpo":
        gap = policy - ref
        return float(-torch.nn.functional.logsigmoid(objective["beta"] * (gap[0] - gap[1])))
    mean = policy / torch.tensor(tokens)
    if objective["name"] == "simpo":
        return float(-torch.nn.functional.logsigmoid(2.0 * (mean[0] - mean[1]) - 1.0))
    odds = mean - torch.log1p(-mean.exp())
    return float(-mean[0] - 0.1 * torch.nn.functional.logsigmoid(odds[0] - odds[1]))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["dpo", "ipo", "orpo", "simpo"])
def test_the_loss_of_a_step_is_the_mean_over_its_rows(tmp_path, name, packed):
    """After two steps, so that policy and reference differ; some tokens inside answers do not count."""
    prepared = preferences(rows_of(name, 48, context=True), packed=packed)
    settings = {"objective": OBJECTIVES[name], "shuffle": False, "per_device_train_batch_size": 2}
    run = tune(tmp_path / "three", prepared, max_steps=3, **settings)
    two = tune(tmp_path / "two", prepared, max_steps=2, **settings)
    rows = [prepared.train[i] for pack in prepared.packs[4:6] for i in pack.examples]
    losses = [by_hand(OBJECTIVES[name], two.model.eval(), tiny_model().eval(), row) for row in rows]
    assert run.losses[2] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_no_split_moves_the_trajectory(tmp_path, name, method):
    """ORPO's loss a token and KTO's reference point are of the whole step. (SGD for adapters: Adam makes a full step of
    a gradient that is nothing but rounding, as lora_A's is at first.)"""
    adapters = {"method": LORA, "optim": "sgd", "learning_rate": 0.1 if name == "ipo" else 2.0}
    settings = {"full": {}, "lora": adapters}[method]
    prepared = preferences(rows_of(name, 32), validation=5)
    runs = [
        tune(tmp_path / f"{batch}x{accumulate}", prepared, objective=OBJECTIVES[name], max_steps=3, eval_steps=3,
             per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate, **settings)
        for batch, accumulate in ((8, 1), (2, 4), (1, 8))
    ]  # fmt: skip
    assert runs[0].moved >= 1e-3
    for other in runs[1:]:
        assert distance(runs[0], other) <= 5e-5
        for mine, theirs in zip(runs[0].metrics, other.metrics, strict=True):
            assert mine == {key: pytest.approx(value, rel=1e-4, abs=1e-5) for key, value in theirs.items()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_packed_and_unpacked_rows_give_one_trajectory(tmp_path, name):
    rows = rows_of(name, 32)
    packs = [Pack(tuple(range(s, s + 4)), sum(map(len, rows[s : s + 4]))) for s in range(0, 32, 4)]
    settings = {"objective": OBJECTIVES[name], "shuffle": False, "max_steps": 4}
    one = tune(tmp_path / "packed", Preferences(rows, [], packs), per_device_train_batch_size=2, **settings)
    other = tune(tmp_path / "single", preferences(rows), per_device_train_batch_size=8, **settings)
    assert distance(one, other) <= 5e-5
    assert one.losses == pytest.approx(other.losses, abs=1e-5)
    assert one.moved >= 1e-3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_shared_prompts_give_the_trajectory_of_copied_ones(tmp_path, name, monkeypatch):
    """The plain layout: every answer with its own copy of the prompt."""
    rows = rows_of(name, 16)
    settings = {"objective": OBJECTIVES[name], "max_steps": 4, "per_device_train_batch_size": 4}
    shared = tune(tmp_path / "shared", preferences(rows), **settings)
    monkeypatch.setattr(feed, "collate_rows", lambda rows: unshared(list(rows)))
    monkeypatch.setattr(reference, "collate_branched", lambda rows: unshared(list(rows)))
    copied = tune(tmp_path / "copied", preferences(rows), **settings)
    assert distance(shared, copied) <= 5e-5
    assert shared.losses == pytest.approx(copied.losses, abs=1e-5)
    if name != "kto":
        assert sum(logged(copied, "tokens")) > sum(logged(shared, "tokens"))


# -- planted bugs


def sum_for_mean(scored):
    return scored.pair(scored.log_ratios)[0] - scored.pair(scored.log_ratios)[1]


PLANTED = {
    "the sign of the margin": ("_gap", lambda self, scored: -self.beta * sum_for_mean(scored), "dpo"),
    "beta twice": ("_gap", lambda self, scored: self.beta**2 * sum_for_mean(scored), "dpo"),
    "sum for mean": ("_gap_of_means", sum_for_mean, "ipo"),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_of_the_formula_are_seen(tmp_path, bug, monkeypatch):
    function, wrong, name = PLANTED[bug]
    monkeypatch.setattr(dpo, function, wrong)
    with pytest.raises(AssertionError):
        test_the_loss_of_a_step_is_the_mean_over_its_rows(tmp_path, name, False)


def test_planted_a_missing_first_token_is_seen(tmp_path, monkeypatch):
    """The first token of an answer is predicted from the last of the prompt."""
    real = feed.collate_rows

    def without_first(rows):
        cut = [replace(row, weights=[[0.0, *weights[1:]] for weights in row.weights]) for row in rows]
        batch = real(cut)
        lengths = batch.answers.lengths + 1.0
        return replace(batch, answers=replace(batch.answers, lengths=lengths))

    monkeypatch.setattr(feed, "collate_rows", without_first)
    for name in ("dpo", "simpo"):
        with pytest.raises(AssertionError):
            test_the_loss_of_a_step_is_the_mean_over_its_rows(tmp_path / name, name, False)


# -- validation, memory, errors


def test_validation_is_over_all_held_out_rows_and_has_the_names_of_training(tmp_path):
    prepared = preferences(validation=7)
    run = tune(tmp_path, prepared, max_steps=3, eval_steps=3, per_device_train_batch_size=2)
    line = next(line for line in run.metrics if "eval_loss" in line)
    losses = [by_hand(DPO, run.model.eval(), tiny_model().eval(), row) for row in prepared.validation]
    assert line["eval_loss"] == pytest.approx(sum(losses) / 7, rel=1e-4)
    names = {key.removeprefix("eval_") for key in line} - {"step", "loss", "tokens"}
    assert names < set(run.metrics[0])
    right = 0
    for row in prepared.validation:
        gap = log_probs(run.model, row) - log_probs(tiny_model(), row)
        right += int(gap[0] > gap[1])
    assert line["eval_rewards/accuracies"] == pytest.approx(right / 7)


def test_the_held_out_answers_are_written_before_and_after(tmp_path):
    prepared = preferences(validation=5)
    run = tune(tmp_path, prepared, max_steps=3)
    found = json.loads((run.folder.path / "eval" / "preference_rows.json").read_text())
    for row, item in zip(prepared.validation, found["rows"], strict=True):
        assert item["before"] == pytest.approx(log_probs(tiny_model(), row).tolist(), rel=1e-5)
        assert item["after"] == pytest.approx(log_probs(run.model.eval(), row).tolist(), rel=1e-5)
        assert item["before"] != item["after"]
        assert item["tokens"] == [len(answer) for answer in row.answers]


def test_out_of_memory_halves_by_rows_and_loses_nothing(tmp_path):
    rows = [
        replace(row, prompt=row.prompt[:3], answers=[[7, 8, 9]] * 2, weights=[[1.0] * 3] * 2, margin=float(i % 3))
        for i, row in enumerate(pairs(16))
    ]
    small = tune(tmp_path / "small", preferences(rows), max_steps=3, per_device_train_batch_size=2,
                 gradient_accumulation_steps=4)  # fmt: skip
    with short_of_memory(20) as memory:
        run = tune(tmp_path / "halved", preferences(rows), max_steps=3, per_device_train_batch_size=8)
    assert memory.failures == 2
    assert distance(small, run) == 0.0
    assert small.metrics == run.metrics


def test_the_reference_pass_halves_too(tmp_path, monkeypatch):
    from luthier.fast.loss import LossModule

    real, sizes = LossModule.answer_values, []

    def short(self, batch):
        sizes.append(batch.tokens)
        if batch.tokens > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batch)

    whole = tune(tmp_path / "whole", max_steps=2)
    monkeypatch.setattr(LossModule, "answer_values", short)
    run = tune(tmp_path / "halved", max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert max(sizes) > 200
    assert run.losses == pytest.approx(whole.losses, abs=1e-6)


def test_rows_of_another_kind_are_refused(tmp_path):
    with pytest.raises(DataError, match="trains on pairs of answers") as caught:
        tune(tmp_path / "a", preferences(rated()))
    assert caught.value.problems[0].code == "T477"
    with pytest.raises(DataError, match="rated answers"):
        tune(tmp_path / "b", preferences(pairs()), objective=OBJECTIVES["kto"])
    with pytest.raises(DataError, match="trains on examples"):
        train(tmp_path / "c", preferences(pairs()), recipe=resolved())
    with pytest.raises(DataError, match="are examples"):
        tune(tmp_path / "d", data(examples(8)))


def test_margins_that_would_be_ignored_are_refused(tmp_path):
    rows = [replace(row, margin=1.0) for row in pairs(8)]
    with pytest.raises(DataError, match="8 rows have a margin") as caught:
        tune(tmp_path / "a", preferences(rows), objective=OBJECTIVES["orpo"])
    assert caught.value.problems[0].code == "T478"
    run = tune(tmp_path / "b", preferences(rows), max_steps=1)
    assert run.losses[0] == pytest.approx(math.log(1 + math.exp(1.0)), abs=1e-5)


def test_a_reference_that_is_not_finite_names_its_rows(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[599] = math.nan
    rows = pairs(8)
    rows = [replace(row, prompt=[4 if i == 599 else i for i in row.prompt]) for row in rows]
    rows[3] = replace(rows[3], prompt=[599, *rows[3].prompt], ref=RowRef("pairs.jsonl", 4))
    with pytest.raises(Exception, match=r"reference of 1 rows is not finite.*pairs.jsonl:4"):
        tune(tmp_path, preferences(rows), model=model)


# -- resume and cache


class Crash(Exception):
    """Stands for a kill between two steps."""


def crash_at(monkeypatch, limit):
    real = running.update

    def update(trainer, micro_batches, *, step, stop_requested):
        if step + 1 == limit:
            raise Crash
        return real(trainer, micro_batches, step=step, stop_requested=stop_requested)

    monkeypatch.setattr(running, "update", update)
    return lambda: monkeypatch.setattr(running, "update", real)


@pytest.mark.parametrize("name", ["dpo", "kto", "orpo"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path, name, method, monkeypatch):
    settings = {"full": {}, "lora": DROPPED}[method]
    settings = {**settings, "objective": OBJECTIVES[name], "max_steps": 5, "save_steps": 1, "eval_steps": 2,
                "per_device_train_batch_size": 4}  # fmt: skip
    prepared = preferences(rows_of(name, 16), validation=4)
    whole = tune(tmp_path / "whole", prepared, **settings)
    heal = crash_at(monkeypatch, 4)
    with pytest.raises(Crash):
        tune(tmp_path / "cut", prepared, **settings)
    heal()
    resumed = tune(tmp_path / "cut", prepared, **settings)
    assert resumed.result.resumed_from == 3
    assert distance(whole, resumed) == 0.0
    assert whole.metrics == resumed.metrics
    files = [json.loads((tmp_path / run / "eval" / "preference_rows.json").read_text()) for run in ("whole", "cut")]
    assert files[0] == files[1], "the start is the start, also after a resume"


def test_planted_a_reference_of_resumed_weights_is_seen(tmp_path, monkeypatch):
    """Restoring the checkpoint before the reference is taken must not go unnoticed."""
    settings = {"max_steps": 5, "save_steps": 1, "per_device_train_batch_size": 4}
    prepared = preferences(pairs(16), validation=2)
    whole = tune(tmp_path / "whole", prepared, **settings)
    heal = crash_at(monkeypatch, 4)
    for name in ("right", "wrong"):
        with pytest.raises(Crash):
            tune(tmp_path / name, prepared, **settings)
    heal()
    assert tune(tmp_path / "right", prepared, **settings).metrics == whole.metrics
    found, rows = [], loop.prepare_rows
    find = loop.find
    monkeypatch.setattr(loop, "find", lambda run, identity: found.append(find(run, identity)) or found[-1])

    def too_late(trainer, data, **more):
        loop.restore(trainer, found[-1])
        return rows(trainer, data, **more)

    monkeypatch.setattr(loop, "prepare_rows", too_late)
    assert tune(tmp_path / "wrong", prepared, **settings).metrics != whole.metrics


def test_another_adapter_under_the_same_path_is_not_resumed_with(tmp_path, monkeypatch):
    from luthier.runtime.errors import RecipeError

    method = {**LORA, "init_from": str(trained_adapter(tmp_path / "first"))}
    settings = {"method": method, "max_steps": 4, "save_steps": 1}
    heal = crash_at(monkeypatch, 3)
    with pytest.raises(Crash):
        tune(tmp_path / "run", **settings)
    heal()
    tune(tmp_path / "first", max_steps=4, restart=True, **{**DROPPED, "learning_rate": 1e-2})
    with pytest.raises(RecipeError, match="reference"):
        tune(tmp_path / "run", **settings)


def computed(monkeypatch) -> list[str]:
    """Labels of the references that are computed from now on."""
    real, labels = reference.answer_values, []

    def watch(trainer, rows, *, label, tokens):
        labels.append(label)
        return real(trainer, rows, label=label, tokens=tokens)

    monkeypatch.setattr(reference, "answer_values", watch)
    return labels


def test_a_second_run_over_the_same_rows_takes_the_cached_reference(tmp_path, monkeypatch):
    labels = computed(monkeypatch)
    prepared = preferences(validation=3)
    one = tune(tmp_path / "one", prepared, max_steps=3, reference_cache=tmp_path / "cache")
    assert labels == ["start: training rows", "start: validation rows"]
    other = tune(
        tmp_path / "two", prepared, max_steps=3, reference_cache=tmp_path / "cache",
        objective={"name": "dpo", "beta": 0.7},
    )  # fmt: skip
    again = tune(tmp_path / "three", prepared, max_steps=3, reference_cache=tmp_path / "cache")
    assert labels == ["start: training rows", "start: validation rows"], "beta is no part of the reference"
    assert distance(one, again) == 0.0
    assert distance(one, other) > 0.0
    changed = preferences([replace(prepared.train[0], prompt=[5, *prepared.train[0].prompt]), *prepared.train[1:]])
    tune(tmp_path / "four", changed, max_steps=1, reference_cache=tmp_path / "cache")
    assert labels[2:] == ["start: training rows"]


@pytest.mark.parametrize("damage", ["bytes", "half", "other model"])
def test_a_damaged_or_wrong_cache_is_not_believed(tmp_path, monkeypatch, damage):
    labels = computed(monkeypatch)
    cache = tmp_path / "cache"
    right = tune(tmp_path / "one", max_steps=2, reference_cache=cache)
    (entry,) = cache.glob("*/values.npy")
    if damage == "bytes":
        values = np.load(entry)
        values[5] += 1.0
        np.save(entry, values)
    elif damage == "half":
        entry.write_bytes(entry.read_bytes()[:-40])
    model = tiny_model(seed=1) if damage == "other model" else None  # under the same hash: a lie of the fingerprint
    labels.clear()
    again = tune(tmp_path / "two", max_steps=2, reference_cache=cache, model=model)
    assert labels == ["start: training rows"]
    assert again.losses[0] == pytest.approx(LN2, abs=1e-6)
    if damage != "other model":
        assert distance(right, again) == 0.0


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    blocked = tmp_path / "cache"
    blocked.touch()
    run = tune(tmp_path / "run", max_steps=1, reference_cache=blocked)
    assert run.losses[0] == pytest.approx(LN2, abs=1e-6)


def test_kto_pairs_prompts_with_the_answers_of_the_same_step(tmp_path, monkeypatch):
    """Every answer of a step once, behind the prompt of another row; the same whatever the split."""
    from luthier.train import kl

    seen = []
    real = kl.log_ratio_sum
    monkeypatch.setattr(kl, "log_ratio_sum", lambda trainer, batches: seen.append(batches) or real(trainer, batches))
    rows = rated(12)
    run = tune(tmp_path, preferences(rows), objective=OBJECTIVES["kto"], max_steps=2, shuffle=False,
               per_device_train_batch_size=3, gradient_accumulation_steps=2)  # fmt: skip
    assert len(seen) == 4
    pieces = [batch for batches in seen[:2] for batch in batches]
    ids = [batch.input_ids.tolist() for batch in pieces]
    expected = [list(rows[i].prompt) + list(rows[(i - 1) % 6].answers[0]) for i in range(6)]
    assert ids[0] + ids[1] == [token for row in expected for token in row]
    assert run.losses


def test_a_step_of_one_row_has_no_reference_point(tmp_path):
    run = tune(tmp_path, preferences(rated(3)), objective=OBJECTIVES["kto"], max_steps=3, per_device_train_batch_size=1)
    assert logged(run, "kl") == [0.0, 0.0, 0.0]
