"""Batched greedy generation: many prompts in, many answers out, in the caller's order.

    prompts --sort by length, longest first--> batches --prefill--> [ decode 16 tokens; drop finished rows ] ...

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

import copy
import inspect
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from luthier.generation.decode import context_length, extend, find_stop, memory_errors, ready_to_generate, settings
from luthier.runtime.console import Bar, progress
from luthier.runtime.errors import Problem, RecipeError

__all__ = ["Generation", "default_batch_size", "generate", "token_capacity"]

# Rows that met a stop token leave the batch every so many tokens. Less often: computing for finished
# rows; more often: the set-up time of `generate` (about 2 ms) and copies of the cache.
SEGMENT_TOKENS = 16
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


@dataclass(frozen=True, slots=True)
class _Prefix:
    """Tokens all prompts begin with, and their keys and values (batch of 1)."""

    ids: tuple[int, ...]
    cache: Any

    def expanded(self, rows: int) -> Any:
        """A copy of the cache for a batch."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(rows)
        return cache


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
) -> list[Generation]:
    """Greedy answers to all prompts.

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

    Raises:
        RecipeError: an empty prompt, or one that leaves no room for the answer.
        OutOfMemory: with the setting to lower.
    """
    _check(model, prompts, max_new_tokens)
    pad_id = _pad_id(tokenizer, stop_ids)
    config = settings(stop_ids=stop_ids, pad_id=pad_id)
    answers: list[tuple[int, ...]] = [()] * len(prompts)
    hint = f"lower `evaluate.batch_size` (now {batch_size}) or the task's `max_new_tokens` (now {max_new_tokens})"
    with (
        torch.no_grad(),
        ready_to_generate(model) as inner,
        memory_errors(f"generating ({label})", hint=hint),
        progress(label, len(prompts)) as bar,
    ):
        prefix = _shared_prefix(inner, prompts) if share_prefix else None
        pace = _Pace(bar)
        for batch in _batches(prompts, batch_size, max_new_tokens, max_batch_tokens):
            rows = [prompts[index] for index in batch]
            run = _Batch(inner, rows, prefix, pad_id=pad_id, stop_ids=frozenset(stop_ids))
            for row, ids in run.decode(config, max_new_tokens, pace):
                answers[batch[row]] = ids
    return [_finished(tokenizer, ids, frozenset(stop_ids)) for ids in answers]


class _Batch:
    """One batch being decoded; finished rows leave it."""

    def __init__(
        self,
        inner: Any,
        prompts: Sequence[Sequence[int]],
        prefix: _Prefix | None,
        *,
        pad_id: int,
        stop_ids: frozenset[int],
    ) -> None:
        from transformers import DynamicCache

        self.inner, self.stop_ids = inner, stop_ids
        shared = len(prefix.ids) if prefix else 0
        self.width = max(map(len, prompts))
        ids, mask = [], []
        for prompt in prompts:
            gap = self.width - len(prompt)
            ids.append([*prompt[:shared], *[pad_id] * gap, *prompt[shared:]])
            mask.append([1] * shared + [0] * gap + [1] * (len(prompt) - shared))
        self.ids = torch.tensor(ids, dtype=torch.long, device=inner.device)
        self.mask = torch.tensor(mask, dtype=torch.long, device=inner.device)
        self.cache = prefix.expanded(len(prompts)) if prefix else DynamicCache(config=inner.config)
        self.rows = list(range(len(prompts)))
        """Which prompt each row of `ids` belongs to."""

    def decode(self, config: Any, max_new_tokens: int, pace: _Pace) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield (index of the prompt, generated ids) as rows finish."""
        limit = self.width + max_new_tokens
        while self.rows:
            before = self.ids.shape[1]
            step = min(SEGMENT_TOKENS, limit - before)
            self.ids = extend(self.inner, self.ids, self.mask, self.cache, config, new_tokens=step)
            grown = self.ids.shape[1] - before
            self.mask = torch.nn.functional.pad(self.mask, (0, grown), value=1)
            pace.tokens += grown * len(self.rows)
            done = self._finished(full=self.ids.shape[1] >= limit)
            yield from done.values()
            self._drop(set(done))
            pace.advance(len(done))

    def _finished(self, *, full: bool) -> dict[int, tuple[int, tuple[int, ...]]]:
        """Rows that met a stop token (or all, when there is no room left): position -> (prompt, ids)."""
        done = {}
        for position, ids in enumerate(self.ids[:, self.width :].tolist()):
            stop = find_stop(ids, self.stop_ids)
            if stop is not None or full:
                done[position] = (self.rows[position], tuple(ids if stop is None else ids[: stop + 1]))
        return done

    def _drop(self, positions: set[int]) -> None:
        kept = [position for position in range(len(self.rows)) if position not in positions]
        self.rows = [self.rows[position] for position in kept]
        if positions and kept:
            index = torch.tensor(kept, device=self.ids.device)
            self.ids, self.mask = self.ids[index], self.mask[index]
            self.cache.batch_select_indices(index)


class _Pace:
    """Rows done and new tokens a second, on the bar."""

    def __init__(self, bar: Bar) -> None:
        self.bar, self.tokens, self.started = bar, 0, time.monotonic()

    def advance(self, rows: int) -> None:
        """Move the bar; also called with 0 rows to show the pace."""
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


def _shared_prefix(inner: Any, prompts: Sequence[Sequence[int]]) -> _Prefix | None:
    """Keys and values of the common beginning, when it is long enough and the model can resume from it.

    Padding between prefix and rest moves tokens apart in the cache, so it is only right for models
    that take explicit positions and look at everything: no sliding windows, no recurrent states.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if len(prompts) < 2 or "position_ids" not in inspect.signature(inner.forward).parameters:
        return None
    if inner.config._attn_implementation not in ("sdpa", "eager"):
        return None
    first = prompts[0]
    length = min(_common(first, other) for other in prompts[1:])
    length = min(length, min(map(len, prompts)) - 1)  # every row keeps a token of its own to continue from
    if length < MIN_SHARED_TOKENS:
        return None
    cache = DynamicCache(config=inner.config)
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    ids = torch.tensor([list(first[:length])], dtype=torch.long, device=inner.device)
    inner(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return _Prefix(tuple(first[:length]), cache)


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
    """Rows at once when nobody says: a CPU is busy with 32; a GPU reads its weights once a step for any number."""
    return 256 if device_type == "cuda" else 32


def token_capacity(model: Any, *, share: float = 0.4) -> int | None:
    """Tokens whose keys and values fit into a share of the free device memory; None on a CPU.

    2 (key and value) x layers x key/value heads x head size x bytes of an element.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if inner.device.type != "cuda":
        return None
    config = inner.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes: int = 2 * config.num_hidden_layers * heads * head_size * inner.dtype.itemsize
    free_bytes, _ = torch.cuda.mem_get_info(inner.device)
    return max(1, int(free_bytes * share) // token_bytes)
