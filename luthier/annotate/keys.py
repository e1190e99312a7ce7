"""Single keys of a terminal, and the user's own editor."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.runtime.errors import RecipeError

__all__ = ["Keys", "edit_text"]


class Keys:
    """Single keys of the terminal on stdin; what is typed ahead is kept. Its settings are restored at the end."""

    def __init__(self) -> None:
        self._file = sys.stdin.fileno()
        self._ahead = ""

    def __enter__(self) -> Keys:
        import termios
        import tty

        self._before = termios.tcgetattr(self._file)
        tty.setcbreak(self._file, termios.TCSADRAIN)
        return self

    def __exit__(self, *_: object) -> None:
        import termios

        termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)

    def read(self) -> str:
        """The next key; arrows are `p` and `f`, the end of input is `q`."""
        if not self._ahead:
            data = os.read(self._file, 1024)
            self._ahead = data.decode("utf-8", "replace") or "\x04"
        size = 3 if self._ahead.startswith("\x1b[") else 1
        key, self._ahead = self._ahead[:size], self._ahead[size:]
        return {"\x1b[D": "p", "\x1b[C": "f", "\x04": "q"}.get(key, key)

    @contextmanager
    def lines(self) -> Iterator[None]:
        """Whole lines meanwhile, for a prompt or an editor."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()


def edit_text(text: str) -> str | None:
    """The text in the editor of the user; a line feed that the editor puts at the end is not part of it."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or shutil.which("nano") or shutil.which("vi")
    if editor is None:
        raise RecipeError(code="D294", message="no editor found", hint="set EDITOR, or edit in the page (--page)")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answer.txt"
        file.write_text(text, encoding="utf-8", newline="")
        if subprocess.run([*shlex.split(editor), str(file)], check=False).returncode:
            return None
        new = file.read_bytes().decode("utf-8")
    return new[:-1] if new.endswith("\n") and not text.endswith("\n") else new
