"""`Source` of a recipe -> conversations, each value exactly as it stands in the file.

    path -> files -> rows -> layout (format and columns) -> Conversation | Dropped | problems

All that is wrong is found in one pass and raised at once.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.data.content import row_hash
from luthier.data.delimited import read_delimited
from luthier.data.files import DataFile, find_files, is_local
from luthier.data.formats import SAMPLE_ROWS, choose_layout, verdict
from luthier.data.hub import find_hub_files
from luthier.data.jsonl import read_json, read_jsonl
from luthier.data.layout import Layout
from luthier.data.normalise import Empty, normalise
from luthier.data.preferences import as_rated
from luthier.data.rows import Faults, Row
from luthier.data.stores import find_store_files, is_store
from luthier.data.tables import read_table, table_schema, typed_problems
from luthier.data.types import Conversation, Dropped
from luthier.recipe.objective_kind import RowKind
from luthier.recipe.schema import Source
from luthier.runtime.errors import DataError, Problem
from luthier.runtime.hashing import Hasher, hash_file, hash_json

__all__ = [
    "Reading",
    "SourceResult",
    "hash_files",
    "hash_source",
    "is_raw",
    "read_conversations",
    "read_rows",
    "source_files",
]

_READERS: Mapping[str, Callable[..., Iterator[Row | Problem]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_delimited,
    "tsv": read_delimited,
    "parquet": read_table,
    "arrow": read_table,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceResult:
    """What one source gave."""

    path: str
    conversations: list[Conversation]
    dropped: list[Dropped]
    format: str
    """The format decided on: `messages`, `sharegpt`, ..."""
    verdict: str
    """One sentence why."""
    hash: str
    """Hash of the content of all conversations, in order."""
    rows: int
    """Rows read: used and dropped."""
    notes: tuple[str, ...]
    """What else is worth knowing: blank lines, keys not used, conversations that end with a question."""


def read_conversations(
    source: Source,
    index: int,
    *,
    on_empty: Literal["error", "drop", "keep"] = "error",
    loss_on: Literal["assistant", "last_assistant", "all"] = "assistant",
    kind: RowKind = "tokens",
) -> SourceResult:
    """Read all rows of a source.

    Args:
        source: Path, format, map, system message and limit. `weight` is not applied here (`expand_by_weight` is).
        index: Position in `data.train`; stands in each row's `ref`.
        on_empty: What to do with rows that have nothing to train on: report them as errors, drop them, listed, or keep
            them (as prompts).
        loss_on: As in the recipe; decides which answers must not be empty.
        kind: Rows the objective trains on. Pairs are read as two rated rows each where rated rows are wanted.

    Raises:
        DataError: the path is missing or of an unknown kind, rows are broken (all are listed), the format is
            unknown, or no row is left.
        AccessError: a hub data set that cannot be reached.
    """
    reading = Reading(source, index, on_empty=on_empty, loss_on=loss_on, kind=kind)
    conversations = list(reading)
    return reading.result(conversations)


class Reading:
    """The rows of a source, read one after the other: iterate once, then ask for the `result`.

    Holds a sample of the first rows and what is wrong with the others, however many they are.
    """

    def __init__(
        self,
        source: Source,
        index: int,
        *,
        on_empty: Literal["error", "drop", "keep"],
        loss_on: Literal["assistant", "last_assistant", "all"],
        kind: RowKind = "tokens",
    ) -> None:
        self.source, self.index, self.kind = source, index, kind
        self.on_empty, self.loss_on = on_empty, loss_on
        self.notes: Counter[str] = Counter()
        self.faults = Faults()
        self.dropped: list[Dropped] = []
        self.rows = 0
        self.is_raw = False
        """Preferences in plain text, by the first row."""
        self.row_hash = ""
        """Hash of the conversation that was given last."""
        self._conversations = self._open = 0
        self._digest = Hasher()
        self._columns: set[str] = set()
        self._layout: Layout | None = None

    def __iter__(self) -> Iterator[Conversation]:
        """The conversations, in order; what is wrong with any row is raised behind the last one.

        Raises:
            DataError, AccessError: as `read_conversations`.
        """
        for row in self._rows():
            self.rows += 1
            if isinstance(row, Problem):
                self.faults.add(row)
            else:
                yield from self._read(row)
        self.faults.raise_if_any()

    def _rows(self) -> Iterator[Row | Problem]:
        """Rows and problems, once the layout is known."""
        source, faults = self.source, self.faults
        files = source_files(source, self.notes)
        rows = itertools.islice(read_rows(files, self.index, notes=self.notes), source.limit)
        head = list(itertools.islice(rows, SAMPLE_ROWS))
        sample = [row.value for row in head if isinstance(row, Row)]
        if not sample:
            _refuse_without_rows(source, itertools.chain(head, rows), faults)
        try:
            self._layout = choose_layout(source.format, source.map, sample, file=source.path, kind=self.kind)
        except DataError as error:
            # The broken lines are told together with the format; they may be the reason for it.
            faults.add(row for row in itertools.chain(head, rows) if isinstance(row, Problem))
            faults.add(error.problems)
            faults.raise_if_any()
            raise
        _refuse_system(source, self._layout)
        for file in files:
            if file.kind in {"parquet", "arrow"}:
                faults.add(typed_problems(table_schema(file), self._layout, file=file.shown))
        faults.raise_if_any()
        yield from itertools.chain(head, rows)

    def _read(self, row: Row) -> Iterator[Conversation]:
        assert self._layout is not None
        self._columns.update(row.value)
        outcome = normalise(row, self._layout, system=self.source.system, loss_on=self.loss_on)
        if isinstance(outcome, Conversation):
            paired = self.kind == "rated" and outcome.kind == "pair"
            for conversation in as_rated(outcome) if paired else [outcome]:
                yield self._count(conversation)
        elif not isinstance(outcome, Empty):
            self.faults.add(outcome)
        elif self.on_empty == "keep":
            yield self._count(outcome.conversation)
        elif self.on_empty == "drop":
            self.dropped.append(Dropped(outcome.ref, outcome.reason, outcome.detail))
        else:
            self.faults.add(outcome.problem)

    def _count(self, conversation: Conversation) -> Conversation:
        if not self._conversations:
            self.is_raw = is_raw([conversation])
        self._conversations += 1
        self.row_hash = row_hash(conversation)
        self._digest.update(self.row_hash.encode("ascii"))
        self._open += _ends_open(conversation)
        return conversation

    def result(self, conversations: list[Conversation]) -> SourceResult:
        """What the source gave, with the conversations that were kept of it."""
        assert self._layout is not None
        notes = Counter(self.notes)
        notes["conversations end with a user or tool turn, which is context only"] += self._open
        if (self._layout.kind, self.kind) == ("pairs", "rated"):
            halves = self._conversations // 2
            notes["pairs read as two rated answers each: chosen is desired, rejected is not"] += halves
        unused = sorted(self._columns - self._layout.used(sorted(self._columns)))
        return SourceResult(
            path=self.source.path,
            conversations=conversations,
            dropped=self.dropped,
            format=self._layout.name,
            verdict=verdict(self._layout, self.rows, unused, raw=self.is_raw),
            hash=self._digest.hash(),
            rows=self.rows,
            notes=tuple(f"{number:,} {what}" for what, number in notes.items() if number),
        )


def source_files(source: Source, notes: Counter[str]) -> list[DataFile]:
    """The files behind a source: on this disk, or downloaded from an object store or the hub.

    Raises:
        DataError: nothing there, or nothing that can be read.
        AccessError: a hub data set or store that cannot be reached.
    """
    if is_store(source.path):
        return find_store_files(source.path, split=source.split, notes=notes)
    if is_local(source.path):
        return find_files(source.path, split=source.split, notes=notes)
    return find_hub_files(source.path, name=source.name, split=source.split, notes=notes)


def read_rows(files: Sequence[DataFile], index: int, *, notes: Counter[str]) -> Iterator[Row | Problem]:
    """Rows of files, in order; a problem stands where the row would."""
    for file in files:
        rows = _READERS[file.kind](file, source=index, notes=notes)
        first = next(rows, None)
        if first is None:
            hint = "remove it, or write rows into it"
            yield Problem(code="D206", message="the file has no rows", file=file.shown, hint=hint)
            continue
        yield first
        yield from rows


def hash_source(path: str, *, split: str = "train", name: str | None = None) -> str:
    """Hash of the bytes of the files behind a path; says whether a source changed without reading its rows.

    Raises:
        DataError: nothing is there.
        AccessError: a hub data set that cannot be reached.
    """
    return hash_files(source_files(Source(path=path, split=split, name=name), Counter()))


def hash_files(files: Sequence[DataFile]) -> str:
    """Hash of names and bytes of files."""
    return hash_json([[file.path.name, hash_file(file.path)] for file in files])


def _refuse_without_rows(source: Source, rows: Iterable[Row | Problem], faults: Faults) -> None:
    """None of the first rows can be read: list what is wrong, the rest of the file included."""
    faults.add(row for row in rows if isinstance(row, Problem))
    faults.raise_if_any()
    raise DataError(problems=[Problem(code="D206", message="no rows", file=source.path)])


def _refuse_system(source: Source, layout: Layout) -> None:
    if source.system is not None and layout.format in {"text", "segments"}:
        message = f"`system` is for chats; format `{layout.format}` is raw text without a template"
        raise DataError(problems=[Problem(code="D209", message=message, file=source.path, hint="remove `system`")])


def is_raw(conversations: Sequence[Conversation]) -> bool:
    """Whether these are preferences in plain text, which no template renders."""
    first = conversations[0] if conversations else None
    return first is not None and any(answer.kind == "prompt_completion" for answer in first.answers)


def _ends_open(conversation: Conversation) -> bool:
    if conversation.answers:
        return any(map(_ends_open, conversation.answers))
    return conversation.kind == "chat" and conversation.messages[-1]["role"] != "assistant"
