"""Groups of processes that share each sequence (`distributed.sequence_parallel_size`).

Processes 0 .. S-1 are the first group, S .. 2S-1 the second, and so on: neighbours, so that a group lies within a
machine where it can. Sequences are dealt to groups as they are to processes without sharing; each process of a group
takes its part of them (`data/sequence_parts.py`), counts its own tokens and makes every pass together with the others.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from luthier.fast.exchange import SequenceGroup
from luthier.recipe.distributed_rules import require_groups
from luthier.runtime.env import read_env
from luthier.train.distributed.group import SPARE_SECONDS

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["share_sequences"]


def share_sequences(accelerator: Accelerator, size: int) -> SequenceGroup:
    """This process' group of `size` processes; called by all processes together.

    Raises:
        RecipeError: the processes cannot be divided so.
    """
    import torch.distributed as dist

    require_groups(size, accelerator.num_processes)
    limit = timedelta(seconds=read_env().hang_seconds + SPARE_SECONDS)
    group, _ = dist.new_subgroups(group_size=size, timeout=limit)
    return SequenceGroup(group, index=accelerator.process_index % size, size=size)
