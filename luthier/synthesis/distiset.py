"""Rows as a distiset, the folder that distilabel reads and writes: `FOLDER/default/` is a saved `DatasetDict`.

distilabel itself is not needed, only `datasets`. The columns are those of its TextGeneration step (`instruction`,
`generation`, `model_name`, `distilabel_metadata`) beside ours (`messages`, `provenance` as JSON text), or `prompt`,
`chosen`, `rejected` for pairs. The other way needs nothing: a distiset's folder, or its parquet files, are a source of
rows with `map: {user: instruction, assistant: generation}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.runtime.atomic import atomic_folder
from luthier.runtime.errors import EnvironmentProblem, Problem, RecipeError

__all__ = ["check_distiset", "write_distiset"]


def check_distiset(folder: Path, *, force: bool) -> None:
    """Whether a distiset may be written there, before the work.

    Raises:
        RecipeError: the folder exists.
        EnvironmentProblem: `datasets` is missing.
    """
    import importlib.util

    if importlib.util.find_spec("datasets") is None:
        message = "writing a distiset needs datasets, which is not installed"
        raise EnvironmentProblem(code="D275", message=message, hint="pip install 'luthier[train]'")
    if folder.exists() and not force:
        message = f"--distiset {folder} exists"
        raise RecipeError(problems=[Problem(code="C165", message=message, hint="another folder, or --force")])


def write_distiset(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write rows as a distiset with one configuration, `default`, and one split, `train`; whole or not at all.

    Args:
        rows: As in the output of `data synth`: `messages`, or `prompt`, `chosen` and `rejected`; and `provenance`.
        folder: Replaced if it exists.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    from datasets import Dataset, DatasetDict, disable_progress_bars, enable_progress_bars

    data = Dataset.from_list([_columns(row) for row in rows])
    disable_progress_bars()
    try:
        with atomic_folder(folder) as temporary:
            DatasetDict({"train": data}).save_to_disk(str(temporary / "default"))
    finally:
        enable_progress_bars()


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    provenance = json.dumps(row["provenance"], ensure_ascii=False)
    if "chosen" in row:
        return {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"], "provenance": provenance}
    *asked, last = row["messages"]
    answer = last["content"] if last["role"] == "assistant" else None
    prompt = asked if answer is not None else row["messages"]
    model = row["provenance"].get("answer", row["provenance"]).get("model")
    raw = {"raw_input_luthier_0": prompt, "raw_output_luthier_0": answer}
    return {"instruction": prompt[-1]["content"], "generation": answer, "model_name": model,
            "distilabel_metadata": raw, "messages": row["messages"], "provenance": provenance}  # fmt: skip
