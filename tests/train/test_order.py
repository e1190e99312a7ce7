"""Contract: every epoch sees every sequence exactly once, however a step is split."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from luthier.train.order import Order, split

SIZES = st.integers(1, 60)
PER_STEP = st.integers(1, 20)


def order(sequences: int, per_step: int, **kwargs) -> Order:
    return Order(sequences=sequences, sequences_per_step=per_step, **{"num_train_epochs": 1.0, **kwargs})


def test_ten_sequences_four_a_step_two_epochs():
    plan = order(10, 4, num_train_epochs=2.0, shuffle=False)
    assert plan.total_steps == 6  # 2 x ceil(10 / 4)
    assert [plan.step(step) for step in range(3)] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert plan.step(3) == (0, 1, 2, 3)
    assert [plan.epochs_after(steps) for steps in range(7)] == [0.0, 0.4, 0.8, 1.0, 1.4, 1.8, 2.0]


@given(SIZES, PER_STEP, st.integers(1, 4), st.integers(0, 3))
def test_each_epoch_sees_each_sequence_once(sequences, per_step, epochs, seed):
    plan = order(sequences, per_step, num_train_epochs=float(epochs), seed=seed)
    seen = Counter(index for step in range(plan.total_steps) for index in plan.step(step))
    assert seen == Counter(dict.fromkeys(range(sequences), epochs))
    assert plan.total_steps == epochs * -(-sequences // per_step)
    assert plan.epochs_after(plan.total_steps) == epochs


@given(SIZES, st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_every_split_of_a_step_covers_it_exactly(sequences, micro_batch, accumulation, world_size):
    plan = order(sequences, micro_batch * accumulation * world_size)
    for step in range(plan.total_steps):
        shares = [
            split(plan.step(step), rank=rank, world_size=world_size, micro_batch=micro_batch)
            for rank in range(world_size)
        ]
        assert sorted(i for share in shares for batch in share for i in batch) == sorted(plan.step(step))
        assert len({len(share) for share in shares}) == 1, "processes must run the same number of micro-batches"
        assert 1 <= len(shares[0]) <= accumulation
        assert all(len(batch) <= micro_batch for share in shares for batch in share)
        loads = [sum(map(len, share)) for share in shares]
        assert max(loads) - min(loads) <= 1


@given(SIZES, st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_the_split_does_not_decide_what_a_step_sees(sequences, micro_batch, accumulation, world_size):
    total = micro_batch * accumulation * world_size
    assert order(sequences, total).step(0) == order(sequences, total).step(0)
    one = split(order(sequences, total).step(0), rank=0, world_size=1, micro_batch=total)
    assert sorted(one[0]) == sorted(order(sequences, total).step(0))


@given(st.integers(20, 60), st.integers(0, 1000))
def test_epochs_and_seeds_have_orders_of_their_own(sequences, seed):
    plan = order(sequences, 4, seed=seed)
    assert plan.epoch(0) != plan.epoch(1)
    assert plan.epoch(0) != order(sequences, 4, seed=seed + 1).epoch(0)
    assert plan.epoch(0) == order(sequences, 4, seed=seed).epoch(0)


@given(SIZES, PER_STEP, st.floats(0.01, 5.0))
def test_a_fraction_of_an_epoch_is_that_share_of_its_steps(sequences, per_step, epochs):
    plan = order(sequences, per_step, num_train_epochs=epochs)
    assert plan.total_steps >= 1
    assert plan.total_steps - 1 < epochs * plan.steps_per_epoch + 1e-6
    assert plan.total_steps >= epochs * plan.steps_per_epoch - 1e-6


def test_a_product_of_decimals_is_not_rounded_up_by_a_step():
    assert order(10, 1, num_train_epochs=1.1).total_steps == 11  # 1.1 x 10 is 11.000000000000002 in floats


@given(SIZES, PER_STEP, st.integers(1, 40))
def test_max_steps_wins_and_goes_on_into_further_epochs(sequences, per_step, steps):
    plan = order(sequences, per_step, num_train_epochs=1.0, max_steps=steps)
    assert plan.total_steps == steps
    assert all(plan.step(step) for step in range(steps)), "no step may be empty"


def test_the_order_is_the_same_on_every_machine_and_python():
    assert order(8, 8, seed=0).epoch(0) == (5, 4, 3, 0, 1, 6, 7, 2)
