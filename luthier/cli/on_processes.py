"""`--num-gpus` and `--num-processes` of commands that score or sample: started here, or as one of the processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

from luthier.runtime.env import read_env, variable
from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    from luthier.train.distributed.group import Group

__all__ = ["on_processes"]


def on_processes(
    work: Callable[[Group], None], *, num_gpus: int | None, num_processes: int | None, local: bool
) -> None:
    """Start the processes of this command; or `work`, in one of them or alone.

    Args:
        work: Called with the processes that share it; each of them calls it.
        num_gpus: `--num-gpus`.
        num_processes: `--num-processes`, on the CPU.
        local: A model of this machine is among those that are asked.

    Raises:
        RecipeError: both options, options inside a launcher, or nothing that processes could share.
        EnvironmentProblem: fewer GPUs than asked for.
        LuthierError: what ended the processes.
    """
    from luthier.pipeline.together import scoring_together

    env = read_env()
    asked = num_gpus is not None or num_processes is not None
    if asked and env.world_size > 1 and not env.launched:
        raise RecipeError(
            code="L102", message=f"`--num-gpus` and `--num-processes` inside a launcher of {env.world_size} processes",
            hint="take the option out: the launcher's processes share the work",
        )  # fmt: skip
    processes, cpu = env.world_size, False
    if asked and env.world_size == 1:
        from luthier.launch.processes import choose_processes

        processes, cpu = choose_processes(num_gpus, num_processes)
    if processes > 1 and not local:
        raise RecipeError(
            code="L300", message=f"{processes} processes, and all models are behind endpoints, which one process asks",
            hint="leave the processes out; `concurrency` says how many requests are in flight",
        )  # fmt: skip
    if processes > env.world_size:
        from luthier.launch.scoring import launch_scoring

        launch_scoring(sys.argv[1:], processes=processes, cpu=cpu)
        return
    with variable("LUTHIER_FORCE_CPU", "1") if cpu else nullcontext(), scoring_together() as group:
        work(group)
