"""Runs of a worker's cases on two processes against those of one: how they are made, and what they have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.runs.folder import RunFolder
from luthier.train.checkpoint import load_tensors
from luthier.train.distributed.shards import load_whole
from tests.train.support import Run, whole
from tests.train.zero_cases import Case

EXACT = 5e-5
Named = Sequence[tuple[str, str]]
"""(case, strategy)."""


def facts_of(run: Run) -> dict[str, Any]:
    """What the run was made of: an exit code proves nothing."""
    parted = [hasattr(parameter, "ds_id") for parameter in run.model.parameters()]
    kind = "all" if all(parted) else "some" if any(parted) else "none"
    trained = sorted(name for name, p in run.model.named_parameters() if p.requires_grad)
    return {
        "processes": torch.distributed.get_world_size(), "names": trained, "under_zero3": [kind],
        **run.result.to_json(),
    }  # fmt: skip


def run_cases(
    folder: Path, world_size: int, rank: int, wanted: Sequence[str], *, cases: Mapping[str, Case], runs: Named,
    resumed: Named,
) -> None:  # fmt: skip
    """Each of `runs`, and those of `resumed` whose first half lies in `folder`; trained weights and facts go there."""
    begun = [(f"resumed_{name}", strategy) for name, strategy in resumed]
    for name, strategy in [*runs, *(one for one in begun if (folder / "-".join(one)).exists())]:
        label = f"{name}-{strategy}"
        if wanted and name not in wanted:
            continue
        run = cases[name.removeprefix("resumed_")](folder / label, world_size, strategy)
        held = {key: whole(p).detach().clone() for key, p in run.model.named_parameters() if p.requires_grad}
        save_file({key: value.contiguous() for key, value in held.items()}, folder / f"{label}-{rank}.safetensors")
        (folder / f"{label}-{rank}.json").write_text(json.dumps(facts_of(run)))


def require_same_trajectory(single: Run, folder: Path, label: str) -> None:
    """Trained weights of both processes, and every line of the metrics but its times."""
    mine = {key: p.detach() for key, p in single.model.named_parameters() if p.requires_grad}
    theirs = [load_file(folder / f"{label}-{rank}.safetensors") for rank in (0, 1)]
    assert single.moved >= 1e-3
    assert set(mine) == set(theirs[0])
    assert max(float((mine[key] - theirs[0][key]).abs().max()) for key in mine) <= EXACT
    assert all(torch.equal(theirs[0][key], theirs[1][key]) for key in mine), "both processes hold the same weights"
    lines = RunFolder(folder / label).read_lines("metrics.jsonl")
    for ours, other in zip(single.folder.read_lines("metrics.jsonl"), lines, strict=True):
        assert set(ours) == set(other)
        for key in ("step", "tokens", "trained_tokens", "eval_tokens", "epoch", "learning_rate"):
            assert ours.get(key) == other.get(key), "no row is dropped or repeated"
        for key in set(ours) - {"seconds", "tokens_per_second", "token_accuracy"}:
            assert ours[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), key
        for key in ("loss", "eval_loss"):
            assert ours.get(key, 0.0) == pytest.approx(other.get(key, 0.0), rel=5e-6)


def require_same_result(single: Run, folder: Path) -> None:
    """Both results are one plain file with the same tensors."""
    (mine,), (theirs,) = (sorted((run / "final").glob("*.safetensors")) for run in (single.folder.path, folder))
    first, second = load_file(mine), load_file(theirs)
    assert {key: value.shape for key, value in first.items()} == {key: value.shape for key, value in second.items()}
    assert max(float((first[key] - second[key]).abs().max()) for key in first) <= EXACT


def require_same_way(single: Run, folder: Path) -> None:
    """Masters are in fp32, and went the way of one process but for a tenth of it."""
    mine = load_tensors(single.folder.path / "checkpoints/step-6", "trainable")
    theirs = load_whole(folder / "checkpoints/step-6", "trainable")
    assert set(mine) == set(theirs) and all(tensor.dtype == torch.float32 for tensor in theirs.values())
    start = {key: tensor.float() for key, tensor in single.start.items()}
    moved = torch.cat([(mine[key] - start[key]).flatten() for key in mine])
    apart = torch.cat([(mine[key] - theirs[key]).flatten() for key in mine])
    assert moved.norm() > 0.1
    assert apart.norm() <= 0.1 * moved.norm()
