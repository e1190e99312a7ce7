"""Rows on a disk, a desk before them, and annotators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.annotate.items import Items, read_items
from luthier.annotate.labels import Labels
from luthier.annotate.log import Log
from luthier.annotate.session import Desk, Session


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **keys}


def chats(count: int) -> list[dict[str, Any]]:
    return [{"messages": [user(f"q{n}"), says(f"a{n}")], "score": n / 8, "id": f"r{n}"} for n in range(count)]


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"prompt": [user(f"q{n}")], "chosen": [says(f"a{n}")], "rejected": [says(f"b{n}")]} for n in range(count)]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def desk(path: Path, rows: list[Any] | None = None, **options: Any) -> Desk:
    """A desk before the rows of a file; its log stands beside it."""
    if rows is not None:
        write(path, rows)
    items: Items = read_items([str(path)])
    return Desk(items, Log(Path(f"{path}.labels")), options.pop("places", items.distinct), **options)


def session(path: Path, rows: list[Any] | None = None, name: str = "ann", **options: Any) -> Session:
    return Session(desk(path, rows, **options), name)


def labels_of(items: Items, *decisions: Any) -> Labels:
    """Labels without a disk: (annotator, index of the row, action, keys)."""
    from luthier.annotate.record import Record

    found = Labels()
    for number, (name, index, action, keys) in enumerate(decisions):
        item = items.all[index]
        found.add([
            Record(id=f"{number:04d}", time=f"2026-01-01T00:00:{number:02d}", annotator=name, action=action,
                   hash=item.hash, file=item.ref.file, line=item.ref.line, **keys)
        ])  # fmt: skip
    return found
