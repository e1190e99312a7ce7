"""Short runs that decide: each from the same start, over the same rows, with its own warm-up and decay.

Outcomes are kept in `short_runs.json` under everything they depend on, so that an interrupted search goes on
and no outcome of other settings is ever taken.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.runs.stages import differences
from luthier.runtime.atomic import write_json
from luthier.runtime.console import note, progress
from luthier.runtime.errors import RunFailed
from luthier.search.curve import Judge
from luthier.search.ladder import Outcome
from luthier.search.range_test import NOT_FINITE

if TYPE_CHECKING:
    from luthier.train.probe import Probe

__all__ = ["Kept", "short_run"]


def short_run(probe: Probe, rate: float, *, steps: int) -> Outcome:
    """One run with the recipe's schedule over `steps` steps and this peak rate, then back to the start.

    Raises:
        RunFailed: anything but divergence.
    """
    judge, started, tokens, taken = Judge(), time.monotonic(), 0, 0
    diverged: str | None = None
    eval_loss: float | None = None
    with probe.from_start(), progress(f"run at {rate:g}", steps, "steps") as bar:
        try:
            for done in probe.walk(rate, steps):
                taken += 1
                tokens += done.tokens
                diverged = judge.add(done.loss)
                if diverged:
                    break
                bar.advance(say=f"loss {judge.smoothed:.4f}")
            if diverged is None:
                eval_loss = probe.held_out(step=steps)
        except RunFailed as error:
            if error.problems[0].code not in NOT_FINITE:
                raise
            diverged, eval_loss = error.problems[0].message, None
    return Outcome(
        rate=rate, steps=taken, tokens=tokens, train_loss=judge.smoothed if judge.first is not None else None,
        eval_loss=eval_loss, diverged=diverged, seconds=round(time.monotonic() - started, 3),
    )  # fmt: skip


class Kept:
    """Finished short runs of one search folder."""

    def __init__(self, file: Path, identity: Mapping[str, Any]) -> None:
        """`identity`: everything besides the rate that an outcome depends on; others' outcomes are forgotten."""
        self.file = file
        self.identity: dict[str, Any] = json.loads(json.dumps(identity, allow_nan=False))
        self.outcomes: dict[float, Outcome] = {}
        try:
            stored = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            return
        changed = differences(stored.get("identity", {}), self.identity)
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            note(f"  earlier short runs do not count (changed: {'; '.join(changed[:3])}{more})", style="yellow")
            return
        self.outcomes = {item["rate"]: Outcome(**item) for item in stored["outcomes"]}

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome, on the disk too."""
        self.outcomes[outcome.rate] = outcome
        write_json(
            self.file, {"identity": self.identity, "outcomes": [asdict(item) for item in self.outcomes.values()]}
        )
