"""Read a spec: YAML 1.2, overrides, schema and rules, every problem at once; as `recipe/load.py` does for recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.recipe.describe import got
from luthier.recipe.json_schema import json_schema
from luthier.recipe.load import read_document
from luthier.recipe.overrides import apply_overrides
from luthier.recipe.validate import validate_as
from luthier.runtime.errors import RecipeError
from luthier.synthesis.rules import check_spec
from luthier.synthesis.spec import SynthSpec

__all__ = ["SCHEMA_ID", "load_spec", "spec_schema"]

SCHEMA_ID = "luthier-synth-1.schema.json"


def load_spec(path: Path, overrides: Sequence[str] = ()) -> SynthSpec:
    """Read, override and check a spec.

    Args:
        path: a YAML 1.2 file.
        overrides: `key.sub=value`, applied before anything is checked.

    Raises:
        RecipeError: with every problem, in file order.
    """
    document = read_document(path)
    if document.readable and not document.problems and not isinstance(document.value, dict):
        message = f"a spec is a mapping (mode, endpoint, ...), got {got(document.value)}"
        raise RecipeError(problems=[document.place(()).problem("C103", message, hint="docs/synthesis.md has examples")])
    if not document.readable or not isinstance(document.value, dict):
        raise RecipeError(problems=document.in_order(document.problems))
    apply_overrides(document, overrides)
    spec, problems = validate_as(SynthSpec, document)
    problems = [*document.problems, *problems]
    if spec is not None:
        problems += check_spec(spec, document.locate)
    if problems or spec is None:
        raise RecipeError(problems=document.in_order(problems))
    return spec


def spec_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a spec, for editors."""
    return json_schema(SynthSpec, schema_id=SCHEMA_ID, title="Luthier synthesis spec")
