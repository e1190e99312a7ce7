"""A comparison of runs as rich tables. Values come from `Comparison.as_json`; texts are never read as markup."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from luthier.evaluate.tables import STYLE, cells, plain_table

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["comparison_tables", "shown_value"]

_MOST_PATTERNS = 12
_MOST_COLUMNS = 5
Json = Mapping[str, Any]


def comparison_tables(value: Json, *, rows: int) -> Iterator[Table | str]:
    """Tables and lines in reading order.

    Args:
        value: From `Comparison.as_json`.
        rows: Most changed rows to show for each task.
    """
    yield _runs_table(value)
    if any(run["scores"] for run in value["runs"]):
        yield ""
        yield _scores_table(value)
    for title, differences in (("Settings that differ", value["settings"]), ("Beside the recipe", value["facts"])):
        yield ""
        yield _differences_table(title, differences, value["runs"]) if differences else f"{title}: none"
    unresolved = [run["name"] for run in value["runs"] if not run["resolved"]]
    if unresolved:
        yield f"Not resolved yet, so as their recipes say: {', '.join(unresolved)}"
    yield ""
    if value["pairs"]:
        yield _pairs_table(value)
    yield from _not_tested(value)
    for changed in value["changed"]:
        yield ""
        yield from _changed(changed, value["runs"], rows)


def shown_value(value: Any) -> str:
    """A setting as a person would write it."""
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text or ("[]" if isinstance(value, list) else '""')


def _runs_table(value: Json) -> Table:
    table = plain_table(
        ("", "left"), ("run", "left"), ("base", "left"), ("method", "left"), ("objective", "left"), ("steps", "right"),
        ("loss", "right"), ("held-out", "right"), ("tokens/s", "right"), ("peak GiB", "right"), ("training", "right"),
        ("all stages", "right"),
    )  # fmt: skip
    for run in value["runs"]:
        of = run["numbers"]
        held_out = of["best_eval_loss"] if of["best_eval_loss"] is not None else of["eval_loss"]
        table.add_row(*cells(
            run["letter"], run["name"], run["base"], run["method"], run["objective"], _number(of["steps"], ",d"),
            _number(of["final_loss"], ".4f"), _number(held_out, ".4f"), _number(of["tokens_per_second"], ",.0f"),
            _number(of["peak_bytes"] and of["peak_bytes"] / 2**30, ".2f"), _number(run["train_seconds"], ",.0f", " s"),
            _number(run["seconds"], ",.0f", " s"),
        ))  # fmt: skip
    return table


def _number(value: Any, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _scores_table(value: Json) -> Table:
    table = plain_table(
        ("task", "left"), ("metric", "left"), ("", "left"), ("run", "left"), ("rows", "right"), ("base", "right"),
        ("tuned", "right"), ("interval", "right"), ("against its base", "left"),
    )  # fmt: skip
    keys = dict.fromkeys((score["task"], score["metric"]) for run in value["runs"] for score in run["scores"])
    for key in keys:
        heading = key
        for run in value["runs"]:
            for score in run["scores"]:
                if (score["task"], score["metric"]) != key:
                    continue
                interval = "" if score["low"] is None else f"[{score['low']:.3f}, {score['high']:.3f}]"
                line = cells(
                    *heading, run["letter"], run["name"], f"{score['n']:,}", _number(score["before"], ".3f"),
                    _number(score["score"], ".3f"), interval, score["verdict"] or "-",
                )  # fmt: skip
                line[-1].stylize(STYLE.get(score["verdict"], ""))
                table.add_row(*line)
                heading = ("", "")
    return table


def _differences_table(title: str, differences: Sequence[Json], runs: Sequence[Json]) -> Table:
    """A column a run; of many runs one column, the runs behind each value."""
    letters = [run["letter"] for run in runs]
    wide = len(runs) <= _MOST_COLUMNS
    headings = letters if wide else ["values"]
    table = plain_table(("setting", "left"), *((name, "left") for name in headings), ("why", "left"), title=title)
    for item in differences:
        texts = [text if len(text) <= 36 else f"{text[:33]}..." for text in map(shown_value, item["values"])]
        why = "; ".join(f"{who}: {reason}" for reason, who in _by_text(item["reasons"], letters) if reason)
        if not wide:
            texts = ["; ".join(f"{who}: {text}" for text, who in _by_text(texts, letters))]
        table.add_row(*cells(item["key"], *texts, why))
    return table


def _by_text(texts: Sequence[str], letters: Sequence[str]) -> list[tuple[str, str]]:
    """Equal texts once, with the letters of their runs."""
    return [
        (text, "".join(letter for letter, other in zip(letters, texts, strict=True) if other == text))
        for text in dict.fromkeys(texts)
    ]


def _pairs_table(value: Json) -> Table:
    percent = f"{value['confidence'] * 100:g}"
    table = plain_table(
        ("task", "left"), ("first", "left"), ("second", "left"), ("difference", "right"), ("interval", "right"),
        ("p", "right"), ("p, Holm", "right"), ("won", "right"), ("lost", "right"), ("second is", "left"),
        title=f"Paired tests, {value['tests']} in all; corrected words hold together at {percent}%",
    )  # fmt: skip
    for pair in value["pairs"]:
        line = cells(
            pair["task"], pair["first"], pair["second"], f"{pair['delta']:+.3f}",
            f"[{pair['low']:+.3f}, {pair['high']:+.3f}]", f"{pair['p_value']:.2g}", f"{pair['p_adjusted']:.2g}",
            f"{pair['wins']:,}", f"{pair['losses']:,}", pair["verdict"],
        )  # fmt: skip
        line[-1].stylize(STYLE.get(pair["verdict"], ""))
        table.add_row(*line)
    return table


def _not_tested(value: Json) -> Iterator[str]:
    if not value["pairs"] and not value["not_tested"]:
        yield "No run was scored: nothing to test"
    for item in value["not_tested"]:
        against = f" against {', '.join(item['against'])}" if item["against"] else ""
        yield f"Not tested: {item['task']}, {', '.join(item['runs'])}{against}: {'; '.join(item['reasons'])}"


def _changed(changed: Json, runs: Sequence[Json], rows: int) -> Iterator[Table | str]:
    letter = {run["name"]: run["letter"] for run in runs}
    count = f"{changed['task']}: {len(changed['indices']):,} of {changed['rows']:,} rows do not end alike"
    if not changed["indices"]:
        yield count
        return
    if changed["right_or_wrong"]:
        table = plain_table(("right", "left"), ("wrong", "left"), ("rows", "right"), title=count)
        for pattern in changed["patterns"][:_MOST_PATTERNS]:
            named = ["".join(letter[name] for name in pattern[side]) for side in ("right", "wrong")]
            table.add_row(*cells(*named, f"{pattern['rows']:,}"))
        yield table
        if more := len(changed["patterns"]) - _MOST_PATTERNS:
            yield f"{more} more patterns" if more > 0 else ""
    else:
        yield count
    if rows:
        yield _rows_table(changed, letter, rows)


def _rows_table(changed: Json, letter: Mapping[str, str], rows: int) -> Table:
    table = plain_table(("row", "left"), ("question", "left"), ("reference", "left"), ("answers", "left"), lines=True)
    for row in changed["shown"][:rows]:
        said = [
            f"{letter[one['run']]} {_mark(one)} {_cut(one['answer']) if one['answer'] is not None else ''}".rstrip()
            for one in row["outcomes"]
        ]
        name = row["ref"].rpartition("/")[2]
        table.add_row(*cells(name, _cut(row["question"]), _cut(row["reference"] or ""), "\n".join(said)))
    return table


def _mark(outcome: Json) -> str:
    return f"{outcome['score']:.4g}" if outcome["right"] is None else "right" if outcome["right"] else "wrong"


def _cut(text: str, width: int = 240) -> str:
    return text if len(text) <= width else f"{text[: width // 2]} ... {text[-width // 2 :]}"
