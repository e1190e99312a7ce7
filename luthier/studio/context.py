"""One studio: everything that its routes share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.studio.data.views import Views
from luthier.studio.names import run_folder
from luthier.studio.runs.index import Index
from luthier.studio.runs.jobs import Jobs
from luthier.studio.runs.system import System
from luthier.studio.scores import ScoreFiles
from luthier.studio.settings import StudioSettings
from luthier.studio.store import StudioStore
from luthier.studio.tokenizers import Tokenizers
from luthier.studio.work import Work

if TYPE_CHECKING:
    from luthier.jobs.store import Store

__all__ = ["Studio"]


@dataclass(slots=True)
class Studio:
    """Made once for a server."""

    settings: StudioSettings
    store: StudioStore
    index: Index
    work: Work
    views: Views
    tokenizers: Tokenizers
    system: System
    scores: ScoreFiles = field(default_factory=ScoreFiles)
    service: Store | None = None
    """Store of the API."""

    @classmethod
    def open(cls, settings: StudioSettings, *, service: Store | None = None) -> Studio:
        """Make one.

        Raises:
            EnvironmentProblem: the folder of the runs is none.
        """
        settings.check()
        store, work = StudioStore(settings.home), Work()
        jobs: Any = None if service is None else Jobs(service)
        return cls(
            settings, store, Index(settings, store, jobs), work, Views(settings, work), Tokenizers(work),
            System(settings.runs), service=service,
        )  # fmt: skip

    @property
    def places(self) -> tuple[Path, ...]:
        """Folders whose paths are left out of what is shown."""
        own = (self.settings.runs.resolve().parent, self.settings.root.resolve())
        return tuple(sorted(own, key=lambda path: -len(str(path))))

    def folder(self, ident: str) -> Path:
        """The folder of a run.

        Raises:
            RecipeError: W104.
        """
        return run_folder(self.settings.runs, ident)

    def close(self) -> None:
        """End it; started runs go on."""
        self.work.close()
        self.index.close()
        self.store.close()
