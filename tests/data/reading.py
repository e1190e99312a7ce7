"""Write rows, read them as a source, and tell what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.data.sources import SourceResult, read_conversations
from luthier.recipe.schema import Source
from luthier.runtime.errors import DataError, Problem

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "hello"}
CHAT = {"messages": [USER, ANSWER]}


def write(path: Path, rows: list[Any]) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path | str, *, on_empty: Any = "error", loss_on: Any = "assistant", **keys: Any) -> SourceResult:
    return read_conversations(Source(path=str(path), **keys), 0, on_empty=on_empty, loss_on=loss_on)


def problems(path: Path | str, **keys: Any) -> list[Problem]:
    with pytest.raises(DataError) as caught:
        read(path, **keys)
    assert caught.value.exit_code == 3
    return list(caught.value.problems)


def faults(path: Path | str, **keys: Any) -> list[str]:
    """`line:column code message` of everything wrong."""
    return [f"{p.line}:{p.column} {p.code} {p.message}" for p in problems(path, **keys)]


def messages(result: SourceResult, index: int = 0) -> list[dict[str, Any]]:
    return [dict(message) for message in result.conversations[index].messages]
