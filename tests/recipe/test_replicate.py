"""`distributed.dp_replicate_size`: numbers of processes that are possible, and what is refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.recipe.facts import Decision, Facts
from luthier.recipe.replicate_rules import possible_copies, require_copies
from luthier.recipe.resolve import resolve
from luthier.runtime.errors import RecipeError
from tests.recipe.support import load, problems_of

pytestmark = pytest.mark.usefixtures("work")
FACTS = {
    "device_type": "cpu", "native_bf16": True, "device_memory_bytes": 2**34, "rows": 8, "sequences": 8, "tokens": 800,
    "model_parameters": 1000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("copies", "processes", "words"),
    [
        (2, 1, "in a run of one process"),
        (3, 4, "does not divide 4 processes"),
        (4, 2, "does not divide 2 processes"),
        (4, 4, "leaves each a whole copy and no shards"),
    ],
)
def test_numbers_that_do_not_go_together_are_one_error(copies, processes, words):
    with pytest.raises(RecipeError, match=words) as caught:
        require_copies(copies, processes)
    (problem,) = caught.value.problems
    assert problem.code == "L260" and problem.message.startswith(f"`distributed.dp_replicate_size: {copies}` ")
    assert problem.hint


@given(processes=st.integers(1, 600), copies=st.integers(1, 600))
def test_each_copy_has_two_processes_or_there_is_one_copy(processes, copies):
    possible = copies in possible_copies(processes)
    assert possible == (copies == 1 or (processes % copies == 0 and processes // copies >= 2))
    if possible:
        require_copies(copies, processes)


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_strategies_without_copies_of_shards_are_refused(strategy):
    (problem,) = problems_of(f"distributed: {{strategy: {strategy}, dp_replicate_size: 2}}\n")
    assert problem.code == "L261" and f"`distributed.strategy: {strategy}`" in problem.message


def test_shards_and_auto_take_it():
    for strategy in ("fsdp2", "auto"):
        recipe = load(f"distributed: {{strategy: {strategy}, dp_replicate_size: 2}}\n")
        resolved = resolve(recipe, Facts(**FACTS, world_size=4)).recipe
        assert (resolved.distributed.strategy, resolved.distributed.dp_replicate_size) == ("fsdp2", 2)


def test_what_the_plan_chose_is_in_the_resolved_recipe():
    decision = Decision(
        micro_batch_tokens=1024, recompute=False, recompute_layers=None, dequantize_base=False, strategy="fsdp2",
        dp_replicate_size=4, reasons={
            "distributed.dp_replicate_size": "the network is slow", "train.per_device_train_batch_size": "fits",
            "train.gradient_checkpointing": "fits",
        },
    )  # fmt: skip
    facts = Facts(**FACTS, world_size=8, planned=decision)
    open_to_plan = resolve(load(""), facts)
    assert open_to_plan.recipe.distributed.dp_replicate_size == 4
    assert "the network is slow" in [one.reason for one in open_to_plan.derived]
    assert resolve(load("distributed: {strategy: fsdp2}\n"), facts).recipe.distributed.dp_replicate_size == 1
