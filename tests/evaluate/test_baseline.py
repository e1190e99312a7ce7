"""Contract: advice follows from the table by stated rules, and only then."""

from dataclasses import replace

import pytest

from luthier.evaluate.baseline import Variant, advise, specs_of, variants
from luthier.evaluate.versus import Scored, compare_many
from luthier.recipe.schema import TaskSpec
from luthier.runtime.errors import RecipeError
from tests.evaluate.test_compare import result


def told(scores):
    """Rules that fire for `{model: {variant: scores of rows}}`."""
    results = {
        model: {name: [result(rows)] for name, rows in by_variant.items()} for model, by_variant in scores.items()
    }
    everyone = [
        Scored(name=f"{model}, {name}", results=found)
        for model, by_variant in results.items()
        for name, found in by_variant.items()
    ]
    comparison = compare_many(everyone, prompts_differ=True)
    return advise(results, comparison, confidence=0.95)


def rows(right, n=200):
    return [1.0] * right + [0.0] * (n - right)


def test_few_shot_that_is_better_says_try_prompting_first():
    (advice,) = told({"base": {"0-shot": rows(20), "4-shot": rows(80)}})
    assert advice.rule == 1
    assert "4-shot reaches 0.400" in advice.text and "Try prompting first" in advice.text


def test_few_shot_that_is_no_better_says_so_even_when_a_little_higher():
    (advice,) = told({"base": {"0-shot": rows(20), "4-shot": rows(23)}})
    assert advice.rule == 2 and "no evidence that 4-shot is better" in advice.text


def test_another_model_that_is_better_is_named():
    advice = told({"base": {"0-shot": rows(20)}, "far": {"0-shot": rows(90)}})
    assert [one.rule for one in advice] == [2, 2, 4]
    assert advice[2].text.startswith("far with 0-shot reaches 0.450")
    assert [one.rule for one in told({"base": {"0-shot": rows(90)}, "far": {"0-shot": rows(20)}})] == [2, 2]


def test_the_best_prompt_of_a_metric_that_counts_mistakes_is_the_lowest():
    by_variant = {"0-shot": rows(80), "4-shot": rows(20), "8-shot": rows(90)}
    results = {name: [replace(result(found), higher_is_better=False)] for name, found in by_variant.items()}
    everyone = [Scored(name=f"base, {name}", results=found) for name, found in results.items()]
    (advice,) = advise({"base": results}, compare_many(everyone, prompts_differ=True), confidence=0.95)
    assert advice.rule == 1 and advice.text.startswith("base: 4-shot reaches 0.100 ")
    results["4-shot"] = results["8-shot"]
    (advice,) = advise({"base": results}, compare_many(everyone[:1], prompts_differ=True), confidence=0.95)
    assert advice.rule == 2 and advice.text.endswith("best: 0-shot")


def test_a_score_near_the_top_leaves_little_room():
    assert [one.rule for one in told({"base": {"0-shot": rows(190)}})] == [2, 3]


def test_few_rows_are_told_with_the_gain_they_can_show():
    advice = told({"base": {"0-shot": rows(5, n=20)}})
    assert [one.rule for one in advice] == [2, 6]
    # p < 0.05 needs six rows that change, all for the better: 2 x 0.5^6 = 0.031
    assert "20 rows can show a gain of 0.300 at best; 120 rows" in advice[1].text


def test_many_variants_raise_the_bar():
    alone = told({"base": {"0-shot": rows(20), "4-shot": rows(27)}})
    many = {f"{k}-shot": rows(20) for k in range(1, 6)}
    together = told({"base": {"0-shot": rows(20), **many, "9-shot": rows(27)}})
    assert (alone[0].rule, together[0].rule) == (1, 2)


def test_variants_are_examples_times_messages_with_the_plain_prompt_first():
    found = variants([4, 1], ["Be brief."])
    assert [one.name for one in found] == [
        "0-shot", "1-shot", "4-shot", "0-shot, system 1", "1-shot, system 1", "4-shot, system 1",
    ]  # fmt: skip
    with pytest.raises(RecipeError, match="twice"):
        variants([4, 4], [])


def test_tasks_get_examples_from_their_own_file_or_the_given_one():
    own = TaskSpec(name="a", path="a.jsonl", metric="exact", fewshot_path="own.jsonl", num_fewshot=2, system="S")
    bare = TaskSpec(name="b", path="b.jsonl", metric="exact")
    loss = TaskSpec(name="c", path="b.jsonl", metric="loss")
    general = TaskSpec(name="builtin:forgetting")
    four = specs_of([own, bare, loss, general], Variant(name="4", num_fewshot=4, system=None), shots_from="train.jsonl")
    assert [(one.num_fewshot, one.fewshot_path, one.system) for one in four] == [
        (4, "own.jsonl", "S"), (4, "train.jsonl", None),
    ]  # fmt: skip
    none = specs_of([own], Variant(name="0", num_fewshot=0, system="T"), shots_from=None)
    assert [(one.num_fewshot, one.fewshot_path, one.system) for one in none] == [(0, None, "T")]
    with pytest.raises(RecipeError, match="has none"):
        specs_of([loss], Variant(name="0", num_fewshot=0, system=None), shots_from=None)
