"""Spectrum for the pipeline and the command line: the scan of a named model, and what a recipe's run trains.

A scan is made once for the bytes of the weights; after that it is read from the cache, without torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.model.identity import base_identity
from luthier.recipe.paths import expand
from luthier.runtime.atomic import write_json, write_text
from luthier.runtime.console import note
from luthier.runtime.env import read_env
from luthier.runtime.errors import EnvironmentProblem, RecipeError
from luthier.runtime.hashing import hash_file
from luthier.spectrum.listing import listing, read_listing
from luthier.spectrum.results import SCAN_VERSION, Scan, load_scan
from luthier.spectrum.select import Selection, select

if TYPE_CHECKING:
    from luthier.pipeline.session import Session
    from luthier.recipe.schema import Recipe

__all__ = ["FOLDER", "is_tied", "keep_selection", "scan_model", "selection_of", "spectrum_depends"]

FOLDER = "spectrum"
"""Of a run folder: `selection.json` and `unfrozen_parameters.yaml`."""


def scan_model(
    folder: Path, *, source: str, weights: str | None = None, device: Literal["auto", "cpu", "cuda"] = "auto"
) -> Scan:
    """Scores of every matrix of a model folder; from the cache when the same bytes were scanned before.

    Args:
        folder: of the model.
        source: what to call it.
        weights: content hash of its weight files, if it is known.
        device: where to compute; `auto`: a GPU if there is one.

    Raises:
        RecipeError: no model folder, or nothing in it can be ranked.
        EnvironmentProblem: files are missing or broken, or CUDA was asked for and is not there.
        RunFailed: NaN or infinity in the weights.
    """
    if weights is None:
        weights = str(base_identity(folder)["weights"])
    cache_dir = read_env().cache_dir
    finished = load_scan(cache_dir, weights)
    if finished is not None:
        return finished
    from luthier.model.weights import check_weight_files, read_config
    from luthier.runtime.device import pick_device, set_threads
    from luthier.spectrum.scan import scan_files

    read_config(folder)
    files = check_weight_files(folder)
    set_threads()
    found = pick_device().type
    if device == "cuda" and found != "cuda":
        raise EnvironmentProblem(code="M334", message="no CUDA device is available for the scan", hint="--device cpu")
    place: Literal["cpu", "cuda"] = "cuda" if found == "cuda" and device != "cpu" else "cpu"
    note(f"  spectrum: scanning {source} on the {place} (once; kept in {cache_dir / 'spectrum'})", style="dim")
    return scan_files(files, weights=weights, source=source, cache_dir=cache_dir, device=place)


def is_tied(folder: Path) -> bool:
    """Whether the config says that head and embeddings are one weight."""
    try:
        value = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            code="M302", message=f"{folder} is not a model folder: {error}", hint="give the folder with config.json"
        ) from error
    return bool({**value, **value.get("text_config", {})}.get("tie_word_embeddings", False))


def selection_of(session: Session) -> tuple[Selection, Scan | None]:
    """What a run of method `spectrum` trains, and the scan behind it (None: the recipe names a file)."""
    method = session.recipe.method
    if method.spectrum_file is not None:
        return read_listing(expand(method.spectrum_file)), None
    scan = scan_model(
        session.base_folder, source=session.recipe.model.name_or_path, weights=session.identity["weights"]
    )
    selection = select(
        scan, score=method.spectrum_score, top_percent=method.top_percent,
        train_embeddings=method.train_embeddings, tied=is_tied(session.base_folder),
    )  # fmt: skip
    return selection, scan


def spectrum_depends(recipe: Recipe) -> dict[str, Any]:
    """What a spectrum selection hangs on besides the recipe and the base; empty for other methods. No torch."""
    method = recipe.method
    if method.name != "spectrum":
        return {}
    if method.spectrum_file is not None:
        return {"spectrum_file": hash_file(expand(method.spectrum_file))}
    return {"spectrum_scan": SCAN_VERSION}


def keep_selection(run: Path, selection: Selection, scan: Scan | None) -> None:
    """Write what was chosen, and the scores behind it, into the run folder."""
    write_text(run / FOLDER / "unfrozen_parameters.yaml", listing(selection))
    value = {**selection.to_json(), "scan": scan.to_json() if scan else None}
    write_json(run / FOLDER / "selection.json", value)
