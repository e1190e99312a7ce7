"""Batched generation: many prompts in, many answers out, in the caller's order.

    prompts --sort by length, longest first--> batches --read--> [ decode 16 tokens; drop finished rows ] ...

Rows of a batch do not influence each other: padding is masked and positions count real tokens
only, so a row's answer in a batch is its answer alone (up to rounding, which can flip a choice
between two tokens that are equally likely to the last bit or, in bfloat16, nearly so).

When all prompts begin with the same tokens (a system prompt, worked examples), these are computed
once and their keys and values shared. The padding then stands between prefix and rest:

    without sharing   . . . p p p a b        p  shared prefix     .  padding
                      p p p c d e f g        a..g  the row's own tokens
    with sharing      p p p . . . a b
                      p p p c d e f g
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from luthier.generation.batch import Batch
from luthier.generation.cache import Prefix, new_cache
from luthier.generation.decode import context_length, inner_model, memory_errors, ready_to_generate, settings
from luthier.generation.paged.run import answer_all, paged_shape
from luthier.runtime.console import Bar, progress
from luthier.runtime.errors import Problem, RecipeError

__all__ = ["Generation", "default_batch_size", "generate", "token_capacity"]

# A shorter common prefix is not worth a cache of its own (chat templates share a few tokens).
MIN_SHARED_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One answer."""

    ids: tuple[int, ...]
    """Generated tokens; the last one is the stop token when `finish_reason` is `stop`."""
    text: str
    """The answer without stop token and special tokens."""
    finish_reason: Literal["stop", "length"]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    batch_size: int,
    label: str = "generate",
    max_batch_tokens: int | None = None,
    share_prefix: bool = True,
    sampling: Mapping[str, Any] | None = None,
    paged: bool | None = None,
) -> list[Generation]:
    """Answers to all prompts, greedy unless `sampling` says otherwise.

    Args:
        model: Causal language model of transformers, with or without PEFT adapters. Training mode and
            generation_config are as before afterwards.
        tokenizer: For decoding.
        prompts: Token ids; none may be empty.
        max_new_tokens: Longest answer, stop token included.
        stop_ids: Tokens that end an answer.
        batch_size: Most rows at once.
        label: Shown beside the progress bar.
        max_batch_tokens: Most tokens (padding and answers included) at once; bounds the cache of keys and values.
        share_prefix: Compute a common beginning of all prompts once, where the model allows it.
        sampling: Keys of a generation_config, for instance `{"do_sample": True, "temperature": 0.7, "top_k": 0}`;
            draws are from torch's global random state.
        paged: Rows enter as others finish, over pages (`luthier.generation.paged`); None for that on a GPU where the
            model allows it and nothing is sampled.

    Raises:
        RecipeError: an empty prompt, or one that leaves no room for the answer.
        OutOfMemory: with the setting to lower.
    """
    _check(model, prompts, max_new_tokens)
    stops = frozenset(stop_ids)
    config = settings(stop_ids=stop_ids, pad_id=_pad_id(tokenizer, stop_ids), **(sampling or {}))
    answers: list[tuple[int, ...]] = [()] * len(prompts)
    hint = f"lower `evaluate.batch_size` (now {batch_size}) or the task's `max_new_tokens` (now {max_new_tokens})"
    with (
        torch.no_grad(),
        ready_to_generate(model) as inner,
        memory_errors(f"generating ({label})", hint=hint),
        progress(label, len(prompts)) as bar,
    ):
        pace = _Pace(bar, max_new_tokens)
        shape = paged_shape(inner, wanted=paged) if prompts and not sampling else None
        if shape is not None:
            shared = _all_begin_with(prompts) if share_prefix else 0
            for index, ids in answer_all(
                inner, shape, prompts, max_new_tokens=max_new_tokens, stop_ids=stops, batch_size=batch_size,
                capacity=max_batch_tokens or token_capacity(model), shared=shared,
                on_tokens=lambda new: pace.new_tokens(1, new),
            ):  # fmt: skip
                answers[index] = ids
                pace.row_done(len(ids))
            return [_finished(tokenizer, ids, stops) for ids in answers]
        prefix = _shared_prefix(inner, prompts) if share_prefix else None
        for indices in _batches(prompts, batch_size, max_new_tokens, max_batch_tokens):
            batch = Batch(inner, [prompts[index] for index in indices], prefix, config, stop_ids=stops)
            for row, ids in batch.decode(max_new_tokens, pace.new_tokens):
                answers[indices[row]] = ids
                pace.row_done(batch.grown)
    return [_finished(tokenizer, ids, stops) for ids in answers]


class _Pace:
    """Progress in rows, and new tokens a second. A row under way counts by the share of its longest answer."""

    def __init__(self, bar: Bar, max_new_tokens: int) -> None:
        self.bar, self.max_new_tokens = bar, max_new_tokens
        self.tokens, self.started = 0, time.monotonic()

    def new_tokens(self, rows: int, each: int) -> None:
        """`rows` rows grew by `each` tokens."""
        self.tokens += rows * each
        self._advance(rows * each / self.max_new_tokens)

    def row_done(self, grown: int) -> None:
        """A row is finished after `grown` tokens (those behind its stop token included)."""
        self._advance(1.0 - grown / self.max_new_tokens)

    def _advance(self, rows: float) -> None:
        seconds = max(time.monotonic() - self.started, 1e-9)
        self.bar.advance(rows, say=f"{self.tokens / seconds:.0f} new tokens/s")


def _check(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """All prompts that cannot be answered, at once."""
    room = context_length(model)
    problems = []
    for index, prompt in enumerate(prompts):
        if not prompt:
            problems.append(Problem(code="E502", message=f"prompt {index} has no tokens: there is nothing to continue"))
        elif room is not None and len(prompt) + max_new_tokens > room:
            message = f"prompt {index} has {len(prompt)} tokens, {max_new_tokens} are to follow: the model holds {room}"
            problems.append(Problem(code="E503", message=message, hint="lower `max_new_tokens` or shorten the prompt"))
    if problems:
        raise RecipeError(problems=problems)


def _pad_id(tokenizer: Any, stop_ids: Sequence[int]) -> int:
    """Any token will do: padding is masked by position, never by id."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return int(stop_ids[0]) if stop_ids else 0


def _batches(
    prompts: Sequence[Sequence[int]], batch_size: int, max_new_tokens: int, max_batch_tokens: int | None
) -> Iterator[list[int]]:
    """Indices, longest prompts first: what does not fit fails at once, and rows of a batch are of about one length."""
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    batch: list[int] = []
    for index in order:
        width = len(prompts[batch[0] if batch else index]) + max_new_tokens
        too_wide = max_batch_tokens is not None and (len(batch) + 1) * width > max_batch_tokens
        if batch and (len(batch) >= batch_size or too_wide):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _shared_prefix(inner: Any, prompts: Sequence[Sequence[int]]) -> Prefix | None:
    """The common beginning and its cache, when it is long enough and the model can resume from it.

    Padding between prefix and rest moves tokens apart in the cache, so it is only right for models
    that take explicit positions and look at everything: no sliding windows, no recurrent states.
    """
    if len(prompts) < 2 or "position_ids" not in inspect.signature(inner.forward).parameters:
        return None
    if inner.config._attn_implementation not in ("sdpa", "eager"):
        return None
    first, length = prompts[0], _all_begin_with(prompts)
    cache, simple = new_cache(inner)
    if length < MIN_SHARED_TOKENS or not simple:
        return None
    ids = torch.tensor([list(first[:length])], dtype=torch.long, device=inner.device)
    inner(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return Prefix(tuple(first[:length]), cache)


def _all_begin_with(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with; every row keeps a token of its own to continue from."""
    if len(prompts) < 2:
        return 0
    length = min(_common(prompts[0], other) for other in prompts[1:])
    return min(length, min(map(len, prompts)) - 1)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of equal tokens at the start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _finished(tokenizer: Any, ids: tuple[int, ...], stop_ids: frozenset[int]) -> Generation:
    stopped = bool(ids) and ids[-1] in stop_ids
    text = tokenizer.decode(
        list(ids[:-1] if stopped else ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return Generation(ids=ids, text=text, finish_reason="stop" if stopped else "length")


def default_batch_size(device_type: str) -> int:
    """Rows at once when nobody says: a CPU is busy with 64; a GPU reads its weights once a step for any number."""
    return 256 if device_type == "cuda" else 64


def token_capacity(model: Any) -> int:
    """Tokens whose keys and values fit into 40% of the free device memory, or 15% of the host's memory.

    2 (key and value) x layers x key/value heads x head size x bytes of an element.
    """
    inner = inner_model(model)
    config = inner.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes: int = 2 * config.num_hidden_layers * heads * head_size * inner.dtype.itemsize
    if inner.device.type == "cuda":
        return max(1, int(torch.cuda.mem_get_info(inner.device)[0] * 0.4) // token_bytes)
    return max(1, int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.15) // token_bytes)
