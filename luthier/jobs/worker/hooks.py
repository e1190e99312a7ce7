"""What a worker takes from the rest of the service: the recipe of a job, variables, the check of files, a plan."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from luthier.jobs.check import check_job
from luthier.jobs.create import environment_of, recipe_of
from luthier.jobs.merge import merged
from luthier.jobs.records import JobRecord
from luthier.jobs.settings import ApiSettings
from luthier.jobs.store import Store
from luthier.runtime.env import child_environment

__all__ = ["RecipeOf", "check_job", "environment_of", "plan_of", "recipe_maker"]

RecipeOf = Callable[[JobRecord], Mapping[str, Any]]
PLAN_SECONDS = 40


def recipe_maker(store: Store, service: ApiSettings, runs: Path) -> RecipeOf:
    """Makes the recipe of a job; its checkpoints are written as servers load them, unless the job says otherwise."""

    def make(job: JobRecord) -> Mapping[str, Any]:
        recipe = recipe_of(job, store, service, runs=runs.absolute())
        online = recipe.get("objective", {}).get("name") == "grpo"
        return recipe if online else merged({"export": {"checkpoints": True}}, recipe)

    return make


def plan_of(recipe: Path, launch_gpu: str | None, gpus: int = 1) -> Mapping[str, Any] | None:
    """`luthier plan` of a recipe for `gpus` devices of the cluster; None where none can be made."""
    call = [sys.executable, "-m", "luthier", "plan", str(recipe), "--json"]
    call += ["--gpu", launch_gpu] if launch_gpu else []
    call += ["--num-gpus", str(gpus)] if gpus > 1 else []
    try:
        done = subprocess.run(
            call,
            capture_output=True,
            check=True,
            timeout=PLAN_SECONDS,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
        )
        value: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return value if "time" in value and "memory" in value else None
