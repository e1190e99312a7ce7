"""Contract: a step's loss is sum(weight x nll) / sum(weight); no split of the step moves the trajectory."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.data.types import Example, Pack, RowRef
from luthier.runtime.errors import RunFailed
from tests.support.tiny import tiny_model
from tests.train.support import FULL, LORA, Data, data, distance, examples, reference_nll, resolved, train, tuned

# Adapters learn at another rate than weights; both move by more than 1e-3 in six steps.
METHODS = {"full": {"method": FULL}, "lora": {"method": LORA, "learning_rate": 5e-3}}


def loss_gap(one, other) -> float:
    assert len(one.losses) == len(other.losses) > 0
    return max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("packed", [False, True])
def test_accumulation_never_moves_the_trajectory(tmp_path, method, packed):
    """B01: mean of micro-batch means would give d = 1e-2 here."""
    prepared = data(examples(96, high=40), packed=packed)
    runs = [
        train(tmp_path / f"{b}x{a}", prepared, max_steps=6, per_device_train_batch_size=b,
              gradient_accumulation_steps=a, **METHODS[method])
        for b, a in ((8, 1), (2, 4), (1, 8))
    ]  # fmt: skip
    assert runs[0].moved >= 1e-3
    for other in runs[1:]:
        assert distance(runs[0], other) <= 5e-5
        assert loss_gap(runs[0], other) <= 1e-5


def test_the_smaller_last_step_of_an_epoch_has_full_weight(tmp_path):
    """B02: 10 rows, 4 a step: 3 steps an epoch, the third of 2 rows."""
    prepared = data(examples(10))
    one = train(tmp_path / "a", prepared, num_train_epochs=2, per_device_train_batch_size=4)
    other = train(
        tmp_path / "b", prepared, num_train_epochs=2, per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    assert one.result.steps == other.result.steps == one.result.total_steps == 6
    assert distance(one, other) <= 5e-5
    assert one.moved >= 1e-3
    assert one.result.tokens == 2 * sum(len(row) for row in prepared.train)
    assert one.result.trained_tokens == 2 * sum(row.trained_tokens for row in prepared.train)


def test_packed_and_unpacked_rows_give_one_trajectory(tmp_path):
    """The same rows in each step, once two packs of four rows and once eight single rows."""
    packed = _uniform_packs(examples(), rows_per_pack=4)
    single = data(packed.train)
    one = train(tmp_path / "packed", packed, shuffle=False, per_device_train_batch_size=2, max_steps=6)
    other = train(tmp_path / "single", single, shuffle=False, per_device_train_batch_size=8, max_steps=6)
    assert distance(one, other) <= 5e-5
    assert loss_gap(one, other) <= 1e-5
    assert one.moved >= 1e-3


def test_the_loss_of_a_pack_is_that_of_its_rows_alone(tmp_path):
    """No row sees another: the reference runs each row by itself."""
    prepared = data(packed=True)
    run = train(tmp_path, prepared, shuffle=False, per_device_train_batch_size=1, max_steps=1)
    rows = [prepared.train[i] for i in prepared.packs[0].examples]
    assert len(rows) > 2
    nll = sum(float(reference_nll(tiny_model(), row)[0].detach()) for row in rows)
    assert run.losses[0] == pytest.approx(nll / sum(row.trained_tokens for row in rows), rel=1e-5)


def _uniform_packs(rows: list[Example], *, rows_per_pack: int) -> Data:
    starts = range(0, len(rows), rows_per_pack)
    packs = [Pack(tuple(range(s, s + rows_per_pack)), sum(map(len, rows[s : s + rows_per_pack]))) for s in starts]
    return Data(rows, [], packs)


def test_the_loss_of_one_row_is_its_nll_over_its_trained_tokens(tmp_path):
    """B03: four tokens, all trained: three targets, because nothing predicts the first."""
    row = Example(ids=[5, 9, 33, 7], weights=[0.0, 1.0, 1.0, 1.0], ref=RowRef("rows.jsonl", 1))
    run = train(tmp_path, data([row]), max_steps=1)
    nll, _ = reference_nll(tiny_model(), row)
    assert run.losses[0] == pytest.approx(float(nll.detach()) / 3, rel=1e-5)
    assert run.metrics[0]["trained_tokens"] == 3


@pytest.mark.parametrize("method", METHODS)
def test_label_smoothing_is_applied_to_the_shifted_targets(tmp_path, method):
    """B08: (1 - e) NLL + e mean(-log p), also under PEFT."""
    e = 0.1
    prepared = data(examples(8))
    run = train(tmp_path, prepared, max_steps=1, objective={"label_smoothing": e}, shuffle=False, **METHODS[method])
    parts = [reference_nll(tiny_model(), row) for row in prepared.train]
    expected = sum((1 - e) * float(nll.detach()) + e * float(smooth.detach()) for nll, smooth in parts)
    assert run.losses[0] == pytest.approx(expected / sum(row.trained_tokens for row in prepared.train), rel=1e-5)


def test_token_weights_scale_each_token_s_share(tmp_path):
    """A token of weight 2 counts twice, in the loss and in its divisor."""
    rows = [
        Example(ids=row.ids, weights=[w * (1 + i % 3) / 2 for i, w in enumerate(row.weights)], ref=row.ref)
        for row in examples(8)
    ]
    run = train(tmp_path, data(rows), max_steps=1, shuffle=False)
    total = sum(sum(row.weights) for row in rows)
    expected = sum(float(reference_nll(tiny_model(), row)[0].detach()) for row in rows) / total
    assert run.losses[0] == pytest.approx(expected, rel=1e-5)


def test_logged_gradient_norms_equal_a_recomputation_from_the_weights_before(tmp_path):
    """B14: nothing of one step's gradient leaks into the next. Plain torch, from the definition."""
    prepared = data(examples(32))
    settings = {"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "shuffle": False}
    logged = [line["grad_norm"] for line in train(tmp_path / "all", prepared, **settings).metrics]
    for step in range(4):
        model = tiny_model()
        if step:
            run = train(tmp_path / str(step), prepared, **{**settings, "max_steps": step})
            model = run.model
        model.zero_grad()
        rows = prepared.train[8 * step : 8 * step + 8]
        (sum(reference_nll(model, row)[0] for row in rows) / sum(row.trained_tokens for row in rows)).backward()
        norm = math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in model.parameters()))
        assert logged[step] == pytest.approx(norm, rel=1e-4)


def test_clipping_scales_the_whole_gradient(tmp_path):
    """With SGD the first update is lr x gradient x min(1, max_norm / norm)."""
    runs = {
        bound: train(tmp_path / str(bound), max_steps=1, optim="sgd", learning_rate=0.1, max_grad_norm=bound)
        for bound in (0.0, 0.25)
    }
    norm = runs[0.0].metrics[0]["grad_norm"]
    assert norm > 0.25
    assert runs[0.25].metrics[0]["grad_norm"] == norm, "the norm is logged before clipping"
    assert runs[0.25].moved == pytest.approx(runs[0.0].moved * 0.25 / norm, rel=1e-3)


def test_a_norm_below_the_bound_is_not_scaled_up(tmp_path):
    runs = [
        train(tmp_path / str(bound), max_steps=2, optim="sgd", learning_rate=0.1, max_grad_norm=bound)
        for bound in (0.0, 100.0)
    ]
    assert distance(*runs) == 0.0


def test_the_same_run_twice_is_bitwise_equal_and_another_seed_is_not(tmp_path):
    """B54."""
    one, same, other = (train(tmp_path / str(i), seed=seed, max_steps=6) for i, seed in enumerate((0, 0, 1)))
    assert distance(one, same) == 0.0
    assert one.metrics == same.metrics
    assert distance(one, other) > 1e-3


def test_dropout_draws_by_step_and_not_by_history(tmp_path):
    """B18: dropout acts in training once lora_B is non-zero, and depends on nothing but the place in the run."""
    lora = {**LORA, "lora_dropout": 0.5}
    plain = train(tmp_path / "0", max_steps=3, **METHODS["lora"])
    drop = train(tmp_path / "1", max_steps=3, method=lora, learning_rate=5e-3)
    torch.manual_seed(123)  # what was drawn before must not matter
    again = train(tmp_path / "2", data(validation=8), max_steps=3, eval_steps=1, method=lora, learning_rate=5e-3)
    assert plain.losses[0] == drop.losses[0], "lora_B starts at zero: dropout changes nothing yet"
    assert plain.losses[1] != drop.losses[1]
    assert distance(drop, again) == 0.0


def test_training_leaves_the_global_random_state_alone(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(tmp_path, max_steps=1)
    assert torch.equal(torch.rand(3), expected)


def test_recomputing_activations_changes_nothing(tmp_path):
    """B15: every lora_B learns, with frozen embeddings below it."""
    one = train(tmp_path / "0", max_steps=5, **METHODS["lora"])
    other = train(tmp_path / "1", max_steps=5, gradient_checkpointing=True, **METHODS["lora"])
    assert distance(one, other) == 0.0
    matrices = [p for name, p in other.model.named_parameters() if "lora_B" in name]
    assert matrices
    assert all(float(p.detach().norm()) > 0 for p in matrices)


# -- not finite


def nan_model(token: int):
    """The tiny model with NaN in the input embedding of one token; the head is untied."""
    model = tiny_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = math.nan
    return model


def rows_with_token(n: int, token: int, row: int) -> list[Example]:
    rows = [Example(ids=[i if i != token else 4 for i in r.ids], weights=r.weights, ref=r.ref) for r in examples(n)]
    rows[row] = Example(ids=[token, *rows[row].ids[1:]], weights=rows[row].weights, ref=rows[row].ref)
    return rows


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4)])
def test_a_nan_stops_before_the_update_and_names_step_and_row(tmp_path, batch, accumulation):
    """B07: only row 37 has the token whose embedding is NaN; it is in step 5 of 6."""
    prepared = data(rows_with_token(48, 599, 36))
    with pytest.raises(RunFailed) as caught:
        train(tmp_path, prepared, model=nan_model(599), shuffle=False, per_device_train_batch_size=batch,
              gradient_accumulation_steps=accumulation, save_steps=2, max_steps=6)  # fmt: skip
    assert caught.value.exit_code == 1
    first, *rows = caught.value.problems
    assert first.code == "T410"
    assert "step 5" in first.message
    assert "rows.jsonl:37" in first.message
    assert [(problem.file, problem.line) for problem in rows] == [("rows.jsonl", 37)]
    assert not (tmp_path / "final").exists()
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved == ["step-2", "step-4"], "what was saved before stays, nothing after"
    lines = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert len(lines) == 4, "a failed step is not logged as 0.0"


def test_a_gradient_that_overflows_is_caught_although_the_loss_is_finite(tmp_path):
    """A finite loss with an infinite gradient: a custom backward on one row's token only."""
    prepared = data(rows_with_token(16, 599, 10))
    recipe = resolved(shuffle=False, max_steps=2, per_device_train_batch_size=8)
    subject = tuned(recipe)
    embeddings = subject.model.get_input_embeddings()

    def explode(module, arguments, output):
        if not output.requires_grad:
            return
        bad = (arguments[0] == 599)[..., None]
        output.register_hook(lambda gradient: torch.where(bad, math.inf * torch.ones_like(gradient), gradient))

    embeddings.register_forward_hook(explode)
    with pytest.raises(RunFailed, match=r"step 2 .*rows\.jsonl:11") as caught:
        train(tmp_path, prepared, recipe=recipe, model=subject.model)
    assert "gradient" in caught.value.problems[1].message
    assert not (tmp_path / "checkpoints").exists()
