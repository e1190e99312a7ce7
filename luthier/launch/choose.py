"""The launcher that the configuration names."""

from __future__ import annotations

from luthier.launch.kubernetes import Kubernetes
from luthier.launch.local import Local
from luthier.launch.settings import LaunchSettings
from luthier.launch.skypilot import SkyPilot
from luthier.launch.slurm import Slurm
from luthier.launch.task import Launcher

__all__ = ["launcher_of"]


def launcher_of(settings: LaunchSettings) -> Launcher:
    """Local, Slurm, Kubernetes or SkyPilot."""
    if settings.kind == "slurm":
        return Slurm(settings)
    if settings.kind == "kubernetes":
        return Kubernetes(settings)
    if settings.kind == "skypilot":
        return SkyPilot(settings)
    return Local()
