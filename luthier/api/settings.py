"""`api.yaml` as a whole: what jobs may do, how they are run, who is told, and how the server listens."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from luthier.jobs.settings import ApiSettings
from luthier.jobs.webhooks import WebhookSettings
from luthier.jobs.worker.settings import WorkersSection
from luthier.launch.settings import LaunchSettings
from luthier.recipe.section import Section
from luthier.serve.settings import ServeSettings, is_loopback

__all__ = ["ServerSection", "ServiceSettings"]

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class ServerSection(Section):
    """Address and bounds of the server. The defaults are for one machine and its users."""

    host: str = "127.0.0.1"
    """Address to listen on; one that others can reach needs keys (`luthier api keys new`)."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """0: any free one."""
    allowed_hosts: list[str] = Field(default_factory=list)
    """Names, besides this machine's own, under which requests may come (a reverse proxy's)."""
    allowed_origins: list[str] = Field(default_factory=list)
    """Origins of pages, besides the server's own, that may send requests: `https://tools.example`."""
    max_body_bytes: Annotated[int, Field(ge=1 << 10)] = 8 << 20
    """Longest JSON body."""
    body_idle_seconds: Seconds = 30.0
    """Longest wait for the next bytes of a body."""
    wrong_keys_per_minute: Annotated[int, Field(ge=1, le=1_000)] = 5
    """Of one address; further ones are not looked at."""
    python_graders: bool = False
    """Whether `python` graders may be run: their code runs on this machine, in a sandbox."""
    grader_seconds: Seconds = 10.0
    """Longest time of one call of a `python` grader."""
    parallel_graders: Count = 2
    """Graders at work at once; others wait."""
    max_loaded_models: Count = 8
    """Tuned models and checkpoints in memory at once; the one used least recently goes first."""
    max_loaded_bases: Count = 1
    """Sets of weights in memory at once."""
    max_new_tokens: Count = 4_096
    """Most tokens of one answer."""
    request_seconds: Seconds = 600.0
    """Longest time for one answer, waiting included."""
    drain_seconds: Seconds = 30.0
    """At shutdown, how long answers under way may go on."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)

    def serving(self) -> ServeSettings:
        """The part of it that the serving layer reads. Keys are the guard's."""
        return ServeSettings(
            host=self.host, port=self.port, max_body_bytes=self.max_body_bytes, max_new_tokens=self.max_new_tokens,
            request_seconds=self.request_seconds, drain_seconds=self.drain_seconds,
        )  # fmt: skip


class ServiceSettings(ApiSettings):
    """Everything in `api.yaml`."""

    server: ServerSection = Field(default_factory=ServerSection)
    """How the server listens."""
    workers: WorkersSection = Field(default_factory=WorkersSection)
    """How many jobs run at a time, and how patient the workers are."""
    launch: LaunchSettings = Field(default_factory=LaunchSettings)
    """Where runs are computed."""
    webhooks: list[WebhookSettings] = Field(default_factory=list)
    """Who is told of the end of jobs."""

    def of_jobs(self) -> ApiSettings:
        """The part that makes recipes of jobs."""
        return ApiSettings.model_validate(self.model_dump(include=set(ApiSettings.model_fields)))
