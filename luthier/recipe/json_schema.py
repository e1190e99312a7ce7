"""The JSON Schema of a recipe, for editors: meaning, default and allowed values of every key."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from luthier.recipe.schema import Recipe

__all__ = ["SCHEMA_ID", "json_schema"]

SCHEMA_ID = "luthier-recipe-1.schema.json"
"""Relative on purpose: `luthier schema > luthier-recipe-1.schema.json` puts it beside the recipes."""


def json_schema(
    model: type[BaseModel] = Recipe, *, schema_id: str = SCHEMA_ID, title: str = "Luthier recipe"
) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of version 1 of the recipe, or of another file made of sections.

    A section may be left empty (`train:` and nothing below), so optional sections take null as well.
    """
    schema = model.model_json_schema()
    for definition in (schema, *schema["$defs"].values()):
        for name, field in definition["properties"].items():
            field.pop("title", None)
            if "$ref" in field and name not in definition.get("required", ()):
                reference = field.pop("$ref")
                field["anyOf"] = [{"$ref": reference}, {"type": "null"}]
            field.setdefault(
                "description", schema["$defs"][_referenced(field)]["description"] if _referenced(field) else ""
            )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": schema_id,
        **schema,
        "title": title,
    }


def _referenced(field: dict[str, Any]) -> str:
    """Name of the section a field refers to; empty if it is a value."""
    options = [field, *field.get("anyOf", [])]
    return next((option["$ref"].rpartition("/")[2] for option in options if "$ref" in option), "")
