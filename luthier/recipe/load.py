"""Read a recipe: YAML 1.2, overrides, schema and cross-field rules, every problem at once.

Codes: C101 not readable or not YAML, C102 unknown key, C103 wrong value, C104 missing key,
C105 repeated key, C106 tag, alias bomb or nesting, C107 override, C110 keys that exclude or need
each other, C111 a key that would have no effect, C130 a file that is not there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.recipe.accelerate.merge import with_config
from luthier.recipe.check import check, check_parts
from luthier.recipe.deepspeed_config import taken_from_deepspeed
from luthier.recipe.emit import dump_yaml
from luthier.recipe.overrides import apply_overrides
from luthier.recipe.positions import Document, KeyPath, dotted
from luthier.recipe.schema import Recipe
from luthier.recipe.validate import validate
from luthier.recipe.yaml12 import MAX_BYTES, parse_yaml, whole_text
from luthier.runtime.errors import Problem, RecipeError

__all__ = ["LoadedRecipe", "dump_yaml", "load_recipe", "read_document", "recipe_from_dict", "recipe_from_text"]

_INIT = "`luthier init DATA` writes a recipe to start from"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRecipe:
    """A checked recipe and where it came from."""

    recipe: Recipe
    path: Path
    text: str
    """As the user wrote it (decoded, without byte-order mark)."""
    overrides: tuple[str, ...]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read, override and check a recipe.

    Args:
        path: a YAML 1.2 file.
        overrides: `key.sub=value`, applied before anything is checked.

    Raises:
        RecipeError: with every problem, in file order.
    """
    document = read_document(path)
    if document.readable and document.value is None and not document.problems:
        problem = Problem(code="C101", message="the recipe is empty", file=document.origin, hint=_INIT)
        raise RecipeError(problems=[problem])
    text = document.text
    recipe = _finish(document, overrides)
    return LoadedRecipe(recipe=recipe, path=Path(path), text=text, overrides=tuple(overrides))


def read_document(path: Path) -> Document:
    """The plain values of a YAML 1.2 file and where they stand; what is wrong with the YAML is in its `problems`.

    Raises:
        RecipeError: no file, or none that is text.
    """
    origin = os.fspath(path)
    return parse_yaml(_read(Path(path), origin), origin=origin)


def recipe_from_text(text: str, *, origin: str) -> Recipe:
    """Check a recipe that is a text in memory (an editor's).

    Raises:
        RecipeError: with every problem, in the order of the text; `origin` names the place.
    """
    return _finish(parse_yaml(text, origin=origin), ())


def recipe_from_dict(value: Mapping[str, Any], *, origin: str) -> Recipe:
    """Check a recipe that is already a mapping (Python API, stored recipes).

    Tuples count as lists and `pathlib` paths as text; nothing else is converted.

    Raises:
        RecipeError: with every problem; `origin` names the place.
    """
    document = Document(origin=origin, text="", value=None)
    document.value = _plain(value, (), document)
    return _finish(document, ())


def _finish(document: Document, overrides: Sequence[str]) -> Recipe:
    if not document.readable:
        raise RecipeError(problems=document.in_order(document.problems))
    apply_overrides(document, overrides)
    recipe, problems = validate(document)
    problems = [*document.problems, *problems]
    if recipe is None:
        problems += check_parts(document)
    else:
        recipe, wrong, locate = with_config(recipe, document.locate)
        recipe = taken_from_deepspeed(recipe)  # a file that accelerate's may have named
        problems += [*wrong, *check(recipe, locate=locate)]
    if problems or recipe is None:
        raise RecipeError(problems=document.in_order(problems))
    return recipe


def _plain(value: Any, path: KeyPath, document: Document) -> Any:
    """`value` as YAML would have given it; numbers and keys that YAML cannot give are problems."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                message = f"keys are text, got {key!r} in `{dotted(path) or 'the recipe'}`"
                document.problems.append(document.place(path).problem("C103", message))
        return {key: _plain(item, (*path, key), document) for key, item in value.items() if isinstance(key, str)}
    if isinstance(value, list | tuple):
        return [_plain(item, (*path, index), document) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        document.problems.append(
            document.place(path).problem("C103", f"`{dotted(path)}`: numbers must be finite, got {value}")
        )
        document.bad.add(path)
        return None
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    try:
        return whole_text(value) if isinstance(value, str) else value
    except ValueError as error:
        document.problems.append(document.place(path).problem("C103", f"`{dotted(path)}`: {error}"))
        document.bad.add(path)
        return None


def _read(path: Path, origin: str) -> str:
    """Text of a file: at most 1 MiB of UTF-8."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _unreadable(origin, f"no such file: {path.absolute()}", _near_files(path) or _INIT) from None
    except IsADirectoryError:
        raise _unreadable(origin, f"{origin} is a folder, a recipe is a file", _near_files(path / "x")) from None
    except OSError as error:
        raise _unreadable(origin, f"cannot read {origin}: {error.strerror}", None) from error
    except ValueError as error:
        raise _unreadable(origin, f"not a file name: {error}", None) from error
    if len(data) > MAX_BYTES:
        raise _unreadable(origin, f"larger than {MAX_BYTES // 2**20} MiB: this is no recipe", None)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _unreadable(origin, "this is UTF-16, a recipe is UTF-8", "save it as UTF-8")
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode("utf-8")
        document = Document(origin=origin, text=before + "\ufffd", value=None)
        place = document.place_of(len(before), len(before) + 1)
        message = f"not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}"
        raise RecipeError(problems=[place.problem("C101", message, hint="save it as UTF-8")]) from None


def _unreadable(origin: str, message: str, hint: str | None) -> RecipeError:
    return RecipeError(problems=[Problem(code="C101", message=message, file=origin, hint=hint)])


def _near_files(path: Path) -> str | None:
    from luthier.recipe.paths import near_names

    names = near_names(path, suffixes=(".yaml", ".yml"))
    return "did you mean " + " or ".join(names) + "?" if names else None
