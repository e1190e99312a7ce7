"""RMS norms as one kernel instead of seven while a model decodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from luthier.fast.kernels.norm import add_rms_norm

__all__ = ["fused_norms"]

# Classes that are Llama's norm by another name: round(x / rms) w, `weight` and `variance_epsilon`.
_LIKE_LLAMA = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Phi3RMSNorm", "SmolLM3RMSNorm")


def _fused(base: type[nn.Module]) -> type[nn.Module]:
    class Fused(base):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor) -> Tensor:
            rows = hidden_states.reshape(-1, hidden_states.shape[-1])
            return add_rms_norm(rows, self.weight, eps=self.variance_epsilon)[0].view(hidden_states.shape)

    Fused.__name__ = f"Fused{base.__name__}"
    return Fused


@contextmanager
def fused_norms(model: Any) -> Iterator[int]:
    """Give the norms of a model their fast subclass meanwhile; yields how many."""
    found = [module for module in model.modules() if type(module).__name__ in _LIKE_LLAMA]
    own = [(module, type(module)) for module in found]
    fused = {kind: _fused(kind) for _, kind in own}
    try:
        for module, kind in own:
            module.__class__ = fused[kind]
        yield len(own)
    finally:
        for module, kind in own:
            module.__class__ = kind
