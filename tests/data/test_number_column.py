"""A number of a row: from any column, the text of a CSV cell too; anything else is said in words, once for a file."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.data.number_column import NumberColumn
from luthier.data.rows import Faults, Row
from luthier.data.types import RowRef
from luthier.runtime.errors import DataError


def read(rows: list[dict[str, Any]], name: str) -> tuple[list[float | None], list[str]]:
    column = NumberColumn(name, code="D231", needs="`dedup.score`", hint="choose another `keep`")
    numbers = [column.number(Row(value=value, ref=RowRef("rows.jsonl", line))) for line, value in enumerate(rows, 1)]
    faults = Faults()
    column.report(faults)
    try:
        faults.raise_if_any()
    except DataError as error:
        return numbers, [problem.message for problem in error.problems]
    return numbers, []


@pytest.mark.parametrize(
    ("row", "column", "found"),
    [
        ({"s": 2}, "s", 2.0),
        ({"s": "0.5"}, "s", 0.5),
        ({"a": {"b": {"c": -1e3}}}, "a.b.c", -1000.0),
        ({"a.b": 1, "a": {"b": 2}}, "a.b", 1.0),
        ({}, "s", "no column `s`"),
        ({"a": {"b": 2}}, "a.c", "no column `a.c`"),
        ({"a": 2}, "a.b", "no column `a.b`"),
        ({"s": "high"}, "s", "'high' in column `s`"),
        ({"s": True}, "s", "true in column `s`"),
        ({"s": None}, "s", "null in column `s`"),
        ({"s": [1]}, "s", "a list of 1 in column `s`"),
        ({"s": float("nan")}, "s", "nan in column `s`"),
        ({"s": "inf"}, "s", "'inf' in column `s`"),
        ({"s": 10**400}, "s", f"{str(10**400)[:57]}... in column `s`"),
    ],
)
def test_a_number_or_what_is_there(row: dict[str, Any], column: str, found: float | str) -> None:
    numbers, messages = read([row], column)
    if isinstance(found, float):
        assert numbers == [found]
        assert messages == []
    else:
        assert numbers == [None]
        assert messages == [f"{found}, which `dedup.score` needs as a number"]


def test_a_file_without_the_column_is_one_problem_and_a_row_without_it_is_one_of_its_own() -> None:
    assert read([{"a": 1}] * 3, "s")[1] == [
        "none of the 3 rows has the column `s`, which `dedup.score` needs as a number"
    ]
    assert read([{"s": 1}, {"a": 1}], "s")[1] == ["no column `s`, which `dedup.score` needs as a number"]
