"""Bytes of a file, plain or compressed, and its lines, in bounded memory.

A compressed file may claim any size. Expanding stops as soon as it has gone past an absolute limit, or
past a ratio no real text reaches: text packs 3 to 30 times, a file of zeros 1,030 times.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from luthier.data.packed import MAGIC_BYTES, Packed, packed_as
from luthier.data.rows import MAX_LINE_BYTES, row_problem
from luthier.data.types import RowRef
from luthier.runtime.errors import DataError, Problem

__all__ = ["MAX_EXPANDED_BYTES", "MAX_RATIO", "RATIO_FREE_BYTES", "open_bytes", "split_lines"]

MAX_EXPANDED_BYTES = 64 * 2**30
"""Most bytes one compressed file may expand to."""
MAX_RATIO = 200
"""Most times a compressed file may grow, once it has passed `RATIO_FREE_BYTES`."""
RATIO_FREE_BYTES = 64 * 2**20
"""Below this size no ratio is suspicious: small repetitive files pack well."""
_BOM = b"\xef\xbb\xbf"


class _Guarded(io.RawIOBase):
    """Reads through a decompressor, counting what goes in and what comes out."""

    def __init__(self, shown: str, raw: IO[bytes], packed: Packed) -> None:
        self._shown, self._raw, self._packed = shown, raw, packed
        self._stream = packed.open(raw)
        self._expanded = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except self._packed.faults as error:
            name = self._packed.name
            raise _packed_error(
                self._shown, f"broken {name} data after {self._expanded:,} bytes: {error}", "download or pack it again"
            ) from error
        buffer[: len(data)] = data
        self._expanded += len(data)
        packed = max(1, self._raw.tell())
        if self._expanded > MAX_EXPANDED_BYTES:
            raise _packed_error(
                self._shown, f"expands to more than {MAX_EXPANDED_BYTES:,} bytes", "unpack it yourself if you trust it"
            )
        if self._expanded > RATIO_FREE_BYTES and self._expanded > MAX_RATIO * packed:
            raise _packed_error(
                self._shown,
                f"expands more than {MAX_RATIO} times ({packed:,} to {self._expanded:,} bytes so far)",
                "this looks like a compression bomb; unpack it yourself if you trust it",
            )
        return len(data)


def _packed_error(shown: str, what: str, hint: str) -> DataError:
    return DataError(problems=[Problem(code="D213", message=what, file=shown, hint=hint)])


@contextmanager
def open_bytes(path: Path, shown: str | None = None) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes; compressed data, known by its first bytes, is expanded on the way, within limits.

    Raises:
        DataError: the file cannot be opened; the compressed data is broken or expands without bounds.
        EnvironmentProblem: `.zst` without the package that reads it.
    """
    try:
        raw = path.open("rb")
    except OSError as error:
        raise DataError(
            problems=[
                Problem(
                    code="D200",
                    message=f"cannot read it: {error.strerror or error}",
                    file=shown or str(path),
                    hint="check the path and its permissions",
                )
            ]
        ) from error
    with raw:
        packed = packed_as(raw.peek(MAGIC_BYTES))
        if packed is not None:
            yield io.BufferedReader(_Guarded(shown or str(path), raw, packed), 1 << 20)
        else:
            yield raw


def split_lines(
    stream: IO[bytes], *, file: str, source: int, notes: Counter[str], limit: int = MAX_LINE_BYTES
) -> Iterator[tuple[RowRef, str | Problem]]:
    r"""Yield each line with its 1-based number: its text without the line break, or what is wrong with it.

    Lines end at `\n` and nowhere else (U+2028 may stand inside a JSON string). A byte-order mark
    before the first line is left out, with a note. A line over the limit is skipped without being held.
    """
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        ref = RowRef(file, number, source)
        if number == 1 and line.startswith(_BOM):
            line = line.removeprefix(_BOM)
            notes["byte-order marks at the start of a file skipped"] += 1
        if len(line) > limit and not line.endswith(b"\n"):
            start = line[:200].decode("utf-8", errors="replace")
            del line
            size = limit + 1 + _skip_line(stream)
            yield (
                ref,
                row_problem(
                    "D204",
                    f"line of {size:,} bytes; the limit is {limit:,}",
                    ref,
                    text=start,
                    hint="is this really one row a line?",
                ),
            )
            continue
        try:
            line = line.removesuffix(b"\n")
            text: str | Problem = line.decode("utf-8")
        except UnicodeDecodeError as error:
            text = _encoding_problem(line, error, ref)
        yield ref, text


def _skip_line(stream: IO[bytes]) -> int:
    skipped = 0
    while piece := stream.readline(1 << 20):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


def _encoding_problem(line: bytes, error: UnicodeDecodeError, ref: RowRef) -> Problem:
    column = len(line[: error.start].decode("utf-8")) + 1
    wide = line.startswith((b"\xff\xfe", b"\xfe\xff"))
    return row_problem(
        "D205",
        f"not UTF-8: byte 0x{line[error.start]:02x} ({error.reason})",
        ref,
        text=line.decode("utf-8", errors="replace").rstrip("\r"),
        column=column,
        hint="the file is UTF-16: save it as UTF-8" if wide else "save the file as UTF-8",
    )
