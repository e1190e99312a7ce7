"""Contradictions between `export.push_to_hub` and the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.recipe.positions import Locate
from luthier.recipe.schema import ExportSection, MethodSection, Recipe
from luthier.runtime.errors import Problem

__all__ = ["push_rules", "unpublished"]

_KEY = "export.push_to_hub"


def push_rules(export: ExportSection, method: MethodSection | None, locate: Locate) -> Iterator[Problem]:
    """What is to be pushed must be made; a base may be named only where it is pushed by name."""
    push = export.push_to_hub
    assert push is not None
    if push.what == "merged" and not export.merge:
        message = f"`{_KEY}.what: merged` pushes the merged model, and `export.merge` is false"
        yield locate(_KEY, on="key").problem("C110", message, hint="write what: adapter, or merge: true")
    if push.what == "gguf" and not export.gguf:
        message = f"`{_KEY}.what: gguf` pushes GGUF files, and the recipe makes none (`export.gguf`)"
        yield locate(f"{_KEY}.what").problem("C110", message, hint="add export: {gguf: [q8_0]}, or write what: merged")
    if push.what == "adapter" and method is not None and method.name not in ("lora", "qlora"):
        message = f"`{_KEY}.what: adapter` needs an adapter, and method {method.name} trains the model itself"
        yield locate(f"{_KEY}.what").problem("C110", message, hint="write what: merged")


def unpublished(recipe: Recipe) -> Recipe:
    """The recipe without its push: a trial or a repetition is not the result."""
    return recipe.model_copy(update={"export": recipe.export.model_copy(update={"push_to_hub": None})})
