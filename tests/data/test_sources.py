"""Reading a source: files, limits on what is read, and the verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.data.sources import SourceResult, read_conversations
from luthier.recipe.schema import Source
from luthier.runtime.errors import DataError

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path | str, **keys: Any) -> SourceResult:
    on_empty = keys.pop("on_empty", "error")
    return read_conversations(Source(path=str(path), **keys), 0, on_empty=on_empty)


def faults(path: Path | str, **keys: Any) -> list[str]:
    """`line:column code message` of everything wrong."""
    with pytest.raises(DataError) as caught:
        read(path, **keys)
    assert caught.value.exit_code == 3
    return [f"{p.line}:{p.column} {p.code} {p.message}" for p in caught.value.problems]


def test_messages_are_read_as_they_stand(tmp_path: Path) -> None:
    result = read(write(tmp_path / "a.jsonl", [CHAT, CHAT]))
    assert [dict(m) for m in result.conversations[0].messages] == CHAT["messages"]
    assert (result.format, result.rows) == ("messages", 2)
    assert result.verdict == "messages: 2 of 2 rows have a list `messages` with role and content"
