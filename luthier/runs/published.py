"""Where the models of a run were published: `export/push.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.runtime.errors import RunFailed

__all__ = ["PUSHES", "read_pushes"]

PUSHES = Path("export") / "push.json"


def read_pushes(folder: Path) -> dict[str, dict[str, Any]]:
    """What was pushed (`adapter`, `merged`, `gguf`) -> repository, commit, files; empty if nothing was.

    Raises:
        RunFailed: the file is damaged.
    """
    file = folder / PUSHES
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise RunFailed(code="R722", message=f"{file} is damaged: {error}", hint=f"delete {file}") from error
    return {str(key): item for key, item in value.items() if isinstance(item, dict)} if isinstance(value, dict) else {}
