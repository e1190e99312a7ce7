"""Go on from the newest valid checkpoint, or say exactly why not.

A checkpoint is resumed only by the run that wrote it: same data, base, recipe and batch shape,
compared key by key. Then the rest of the run is, bit for bit, what it would have been (one thread,
or deterministic kernels). Another number of processes may go on as long as a step has the same
sequences: the sums are the same, their rounding and the draws of dropout are not. Another library
version only warns: it can change rounding, not meaning.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from luthier.runs.folder import RunFolder
from luthier.runs.manifest import library_versions
from luthier.runs.stages import differences
from luthier.runtime.atomic import explain_os_error, sweep
from luthier.runtime.console import note
from luthier.runtime.errors import Problem, RecipeError, RunFailed
from luthier.train.checkpoint import Checkpoint, checkpoints, read_state, verify

__all__ = ["Resumed", "find", "here", "roll_back_metrics", "run_identity", "start_anew", "versions"]

VERSIONS = ("python", "luthier", "torch", "transformers", "peft", "accelerate", "bitsandbytes")
_DEALING = ("per_device_train_batch_size", "gradient_accumulation_steps")
RESTART_HINT = "undo the change, choose another `output_dir`, or start this run anew with `--restart`"


@dataclass(frozen=True, slots=True)
class Resumed:
    """A checkpoint to go on from."""

    checkpoint: Checkpoint
    state: dict[str, Any]


def run_identity(
    fingerprint: Mapping[str, Any], *, world_size: int, total_steps: int, parts: int = 1
) -> dict[str, Any]:
    """Everything that decides the trajectory, as JSON.

    The number of processes, and of those that share a sequence (`parts`), belong to it; `_require_same` lets others go
    on where a step stays the same set.
    """
    whole = {**fingerprint, "processes": world_size, "total_steps": total_steps}
    if parts > 1:
        whole["processes_of_a_sequence"] = parts
    identity: dict[str, Any] = json.loads(json.dumps(whole, allow_nan=False))
    return identity


def find(run: RunFolder, identity: Mapping[str, Any]) -> Resumed | None:
    """The newest valid checkpoint of this very run; None when there is no checkpoint at all.

    Damaged checkpoints are reported by name (message and event) and passed over.

    Raises:
        RunFailed: there are checkpoints, and all of them are damaged.
        RecipeError: the newest valid one belongs to a run with other data, model or settings.
    """
    folder = run.path / "checkpoints"
    found = checkpoints(folder)
    refused: list[Problem] = []
    for checkpoint in reversed(found):
        problems = verify(checkpoint.path)
        if not problems:
            state = read_state(checkpoint.path)
            _require_same(identity, state["identity"], checkpoint)
            _say_processes(run, identity, state["identity"])
            _compare_versions(run, state["versions"])
            return Resumed(checkpoint, state)
        refused += problems
        run.event("checkpoint_refused", step=checkpoint.step, problems=[problem.message for problem in problems])
        for problem in problems:
            note(f"  not resuming from step {checkpoint.step}: {problem.message}", style="yellow")
    if refused:
        last = Problem(
            code="T431",
            message=f"none of the {len(found)} checkpoints in {folder} is whole",
            hint="start this run anew with `--restart`",
        )
        raise RunFailed(problems=[*refused, last])
    return None


def here(resumed: Resumed | None, run: RunFolder) -> Resumed | None:
    """What process 0 found, in the run folder of this machine, which may have another place."""
    if resumed is None:
        return None
    return replace(
        resumed, checkpoint=Checkpoint(resumed.checkpoint.step, run.path / "checkpoints" / resumed.checkpoint.path.name)
    )


def start_anew(run: RunFolder) -> None:
    """Forget an earlier run of this folder: its checkpoints and its metrics (`--restart`).

    Raises:
        EnvironmentProblem: they cannot be removed.
    """
    folder = run.path / "checkpoints"
    try:
        if folder.exists():
            shutil.rmtree(folder)
            run.event("checkpoints_removed", reason="restart")
        if (run.path / "served").exists():
            shutil.rmtree(run.path / "served")
        (run.path / "metrics.jsonl").unlink(missing_ok=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error


def roll_back_metrics(run: RunFolder, *, step: int, eval_step: int) -> None:
    """Drop metric lines of steps after `step` (they will be run again) and a torn last line.

    A run that was stopped between a step and its validation validates when it goes on: if it is stopped again before
    the next checkpoint, it does so once more. So lines of validation after `eval_step` are dropped, too.
    """
    sweep(run.path / "checkpoints")
    run.roll_back("metrics.jsonl", step=step, eval_step=eval_step)


def versions() -> dict[str, str]:
    """Libraries whose version can change rounding."""
    return {name: version for name, version in library_versions().items() if name in VERSIONS}


def _per_step(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity with the sequences of a step in place of how they are dealt to processes and micro-batches."""
    train = dict(identity.get("train") or {})
    batch, accumulate = (train.pop(key, None) for key in _DEALING)
    whole = {
        key: value for key, value in identity.items() if key not in ("processes", "processes_of_a_sequence", "train")
    }
    known = isinstance(batch, int) and isinstance(accumulate, int)
    groups = identity["processes"] // identity.get("processes_of_a_sequence", 1)
    dealt = batch * accumulate * groups if known else [batch, accumulate]
    return {**whole, "train": train, "sequences_per_step": dealt}


def _processes(identity: Mapping[str, Any]) -> tuple[Any, Any]:
    return identity["processes"], identity.get("processes_of_a_sequence", 1)


def _say_processes(run: RunFolder, now: Mapping[str, Any], was: Mapping[str, Any]) -> None:
    if _processes(now) != _processes(was):
        run.event("resumed_on_other_processes", was=was["processes"], now=now["processes"])
        note(
            f"  the checkpoint is of {was['processes']} process(es), this run has {now['processes']}: the same steps, "
            "up to rounding (dropout draws other numbers)", style="yellow",
        )  # fmt: skip


def _require_same(now: Mapping[str, Any], was: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    if _processes(now) != _processes(was):
        now, was = _per_step(now), _per_step(was)
    changed = differences(was, now)
    if changed:
        table = "\n".join(f"          {line}" for line in changed)
        raise RecipeError(
            code="T432",
            message=f"{checkpoint.path} is from a run with other settings, so it cannot go on:\n{table}",
            hint=RESTART_HINT,
        )


def _compare_versions(run: RunFolder, was: Mapping[str, str]) -> None:
    changed = differences(was, versions())
    if changed:
        run.event("resumed_with_other_versions", changed=changed)
        note("  resuming with other library versions, the numbers may differ in the last digits:", style="yellow")
        for line in changed:
            note(f"    {line}", style="yellow")
