"""Tokenised rows on disk, found again by the bytes of the files they came from.

    <cache>/rows/<key>/ids.bin, runs.bin, rows.bin   see `stored.py`
                       rows.json                     the parts of the key (`cache.key_parts`), sizes and hashes,
                                                     what the sources gave, what happened to rows on the way

Unlike `cache.py`, which looks at the rows themselves, an entry is found without reading a row.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import weakref
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from luthier.data import cache
from luthier.data.files import DataFile
from luthier.data.prepared import wanted_sources
from luthier.data.sources import Reading, hash_files, source_files
from luthier.data.stored import RowStore, RowWriter, is_whole
from luthier.data.tally import Tally
from luthier.data.template import ChatTemplate
from luthier.data.tokenize import Tokenized, tokenize_all
from luthier.data.types import Conversation, Dropped, Example, RowRef
from luthier.data.workers import CHUNK_ROWS, tokenize_chunks
from luthier.recipe.schema import DataSection, Source
from luthier.runtime.atomic import atomic_folder, sweep
from luthier.runtime.console import note
from luthier.runtime.errors import DataError, Problem
from luthier.runtime.hashing import hash_json

__all__ = ["open_rows"]

_KEPT_ENTRIES = 4
_SAY_SECONDS = 10.0
_COUNTERS = ("dropped", "by_source", "notes", "methods", "terminators", "refused")
_NUMBERS = ("truncated", "cut_tokens", "proven")


def open_rows(
    section: DataSection, template: ChatTemplate, cache_dir: Path | None
) -> tuple[dict[str, Any], RowStore, Tally, str]:
    """What is known of the rows, the rows, what happened on the way to them, and `hit` or `miss: why`.

    Without a `cache_dir` the rows are deleted when the store is no longer used.

    Raises:
        DataError: rows that cannot be read; all sources are told together.
        EnvironmentProblem: the disk does not allow it.
    """
    files = [source_files(source, Counter()) for source in wanted_sources(section)]
    names = list(dict.fromkeys(file.shown for own in files for file in own))
    parts = _key(section, template, files, names)
    folder = (cache_dir or Path(tempfile.mkdtemp(prefix="luthier-rows-"))) / "rows"
    entry = folder / hash_json(parts)
    about = _about(entry)
    state = "hit"
    if about is None or about["parts"] != parts or not is_whole(entry, about):
        state = f"miss: {cache.why_missing(folder, parts) if cache_dir else 'no cache'}"
        with atomic_folder(entry) as temporary:
            about = {"parts": parts, **_write(temporary, section, template, names)}
            (temporary / "rows.json").write_text(json.dumps(about, ensure_ascii=False), "utf-8")
        sweep(folder)
        for old in cache.entries(folder)[_KEPT_ENTRIES:]:
            shutil.rmtree(old, ignore_errors=True)
    else:
        (entry / "rows.json").touch()  # the oldest entries are let go: those not used for longest
    store = RowStore(entry, about, names)
    if cache_dir is None:
        weakref.finalize(store, shutil.rmtree, folder.parent, ignore_errors=True)
    return about, store, _tally_from(about["tally"], section, names), state


def _key(
    section: DataSection, template: ChatTemplate, files: Sequence[Sequence[DataFile]], names: Sequence[str]
) -> dict[str, Any]:
    places = {name: place for place, name in enumerate(names)}
    return {
        **cache.key_parts([hash_files(own) for own in files], template, section, "tokens"),
        "files of sources": [[places[file.shown] for file in own] for own in files],
        "format, map, system or limit": [_reading(source) for source in wanted_sources(section)],
        "on_empty": section.on_empty,
    }


def _reading(source: Source) -> dict[str, Any]:
    return source.model_dump(mode="json", include={"format", "map", "system", "limit"})


def _about(entry: Path) -> dict[str, Any] | None:
    try:
        about: dict[str, Any] = json.loads((entry / "rows.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return about


# --- writing ------------------------------------------------------------------------------------------------------


def _write(folder: Path, section: DataSection, template: ChatTemplate, names: Sequence[str]) -> dict[str, Any]:
    """Read, tokenise and write all rows; what is wrong with any source is raised behind the last one."""
    writer = RowWriter(folder, vocabulary=len(template.tokenizer), names=names)
    tally = Tally(section)
    problems: list[Problem] = []
    sources: list[dict[str, Any]] = []
    raw = False
    said = _Said()
    try:
        for index, source in enumerate(wanted_sources(section)):
            reading = Reading(source, index, on_empty=section.on_empty, loss_on=section.loss_on)
            try:
                for chunk, outcomes in _tokenized(reading, template, section):
                    _write_chunk(chunk, outcomes, writer, tally)
                    said.advance(len(chunk))
            except DataError as error:
                problems += error.problems
                continue
            tally.drop_all(reading.dropped)
            raw = raw or reading.is_raw
            result = reading.result([])
            kept = {"format": result.format, "verdict": result.verdict, "hash": result.hash, "rows": result.rows}
            sources.append({**kept, "notes": list(result.notes)})
        if problems:
            raise DataError(problems=problems)
    except BaseException:
        writer.abandon()
        raise
    return {**writer.close(), "sources": sources, "raw": raw, "tally": _tally_as_json(tally, names)}


class _Said:
    """How far it is, now and then: nobody knows how many rows there are before the last one."""

    def __init__(self) -> None:
        self._rows = 0
        self._started = self._last = time.monotonic()

    def advance(self, rows: int) -> None:
        self._rows += rows
        now = time.monotonic()
        if now - self._last >= _SAY_SECONDS:
            self._last = now
            note(f"  {self._rows:,} rows tokenised and proven, {now - self._started:.0f} s", style="dim")


def _tokenized(
    reading: Reading, template: ChatTemplate, section: DataSection
) -> Iterator[tuple[list[tuple[RowRef, str]], list[Tokenized]]]:
    """Place and hash of some hundred rows, and what became of them."""
    under_way: deque[list[tuple[RowRef, str]]] = deque()

    def chunks() -> Iterator[list[Conversation]]:
        rows = ((conversation, reading.row_hash) for conversation in reading)
        while chunk := list(islice(rows, CHUNK_ROWS)):
            under_way.append([(conversation.ref, content) for conversation, content in chunk])
            yield [conversation for conversation, _ in chunk]

    for outcomes in tokenize_chunks(chunks(), tokenize_all, template, section):
        yield under_way.popleft(), outcomes


def _write_chunk(
    chunk: Sequence[tuple[RowRef, str]], outcomes: Sequence[Tokenized], writer: RowWriter, tally: Tally
) -> None:
    for (ref, content), outcome in zip(chunk, outcomes, strict=True):
        tally.add(outcome)
        if isinstance(outcome.result, Example):
            writer.used(outcome.result, content)
        else:
            writer.dropped(ref, content)


# --- what happened on the way, as JSON ----------------------------------------------------------------------------


def _tally_as_json(tally: Tally, names: Sequence[str]) -> dict[str, Any]:
    places = {name: place for place, name in enumerate(names)}

    def at(ref: RowRef) -> list[int]:
        return [places[ref.file], ref.line, ref.source]

    value: dict[str, Any] = {name: dict(getattr(tally, name)) for name in _COUNTERS}
    value |= {name: getattr(tally, name) for name in _NUMBERS}
    value["dropped_rows"] = [[at(item.ref), item.reason, item.detail] for item in tally.dropped_rows]
    value["refused_rows"] = [[at(item.ref), item.reason, item.detail] for item in tally.refused_rows]
    value["truncated_rows"] = [[at(ref), detail] for ref, detail in tally.truncated_rows]
    return value


def _tally_from(value: dict[str, Any], section: DataSection, names: Sequence[str]) -> Tally:
    def ref(at: Sequence[int]) -> RowRef:
        return RowRef(names[at[0]], at[1], at[2])

    tally = Tally(section, **{name: value[name] for name in _NUMBERS})
    for name in _COUNTERS:
        getattr(tally, name).update(value[name])
    tally.dropped_rows = [Dropped(ref(at), reason, detail) for at, reason, detail in value["dropped_rows"]]
    tally.refused_rows = [Dropped(ref(at), reason, detail) for at, reason, detail in value["refused_rows"]]
    tally.truncated_rows = [(ref(at), detail) for at, detail in value["truncated_rows"]]
    return tally
