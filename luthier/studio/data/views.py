"""Views that are open: prepared in the background when first asked for, found again on disk after that."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from luthier.runtime.errors import DataError, LuthierError, Problem, RunFailed
from luthier.studio.data.asked import AskedRows
from luthier.studio.data.query import View
from luthier.studio.data.stored import StoredView
from luthier.studio.settings import StudioSettings
from luthier.studio.work import Unfinished, Work

__all__ = ["Views"]

_KEPT = 20
"""Views on disk; the ones unused for longest go."""
_STARTUP = "reading and tokenising the rows, as training does"
_CHIPS = "looking for near duplicates, languages, personal data"


class Views:
    """All views of a studio."""

    def __init__(self, settings: StudioSettings, work: Work) -> None:
        self.settings, self.work = settings, work
        self._folder = settings.home / "views"
        self._open: dict[str, View] = {}
        self._lock = threading.Lock()

    def get(self, asked: AskedRows) -> View:
        """The view of some rows.

        Raises:
            Unfinished: it is being prepared.
            LuthierError: the rows cannot be read.
        """
        folder = self._where(asked)
        with self._lock:
            view = self._open.get(folder.name)
        if view is not None:
            return view
        if not (folder / "view.json").is_file():
            self.work.get(("view", asked.key), lambda: self._prepare(asked, more=False), what=_STARTUP)
        return self._opened(folder)

    def _where(self, asked: AskedRows) -> Path:
        """With the further chips, if those are there."""
        more = self._folder / f"{asked.key}-more"
        return more if (more / "view.json").is_file() else self._folder / asked.key

    def _opened(self, folder: Path) -> View:
        view = View(StoredView(folder))
        (folder / "view.json").touch()
        with self._lock:
            self._open[folder.name] = view
            for name in list(self._open)[:-_KEPT]:
                del self._open[name]
        return view

    def look_further(self, asked: AskedRows) -> None:
        """Begin to look for what the further chips show."""
        if self.chips_state(asked) in ("offered", "none"):
            try:
                self.work.get(("chips", asked.key), lambda: self._prepare(asked, more=True), what=_CHIPS, wait=0.0)
            except Unfinished:
                return

    def chips_state(self, asked: AskedRows) -> str:
        """`offered`, `working` or `done`."""
        if (self._folder / f"{asked.key}-more" / "view.json").is_file():
            return "done"
        return "working" if self.work.state(("chips", asked.key)) == "working" else "offered"

    def _prepare(self, asked: AskedRows, *, more: bool) -> None:
        folder = self._folder / (f"{asked.key}-more" if more else asked.key)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._make_room()
        prepare_apart(asked, folder, more=more)

    def _make_room(self) -> None:
        folders = [path for path in self._folder.iterdir() if (path / "view.json").is_file()]
        folders.sort(key=lambda path: (path / "view.json").stat().st_mtime, reverse=True)
        for path in folders[_KEPT - 1 :]:
            with self._lock:
                self._open.pop(path.name, None)
            shutil.rmtree(path, ignore_errors=True)


def prepare_apart(asked: AskedRows, folder: Path, *, more: bool) -> None:
    """`build_view` in a process of its own.

    Raises:
        DataError: the rows cannot be read; with all problems.
        RunFailed: W130: the process failed otherwise.
    """
    command = [sys.executable, "-m", "luthier.studio.data.build", str(folder), *(["more"] if more else [])]
    done = subprocess.run(command, input=json.dumps(asked.to_json()), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    raise _failure(done.stdout, done.stderr)


def _failure(said: str, log: str) -> LuthierError:
    for line in reversed(said.splitlines()):
        try:
            value: Any = json.loads(line)
            return DataError(problems=[Problem(**problem) for problem in value["problems"]])
        except (ValueError, KeyError, TypeError):
            continue
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "it ended without a word")
    return RunFailed(code="W130", message=f"the rows could not be prepared: {last.strip()[:300]}")
