"""Routes of rows: those of a run and those of a file have the same answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from luthier.report.read import printable
from luthier.runtime.errors import RecipeError
from luthier.studio.clean import clean
from luthier.studio.context import Studio
from luthier.studio.data.asked import AskedRows, file_rows, run_rows
from luthier.studio.data.query import AskedPage, View
from luthier.studio.data.tokens import token_row
from luthier.studio.http.asked import page_of, word
from luthier.studio.http.errors import JsonAnswer
from luthier.studio.names import path_below
from luthier.studio.runs.times import iso

__all__ = ["DataRoutes"]

_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".arrow", ".gz", ".zst", ".yaml", ".yml")
_MOST_FILES = 2_000
_LOOKS = ("chat", "text", "tokens")


class DataRoutes:
    """The routes; `file` decides which of the two sources a route speaks of."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def _asked(self, request: Request) -> AskedRows:
        if "run" in request.path_params:
            folder = self.studio.folder(request.path_params["run"])
            runs = self.studio.settings.runs
            name = folder.relative_to(runs).as_posix() if folder != runs else ""
            return run_rows(folder, (Path(runs.name) / name).as_posix(), root=self.studio.settings.root)
        query = {name: word(request.query_params, name) for name in
                 ("path", "tokenizer", "max_length", "objective", "format", "map")}  # fmt: skip
        return file_rows(self.studio.settings.root, query)

    async def _answer(self, request: Request, answer: Callable[[View, AskedRows], Any]) -> Response:
        def look() -> JsonAnswer:
            asked = self._asked(request)
            return JsonAnswer(answer(self.studio.views.get(asked), asked))

        return await asyncio.to_thread(look)

    async def summary(self, request: Request) -> Response:
        """What is said of all rows."""
        return await self._answer(request, lambda view, asked: view.summary(self.studio.views.chips_state(asked)))

    async def chips(self, request: Request) -> Response:
        """Begin to look for what the further chips show."""

        def begin() -> JsonAnswer:
            asked = self._asked(request)
            self.studio.views.look_further(asked)
            state = self.studio.views.chips_state(asked)
            return JsonAnswer({"state": state, "what": "chips", "done": None, "total": None, "elapsed": 0.0}, 202)

        return await asyncio.to_thread(begin)

    async def rows(self, request: Request) -> Response:
        """Some rows."""
        query = request.query_params
        offset, limit = page_of(query)
        page = AskedPage(
            offset=offset, limit=limit, q=word(query, "q"), sort=word(query, "sort", "row"),
            chips=tuple(sorted(filter(None, word(query, "chip").split(",")))),
        )  # fmt: skip
        return await self._answer(request, lambda view, asked: view.page(page))

    async def row(self, request: Request) -> Response:
        """One row: as chat, as text, as tokens."""
        look = word(request.query_params, "view", "chat")
        if look not in _LOOKS:
            raise RecipeError(code="W103", message=f"view must be one of {', '.join(_LOOKS)}")
        text = request.path_params["row"]
        return await self._answer(request, lambda view, asked: self._row(view, view.check_row(text), look))

    def _row(self, view: View, row: int, look: str) -> dict[str, Any]:
        record = view.stored.record(row)
        head = view.head(row, record) | {"notes": clean(record["n"])}
        if look == "chat":
            turns = [{"role": turn[0], "text": turn[1], "mark": turn[2]} for turn in record["t"]]
            return head | {"turns": clean(turns)}
        stored = view.stored.row(row)
        if stored is None:
            why = head["why"] or "no tokenizer was named"
            raise RecipeError(code="W135", message=f"this row has no tokens: {why}", hint="the chat view shows it")
        tokens = token_row([stored], [record["t"]], self._tokenizer(view))
        return head | (tokens if look == "tokens" else _text(tokens))

    def _tokenizer(self, view: View) -> Any:
        return self.studio.tokenizers.get(view.stored.about["model"]["section"])

    async def packs(self, request: Request) -> Response:
        """Training sequences."""
        offset, limit = page_of(request.query_params)
        return await self._answer(request, lambda view, asked: view.pack_page(offset, limit))

    async def pack(self, request: Request) -> Response:
        """One of them, as tokens."""
        text = request.path_params["pack"]

        def answer(view: View, asked: AskedRows) -> dict[str, Any]:
            line = view.pack_line(view.check_pack(text))
            stored = [row for number in line["rows"] if (row := view.stored.row(number)) is not None]
            turns = [record["t"] for record in view.stored.records(line["rows"])]
            return line | token_row(stored, turns, self._tokenizer(view), capacity=line["capacity"])

        return await self._answer(request, answer)

    async def files(self, request: Request) -> Response:
        """Files that can be looked at."""
        text = word(request.query_params, "dir")
        return JsonAnswer(await asyncio.to_thread(self._files, text))

    def _files(self, text: str) -> dict[str, Any]:
        root = self.studio.settings.root
        folder = path_below(root, text)
        if not folder.is_dir():
            raise RecipeError(code="W105", message=f"{text[:200]!r} is no folder")
        files: list[dict[str, Any]] = []
        folders: list[str] = []
        for path in sorted(folder.iterdir(), key=lambda path: path.name.lower()):
            name = path.relative_to(root).as_posix()
            if path.name.startswith(".") or not name.isprintable() or len(files) + len(folders) >= _MOST_FILES:
                continue
            if path.is_dir():
                folders.append(name)
            elif path.suffix.lower() in _SUFFIXES and path.is_file():
                status = path.stat()
                files.append({"path": name, "bytes": status.st_size, "modified": iso(status.st_mtime)})
        shown = folder.relative_to(root).as_posix() if folder != root else ""
        parent = None if shown == "" else Path(shown).parent.as_posix().removeprefix(".")
        return {"dir": printable(shown), "parent": parent, "folders": folders, "files": files}


def _text(tokens: dict[str, Any]) -> dict[str, Any]:
    """The rendered text; of preferences each part of it."""
    value: dict[str, Any] = {"text": "".join(tokens["texts"]), "trained_text": tokens["trained_text"]}
    if tokens["parts"] is not None:
        parts: dict[str, list[str]] = {"prompt": [], "chosen": [], "rejected": []}
        for part, text in zip(tokens["parts"], tokens["texts"], strict=True):
            parts[part].append(text)
        value["texts"] = {name: "".join(texts) for name, texts in parts.items()}
    return value
