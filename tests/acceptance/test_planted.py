"""Contract: every planted bug still finds the lines that it changes, and what it makes of them is Python."""

from pathlib import Path

import pytest

import luthier
from tests.acceptance.planted import BUGS


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_lines_are_there(bug):
    for name, text, replacement in bug.edits:
        source = (Path(luthier.__file__).parent / name).read_text("utf-8")
        assert source.count(text) == 1, f"{name} has {source.count(text)} of {text!r}"
        assert text != replacement
        compile(source.replace(text, replacement), name, "exec")
