"""`luthier schema`: JSON Schema of the recipe, for editors."""

from __future__ import annotations

from luthier.cli.output import emit_json


def schema() -> None:
    """Print the JSON Schema of a recipe: every key with its meaning, default and allowed values."""
    from luthier.recipe.json_schema import json_schema

    emit_json(json_schema())
