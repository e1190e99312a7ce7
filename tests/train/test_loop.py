"""Contract: what `fit` leaves, measures and decides: metrics, validation, best, early stopping, trackers, memory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from luthier.runtime.errors import DataError, EnvironmentProblem, OutOfMemory, RecipeError
from luthier.runtime.trackers import PACKAGES
from luthier.train import trackers
from luthier.train.checkpoint import checkpoints, load_tensors, verify
from tests.support.tiny import tiny_model
from tests.train.support import LORA, Data, data, distance, examples, flat, reference_nll, resolved, train, tuned

METRICS = {
    "step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "trained_tokens", "seconds", "tokens_per_second",
    "token_accuracy",
}  # fmt: skip


def test_metric_lines_hold_what_the_brief_names_at_full_precision(tmp_path):
    run = train(tmp_path, max_steps=3)
    lines = run.folder.read_lines("metrics.jsonl")
    assert [set(line) for line in lines] == [METRICS] * 3
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()[0]
    assert repr(run.result.first_loss) in text
    assert run.result.losses == tuple((line["step"], line["loss"]) for line in lines)


def test_announced_steps_are_executed_steps_and_counts_are_exact(tmp_path):
    """B32, B53."""
    prepared = data(examples(21), packed=True)
    run = train(tmp_path, prepared, num_train_epochs=2.5, per_device_train_batch_size=2)
    steps = -(-len(prepared.packs) // 2)
    assert run.result.total_steps == run.result.steps == len(run.losses) == -(-5 * steps // 2)
    tokens = [line["tokens"] for line in run.metrics]
    assert sum(tokens[: 2 * steps]) == 2 * sum(len(row) for row in prepared.train)
    assert run.metrics[2 * steps - 1]["epoch"] == 2.0
    assert run.result.tokens == sum(tokens)


def test_accuracy_counts_targets_that_are_the_first_choice(tmp_path):
    row = examples(1)[0]
    run = train(tmp_path, data([row]), max_steps=40, learning_rate=1e-2)
    assert run.metrics[0]["token_accuracy"] < 0.2
    assert run.metrics[-1]["token_accuracy"] == 1.0


# -- validation


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_validation_loss_does_not_depend_on_the_batch_size(tmp_path, batch):
    """B51: 5.277, 5.267, 5.261 at batch 1, 8, 64 elsewhere. The reference runs row by row."""
    prepared = data(examples(8), validation=23)
    run = train(tmp_path, prepared, max_steps=1, per_device_train_batch_size=batch, shuffle=False)
    with torch.no_grad():
        nll = sum(float(reference_nll(run.model, row)[0]) for row in prepared.validation)
    tokens = sum(row.trained_tokens for row in prepared.validation)
    assert run.result.eval_loss == pytest.approx(nll / tokens, rel=1e-6)
    assert [line["eval_tokens"] for line in run.metrics if "eval_loss" in line] == [tokens]


def test_validation_repeats_bitwise_with_dropout_and_noise_and_moves_nothing(tmp_path):
    """B17, B18: no dropout, no NEFTune, no label smoothing in the validation loss; training goes on as without it."""
    settings = {
        "method": {**LORA, "lora_dropout": 0.5}, "learning_rate": 5e-3, "max_steps": 4,
        "objective": {"neftune_noise_alpha": 5.0, "label_smoothing": 0.1},
    }  # fmt: skip
    prepared = data(validation=9)
    often = train(tmp_path / "often", prepared, eval_steps=1, **settings)
    once = train(tmp_path / "once", prepared, **settings)
    assert distance(often, once) == 0.0
    assert often.result.eval_loss == once.result.eval_loss
    with torch.no_grad():
        often.model.eval()
        nll = sum(float(reference_nll(often.model, row)[0]) for row in prepared.validation)
    assert often.result.eval_loss == pytest.approx(nll / sum(r.trained_tokens for r in prepared.validation), rel=1e-6)


def test_noise_changes_training_and_only_training(tmp_path):
    plain = train(tmp_path / "0", max_steps=1)
    noisy = train(tmp_path / "1", max_steps=1, objective={"neftune_noise_alpha": 5.0})
    assert plain.losses != noisy.losses


def test_evaluations_come_when_asked_and_at_the_end(tmp_path):
    prepared = data(validation=4)
    for name, rows, every, steps in (("a", prepared, 2, [2, 4, 5]), ("b", prepared, None, [5]), ("c", data(), 1, [])):
        run = train(tmp_path / name, rows, max_steps=5, eval_steps=every)
        assert [line["step"] for line in run.metrics if "eval_loss" in line] == steps


# -- early stopping and the best checkpoint

OVERFIT = {"eval_steps": 1, "learning_rate": 3e-2, "num_train_epochs": 8}


def evaluations(run) -> list[float]:
    return [line["eval_loss"] for line in run.metrics if "eval_loss" in line]


def test_early_stopping_stops_after_patience_evaluations_without_a_new_best(tmp_path):
    run = train(tmp_path, data(examples(16), validation=8), early_stopping_patience=3, **OVERFIT)
    losses = evaluations(run)
    assert run.result.stopped == "early_stopping"
    assert run.result.steps == len(losses) < run.result.total_steps
    best = losses.index(min(losses)) + 1
    assert (run.result.best_step, run.result.best_eval_loss) == (best, min(losses))
    assert len(losses) == best + 3
    assert run.result.weights_from_step == run.result.steps, "the last weights, unless the best are asked for"


def test_the_threshold_is_how_much_lower_a_best_must_be(tmp_path):
    settings = {**OVERFIT, "learning_rate": 1e-4, "num_train_epochs": 3, "early_stopping_patience": 2}
    prepared = data(examples(16), validation=8)
    patient = train(tmp_path / "0", prepared, **settings)
    strict = train(tmp_path / "1", prepared, early_stopping_threshold=10.0, **settings)
    assert strict.result.steps == 3, "the first is a best, then two are not lower by 10"
    assert patient.result.steps > strict.result.steps


def test_the_best_weights_are_taken_when_asked_for(tmp_path):
    prepared = data(examples(16), validation=8)
    settings = {**OVERFIT, "early_stopping_patience": 3}
    best = train(tmp_path / "best", prepared, load_best_model_at_end=True, save_total_limit=2, **settings)
    step = best.result.best_step
    assert best.result.weights_from_step == step < best.result.steps
    saved = load_tensors(tmp_path / f"best/checkpoints/step-{step}", "trainable")
    assert torch.equal(best.weights, flat({name: saved[name] for name in best.start}))
    with torch.no_grad():
        nll = sum(float(reference_nll(best.model, row)[0]) for row in prepared.validation)
    trained = sum(row.trained_tokens for row in prepared.validation)
    assert best.result.best_eval_loss == pytest.approx(nll / trained, rel=1e-6)
    from safetensors.torch import load_file

    final = load_file(tmp_path / "best/final/model.safetensors")
    assert torch.equal(final["model.norm.weight"], saved["model.norm.weight"])


def test_the_best_checkpoint_outlives_the_limit(tmp_path):
    prepared = data(examples(16), validation=8)
    settings = {**OVERFIT, "num_train_epochs": 5, "save_steps": 1, "save_total_limit": 2}
    run = train(tmp_path, prepared, **settings)
    kept = [item.step for item in checkpoints(tmp_path / "checkpoints")]
    assert run.result.best_step < run.result.steps - 2
    assert kept == [run.result.best_step, run.result.steps - 1, run.result.steps]
    assert all(verify(item.path) == [] for item in checkpoints(tmp_path / "checkpoints"))


def test_without_save_steps_only_the_last_checkpoint_is_written(tmp_path):
    train(tmp_path, max_steps=3)
    assert [item.step for item in checkpoints(tmp_path / "checkpoints")] == [3]


@pytest.mark.parametrize("key", [{"early_stopping_patience": 2}, {"load_best_model_at_end": True}])
def test_what_needs_validation_rows_says_so_before_training(tmp_path, key):
    with pytest.raises(DataError, match="needs validation rows") as caught:
        train(tmp_path, max_steps=1, **key)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "metrics.jsonl").exists()


def test_an_empty_set_ends_before_the_first_step(tmp_path):
    """B06."""
    with pytest.raises(DataError, match="no row to train on"):
        train(tmp_path, Data([], [], []), max_steps=1)


def test_an_unresolved_recipe_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="not resolved"):
        train(tmp_path, max_steps=1, learning_rate="auto")


def test_a_model_without_trained_weights_is_refused(tmp_path):
    recipe = resolved(max_steps=1)
    subject = tuned(recipe)
    subject.model.requires_grad_(False)
    from luthier.runs.folder import RunFolder
    from luthier.train.loop import fit

    with pytest.raises(RecipeError, match="no weight is trained"):
        fit(subject, data(), recipe, run=RunFolder(tmp_path), tokenizer=None, fingerprint={})


# -- trackers and memory


def test_a_missing_tracker_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.runtime.trackers.PACKAGES", {**PACKAGES, "wandb": ("no_such_package",)})
    with pytest.raises(EnvironmentProblem, match=r"wandb, which is not installed") as caught:
        train(tmp_path, max_steps=1, report_to=["wandb"])
    assert caught.value.exit_code == 4
    assert not (tmp_path / "metrics.jsonl").exists()


def test_trackers_get_every_line(tmp_path, monkeypatch):
    """accelerate's own interface, with a tracker class of ours under a known name."""
    from accelerate.tracking import GeneralTracker, on_main_process

    seen: list[tuple[int, dict]] = []
    started: list[dict] = []

    class Recorder(GeneralTracker):
        name = "tensorboard"
        requires_logging_directory = False
        main_process_only = True

        def __init__(self, run_name, **kwargs):
            super().__init__()

        @property
        def tracker(self):
            return seen

        @on_main_process
        def store_init_configuration(self, values):
            started.append(values)

        @on_main_process
        def log(self, values, step=None, **kwargs):
            seen.append((step, values))

    monkeypatch.setattr(trackers, "require_trackers", lambda names: None)
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda *a, **k: [Recorder("x")])
    run = train(tmp_path, data(validation=4), max_steps=2, report_to=["tensorboard"])
    assert [step for step, _ in seen] == [1, 2, 2]
    assert seen[0][1]["loss"] == run.losses[0]
    assert "eval_loss" in seen[2][1]
    assert started[0]["train.learning_rate"] == 1e-3


@pytest.mark.parametrize(
    ("error", "settings", "hint"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), {"per_device_train_batch_size": 6}, "batch_size=3"),
        (
            RuntimeError("alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            {},
            "batch_size=4",
        ),
        (MemoryError(), {"per_device_train_batch_size": 1}, "gradient_checkpointing=true"),
        (MemoryError(), {"per_device_train_batch_size": 1, "gradient_checkpointing": True}, "method.name=lora"),
    ],
)
def test_running_out_of_memory_names_the_smallest_change(tmp_path, monkeypatch, error, settings, hint):
    """F05, B63: the hint never changes the sequences of a step."""
    from luthier.train import running

    def update(*args, **kwargs):
        raise error

    monkeypatch.setattr(running, "update", update)
    with pytest.raises(OutOfMemory) as caught:
        train(tmp_path, max_steps=1, **settings)
    assert caught.value.exit_code == 5
    assert hint in str(caught.value)


def test_other_runtime_errors_are_left_alone(tmp_path, monkeypatch):
    from luthier.train import running

    def update(*args, **kwargs):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(running, "update", update)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        train(tmp_path, max_steps=1)


# -- the record


def test_the_record_is_json_and_agrees_with_the_metrics(tmp_path):
    run = train(tmp_path, data(validation=4), max_steps=3, method=LORA, learning_rate=5e-3)
    value = json.loads(json.dumps(run.result.to_json()))
    assert (value["steps"], value["processes"], value["resumed_from"]) == (3, 1, None)
    assert value["final_loss"] == run.losses[-1]
    assert value["tokens"] == sum(line["tokens"] for line in run.metrics if "loss" in line)
    assert value["peak_bytes"] > 10_000_000
    assert value["checkpoint"] == "checkpoints/step-3"
    assert (tmp_path / value["final"] / "adapter_model.safetensors").is_file()
    events = [line["event"] for line in run.folder.read_lines("events.jsonl")]
    assert events == ["training_started", "checkpoint_saved", "training_finished"]


def test_the_model_is_itself_again_afterwards(tmp_path):
    run = train(tmp_path, max_steps=1)
    row = examples(1)[0]
    reference_nll(run.model, row)  # a plain forward, with the model's own attention
    assert run.model.config._attn_implementation == tiny_model().config._attn_implementation


def test_float16_is_refused_before_anything_is_written(tmp_path):
    recipe = resolved(max_steps=1)
    half = recipe.recipe.model_copy(update={"model": recipe.recipe.model.model_copy(update={"dtype": "float16"})})
    with pytest.raises(RecipeError, match="float16"):
        train(tmp_path, recipe=replace(recipe, recipe=half))
    assert not (tmp_path / "metrics.jsonl").exists() and not (tmp_path / "final").exists()
