"""Contract: one clear error, with place, caret and fix; the exit code belongs to the class."""

import pytest

from luthier.runtime.errors import (
    AccessError,
    DataError,
    EnvironmentProblem,
    Interrupted,
    LuthierError,
    OutOfMemory,
    Problem,
    RecipeError,
    RunFailed,
)


def test_the_caret_stands_under_the_key_and_the_hint_follows():
    problem = Problem(
        code="C102", message='unknown key "learning_rte" in train', file="recipe.yaml", line=14, column=3,
        source="  learning_rte: 1e-3", length=12, hint='did you mean "learning_rate"?',
    )  # fmt: skip
    lines = problem.render().splitlines()
    assert lines[0] == 'error[C102] recipe.yaml:14:3  unknown key "learning_rte" in train'
    assert lines[1] == "   14 |   learning_rte: 1e-3"
    assert lines[2] == '          ^^^^^^^^^^^^ did you mean "learning_rate"?'
    assert lines[1].index("learning_rte") == lines[2].index("^")


def test_a_long_line_is_cut_around_the_caret():
    source = "x" * 500 + "BAD" + "y" * 500
    problem = Problem(code="D201", message="m", file="f", line=1, column=501, source=source, length=3)
    shown, caret = problem.render().splitlines()[1:3]
    assert len(shown) < 130
    assert shown[caret.index("^") : caret.index("^") + 3] == "BAD"


@pytest.mark.parametrize(
    ("kind", "code"),
    [(LuthierError, 1), (RunFailed, 1), (RecipeError, 2), (DataError, 3), (EnvironmentProblem, 4), (OutOfMemory, 5),
     (AccessError, 6), (Interrupted, 130)],
)  # fmt: skip
def test_exit_codes_are_those_documented(kind, code):
    assert kind(message="m").exit_code == code


def test_all_problems_are_shown_with_their_count():
    error = RecipeError(problems=[Problem(code="C1", message="one"), Problem(code="C2", message="two")])
    assert "one" in str(error) and "two" in str(error) and str(error).endswith("2 errors")
