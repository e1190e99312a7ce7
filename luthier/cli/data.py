"""`luthier data ...`: rows as the model will see them, and as a set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.common import JsonOption, OverridesArgument, RecipeArgument, load_with_overrides
from luthier.cli.decontaminate import decontaminate
from luthier.cli.dedup import curated_lines, dedup
from luthier.cli.explore import data_map, stats
from luthier.cli.filter import filter_, filter_lines
from luthier.cli.label import label
from luthier.cli.mix import mix
from luthier.cli.output import emit_json, show
from luthier.cli.synth import synth
from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    from luthier.pipeline.session import Session

app = typer.Typer(help="Look at the rows as the model will see them.", no_args_is_help=True)
OVERRIDES = {"ignore_unknown_options": True, "allow_extra_args": True}
app.command("dedup")(dedup)
app.command("filter")(filter_)
app.command("decontaminate")(decontaminate)
app.command("mix", context_settings=OVERRIDES)(mix)
app.command("label")(label)
app.command("stats")(stats)
app.command("map")(data_map)
app.command("synth", context_settings=OVERRIDES)(synth)


@app.command("show", context_settings=OVERRIDES)
def show_rows(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    rows: Annotated[int, typer.Option("--rows", "-n", help="How many rows.", min=1)] = 3,
    start: Annotated[int, typer.Option(help="First row (from 0).", min=0)] = 0,
    packed: Annotated[bool, typer.Option("--packed", help="Show packs instead of rows.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tokens coloured: trained, context, special. --json: ids, labels, positions, documents, reasons."""
    from luthier.data.show import packed_records, row_records, row_text

    session = _session(recipe, overrides)
    prepared = session.prepared
    records = (
        packed_records(prepared, session.tokenizer, start=start, count=rows)
        if packed
        else row_records(prepared, session.tokenizer, start=start, count=rows)
    )
    if not records:
        what, count = ("packs", len(prepared.packs)) if packed else ("rows", len(prepared.train))
        message = f"--start {start}: there are {count:,} {what} to train, counted from 0"
        raise RecipeError(code="C103", message=message, hint=f"--start {max(count - rows, 0)}")
    if as_json:
        emit_json({"rows": records, "dropped_rows": prepared.manifest["dropped_rows"]})
        return
    for record in records:
        show(row_text(record))
    if prepared.manifest["kind"] == "tokens":
        legend = "[bold green]trained[/]  context  [dim cyan]special[/]: trained are the answers and their end-of-turn"
    elif prepared.manifest["kind"] == "prompts":
        legend = "prompt  [dim cyan]special[/]: what is asked; the answers will be sampled"
    else:
        legend = (
            "[dim]prompt[/]  [bold green]chosen[/]  [bold red]rejected[/]  [dim cyan]special[/]: green and red count"
        )
    show(legend)


@app.command("check", context_settings=OVERRIDES)
def check(recipe: RecipeArgument, overrides: OverridesArgument = None, as_json: JsonOption = False) -> None:
    """Read every row, prove every mask, and say what would be trained, dropped or cut."""
    manifest = _session(recipe, overrides).prepared.manifest
    if as_json:
        emit_json(manifest)
        return
    for line in _check_lines(manifest):
        show(line)


def _check_lines(manifest: dict[str, Any]) -> list[str]:
    from luthier.data.losses import loss_lines
    from luthier.data.mixing import mix_lines
    from luthier.data.preference_stats import preference_lines
    from luthier.report.loss_view import contamination_lines

    lengths = manifest["lengths"]
    lines = [f"{source['path']}: {source['verdict']}" for source in manifest["sources"]]
    if manifest.get("rows_are") == "prompts":
        lines += [
            f"{manifest['rows_read']:,} rows read, {manifest['rows_used']:,} prompts "
            f"({manifest['references']:,} with a reference), {manifest['validation_rows']:,} to validate",
            f"length in tokens: {lengths['min']} shortest, {lengths['p50']} median, {lengths['p95']} at 95%, "
            f"{lengths['max']} longest",
        ]
        return lines + mix_lines(manifest["mix"]) + loss_lines(manifest)
    lines += [
        f"{manifest['rows_read']:,} rows read, {manifest['rows_used']:,} to train, "
        f"{manifest['validation_rows']:,} to validate",
        f"{manifest['tokens']:,} tokens, {manifest['trained_tokens']:,} trained ({manifest['trained_fraction']:.1%})",
        f"length in tokens: {lengths['min']} shortest, {lengths['p50']} median, {lengths['p95']} at 95%, "
        f"{lengths['max']} longest",
        f"{manifest['packs']:,} sequences of up to {manifest['pack_capacity']:,} tokens, "
        f"{manifest['pack_efficiency']:.1%} full",
        f"masks proven: {manifest['mask_proof']['turns']:,} turns in {manifest['mask_proof']['rows']:,} rows",
        f"exact duplicates: {manifest['duplicates']:,}; rows in both train and validation: "
        f"{manifest['train_validation_overlap']:,}",
    ]
    lines += filter_lines(manifest) + curated_lines(manifest)
    lines += mix_lines(manifest["mix"])
    lines += contamination_lines(manifest)
    lines += preference_lines(manifest["preferences"]) if "preferences" in manifest else []
    lines += loss_lines(manifest)
    if "streaming" in manifest:
        size = manifest["streaming"]["bytes"] / 2**20
        lines.append(f"kept on disk: {manifest['streaming']['rows']:,} rows, {size:,.1f} MiB")
    lines += [f"note, {text}: {count:,} rows" for text, count in manifest["notes"].items()]
    return lines


def _session(recipe: Path, overrides: list[str] | None) -> Session:
    from luthier.pipeline.session import Session
    from luthier.runs.folder import RunFolder

    loaded = load_with_overrides(recipe, overrides)
    return Session(loaded.recipe, RunFolder(Path(loaded.recipe.output_dir)))
