"""Contract: graders as OpenAI writes them give the reward their definition says, or say what went wrong."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.runtime.errors import EnvironmentProblem, RecipeError
from luthier.scoring.graders import run_grader, validate_grader
from luthier.scoring.graders.formula import FormulaError, evaluate
from luthier.scoring.graders.models import Asked
from luthier.scoring.graders.shapes import parse_grader
from luthier.scoring.graders.template import InvalidVariable, fill, sample_of

ITEM = {"answer": "Paris", "deep": {"list": [{"x": 3}, "b"]}}


def check(operation, text="{{ sample.output_text }}", reference="{{ item.answer }}"):
    return {"type": "string_check", "name": "c", "input": text, "reference": reference, "operation": operation}


def reward(value, sample, **keys):
    grade = run_grader(parse_grader(value), item=ITEM, model_sample=sample, **keys)
    assert grade.errors == {}, grade.errors
    return grade.reward


@pytest.mark.parametrize(
    ("operation", "sample", "expected"),
    [
        ("eq", "Paris", 1), ("eq", "paris", 0), ("eq", "Paris ", 0), ("ne", "Paris", 0), ("ne", "Rome", 1),
        ("like", "It is Paris.", 1), ("like", "it is paris", 0), ("ilike", "it is PARIS!", 1), ("ilike", "Rome", 0),
    ],
)  # fmt: skip
def test_string_checks(operation, sample, expected):
    assert reward(check(operation), sample) == expected


def test_templates_reach_into_rows_and_never_evaluate():
    sample = sample_of('{"a": [1, 2]}')
    assert fill("{{item.deep.list[0].x}}/{{ sample.output_json.a[1] }}", item=ITEM, sample=sample) == "3/2"
    assert fill("{{ item.deep.list }}", item=ITEM, sample=sample) == '[{"x": 3}, "b"]'
    nested = sample_of("{{ item.answer }}")
    assert fill("{{ sample.output_text }}", item=ITEM, sample=nested) == "{{ item.answer }}"
    for text in ("{{ item.none }}", "{{ item.deep.list[7] }}", "{{ item.answer.x }}", "{{ item.__class__ }}"):
        with pytest.raises(InvalidVariable):
            fill(text, item=ITEM, sample=sample)
    assert "output_json" not in sample_of("no json")


@pytest.mark.parametrize(
    "text", ["{{ other.x }}", "{{ item }}", "{{ item.x | upper }}", "{{ 1 + 1 }}", "{{ item.x() }}"]
)
def test_what_is_no_variable_is_refused_before_it_runs(text):
    with pytest.raises(RecipeError, match="is no variable"):
        parse_grader(check("eq", text))


def test_a_variable_that_a_row_lacks_is_an_error_of_that_row():
    grade = run_grader(parse_grader(check("eq", "{{ item.missing }}")), item=ITEM, model_sample="x")
    assert grade.reward == 0.0 and list(grade.errors) == ["invalid_variable_error"]
    assert grade.to_json()["metadata"]["errors"]["invalid_variable_error"] is True


def similar(metric, sample, reference="the cat sat on the mat today"):
    value = {"type": "text_similarity", "name": "s", "input": "{{ sample.output_text }}", "reference": reference,
             "evaluation_metric": metric}  # fmt: skip
    return reward(value, sample)


@pytest.mark.parametrize("metric", ["bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"])
def test_similarity_is_1_for_equal_texts_0_for_others_and_between_for_parts(metric):
    pytest.importorskip("sacrebleu" if metric == "bleu" else "nltk" if metric == "gleu" else "rouge_score")
    assert similar(metric, "the cat sat on the mat today") == pytest.approx(1.0)
    assert similar(metric, "completely different words here") == pytest.approx(0.0, abs=0.05)
    assert similar(metric, "") == 0.0
    assert 0.1 < similar(metric, "the cat sat on the mat yesterday") < 1.0


def test_rouge_is_the_f_measure_by_hand():
    pytest.importorskip("rouge_score")
    # 2 of 3 words of the answer, 2 of 7 of the reference: 2 x (2/3)(2/7) / (2/3 + 2/7) = 0.4
    assert similar("rouge_1", "the cat flew") == pytest.approx(0.4)


def test_fuzzy_match_is_the_indel_similarity():
    pytest.importorskip("rapidfuzz")
    # "abcd" and "abxd": 6 of 8 characters stand in the longest common subsequence of both
    assert similar("fuzzy_match", "abxd", "abcd") == pytest.approx(0.75)


def test_a_metric_whose_package_is_missing_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="needs the package sacrebleu"):
        similar("bleu", "x")


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("a + 2 * b", 7), ("(a + 2) * b", 9), ("a ^ b", 1), ("2 ^ 3 ^ 2", 512), ("-a + b", 2), ("b / 2 - 1", 0.5),
        ("min(a, b)", 1), ("max(a, b, 9)", 9), ("abs(-b)", 3), ("floor(b / 2) + ceil(b / 2)", 3), ("exp(0)", 1),
        ("sqrt(b + a)", 2), ("log(1)", 0), ("max(a)", 1), ("1e-3 * b", 0.003), ("abs(0 - 2.5)", 2.5),
    ],
)  # fmt: skip
def test_formulas(formula, expected):
    assert evaluate(formula, {"a": 1.0, "b": 3.0}) == pytest.approx(expected)


@pytest.mark.parametrize(
    "formula",
    [
        "__import__('os').system('true')", "a.__class__", "a if b else a", "[a]", "lambda: a", "a and b", "a < b",
        "'x' * 3", "f'{a}'", "open('x')", "min()", "sqrt(a, b)", "a; b", "a = b", "", "a +", "min(a, key=b)", "True",
        "a @ b", "a // b", "a % b", "~a", "1 if a else 2", "(x := a)", "min(*a)", "1j", "a" + " + a" * 3_000,
    ],
)  # fmt: skip
def test_anything_but_arithmetic_is_refused(formula):
    with pytest.raises(FormulaError):
        evaluate(formula, {"a": 1.0, "b": 3.0})


@pytest.mark.parametrize("formula", ["a / 0", "log(0 - 1)", "10 ^ 10 ^ 10", "sqrt(0 - 1)", "exp(10 ^ 9)", "c"])
def test_a_formula_without_a_value_says_so(formula):
    with pytest.raises(FormulaError):
        evaluate(formula, {"a": 1.0})


@given(st.text(max_size=40))
def test_no_text_gets_through_the_formula(text):
    try:
        value = evaluate(text, {"a": 1.0})
    except FormulaError:
        return
    assert math.isfinite(value)


def multi(formula="0.75 * right + 0.25 * form", **graders):
    parts = {"right": check("eq"), "form": check("like", reference=".")}
    return {"type": "multi", "name": "m", "graders": parts | graders, "calculate_output": formula}


def test_multi_weighs_its_parts_and_tells_them():
    grade = run_grader(parse_grader(multi()), item=ITEM, model_sample="Paris")
    assert (grade.reward, grade.sub_rewards) == (0.75, {"right": 1.0, "form": 0.0})


def test_an_error_in_a_part_is_an_error_of_the_whole():
    broken = {"type": "python", "name": "p", "source": "def grade(sample, item):\n    raise ValueError('no')"}
    value = multi("right + form + p", p=broken)
    grade = run_grader(parse_grader(value), item=ITEM, model_sample="Paris")
    assert grade.reward == 0.0 and "ValueError: no" in grade.errors["python_grader_runtime_error"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"type": "regex"}, "`type` must be one of"),
        ({"operation": "equals"}, "operation"),
        ({"extra": 1}, "extra"),
        ({"input": None}, "input"),
    ],
)
def test_shapes_are_strict(change, said):
    with pytest.raises(RecipeError) as caught:
        parse_grader(check("eq") | change)
    assert caught.value.problems[0].code == "E552" and said in str(caught.value)


def test_all_faults_of_a_multi_grader_come_at_once():
    value = multi("right + nobody", bad=check("eq", "{{ x }}"))
    with pytest.raises(RecipeError) as caught:
        parse_grader(value)
    assert len(caught.value.problems) == 4  # the template; nobody; form and bad not in the formula
    with pytest.raises(RecipeError, match="embedding"):
        parse_grader(
            {"type": "text_similarity", "name": "s", "input": "a", "reference": "b", "evaluation_metric": "cosine"}
        )
    with pytest.raises(RecipeError, match="defines no function"):
        parse_grader({"type": "python", "name": "p", "source": "x = 1"})
    with pytest.raises(RecipeError, match="is not Python"):
        parse_grader({"type": "python", "name": "p", "source": "def grade(:"})


def asker(*answers):
    said = iter(answers)
    seen = []

    def ask(model, messages, sampling):
        seen.append((model, messages, dict(sampling)))
        return Asked(text=next(said), tokens=7)

    ask.seen = seen
    return ask


SCORE = {
    "type": "score_model", "name": "s", "model": "judge", "range": [0, 10],
    "input": [{"role": "user", "content": "Rate: {{ sample.output_text }} against {{ item.answer }}"}],
    "sampling_params": {"temperature": 0.5, "seed": 3},
}  # fmt: skip
LABEL = {
    "type": "label_model", "name": "l", "model": "judge", "labels": ["good", "bad"], "passing_labels": ["good"],
    "input": [{"role": "developer", "content": {"type": "input_text", "text": "Label {{ sample.output_text }}"}}],
}  # fmt: skip


def test_a_model_scores_and_labels():
    ask = asker('{"reason": "fine", "result": 7}')
    assert reward(SCORE, "Lyon", ask=ask) == 7.0
    model, messages, sampling = ask.seen[0]
    assert (model, sampling) == ("judge", {"temperature": 0.5, "seed": 3})
    assert messages[0] == {"role": "user", "content": "Rate: Lyon against Paris"}
    assert reward(LABEL, "x", ask=asker('```json\n{"result": "good"}\n```')) == 1.0
    assert reward(LABEL, "x", ask=asker('{"result": "bad"}')) == 0.0


@pytest.mark.parametrize("bad", ["seven", '{"result": 11}', '{"result": true}', '{"score": 7}', '{"result": NaN}', "7"])
def test_a_useless_answer_is_asked_for_again_and_then_an_error(bad):
    ask = asker(bad, '{"result": 2}')
    assert reward(SCORE, "x", ask=ask) == 2.0
    assert len(ask.seen) == 2 and "no usable answer" in ask.seen[1][1][-1]["content"]
    grade = run_grader(parse_grader(SCORE), item=ITEM, model_sample="x", ask=asker(bad, bad))
    assert grade.reward == 0.0 and list(grade.errors) == ["model_grader_parse_error"]


def test_without_a_server_the_error_says_so():
    grade = run_grader(parse_grader(SCORE), item=ITEM, model_sample="x")
    assert "no server" in grade.errors["model_grader_server_error"]


def test_answers_have_the_shapes_of_the_openai_client():
    types = pytest.importorskip("openai.types.fine_tuning.alpha")
    grade = run_grader(parse_grader(multi()), item=ITEM, model_sample="Paris.")
    told = types.GraderRunResponse.model_validate(json.loads(json.dumps(grade.to_json())))
    assert (told.reward, told.sub_rewards["form"], told.metadata.type) == (0.25, 1.0, "multi")
    assert told.metadata.errors.other_error is False
    types.GraderValidateResponse.model_validate(validate_grader(check("eq")))


@pytest.mark.parametrize("value", [check("eq"), SCORE, LABEL, multi()])
def test_our_shapes_are_those_of_the_openai_client(value):
    graders = pytest.importorskip("openai.types.graders")
    theirs = {"string_check": "StringCheckGrader", "score_model": "ScoreModelGrader", "label_model": "LabelModelGrader"}
    told = parse_grader(value).model_dump(exclude_none=True)
    if value["type"] in theirs:
        getattr(graders, theirs[value["type"]]).model_validate(told)
    assert parse_grader(told) == parse_grader(value)


@pytest.mark.parametrize("kind", ["text_similarity", "score_model", "python"])
def test_a_threshold_that_would_change_no_reward_is_refused(kind):
    values = {
        "text_similarity": {"type": kind, "name": "s", "input": "a", "reference": "a", "evaluation_metric": "bleu"},
        "score_model": SCORE,
        "python": {"type": kind, "name": "p", "source": "def grade(sample, item): return 1.0"},
    }
    parse_grader(values[kind])
    with pytest.raises(RecipeError, match="changes no reward") as caught:
        parse_grader({**values[kind], "pass_threshold": 0.5})
    assert caught.value.problems[0].code == "E552"
