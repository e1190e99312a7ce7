"""A `luthier run` without a model: writes the same run folder in the same order, and is up in a tenth of a second.

Used where processes are killed many times; the same tests run with the real one, marked slow. Its "weights" are the
steps that were done, in order, so a step that was lost or done twice shows in `final/`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from luthier.recipe.yaml12 import parse_yaml
from luthier.runs.folder import RunFolder
from luthier.runtime.atomic import atomic_folder, write_json

asked = False


def main() -> int:
    def ask(number, frame):
        global asked
        asked = True

    value = parse_yaml(Path(sys.argv[1]).read_text(), origin="recipe").value
    behave = value.get("stand_in", {})
    if "exit" in behave:
        sys.stdout.write(json.dumps(behave["say"]))
        return behave["exit"]
    run, total = RunFolder(Path(value["output_dir"])), value["train"]["max_steps"]
    signal.signal(signal.SIGTERM, signal.SIG_IGN if behave.get("deaf") else ask)
    with run.lock():
        (run.path / "recipe.yaml").write_text("x")
        _train(run, total, behave)
    sys.stdout.write(json.dumps({"ok": True}))
    return 0


def _train(run: RunFolder, total: int, behave: dict) -> None:
    checkpoints = sorted((run.path / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    done = json.loads((checkpoints[-1] / "state.json").read_text()) if checkpoints else []
    if run.stage("train") is None:
        run.event("stage_started", stage="train", reason="not done yet")
        run.roll_back("metrics.jsonl", step=len(done))
        write_json(run.path / "plan.json", {"time": {"steps": total, "seconds_per_step": 0.02}})
        run.event("training_started", step=len(done), total_steps=total, resumed_from=len(done) or None)
        if done:
            _serve(run, done)
        while len(done) < total:
            if asked:
                _save(run, done)
                run.event("interrupted", step=len(done))
                os._exit(130)
            time.sleep(behave.get("seconds", 0.02))
            done.append(len(done) + 1)
            step = done[-1]
            if behave.get("dies_at") == step:
                os.kill(os.getpid(), signal.SIGKILL)
            run.metric(step=step, loss=1 / step, token_accuracy=step / 1000, seconds=step * 0.02)
            if step % 2 == 0:
                run.metric(step=step, eval_loss=2 / step, eval_token_accuracy=step / 2000)
                _save(run, done)
        with atomic_folder(run.path / "final") as folder:
            (folder / "weights.json").write_text(json.dumps(done))
        run.finish_stage("train", depends_on={}, result={"tokens": 100 * total}, seconds=1.0)
    run.finish_stage("report", depends_on={}, result={}, seconds=0.1)


def _save(run: RunFolder, done: list[int]) -> None:
    if not done or (run.path / f"checkpoints/step-{done[-1]}").is_dir():
        return
    with atomic_folder(run.path / f"checkpoints/step-{done[-1]}") as folder:
        (folder / "state.json").write_text(json.dumps(done))
    run.event("checkpoint_saved", step=done[-1], removed=[])
    _serve(run, done)


def _serve(run: RunFolder, done: list[int]) -> None:
    if not (run.path / f"served/step-{done[-1]}").is_dir():
        with atomic_folder(run.path / f"served/step-{done[-1]}") as folder:
            (folder / "weights.json").write_text(json.dumps(done))
    run.event("checkpoint_served", step=done[-1], path=f"served/step-{done[-1]}")


if __name__ == "__main__":
    sys.exit(main())
