"""What a hint tells a recipe to say is said as options to somebody at the command line."""

from __future__ import annotations

import pytest

from luthier.cli.columns import hints_as_options
from luthier.runtime.errors import DataError, Problem


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        ("for instance `map: {user: question, assistant: answer}`",
         "for instance `--map user=question --map assistant=answer`"),
        ("`map: {user: the question, assistant: a}`", "`--map 'user=the question' --map assistant=a`"),
        ("choose one, for instance `format: messages`", "choose one, for instance `--format messages`"),
        ("add a `map`", "add `--map FIELD=COLUMN`"),
        ("mend the row", "mend the row"),
        (None, None),
    ],
)  # fmt: skip
def test_hints(hint: str | None, told: str | None) -> None:
    with pytest.raises(DataError) as caught, hints_as_options():
        raise DataError(problems=[Problem(code="D210", message="no", file="a.jsonl", line=3, hint=hint)], total=7)
    assert caught.value.problems == [Problem(code="D210", message="no", file="a.jsonl", line=3, hint=told)]
    assert caught.value.total == 7


def test_a_file_without_a_format_option_keeps_the_key() -> None:
    wanted = pytest.raises(DataError, match="`format: text` or `--against-map text=a`")
    with wanted, hints_as_options(option="--against-map", has_format=False):
        raise DataError(message="no", hint="`format: text` or `map: {text: a}`")
