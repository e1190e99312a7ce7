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
from collections import Counter
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
from luthier.data.tokenize import tokenize_all
from luthier.data.types import Conversation, Dropped, Example, RowRef
from luthier.recipe.schema import DataSection, Source
from luthier.runtime.atomic import atomic_folder, sweep
from luthier.runtime.console import note
from luthier.runtime.errors import DataError, Problem
from luthier.runtime.hashing import hash_json

__all__ = ["open_rows"]

_KEPT_ENTRIES = 4
_CHUNK_ROWS = 256
_SAY_SECONDS = 10.0
_COUNTERS = ("dropped", "notes", "methods", "terminators", "refused")
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
                for chunk in _chunks(reading):
                    _write_chunk(chunk, writer, tally, template, section)
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


def _chunks(reading: Reading) -> Iterator[list[tuple[Conversation, str]]]:
    rows = ((conversation, reading.row_hash) for conversation in reading)
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        yield chunk


def _write_chunk(
    chunk: Sequence[tuple[Conversation, str]], writer: RowWriter, tally: Tally, template: ChatTemplate,
    section: DataSection,
) -> None:  # fmt: skip
    outcomes = tokenize_all([conversation for conversation, _ in chunk], template, section=section)
    for (conversation, content), outcome in zip(chunk, outcomes, strict=True):
        tally.add(outcome)
        if isinstance(outcome.result, Example):
            writer.used(outcome.result, content)
        else:
            writer.dropped(conversation.ref, content)


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
