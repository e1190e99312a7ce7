"""One answer, piece by piece, for a talk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from luthier.generation.cache import new_cache
from luthier.generation.decode import context_length, extend, inner_model, memory_errors, ready_to_generate, settings
from luthier.runtime.errors import RecipeError

__all__ = ["stream"]

# A token that ends inside a character decodes to this; its text waits for the next token.
_TORN = "\N{REPLACEMENT CHARACTER}"


def stream(
    model: Any,
    tokenizer: Any,
    ids: Sequence[int],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> Iterator[str]:
    """Yield the pieces of one answer as they are decoded; together they are its text.

    Args:
        model: Causal language model, with or without adapters.
        tokenizer: For decoding.
        ids: Prompt.
        max_new_tokens: Longest answer; cut to what the model can still hold.
        stop_ids: Tokens that end the answer; not part of the text.
        temperature: 0 for the likeliest token each time; else sampling, from torch's global random state.
        top_p: Sample among the likeliest tokens that together have this probability.

    Raises:
        RecipeError: an empty prompt, one that fills the model, or settings out of range.
        OutOfMemory: with the setting to lower.
    """
    room = _room(model, ids, max_new_tokens, temperature, top_p)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    config = settings(stop_ids=stop_ids, pad_id=stop_ids[0] if stop_ids else 0, **sampling)
    answer: list[int] = []
    text = ""
    inner_ids = torch.tensor([list(ids)], dtype=torch.long)
    cache, _ = new_cache(inner_model(model))
    while len(answer) < room:
        # State is put back between tokens: the caller may do anything while it holds a piece.
        with torch.no_grad(), ready_to_generate(model) as inner, memory_errors("answering", hint="ask for less"):
            inner_ids = inner_ids.to(inner.device)
            inner_ids = extend(inner, inner_ids, torch.ones_like(inner_ids), cache, config, new_tokens=1)
        token = int(inner_ids[0, -1])
        if token in stop_ids:
            break
        answer.append(token)
        grown = tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if not grown.endswith(_TORN) and len(grown) > len(text):
            yield grown[len(text) :]
            text = grown
    rest = tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)[len(text) :]
    if rest:
        yield rest


def _room(model: Any, ids: Sequence[int], max_new_tokens: int, temperature: float, top_p: float) -> int:
    if not 0.0 <= temperature < float("inf"):
        raise RecipeError(code="E504", message=f"`temperature` is {temperature}; it must be 0 or more")
    if not 0.0 < top_p <= 1.0:
        raise RecipeError(code="E504", message=f"`top_p` is {top_p}; it must be above 0 and at most 1")
    if not ids:
        raise RecipeError(code="E502", message="the prompt has no tokens: there is nothing to continue")
    length = context_length(model)
    left = max_new_tokens if length is None else min(max_new_tokens, length - len(ids))
    if left < 1:
        message = f"the talk has {len(ids)} tokens; the model holds {length}"
        raise RecipeError(code="E503", message=message, hint="start a new one")
    return left
