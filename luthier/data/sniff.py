"""A quick look at a file for `luthier init`: what its rows are, how long, and what the answers look like.

All rows are counted; a bounded number is looked at. A file in no known format is no error here:
the result then carries a suggested `map`, which `init` writes into the recipe for a person to check.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.data.files import DataFile
from luthier.data.formats import SAMPLE_ROWS, choose_layout, verdict
from luthier.data.layout import COLUMN_FORMATS, Layout
from luthier.data.normalise import normalise
from luthier.data.rows import Row
from luthier.data.sources import is_raw, read_rows, source_files
from luthier.data.streams import open_bytes, split_lines
from luthier.data.suggest import suggest_map
from luthier.data.tables import count_table_rows
from luthier.data.types import Conversation
from luthier.recipe.objective_kind import RowKind
from luthier.recipe.schema import Source
from luthier.runtime.errors import DataError, Problem

__all__ = ["Answers", "SniffResult", "sniff"]

Answers = Literal["json", "number", "label", "text", "none"]
_MAX_ROWS = 2_000
_MAX_SAMPLES = 3
_MAX_LABEL_CHARACTERS = 40
_METRICS: Mapping[Answers, str | None] = {
    "json": "json_exact",
    "number": "number",
    "label": "exact",
    "text": None,
    "none": None,
}
_TRANSCRIPT = re.compile(r"^(Human|User|Assistant|Question|Q): ?", re.MULTILINE)
_NUMBER_AT_END = re.compile(r"[-+$€£]?\d[\d,]*(?:\.\d+)?\s*[%.]?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class SniffResult:
    """What a first look at a file tells."""

    path: str
    kind: RowKind
    """What the rows are; says which objective they are for."""
    format: str | None
    """The format; None when the rows fit none and nothing can be suggested."""
    map: Mapping[str, str]
    """Mapping the format needs."""
    suggested: bool
    """Whether `format` and `map` are a suggestion from the names of the columns, which a person should check."""
    verdict: str
    """One sentence why."""
    columns: tuple[str, ...]
    rows: int
    """All rows of the file."""
    looked_at: int
    """Rows the rest of this record is about: the first ones."""
    bad_rows: int
    """Rows among them that cannot be used as they are."""
    problems: tuple[Problem, ...]
    """What is wrong with the first of those."""
    samples: tuple[Conversation, ...]
    """The first rows, in normal form."""
    characters: Mapping[str, int]
    """Length of a row in characters, of preferences with the longer answer: min, p50, p95, p99, max."""
    answer_characters: Mapping[str, int]
    """Length of the last answer (of preferences the chosen one) in characters: min, p50, p95, p99, max."""
    answers: Answers
    """What the last answers look like: JSON, ending in a number, short repeated labels, or free text."""
    metric: str | None
    """Metric that suits such answers; None for free text."""


def sniff(path: str | Path, *, split: str = "train") -> SniffResult:
    """Look at a file, a folder or a data set.

    Raises:
        DataError: nothing there, an unknown kind of file, no rows, or no row that can be parsed.
        AccessError: a hub data set that cannot be reached.
    """
    source = Source(path=str(path), split=split)
    files = source_files(source, Counter())
    head = list(itertools.islice(read_rows(files, 0, notes=Counter()), _MAX_ROWS))
    rows = [row for row in head if isinstance(row, Row)]
    problems = [row for row in head if isinstance(row, Problem)]
    if not rows:
        raise DataError(problems=problems or [Problem(code="D206", message="no rows", file=str(path))])
    sample = [row.value for row in rows[:SAMPLE_ROWS]]
    columns = tuple(dict.fromkeys(str(name) for row in rows for name in row.value))
    layout, suggested, why = _layout(sample, str(path))
    conversations: list[Conversation] = []
    for row in rows if layout else []:
        assert layout is not None
        outcome = normalise(row, layout)
        if isinstance(outcome, Conversation):
            conversations.append(outcome)
        else:
            problems += outcome if isinstance(outcome, list) else [outcome.problem]
    last = [answer for row in conversations if (answer := _last_answer(row)) is not None]
    kind = _answers(last)
    count = len(head) if len(head) < _MAX_ROWS else sum(_count(file) for file in files)
    if layout is not None:
        unused = sorted(set(columns) - layout.used(columns))
        sentence = verdict(layout, count, unused, raw=is_raw(conversations))
        why = f"{sentence} ({_why_suggested(layout)}: check the `map`)" if suggested else sentence
    return SniffResult(
        path=str(path),
        kind=layout.kind if layout else "tokens",
        format=layout.name if layout else None,
        map=dict(layout.map) if layout else {},
        suggested=suggested,
        verdict=why,
        columns=columns,
        rows=count,
        looked_at=len(head),
        bad_rows=len(head) - len(conversations) if layout else len(head),
        problems=tuple(problems[:_MAX_SAMPLES]),
        samples=tuple(conversations[:_MAX_SAMPLES]),
        characters=_percentiles([_characters(row) for row in conversations]),
        answer_characters=_percentiles([len(answer) for answer in last]),
        answers=kind,
        metric=_METRICS[kind],
    )


def _layout(sample: Sequence[Mapping[str, Any]], file: str) -> tuple[Layout | None, bool, str]:
    """The layout; whether it is only a suggestion; and why there is no certain one."""
    try:
        found = choose_layout("auto", {}, sample, file=file)
        chat = _as_chat(found, sample)
        return (chat, True, "") if chat else (found, False, "")
    except DataError as error:
        why = error.problems[0].message
    suggestion = suggest_map(sample)
    if not suggestion:
        return None, False, why
    try:
        return choose_layout("auto", suggestion, sample, file=file), True, why
    except DataError:
        return None, False, why


def _as_chat(layout: Layout, sample: Sequence[Mapping[str, Any]]) -> Layout | None:
    """Preferences in plain text as a chat: what an instruct model needs; not transcripts such as Anthropic's."""
    if layout.format not in {"preference", "unpaired_preference"}:
        return None
    names = ("chosen", "rejected") if layout.kind == "pairs" else ("completion",)
    prompts = [row.get("prompt") for row in sample]
    if not all(isinstance(row.get(name), str) for row in sample for name in names):
        return None
    if not all(isinstance(text, str) and text.strip() and not _TRANSCRIPT.search(text) for text in prompts):
        return None
    return Layout(COLUMN_FORMATS[layout.format], {"user": "prompt"})


def _why_suggested(layout: Layout) -> str:
    if layout.kind != "tokens" and dict(layout.map) == {"user": "prompt"}:
        return "suggested; without it they are raw text and go through no chat template"
    return "suggested by their names"


def _count(file: DataFile) -> int:
    """Rows of one file; whatever is wrong with a row, it is one row."""
    if file.kind in {"parquet", "arrow"}:
        return count_table_rows(file)
    if file.kind == "jsonl":
        with open_bytes(file.path, file.shown) as stream:
            lines = split_lines(stream, file=file.shown, source=0, notes=Counter())
            return sum(not isinstance(line, str) or bool(line.strip()) for _, line in lines)
    return sum(1 for _ in read_rows([file], 0, notes=Counter()))


def _message_text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


def _characters(row: Conversation) -> int:
    pieces = [_message_text(message) for message in row.messages]
    pieces += [row.prompt, row.completion, row.text, *(segment.text for segment in row.segments)]
    return max([sum(map(len, pieces)), *map(_characters, row.answers)])


def _last_answer(row: Conversation) -> str | None:
    if row.answers:
        return _last_answer(row.answers[0])
    if row.kind == "prompt_completion":
        return row.completion
    texts = [_message_text(message) for message in row.messages if message["role"] == "assistant"]
    return texts[-1] if texts else None


def _percentiles(lengths: list[int]) -> dict[str, int]:
    """Nearest-rank percentiles; empty for no rows."""
    if not lengths:
        return {}
    ordered = sorted(lengths)
    ranks = {"min": 0.0, "p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)] for name, share in ranks.items()}


def _answers(texts: Sequence[str]) -> Answers:
    """What at least 19 of 20 answers look like."""
    if not texts:
        return "none"
    enough = 0.95 * len(texts)
    if sum(map(_is_json, texts)) >= enough:
        return "json"
    if sum(bool(_NUMBER_AT_END.search(text.strip()[-40:])) for text in texts) >= enough:
        return "number"
    short = sum(len(text.strip()) <= _MAX_LABEL_CHARACTERS and "\n" not in text.strip() for text in texts)
    if short >= enough and len({text.strip() for text in texts}) <= max(2, len(texts) // 3):
        return "label"
    return "text"


def _is_json(text: str) -> bool:
    """Whether a text is a JSON object or list; a bare number or word is not meant."""
    if not text.strip().startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
