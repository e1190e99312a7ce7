"""Evaluation over pages: how much memory, which prompts first, what is said when it does not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from luthier.generation.paged.continuous import Counts, NotFinite, answers
from luthier.generation.paged.model import PagedModel, Shape
from luthier.generation.paged.pool import PAGE_TOKENS, NoPages, pages_for
from luthier.generation.paged.support import shape_of
from luthier.runtime.console import note
from luthier.runtime.errors import OutOfMemory, RunFailed

__all__ = ["answer_all", "paged_shape"]


def paged_shape(inner: Any, *, wanted: bool | None) -> Shape | None:
    """Keys and values of a model that is to be answered over pages; None for the plain path.

    Args:
        inner: The model.
        wanted: None for pages on a GPU and the plain path elsewhere.

    Raises:
        RunFailed: pages are wanted and impossible.
    """
    if wanted is False or (wanted is None and inner.device.type != "cuda"):
        return None
    found = shape_of(inner)
    if isinstance(found, Shape):
        return found
    if wanted:
        raise RunFailed(code="S651", message=f"this model cannot be answered over pages: {found}",
                        hint="leave the way of generation open")  # fmt: skip
    note(f"generation takes the plain path, batch after batch: {found}")
    return None


def answer_all(
    inner: Any,
    shape: Shape,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    batch_size: int,
    capacity: int,
    shared: int,
    on_tokens: Callable[[int], None],
    counts: Counts | None = None,
    graphs: bool = True,
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield (index of the prompt, generated ids) as rows finish.

    Args:
        inner: From `ready_to_generate`.
        shape: From `paged_shape`.
        prompts: Token ids.
        max_new_tokens: Longest answer.
        stop_ids: Tokens that end an answer.
        batch_size: Most rows at once.
        capacity: Most tokens whose keys and values fit.
        shared: Tokens that all prompts begin with.
        on_tokens: Hears of new tokens.
        counts: Filled in.
        graphs: Record steps as CUDA graphs.

    Raises:
        OutOfMemory: one row alone does not fit.
        RunFailed: logits are not finite.
    """
    slots = min(batch_size, len(prompts)) + (1 if shared >= PAGE_TOKENS else 0)
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    longest = len(prompts[order[0]]) + max_new_tokens
    widths = [(pages_for(len(prompts[index]) + max_new_tokens) + 1) * PAGE_TOKENS for index in order[:slots]]
    tokens = min(capacity, sum(widths) + (shared if slots > 1 else 0))
    if pages_for(longest) > tokens // PAGE_TOKENS:
        raise _too_long(longest, tokens)
    paged = PagedModel(inner, shape, slots=slots, tokens=tokens, context=longest + PAGE_TOKENS, graphs=graphs)
    try:
        with paged.ready():
            for row, ids in answers(
                paged, [prompts[index] for index in order], max_new_tokens=max_new_tokens, stop_ids=stop_ids,
                shared=shared, on_tokens=on_tokens, counts=counts,
            ):  # fmt: skip
                yield order[row], ids
    except NoPages:
        raise _too_long(longest, tokens) from None
    except NotFinite:
        raise RunFailed(
            code="S652", message="the model's logits are not finite: it cannot answer",
            hint="look at the loss of the run, or load the model with `dtype: float32`",
        ) from None  # fmt: skip


def _too_long(longest: int, tokens: int) -> OutOfMemory:
    return OutOfMemory(
        code="S650", message=f"a prompt and its answer need {longest} tokens of cache, {tokens} fit into memory",
        hint="lower the task's `max_new_tokens`, shorten the prompt, or free memory",
    )  # fmt: skip
