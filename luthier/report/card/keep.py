"""A card that people write in: Luthier replaces its own sections, and nothing else.

    <!-- luthier:begin NAME -->      everything up to the end marker is written anew each time
    <!-- luthier:end NAME -->
    <!-- luthier:skip NAME -->       this section is not wanted

Text outside the markers stays byte for byte and where it is. A section that is not there yet comes behind the last one
that is. In the YAML block, Luthier owns the keys it knows the truth of (`base_model`, `model-index`, ...); of the
others it replaces only what it wrote itself, which a hash in the card tells; all further keys stay.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from luthier.runtime.errors import DataError, Problem
from luthier.runtime.hashing import hash_json

__all__ = ["OWNED", "compose", "front_matter_of", "split_front_matter"]

OWNED = ("base_model", "base_model_relation", "library_name", "pipeline_tag", "datasets", "model-index")
"""Keys of the YAML block in which what Luthier knows goes before what stands there."""
_MARKER = re.compile(r"<!-- luthier:(begin|end|skip) ([a-z-]+) -->")
_WROTE = re.compile(r"<!-- luthier:wrote ([^\n]*) -->\n?")
_FRONT = re.compile(r"\ufeff?---[ \t]*\r?\n(?P<yaml>.*?)(?:^|\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


@dataclass(slots=True)
class _Card:
    """An existing README, cut at its markers."""

    pieces: list[tuple[str | None, str]] = field(default_factory=list)
    """(name of a section or None for the user's text, text), in order."""
    skipped: set[str] = field(default_factory=set)


def compose(file: Path, meta: Mapping[str, Any], sections: Mapping[str, str], *, old: str | None) -> str:
    """The new text of a card.

    Args:
        file: for messages.
        meta: the YAML block as Luthier knows it.
        sections: name -> Markdown, in order.
        old: what the file holds now; None: there is no file.

    Raises:
        DataError: markers of `old` do not pair, or its YAML block cannot be read; names each line.
    """
    front, body = split_front_matter(old or "", file)
    card = _cut(_WROTE.sub("", body), file, offset=(old or "").count("\n") - body.count("\n"))
    written = _written(body)
    merged = _merge_meta(front, meta, written)
    own = {key: hash_json(value) for key, value in meta.items() if key != "tags"}
    wrote = " ".join([*(f"{key}={value[:12]}" for key, value in own.items()), *_tag_words(meta)])
    text = "".join(_place(card, sections))
    gap = "" if text.startswith("\n") else "\n"
    return f"---\n{_dump(merged)}---\n<!-- luthier:wrote {wrote} -->\n{gap}{text}"


def split_front_matter(text: str, file: Path) -> tuple[dict[str, Any], str]:
    """The YAML block at the head of a card as a mapping, and the rest.

    Raises:
        DataError: it is no YAML mapping.
    """
    match = _FRONT.match(text)
    if match is None:
        return {}, text
    try:
        value = YAML(typ="safe", pure=True).load(match["yaml"])
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        raise _damaged(file, (mark.line + 2) if mark else 1, "the YAML block at its head cannot be read") from error
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise _damaged(file, 1, f"the YAML block at its head is a {type(value).__name__}, not keys with values")
    return {str(key): item for key, item in value.items()}, text[match.end() :]


def front_matter_of(file: Path) -> dict[str, Any]:
    """The YAML block of somebody else's card; empty if there is none or it cannot be read."""
    try:
        return split_front_matter(file.read_text("utf-8", errors="replace"), file)[0]
    except (OSError, DataError):
        return {}


def _cut(body: str, file: Path, *, offset: int) -> _Card:
    """Pieces of the body; problems of all markers at once."""
    card, problems = _Card(), []
    open_name: str | None = None
    opened = 0
    text: list[str] = []
    seen: set[str] = set()
    for line_number, line in enumerate(body.splitlines(keepends=True), start=1 + offset):
        match = _MARKER.fullmatch(line.strip())
        if match is None:
            text.append(line)
            continue
        kind, name = match[1], match[2]
        if kind == "skip" and open_name is None:
            card.skipped.add(name)
            text.append(line)
        elif kind == "begin" and open_name is None and name not in seen:
            card.pieces.append((None, "".join(text)))
            open_name, opened, text = name, line_number, []
            seen.add(name)
        elif kind == "end" and name == open_name:
            card.pieces.append((name, ""))
            open_name, text = None, []
        else:
            stray = f"a second section {name}" if kind == "begin" and name in seen else f"the marker `{match[0]}`"
            within = f" inside section {open_name} of line {opened}" if open_name else ""
            problems.append(_problem(file, line_number, f"{stray}{within}"))
    if open_name is not None:
        problems.append(_problem(file, opened, f"section {open_name} has no end marker"))
    if problems:
        raise DataError(problems=problems)
    card.pieces.append((None, "".join(text)))
    return card


def _place(card: _Card, sections: Mapping[str, str]) -> list[str]:
    """The pieces with new sections in them; sections that are missing behind the last one."""
    there = [name for name, _ in card.pieces if name is not None]
    missing = [name for name in sections if name not in there and name not in card.skipped]
    last = max((index for index, (name, _) in enumerate(card.pieces) if name is not None), default=len(card.pieces) - 1)
    parts: list[str] = []
    for index, (name, text) in enumerate(card.pieces):
        if name is None:
            parts.append(text)
        elif name in sections and name not in card.skipped:
            parts.append(_section(name, sections[name]))
        if index == last:
            for new in missing:
                before = "".join(parts)
                gap = "" if not before or before.endswith("\n\n") else "\n" if before.endswith("\n") else "\n\n"
                parts.append(gap + _section(new, sections[new]))
    return parts


def _section(name: str, text: str) -> str:
    return f"<!-- luthier:begin {name} -->\n{text.strip()}\n<!-- luthier:end {name} -->\n"


def _merge_meta(front: Mapping[str, Any], meta: Mapping[str, Any], written: Mapping[str, str]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key, value in meta.items():
        if key in OWNED or key not in front or written.get(key) == hash_json(front[key])[:12]:
            merged[key] = value
        elif key == "tags":
            theirs = front[key] if isinstance(front[key], list) else [front[key]]
            ours = written.get("tags", "").split(",")
            merged[key] = list(dict.fromkeys([*value, *(tag for tag in theirs if tag not in ours)]))
        else:
            merged[key] = front[key]
    for key, value in front.items():
        if key not in meta and written.get(key) != hash_json(value)[:12]:
            merged[key] = value
    return merged


def _tag_words(meta: Mapping[str, Any]) -> list[str]:
    tags: Sequence[str] = meta.get("tags", [])
    return [f"tags={','.join(tags)}"] if tags else []


def _written(body: str) -> dict[str, str]:
    """Key -> hash of what Luthier wrote into the YAML block the last time; `tags` -> the tags themselves."""
    match = _WROTE.search(body)
    pairs = ((word.partition("=")[0], word.partition("=")[2]) for word in (match[1].split() if match else []))
    return dict(pairs)


def _dump(value: Mapping[str, Any]) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 10_000
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump(dict(value), stream)
    return stream.getvalue()


def _problem(file: Path, line: int, what: str) -> Problem:
    hint = "each `luthier:begin NAME` needs one `luthier:end NAME`; mend the markers, or delete the file"
    return Problem(code="X640", message=what, file=str(file), line=line, hint=hint)


def _damaged(file: Path, line: int, what: str) -> DataError:
    return DataError(
        problems=[Problem(code="X641", message=what, file=str(file), line=line, hint="mend it, or delete the file")]
    )
