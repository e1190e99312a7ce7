"""Hooks on a module, and which of them leave its result alone."""

from __future__ import annotations

from torch import nn

__all__ = ["has_hooks"]

_ZERO = "deepspeed."
"""DeepSpeed's ZeRO-3 hooks gather the weights of a module before its passes and free them after; they change nothing
of what it computes."""


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks of `module` may change what it computes."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values(), *module._backward_hooks.values()]
    return any(not str(getattr(hook, "__module__", "")).startswith(_ZERO) for hook in hooks)
