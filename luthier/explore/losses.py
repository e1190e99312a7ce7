"""Scores of rows after a run: those that the run stored, or held-out losses computed now with its model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.data.types import Example
from luthier.explore.rows import Item
from luthier.runtime.console import note
from luthier.runtime.errors import DataError, RunFailed

if TYPE_CHECKING:
    from luthier.recipe.schema import Recipe

__all__ = ["Scores", "computed_losses", "stored_scores"]

Scores = dict[str, Any]
"""Name -> [n] float32, NaN for rows without this score."""

_FILES = (("after", ""), ("before", " before"))


def stored_scores(run: Path, items: Sequence[Item]) -> Scores:
    """Scores of `eval/after.json` and `eval/before.json`, one column for each task and file that knows any of the rows.

    `loss` is nats per trained token. Of other metrics 1 is right.

    Raises:
        RunFailed: a file is damaged.
    """
    place = {_place(item.row.ref.file, item.row.ref.line): index for index, item in enumerate(items)}
    found: Scores = {}
    for name, suffix in _FILES:
        file = run / "eval" / f"{name}.json"
        if not file.is_file():
            continue
        try:
            for task in json.loads(file.read_text("utf-8"))["tasks"]:
                column = _column(task["rows"], place, len(items))
                if not np.isnan(column).all():
                    what = "loss" if task["metric"] == "loss" else task["metric"]
                    found[f"{task['name']}: {what}{suffix}"] = column
        except (ValueError, KeyError, TypeError, OSError) as error:
            message = f"{file} is not a file of scores ({type(error).__name__}: {error})"
            raise RunFailed(code="D282", message=message, hint="`luthier eval` writes it again") from error
    return found


def computed_losses(recipe: Recipe, run: Path, items: Sequence[Item], *, most: int, seed: int) -> Scores:
    """Loss of held-out rows under the model of the run, in nats per trained token.

    Args:
        recipe: Of the run.
        run: Its folder, with `final/`.
        items: All rows; validation and test rows are scored.
        most: At most this many of them, drawn by the seed.
        seed: Of the draw.

    Raises:
        DataError: the rows are pairs, rated answers or prompts: they have no loss of this kind.
        LuthierError: the model cannot be loaded.
    """
    held_out = [
        index
        for index, item in enumerate(items)
        if item.split in {"validation", "test"} and isinstance(item.tokens, Example) and item.tokens.trained_tokens
    ]
    if not held_out:
        message = "no validation or test row has a loss: there is none, or they are preferences or prompts"
        raise DataError(code="D283", message=message, hint="name test rows with --test, or leave --losses out")
    chosen = np.sort(np.random.default_rng(seed).choice(held_out, min(most, len(held_out)), replace=False))
    if len(chosen) < len(held_out):
        note(f"loss of {len(chosen):,} of {len(held_out):,} held-out rows (--losses {most})")
    from luthier.evaluate.loss import row_losses
    from luthier.model.load import load_tuned
    from luthier.runtime.device import pick_device, set_threads

    device = pick_device()
    set_threads()
    section = recipe.model
    dtype = section.dtype if section.dtype != "auto" else "bfloat16" if device.native_bf16 else "float32"
    quantization = "nf4" if recipe.method.name == "qlora" or section.quantization == "nf4" else "none"
    model = load_tuned(section, run / "final", device=device, dtype=dtype, quantization=quantization)
    examples = [item.tokens for item in (items[index] for index in chosen) if isinstance(item.tokens, Example)]
    column = np.full(len(items), np.nan, np.float32)
    for index, loss in zip(chosen, row_losses(model, examples, batch_size=16), strict=True):
        column[index] = loss.nll / loss.weight
    return {"held-out loss": column}


def _place(file: str, line: int) -> tuple[str, int]:
    return os.path.realpath(file), line


def _column(rows: Sequence[Mapping[str, Any]], place: Mapping[tuple[str, int], int], count: int) -> Any:
    """[count] float32: the scores of `rows` at the places of their references."""
    column = np.full(count, np.nan, np.float32)
    for row in rows:
        path, _, line = str(row["ref"]).rpartition(":")
        index = place.get(_place(path, int(line)))
        if index is not None:
            column[index] = row["score"]
    return column
