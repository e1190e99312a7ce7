"""`unfrozen_parameters`: the file that the original script writes and that Axolotl and TRL scripts read. No torch.

    unfrozen_parameters:
    - ^lm_head.weight$
    - ^model.embed_tokens.weight$
    # mlp.down_proj layers
    - model.layers.1.mlp.down_proj

Each entry is a regular expression, matched from the start of a parameter's name (as Axolotl and the TRL scripts do).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from luthier.recipe.yaml12 import parse_yaml
from luthier.runtime.console import note
from luthier.runtime.errors import RecipeError
from luthier.spectrum.names import is_embedding, is_head, type_of
from luthier.spectrum.select import Selection

__all__ = ["KEY", "listing", "matching", "read_listing", "some_names", "unmatched"]

KEY = "unfrozen_parameters"


def listing(selection: Selection) -> str:
    """The text of the file."""
    lines = [f"{KEY}:", *(f"- {pattern}" for pattern in selection.ends)]
    for kind, patterns in selection.chosen.items():
        lines += [f"# {kind} layers", *(f"- {pattern}" for pattern in patterns)]
    return "\n".join(lines) + "\n"


def read_listing(path: Path) -> Selection:
    """The patterns of a file: of this program, of the original script, or an Axolotl recipe with that key.

    Raises:
        RecipeError: no such file, no such key, an entry that is no text or no regular expression; all at once.
    """
    try:
        document = parse_yaml(path.read_text("utf-8-sig"), origin=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(code="M330", message=f"cannot read {path}: {error}", hint="check the path") from error
    if document.problems:
        raise RecipeError(problems=[replace(problem, code="M330") for problem in document.problems])
    value = document.value
    entries = value.get(KEY) if isinstance(value, dict) else None
    if not isinstance(entries, list) or not entries:
        hint = f"a file that begins with `{KEY}:`, then lines such as `- model.layers.3.mlp.down_proj`"
        raise RecipeError(code="M330", message=f"{path} has no list `{KEY}`", hint=hint)
    problems = [
        document.locate(f"{KEY}.{place}").problem("M330", wrong)
        for place, entry in enumerate(entries)
        if (wrong := _wrong(entry))
    ]
    if problems:
        raise RecipeError(problems=problems)
    others = [str(key) for key in value if key != KEY]
    if others:
        note(f"  {path}: only `{KEY}` is read; {len(others)} other keys are not: {', '.join(others[:4])}")
    return _as_selection(dict.fromkeys(entries))


def _wrong(entry: object) -> str | None:
    if not isinstance(entry, str) or not entry:
        return f"{entry!r} is not the name of a parameter"
    try:
        re.compile(entry)
    except re.error as error:
        return f"{entry!r} is no regular expression: {error}"
    return None


def _as_selection(patterns: Iterable[str]) -> Selection:
    """Patterns in the order of the file, sorted into ends and module types."""
    ends: list[str] = []
    chosen: dict[str, list[str]] = {}
    for pattern in patterns:
        name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if is_embedding(name) or is_head(name):
            ends.append(pattern)
        else:
            chosen.setdefault(type_of(name, each_expert=True), []).append(pattern)
    return Selection(
        score=None, top_percent=None, ends=tuple(ends), chosen={kind: tuple(found) for kind, found in chosen.items()}
    )


def matching(patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    """Names that some pattern matches from their start."""
    compiled = [re.compile(pattern) for pattern in patterns]
    return [name for name in names if any(pattern.match(name) for pattern in compiled)]


def unmatched(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Patterns that match no name."""
    return [pattern for pattern in patterns if not any(re.match(pattern, name) for name in names)]


def some_names(names: Iterable[str]) -> str:
    """A few names of a model, for the hint behind one that it does not have; numbers of layers as N."""
    return ", ".join(sorted({re.sub(r"\.\d+\.", ".N.", name) for name in names})[:6]) + ", ..."
