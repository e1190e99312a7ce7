"""Which models can be answered over pages, found out by asking them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from luthier.generation.paged.attention import Unsupported
from luthier.generation.paged.model import PagedModel, Shape

__all__ = ["shape_of"]

# Tokens of the prompt that is read both ways; root of the mean squared difference of the logits over their spread.
PROBE_TOKENS = 9
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


def shape_of(inner: Any) -> Shape | str:
    """Keys and values of a model, or why it cannot be answered over pages.

    A prompt of a few tokens is read the model's own way and over pages; logits must agree, and every layer must have
    come by. That finds models whose attention has something that pages do not.
    """
    parameters = inspect.signature(inner.forward).parameters
    if "position_ids" not in parameters or "logits_to_keep" not in parameters:
        return f"{type(inner).__name__} takes no positions"
    if not getattr(inner, "_supports_attention_backend", False):
        return f"{type(inner).__name__} has an attention of its own"
    if inner.config._attn_implementation not in ("sdpa", "eager"):
        return f"the attention is set to {inner.config._attn_implementation}"
    if inner.dtype not in TOLERANCE:
        return f"no kernel for {inner.dtype}"
    layers = DynamicCache(config=inner.config).layers
    if not layers or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return f"{type(inner).__name__} keeps a state beside keys and values"
    config = inner.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = Shape(len(layers), heads, size)
    return _differs(inner, shape) or shape


def _differs(inner: Any, shape: Shape) -> str | None:
    vocabulary = inner.get_input_embeddings().weight.shape[0]
    prompt = [(7 * place + 3) % vocabulary for place in range(PROBE_TOKENS)]
    own = inner(input_ids=torch.tensor([prompt], device=inner.device), use_cache=False).logits[0, -1].float()
    paged = PagedModel(inner, shape, slots=2, tokens=128, context=128, graphs=False)
    seen: list[int] = []
    try:
        with paged.ready():
            # Half by half, so that the second half looks back into pages.
            slot = paged.open()
            paged.read([(slot, prompt[:5])], seen)
            found = paged.read([(slot, prompt[5:])])[1][0].float()
    except Unsupported as error:
        return str(error)
    if sorted(seen) != list(range(shape.layers)):
        return f"{type(inner).__name__} passes by {len(seen)} of {shape.layers} layers"
    apart = float((found - own).square().mean().sqrt() / own.std().clamp(min=1e-6))
    if not apart <= TOLERANCE[inner.dtype]:
        return f"logits over pages are {apart:.2g} of their spread away from the model's own"
    return None
