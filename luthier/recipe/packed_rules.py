"""What a base in 4 or 8 bits cannot be combined with in shards (`distributed.strategy: fsdp2`, `zero3`), and why."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.recipe.schema import MethodSection, ModelSection, ObjectiveSection

__all__ = ["why_not_packed"]


def why_not_packed(
    model: ModelSection, method: MethodSection, objective: ObjectiveSection
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """(key, reason) pairs; nothing for a base that is stored as it was loaded."""
    nf4 = model.quantization == "nf4" or (model.quantization == "auto" and method.name == "qlora")
    if nf4 and method.use_dora:
        yield "method.use_dora", "DoRA's norms are of the base's matrices, which are vectors of bytes here"
    if model.quantization == "fp8" and objective.name != "sft":
        yield (
            "model.quantization",
            f"objective {objective.name} also runs the model without its adapters, in 16 bits; an fp8 base in shards "
            "keeps no 16-bit matrices",
        )
