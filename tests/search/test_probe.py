"""Contract: a walk gives the numbers of a real run, and leaves the weights as it found them, byte for byte."""

import json
from contextlib import contextmanager

import pytest
import torch

from luthier.pipeline.run import run_recipe
from luthier.pipeline.session import Session
from luthier.pipeline.train_stage import tuned_model
from luthier.runs.folder import RunFolder
from luthier.runtime.errors import RecipeError
from luthier.search.range_test import range_test
from luthier.search.short_runs import short_run
from luthier.train.probe import Start, probing
from luthier.train.round_trip import AtOnce
from tests.search.world import bytes_of, recipe


def with_rows(world, changes):
    """Pairs for an objective over preferences."""
    if "objective" not in changes:
        return changes
    return {**changes, "data": {"train": [{"path": str(world / "pairs.jsonl")}]}}


@contextmanager
def probe_of(world, folder, *, steps=8, **changes):
    """A probe on the tiny model."""
    wanted = recipe(world, folder, **with_rows(world, changes))
    run_recipe(wanted, only=("data",))
    session = Session(wanted, RunFolder(folder))
    with probing(
        tuned_model(session), session.prepared, session.resolved, run=session.run, steps=steps,
        validation=session.prepared.validation,
    ) as probe:  # fmt: skip
        yield probe


def whole_state(probe):
    """Weights and masters."""
    weights = probe.trainer.weights
    return bytes_of(weights.live), bytes_of(weights.tensors)


WAYS = {
    "full": {},
    "full bf16": {"model": {"dtype": "bfloat16"}},
    "lora": {"method": {"name": "lora", "r": 4}},
    "lora bf16, dropout": {"method": {"name": "lora", "r": 4, "lora_dropout": 0.1}, "model": {"dtype": "bfloat16"}},
    "freeze": {"method": {"name": "freeze", "last_n_layers": 1}},
    "8 bit": {"train": {"optim": "adamw_8bit"}},
    "adafactor": {"train": {"optim": "adafactor"}},
    "lora+": {"method": {"name": "lora", "r": 4}, "train": {"loraplus_lr_ratio": 16.0}},
    "pissa": {"method": {"name": "lora", "r": 4, "init_lora_weights": "pissa"}},
    "spectrum": {"method": {"name": "spectrum", "top_percent": 50}},
    "dpo": {"method": {"name": "lora", "r": 4}, "objective": {"name": "dpo"}},
    "orpo": {"objective": {"name": "orpo"}},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_walk_is_undone_byte_for_byte(world, tmp_path, way):
    with probe_of(world, tmp_path / "run", **WAYS[way]) as probe:
        before = whole_state(probe)
        with probe.from_start():
            list(probe.walk(1e-2, 4))
            during = whole_state(probe)
            assert during[0] != before[0] and during[1] != before[1], "it did train"
        assert whole_state(probe) == before
        with pytest.raises(KeyError), probe.from_start():
            next(probe.walk(1e-2, 4))
            raise KeyError("in the middle of a walk")
        assert whole_state(probe) == before
        range_test(probe, low=1e-3, high=1e4, steps=8)
        assert whole_state(probe) == before, "after divergence too"
        assert all(parameter.grad is None for parameter in probe.trainer.weights.live.values())


def test_planted_weights_that_are_not_restored_are_noticed(world, tmp_path, monkeypatch):
    monkeypatch.setattr("luthier.train.masters.Weights.load", lambda self, tensors: None)
    with probe_of(world, tmp_path / "run") as probe:
        before, first = whole_state(probe), short_run(probe, 1e-2, steps=4)
        assert whole_state(probe) != before
        assert short_run(probe, 1e-2, steps=4).eval_loss != first.eval_loss


def test_planted_an_optimizer_that_keeps_its_moments_is_noticed(world, tmp_path, monkeypatch):
    """The weights come back, the moments do not: the second run is another one."""
    with probe_of(world, tmp_path / "run") as probe:
        first = short_run(probe, 1e-2, steps=4)
        assert short_run(probe, 1e-2, steps=4).eval_loss == first.eval_loss
        kept = probe._optimizer(1e-2)
        monkeypatch.setattr(type(probe), "_optimizer", lambda self, rate: kept)
        assert short_run(probe, 1e-2, steps=4).eval_loss == first.eval_loss
        assert short_run(probe, 1e-2, steps=4).eval_loss != first.eval_loss


@pytest.mark.parametrize("way", ["full", "lora bf16, dropout", "8 bit", "lora+", "pissa", "spectrum", "dpo", "orpo"])
def test_a_short_run_is_what_luthier_train_does_with_that_many_steps(world, tmp_path, way):
    """To the last bit: losses of all steps, and the held-out loss. Also after other walks of the same probe."""
    changes = {**WAYS[way], "train": {**WAYS[way].get("train", {}), "warmup_ratio": 0.3, "max_steps": 20}}
    real = {**changes, "train": {**changes["train"], "max_steps": 6, "learning_rate": 3e-3, "eval_steps": None}}
    wanted = recipe(world, tmp_path / "real", **with_rows(world, real))
    result = run_recipe(wanted, only=("data", "train")).stages["train"]
    lines = [json.loads(line) for line in (tmp_path / "real" / "metrics.jsonl").read_text().splitlines()]
    with probe_of(world, tmp_path / "probe", **changes) as probe:
        short_run(probe, 1e-1, steps=3)
        with probe.from_start():
            losses = [done.loss for done in probe.walk(3e-3, 6)]
            held_out = probe.held_out(step=6)
        again = short_run(probe, 3e-3, steps=6)
    assert losses == [line["loss"] for line in lines if "loss" in line]
    assert held_out == result["eval_loss"] == again.eval_loss


def test_the_order_of_short_runs_does_not_matter(world, tmp_path):
    with probe_of(world, tmp_path / "run", method={"name": "lora", "r": 4, "lora_dropout": 0.2}) as probe:
        up = [short_run(probe, rate, steps=4).eval_loss for rate in (1e-4, 1e-3, 1e-2)]
        down = [short_run(probe, rate, steps=4).eval_loss for rate in (1e-2, 1e-3, 1e-4)]
    assert up == down[::-1] and len(set(up)) == 3


def test_a_loss_that_becomes_nan_is_divergence_and_not_an_error(world, tmp_path):
    with probe_of(world, tmp_path / "run") as probe:
        before = whole_state(probe)
        outcome = short_run(probe, 1e38, steps=8)
        assert outcome.diverged and outcome.eval_loss is None
        curve = range_test(probe, low=1e30, high=1e38, steps=8)
        assert curve.stopped and curve.stopped_at >= 1e30
        assert whole_state(probe) == before


def test_the_engine_is_taken_off_and_random_numbers_are_left_alone(world, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state().clone()
    with probe_of(world, tmp_path / "run", method={"name": "lora", "r": 4}) as probe:
        short_run(probe, 1e-3, steps=2)
        model = probe.trainer.engine.model if hasattr(probe.trainer.engine, "model") else None
    assert torch.equal(torch.get_rng_state(), before)
    assert model is None or not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_float16_is_refused_as_in_a_run(world, tmp_path):
    with pytest.raises(RecipeError, match="T474"), probe_of(world, tmp_path / "run", model={"dtype": "float16"}):
        pass


def test_start_keeps_a_copy(world, tmp_path):
    with probe_of(world, tmp_path / "run") as probe:
        start = Start(probe.trainer)
        name, tensor = next(iter(probe.trainer.weights.tensors.items()))
        before = tensor.detach().clone()
        with torch.no_grad():
            tensor.add_(1.0)
        start.restore()
        assert torch.equal(probe.trainer.weights.tensors[name], before)


def test_a_walk_lets_go_of_its_optimizers_state(world, tmp_path):
    """On a GPU masters and moments of `distributed.offload` are pinned by what moves them, which outlives the walk."""

    class Counting(AtOnce):
        released = 0

        def release(self):
            self.released += 1

    changes = {"distributed": {"offload": "optimizer"}, "train": {"optim": "adamw_8bit"}}
    with probe_of(world, tmp_path / "run", **changes) as probe:
        before = whole_state(probe)
        run = probe.trainer.weights.run = Counting()
        for number in (1, 2):
            with probe.from_start():
                list(probe.walk(1e-2, 2))
                assert whole_state(probe) != before
            assert run.released == number and whole_state(probe) == before
