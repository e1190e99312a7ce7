"""Contract: keys of `data.filters` that contradict each other or have no effect are errors at their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.recipe.check import check
from luthier.recipe.filter_schema import FILTERS
from luthier.recipe.positions import nowhere
from luthier.recipe.resolve import recipe_to_dict
from luthier.recipe.schema import Recipe
from tests.recipe.support import BASE, load, problem_of, problems_of

pytestmark = pytest.mark.usefixtures("work")

JUDGE = "judge: {rubric: good, min_score: 5.0, endpoint: {base_url: 'http://localhost:1/v1', model: m}}"


def with_filters(keys: str, more: str = "") -> str:
    return BASE.replace("rows.jsonl}]", f"rows.jsonl}}], filters: {{{keys}}}") + more


def test_nothing_is_looked_at_unless_named() -> None:
    assert load(BASE, base=False).data.filters is None
    filters = load(with_filters("pii: {}, encoding: {}"), base=False).data.filters
    assert filters is not None
    assert filters.named() == ["encoding", "pii"] == [name for name in FILTERS if name in ("pii", "encoding")]
    assert filters.pii is not None and filters.pii.action == "redact" and "secret" in filters.pii.kinds


@pytest.mark.parametrize(
    ("keys", "code", "words"),
    [
        ("", "C110", "names no filter"),
        ("answers: chosen", "C110", "names no filter"),
        ("length: {}", "C110", "has no bound"),
        ("length: {unit: words, min_answer: 9, max_answer: 3}", "C110", "above max_answer"),
        ("length: {max_answer: 0}", "C103", ">= 1"),
        ("pii: {kinds: [email, email]}", "C110", "names something twice"),
        ("pii: {kinds: [names]}", "C103", "email"),
        ("pii: {action: mask}", "C103", "redact"),
        ("language: {}", "C104", "languages"),
        ("language: {languages: [en, en]}", "C110", "names something twice"),
        ("language: {languages: [english]}", "C103", "languages"),
        ("refusals: {patterns: ['(']}", "C103", "not a regular expression"),
        ("boilerplate: {phrases: [' ']}", "C103", "found in every answer"),
        ("boilerplate: {endings: keep, ending_rows: 5}", "C111", "looks at no endings"),
        ("python: [rules.py:keep]", "C130", "no such file"),
        ("python: [rules.py]", "C103", ""),
        ("endings: {}, answers: chosen", "C111", "no answers to choose from"),
        ("ending: {}", "C102", "ending"),
        (JUDGE.replace("5.0", "0.0"), "C110", "drops no row"),
        (JUDGE.replace("5.0", "11.0"), "C110", "drops every row"),
        (JUDGE.replace("good", "' '"), "C110", "needs `rubric`"),
        (JUDGE.replace(", model: m", ""), "C110", "needs `data.filters.judge.endpoint.model`"),
        (JUDGE.replace("model: m", "model: m, budget_usd: 1.0"), "C110", "needs the prices"),
        (JUDGE.replace("min_score", "lowest: 10.0, min_score"), "C110", "must be below highest"),
    ],
)
def test_what_cannot_be(keys: str, code: str, words: str) -> None:
    problems = problems_of(with_filters(keys), base=False)
    assert [problem.code for problem in problems] in ([code], [code, "C111"]), problems
    assert words in problems[0].message, problems[0].render()
    assert problems[0].line == 2


def test_online_rl_asks_prompts_and_a_judges_score_needs_a_judge() -> None:
    online = with_filters("pii: {}", "objective: {name: grpo, grpo: {rewards: [{name: number}]}}\n")
    assert "online RL asks prompts" in problem_of(online, base=False).message
    text = BASE.replace("rows.jsonl}]", "rows.jsonl}], dedup: {keep: score, score: '@judge'}")
    assert "needs `data.filters.judge`" in problem_of(text, base=False).message


@pytest.mark.parametrize(
    "keys",
    ["pii: {}", "boilerplate: {endings: keep}", "length: {max_total: 9}", "language: {languages: [en]}", JUDGE,
     "python: [rules.py:keep], echo: {}"],
)  # fmt: skip
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_resolved_recipe_loads_again(keys: str, objective: str) -> None:
    Path("rules.py").write_text("def keep(row): return True\n")
    recipe = load(with_filters(keys, f"objective: {{name: {objective}}}\n"), base=False)
    value = recipe_to_dict(recipe)
    again = Recipe.model_validate(value)
    assert again == recipe and check(again, locate=nowhere) == []
    assert ("answers" in value["data"]["filters"]) == (objective == "dpo")
