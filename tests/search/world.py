"""A tiny base, rows, a recipe of seconds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from luthier.recipe.load import recipe_from_dict
from tests.data.preferring import pairs
from tests.support.tiny import conversations, save_tiny


def make_world(folder: Path) -> Path:
    """Base, 32 training rows, 6 test rows, 32 pairs of a chosen and a rejected answer."""
    save_tiny(folder / "model")
    for name, count, seed in (("train", 32, 0), ("test", 6, 1)):
        lines = [json.dumps(row) + "\n" for row in conversations(count, seed=seed)]
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(32)), "utf-8")
    return folder


def recipe_value(folder: Path, output_dir: Path, **changes: Any) -> dict[str, Any]:
    """The recipe as a mapping; sections are merged with `changes`."""
    value: dict[str, Any] = {
        "model": {"name_or_path": str(folder / "model"), "dtype": "float32"},
        "data": {
            "train": [{"path": str(folder / "train.jsonl")}], "validation": {"fraction": 0.25}, "max_length": 128,
        },
        "method": {"name": "full"},
        "train": {"max_steps": 8, "tokens_per_step": 256},
        "export": {"merge": False},
        "output_dir": str(output_dir),
    }  # fmt: skip
    for section, change in changes.items():
        value[section] = {**value.get(section, {}), **change} if isinstance(change, dict) else change
    return value


def recipe(folder: Path, output_dir: Path, **changes: Any):
    return recipe_from_dict(recipe_value(folder, output_dir, **changes), origin="test")


def write_recipe(path: Path, folder: Path, **changes: Any) -> Path:
    """As a file, with `output_dir` beside it."""
    path.write_text(json.dumps(recipe_value(folder, path.parent / "run", **changes), indent=1), "utf-8")
    return path


def bytes_of(tensors: dict) -> str:
    """Hash over names and bytes."""
    digest = hashlib.blake2b()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(dtype_of_bytes()).numpy().tobytes())
    return digest.hexdigest()


def dtype_of_bytes():
    import torch

    return torch.uint8


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    return {
        str(file.relative_to(folder)): hashlib.blake2b(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
