"""`luthier data label`: judge rows in the terminal or in a page; say how far it is; write what was decided."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.common import JsonOption
from luthier.cli.label_decided import show_status, write_export
from luthier.cli.output import emit_json, show
from luthier.data.rows import number_of
from luthier.runtime.console import note
from luthier.runtime.errors import Problem, RecipeError

if TYPE_CHECKING:
    from luthier.annotate.items import Items
    from luthier.annotate.session import Desk

__all__ = ["label"]

_LISTED = 20
_OPTIONS = (
    (frozenset({"as_", "resolve", "info", "force"}), ("export",), "are for --export"),
    (frozenset({"order", "score", "around", "seed", "limit", "blind", "skipped"}), ("terminal", "page"),
     "are for judging"),
    (frozenset({"annotator"}), ("terminal", "page", "export"), "is for judging and --export"),
    (frozenset({"port"}), ("page",), "is for --page"),
)  # fmt: skip
"""Options, what they have an effect on, and that in words."""


def label(
    context: typer.Context,
    files: Annotated[list[str], typer.Argument(help="Files, folders or globs of rows.", show_default=False)],
    page: Annotated[bool, typer.Option("--page", help="In a browser on this machine.")] = False,
    port: Annotated[int, typer.Option(help="Port of the page; 0: a free one.", min=0, max=65535)] = 0,
    annotator: Annotated[
        str | None, typer.Option(help="Who decides (default: your login); of an export: whose decisions count.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Log of decisions; default: FILE.labels.")] = None,
    order: Annotated[str, typer.Option(help="file, random, uncertain, low or high (by --score).")] = "file",
    score: Annotated[str | None, typer.Option(help="Column with a number, for --order.")] = None,
    around: Annotated[float, typer.Option(help="The least certain score, for --order uncertain.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of the random order, and of which answer stands left.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Only the first rows of the order.", min=1)] = None,
    blind: Annotated[bool, typer.Option("--blind/--no-blind", help="Swap half of the answers of pairs.")] = True,
    skipped: Annotated[bool, typer.Option("--skipped", help="Show skipped rows again.")] = False,
    format: Annotated[str, typer.Option(help="Format of the rows, as in data.train.")] = "auto",  # noqa: A002
    map: Annotated[list[str] | None, typer.Option(help="field=column, as in data.train; may be repeated.")] = None,  # noqa: A002
    status: Annotated[bool, typer.Option("--status", help="Counts, speed, agreement, conflicts.")] = False,
    export: Annotated[Path | None, typer.Option(help="Write the rows decided for, as .jsonl.")] = None,
    as_: Annotated[str, typer.Option("--as", help="sft, preference or openai_preference.")] = "sft",
    resolve: Annotated[str, typer.Option(help="Where annotators differ: agree (left out) or majority.")] = "agree",
    info: Annotated[str | None, typer.Option(help="Column to add to an export: decision, tags, notes.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Accept, reject, edit or rank rows; every decision is on the disk before the next row is shown."""
    from luthier.annotate.items import read_items
    from luthier.annotate.labels import Labels
    from luthier.annotate.log import read_log
    from luthier.cli.columns import columns_of, hints_as_options

    _check(order=order, score=score, as_=as_, resolve=resolve, annotator=annotator,
           does="export" if export is not None else "status" if status else "page" if page else "terminal",
           things=sum((export is not None, status, page)), given=_given(context))  # fmt: skip
    path = log if log is not None else _log_of(files)
    with hints_as_options():
        items = read_items(files, format=format, map=columns_of(map or []))
    if not status and export is None:
        _work(items, path, page=page, port=port, annotator=annotator, skipped=skipped, as_json=as_json,
              order=order, score=score, around=around, seed=seed, limit=limit, blind=blind)  # fmt: skip
        return
    records, told = read_log(path)
    labels = Labels()
    labels.add(records)
    for line in told:
        note(line, style="yellow")
    if status:
        show_status(items, labels, as_json=as_json)
    if export is not None:
        write_export(items, labels, export, shape=as_, annotator=annotator, how=resolve, info=info, force=force,
                as_json=as_json)  # fmt: skip


def _given(context: typer.Context) -> set[str]:
    """Names of the options on the command line."""
    sources = ((name, context.get_parameter_source(name)) for name in context.params)
    return {name for name, source in sources if source is not None and source.name == "COMMANDLINE"}


def _check(*, order: str, score: str | None, as_: str, resolve: str, annotator: str | None, does: str, things: int,
           given: set[str]) -> None:  # fmt: skip
    from luthier.annotate.export import SHAPES
    from luthier.annotate.order import ORDERS
    from luthier.annotate.session import check_name

    choices = (("order", order, ORDERS), ("as", as_, SHAPES), ("resolve", resolve, ("agree", "majority")))
    wrong = [f"--{name} must be one of {', '.join(allowed)}; got {got}" for name, got, allowed in choices
             if got not in allowed]  # fmt: skip
    if (order in {"uncertain", "low", "high"}) != (score is not None):
        wrong.append("--score names the column of --order uncertain, low and high; give both or none")
    if things > 1:
        wrong.append("--page, --status and --export are three things to do; give one")
    else:
        wrong += [f"{_names(names)} {what}; got {_names(names & given)}" for names, modes, what in _OPTIONS
                  if does not in modes and names & given]  # fmt: skip
    if "around" in given and order != "uncertain":
        wrong.append("--around is for --order uncertain")
    problems = [Problem(code="D296", message=message) for message in wrong]
    if annotator is not None:
        try:
            check_name(annotator)
        except RecipeError as error:
            problems += [replace(problem, message=f"--annotator: {problem.message}") for problem in error.problems]
    if problems:
        raise RecipeError(problems=problems)


def _names(names: Set[str]) -> str:
    return ", ".join(f"--{name.rstrip('_')}" for name in sorted(names))


def _log_of(files: list[str]) -> Path:
    """Beside the first path. The ending is that of no file of rows, so a folder or a glob does not read it as rows."""
    from luthier.data.files import is_local

    first = Path(files[0].rstrip("/"))
    if any(character in files[0] for character in "*?[") or not is_local(files[0]):
        message = f"{files[0]} is no single path to put the log beside"
        raise RecipeError(code="D296", message=message, hint="--log FILE")
    return first.with_name(first.name + ".labels")


def _work(items: Items, path: Path, *, page: bool, port: int, annotator: str | None, skipped: bool, as_json: bool,
          order: Any, score: str | None, around: float, seed: int, limit: int | None, blind: bool) -> None:  # fmt: skip
    from luthier.annotate.log import Log
    from luthier.annotate.order import ordered
    from luthier.annotate.session import Desk

    first = set(items.distinct)
    places = [place for place in ordered(items.all, order, seed=seed, score=score, around=around) if place in first]
    with Log(path) as log:
        desk = Desk(items, log, places[:limit], seed=seed, blind=blind)
        for line in [*items.verdicts, *log.told, *_lost(desk)]:
            note(line)
        note(f"log of decisions: {path}")
        if page:
            _serve(desk, port=port, annotator=annotator or "", skipped=skipped, as_json=as_json)
        else:
            _terminal(desk, annotator if annotator is not None else _login(), skipped=skipped, as_json=as_json)


def _terminal(desk: Desk, annotator: str, *, skipped: bool, as_json: bool) -> None:
    from luthier.annotate.session import Session
    from luthier.annotate.terminal import run_keys, run_lines

    session = Session(desk, annotator, skipped_too=skipped)
    refused = 0
    if sys.stdin.isatty() and not as_json:
        run_keys(session, show)
    else:
        refused = run_lines(session, sys.stdin, sys.stderr if as_json else sys.stdout)
    counts = session.counts()
    if as_json:
        emit_json({"annotator": session.annotator, "log": str(desk.log.path), **counts, "refused": refused})
    else:
        note(f"{counts['decided']:,} of {number_of(counts['rows'], 'row')} decided on by {session.annotator}")
    if refused:
        raise typer.Exit(2)


def _serve(desk: Desk, *, port: int, annotator: str, skipped: bool, as_json: bool) -> None:
    from luthier.annotate.server import Page, serve

    server, address = serve(Page(desk, annotator=annotator, skipped_too=skipped), port=port)
    emit_json({"address": address, "log": str(desk.log.path)}) if as_json else show(address)
    sys.stdout.flush()
    note("open it in a browser on this machine (another machine: ssh -L); the address is the key to it. Ctrl-C ends it")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        note("ended; every decision is in the log")
    finally:
        server.server_close()


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise RecipeError(code="D294", message="your login has no name", hint="--annotator NAME") from error


def _lost(desk: Desk) -> list[str]:
    """What is to be told of decisions whose row changed or is gone."""
    lines = [
        f"{record.file}:{record.line} changed since {record.annotator} decided on it ({record.action}): shown again"
        for record in list(desk.changed.values())[:_LISTED]
    ]
    if len(desk.changed) > _LISTED:
        lines.append(f"{len(desk.changed):,} such rows in all")
    if desk.gone:
        lines.append(f"{number_of(len(desk.gone), 'decision')} on rows that are in the files no more; kept in the log")
    return lines
