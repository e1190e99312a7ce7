"""A recipe as a file that a cluster takes: `luthier launch RECIPE --print slurm|kubernetes|skypilot`.

The same command starts on each machine, `luthier launch RECIPE --nodes N --node-rank R --rendezvous HOST0:PORT`; a
cluster differs in where R and HOST0 come from:

    Slurm       SLURM_NODEID, the first host of SLURM_JOB_NODELIST, a port by the job's number
    Kubernetes  the index of the pod, NAME-0.NAME of a headless service; a TrainJob: PET_* that the runtime sets
    SkyPilot    SKYPILOT_NODE_RANK, the first of SKYPILOT_NODE_IPS
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from luthier.launch.settings import LaunchSettings
from luthier.launch.shell import comment
from luthier.launch.submit_kubernetes import kubernetes_file
from luthier.launch.submit_skypilot import skypilot_file
from luthier.launch.submit_slurm import slurm_file
from luthier.launch.task import Spec, check_task

__all__ = ["CLUSTERS", "Cluster", "Submission", "submission_file"]

Cluster = Literal["slurm", "kubernetes", "skypilot"]
CLUSTERS: tuple[Cluster, ...] = ("slurm", "kubernetes", "skypilot")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A run for a cluster."""

    spec: Spec
    """Its command is `luthier launch RECIPE ...` without what differs from machine to machine."""
    nodes: int
    reasons: Mapping[str, str]
    """Why `gpus`, `memory`, `disk` and `time` are what they are."""
    recipe_text: str
    uploads: tuple[str, ...] = ()
    """Files here that the run reads, absolute."""
    notes: tuple[str, ...] = ()
    """What a reader has to know before submitting it."""


def submission_file(kind: Cluster, run: Submission, settings: LaunchSettings) -> str:
    """The text of the file.

    Raises:
        RecipeError: a name that is none, or an argument with a NUL character.
    """
    check_task(run.spec)
    head = [f"made by `luthier launch --print {kind}`", *run.notes]
    head += [f"{name}: {why}" for name, why in run.reasons.items()]
    lines = [comment(line) for line in head]
    if kind == "slurm":
        return slurm_file(run.spec, settings, nodes=run.nodes, head=lines)
    if kind == "kubernetes":
        body = kubernetes_file(run.spec, settings, nodes=run.nodes, recipe_text=run.recipe_text)
    else:
        body = skypilot_file(run.spec, settings, nodes=run.nodes, uploads=run.uploads)
    return "\n".join(lines) + "\n" + body
