"""What can be known of shared sequences (`distributed.sequence_parallel_size`) before any work."""

from __future__ import annotations

from luthier.model.head_split import HeadSplit, unequal_heads
from luthier.pipeline.session import Session
from luthier.recipe.distributed_rules import require_groups
from luthier.runtime.errors import RecipeError

__all__ = ["require_shareable_sequences"]


def require_shareable_sequences(session: Session) -> None:
    """Return if these processes can share sequences of this model, as far as its config says.

    Raises:
        RecipeError: its heads, or the processes, cannot be divided so.
    """
    size = session.recipe.distributed.sequence_parallel_size
    if size == 1:
        return
    require_groups(size, session.group.size)
    shape = session.shape
    split = HeadSplit(shape.heads, shape.key_value_heads, size)
    if split.problem is not None:
        raise RecipeError(problems=[unequal_heads(shape.architecture, split)])
