"""Rows of preferences to ids: each whole sequence is tokenised and proven by itself, then what they share is cut off.

    chosen    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n | Hello<|im_end|>\\n
    rejected  <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n | Go away<|im_end|>\\n
              prompt: ids that all share, before the first that counts | answers

`tokenize.py` has proven of each sequence that its trained tokens are what is served and that the ids before are those
of the prompt alone; `branch` only cuts, so prompt + answer is that very sequence, token for token. A template that
renders a prompt differently under its two answers makes the shared part shorter, and never wrong.

Length: `data.max_length` limits the prompt with the longer answer, the sequence a trainer without sharing would see.
`overlong: truncate` cuts the ends of answers, never the prompt; a row of which an answer has no token left that counts
is dropped, as is one whose answers are then the same.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from sys import maxsize

from luthier.data.template import ChatTemplate
from luthier.data.tokenize import Tokenized, tokenize_all
from luthier.data.types import Branched, Conversation, Dropped, Example
from luthier.recipe.schema import DataSection

__all__ = ["branch", "tokenize_preferences"]

_CHUNK_ROWS = 256


def tokenize_preferences(
    rows: Sequence[Conversation], template: ChatTemplate, *, section: DataSection
) -> Iterator[Tokenized]:
    """Tokenise rows of kind `pair` and `rated`; outcomes in order.

    Raises:
        DataError: the tokenizer or its template cannot be used at all.
        ValueError: `data.loss_on: all`, which would count the prompt.
    """
    if section.loss_on == "all":
        raise ValueError("preferences compare answers: `loss_on: all` would count the prompt, too")
    whole = section.model_copy(update={"max_length": maxsize})
    source = iter(rows)
    while chunk := list(islice(source, _CHUNK_ROWS)):
        outcomes = tokenize_all([answer for row in chunk for answer in row.answers], template, section=whole)
        for row in chunk:
            yield _joined(row, list(islice(outcomes, len(row.answers))), section)


def _joined(row: Conversation, outcomes: Sequence[Tokenized], section: DataSection) -> Tokenized:
    results = [outcome.result for outcome in outcomes]
    names = ("chosen", "rejected") if row.kind == "pair" else ("answer",)
    for name, result in zip(names, results, strict=True):
        if isinstance(result, Dropped):
            return Tokenized(result=Dropped(row.ref, result.reason, f"{name}: {result.detail}"))
    examples = [result for result in results if isinstance(result, Example)]
    found = branch(row, examples)
    full = len(found) if isinstance(found, Branched) else 0
    return Tokenized(
        result=_fitted(found, section, names) if isinstance(found, Branched) else found,
        methods=tuple(method for outcome in outcomes for method in outcome.methods),
        terminators=tuple(token for outcome in outcomes for token in outcome.terminators),
        full_tokens=full,
    )


def branch(row: Conversation, examples: Sequence[Example]) -> Branched | Dropped:
    """Cut what whole sequences share off as the prompt of a row.

    Args:
        row: of kind `pair` (two examples) or `rated` (one).
        examples: the sequence of each answer, prompt included.
    """
    first = min(next(place for place, weight in enumerate(example.weights) if weight) for example in examples)
    shared = _common([example.ids for example in examples], first)
    if shared == 0:
        detail = "the answers share not one token, so nothing predicts how they begin: give a `prompt`"
        return Dropped(row.ref, "unprovable", detail)
    answers = [array("i", example.ids[shared:]) for example in examples]
    weights = [array("f", example.weights[shared:]) for example in examples]
    if len(answers) == 2 and answers[0] == answers[1] and weights[0] == weights[1]:
        return Dropped(row.ref, "equal", "chosen and rejected are the same tokens")
    notes = dict.fromkeys(note for example in examples for note in example.notes)
    return Branched(
        prompt=array("i", examples[0].ids[:shared]), answers=tuple(answers), weights=tuple(weights), label=row.label,
        margin=row.margin, ref=row.ref, notes=tuple(notes),
    )  # fmt: skip


def _common(sequences: Sequence[Sequence[int]], limit: int) -> int:
    """Length of the common beginning, at most `limit`."""
    for place, tokens in enumerate(zip(*(sequence[:limit] for sequence in sequences), strict=False)):
        if len(set(tokens)) > 1:
            return place
    return limit


def _fitted(row: Branched, section: DataSection, names: Sequence[str]) -> Branched | Dropped:
    """The row within `data.max_length`."""
    limit, shared = section.max_length, len(row.prompt)
    if row.longest <= limit:
        return row
    if section.overlong != "truncate":
        what = "answer" if len(names) == 1 else "the longer answer"
        detail = f"{row.longest} tokens with {what}; `data.max_length` is {limit}"
        return Dropped(row.ref, "overlong", detail)
    room = max(0, limit - shared)
    answers = tuple(answer[:room] for answer in row.answers)
    weights = tuple(own[:room] for own in row.weights)
    for name, own in zip(names, weights, strict=True):
        if not any(own):
            detail = f"cut at {limit} tokens, before the first trained token of {name} (the prompt has {shared})"
            return Dropped(row.ref, "empty", detail)
    if len(answers) == 2 and answers[0] == answers[1] and weights[0] == weights[1]:
        return Dropped(row.ref, "equal", f"cut at {limit} tokens, before chosen and rejected differ")
    note = f"truncated {row.longest} -> {limit}"
    return Branched(
        prompt=row.prompt, answers=answers, weights=weights, label=row.label, margin=row.margin, ref=row.ref,
        notes=(*row.notes, note),
    )  # fmt: skip
