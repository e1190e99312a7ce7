"""Whether the base is loaded without its values, of which each process then reads its shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.recipe.names import takes_from_base
from luthier.runtime.console import note
from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    from luthier.pipeline.session import Session
    from luthier.recipe.schema import Recipe

__all__ = ["loads_hollow", "refuse_idle_offload", "why_values_first"]


def refuse_idle_offload(session: Session) -> None:
    """`distributed.offload` must have an effect: without it the run would need the memory that it was to save.

    Raises:
        RecipeError: the run has one process, or copies its model.
    """
    section = session.resolved.recipe.distributed
    if section.offload == "none":
        return
    if session.group.size > 1 and section.strategy != "ddp":
        import torch

        note(f"  offload {section.offload}: the CPU updates with {torch.get_num_threads()} threads a process")
        return
    why = "this run has one process" if session.group.size == 1 else "`distributed.strategy` became ddp"
    raise RecipeError(
        code="L241", message=f"`distributed.offload: {section.offload}` needs a model in shards, and {why}",
        hint="`luthier launch` with several processes and `distributed.strategy: fsdp2`, or offload none",
    )  # fmt: skip


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
