"""What the weights of a file should say, computed by transformers in float32.

    R  the merged model
    D  the same with the weights of the file, unpacked: R against D is what rounding the weights costs
    E  D with the inputs of all products rounded as llama.cpp does on a CPU: D against E is how much that matters

llama.cpp multiplies block types by activations rounded to 8 bits in blocks of 32 (scale max / 127 in float16), f16 by
float16, bf16 by bfloat16. On SmolLM2-135M this moves the log-probabilities of a first token by 0.2 to 0.4 at Q8_0,
where the weights themselves are off by half a percent: enough to flip a near tie. So D is not what a runner must equal;
it must be about as near to D as E is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.export.gguf.tensors import Weights
from luthier.export.gguf.types import BLOCK

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["greedy", "last_logits", "put_weights", "rounded_inputs"]


def put_weights(model: PreTrainedModel, weights: Weights, file: Path) -> float:
    """Give the model the values that the file holds; `model` is in float32.

    Returns:
        Their relative error: root of the summed squared differences to the merged weights, over that of their squares.
    """
    from gguf import GGUFReader, dequantize

    stored = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wrong = total = 0.0
    with torch.no_grad():
        for own, other, shape in weights.names():
            tensor, meant = stored[other], weights.values(own)
            values = dequantize(tensor.data, tensor.tensor_type).reshape(shape).astype("float32")
            wrong += float(np.square(values - meant, dtype=np.float64).sum())
            total += float(np.square(meant, dtype=np.float64).sum())
            parameters[own].copy_(torch.from_numpy(weights.back(own, values).copy()))
    return float((wrong / total) ** 0.5) if total else 0.0


@contextlib.contextmanager
def rounded_inputs(model: nn.Module, kinds: dict[str, str], names: dict[str, str]) -> Iterator[None]:
    """Products take rounded inputs while this lasts.

    Args:
        kinds: Type of each weight of the file.
        names: Name of a weight in transformers -> its name in the file.
    """
    handles = []
    embedding = kinds["token_embd.weight"]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            kind = kinds.get(names.get(f"{name}.weight", ""), embedding)  # a tied head is the embedding
            handles.append(module.register_forward_pre_hook(_hook(_ROUNDINGS.get(kind, _eight_bits))))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(rounding: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda _, inputs: (rounding(inputs[0]), *inputs[1:])


def _eight_bits(values: Tensor) -> Tensor:
    """(..., n), n a multiple of 32: each block is round(x / d) d with d = max|x| / 127."""
    blocks = values.reshape(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    codes = torch.where(scale > 0, (blocks / scale).round(), torch.zeros_like(blocks))
    return (codes * scale.half().float()).reshape(values.shape)


_ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "f32": lambda values: values,
    "f16": lambda values: values.half().float(),
    "bf16": lambda values: values.bfloat16().float(),
}


def last_logits(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Log-probabilities of what follows each prompt; (vocabulary,) float32 each."""
    with torch.no_grad():
        return [
            torch.log_softmax(model(input_ids=torch.tensor([list(ids)])).logits[0, -1].float(), dim=-1)
            for ids in prompts
        ]


def greedy(model: PreTrainedModel, ids: Sequence[int], *, max_new_tokens: int, stops: frozenset[int]) -> list[int]:
    """The likeliest next token each time, the stop token included."""
    found: list[int] = []
    cache, fed = None, torch.tensor([list(ids)])
    with torch.no_grad():
        while len(found) < max_new_tokens and (not found or found[-1] not in stops):
            output = model(input_ids=fed, past_key_values=cache, use_cache=True)
            cache, token = output.past_key_values, int(output.logits[0, -1].argmax())
            found.append(token)
            fed = torch.tensor([[token]])
    return found
