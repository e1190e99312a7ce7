"""What a decoder layer is made of: the table of families, and a layer of one of them taken apart.

A family is recognised by the exact class of its decoder layer, never by a name that looks alike, and
every part of the layer must be of the class the table expects. `fast/probe.py` then compares the
replaced model with the stock one on made-up tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from luthier.fast.decoder.linears import LinearView, NotPlain, view_linear
from luthier.fast.hooks import has_hooks
from luthier.fast.kernels.glu import Activation

__all__ = ["FAMILIES", "Family", "LayerParts", "Norm", "read_norm", "take_apart"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How the decoder layers of a family differ from Llama's."""

    norm: str
    """Class of its norms."""
    plus_one: bool = False
    """Norms multiply by 1 + weight and round once (Gemma)."""
    stacked: bool = False
    """q, k, v and gate, up are one linear layer each (Phi-3)."""
    qk_norm: bool = False
    """Queries and keys are normalised head by head (Qwen3, Gemma 3)."""
    post_norms: bool = False
    """The outputs of attention and MLP are normalised before they are added (Gemma 3)."""
    window: str = "layer"
    """Where the sliding window is: `layer` (an attribute of the attention), `config`, or `none`."""


FAMILIES: dict[str, Family] = {
    "LlamaDecoderLayer": Family(norm="LlamaRMSNorm", window="none"),
    "MistralDecoderLayer": Family(norm="MistralRMSNorm", window="config"),
    "Qwen2DecoderLayer": Family(norm="Qwen2RMSNorm"),
    "Qwen3DecoderLayer": Family(norm="Qwen3RMSNorm", qk_norm=True),
    "GemmaDecoderLayer": Family(norm="GemmaRMSNorm", plus_one=True, window="none"),
    "Gemma3DecoderLayer": Family(norm="Gemma3RMSNorm", plus_one=True, qk_norm=True, post_norms=True),
    "Phi3DecoderLayer": Family(norm="Phi3RMSNorm", stacked=True, window="config"),
}
"""By class of the decoder layer, as transformers names it (SmolLM and Llama 2, 3 are Llama)."""

_ACTIVATIONS: dict[str, Activation] = {
    "SiLUActivation": "silu", "SiLU": "silu", "GELUTanh": "gelu_tanh", "PytorchGELUTanh": "gelu_tanh",
    "GELUActivation": "gelu",
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """One RMS norm."""

    module: Any
    eps: float
    plus_one: bool

    @property
    def weight(self) -> nn.Parameter:
        """What the module holds now: under FSDP2 the whole weight inside its layer's passes, a shard outside."""
        weight: nn.Parameter = self.module.weight
        return weight


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerParts:
    """A decoder layer taken apart."""

    family: Family
    qkv: tuple[LinearView, ...]
    out: LinearView
    gate_up: tuple[LinearView, ...]
    down: LinearView
    input_norm: Norm
    mlp_norm: Norm
    """The norm before the MLP."""
    attention_post_norm: Norm | None
    mlp_post_norm: Norm | None
    query_norm: Norm | None
    key_norm: Norm | None
    activation: Activation
    heads: int
    key_value_heads: int
    head_dim: int
    scale: float
    window: int | None


def take_apart(layer: nn.Module) -> LayerParts:
    """The parts of a decoder layer of a known family.

    Raises:
        NotPlain: the family is not in the table, or a part is not what the table expects; the reason is the message.
    """
    kind = _library_class(layer)
    family = FAMILIES.get(kind.__name__)
    if family is None or not kind.__module__.startswith("transformers.models."):
        raise NotPlain(f"{kind.__name__} is not in the table of families")
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    for part, name in ((attention, "Attention"), (mlp, "MLP")):
        if type(part).__name__ != kind.__name__.replace("DecoderLayer", name):
            raise NotPlain(f"{type(part).__name__} inside {kind.__name__}")
    config = attention.config
    _refuse_odd(layer, attention, config)
    linear = _viewer
    qkv = (
        (linear(attention, "qkv_proj"),)
        if family.stacked
        else tuple(linear(attention, name) for name in ("q_proj", "k_proj", "v_proj"))
    )
    gate_up = (
        (linear(mlp, "gate_up_proj"),)
        if family.stacked
        else tuple(linear(mlp, name) for name in ("gate_proj", "up_proj"))
    )
    act = getattr(mlp, "act_fn", None) or getattr(mlp, "activation_fn", None)
    activation = _ACTIVATIONS.get(type(act).__name__)
    if activation is None:
        raise NotPlain(f"activation {type(act).__name__}")
    norm = partial(read_norm, family)
    after = layer.pre_feedforward_layernorm if family.post_norms else layer.post_attention_layernorm
    return LayerParts(
        family=family, qkv=qkv, out=linear(attention, "o_proj"), gate_up=gate_up, down=linear(mlp, "down_proj"),
        input_norm=norm(layer.input_layernorm), mlp_norm=norm(after),
        attention_post_norm=norm(layer.post_attention_layernorm) if family.post_norms else None,
        mlp_post_norm=norm(layer.post_feedforward_layernorm) if family.post_norms else None,
        query_norm=norm(attention.q_norm) if family.qk_norm else None,
        key_norm=norm(attention.k_norm) if family.qk_norm else None,
        activation=activation, heads=config.num_attention_heads, key_value_heads=config.num_key_value_heads,
        head_dim=attention.head_dim, scale=attention.scaling, window=_window(family, attention),
    )  # fmt: skip


def _is_sharded(layer: nn.Module) -> bool:
    """Whether `fully_shard` made this module a subclass of its own class."""
    return any(base.__name__ == "FSDPModule" for base in type(layer).__mro__)


def _library_class(layer: nn.Module) -> type:
    """The class that transformers gave the layer; `fully_shard` puts its own and its mixin before it."""
    return type(layer).__mro__[2] if _is_sharded(layer) else type(layer)


def _viewer(parent: Any, name: str) -> LinearView:
    try:
        return view_linear(getattr(parent, name))
    except NotPlain as reason:
        raise NotPlain(f"{name}: {reason}") from None


def read_norm(family: Family, module: Any) -> Norm:
    """One norm of a family.

    Raises:
        NotPlain: it is of another class, or has hooks.
    """
    if type(module).__name__ != family.norm or has_hooks(module):
        raise NotPlain(f"norm of class {type(module).__name__}")
    eps = getattr(module, "variance_epsilon", None)
    return Norm(module, float(module.eps if eps is None else eps), family.plus_one)


def _window(family: Family, attention: Any) -> int | None:
    if family.window == "none":
        return None
    return getattr(attention if family.window == "layer" else attention.config, "sliding_window", None)


def _refuse_odd(layer: nn.Module, attention: Any, config: Any) -> None:
    """What some members of a family have and the layer function does not compute."""
    if getattr(attention, "attn_logit_softcapping", None) or getattr(config, "attn_logit_softcapping", None):
        raise NotPlain("attention scores are soft-capped")
    if not getattr(attention, "is_causal", True):
        raise NotPlain("attention is not causal")
    if getattr(config, "resid_pdrop", 0.0):
        raise NotPlain("residual dropout")
    own = {layer} if _is_sharded(layer) else set()  # FSDP2's hooks gather and free the layer's weights
    for module in set(layer.modules()) - own:
        if has_hooks(module):
            raise NotPlain(f"{type(module).__name__} has hooks")
