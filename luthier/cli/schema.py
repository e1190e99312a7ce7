"""`luthier schema`: JSON Schema of the recipe, of a synthesis spec, or of `api.yaml`, for editors."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from luthier.cli.output import emit_json


def schema(
    of: Annotated[
        Literal["recipe", "synth", "api"],
        typer.Argument(help="`synth`: the spec of `data synth`; `api`: the settings of `luthier api`."),
    ] = "recipe",
) -> None:
    """Print a JSON Schema: every key of a recipe (spec, settings) with its meaning, default and allowed values."""
    if of == "synth":
        from luthier.synthesis.load import spec_schema

        emit_json(spec_schema())
        return
    if of == "api":
        from luthier.api.config import settings_schema

        emit_json(settings_schema())
        return
    from luthier.recipe.json_schema import json_schema

    emit_json(json_schema())
