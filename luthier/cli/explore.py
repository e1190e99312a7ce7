"""`luthier data stats` and `luthier data map`: the rows as a set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.columns import columns_of, hints_as_options
from luthier.cli.common import JsonOption, load_with_overrides
from luthier.cli.dedup import kind_for
from luthier.cli.output import emit_json, show
from luthier.runtime.console import note
from luthier.runtime.errors import Problem, RecipeError

if TYPE_CHECKING:
    from luthier.explore.rows import Explored
    from luthier.recipe.schema import Recipe

__all__ = ["data_map", "stats"]

RowsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="A recipe (with key=value overrides), or files, folders, globs of rows.", show_default=False),
]
TestOption = Annotated[
    list[str] | None, typer.Option("--test", help="File with held-out rows; may be repeated. Else the recipe's tasks.")
]
TokenizerOption = Annotated[
    str | None, typer.Option(help="Of files: model whose tokenizer and template count the tokens.")
]
FormatOption = Annotated[str, typer.Option("--format", help="Format of the files, as in data.train.")]
MapOption = Annotated[
    list[str] | None, typer.Option("--map", help="field=column of the files, as in data.train; may be repeated.")
]
ObjectiveOption = Annotated[str, typer.Option(help="What files are for: sft; dpo (pairs), kto (rated), ...")]
LanguagesOption = Annotated[bool, typer.Option(help="Guess the language of each row (needs py3langid).")]


def stats(
    rows: RowsArgument = None,
    test: TestOption = None,
    tokenizer: TokenizerOption = None,
    format: FormatOption = "auto",  # noqa: A002
    map: MapOption = None,  # noqa: A002
    objective: ObjectiveOption = "sft",
    languages: LanguagesOption = True,
    examples: Annotated[int, typer.Option("--rows", "-n", help="Longest and shortest rows to name.", min=0)] = 3,
    as_json: JsonOption = False,
) -> None:
    """Counts, lengths, turns, roles, languages, tokens, tools, duplicates: of all rows and of each source."""
    from luthier.explore.stats import compute_stats
    from luthier.explore.stats_text import stats_lines

    explored, _ = _explored(rows, test, tokenizer, format, map, objective, run=None)
    found = compute_stats(explored, languages=languages, examples=examples)
    if as_json:
        emit_json(found)
        return
    for line in stats_lines(found):
        show(line)


def data_map(
    rows: RowsArgument = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("map.html"),
    run: Annotated[
        Path | None, typer.Option(help="Run folder: its scores by cluster. Without ROWS, the rows of its recipe.")
    ] = None,
    losses: Annotated[
        int, typer.Option(help="With --run: compute the loss of so many held-out rows with its model.", min=0)
    ] = 0,
    test: TestOption = None,
    tokenizer: TokenizerOption = None,
    format: FormatOption = "auto",  # noqa: A002
    map: MapOption = None,  # noqa: A002
    objective: ObjectiveOption = "sft",
    embedder: Annotated[str, typer.Option(help="tfidf, minilm, or the folder of an embedding model.")] = "tfidf",
    on: Annotated[str, typer.Option(help="What decides a row's place: conversation, prompt, answer.")] = "conversation",
    projection: Annotated[str, typer.Option(help="graph, or umap (needs umap-learn).")] = "graph",
    clusters: Annotated[int | None, typer.Option(help="Their number; else the best silhouette decides.", min=1)] = None,
    languages: LanguagesOption = True,
    most: Annotated[int, typer.Option("--rows", help="Most rows on the map; of more a seeded draw.", min=10)] = 200_000,
    seed: Annotated[int, typer.Option(help="Of every draw.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a page of an earlier time.")] = False,
    as_json: JsonOption = False,
) -> None:
    """One page with all rows on a map: clusters, outliers, test rows that training does not cover, loss by cluster."""
    from luthier.explore.chart import draw_chart, sampled
    from luthier.explore.page import render_map
    from luthier.explore.summary import chart_lines, chart_to_json
    from luthier.runtime.atomic import write_text

    _refuse_unknown(on=(on, ("conversation", "prompt", "answer")), projection=(projection, ("graph", "umap")))
    if out.suffix.lower() not in {".html", ".htm"}:
        raise RecipeError(code="C165", message=f"--out must end in .html; got {out}", hint=f"--out {out.stem}.html")
    if out.exists() and not force:
        raise RecipeError(code="C165", message=f"{out} exists", hint="another --out, or --force")
    if losses and run is None:
        raise RecipeError(code="C110", message="--losses needs the model of a run", hint="name it: --run RUN")
    explored, recipe = _explored(rows, test, tokenizer, format, map, objective, run=run)
    explored = sampled(explored, most, seed)
    scores = _scores(explored, recipe, run, losses, seed)
    chart = draw_chart(
        explored, embedder=embedder, on=on, projection=projection, clusters=clusters, seed=seed,
        languages=languages, scores=scores,
    )  # fmt: skip
    html = render_map(chart)
    write_text(out, html)
    if as_json:
        emit_json(chart_to_json(chart) | {"out": str(out), "bytes": len(html.encode("utf-8"))})
        return
    for line in chart_lines(chart):
        show(line)
    note(f"{out}: {len(html.encode('utf-8')) / 2**20:.1f} MiB; open it in a browser, it needs nothing else")


def _explored(
    rows: list[str] | None, test: list[str] | None, tokenizer: str | None, format: str,  # noqa: A002
    map: list[str] | None, objective: str, *, run: Path | None,  # noqa: A002
) -> tuple[Explored, Recipe | None]:  # fmt: skip
    """The rows, and the recipe if they are of one (or of a run)."""
    from luthier.explore.rows import explore_files, explore_recipe

    recipe = _recipe(rows, run)
    if recipe is not None:
        given = {"--tokenizer": tokenizer, "--format": format != "auto", "--map": map}
        given["--objective"] = objective != "sft"
        without = [name for name, value in given.items() if value]
        if without:
            message = f"{', '.join(without)}: the recipe decides that"
            raise RecipeError(code="C110", message=message, hint="change the recipe, or override a key: key=value")
        return explore_recipe(recipe, tests=test or []), recipe
    with hints_as_options():
        found = explore_files(
            rows or [], tests=test or [], format=format, map=columns_of(map or []), kind=kind_for(objective),
            tokenizer=tokenizer,
        )  # fmt: skip
    return found, None


def _recipe(rows: list[str] | None, run: Path | None) -> Recipe | None:
    """The recipe that is named first, or that of the run; None for files."""
    if rows and Path(rows[0]).suffix in {".yaml", ".yml"}:
        return load_with_overrides(Path(rows[0]), rows[1:]).recipe
    if rows:
        return None
    if run is None:
        raise RecipeError(code="C122", message="no rows are named", hint="a recipe, or files: `rows.jsonl`")
    from luthier.pipeline.rerun import recipe_of_run

    return recipe_of_run(run, to_run=True)


def _scores(explored: Explored, recipe: Recipe | None, run: Path | None, losses: int, seed: int) -> Any:
    if run is None:
        return {}
    from luthier.explore.losses import computed_losses, stored_scores
    from luthier.pipeline.rerun import recipe_of_run

    own = recipe_of_run(run)
    found = stored_scores(run, explored.items)
    if losses:
        if recipe is None:
            message = "--losses needs tokens as the run made them"
            raise RecipeError(code="C110", message=message, hint="name the recipe instead of files, or only --run")
        found |= computed_losses(own, run, explored.items, most=losses, seed=seed)
    if not found:
        note(f"{run} has no scores of these rows; --losses 500 computes the loss of held-out rows", style="yellow")
    return found


def _refuse_unknown(**given: tuple[str, tuple[str, ...]]) -> None:
    problems = [
        Problem(code="C103", message=f"--{name} must be one of {', '.join(allowed)}; got {value}")
        for name, (value, allowed) in given.items()
        if value not in allowed
    ]
    if problems:
        raise RecipeError(problems=problems)
