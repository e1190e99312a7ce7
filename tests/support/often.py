"""How many random examples a property is tried with: all of them in `make test-all`, two fifths in `make test`."""

from __future__ import annotations

import os

__all__ = ["often"]

ALL = os.environ.get("LUTHIER_TEST_EXAMPLES") == "all"


def often(examples: int) -> int:
    """`examples`, or two fifths of them."""
    return examples if ALL else max(1, examples * 2 // 5)
