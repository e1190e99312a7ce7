"""Contract: docs/reliability.md has a row for each entry of the catalogue, and every test it names exists."""

import re
from pathlib import Path

from tests.acceptance import hostile, saving, tokens, training
from tests.acceptance.lab import CHECKS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text("utf-8")
MODULES = (hostile, saving, tokens, training)


def test_every_entry_of_the_catalogue_has_one_row():
    rows = re.findall(r"^\| ([BF]\d\d) \|", PAGE, re.MULTILINE)
    assert rows == [f"B{number:02}" for number in range(1, 66)] + [f"F{number:02}" for number in range(1, 33)]


def test_every_named_test_exists():
    named = set(re.findall(r"`([a-z_/]+\.py)::(\w+)`", PAGE))
    assert len(named) > 80
    missing = [
        f"{file}::{name}"
        for file, name in sorted(named)
        if f"def {name}("
        not in ((ROOT / "tests" / file).read_text("utf-8") if (ROOT / "tests" / file).exists() else "")
    ]
    assert not missing


def test_every_named_check_exists():
    numbers = {number for number, *_ in CHECKS}
    named = {number for text in re.findall(r"checks? ((?:\d+(?:, )?)+)", PAGE) for number in text.split(", ") if number}
    assert named and named <= numbers, named - numbers
