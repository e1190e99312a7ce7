"""Contract: the suite is whole, always the same, answerable, and says what a tune cost."""

import json
from fractions import Fraction

import pytest

from luthier.evaluate.compare import compare_results
from luthier.evaluate.forgetting.rows import PARTS, ROWS
from luthier.evaluate.forgetting.suite import forgetting_cost, forgetting_line, forgetting_tasks
from luthier.evaluate.run import run_tasks
from luthier.evaluate.scored import Answer, answered, score_rows
from luthier.evaluate.tasks import load_tasks
from luthier.recipe.load import recipe_from_dict
from luthier.recipe.schema import TaskSpec
from luthier.runtime.errors import RecipeError
from luthier.runtime.hashing import hash_json
from tests.support.tiny import tiny_model, tiny_tokenizer

SUITE = TaskSpec(name="builtin:forgetting")


def test_four_parts_of_different_questions_always_the_same():
    tasks = load_tasks([SUITE])
    assert [task.name for task in tasks] == [f"forgetting.{part}" for part in PARTS]
    assert {len(task.rows) for task in tasks} == {ROWS}
    for task in tasks:
        assert len({row.messages[-1]["content"] for row in task.rows}) == ROWS
    # A change of any question or reference must come with a higher version.
    assert hash_json([task.data_hash for task in tasks])[:16] == "16cd3bd1169f5f68"
    assert {task.version for task in tasks} == {1}


def test_references_are_right():
    tasks = {task.name: task for task in load_tasks([SUITE])}
    for row in tasks["forgetting.arithmetic"].rows:
        _, _, a, word, b = row.messages[-1]["content"].split("?")[0].split()
        value = {"plus": Fraction(a) + int(b), "minus": Fraction(a) - int(b), "times": Fraction(a) * int(b)}[word]
        assert str(value) == row.reference
    for row in tasks["forgetting.copying"].rows:
        assert row.messages[-1]["content"].endswith("\n" + row.reference)
    for row in tasks["forgetting.format"].rows:
        assert all(
            str(item) in row.messages[-1]["content"] for pair in json.loads(row.reference).items() for item in pair
        )


@pytest.mark.parametrize(
    ("part", "right", "wrong"),
    [
        ("arithmetic", "It is {}.", "none"), ("copying", '"{}"', "seven"), ("format", " {}\n", "{{}}"),
        ("facts", "The answer is {}!", "I do not know"),
    ],
)  # fmt: skip
def test_right_answers_count_and_others_do_not(part, right, wrong):
    (task,) = [task for task in forgetting_tasks(SUITE) if task.name.endswith(part)]
    answers = [(right if index % 2 else wrong).format(row.reference) for index, row in enumerate(task.rows)]
    assert [score.value for score in score_rows(task, answers)] == [index % 2 for index in range(ROWS)]


def test_facts_ignore_case():
    (task,) = [task for task in forgetting_tasks(SUITE) if task.name.endswith("facts")]
    assert all(score.value for score in score_rows(task, [row.reference.upper() for row in task.rows]))


def results_of(share):
    """A model that is right on the first `share` of each part."""
    found = []
    for task in forgetting_tasks(SUITE):
        texts = [row.reference if index < share * ROWS else "?" for index, row in enumerate(task.rows)]
        answers = [Answer(text=text, finish_reason="stop", new_tokens=1) for text in texts]
        found.append(answered(task, [""] * ROWS, answers, settings={}, seconds=1.0, confidence=0.95))
    return found


def test_the_cost_is_over_all_parts_together():
    before, after = results_of(0.5), results_of(0.4)
    cost = forgetting_cost(before, after, confidence=0.95)
    assert (cost["n"], cost["before"], cost["after"], cost["verdict"]) == (240, 0.5, 0.4, "worse")
    assert cost["low"] < -0.1 < cost["high"] < 0
    assert "the tune cost general skill" in forgetting_line(cost)
    assert [task.verdict for task in compare_results(before, after).tasks] == ["worse"] * 4
    same = forgetting_cost(before, before, confidence=0.95)
    assert (same["delta"], same["verdict"]) == (0.0, "no evidence")
    assert forgetting_cost([], [], confidence=0.95) is None


def test_it_runs_on_a_model_with_limit_and_system():
    tasks = load_tasks([TaskSpec(name="builtin:forgetting", limit=2, system="Be brief.")])
    results = run_tasks(tiny_model(), tiny_tokenizer(), tasks, batch_size=8)
    assert [result.n for result in results] == [2] * 4
    assert all(row["messages"][0]["content"] == "Be brief." for result in results for row in result.rows)


def recipe(task):
    value = {
        "model": {"name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}, "data": {"train": [{"path": "owner/rows"}]},
        "evaluate": {"tasks": [task]}, "output_dir": "run",
    }  # fmt: skip
    return recipe_from_dict(value, origin="test")


def test_keys_without_effect_and_unknown_suites_are_refused():
    assert recipe({"name": "builtin:forgetting", "limit": 9}).evaluate.tasks[0].limit == 9
    for key, value in {"metric": "exact", "path": "owner/x", "num_fewshot": 2, "max_new_tokens": 5}.items():
        with pytest.raises(RecipeError, match="makes its own rows"):
            recipe({"name": "builtin:forgetting", key: value})
    with pytest.raises(RecipeError, match="there is no suite"):
        recipe({"name": "builtin:everything"})
