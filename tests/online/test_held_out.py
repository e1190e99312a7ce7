"""Contract: held-out prompts are dealt in equal batches, and each counts once in every mean."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.online.held_out import Answered, HeldOut, deal, is_filling


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 9))
def test_every_process_has_as_many_and_as_few_as_can_be(count, at_most, processes):
    names = [f"v{n}" for n in range(count)]
    found = deal(names, at_most=at_most, processes=processes)
    assert [name for name in found.names if not is_filling(name)] == names
    assert 1 <= found.batch <= at_most
    if processes == 1:
        assert found.names == tuple(names) and found.batch == at_most
    elif count:
        assert len(found.names) % (found.batch * processes) == 0
        rounds = len(found.names) // (found.batch * processes)
        assert rounds == math.ceil(count / (at_most * processes))
        assert len(found.names) - count < rounds * processes, "less than one in each batch of each process"
    assert {name.rstrip("~") for name in found.names} == set(names)


def answer(name, *rewards, tokens=4, clipped=False):
    return Answered(name=name, rewards=rewards, tokens=tokens, clipped=clipped)


def test_means_are_over_prompts_and_leave_out_what_fills_up():
    held = HeldOut(["a", "b"], [1.0, 0.5])
    held.add([answer("v0", 1.0, 0.0), answer("v1", 0.0, 1.0, tokens=8, clipped=True), answer("v2", 1.0, math.nan)])
    held.add([answer("v3", math.nan, math.nan, tokens=0), answer("v0~", 9.0, 9.0, tokens=99, clipped=True)])
    found = held.take()
    assert found["eval_reward"] == pytest.approx((1.0 + 0.5 + 1.0) / 3)
    assert found["eval_reward/a"] == pytest.approx(2 / 3) and found["eval_reward/b"] == 0.5
    assert found["eval_completion_tokens"] == 4.0 and found["eval_clipped_completions"] == 0.25
    assert held.take() == {
        "eval_reward": None, "eval_reward_std": 0.0, "eval_completion_tokens": None, "eval_clipped_completions": None,
        "eval_reward/a": None, "eval_reward/b": None,
    }  # fmt: skip
