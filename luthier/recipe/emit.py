"""Plain values to YAML that every reader agrees on.

Text that YAML 1.1 or 1.2 would read as something else is quoted, and floats keep a dot
(`1.0e-05`), so that older readers see the same values as ours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["dump_yaml", "scalar"]

_PLAIN = re.compile(r"[A-Za-z_/.~][A-Za-z0-9_/.~+-]*( [A-Za-z0-9_/.~+-]+)*\Z")
_NOT_TEXT = re.compile(
    r"(y|n|yes|no|on|off|true|false|null|~|[-+.]?(inf|nan)|\.+|[-+]?[.0-9_]+(e[-+]?[0-9]+)?|<<|=)\Z", re.I
)
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")


def dump_yaml(value: Any, *, comments: Mapping[str, str] | None = None, blocks: bool = False) -> str:
    """YAML in block style, keys in their order.

    Args:
        value: mappings with text keys, lists, text, numbers, truth values, None.
        comments: what to write behind a key, by dotted key.
        blocks: text of several lines below a key stands as it is (`|`), where it can.

    Raises:
        ValueError: a number that is not finite.
        TypeError: a value of any other type.
    """
    lines = list(_lines(value, "", "", comments or {}, blocks))
    return "\n".join(lines) + "\n"


def _lines(value: Any, indent: str, path: str, comments: Mapping[str, str], blocks: bool) -> list[str]:
    if isinstance(value, Mapping) and value:
        lines = []
        for key, item in value.items():
            below = f"{path}.{key}" if path else str(key)
            head = f"{indent}{scalar(str(key))}:"
            if blocks and isinstance(item, str) and _is_block(item):
                lines += [f"{head} |", *(f"{indent}  {line}".rstrip(" ") for line in item[:-1].split("\n"))]
            else:
                lines += _entry(head, item, indent + "  ", below, comments, blocks)
        return lines
    if isinstance(value, list | tuple) and value:
        lines = []
        for index, item in enumerate(value):
            inner = _lines(item, indent + "  ", f"{path}.{index}", comments, blocks)
            lines += [f"{indent}- {inner[0].lstrip()}", *inner[1:]]
        return lines
    return [indent + scalar(value)]


def _is_block(text: str) -> bool:
    """Lines that a literal block gives back exactly: one newline at the end, no other blanks at edges of lines."""
    if "\n" not in text or not text.endswith("\n") or text[0] in " \n\t" or text.endswith("\n\n"):
        return False
    return all(line == line.rstrip() and line.isprintable() and line.isascii() for line in text[:-1].split("\n"))


def _entry(
    head: str, item: Any, indent: str, path: str, comments: Mapping[str, str], blocks: bool
) -> list[str]:  # fmt: skip
    comment = f"  # {comments[path]}" if path in comments else ""
    if isinstance(item, Mapping | list | tuple) and item:
        return [head + comment, *_lines(item, indent, path, comments, blocks)]
    return [f"{head} {scalar(item)}{comment}"]


def scalar(value: Any) -> str:
    """A scalar, or an empty list or mapping, as YAML text."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not finite")
        text = repr(value)
        return text if "." in text else text.replace("e", ".0e")
    if isinstance(value, str):
        return value if _PLAIN.match(value) and not _NOT_TEXT.match(value) else _quoted(value)
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, list | tuple):
        return "[]"
    raise TypeError(f"{type(value).__name__} has no YAML form here")


def _quoted(text: str) -> str:
    """JSON text is YAML text, once the characters that YAML forbids are escaped."""
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found.group()):04x}", json.dumps(text, ensure_ascii=False))
