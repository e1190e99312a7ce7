"""Contract: keys of `evaluate.judge` that contradict each other, lack something or do nothing are errors."""

from __future__ import annotations

import pytest

from tests.recipe.support import load, problem_of

pytestmark = pytest.mark.usefixtures("work")

TASK = "tasks: [{name: t, path: rows.jsonl, metric: exact}]"
SERVER = "base_url: 'http://localhost:8000/v1', model: m"


def section(judge: str, more: str = "") -> str:
    return f"evaluate: {{{TASK}, judge: {{{judge}}}{more}}}\n"


def test_a_judge_that_compares_is_taken() -> None:
    recipe = load(section(f"{SERVER}, compare: [pairwise, rubric], rubric: r, limit: 5"))
    assert recipe.evaluate.judge is not None and recipe.evaluate.judge.compare == ["pairwise", "rubric"]


@pytest.mark.parametrize(
    ("judge", "more", "code", "words"),
    [
        ("base_url: 'http://localhost:8000/v1'", "", "C111", "nothing to do"),
        (f"{SERVER}, compare: [pairwise]", "", "C110", "needs `rubric`"),
        ("model: m, compare: [pairwise], rubric: r", "", "C110", "needs `base_url`"),
        (f"{SERVER}, compare: [pairwise], rubric: r, budget_usd: 1.0", "", "C110", "prices"),
        (f"{SERVER}, compare: [rubric], rubric: r, min_score: 10.0", "", "C110", "not below"),
        (f"{SERVER}, compare: [pairwise], rubric: r, min_score: 2.0", "", "C111", "no effect"),
        (f"{SERVER}, compare: [pairwise], rubric: r, tasks: [u]", "", "C110", 'no task "u"'),
        (f"{SERVER}, compare: [pairwise], rubric: r", ", compare_with_base: false", "C110", "compare_with_base"),
    ],
)
def test_what_cannot_be_done_is_refused(judge: str, more: str, code: str, words: str) -> None:
    problem = problem_of(section(judge, more))
    assert problem.code == code and words in problem.message
    assert problem.line is not None
