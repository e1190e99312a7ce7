"""What was decided, as rows for training: made, read back with our own readers, compared, and only then written."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.annotate.decided import LeftOut, Resolve, as_pair, as_single, resolve
from luthier.annotate.items import Item, Items
from luthier.annotate.labels import Labels
from luthier.annotate.record import Record
from luthier.annotate.rows import RESERVED, openai_preference_row, preference_row, training_row
from luthier.data.content import row_hash
from luthier.data.files import DataFile, kind_of
from luthier.data.rows import show_value
from luthier.data.sources import read_conversations
from luthier.data.types import Conversation
from luthier.recipe.schema import Source
from luthier.runtime.atomic import write_bytes
from luthier.runtime.errors import DataError, Problem, RecipeError

__all__ = ["SHAPES", "Exported", "Shape", "check_export", "export"]

Shape = Literal["sft", "preference", "openai_preference"]
SHAPES = ("sft", "preference", "openai_preference")
_MAKE: dict[Shape, tuple[Callable[..., Conversation], Callable[[Conversation], dict[str, Any]]]] = {
    "sft": (as_single, training_row),
    "preference": (as_pair, preference_row),
    "openai_preference": (as_pair, openai_preference_row),
}


@dataclass(slots=True)
class Exported:
    """What was written, and what was not and why."""

    written: int = 0
    by_outcome: Counter[str] = field(default_factory=Counter)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    """One entry a row: file, line, reason, detail."""
    columns_left_out: Counter[str] = field(default_factory=Counter)
    """Columns some format reads, so that they cannot stand beside the row -> rows."""

    def reasons(self) -> dict[str, int]:
        """Reason -> rows left out."""
        return dict(Counter(entry["reason"] for entry in self.left_out))


def check_export(out: Path, items: Items, *, force: bool, info: str | None = None) -> None:
    """Whether rows may be written there, before the work.

    Raises:
        RecipeError: another ending than `.jsonl` or `.jsonl.gz`, a source, or a file that exists.
    """
    try:
        known = kind_of(out) == "jsonl"
    except DataError:
        known = False
    if not known:
        raise RecipeError(code="D296", message=f"--export {out} must end in .jsonl (or .jsonl.gz)")
    if info in RESERVED:
        message = f"--info {info}: a column of this name is part of a format"
        raise RecipeError(code="D296", message=message, hint="for instance --info labels")
    sources = [Path(name) for name in dict.fromkeys(item.ref.file for item in items.all)]
    if out.exists() and any(out.samefile(source) for source in sources if source.exists()):
        raise RecipeError(code="D296", message=f"{out} is a source; it is not replaced", hint="choose another --export")
    if out.exists() and not force:
        raise RecipeError(code="D296", message=f"{out} exists", hint="another --export, or --force")


def export(
    items: Items,
    labels: Labels,
    out: Path,
    *,
    shape: Shape = "sft",
    annotator: str | None = None,
    how: Resolve = "agree",
    info: str | None = None,
) -> Exported:
    """Write the rows that were decided for.

    Args:
        items: All rows, in order; copies of a row are written like the first.
        labels: What was decided.
        out: `.jsonl` or `.jsonl.gz`; complete or absent.
        shape: `sft`, `preference` or `openai_preference`.
        annotator: Count the decisions, tags and notes of this one alone.
        how: What is to be done where annotators differ.
        info: Name of a column to add, with decision, annotators, tags and notes.

    Raises:
        DataError: no row is left; a column that JSON cannot hold; rows that no file can hold together.
        EnvironmentProblem: the file cannot be written.
    """
    make, write = _MAKE[shape]
    result = Exported()
    rows: list[dict[str, Any]] = []
    hashes: list[str] = []
    problems: list[Problem] = []
    for item in items.all:
        decisions = labels.decisions(item.hash)
        if annotator is not None:
            decisions = {name: own for name, own in decisions.items() if name == annotator}
        try:
            outcome = resolve(decisions, how)
            made = make(item, outcome)
        except LeftOut as why:
            entry = {"file": item.ref.file, "line": item.ref.line, "reason": why.reason, "detail": why.detail}
            result.left_out.append({key: value for key, value in entry.items() if value != ""})
            continue
        result.by_outcome[outcome.category] += 1
        row = write(made)
        problems += _add_columns(row, item, info, result)
        if info is not None:
            row[info] = _info(item, outcome.category, decisions, labels, annotator)
        rows.append(row)
        hashes.append(row_hash(made))
    problems += _mixed(rows, items)
    if problems:
        raise DataError(problems=problems)
    if not rows:
        told = ", ".join(f"{count} {reason}" for reason, count in result.reasons().items())
        raise DataError(code="D297", message=f"no row to export: {told}", hint="`--status` says what was decided")
    data = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode("utf-8")
    _prove(data, hashes, shape)
    write_bytes(out, gzip.compress(data, mtime=0) if out.suffix == ".gz" else data)
    result.written = len(rows)
    return result


def _add_columns(row: dict[str, Any], item: Item, info: str | None, result: Exported) -> list[Problem]:
    """The other columns of a row beside its own."""
    problems = []
    for name in item.others:
        value = item.row.value[name]
        if name == info:
            message = f"the rows have a column `{name}` already"
            problems.append(Problem(code="D297", message=message, file=item.ref.file, line=item.ref.line,
                                    hint="another --info"))  # fmt: skip
        elif name in row or name in RESERVED:
            result.columns_left_out[name] += 1
        elif not _is_json(value):
            message = f"column `{name}` holds {show_value(value)}, which JSON has no exact form for"
            problems.append(Problem(code="D297", message=message, file=item.ref.file, line=item.ref.line,
                                    hint="write the column as text, or take it out"))  # fmt: skip
        else:
            row[name] = value
    return problems


def _is_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False


def _info(
    item: Item, category: str, decisions: dict[str, Record], labels: Labels, annotator: str | None
) -> dict[str, Any]:
    names = labels.annotators if annotator is None else [annotator]
    standing = [labels.standing(name, item.hash) for name in names]
    return {
        "decision": category,
        "annotators": sorted(decisions),
        "tags": sorted({tag for one in standing for tag in one.tags}),
        "notes": [one.note for one in standing if one.note],
    }


def _mixed(rows: list[dict[str, Any]], items: Items) -> list[Problem]:
    """Chats and raw texts cannot stand in one file: each file has one format."""
    own = {name for name in ("messages", "completion", "text", "segments") if any(name in row for row in rows)}
    prompts = {type(row.get("prompt")).__name__ for row in rows} if not own else set()
    if len(own) > 1 or len(prompts) > 1:
        message = f"the rows are of several formats ({', '.join(sorted(own or prompts))}), and a file has one"
        return [
            Problem(code="D297", message=message, file=items.all[0].ref.file, hint="export one file after the other")
        ]
    return []


def _prove(data: bytes, hashes: list[str], shape: Shape) -> None:
    """Read the rows back and compare them with what was meant."""
    with tempfile.TemporaryDirectory() as folder:
        file = DataFile(Path(folder) / "rows.jsonl", "jsonl", "rows.jsonl")
        file.path.write_bytes(data)
        kind: Literal["tokens", "pairs"] = "tokens" if shape == "sft" else "pairs"
        try:
            read = read_conversations(Source(path=str(file.path)), 0, kind=kind)
        except DataError as error:
            what = "the exported rows would not read back"
            told = [Problem(code=own.code, message=f"{what}: {own.message}", line=own.line) for own in error.problems]
            raise DataError(problems=told, total=error.total) from error
    back = [row_hash(row) for row in read.conversations]
    wrong = [line for line, pair in enumerate(zip(back, hashes, strict=True), start=1) if pair[0] != pair[1]]
    if wrong:
        message = f"row {wrong[0]} of the export reads back as another row than was meant ({len(wrong)} such rows)"
        raise DataError(problems=[Problem(code="D298", message=message, hint="report it, with the row")])
