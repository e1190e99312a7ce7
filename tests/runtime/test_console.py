"""Contract: a bar is shown for work of more than `above` units only, and counts either way."""

import pytest

from luthier.runtime.console import progress


@pytest.mark.parametrize(("total", "shown"), [(3, False), (4, True)])
def test_little_work_has_no_bar(total, shown, capsys):
    with progress("tokenise", total, "rows", above=3) as bar:
        for _ in range(total):
            bar.advance()
    assert bar.done == total
    assert ("tokenise" in capsys.readouterr().err) == shown
