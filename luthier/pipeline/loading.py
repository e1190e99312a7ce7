"""Whether the base is loaded without its values, of which each process then reads its shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.recipe.names import takes_from_base
from luthier.runtime.console import note

if TYPE_CHECKING:
    from luthier.pipeline.session import Session
    from luthier.recipe.schema import Recipe

__all__ = ["loads_hollow", "why_values_first"]


def loads_hollow(session: Session) -> bool:
    """Whether the base is made without values, and each process reads only its shards (`model/hollow.py`)."""
    if session.group.size == 1 or session.resolved.recipe.distributed.strategy != "fsdp2":
        return False
    why = why_values_first(session.resolved.recipe)
    if why is not None:
        note(f"  each process loads the whole base into host memory: {why}", style="yellow")
    return why is None


def why_values_first(recipe: Recipe) -> str | None:
    """What needs the values of the base before it is sharded; None: nothing does."""
    method = recipe.method
    if recipe.model.quantization != "none":
        return f"`model.quantization: {recipe.model.quantization}` is made of whole matrices"
    if recipe.model.new_tokens:
        return "rows of `model.new_tokens` start from the mean of all rows"
    if recipe.objective.name == "reward":
        return "the head of a reward model is made after its base"
    if method.name in ("lora", "qlora"):
        if method.use_dora or takes_from_base(method.init_lora_weights):
            return "adapters of this kind start from the base's weights"
        if method.modules_to_save:
            return "`method.modules_to_save` copies modules of the base"
    return None
