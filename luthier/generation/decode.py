"""What batched generation and chat have in common: neutral settings, one step of decoding, memory errors.

Decoding goes through transformers' `generate`, so whatever that library can run, we can. Two things
are kept away from it: the defaults of the model's own generation_config (a repetition penalty or a
temperature shipped with a base model would silently change a score), and the model's training state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from luthier.runtime.errors import OutOfMemory

__all__ = ["context_length", "extend", "find_stop", "inner_model", "memory_errors", "ready_to_generate", "settings"]


def inner_model(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper (the adapters live in its layers), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def context_length(model: Any) -> int | None:
    """Most tokens (prompt and answer) the model was made for, or None when its configuration does not say."""
    config = inner_model(model).config.get_text_config(decoder=True)
    length = getattr(config, "max_position_embeddings", None)
    return int(length) if length else None


def settings(*, stop_ids: Sequence[int], pad_id: int, **sampling: Any) -> Any:
    """A generation_config with nothing in it but the stop tokens and what is given; greedy by default."""
    from transformers import GenerationConfig

    return GenerationConfig(
        **{"do_sample": False, **sampling},
        use_cache=True,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=pad_id,
        disable_compile=True,
    )


@contextmanager
def ready_to_generate(model: Any) -> Iterator[Any]:
    """Yield the inner model in eval mode with an empty generation_config; everything is put back at the end.

    transformers fills every setting that a caller leaves out from `model.generation_config`,
    so that one is set aside. Modes are put back module by module: a frozen part in eval mode stays so.
    """
    from transformers import GenerationConfig

    inner = inner_model(model)
    modes = [(module, module.training) for module in model.modules()]
    own = inner.generation_config
    inner.generation_config = GenerationConfig()
    model.eval()
    try:
        yield inner
    finally:
        inner.generation_config = own
        for module, training in modes:
            module.training = training


def extend(inner: Any, ids: Tensor, mask: Tensor, cache: Any, config: Any, *, new_tokens: int) -> Tensor:
    """Decode up to `new_tokens` more tokens.

    Args:
        inner: From `ready_to_generate`.
        ids: (B, L) prompts, and what was generated so far.
        mask: (B, L) 1 for tokens, 0 for padding; positions count the ones, wherever the padding is.
        cache: Keys and values of the first columns of `ids` (at most L - 1), extended in place; or None for
            models without such a cache, which read all of `ids` again.
        config: From `settings`.
        new_tokens: Fewer come back only when every row has met a stop token.

    Returns:
        (B, L + n) ids.
    """
    config.max_new_tokens = new_tokens
    kept = {} if cache is None else {"past_key_values": cache}
    sequences: Tensor = inner.generate(input_ids=ids, attention_mask=mask, generation_config=config, **kept)
    return sequences


def find_stop(ids: Sequence[int], stop_ids: frozenset[int]) -> int | None:
    """Index of the first stop token, or None."""
    return next((index for index, token in enumerate(ids) if token in stop_ids), None)


@contextmanager
def memory_errors(what: str, *, hint: str) -> Iterator[None]:
    """Turn an out-of-memory error of torch (device or host) into `OutOfMemory`.

    Raises:
        OutOfMemory: naming what was being done and the setting to lower.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(code="E501", message=f"out of memory while {what}", hint=hint) from error
    except RuntimeError as error:
        # The host allocator raises a plain RuntimeError; this text is the one accelerate looks for, too.
        if "can't allocate memory" not in str(error):
            raise
        raise OutOfMemory(code="E501", message=f"out of host memory while {what}", hint=hint) from error
