"""What the page holds: columns of numbers as typed arrays, texts in compressed blocks. And the way back.

    head     one JSON object: names, labels, facts; each column as base64 of little-endian numbers
    blocks   `chat` and `tokens`: rows [i x size, (i + 1) x size) as a JSON list, zlib-compressed, base64

A browser opens a block when a row of it is looked at (`DecompressionStream`, format `deflate`, is zlib).
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

__all__ = ["BLOCK_ROWS", "blocks", "column", "embed_json", "read_column", "read_page"]

BLOCK_ROWS = 256
_TYPES = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "f32": "<f4"}


def column(values: Any, kind: str | None = None) -> dict[str, str]:
    """A column of numbers: `type` (u8, u16, u32, f32) and `data`. Whole numbers take the smallest type that holds them.

    Raises:
        ValueError: a negative whole number, or one beyond 32 bits.
    """
    array = np.asarray(values)
    if kind is None:
        if array.dtype.kind == "f" and array.size:
            kind = "f32"
        else:
            most = int(array.max(initial=0))
            if int(array.min(initial=0)) < 0 or most >= 1 << 32:
                raise ValueError(f"no column type holds {array.min()} to {most}")
            kind = "u8" if most < 1 << 8 else "u16" if most < 1 << 16 else "u32"
    return {"type": kind, "data": base64.b64encode(array.astype(_TYPES[kind]).tobytes()).decode("ascii")}


def read_column(value: dict[str, str]) -> Any:
    """The way back."""
    return np.frombuffer(base64.b64decode(value["data"]), _TYPES[value["type"]])


def blocks(rows: Iterable[Any], size: int = BLOCK_ROWS) -> Iterator[str]:
    """Rows as compressed blocks of JSON."""
    held: list[Any] = []
    for row in rows:
        held.append(row)
        if len(held) == size:
            yield _block(held)
            held = []
    if held:
        yield _block(held)


def _block(rows: Sequence[Any]) -> str:
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode("utf-8"), 6)).decode("ascii")


def embed_json(value: Any) -> str:
    """JSON that may stand in a script element of any HTML: no `<`, `>` or `&`, no line separators of JavaScript."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


_ELEMENT = re.compile(r'<script type="([a-z/]+)" id="([a-z]+)-?(\d*)">([^<]*)</script>')


def read_page(html: str) -> dict[str, Any]:
    """What a page holds, read back: `head`, and the rows of `chat` and `tokens`."""
    found: dict[str, Any] = {"head": None, "chat": [], "tokens": []}
    for _, name, number, text in _ELEMENT.findall(html):
        if name == "head":
            found["head"] = json.loads(text)
        elif number and name in found:
            found[name] += json.loads(zlib.decompress(base64.b64decode(text)).decode("utf-8"))
    return found
