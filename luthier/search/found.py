"""The result of `lr-find`: for people, as JSON, as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.report.scale_chart import Axis, Mark, Series, scale_chart, standalone
from luthier.runtime.atomic import write_json, write_text
from luthier.search.curve import Curve
from luthier.search.ladder import FLAT, Choice, Outcome
from luthier.search.textplot import text_plot

__all__ = ["Found", "curve_text", "found_lines", "write_found"]

JSON_FILE, RANGE_FILE, RUNS_FILE = "lr_find.json", "range_test.svg", "short_runs.svg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search came to."""

    recipe: str
    model: str
    method: str
    objective: str
    tokens_per_step: int
    steps: int
    """Of a short run."""
    planned_steps: int
    """Of the recipe."""
    start_loss: float
    """Held-out loss before the first step."""
    eval_rows: int
    borrowed: float | None
    """Share of the training rows that was held out for the search; None: the recipe's own validation rows."""
    rule: float
    rule_reason: str
    """What `auto` gives, and why."""
    asked: float | None
    """The rate in the recipe; None: `auto`."""
    curve: Curve
    proposal: float | None
    """Of the range test."""
    outcomes: tuple[Outcome, ...]
    """By rate."""
    choice: Choice
    left_out: str | None
    """Why the search ended early, if it did."""
    folder: Path

    @property
    def line(self) -> str | None:
        """What to put into the recipe; None if nothing was found."""
        return f"learning_rate: {self.choice.learning_rate:g}" if self.choice.usable else None

    @property
    def verdict(self) -> str:
        """One sentence."""
        choice = self.choice
        if choice.eval_loss is None:
            return f"every rate diverged, down to {choice.learning_rate:g}: no rate is proposed"
        if choice.gain is not None and choice.gain <= 0:
            return f"no rate lowers the held-out loss of the start ({self.start_loss:.4f}): no rate is proposed"
        if not choice.minimum:
            why = f" ({self.left_out})" if self.left_out else ""
            return (
                f"{choice.learning_rate:g} is the {choice.edge} rate tried and still the best, so it is no minimum{why}"
            )
        low, high = choice.flat
        flat = f"{low:g} to {high:g}" if low < high else "no neighbour"
        return (
            f"{choice.learning_rate:g} has the lowest held-out loss, {choice.eval_loss:.4f}; "
            f"within {1 - FLAT:.0%} of its gain: {flat}"
        )

    def to_json(self) -> dict[str, Any]:
        """Everything; rates that diverged have null losses."""
        names = [name for name in self.__slots__ if name not in ("curve", "outcomes", "choice", "folder")]
        return {
            **{name: getattr(self, name) for name in names},
            "range_test": self.curve.to_json(),
            "runs": [outcome.to_json() for outcome in self.outcomes],
            "choice": {**self.choice.to_json(), "usable": self.choice.usable, "flat": list(self.choice.flat)},
            "verdict": self.verdict, "line": self.line, "folder": str(self.folder),
        }  # fmt: skip


def found_lines(found: Found) -> list[str]:
    """What belongs beside table and curve: verdict, neighbourhood, the rule, what the budget means."""
    choice = found.choice
    lines = [found.verdict]
    kept = ", ".join(f"{rate} keeps {share:.0%}" for rate, share in choice.kept.items())
    if kept:
        lines.append(f"gain of {choice.gain:.4f} over the start: {kept}")
    factor = choice.learning_rate / found.rule
    lines.append(f"the rule of `auto` gives {found.rule:g}: {_times(factor)}")
    if found.asked is not None:
        low, high = choice.flat
        where = "inside" if low <= found.asked <= high else "outside"
        lines.append(f"the recipe says {found.asked:g}, {where} the flat part")
    if found.steps < found.planned_steps:
        lines.append(
            f"decided by {found.steps} of the recipe's {found.planned_steps:,} steps; "
            "a longer run may want a lower rate, rarely a higher one"
        )
    if found.borrowed is not None:
        lines.append(f"{found.borrowed:.0%} of the training rows were held out for this search; a run uses them all")
    return lines


def _times(factor: float) -> str:
    if 0.95 <= factor <= 1.05:
        return "the same"
    return f"{factor:.2g} times that was best" if factor > 1 else f"1/{1 / factor:.2g} of that was best"


def curve_text(found: Found) -> str:
    """The range test for a terminal."""
    marks = {"R": found.rule}
    if found.proposal is not None:
        marks["P"] = found.proposal
    points = [(point.rate, point.smoothed) for point in found.curve.points]
    return text_plot(points, marks=marks, label="smoothed training loss over learning rate (P proposal, R rule)")


def write_found(folder: Path, found: Found) -> None:
    """`lr_find.json`, `range_test.svg` and `short_runs.svg`.

    Raises:
        EnvironmentProblem: the folder cannot be written.
    """
    write_json(folder / JSON_FILE, found.to_json())
    axis = Axis(kind="log", label="learning rate")
    points = found.curve.points
    marks = [Mark(at=found.rule, word="rule")]
    marks += [Mark(at=found.proposal, word="proposal")] if found.proposal is not None else []
    if points:
        drawn = [
            Series(name="loss", points=[(p.rate, p.loss) for p in points], kind="raw", joined=True, dots=False),
            Series(
                name="smoothed", points=[(p.rate, p.smoothed) for p in points], kind="main", joined=True, dots=False
            ),
        ]
        chart = scale_chart(drawn, title="Range test", x=axis, y_label="training loss", marks=marks)
        write_text(folder / RANGE_FILE, standalone(chart))
    good = [(item.rate, item.eval_loss) for item in found.outcomes if item.eval_loss is not None]
    if good:
        best = [(rate, loss) for rate, loss in good if rate == found.choice.learning_rate]
        series = [
            Series(name="held-out loss", points=good, kind="main", joined=True, dots=False),
            Series(name="held-out loss", points=[item for item in good if item not in best], kind="plain"),
            Series(name="best held-out loss", points=best, kind="best"),
        ]
        chart = scale_chart(
            series, title="Short runs", x=axis, y_label="held-out loss", marks=[Mark(at=found.rule, word="rule")]
        )
        write_text(folder / RUNS_FILE, standalone(chart))
