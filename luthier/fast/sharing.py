"""Whether a model's passes can be shared by the processes of a sequence, found out from its engine before any step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from luthier.fast.decoder.function import Replaced
from luthier.fast.loss import LossModule, inner_model
from luthier.model.head_split import HeadSplit, unequal_heads
from luthier.runtime.errors import Problem, RecipeError

__all__ = ["require_shareable"]

KEY = "distributed.sequence_parallel_size"
_OF_THE_LENGTH = {"dynamic", "longrope"}
"""Rotary embeddings whose frequencies depend on the longest position, of which each process sees its own."""


def require_shareable(module: LossModule, decoder: Replaced, *, size: int) -> None:
    """Return if `size` processes can share each sequence of this model.

    Raises:
        RecipeError: they cannot; with what the model has.
    """
    model: Any = inner_model(module.model)
    splits = {HeadSplit(program.parts.heads, program.parts.key_value_heads, size) for program in decoder.programs}
    problems = [unequal_heads(type(model).__name__, split) for split in splits if split.problem is not None]
    problems += [
        Problem(
            code="L233", message=f"`{KEY}: {size}` with {type(model).__name__}: {reason}",
            hint=f"remove `{KEY}`; shorter sequences and `train.gradient_checkpointing: true` need less memory",
        )
        for reason in _obstacles(model, module, decoder)
    ]  # fmt: skip
    if problems:
        raise RecipeError(problems=problems)


def _obstacles(model: Any, module: LossModule, decoder: Replaced) -> Iterator[str]:
    layers = len(getattr(model.get_decoder(), "layers", ()))
    if module.layout != "flat" or len(decoder.programs) != layers or not layers:
        why = "; ".join(decoder.reasons) or "packed documents cannot be laid end to end"
        yield (
            f"{layers - len(decoder.programs)} of its {layers} decoder layers run as transformers wrote them ({why}), "
            "and only the engine's layers exchange heads"
        )
    if module.finding.kind == "model":
        yield f"its logits come from its whole forward ({module.finding.reason})"
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "attention_dropout", 0.0):
        yield f"attention dropout of {config.attention_dropout}"
    kinds = set(_rotary_kinds(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)))
    if kinds & _OF_THE_LENGTH:
        yield f"rotary embedding of type {', '.join(sorted(kinds & _OF_THE_LENGTH))}, which depends on the length"


def _rotary_kinds(parameters: Any) -> Iterator[str]:
    """Types in a config's rotary parameters, which some families have by type of layer."""
    if not isinstance(parameters, dict):
        return
    for key, value in parameters.items():
        if key in ("rope_type", "type") and isinstance(value, str):
            yield value
        yield from _rotary_kinds(value)
