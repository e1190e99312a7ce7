"""A recipe for a file of examples, from a look at it: what `luthier init` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from luthier.data.sniff import SniffResult, sniff
from luthier.recipe.starter import starter_recipe
from luthier.runtime.errors import RecipeError

__all__ = ["recipe_for"]

_LONGEST = 8192


def recipe_for(
    data: Path, *, shown: str, output_dir: str, model: str = "smollm2-135m-instruct", method: str = "lora"
) -> tuple[SniffResult, str]:  # fmt: skip
    """What the file looks like, and the commented recipe.

    Args:
        data: The file.
        shown: Its path as the recipe shall name it.
        output_dir: Run folder.
        model: Hub id or folder.
        method: What to train.

    Raises:
        RecipeError: C141: no format is recognised.
        DataError: the file cannot be read.
    """
    found = sniff(data)
    if found.format is None:
        raise RecipeError(
            code="C141", message=f"{shown}: {found.verdict}", hint="write the recipe by hand, with `map:`"
        )
    text = starter_recipe(
        data_path=shown, format=found.format, mapping=found.map, rows=found.rows, model=model,
        max_length=_max_length(found.characters), task_metric=found.metric, output_dir=output_dir, method=method,
        kind=found.kind,
    )  # fmt: skip
    return found, text


def _max_length(characters: Mapping[str, int]) -> int:
    """Power of two that holds 99% of the rows, at a careful 3 characters a token."""
    tokens = max(128, characters["p99"] // 3)
    return min(_LONGEST, 1 << (tokens - 1).bit_length())
