"""Contract: an answer is right exactly when the metric's one-line definition says so."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.evaluate.library import library_names, library_task
from luthier.scoring.extract import compile_pattern
from luthier.scoring.metrics import METRICS, check_reference, score_answer


@pytest.mark.parametrize(
    ("metric", "answer", "reference", "value"),
    [
        ("exact", " yes\n", "yes", 1),
        ("exact", "Yes", "yes", 0),
        ("exact", "", "", 1),
        ("exact", "yes.", "yes", 0),
        ("contains", "I say yes.", " yes ", 1),
        ("contains", "I say Yes.", "yes", 0),
        ("number", "about 1,000.0 in all", "#### 1000", 1),
        ("number", "18", "#### 18", 1),
        ("number", "180", "#### 18", 0),
        ("number", "no idea", "#### 18", 0),
        ("number", "-18", "#### 18", 0),
        ("number", "it was 17, no, 18", "18", 1),
        ("json_exact", ' {"b": [1], "a": null}\n', '{"a": null, "b": [1]}', 1),
        ("json_exact", '{"a": "1"}', '{"a": 1}', 0),
        ("json_exact", '{"a": 1} so', '{"a": 1}', 0),
    ],
)
def test_metric(metric, answer, reference, value):
    assert score_answer(metric, answer, reference).value == value


def test_what_is_reported_beside_the_score():
    score = score_answer("json_exact", '{"a": 1, "b": 3}', '{"a": 1, "b": 2}')
    assert (score.value, score.secondary) == (0.0, {"valid_json": 1.0, "field_f1": 0.5})
    broken = score_answer("json_exact", '{"a": 1', '{"a": 1}')
    assert (broken.value, broken.extracted, broken.secondary) == (0.0, None, {"valid_json": 0.0, "field_f1": 0.0})
    assert (broken.fields.right, broken.fields.extra, broken.fields.missing) == (0, 0, 1)
    assert score_answer("number", "none", "5").secondary == {"answered": 0.0}
    assert score_answer("number", "$1,5 or 1,500.", "1500").extracted == "1500"


def test_a_pattern_extracts_on_both_sides():
    pattern = compile_pattern(r"label: *(\w+)")
    right = score_answer("regex", "so label: cat!", "label:cat", pattern=pattern)
    assert (right.value, right.extracted, right.secondary) == (1.0, "cat", {"answered": 1.0})
    wrong = score_answer("regex", "cat", "label: cat", pattern=pattern)
    assert (wrong.value, wrong.extracted, wrong.secondary) == (0.0, None, {"answered": 0.0})
    # before any metric, not only `regex`
    fenced = compile_pattern(r"(?:```json)?\s*(\{.*\})")
    assert score_answer("json_exact", '```json\n{"a": 1}\n```', '{"a": 1}', pattern=fenced).value == 1.0
    for metric in METRICS:
        assert (
            score_answer(metric, "nothing here", 'label: 5 label: "x"', pattern=compile_pattern(r"label: (\d)")).value
            == 0
        )


def test_an_answer_that_makes_the_pattern_run_without_end_is_wrong_and_counted(monkeypatch):
    monkeypatch.setattr("luthier.scoring.extract.PATTERN_SECONDS", 0.2)
    started = time.process_time()
    score = score_answer("regex", "a" * 60 + "b", "aa", pattern=compile_pattern(r"^((a|aa)+)$"))
    assert time.process_time() - started < 5
    assert (score.value, score.secondary["pattern_timeout"], score.secondary["answered"]) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("metric", "reference", "pattern", "words"),
    [
        ("contains", "  ", None, "every answer contains"),
        ("number", "none", None, "no number"),
        ("json_exact", "{", None, "not JSON"),
        ("regex", "cat", r"label: (\w+)", "does not match"),
        ("regex", "a" * 60 + "b", r"^((a|aa)+)$", "without end"),
        ("number", "label: x", r"label: (\w+)", "no number"),
    ],
)
def test_references_that_cannot_be_scored_are_named(monkeypatch, metric, reference, pattern, words):
    monkeypatch.setattr("luthier.scoring.extract.PATTERN_SECONDS", 0.2)
    assert words in check_reference(metric, reference, pattern=compile_pattern(pattern) if pattern else None)


@given(st.sampled_from(["exact", "contains"]), st.text(min_size=1, max_size=50).filter(str.strip))
def test_the_reference_itself_is_a_right_answer(metric, text):
    assert check_reference(metric, text) is None
    assert score_answer(metric, text, text).value == 1.0
    assert score_answer(metric, f"\n {text}\t", text).value == 1.0


@given(st.sampled_from(sorted(METRICS)), st.text(max_size=100))
def test_any_answer_gets_zero_or_one(metric, answer):
    score = score_answer(metric, answer, '{"a": 1}')
    assert score.value in (0.0, 1.0)
    assert all(0.0 <= value <= 1.0 for value in score.secondary.values())


@pytest.mark.parametrize("metric", sorted(METRICS))
@pytest.mark.parametrize("answer", ["[" * 10**6, "1" * 10**6, "\0" * 10**6, "{}" * 10**5, "\ud800"])
def test_hostile_answers_are_wrong_in_time(metric, answer):
    started = time.process_time()
    assert score_answer(metric, answer, '{"a": 17}').value == 0.0
    assert time.process_time() - started < 5


# -- GSM8K. Answers as models give them; the expected columns are what lm-evaluation-harness' two filters aim at.

GSM8K_REFERENCE = "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nShe makes 9 * 2 = $<<9*2=18>>18.\n#### 18"


@pytest.mark.parametrize(
    ("answer", "lenient", "strict"),
    [
        ("9 * 2 = 18\n#### 18", 1, 1),
        ("#### 18.00", 1, 1),
        ("#### $18", 1, 1),
        ("#### 18 dollars", 1, 1),
        ("####18", 1, 1),
        ("The answer is 18.", 1, 0),
        ("She makes $18 every day.", 1, 0),
        ("\\boxed{18}", 1, 0),
        ("#### 17", 0, 0),
        ("#### 18\n\nQuestion: what is 3 + 4? #### 7", 0, 1),  # a model that runs on
        ("#### -18", 0, 0),
        ("#### ", 0, 0),
        ("", 0, 0),
        ("#### 1,8", 0, 0),
    ],
)
def test_gsm8k_lenient_and_strict(answer, lenient, strict):
    task = library_task("gsm8k")
    (second,) = task.secondary
    assert score_answer(task.metric, answer, GSM8K_REFERENCE).value == lenient
    pattern = compile_pattern(second.pattern)
    assert score_answer(second.metric, answer, GSM8K_REFERENCE, pattern=pattern).value == strict


def test_gsm8k_worked_examples_are_right():
    import re

    task = library_task("gsm8k")
    assert "gsm8k" in library_names()
    assert len(task.fewshot) == 8
    for shot in task.fewshot:
        sums = re.findall(r"([\d.]+(?: [-+*/] [\d.]+)+) = ([\d.]+)", shot.answer)
        assert sums
        for left, right in sums:
            assert eval(left) == pytest.approx(float(right)), shot.answer
        assert score_answer("number", shot.answer, sums[-1][1]).value == 1.0
        assert re.search(r"\n#### \d+$", shot.answer)
