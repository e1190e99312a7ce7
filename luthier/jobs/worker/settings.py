"""How jobs are run: sections `workers`, `launch` and `webhooks` of the service's configuration, beside its own."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from luthier.jobs.settings import ApiSettings
from luthier.jobs.webhooks import WebhookSettings
from luthier.launch.settings import LaunchSettings
from luthier.recipe.section import Section

__all__ = ["WorkerSettings", "WorkersSection"]

Seconds = Annotated[float, Field(gt=0.0)]


class WorkersSection(Section):
    """Workers and how patient they are."""

    devices: list[str] | None = None
    """For CUDA_VISIBLE_DEVICES of each worker, for instance `["0", "1"]`; `["0,1", "2,3"]`: two workers whose runs
    have two GPUs. null: every GPU there is; on a machine without one, one worker."""
    lease_seconds: Seconds = 60.0
    """A worker that has not reported for so long has lost its job to the next one."""
    poll_seconds: Seconds = 0.5
    """Between two looks at the line of jobs, and at the run folder."""
    grace_seconds: Seconds = 120.0
    """Time for a checkpoint when a job is paused, or the service stops; then the run is killed."""
    cancel_seconds: Seconds = 10.0
    """The same when a job is cancelled: nothing has to be saved."""
    crashes: Annotated[int, Field(ge=1)] = 3
    """A job fails when its run has died so often in a row without a step in between."""
    crash_wait_seconds: Annotated[float, Field(ge=0.0)] = 5.0
    """Before a run that died begins again, times the deaths in a row."""


class WorkerSettings(Section):
    """All that the processes need; handed to them as a file."""

    runs: str = "runs"
    """Folder of the run folders."""
    organization: str = "luthier"
    """In the names of tuned models: `ft:BASE:ORGANIZATION:SUFFIX:ID`."""
    workers: WorkersSection = Field(default_factory=WorkersSection)
    """How many, and how patient."""
    launch: LaunchSettings = Field(default_factory=LaunchSettings)
    """Where runs are computed."""
    webhooks: list[WebhookSettings] = Field(default_factory=list)
    """Who is told of the end of jobs."""
    service: ApiSettings = Field(default_factory=ApiSettings)
    """Models, recipe keys of every job, what clients may do."""
