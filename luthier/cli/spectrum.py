"""`luthier spectrum`: rank the matrices of a model by their singular values, and write what to train."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json, show

if TYPE_CHECKING:
    from luthier.spectrum.results import Scan
    from luthier.spectrum.select import Selection


class Score(StrEnum):
    """Scores to rank by."""

    calibrated = "calibrated"
    compat = "compat"


class Place(StrEnum):
    """Devices to compute on."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def spectrum(
    model: Annotated[str, typer.Argument(help="Model folder, hub id, or smollm2-135m-instruct.", show_default=False)],
    top_percent: Annotated[float, typer.Option(help="Share of the matrices of each module type, in percent.")] = 30.0,
    score: Annotated[
        Score, typer.Option(help="calibrated: share of energy above the noise; compat: the original script's number.")
    ] = Score.calibrated,
    embeddings: Annotated[
        bool, typer.Option("--embeddings/--no-embeddings", help="List embeddings and head, too.")
    ] = True,
    revision: Annotated[str | None, typer.Option(help="Hub revision.")] = None,
    device: Annotated[Place, typer.Option(help="Where to compute; auto: a GPU if there is one.")] = Place.auto,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for the list (YAML, as Axolotl and TRL scripts read it).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Rank a model's matrices by the signal in their singular values, and list the best of each type to train."""
    from luthier.model.locate import locate_model
    from luthier.pipeline.spectrum import is_tied, scan_model
    from luthier.runtime.atomic import write_text
    from luthier.runtime.console import note
    from luthier.runtime.errors import RecipeError
    from luthier.spectrum.listing import listing
    from luthier.spectrum.select import select

    if not 0.0 < top_percent <= 100.0:
        message = f"--top-percent is {top_percent:g}; allowed is more than 0 and at most 100"
        raise RecipeError(code="C122", message=message)
    folder = locate_model(model, revision, key="MODEL")
    scan = scan_model(folder, source=model, device=device.value)
    selection = select(
        scan, score=score.value, top_percent=top_percent, train_embeddings=embeddings, tied=is_tied(folder)
    )
    if out:
        write_text(out, listing(selection))
    if as_json:
        emit_json({**selection.to_json(), "patterns": list(selection.patterns), "out": str(out) if out else None,
                   "scan": scan.to_json()})  # fmt: skip
        return
    show(_table(scan, selection))
    for line in _closing(scan, selection):
        show(line)
    if out:
        note(f"{out}: {len(selection.patterns)} entries, for method: {{name: spectrum, spectrum_file: {out}}}")
    else:
        note("--out FILE writes the list; `method: {name: spectrum}` in a recipe scans by itself")


def _table(scan: Scan, selection: Selection) -> Any:
    """A row a module type: how many, the range of scores, what was chosen."""
    from rich.table import Table

    assert selection.score is not None
    table = Table("module type", "matrices", "score", "chosen", "layers", box=None, pad_edge=False)
    layers = selection.layers()
    for kind, results in scan.by_type(each_expert=selection.score == "compat").items():
        scores = [value for result in results if (value := result.score(selection.score)) is not None]
        span = f"{min(scores):.3g} to {max(scores):.3g}" if scores else "none"
        chosen = selection.chosen.get(kind, ())
        table.add_row(kind, str(len(results)), span, str(len(chosen)), _ranges(layers.get(kind, [])))
    return table


def _ranges(numbers: list[int]) -> str:
    """`0, 4-6, 9`."""
    spans: list[list[int]] = []
    for number in dict.fromkeys(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def _closing(scan: Scan, selection: Selection) -> list[str]:
    from collections import Counter

    lines = [f"embeddings and head: {', '.join(selection.ends) or 'not trained'}"]
    exact = sum(result.how != "gram" for result in scan.results)
    seconds = sum(result.seconds for result in scan.results)
    lines.append(
        f"{len(scan.results)} matrices scanned on the {scan.device} in {seconds:.1f} s"
        + (f"; {exact} needed a full decomposition" if exact else "")
    )
    small = [result.name for result in scan.results if result.calibrated is None]
    if small and selection.score == "calibrated":
        lines.append(f"not ranked: {len(small)} with fewer than 16 singular values, for instance {small[0]}")
    for reason, count in Counter(reason for _, reason in scan.skipped).items():
        example = next(name for name, why in scan.skipped if why == reason)
        lines.append(f"not ranked: {count} tensor{'s' if count > 1 else ''}, {reason} (for instance {example})")
    return lines
