"""Checkpoints of sharded weights: each process writes its shards, and the whole is complete or absent.

    checkpoints/step-12/
      shard-00001-model-....safetensors   of process 1: its parts of masters and moments, with their places (torch's
                                          distributed checkpoint in safetensors form: no pickle)
      state.json, manifest.json           as in every checkpoint (`checkpoint.py`), written by process 0

All write into one temporary folder, of several copies of a shard (`mesh.py`) the one with the lowest number; when all
have, process 0 hashes what is there and renames it. They write file by file, so a process holds one file's tensors
(`FILE_BYTES`) on their way. FSDP2's shards are on the disk as they are in memory; DeepSpeed's partitions, which are cut
elsewhere, are made the same shards first (`zero_rows.py`). Any number of processes reads it, with or without shards
(`saved.py`). Where machines do not see one folder, each writes into its own, and the files are brought to process 0's
(`folders.py`).
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from luthier.runtime.atomic import TEMP_PREFIX, explain_os_error, fsync_path
from luthier.runtime.env import read_env
from luthier.runtime.errors import EnvironmentProblem, RunFailed
from luthier.train.checkpoint import seal
from luthier.train.distributed.folders import bring, first_of_machine
from luthier.train.distributed.local import parts_of
from luthier.train.processes import on_main
from luthier.train.saved import SavedTensors

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["load_whole", "save_sharded"]

FILE_BYTES = 1 << 30
"""Of a process' shards in one file, unless one alone is larger."""


def save_sharded(
    accelerator: Accelerator, path: Path, *, tensors: Mapping[str, Any], state: Mapping[str, Any],
    sizes: Mapping[str, int] | None = None,
) -> None:  # fmt: skip
    """Write a checkpoint of DTensors (and of plain tensors that are equal everywhere). Called by all processes.

    Args:
        accelerator: Of the run.
        path: The checkpoint's folder.
        tensors: As `GROUP/NAME`, in the same order everywhere. Each is asked for once, those of a file right before it
            is written, so that they may be put together then.
        state: For `state.json`.
        sizes: Bytes of a process' part of each tensor; None: look at the tensors.

    Raises:
        EnvironmentProblem: a process could not write, or does not see the folder; nothing is left behind.
        RunFailed: in the others.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    temporary = path.parent / f"{TEMP_PREFIX}{path.name}"
    on_main(accelerator, lambda: _make_empty(temporary))
    if first_of_machine():
        _make_empty(temporary)
    if read_env().unshared:
        accelerator.wait_for_everyone()
    if not temporary.is_dir():
        raise EnvironmentProblem(
            code="L121", message=f"{temporary} is not seen by process {accelerator.process_index}",
            hint="sharded checkpoints need a run folder on a file system that all machines share",
        )  # fmt: skip
    files = _files(_sizes(tensors) if sizes is None else sizes)
    try:
        for number in sorted(set(files.values())):
            held = {name: _on_host(tensors[name]) for name, one in files.items() if one == number}
            with _quiet(), _told(temporary, accelerator.process_index):
                writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True, fqn_to_index_mapping=files)
                # The first copy is process 0's, on its machine: nothing of the others has to be sent there.
                dcp.save(held, storage_writer=writer, planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True))
            del held  # before the next file's are put together
        bring(accelerator.device, temporary)
        on_main(accelerator, lambda: _finish(temporary, path, state))
    except BaseException:
        if accelerator.is_main_process or first_of_machine():
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _finish(temporary: Path, path: Path, state: Mapping[str, Any]) -> None:
    old = path.parent / f"{TEMP_PREFIX}old-{path.name}"
    try:
        for file in temporary.iterdir():
            fsync_path(file)
        seal(temporary, {**state, "sharded": True})
        fsync_path(temporary)
        if path.exists():  # a damaged one: it steps aside, so that no half of it is ever seen
            path.replace(old)
        temporary.rename(path)
        fsync_path(path.parent)
    except OSError as error:
        raise explain_os_error(error, path) from error
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _told(temporary: Path, mine: int) -> Iterator[None]:
    """torch's account of who could not write, as the error of that process; the others follow it."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as error:
        failed = {rank: failure[0] for rank, failure in error.failures.items()}
        own = failed.get(mine)
        if isinstance(own, OSError):
            raise explain_os_error(own, temporary) from error
        rank, cause = min(failed.items())
        text = f"process {rank} could not write its part of {temporary.name}: {type(cause).__name__}: {cause}"
        raise RunFailed(code="L290" if own is not None else "T462", message=text) from error


def _sizes(tensors: Mapping[str, Any]) -> dict[str, int]:
    return {
        name: tensor.nbytes // (parts_of(tensor) if hasattr(tensor, "device_mesh") else 1)
        for name, tensor in tensors.items()
    }


def _on_host(tensor: Any) -> Any:
    """A plain tensor in host memory; torch takes shards there itself."""
    return tensor if hasattr(tensor, "device_mesh") else tensor.cpu()


def _files(sizes: Mapping[str, int]) -> dict[str, int]:
    """The number of each tensor's file, from 1: torch holds what it writes into one twice in host memory."""
    found: dict[str, int] = {}
    number, held = 1, 0
    for name, here in sizes.items():
        if held and held + here > FILE_BYTES:
            number, held = number + 1, 0
        found[name], held = number, held + here
    return found


def load_whole(path: Path, group: str) -> dict[str, Tensor]:
    """The tensors of one group of a verified checkpoint (`trainable`, `optimizer`), whole and in host memory."""
    return dict(SavedTensors(path, group))


def _make_empty(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns that single-process reading is what was asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
