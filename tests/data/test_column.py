"""A number of a row: from any column, the text of a CSV cell too; anything else is said in words."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.data.column import number_in


@pytest.mark.parametrize(
    ("row", "column", "found"),
    [
        ({"s": 2}, "s", 2.0),
        ({"s": "0.5"}, "s", 0.5),
        ({"a": {"b": {"c": -1e3}}}, "a.b.c", -1000.0),
        ({"a.b": 1, "a": {"b": 2}}, "a.b", 1.0),
        ({}, "s", "no column"),
        ({"a": {"b": 2}}, "a.c", "no column"),
        ({"a": 2}, "a.b", "no column"),
        ({"s": "high"}, "s", "'high' in column"),
        ({"s": True}, "s", "true in column"),
        ({"s": None}, "s", "null in column"),
        ({"s": [1]}, "s", "a list of 1 in column"),
        ({"s": float("nan")}, "s", "nan in column"),
        ({"s": "inf"}, "s", "'inf' in column"),
        ({"s": 10**400}, "s", f"{str(10**400)[:57]}... in column"),
    ],
)
def test_a_number_or_what_is_there(row: dict[str, Any], column: str, found: float | str) -> None:
    assert number_in(row, column) == found
