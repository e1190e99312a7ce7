"""Tokens added to the vocabulary: ids, embedding rows, and their start values.

A new row starts as the mean of the old rows: it changes no other token's probability much, and needs no
random numbers, so every process and every later load builds the same table. Ids follow the last token
of the tokenizer, so they may fall on padding rows that the model already has; those are overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["add_new_tokens", "extend_vocabulary", "new_token_ids"]


def add_new_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> int:
    """Add the tokens that the tokenizer lacks; returns how many that were.

    They are matched in any text and kept when decoding (not control tokens). A token that exists already
    (a reserved one, say) keeps its id; its row is trained from its present value.

    Raises:
        RecipeError: an empty token, or one listed twice.
    """
    from tokenizers import AddedToken

    bad = sorted({repr(token) for token in tokens if not token.strip() or list(tokens).count(token) > 1})
    if bad:
        message = f"`model.new_tokens` has empty or repeated entries: {', '.join(bad)}"
        raise RecipeError(code="M328", message=message, hint="list each token once")
    known = tokenizer.get_vocab()
    fresh = [AddedToken(token, normalized=False) for token in tokens if token not in known]
    return int(tokenizer.add_tokens(fresh)) if fresh else 0


def new_token_ids(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    """Ids of `model.new_tokens` in a tokenizer that has them.

    Raises:
        RecipeError: the tokenizer lacks one.
    """
    known = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in known]
    if missing:
        raise RecipeError(code="M328", message=f"the tokenizer lacks these new tokens: {', '.join(map(repr, missing))}")
    return [int(known[token]) for token in tokens]


def extend_vocabulary(model: PreTrainedModel, *, old_length: int, new_length: int) -> None:
    """Give ids `old_length` to `new_length - 1` embedding rows (input and output), each the mean of the old rows.

    Grows the tables only if they are too small; tied tables stay tied.
    """
    if new_length <= old_length:
        return
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < new_length:
        with torch.random.fork_rng(devices=[]):  # transformers draws values we overwrite; leave the caller's RNG alone
            model.resize_token_embeddings(new_length, mean_resizing=False)
    tables = {
        id(table.weight): table
        for table in (model.get_input_embeddings(), model.get_output_embeddings())
        if table is not None
    }
    start = min(old_length, rows)
    with torch.no_grad():
        for table in tables.values():
            table.weight[start:new_length] = table.weight[:start].float().mean(dim=0).to(table.weight.dtype)
