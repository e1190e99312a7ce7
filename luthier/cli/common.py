"""Arguments that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.runtime.errors import Problem, RecipeError

if TYPE_CHECKING:
    from luthier.recipe.load import LoadedRecipe

__all__ = ["JsonOption", "OverridesArgument", "RecipeArgument", "load_with_overrides"]

RecipeArgument = Annotated[Path, typer.Argument(help="Recipe (YAML).", show_default=False)]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="Overrides: key.sub=value or --key.sub value.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Result as JSON on stdout.")]


def load_with_overrides(recipe: Path, arguments: list[str] | None) -> LoadedRecipe:
    """Load a recipe with `key=value`, `--key value`, `--key=value` and `~key` overrides."""
    from luthier.recipe.load import load_recipe

    return load_recipe(recipe, split_overrides(arguments or []))


def split_overrides(arguments: list[str]) -> list[str]:
    """Bring all spellings of an override to `key=value`; `~key` stays.

    Raises:
        RecipeError: an argument that is no override.
    """
    overrides: list[str] = []
    problems: list[Problem] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name = argument.removeprefix("--")
        if "=" in argument or argument.startswith("~"):
            overrides.append(name)
        elif argument.startswith("--") and rest and not rest[0].startswith("--"):
            overrides.append(f"{name}={rest.pop(0)}")
        else:
            problems.append(
                Problem(
                    code="C120",
                    message=f"`{argument}` is no override",
                    hint="write key.sub=value or --key.sub value; ~key.sub takes a key out",
                )
            )
    if problems:
        raise RecipeError(problems=problems)
    return overrides
