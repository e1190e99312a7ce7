"""Bytes a run writes, and what the base takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.plan.states import optimizer_bytes

if TYPE_CHECKING:
    from luthier.plan.request import Request

__all__ = ["disk_bytes"]


def disk_bytes(request: Request) -> dict[str, int]:
    """By part: the base's files, checkpoints, the result, the merged model.

    A checkpoint holds the trained tensors in fp32 and the optimizer's states; `save_total_limit` of them stay, one
    more with a best step, and one is being written before the oldest goes. An adapter is written in the compute
    type, as a full model is; a merged model has as many bytes as the stored base.
    """
    recipe, sizes = request.recipe, request.sizes
    checkpoint = 4 * sizes.trainable + optimizer_bytes(sizes, recipe.train.optim, recipe.train.optim_args)
    validates = recipe.data.validation.path is not None or recipe.data.validation.fraction > 0
    kept = 1 if recipe.train.save_steps is None else recipe.train.save_total_limit + 1 + int(validates)
    result = (sizes.trainable if sizes.adapters else sizes.parameters) * request.dtype_bytes
    merges = recipe.export.merge and sizes.adapters
    return {
        "base": sizes.shape.stored_bytes,
        "checkpoints": kept * checkpoint,
        "final": result,
        "merged": sizes.shape.stored_bytes if merges else 0,
    }
