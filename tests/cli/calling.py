"""The command line called in this process: arguments in, exit code and streams out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.tiny import conversations, save_tiny


@dataclass(frozen=True)
class Said:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """All of stdout as one JSON value."""
        return json.loads(self.out)


Caller = Callable[..., Said]


def caller(monkeypatch, capfd) -> Caller:
    """A function that runs `luthier ARGUMENTS` through its entry point."""

    def call(*arguments: Any) -> Said:
        from luthier.cli.main import main

        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["luthier", *map(str, arguments)])
        code: Any = "main() returned"
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return Said(code, out, err)

    return call


def write_rows(path: Path, rows: list[Any]) -> Path:
    """JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_recipe(path: Path, folder: Path, *, method: str = "lora", **changes: Any) -> Path:
    """A recipe of seconds on the tiny base of `folder`; sections are merged with `changes`."""
    value: dict[str, Any] = {
        "model": {"name_or_path": str(folder / "base"), "dtype": "float32"},
        "data": {"train": [{"path": str(folder / "rows.jsonl")}], "max_length": 128},
        "method": {"name": "lora", "r": 4} if method == "lora" else {"name": method},
        "train": {"max_steps": 2, "learning_rate": 1e-3, "tokens_per_step": 256},
        "output_dir": str(path.parent / "run"),
    }
    for section, change in changes.items():
        value[section] = {**value.get(section, {}), **change} if isinstance(change, dict) else change
    path.write_text(json.dumps(value, indent=1), "utf-8")
    return path


def make_world(folder: Path) -> Path:
    """Base, 16 training rows, 4 test rows."""
    save_tiny(folder / "base")
    write_rows(folder / "rows.jsonl", conversations(16))
    write_rows(folder / "test.jsonl", conversations(4, seed=1))
    return folder
