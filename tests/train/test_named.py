"""Contract: every optimizer name of transformers runs, with its own class and exact resume, or is refused with why."""

from __future__ import annotations

import pytest
import torch
from transformers.training_args import OptimizerNames

from luthier.recipe import optimizers
from luthier.recipe.optimizers import OPTIMIZERS, REFUSED, require_optimizer, state_per_element
from luthier.recipe.schema import TrainSection
from luthier.runtime.errors import EnvironmentProblem
from luthier.train.masters import Weights
from luthier.train.optim import expected_state_bytes, make_optimizer
from luthier.train.optim_state import optimizer_state, restore_optimizer, state_bytes
from tests.support.tiny import tiny_model
from tests.train.support import FULL, LORA, data, distance, examples, resolved, train
from tests.train.test_optim import give_gradients, small
from tests.train.test_rates import cut_and_resumed

ARGS = {
    "sgd": {"momentum": 0.9, "nesterov": True}, "rmsprop": {"momentum": 0.9, "centered": True},
    "adagrad": {"lr_decay": 0.1}, "ademamix": {"beta3": 0.99, "alpha": 2.0}, "rmsprop_bnb": {"alpha": 0.9},
    "muon": {"momentum": 0.8, "ns_steps": 4},
}  # fmt: skip
HERE = [
    name for name, facts in OPTIMIZERS.items()
    if not facts.cuda_only and (facts.package is None or __import__("importlib.util").util.find_spec(facts.package))
]  # fmt: skip
VARIANTS = [(name, {}) for name in HERE] + [(name, args) for name, args in ARGS.items() if name in HERE]
IDS = [f"{name}{'+' if args else ''}" for name, args in VARIANTS]


def make(name, tensors, args=None, **keywords):
    return make_optimizer(tensors, TrainSection(optim=name, optim_args=args or {}), learning_rate=1e-2, **keywords)


def test_every_name_of_transformers_is_known_and_nothing_else_but_muon():
    theirs = {name.value for name in OptimizerNames}
    assert theirs == (OPTIMIZERS.keys() | REFUSED.keys()) - {"muon"}
    assert not OPTIMIZERS.keys() & REFUSED.keys()
    literal = TrainSection.model_fields["optim"].annotation
    assert set(literal.__args__) == set(OPTIMIZERS)


@pytest.mark.parametrize(("name", "args"), VARIANTS, ids=IDS)
def test_state_has_the_bytes_of_the_formula_and_survives_a_round_trip(name, args):
    one = small()
    first = make(name, one, args, tables=())
    for step in range(3):
        give_gradients(one, step)
        first.step()
    large, little = state_per_element(name, args)
    assert large <= little
    counters = 4 * 12 + 4 * 256 * 2  # steps, and tables of 8-bit codes, which all tensors share
    assert 0 <= state_bytes(first) - expected_state_bytes(one, name, args) <= counters
    held, numbers = optimizer_state(first, one)
    held = {key: value.clone() for key, value in held.items()}
    two = {key: torch.nn.Parameter(value.detach().clone()) for key, value in one.items()}
    second = make(name, two, args)
    restore_optimizer(second, two, held=held, numbers=numbers)
    for step in range(3, 6):
        for tensors, optimizer in ((one, first), (two, second)):
            give_gradients(tensors, step)
            optimizer.step()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", [name for name in ARGS if name in HERE])
def test_settings_reach_the_optimizer(name):
    """The bug: `optim_args` dropped, or handed on as text that means something else."""
    moved = []
    for args in ({}, ARGS[name]):
        tensors = small()
        optimizer = make(name, tensors, args)
        for step in range(3):
            give_gradients(tensors, step)
            optimizer.step()
        moved.append(tensors["layer.weight"].detach().clone())
    assert float((moved[0] - moved[1]).abs().max()) > 1e-5
    for key, value in ARGS[name].items():
        if key in optimizer.param_groups[0]:
            assert optimizer.param_groups[0][key] == value


@pytest.mark.parametrize("name", [name for name in HERE if not OPTIMIZERS[name].whole])
def test_a_step_may_come_in_parts(name):
    """`Weights.apply` hands 16-bit gradients over some at a time."""
    one, two = small(), small()
    first, second = make(name, one), make(name, two)
    for step in range(3):
        give_gradients(one, step)
        first.step()
        give_gradients(two, step)
        gradients = {key: tensor.grad for key, tensor in two.items()}
        for key in two:
            for other in two.values():
                other.grad = None
            two[key].grad = gradients[key]
            second.step()
    assert all(torch.equal(one[key], two[key]) for key in one)


class Counting(torch.optim.SGD):
    """Counts steps for its groups, as optimi's optimizers do."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", torch.tensor(0)) + 1
            group["setup"] = True
            group["lr"] = 0.1 / int(group["step"])
        return super().step(closure)


def test_counters_of_groups_are_kept():
    one = small()
    first = Counting(one.values(), lr=0.1)
    for step in range(3):
        give_gradients(one, step)
        first.step()
    held, numbers = optimizer_state(first, one)
    assert held["group.0/step"] == 3
    two = {key: torch.nn.Parameter(value.detach().clone()) for key, value in one.items()}
    second = Counting(two.values(), lr=0.1)
    restore_optimizer(second, two, held=held, numbers=numbers)
    for tensors, optimizer in ((one, first), (two, second)):
        give_gradients(tensors, 5)
        optimizer.step()
    assert second.param_groups[0]["step"] == 4
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_an_optimizer_that_counts_calls_gets_all_gradients_in_one(monkeypatch):
    model = tiny_model().to(torch.bfloat16)
    weights = Weights(model)
    weights.whole_updates = True
    optimizer = Counting(weights.tensors.values(), lr=0.1)
    monkeypatch.setattr("luthier.train.masters.BUCKET_BYTES", 1)
    weights.begin(passes=1, processes=1)
    model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False).logits.float().sum().backward()
    weights.collect()
    weights.apply(optimizer, scale=1.0)
    assert optimizer.param_groups[0]["step"] == 1
    assert all(tensor.grad is None for tensor in weights.tensors.values())


@pytest.mark.parametrize("name", [name for name in HERE if not OPTIMIZERS[name].native or name == "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_optimizer_trains(tmp_path, name, dtype):
    rate = {"adagrad": 1e-1, "lion_32bit": 1e-3, "lion_8bit": 1e-3}.get(name, 5e-3)
    run = train(
        tmp_path, data(examples(8)), max_steps=12, optim=name, learning_rate=rate, model=tiny_model().to(dtype)
    )  # fmt: skip
    assert run.moved > 1e-3
    assert run.losses[-1] < run.losses[0] - 0.03


@pytest.mark.parametrize("name", ["muon", "rmsprop", "ademamix_8bit", "lion_8bit"])
def test_a_resumed_run_goes_the_same_way(tmp_path, monkeypatch, name):
    whole, resume = cut_and_resumed(tmp_path, monkeypatch, method=FULL, optim=name, learning_rate=1e-3)
    assert distance(whole, resume()) == 0.0


# -- Muon


def test_muon_updates_hidden_matrices_and_adamw_the_rest():
    """Against torch's own two optimizers, side by side."""
    recipe = resolved(method=FULL, optim="muon", max_steps=4, weight_decay=0.1, learning_rate=1e-2)
    model, reference = tiny_model(), tiny_model()
    names = dict(model.named_parameters())
    tables = {"model.embed_tokens.weight", "lm_head.weight"}
    ours = make_optimizer(names, recipe.recipe.train, learning_rate=1e-2, tables=tables)
    theirs = dict(reference.named_parameters())
    hidden = [p for name, p in theirs.items() if p.ndim == 2 and name not in tables]
    assert len(hidden) == 14
    vectors = [p for p in theirs.values() if p.ndim < 2]
    muon = torch.optim.Muon(hidden, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    both = [theirs[name] for name in sorted(tables)]
    groups = [{"params": both, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-2)
    for seed in range(3):
        give_gradients(names, seed)
        give_gradients(theirs, seed)
        ours.step()
        muon.step()
        adamw.step()
    assert all(torch.equal(names[name], theirs[name]) for name in names)


def test_muon_takes_the_tables_of_the_real_model(tmp_path):
    """The bug: embeddings orthogonalised. State says who updated what."""
    from luthier.train.checkpoint import load_tensors

    train(tmp_path, max_steps=1, optim="muon", model=tiny_model(tied=True))
    keys = load_tensors(tmp_path / "checkpoints/step-1", "optimizer")
    muon = {key.rsplit("/", 1)[0] for key in keys if key.endswith("/momentum_buffer")}
    adamw = {key.rsplit("/", 1)[0] for key in keys if key.endswith("/exp_avg")}
    assert "model.embed_tokens.weight" in adamw
    assert not muon & adamw
    assert all("proj" in name for name in muon)


def test_muon_on_adapters(tmp_path):
    assert train(tmp_path, data(examples(8)), method=LORA, max_steps=8, optim="muon", learning_rate=5e-3).moved > 1e-3


# -- packages


def test_a_missing_package_is_told_before_anything_is_loaded(tmp_path, monkeypatch):
    from luthier.pipeline.run import run_recipe
    from luthier.pipeline.session import Session
    from luthier.recipe.schema import Recipe

    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    monkeypatch.setattr(Session, "tokenizer", property(lambda self: pytest.fail("something was loaded")))
    recipe = Recipe(
        model={"name_or_path": "nowhere/no-model"}, data={"train": [{"path": "rows.jsonl"}]},
        train={"optim": "stable_adamw"}, output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    with pytest.raises(EnvironmentProblem) as caught:
        run_recipe(recipe)
    assert caught.value.problems[0].code == "T463"
    assert "pip install torch-optimi" in str(caught.value)


def test_paged_state_needs_cuda():
    require_optimizer(TrainSection(optim="paged_adamw_8bit"), device_type="cuda")
    for name in [name for name, facts in OPTIMIZERS.items() if facts.cuda_only]:
        with pytest.raises(EnvironmentProblem) as caught:
            require_optimizer(TrainSection(optim=name), device_type="cpu")
        hint = caught.value.problems[0].hint
        assert hint is not None
        assert hint.removeprefix("take optim ") in OPTIMIZERS, "the hint is a name"
