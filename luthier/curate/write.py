"""Write a file again without some of its rows, or with some of them edited, everything else as it was.

JSON Lines, CSV and TSV: the bytes of the other lines are copied. JSON: the text of the other elements is copied, with
what stood between them. Parquet and Arrow: the other rows with the same schema (their bytes are packed anew).
A `.gz` file is packed again.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.data.files import DataFile, kind_of
from luthier.data.rows import Row
from luthier.data.sources import read_rows
from luthier.data.streams import open_bytes
from luthier.data.strict_json import parse_at, skip_space, value_end
from luthier.runtime.atomic import write_bytes

if TYPE_CHECKING:
    import pyarrow

__all__ = ["write_without"]


def write_without(
    file: DataFile, places: Collection[int], out: Path, *, edits: Mapping[int, Callable[[str], str]] | None = None
) -> int:
    """Copy a file without the rows at `places` (from 0, in the order of the file).

    The copy is complete or absent.

    Args:
        file: A file that reads without an error.
        places: Rows to leave out.
        out: The file to write, of the same kind.
        edits: Place of a row -> its JSON text otherwise; for `.jsonl` and `.json` files only.

    Returns:
        Rows written.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    assert kind_of(out) == file.kind
    left_out = set(places)
    assert not edits or file.kind in {"jsonl", "json"}
    if file.kind in {"parquet", "arrow"}:
        data, rows = _table_without(file, left_out)
    else:
        with open_bytes(file.path, file.shown) as stream:
            data = stream.read()
        if file.kind == "json" and not _is_lines(text := data.decode("utf-8-sig")):
            data, rows = _json_without(text, left_out, edits or {})
        else:
            data, rows = _lines_without(data, file, left_out, edits or {})
    write_bytes(out, gzip.compress(data, mtime=0) if out.suffix == ".gz" else data)
    return rows


def _lines_without(
    data: bytes, file: DataFile, left_out: set[int], edits: Mapping[int, Callable[[str], str]]
) -> tuple[bytes, int]:
    """A row goes from its line to that of the next row: cells with line breaks, and blank lines behind it."""
    rows = [row.ref.line for row in read_rows([file], 0, notes=Counter()) if isinstance(row, Row)]
    place_of = {line: place for place, line in enumerate(rows)}
    kept: list[bytes] = []
    keep = True
    for number, line in enumerate(_lines(data), start=1):
        if number in place_of:
            keep = place_of[number] not in left_out
            edit = edits.get(place_of[number])
            if edit is not None:
                line = edit(line.decode("utf-8")).encode("utf-8")
        if keep:
            kept.append(line)
    return b"".join(kept), len(rows) - len(left_out)


def _lines(data: bytes) -> Iterator[bytes]:
    """Lines with their ends; they end at a line feed and nowhere else, as in `data/streams.py`."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end


def _is_lines(text: str) -> bool:
    """Whether a `.json` file holds one object after the other."""
    start = skip_space(text, 0)
    end = value_end(text, start) if text[start : start + 1] == "{" else None
    return end is not None and text[skip_space(text, end) :][:1] == "{"


def _json_without(text: str, left_out: set[int], edits: Mapping[int, Callable[[str], str]]) -> tuple[bytes, int]:
    spans = list(_elements(text, _list_start(text)))
    pieces: list[str] = []
    for place, (start, end) in enumerate(spans):
        if place not in left_out:
            # What stands before the first element that stays is what stood before the first of all.
            before = text[spans[place - 1][1] : start] if pieces else text[: spans[0][0]]
            own = text[start:end]
            pieces += [before, edits[place](own) if place in edits else own]
    return "".join([*pieces, text[spans[-1][1] :]]).encode("utf-8"), len(spans) - len(left_out)


def _list_start(text: str) -> int:
    """Where the rows of a list, or of `{"data": [...]}`, begin."""
    position = skip_space(text, 0)
    while text[position] == "{" or text[position] == ",":
        key, position = parse_at(text, skip_space(text, position + 1))
        position = skip_space(text, skip_space(text, position) + 1)
        if key == "data":
            return position
        end = value_end(text, position)
        assert end is not None, "the file was read before"
        position = skip_space(text, end)
    return position


def _elements(text: str, start: int) -> Iterator[tuple[int, int]]:
    position = skip_space(text, start + 1)
    while text[position] != "]":
        end = value_end(text, position)
        assert end is not None, "the file was read before"
        yield position, end
        position = skip_space(text, end)
        if text[position] == ",":
            position = skip_space(text, position + 1)


def _table_without(file: DataFile, left_out: set[int]) -> tuple[bytes, int]:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    if file.kind == "parquet":
        table = pyarrow.parquet.read_table(file.path, partitioning=None)
    else:
        with pyarrow.memory_map(str(file.path)) as source:
            is_file_format = source.read(6) == b"ARROW1"
            source.seek(0)
            table = (pyarrow.ipc.open_file if is_file_format else pyarrow.ipc.open_stream)(source).read_all()
    kept: pyarrow.Table = table.take([place for place in range(table.num_rows) if place not in left_out])
    sink = pyarrow.BufferOutputStream()
    if file.kind == "parquet":
        pyarrow.parquet.write_table(kept, sink)
    else:
        new = pyarrow.ipc.new_file if is_file_format else pyarrow.ipc.new_stream
        with new(sink, kept.schema) as writer:
            writer.write_table(kept)
    return sink.getvalue().to_pybytes(), kept.num_rows
