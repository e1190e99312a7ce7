"""Scores and comparisons as rich tables. Nothing is printed here; texts of models and data are never read as markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.evaluate.results import TaskResult, read_results

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "STYLE", "cells", "changed_rows", "changed_rows_table", "comparison_table", "contest_table", "pairs_table",
    "plain_table",
]  # fmt: skip

STYLE = {"better": "bold green", "worse": "bold red", "no evidence": "yellow"}


def comparison_table(comparison: Mapping[str, Any]) -> Table:
    """One line a task: before, after, difference with interval, p-value, verdict.

    Args:
        comparison: Content of `eval/comparison.json`.
    """
    table = plain_table(
        ("task", "left"), ("metric", "left"), ("rows", "right"), ("before", "right"), ("after", "right"),
        ("difference", "right"), ("interval", "right"), ("p", "right"), ("won", "right"), ("lost", "right"),
        ("verdict", "left"),
    )  # fmt: skip
    for task in comparison["tasks"]:
        line = cells(
            task["name"],
            task["metric"],
            f"{task['n']:,}",
            f"{task['before']:.3f}",
            f"{task['after']:.3f}",
            f"{task['delta']:+.3f}",
            f"[{task['low']:+.3f}, {task['high']:+.3f}]",
            f"{task['p_value']:.2g}",
            f"{task['wins']:,}",
            f"{task['losses']:,}",
            task["verdict"],
        )
        line[-1].stylize(STYLE.get(task["verdict"], ""))
        table.add_row(*line)
    return table


def contest_table(models: Sequence[Mapping[str, Any]]) -> Table:
    """One line a task and model, secondary scores below it.

    Args:
        models: Score files, all of the same tasks.
    """
    table = plain_table(
        ("task", "left"), ("model", "left"), ("metric", "left"), ("score", "right"), ("interval", "right"),
        ("rows", "right"), ("tokens/s", "right"),
    )  # fmt: skip
    for index, first in enumerate(models[0]["tasks"]):
        for model in models:
            task = model["tasks"][index]
            table.add_row(*cells(
                first["name"] if model is models[0] else "", str(model["model"]), task["metric"],
                f"{task['score']:.3f}",
                f"[{task['low']:.3f}, {task['high']:.3f}]", f"{task['n']:,}", f"{task['tokens_per_second']:.0f}",
            ))  # fmt: skip
            for name, value in task["secondary"].items():
                table.add_row(*cells("", "", name, f"{value:.3f}", "", "", ""))
    return table


def pairs_table(comparison: Mapping[str, Any]) -> Table:
    """One line a task and pair of models, with raw and corrected p-values.

    Args:
        comparison: From `versus.compare_many`.
    """
    table = plain_table(
        ("task", "left"), ("first", "left"), ("second", "left"), ("difference", "right"), ("interval", "right"),
        ("p", "right"), ("p, Holm", "right"), ("second is", "left"),
    )  # fmt: skip
    for pair in comparison["pairs"]:
        line = cells(
            pair["name"], pair["first"], pair["second"], f"{pair['delta']:+.3f}",
            f"[{pair['low']:+.3f}, {pair['high']:+.3f}]", f"{pair['p_value']:.2g}", f"{pair['p_adjusted']:.2g}",
            pair["verdict"],
        )  # fmt: skip
        line[-1].stylize(STYLE.get(pair["verdict"], ""))
        table.add_row(*line)
    return table


def changed_rows(task: Mapping[str, Any], before: TaskResult, after: TaskResult, *, limit: int) -> list[int]:
    """Which changed rows to show: gains and losses in turn, so that neither hides the other.

    Args:
        task: One of the `tasks` of `eval/comparison.json`.
        before: Scores of the first model.
        after: Scores of the second.
        limit: Most rows.
    """
    sizes = {index: after.rows[index]["score"] - before.rows[index]["score"] for index in task["changed"]}
    order = sorted(sizes, key=lambda index: (-abs(sizes[index]), index))
    up, down = [i for i in order if sizes[i] > 0], [i for i in order if sizes[i] < 0]
    mixed = [i for k in range(max(len(up), len(down))) for i in (*up[k : k + 1], *down[k : k + 1])]
    return mixed[:limit]


def changed_rows_table(before: Path, after: Path, comparison: Mapping[str, Any], *, limit: int = 3) -> Group:
    """Rows whose score changed, both answers side by side.

    Args:
        before: Score file of the first model.
        after: Score file of the second.
        comparison: Content of `eval/comparison.json`.
        limit: Most rows of each task.

    Raises:
        RunFailed: a score file is missing or damaged.
    """
    from rich.console import Group

    first = {result.name: result for result in read_results(before)}
    second = {result.name: result for result in read_results(after)}
    tables = []
    for task in comparison["tasks"]:
        shown = changed_rows(task, first[task["name"]], second[task["name"]], limit=limit)
        if shown:
            tables.append(_side_by_side(task, first[task["name"]], second[task["name"]], shown))
    return Group(*tables)


def _side_by_side(task: Mapping[str, Any], before: TaskResult, after: TaskResult, shown: Sequence[int]) -> Table:
    from rich.table import Table
    from rich.text import Text

    title = Text(f"{task['name']}: {len(shown)} of {len(task['changed'])} rows that changed")
    table = Table(title=title, title_justify="left", show_lines=True, expand=False)
    for name in ("row", "question", "reference", "before", "after"):
        table.add_column(name, overflow="fold", ratio=None if name == "row" else 1)
    for index in shown:
        old, new = before.rows[index], after.rows[index]
        line = cells(str(old["ref"]).rpartition("/")[2], _last_turn(old), old["reference"], _answer(old), _answer(new))
        for cell, row in zip(line[3:], (old, new), strict=True):
            gained = (new["score"] > old["score"]) == before.higher_is_better
            cell.stylize("green" if (row is new) == gained else "red")
        table.add_row(*line)
    return table


def _answer(row: Mapping[str, Any]) -> str:
    return f"{row['score']:.4g} nats" if row["output"] is None else _cut(row["output"] or "(empty)")


def _last_turn(row: Mapping[str, Any]) -> str:
    messages = row["messages"]
    return _cut(str(messages[-1].get("content") or "") if messages else row["prompt"])


def _cut(text: str, width: int = 400) -> str:
    return text if len(text) <= width else f"{text[: width // 2]} ... {text[-width // 2 :]}"


def plain_table(*columns: tuple[str, Any], title: str | None = None, lines: bool = False) -> Table:
    """A table without a frame: (heading, justification) of each column."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, pad_edge=False, title=None if title is None else Text(title), title_justify="left", show_lines=lines
    )
    for name, justify in columns:
        table.add_column(name, justify=justify, overflow="fold")
    return table


def cells(*values: str) -> list[Text]:
    """Cells without markup and without control characters (a model may write escape codes)."""
    from rich.text import Text

    return [
        Text("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in v)) for v in values
    ]
