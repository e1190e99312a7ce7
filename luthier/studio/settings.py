"""Where a studio looks and what it may show."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from luthier.runtime.errors import EnvironmentProblem

__all__ = ["StudioSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudioSettings:
    """Folders and bounds of a studio."""

    runs: Path
    """Folder whose run folders are shown."""
    root: Path
    """Folder that relative paths start from: files below it can be looked at, runs are started in it."""
    program: tuple[str, ...]
    """How `luthier` is started: `(sys.executable, "-m", "luthier")`."""
    max_body_bytes: int = 4 << 20
    """Of a request."""
    poll_seconds: float = 0.5
    """How often a stream looks at its run."""
    scan_seconds: float = 1.0
    """Least time between two looks at all run folders."""

    @property
    def home(self) -> Path:
        """The studio's own files, beside the runs and in none of them."""
        return self.runs / ".studio"

    def absolute(self) -> StudioSettings:
        """With whole paths: a server must not depend on where it stands."""
        return replace(self, runs=self.runs.absolute(), root=self.root.absolute())

    def check(self) -> None:
        """Refuse folders that cannot be used.

        Raises:
            EnvironmentProblem: the folder of the runs is a file.
        """
        if self.runs.exists() and not self.runs.is_dir():
            raise EnvironmentProblem(
                code="W110",
                message=f"{self.runs} is no folder of runs",
                hint="`luthier studio FOLDER`, for instance runs",
            )
