"""SkyPilot: a task file for managed jobs, which start again elsewhere after a preemption.

Home and runs must be below a mounted bucket. How a task is doing is read from the exit code it leaves there: SkyPilot's
own list is a table for people.
"""

from __future__ import annotations

from typing import Any

from luthier.launch.programs import call
from luthier.launch.settings import LaunchSettings
from luthier.launch.shell import run_lines
from luthier.launch.task import Launcher, Spec, Status, Task, check_task
from luthier.recipe.emit import dump_yaml
from luthier.runtime.atomic import write_text

__all__ = ["SkyPilot", "resources_for", "task_file"]


def task_file(task: Task, settings: LaunchSettings) -> dict[str, Any]:
    """What `sky jobs launch` gets.

    Raises:
        RecipeError: a name that is none.
    """
    check_task(task)
    sky = settings.skypilot
    mounts = {path: {"source": source, "mode": "MOUNT"} for path, source in sky.mounts.items()}
    return {
        "name": task.name,
        "resources": resources_for(task, settings),
        **({"file_mounts": mounts} if mounts else {}),
        **({"setup": "\n".join(sky.setup) + "\n"} if sky.setup else {}),
        "run": "\n".join(run_lines(task, again=None)) + "\n",
    }


def resources_for(task: Spec, settings: LaunchSettings) -> dict[str, Any]:
    """What each machine has to have."""
    sky, needs = settings.skypilot, task.resources
    return {
        **({"infra": sky.cloud} if sky.cloud else {}),
        **({"accelerators": f"{needs.gpu_type or 'L4'}:{needs.gpus}"} if needs.gpus else {}),
        "cpus": f"{needs.cpus}+", "memory": f"{-(-needs.memory_bytes // (1 << 30))}+", "use_spot": sky.spot,
        **({"disk_size": max(50, -(-needs.disk_bytes // 10**9))} if needs.disk_bytes else {}),
        **({"image_id": sky.image} if sky.image else {}),
    }  # fmt: skip


class SkyPilot(Launcher):
    """Hand tasks to SkyPilot."""

    remote = True

    def __init__(self, settings: LaunchSettings) -> None:
        self._settings = settings
        self._tasks: dict[str, Task] = {}

    def files(self, task: Task) -> dict[str, str]:
        """The task file."""
        return {f"{task.name}.sky.yaml": dump_yaml(task_file(task, self._settings))}

    def submit(self, task: Task) -> str:
        """`sky jobs launch`; the handle is the task's name. Secrets go by name, out of this process's environment."""
        (name, text), *_ = self.files(task).items()
        file = task.exit_file.parent / name
        write_text(file, text)
        write_text(self._mark(task), "submitted\n")
        task.exit_file.unlink(missing_ok=True)
        secrets = [part for name in task.secrets for part in ("--secret", name)]
        call(["sky", "jobs", "launch", "--yes", "--detach-run", "--name", task.name, *secrets, str(file)])
        self._tasks[task.name] = task
        return task.name

    def find(self, task: Task) -> str | None:
        """The name, if it was submitted and has left no exit code."""
        check_task(task)
        if not self._mark(task).is_file() or task.exit_file.is_file():
            return None
        self._tasks[task.name] = task
        return task.name

    def status(self, handle: str) -> Status:
        """Ended when the exit code is there."""
        task = self._tasks.get(handle)
        if task is None:
            return Status(phase="unknown", detail="not submitted by this process")
        if not task.exit_file.is_file():
            return Status(phase="running")
        text = task.exit_file.read_text("ascii", "replace").strip()
        return Status(phase="ended", exit_code=int(text) if text.isdigit() else None)

    def stop(self, handle: str, *, hard: bool) -> None:
        """`sky jobs cancel`: SIGTERM, then the machine is given back."""
        call(["sky", "jobs", "cancel", "--yes", "--name", handle], may_fail=True)
        task = self._tasks.pop(handle, None)
        if task is not None:
            self._mark(task).unlink(missing_ok=True)

    @staticmethod
    def _mark(task: Task) -> Any:
        return task.exit_file.with_name("submitted")
