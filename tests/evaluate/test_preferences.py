"""Contract: shares of held-out pairs before and after, by hand."""

import pytest

from luthier.evaluate.preferences import preference_lines, summarise


def rows(values, *, label=None):
    return [
        {"file": "f", "line": i, "label": label and label[i], "tokens": tokens, "before": before, "after": after}
        for i, (tokens, before, after) in enumerate(values)
    ]


PAIRS = rows([
    ([2, 4], [-4.0, -6.0], [-3.0, -7.0]),  # right before and after; a token: -2 against -1.5, then -1.5 against -1.75
    ([3, 3], [-6.0, -5.0], [-5.0, -5.5]),  # wrong, then right
    ([3, 3], [-6.0, -5.0], [-6.5, -5.0]),  # wrong twice, and it lost
])  # fmt: skip


def value(rows, **more):
    return {"objective": "dpo", "values": "log-probabilities", "needs_reference": True, "rows": rows, **more}


def test_pairs_by_hand():
    found = summarise(value(PAIRS), confidence=0.95)
    measures = {measure["name"]: measure for measure in found["measures"]}
    assert (measures["log_prob"]["before"], measures["log_prob"]["after"]) == pytest.approx((1 / 3, 2 / 3))
    assert (measures["log_prob_mean"]["before"], measures["log_prob_mean"]["after"]) == pytest.approx((0.0, 2 / 3))
    assert measures["implicit"]["before"] is None
    assert measures["implicit"]["after"] == pytest.approx(2 / 3)
    assert measures["log_prob"]["verdict"] == "no evidence"
    lines = preference_lines(found)
    assert len(lines) == 3
    assert "50% is chance" in lines[0]


def test_forty_pairs_that_turned_are_evidence():
    found = summarise(value(rows([([3, 3], [-6.0, -5.0], [-5.0, -6.0])] * 40)), confidence=0.95)
    assert found["measures"][1]["verdict"] == "better"
    back = summarise(value(rows([([3, 3], [-5.0, -6.0], [-6.0, -5.0])] * 40)), confidence=0.95)
    assert back["measures"][1]["verdict"] == "worse"


def test_without_a_reference_there_is_no_implicit_reward():
    found = summarise(value(PAIRS, needs_reference=False), confidence=0.95)
    assert [measure["name"] for measure in found["measures"]] == ["log_prob", "log_prob_mean"]


def test_rewards_are_compared_as_they_are():
    found = summarise(value(PAIRS, values="rewards"), confidence=0.95)
    (measure,) = found["measures"]
    assert measure["name"] == "reward"
    assert (measure["before"], measure["after"]) == pytest.approx((1 / 3, 2 / 3))


def test_rated_answers_have_an_area_under_the_curve():
    gains = [3.0, 1.0, 2.0, 0.0]
    made = rows([([3], [-9.0], [-9.0 + gain]) for gain in gains], label=[True, True, False, False])
    found = summarise(value(made), confidence=0.95)
    assert found["measures"][0]["after"] == pytest.approx(0.75)  # of four pairs one is the wrong way round
    alone = summarise(value(made[:2]), confidence=0.95)
    assert alone["measures"][0]["after"] is None
    assert "both kinds" in preference_lines(alone)[0]
