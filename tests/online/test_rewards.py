"""Contract: a reward is the number its definition says, for any text; failures are errors with a place."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.online.rewards.build import build_rewards, reference_check, try_rewards
from luthier.recipe.online_schema import GrpoSection
from luthier.runtime.errors import RecipeError, RunFailed
from luthier.scoring.metrics import score_answer
from tests.online.rewards import batch, reward, row

any_text = st.text(max_size=60)


# -- compared with the reference


def test_number_is_that_of_gsm8k():
    found = reward(name="number").score(
        batch("so 70+2=72", "72.00", "$72.", "27", "none", references=["a\n#### 72"] * 5)
    )
    assert found == [1, 1, 1, 0, 0]


def test_a_pattern_takes_the_answer_out_of_the_completion_and_out_of_the_reference_where_it_matches():
    found = reward(name="exact_match", pattern=r"<answer>(.*?)</answer>").score(
        batch("<answer>x</answer> y", "x", "<answer>z</answer>", references=["x", "x", "<answer>z</answer>"])
    )
    assert found == [1, 0, 1]


def test_json():
    texts = ('{"a": 1}', ' {"a":1.0} ', "{'a': 1}", '{"a": 1} and more')
    assert reward(name="json_valid").score(batch(*texts)) == [1, 1, 0, 0]
    assert reward(name="json_exact").score(batch(*texts, references=['{"a": 1}'] * 4)) == [1, 0, 0, 0]


@given(any_text, st.integers(-(10**12), 10**12), st.sampled_from(["exact_match", "number", "json_exact"]))
def test_each_comparison_is_the_metric_of_evaluation(text, number, name):
    metric = {"exact_match": "exact", "number": "number", "json_exact": "json_exact"}[name]
    reference = str(number)
    (found,) = reward(name=name).score(batch(text, references=[reference]))
    assert found == score_answer(metric, text, reference).value
    assert reward(name=name).score(batch(reference, references=[reference])) == [1]


@given(any_text)
def test_forms_answer_for_any_text(text):
    (valid,) = reward(name="json_valid").score(batch(text))
    try:
        json.loads(text, parse_constant=lambda _: 1 / 0)
    except (ValueError, ZeroDivisionError):
        assert valid == 0
    assert reward(name="regex", pattern="^a+$").score(batch(text)) == [
        float(text.rstrip("\n").strip("a") == "" != text)
    ]


def test_a_pattern_that_runs_without_end_is_a_wrong_answer_after_its_time(monkeypatch):
    monkeypatch.setattr("luthier.scoring.extract.PATTERN_SECONDS", 0.2)
    assert reward(name="regex", pattern="^(a|a)*$").score(batch("a" * 60 + "b", "aa")) == [0, 1]


@pytest.mark.parametrize(("name", "reference", "words"), [
    ("number", None, "needs a reference"), ("number", "none", "no number"), ("json_exact", "{", "not JSON"),
])  # fmt: skip
def test_references_that_cannot_be_used_are_known_before(name, reference, words):
    grpo = GrpoSection.model_validate({"rewards": [{"name": "json_valid"}, {"name": name}]})
    assert words in reference_check(grpo)(reference)
    assert reference_check(grpo)("3") is None
    assert reference_check(GrpoSection.model_validate({"rewards": [{"name": "regex", "pattern": "a"}]}))(None) is None


# -- length


@given(st.integers(1, 300), st.integers(1, 200), st.integers(0, 100))
def test_long_completions_are_punished_as_dapo_says(tokens, longest, free):
    soft = max(1, longest - free)
    (found,) = reward(name="length", max_tokens=longest, soft_tokens=soft).score(batch("x", tokens=[tokens]))
    if tokens <= longest - soft:
        assert found == 0
    elif tokens >= longest:
        assert found == -1
    else:
        assert found == pytest.approx((longest - soft - tokens) / soft) and -1 < found < 0


# -- the user's own


def mine(tmp_path, text, name="f", **more):
    file = tmp_path / "mine.py"
    file.write_text(text)
    return reward(python=f"{file}:{name}", **more), str(file)


def test_a_function_is_called_as_trl_calls_rewards(tmp_path):
    text = (
        "def f(prompts, completions, reference, answer, completion_ids, **columns):\n"
        "    assert prompts[1] == [{'role': 'user', 'content': 'question 1'}]\n"
        "    assert completions[0] == [{'role': 'assistant', 'content': 'one'}]\n"
        "    assert set(columns) == {'trainer_state'}\n"
        "    return [len(ids) + a + len(r) for ids, a, r in zip(completion_ids, answer, reference)]\n"
    )
    found, _ = mine(tmp_path, text, weight=2.0)
    assert found.score(batch("one", "two", references=["x", "yy"], tokens=[4, 5])) == [5.0, 8.0]
    assert (found.label, found.weight) == ("f", 2.0)


def test_none_numpy_and_torch_numbers_and_truth_values_are_taken(tmp_path):
    text = "import numpy, torch\ndef f(prompts, **c):\n    return [None, numpy.float32(0.5), torch.tensor(2.0), True]\n"
    assert mine(tmp_path, text)[0].score(batch("a", "b", "c", "d")) == [None, 0.5, 2.0, 1.0]


WRONG = {
    "return [1.0]": "returned 1 numbers for 2 completions",
    "return 'ab'": "returned str instead of a list",
    "return {0: 1.0, 1: 2.0}": "returned dict instead of a list",
    "return 3.0": "returned float instead of a list",
    "return [1.0, float('inf')]": "returned inf for completion 1",
    "return [1.0, 'good']": "returned 'good' for completion 1",
    "raise KeyError('answer')": "raised KeyError: 'answer'",
}


@pytest.mark.parametrize(("code", "words"), WRONG.items(), ids=WRONG.values())
def test_what_a_function_does_wrongly_is_told_with_file_and_line(tmp_path, code, words):
    found, file = mine(tmp_path, f"# a comment\ndef f(prompts, **columns):\n    {code}\n")
    with pytest.raises(RunFailed) as caught:
        found.score(batch("a", "b"))
    (problem,) = caught.value.problems
    assert words in problem.message and problem.file == file
    assert problem.line == (3 if code.startswith("raise") else 2)


def test_the_line_is_that_of_the_users_file_even_if_the_error_comes_from_deeper(tmp_path):
    found, _ = mine(tmp_path, "import json\ndef f(completions, **c):\n    return [g(x) for x in completions]\n"
                                 "def g(x):\n    return json.loads(x[0]['content'])\n")  # fmt: skip
    with pytest.raises(RunFailed) as caught:
        found.score(batch("{"))
    assert (caught.value.problems[0].line, caught.value.problems[0].source) == (5, "return json.loads(x[0]['content'])")


NOT_LOADED = {
    "def g(**c): pass": ("no function `f`; its functions: g", None),
    "def f(prompts, completions): pass": ("takes no further columns", 1),
    "\nimport nowhere_to_be_found": ("ModuleNotFoundError", 2),
    "x = (": ("SyntaxError", 1),
    "a = 1\nraise ValueError('no')": ("ValueError: no", 2),
}


@pytest.mark.parametrize(("text", "expected"), NOT_LOADED.items(), ids=[words for words, _ in NOT_LOADED.values()])
def test_files_that_cannot_be_used_are_told_with_their_line(tmp_path, text, expected):
    with pytest.raises(RecipeError) as caught:
        mine(tmp_path, text)
    (problem,) = caught.value.problems
    assert (problem.code, problem.line) == ("T490", expected[1]) and expected[0] in problem.message


def test_all_rewards_that_cannot_be_called_are_told_together(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def f(answer, **c):\n    return [1 / 0]\nasync def g(**c):\n    return [1]\ndef h(**c):\n    return [1]\n"
    )
    specs = [{"python": f"{file}:{name}"} for name in "fgh"]
    grpo = GrpoSection.model_validate({"rewards": specs})
    with build_rewards(grpo, cache_dir=None) as rewards, pytest.raises(RecipeError) as caught:
        try_rewards(rewards, row(answer=3))
    assert [problem.line for problem in caught.value.problems] == [2, 3]
    assert "rows.jsonl:5" in str(caught.value) and "coroutine" in str(caught.value)
    with build_rewards(grpo, cache_dir=None) as rewards, pytest.raises(RecipeError, match="answer"):
        try_rewards(rewards, row())  # the row has no such column
