"""Answers on disk, found by the content of the request. No key and no header is ever stored.

FOLDER/ab/abcdef....json   {"request": {...}, "answer": {...}}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from luthier.endpoint.reply import BadReply, text_of
from luthier.runtime.atomic import write_json
from luthier.runtime.hashing import hash_json

__all__ = ["AnswerCache", "Answers", "request_key"]


def request_key(url: str, body: dict[str, Any], *, variant: int) -> str:
    """Name of a request. `variant` tells apart several answers to the same one (sampling)."""
    return hash_json({"url": url, "body": body, "variant": variant})


class Answers(Protocol):
    """Where answers are kept."""

    def get(self, key: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The kept answer to a request, or None."""
        ...

    def put(self, key: str, body: dict[str, Any], answer: dict[str, Any]) -> None:
        """Keep an answer; on the disk when this returns."""
        ...


class AnswerCache:
    """A folder of answers; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, key: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The kept answer; None if there is none, or if its file is damaged or of another request."""
        if self.folder is None:
            return None
        try:
            value = json.loads(self._file(key).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(value, dict) or value.get("request") != body or not isinstance(value.get("answer"), dict):
            return None
        answer: dict[str, Any] = value["answer"]
        try:
            text_of(answer)
        except BadReply:
            return None
        return answer

    def put(self, key: str, body: dict[str, Any], answer: dict[str, Any]) -> None:
        """Keep an answer.

        Raises:
            EnvironmentProblem: it cannot be written.
        """
        if self.folder is not None:
            write_json(self._file(key), {"request": body, "answer": answer})

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.json"
