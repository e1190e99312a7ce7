"""Stands in for `python -m luthier` where a test starts a run: it owns its folder, logs, and heeds signals as a run
does (`luthier.runtime.signals`), in a tenth of a second instead of ten."""

import sys
import time
from pathlib import Path

from luthier.recipe.load import load_recipe
from luthier.runs.folder import RunFolder
from luthier.runtime.errors import LuthierError
from luthier.runtime.signals import stop_on_signals


def main(arguments: list[str]) -> int:
    assert arguments[0] == "run"
    overrides = [word for word in arguments[2:] if "=" in word]
    try:
        loaded = load_recipe(Path(arguments[1]), overrides)
    except LuthierError as error:
        print(error.problems[0].render())
        return 2
    run = RunFolder(Path(loaded.recipe.output_dir))
    with stop_on_signals() as stop, run.lock():
        (run.path / "recipe.yaml").write_text(loaded.text, "utf-8")
        run.event("stage_started", stage="train", reason="not done yet")
        step = 0
        while not stop.requested and step < 2_000:
            step += 1
            run.metric(step=step, loss=2.0 / step, grad_norm=1.0)
            time.sleep(0.01)
        while (run.path / "hang").exists():
            time.sleep(0.05)
        run.event("interrupted", step=step)
        run.event("failed", code="R741", message="stopped by a signal", exit_code=130)
    return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
