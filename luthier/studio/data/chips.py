"""Chips: what a row can be filtered by. The first ones come with the rows; the further ones look at every text."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.data.content import row_hash
from luthier.explore.turns import text_to_embed, turns_of

if TYPE_CHECKING:
    from luthier.explore.rows import Explored, Item

__all__ = ["Chip", "first_chips", "further_chips"]

_LANGUAGES = 12
_SIMILAR = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """One of them."""

    label: str
    group: str
    """`split`, `source`, `problem`, `language`, `role`, `length`."""
    mask: Sequence[bool]
    """Of each row."""
    command: str | None = None
    """What does the same in a terminal."""


def first_chips(explored: Explored, lost: Sequence[bool], *, max_length: int | None) -> list[Chip]:
    """Splits, sources, roles, what was dropped or cut and why, exact duplicates. Chips without a row are left out."""
    items = explored.items
    splits = ("train", "validation", "test", "dropped")
    found = [Chip(label=split, group="split", mask=[item.split == split for item in items]) for split in splits]
    sources = list(dict.fromkeys(item.source for item in items))
    if len(sources) > 1:
        found += [Chip(label=one, group="source", mask=[item.source == one for item in items]) for one in sources]
    why = [item.why.partition(":")[0] if item.split == "dropped" else "" for item in items]
    for reason in dict.fromkeys(filter(None, why)):
        found.append(Chip(label=f"dropped: {reason}", group="problem", mask=[one == reason for one in why]))
    found += _from_notes(items)
    if max_length is not None:
        over = [item.tokens is not None and len(item.tokens) > max_length for item in items]
        found.append(Chip(label=f"over {max_length:,} tokens", group="length", mask=over))
    found.append(Chip(label="loses some of the answer", group="length", mask=list(lost)))
    nothing = [item.tokens is not None and not item.tokens.trained_tokens for item in items]
    found.append(Chip(label="nothing trained", group="problem", mask=nothing))
    twice = "luthier data dedup FILE --no-fuzzy"
    found.append(Chip(label="exact duplicate", group="problem", mask=_again(items), command=twice))
    return [chip for chip in [*found, *_roles(items)] if any(chip.mask)]


def _roles(items: Sequence[Item]) -> list[Chip]:
    """Roles that some rows have and others do not."""
    own = [{turn.role for turn in turns_of(item.row)} for item in items]
    counts = Counter(role for roles in own for role in roles)
    unusual = [role for role, rows in counts.items() if role not in ("user", "assistant") and rows < len(items)]
    return [Chip(label=f"has {role}", group="role", mask=[role in roles for roles in own]) for role in unusual]


def _from_notes(items: Sequence[Item]) -> list[Chip]:
    """What the template or the tokenizer did to a row."""
    notes = [list(item.tokens.notes) if item.tokens is not None else [] for item in items]
    cut = [any(note.startswith("truncated ") for note in own) for own in notes]
    altered = [any(note.startswith(("template ", "tokenizer ")) for note in own) for own in notes]
    return [Chip(label="cut by max_length", group="length", mask=cut),
            Chip(label="altered by the template", group="problem", mask=altered)]  # fmt: skip


def _again(items: Sequence[Item]) -> list[bool]:
    seen: set[str] = set()
    found = []
    for item in items:
        content = row_hash(item.row)
        found.append(content in seen)
        seen.add(content)
    return found


def further_chips(explored: Explored) -> list[Chip]:
    """Near duplicates, languages, personal data and secrets, refusals, repetition, echoes, broken encoding.

    A search whose library is missing is left out; the chip then says so, and has no row.
    """
    from luthier.recipe.filter_schema import FilterSection

    items = explored.items
    rows = [item.row for item in items]
    found = [_near(rows)]
    filters = {
        "pii": ("personal data or secrets", {"action": "drop"}), "refusals": ("refusal", {}),
        "repetition": ("repeats itself", {}), "echo": ("answer repeats the prompt", {}),
        "encoding": ("broken encoding", {"action": "drop"}), "endings": ("answer ends in the middle", {}),
    }  # fmt: skip
    for name, (label, settings) in filters.items():
        section = FilterSection.model_validate({name: settings})
        found.append(_filtered(rows, name, label, section))
    found += _languages(items)
    return [chip for chip in found if any(chip.mask) or chip.command is None]


def _near(rows: Sequence[Any]) -> Chip:
    from luthier.curate.dedup.run import deduplicate
    from luthier.recipe.schema import DedupSection

    if importlib.util.find_spec("rensa") is None:
        return _missing(rows, "near duplicates", "rensa")
    found = deduplicate(rows, DedupSection(exact=True, fuzzy=_SIMILAR))
    mask = [False] * len(rows)
    for item in found.dropped:
        mask[item.row] = item.stage == "fuzzy"
    return Chip(
        label=f"near duplicate (Jaccard {_SIMILAR:g})", group="problem", mask=mask, command="luthier data dedup FILE"
    )


def _filtered(rows: Sequence[Any], name: str, label: str, section: Any) -> Chip:
    from luthier.curate.filters.run import Tools, build
    from luthier.runtime.errors import EnvironmentProblem

    try:
        ((_, one),) = build(section, Tools())
        mask = [verdict is not None for verdict in one.look(rows)]
    except EnvironmentProblem as problem:
        return _missing(rows, label, problem.problems[0].hint or problem.problems[0].message)
    return Chip(label=label, group="problem", mask=mask, command=f"luthier data filter FILE --use {name}")


def _languages(items: Sequence[Item]) -> list[Chip]:
    from luthier.explore.languages import guess_languages

    guessed = guess_languages([text_to_embed(turns_of(item.row), "conversation") for item in items])
    if guessed is None:
        return [_missing(items, "languages", "py3langid")]
    common = [language for language, _ in Counter(guessed).most_common(_LANGUAGES)]
    return [
        Chip(
            label=language,
            group="language",
            mask=[own == language for own in guessed],
            command="luthier data stats FILE",
        )
        for language in common
    ]


def _missing(rows: Sequence[Any], what: str, library: str) -> Chip:
    return Chip(label=f"{what}: not looked for ({library} is missing)", group="problem", mask=[False] * len(rows))
