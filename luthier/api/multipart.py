"""A multipart body with one file in it, written to its place on the disk as it arrives.

Starlette's own form reader would put the file into the temporary folder first, which may be small, or memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from luthier.jobs.blobs import BlobWriter
from luthier.serve.http.errors import ApiError, invalid, unsupported

__all__ = ["Form", "read_form"]

MAX_FIELD_BYTES = 4 << 10
WRITE_BYTES = 1 << 20


@dataclass(slots=True)
class Form:
    """What came."""

    filename: str
    writer: BlobWriter
    """Holds the file; what is not kept (`Store.keep_file`) goes when the block ends."""
    fields: dict[str, str] = field(default_factory=dict)


@asynccontextmanager
async def read_form(
    request: Request, file_field: str, fields: Collection[str], open_writer: Callable[[], BlobWriter]
) -> AsyncIterator[Form]:
    """Read the whole body.

    Args:
        request: Its content type is multipart/form-data.
        file_field: The part that is the file.
        fields: Other parts there may be, each at most once and at most 4 KiB.
        open_writer: Where the file goes.

    Raises:
        ApiError: 400: not a multipart body, no file, an unknown part, one that stands twice or is too long.
        TooLarge: as the writer.
    """
    with ExitStack() as stack:
        reader = _Reader(_boundary(request), file_field, fields, lambda: stack.enter_context(open_writer()))
        async for chunk in request.stream():
            reader.feed(chunk)
            if len(reader.waiting) >= WRITE_BYTES:
                await asyncio.to_thread(reader.flush)
        reader.finish()
        await asyncio.to_thread(reader.flush)
        if reader.writer is None:
            raise _no_file(file_field)
        yield Form(reader.filename, reader.writer, reader.fields)


class _Reader:
    """The parser's callbacks."""

    def __init__(
        self, boundary: bytes, file_field: str, allowed: Collection[str], open_writer: Callable[[], BlobWriter]
    ) -> None:
        self.file_field, self.allowed, self.open_writer = file_field, allowed, open_writer
        self.fields: dict[str, str] = {}
        self.filename = ""
        self.writer: BlobWriter | None = None
        self.waiting = bytearray()
        """Bytes of the file that are not written yet."""
        self._name, self._value, self._in_file, self._ended = "", bytearray(), False, False
        self._header, self._headers = (bytearray(), bytearray()), dict[bytes, bytes]()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin, "on_part_data": self._data, "on_part_end": self._end,
                "on_header_field": self._header_name, "on_header_value": self._header_value,
                "on_header_end": self._header_end, "on_headers_finished": self._headers_end, "on_end": self._whole,
            },
        )  # fmt: skip

    def feed(self, chunk: bytes) -> None:
        """More of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _broken() from error

    def flush(self) -> None:
        """Write what waits."""
        if self.writer is not None and self.waiting:
            self.writer.write(bytes(self.waiting))
            self.waiting.clear()

    def finish(self) -> None:
        """The body has ended, and must be whole."""
        try:
            self._parser.finalize()
        except FormParserError as error:
            raise _broken() from error
        if not self._ended:
            raise _broken()

    # --- callbacks ------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._headers, self._value, self._in_file = {}, bytearray(), False

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _header_end(self) -> None:
        self._headers[bytes(self._header[0]).lower()] = bytes(self._header[1])
        self._header = (bytearray(), bytearray())

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        try:
            self._name = options[b"name"].decode("utf-8")
            filename = options[b"filename"].decode("utf-8") if b"filename" in options else None
        except (KeyError, UnicodeDecodeError) as error:
            raise _broken() from error
        if self._name == self.file_field:
            if filename is None:
                raise _no_file(self.file_field)
            if self.writer is not None:
                raise invalid(self._name, f"`{self._name}` stands twice")
            self.filename, self.writer, self._in_file = filename, self.open_writer(), True
        elif self._name not in self.allowed or filename is not None:
            raise unsupported(self._name[:80])
        elif self._name in self.fields:
            raise invalid(self._name, f"`{self._name}` stands twice")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self.waiting.extend(data[start:end])
            return
        self._value.extend(data[start:end])
        if len(self._value) > MAX_FIELD_BYTES:
            raise invalid(self._name, f"`{self._name}` is longer than {MAX_FIELD_BYTES:,} bytes")

    def _end(self) -> None:
        if not self._in_file:
            try:
                self.fields[self._name] = self._value.decode("utf-8")
            except UnicodeDecodeError as error:
                raise invalid(self._name, f"`{self._name}` is not UTF-8") from error

    def _whole(self) -> None:
        self._ended = True


def _boundary(request: Request) -> bytes:
    _, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if not boundary:
        raise invalid(None, "the multipart body has no boundary", code="invalid_multipart")
    return boundary


def _broken() -> ApiError:
    return invalid(None, "the multipart body cannot be read, or is cut off", code="invalid_multipart")


def _no_file(name: str) -> ApiError:
    return invalid(name, f"`{name}` must be a file: a part with a filename", code="missing_required_parameter")
