"""One row to token ids and loss weights, checked against its text.

Whatever the kind of row, the same proof ends it: the tokens that are trained decode to exactly the
text that is to be trained, the ids before each answer are those of the prompt alone, no control
token appears that the data merely spells, and the row begins with at most one BOS token.

What a row of each kind is to become stands in `row_plan.py`; here plans become ids and weights.
A token that straddles two ranges of weights has the weight of its last character (` word` belongs
to `word`).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from luthier.data.encode import LONG_PREFIX, Encoded, Encoder
from luthier.data.mask import Unprovable
from luthier.data.row_plan import RowPlan, plan_row
from luthier.data.template import ChatTemplate
from luthier.data.types import Branched, Conversation, Dropped, Example, TrainRow
from luthier.recipe.schema import DataSection

__all__ = ["Tokenized", "tokenize_all", "tokenize_conversation"]

_CHUNK_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """Outcome of one row, and what was proven about it."""

    result: TrainRow | Dropped
    methods: tuple[str, ...] = ()
    """How each trained turn was proven: `prefix`, `sentinel`, or `pieces` for rows without a template."""
    terminators: tuple[str, ...] = ()
    """Token that ends each trained turn."""
    full_tokens: int = 0
    """Tokens before any cut."""


def tokenize_conversation(
    conversation: Conversation, template: ChatTemplate, *, section: DataSection
) -> Example | Dropped:
    """Tokenise and mask one row; see the module text.

    Raises:
        DataError: the tokenizer or its template cannot be used at all.
    """
    result = next(tokenize_all([conversation], template, section=section)).result
    assert not isinstance(result, Branched)
    return result


def tokenize_all(
    conversations: Sequence[Conversation], template: ChatTemplate, *, section: DataSection
) -> Iterator[Tokenized]:
    """`tokenize_conversation` for many rows, tokenised some hundred at a time; outcomes in order."""
    rows = iter(conversations)
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        plans = [plan_row(conversation, template, section) for conversation in chunk]
        template.encoder.prepare(_texts(plans, template.encoder))
        for conversation, plan in zip(chunk, plans, strict=True):
            if isinstance(plan, Dropped):
                yield Tokenized(result=plan)
            else:
                yield _assemble(conversation, plan, template.encoder, section)


def _texts(plans: Sequence[RowPlan | Dropped], encoder: Encoder) -> Iterator[str]:
    for plan in plans:
        if isinstance(plan, RowPlan) and not plan.literals:
            yield plan.text
            for start in plan.starts:
                if start <= LONG_PREFIX and not encoder.has_known_tail(plan.text, start):
                    yield plan.text[:start]


def _assemble(conversation: Conversation, plan: RowPlan, encoder: Encoder, section: DataSection) -> Tokenized:
    encoded, cuts = encoder.encode_cut(plan.text, plan.starts, plan.literals)
    notes = [*plan.notes, *(["boundary split"] if cuts else [])]
    try:
        _check(encoded, plan, encoder, notes)
    except Unprovable as refusal:
        return Tokenized(result=Dropped(conversation.ref, "unprovable", str(refusal)))
    ids = [*plan.prefix, *encoded.ids, *plan.suffix]
    weights = [*[0.0] * len(plan.prefix), *_token_weights(encoded, plan), *[plan.suffix_weight] * len(plan.suffix)]
    weights[:1] = [0.0][: len(weights)]
    limit = section.max_length
    result: Example | Dropped
    if len(ids) > limit and section.overlong != "truncate":
        result = Dropped(conversation.ref, "overlong", f"{len(ids)} tokens; `data.max_length` is {limit}")
    else:
        if len(ids) > limit:
            notes.append(f"truncated {len(ids)} -> {limit}")
        result = Example(
            ids=array("i", ids[:limit]), weights=array("f", weights[:limit]), ref=conversation.ref, notes=tuple(notes)
        )
        if not any(result.weights):
            result = Dropped(conversation.ref, "empty", _why_empty(weights, limit))
    return Tokenized(result=result, methods=plan.methods, terminators=plan.terminators, full_tokens=len(ids))


def _why_empty(weights: Sequence[float], limit: int) -> str:
    first = next((place for place, weight in enumerate(weights) if weight), None)
    if first is None:
        return "no trained token (nothing predicts the first token of a row)"
    return f"cut at {limit} tokens, before its first trained token, number {first + 1}"


def _token_weights(encoded: Encoded, plan: RowPlan) -> list[float]:
    characters = np.zeros(len(plan.text) + 1, dtype=np.float32)
    for start, end, weight in plan.weights:
        characters[start:end] = weight
    ends = np.asarray(encoded.ends, dtype=np.int64)
    found: list[float] = characters[np.maximum(ends - 1, 0)].tolist()
    return found


def _check(encoded: Encoded, plan: RowPlan, encoder: Encoder, notes: list[str]) -> None:
    """The proof: see the module text.

    Raises:
        Unprovable: with the first thing that is not as it should be.
    """
    text, ids = plan.text, encoded.ids
    begin, bos = encoder.bos
    if bos is not None and [*plan.prefix, *ids[:2]][:2] == [bos, bos]:
        raise Unprovable(f"the row begins with two {begin!r} tokens")
    unknown_text, unknown = encoder.unknown
    literals = set(plan.literals)
    written = [m.span() for m in encoder.control_pattern.finditer(text) if m.span() not in literals]
    control = encoder.control_ids
    spelled = len([token for token in ids if token in control and token != unknown])
    expected = sum(1 for a, b in written if text[a:b] != unknown_text)
    if spelled != expected:
        raise Unprovable(
            f"{spelled} control tokens where the template writes {expected}: the tokenizer changes the text"
        )
    for start, end in plan.turns:
        first, last = bisect_right(encoded.ends, start), bisect_right(encoded.ends, end)
        got = encoder.decodes_to(encoded, first, last, text[start:end])
        if got is not None and got != "NFC":
            raise Unprovable(f"the trained tokens decode to {got[:80]!r}, not to {text[start:end][:80]!r}")
        if got == "NFC" and "tokenizer normalizes Unicode (NFC)" not in notes:
            notes.append("tokenizer normalizes Unicode (NFC)")
    whole = encoder.decodes_to(encoded, 0, len(ids), text)
    if whole is not None and "tokenizer normalizes Unicode (NFC)" not in notes:
        notes.append("tokenizer normalizes Unicode (NFC)" if whole == "NFC" else "tokenizer changes context text")
    for (start, end), sign in zip(plan.turns, plan.terminators, strict=False):
        if ids[bisect_right(encoded.ends, end) - 1] != encoder.added[sign]:
            raise Unprovable(f"the turn at character {start} does not end with the token {sign!r}")
