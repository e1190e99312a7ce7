"""The reasons that stand as comments in `resolved.yaml`, as `resolve.resolved_yaml` writes them."""

from __future__ import annotations

import re

__all__ = ["reasons_of"]

_VALUE = re.compile(r"(\s*)(?:- )?([A-Za-z_][\w]*): ?(.*)")


def reasons_of(text: str) -> list[tuple[str, str, str]]:
    """(dotted key, value, reason) of every value with a comment behind it.

    Args:
        text: `resolved.yaml` of a run.
    """
    found = []
    path: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = _VALUE.match(line)
        if match is None:
            continue
        indent = len(match[1])
        path = [*(entry for entry in path if entry[0] < indent), (indent, match[2])]
        value, mark, reason = match[3].rpartition("  # ")
        # Inside a quoted text the mark is part of the value.
        if mark and not (value.startswith('"') and not value.endswith('"')):
            found.append((".".join(key for _, key in path), value, reason))
    return found
