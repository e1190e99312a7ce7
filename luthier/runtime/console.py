"""Everything a person reads goes through here, on stderr; stdout is for results and `--json`.

On a terminal: rich progress bars with the time left. In a pipe: one plain line at the start,
at every tenth of the work and at the end, no carriage returns.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from luthier.runtime.env import read_env

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Bar", "console", "note", "progress", "quiet_progress", "set_quiet"]

_quiet = False


@cache
def console() -> Console:
    """The one console for people, on stderr."""
    from rich.console import Console

    return Console(
        stderr=True, highlight=False, emoji=False, no_color=read_env().no_color or None, soft_wrap=True
    )  # fmt: skip


def set_quiet(quiet: bool) -> None:
    """Print nothing for people (`--quiet`); errors and results still appear."""
    global _quiet
    _quiet = quiet


def note(text: str = "", *, style: str | None = None) -> None:
    """Print one line for people, from rank 0 only. The text is data: markup in it is not interpreted."""
    if not _quiet and read_env().rank == 0:
        console().print(text, style=style, markup=False)


@contextmanager
def quiet_progress() -> Iterator[None]:
    """Print nothing for people inside: for work that has a bar of its own around it."""
    before = _quiet
    set_quiet(True)
    try:
        yield
    finally:
        set_quiet(before)


class Bar:
    """Progress of one piece of work; `advance` with the units done, `say` what changed."""

    def __init__(self, label: str, total: float, unit: str) -> None:
        self.label, self.total, self.unit = label, max(total, 1e-9), unit
        self.done = 0.0
        self.started = time.monotonic()

    def advance(self, units: float = 1.0, *, say: str = "") -> None:
        """Record `units` more of the work as done; `say` is shown beside the bar."""
        self.done += units

    def remaining_seconds(self) -> float:
        """Time left at the average pace so far."""
        elapsed = time.monotonic() - self.started
        return elapsed / self.done * max(self.total - self.done, 0.0) if self.done else float("nan")


class _PlainBar(Bar):
    def __init__(self, label: str, total: float, unit: str) -> None:
        super().__init__(label, total, unit)
        self._next_tenth = 0.1

    def advance(self, units: float = 1.0, *, say: str = "") -> None:
        super().advance(units)
        share = self.done / self.total
        if share >= self._next_tenth - 1e-9:
            self._next_tenth = int(share * 10 + 1e-9) / 10 + 0.1
            left = self.remaining_seconds()
            whole = float(self.total).is_integer()  # of things that are counted, parts are not said
            done = f"{int(self.done + 1e-9) if whole else round(self.done, 1):g}/{self.total:g} {self.unit}"
            note(f"{self.label}: {done}, {left:.0f} s left{'  ' + say if say else ''}")


@contextmanager
def progress(label: str, total: float, unit: str = "rows", *, above: float | None = None) -> Iterator[Bar]:
    """Show the progress of `total` units of work; of no more than `above` units nothing is shown.

    Yields a `Bar`; nested bars stand below each other on a terminal.
    """
    if _quiet or read_env().rank != 0 or (above is not None and total <= above):
        yield Bar(label, total, unit)
    elif not sys.stderr.isatty():
        yield _PlainBar(label, total, unit)
    else:
        with _rich_bar(label, total, unit) as bar:
            yield bar


@contextmanager
def _rich_bar(label: str, total: float, unit: str) -> Iterator[Bar]:
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(bar_width=28),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn(unit, markup=False),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("ETA"),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[say]}", markup=False),
    )
    with rich_progress.Progress(*columns, console=console(), transient=False) as display:
        task = display.add_task(label, total=total, say="")

        class RichBar(Bar):
            def advance(self, units: float = 1.0, *, say: str = "") -> None:
                super().advance(units)
                display.update(task, advance=units)
                if say:
                    display.update(task, say=say)

        yield RichBar(label, total, unit)
