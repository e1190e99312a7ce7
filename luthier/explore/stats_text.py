"""Statistics as lines for a terminal: numbers, and bars made of characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.rows import number_of

__all__ = ["bar_lines", "histogram_lines", "stats_lines"]

_WIDTH = 32
_MOST_BARS = 10
_EIGHTHS = " ▏▎▍▌▋▊▉"


def stats_lines(found: Mapping[str, Any]) -> list[Any]:
    """What `luthier data stats` prints; strings and rich tables."""
    lines: list[Any] = [_headline(found), _sources(found)]
    lines += _section("length of a row in characters", histogram_lines(found["characters"]["rows"]))
    if found["tokens"]:
        lines += _section(_tokens_title(found["tokens"]), histogram_lines(found["tokens"]["rows"]))
    lines += _section(f"messages a row (mean {found['turns']['mean']:.2f})", bar_lines(found["turns"]["counts"]))
    roles = found["characters"]["by_role"]
    lines += ["", _roles(found["roles"], roles)]
    if found["languages"]:
        lines += _section("languages (guessed)", bar_lines(found["languages"]))
    lines += ["", *_facts(found)]
    return [*lines, *_extremes(found)]


def bar_lines(counts: Mapping[str, int]) -> list[str]:
    """One bar for each name, of the length of its count; the rest of many in one line."""
    names = list(counts)
    if len(names) > _MOST_BARS:
        names = names[: _MOST_BARS - 1]
    most = max((counts[name] for name in counts), default=0)
    wide = max((len(name) for name in names), default=0)
    lines = [f"  {name:>{wide}} {_bar(counts[name], most)} {counts[name]:,}" for name in names]
    rest = len(counts) - len(names)
    left = sum(counts.values()) - sum(counts[name] for name in names)
    return [*lines, f"  {rest:,} more: {left:,}"] if rest else lines


def histogram_lines(summary: Mapping[str, Any]) -> list[str]:
    """Counts over ranges; ranges of few rows at the long end are put together."""
    bins = [tuple(entry) for entry in summary["histogram"]]
    if not bins:
        return ["  no rows"]
    most = max(count for *_, count in bins)
    wide = len(f"{bins[-1][1]:,}")
    lines: list[str] = []
    for low, high, count in bins:
        if count or len(lines) < 1:
            lines.append(f"  {low:>{wide},} to {high - 1:>{wide},} {_bar(count, most)} {count:,}")
    low, middle, high, most = (f"{summary[name]:,}" for name in ("min", "p50", "p95", "max"))
    return [*lines, f"  {low} shortest, {middle} median, {high} at 95%, {most} longest"]


def _bar(count: int, most: int) -> str:
    eighths = round(count / most * _WIDTH * 8) if most else 0
    if count and not eighths:
        eighths = 1
    full, part = divmod(eighths, 8)
    text = "█" * full + (_EIGHTHS[part] if part else "")
    return f"{text:<{_WIDTH}}"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", title, *lines]


def _headline(found: Mapping[str, Any]) -> str:
    splits = ", ".join(f"{count:,} {name}" for name, count in found["splits"].items())
    kinds = ", ".join(f"{count:,} {name}" for name, count in found["kinds"].items())
    return f"{number_of(found['rows'], 'row')} ({splits}); {kinds}"


def _tokens_title(tokens: Mapping[str, Any]) -> str:
    title = f"length of a row in tokens ({tokens['total']:,} in all, {tokens['trained']:,} trained: "
    title += f"{tokens['trained_share']:.1%}"
    return f"{title}; max_length {tokens['max_length']:,})" if tokens["max_length"] else f"{title})"


def _sources(found: Mapping[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    tokens = bool(found["tokens"])
    for name in ("source", "rows", "dropped", "characters", *(("tokens", "trained") if tokens else ())):
        table.add_column(name, justify="left" if name == "source" else "right", overflow="fold")
    for entry in found["sources"]:
        cells = [entry["rows"], entry["dropped"], entry["characters"]]
        cells += [entry["tokens"], entry["trained"]] if tokens else []
        table.add_row(Text(entry["source"]), *(f"{value:,}" for value in cells))
    return table


def _roles(counts: Mapping[str, int], lengths: Mapping[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table("role", box=None, pad_edge=False)
    for name in ("turns", "characters", "median", "at 95%", "longest"):
        table.add_column(name, justify="right")
    for role, own in lengths.items():
        cells = (counts.get(role, 0), own["total"], own["p50"], own["p95"], own["max"])
        table.add_row(Text(role), *(f"{value:,}" for value in cells))
    return table


def _facts(found: Mapping[str, Any]) -> list[str]:
    system, tools, duplicates = found["system"], found["tools"], found["duplicates"]
    lines = [f"system messages: {system['rows']:,} rows, {system['different']:,} different"]
    lines.append(
        f"tools: {tools['rows_with_tools']:,} rows have tools, {tools['calls']:,} calls in "
        f"{tools['rows_with_calls']:,} rows; reasoning in {tools['rows_with_reasoning']:,} rows"
    )
    across = f", {duplicates['across_splits']:,} of them across splits" if duplicates["rows"] else ""
    lines.append(f"exact duplicates: {duplicates['rows']:,}{across}")
    lines += [f"  {item['row']} repeats {item['of']}" for item in duplicates["examples"][:3]]
    lines += [f"dropped, {reason}: {count:,}" for reason, count in found["dropped"].items()]
    return lines


def _extremes(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for name in ("longest", "shortest"):
        for entry in found[name]:
            tokens = f", {entry['tokens']:,} tokens" if "tokens" in entry else ""
            lines.append(f"{name}: {entry['ref']} ({entry['characters']:,} characters{tokens})")
    return lines
