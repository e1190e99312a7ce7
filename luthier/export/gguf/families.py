"""Which models can be written, and what each family does to its weights on the way.

permuted   llama.cpp turns the halves of a head's rotary pairs next to each other: rows of q and k of `llama` models
shifted    Gemma's norms multiply by 1 + w; the file holds 1 + w
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from luthier.runtime.errors import Problem, RunFailed

__all__ = ["Family", "family_of"]


@dataclass(frozen=True, slots=True)
class Family:
    """Models that llama.cpp runs by one graph."""

    arch: str
    """As llama.cpp names it."""
    permuted: bool = False
    shifted: bool = False
    pattern: int | None = None
    """Every n-th layer looks at everything, the others at a window; llama.cpp has n built in."""


_FAMILIES = {
    "llama": Family("llama", permuted=True),
    "mistral": Family("llama", permuted=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma": Family("gemma", shifted=True),
    "gemma2": Family("gemma2", shifted=True, pattern=2),
    "gemma3_text": Family("gemma3", shifted=True, pattern=6),
}

_SOFTCAPS = {
    "gemma2": {"attn_logit_softcapping": True, "final_logit_softcapping": True},
    "gemma3": {"attn_logit_softcapping": False},
}
"""Whether llama.cpp's graph has them; Gemma 2's get a default where the file names no value."""


def family_of(config: Any) -> Family:
    """The family of a model.

    Args:
        config: transformers config of the merged model.

    Raises:
        RunFailed: llama.cpp has no such model, or would run this one otherwise than transformers does; all is told.
    """
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise RunFailed(
            code="X612", message=f"models of type `{config.model_type}` cannot be written as GGUF here",
            hint=f"can be: {', '.join(sorted(_FAMILIES))}; others: llama.cpp's own script, on the merged folder",
        )  # fmt: skip
    problems = [
        Problem(
            code="X613", message=f"llama.cpp would run this model differently: {what}", hint="serve the merged folder"
        )
        for what in _differences(config, family)
    ]
    if problems:
        raise RunFailed(problems=problems)
    return family


def _differences(config: Any, family: Family) -> Iterator[str]:
    layers = getattr(config, "layer_types", None)
    if family.pattern is not None and layers:
        expected = ["full_attention" if (place + 1) % family.pattern == 0 else "sliding_attention"
                    for place in range(len(layers))]  # fmt: skip
        if list(layers) != expected:
            yield f"its layers do not look at everything in every {family.pattern}. layer"
    if family.pattern is None and layers and any(kind != "full_attention" for kind in layers):
        yield "some of its layers look at a window only"
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if scalar is not None and scalar != config.head_dim:
        yield f"query_pre_attn_scalar is {scalar}, the head's width {config.head_dim}"
    # Gemma 2 and 3 are computed by `hidden_activation`, whatever `hidden_act` says; Gemma's old "gelu" is read as tanh.
    activation = config.hidden_activation if family.pattern is not None else config.hidden_act
    if activation != ("gelu_pytorch_tanh" if family.shifted else "silu"):
        yield f"its activation is `{activation}`"
    for key, built_in in _SOFTCAPS.get(family.arch, {}).items():
        if bool(getattr(config, key, None)) != built_in:
            yield f"`{key}` is {getattr(config, key, None)}"
    for place in ("attention_bias", "mlp_bias"):
        if getattr(config, place, False):
            yield f"`{place}` is set"
