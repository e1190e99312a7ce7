"""Names of tensors: which layer, which kind of module, whether it is an embedding or a head. No torch.

model.layers.7.self_attn.q_proj.weight    layer 7, type self_attn.q_proj
model.layers.7.mlp.experts.3.w1.weight    layer 7, type mlp.experts.*.w1 (the original: mlp.experts.3.w1)
model.embed_tokens.weight                 outside the layers, embedding
"""

from __future__ import annotations

import re

__all__ = ["is_embedding", "is_head", "layer_of", "module_of", "natural_order", "type_of"]

_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")
_HEADS = ("lm_head", "embed_out", "output_layer")
_NUMBER = re.compile(r"(\d+)")
_EXPERT = re.compile(r"\bexperts\.\d+\b")


def module_of(name: str) -> str:
    """Path of the module that owns a parameter: the name without `.weight`; fused experts have no such ending."""
    return name.removesuffix(".weight")


def _first_number(parts: list[str]) -> int | None:
    return next((place for place, part in enumerate(parts) if part.isdigit()), None)


def layer_of(name: str) -> int | None:
    """The first number in the path; None outside the layers."""
    parts = name.split(".")
    place = _first_number(parts)
    return None if place is None else int(parts[place])


def type_of(name: str, *, each_expert: bool = False) -> str:
    """The part of the module path after the first number, as the original has it; without a number, the path.

    Args:
        name: of a parameter.
        each_expert: keep the number of an expert, so that each is ranked over the layers alone (the original);
            else all experts of all layers are one type.
    """
    parts = module_of(name).split(".")
    place = _first_number(parts)
    kind = ".".join(parts if place is None else parts[place + 1 :])
    return kind if each_expert else _EXPERT.sub("experts.*", kind)


def is_embedding(name: str) -> bool:
    """Input embeddings, by the names that causal models give them."""
    return layer_of(name) is None and module_of(name).rpartition(".")[2] in _EMBEDDINGS


def is_head(name: str) -> bool:
    """Output head, by the names that causal models give it."""
    return layer_of(name) is None and module_of(name).rpartition(".")[2] in _HEADS


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which layer 10 comes after layer 9, as in the model; files list 10 before 2."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in _NUMBER.split(name)]
