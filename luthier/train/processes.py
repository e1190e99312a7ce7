"""Several processes as one: what process 0 does for all, and one failure that ends all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from luthier.runtime.env import read_env, without_launcher_variables
from luthier.runtime.errors import LuthierError, RunFailed

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

__all__ = ["make_accelerator", "on_main", "peaks_of_all", "require_equal", "spread"]

Result = TypeVar("Result")


def make_accelerator(device: torch.device, *, report_to: list[str], logging_dir: str) -> Accelerator:
    """An Accelerator that wraps and communicates, and leaves precision to us.

    One process, or one per rank under torchrun (DDP; gloo on CPUs, NCCL on CUDA). No autocast:
    weights live in the compute type. DDP broadcasts no buffers: they are equal, and a forward pass
    must not wait for a process that has run out of memory. What `accelerate launch` exported chose the strategy
    (`pipeline/configured.py`); it is hidden here, so that accelerate wraps, casts and compiles nothing by itself.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    with without_launcher_variables():
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no",
            log_with=report_to or None,
            project_dir=logging_dir,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )


def on_main(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """Run `action` in process 0 and hand its result to all; its failure ends all of them.

    Raises:
        LuthierError: in process 0 what `action` raised, elsewhere `RunFailed` with its text.
    """
    if accelerator.num_processes == 1:
        return action()
    from accelerate.utils import broadcast_object_list

    shared: list[Any] = [None, None]
    failure: LuthierError | None = None
    if accelerator.is_main_process:
        try:
            shared[0] = action()
        except LuthierError as error:
            failure = error
            shared[1] = str(error)
    broadcast_object_list(shared, from_process=0)
    if failure is not None:
        raise failure
    if shared[1] is not None:
        raise RunFailed(code="T462", message=f"process 0 failed, so this one stops too: {shared[1]}")
    result: Result = shared[0]
    return result


def require_equal(accelerator: Accelerator, value: str, *, what: str) -> None:
    """Every process must have computed the same; called by all.

    Raises:
        RunFailed: they have not, in every process.
    """
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object

    found = gather_object([value])
    odd = [str(rank) for rank, other in enumerate(found) if other != found[0]]
    if odd:
        raise RunFailed(
            code="L200", message=f"{what} differs between process 0 and {', '.join(odd)}; CPUs differ",
            hint="start the same command again: all processes then read what process 0 has written into the run folder",
        )  # fmt: skip


def spread(accelerator: Accelerator, strategy: str) -> dict[str, Any]:
    """How a training is divided, for the event of its start; nothing with one process."""
    if accelerator.num_processes == 1:
        return {}
    return {
        "processes": accelerator.num_processes, "machines": read_env().machines, "strategy": strategy,
        "device": accelerator.device.type,
    }  # fmt: skip


def peaks_of_all(accelerator: Accelerator) -> list[int]:
    """Most memory that each process had in use, by rank, in bytes (`memory.peak_bytes`)."""
    import torch

    from luthier.train.memory import peak_bytes

    mine = torch.tensor([peak_bytes(accelerator.device)], device=accelerator.device)
    return [int(size) for size in accelerator.gather(mine).tolist()]
