"""One row to token ids and loss weights, checked against its text.

Whatever the kind of row, the same proof ends it: the tokens that are trained decode to exactly the
text that is to be trained, the ids before each answer are those of the prompt alone, no control
token appears that the data merely spells, and the row begins with at most one BOS token.

Policies, by kind of row:

- chat: the rendering is encoded as it stands; BOS is the template's business, as on a server. A
  template that writes none for a tokenizer that adds one to plain text is noted, not mended: servers
  (transformers, vLLM) send such prompts without a BOS, and training must see what is served.
- prompt_completion, text: the tokenizer's own BOS in front if it has one, the end-of-text token
  behind, trained. The completion starts a piece of its own, as in serving.
- segments: as prompt_completion, but control tokens in them are the row's own template and stay
  tokens (`control_tokens: error` still refuses them); the end-of-text token is added, with the
  last segment's weight, only if that is trained and does not end with a control token already.

A token that straddles two ranges of weights has the weight of its last character (` word` belongs
to `word`).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from luthier.data.encode import LONG_PREFIX, Encoded, Encoder, Interval
from luthier.data.mask import Unprovable, prove
from luthier.data.template import ChatTemplate
from luthier.data.types import Branched, Conversation, Dropped, Example, TrainRow
from luthier.recipe.schema import DataSection
from luthier.runtime.errors import DataError, Problem

__all__ = ["Tokenized", "raw_prompt_ids", "tokenize_all", "tokenize_conversation"]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What a row is to become: everything but the ids."""

    text: str
    starts: list[int]
    literals: list[Interval]
    weights: list[tuple[int, int, float]]
    turns: list[Interval]
    methods: tuple[str, ...] = ()
    terminators: tuple[str, ...] = ()
    prefix: list[int] = field(default_factory=list)
    suffix: list[int] = field(default_factory=list)
    suffix_weight: float = 1.0
    notes: list[str] = field(default_factory=list)


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
        plans = [_plan(conversation, template, section) for conversation in chunk]
        template.encoder.prepare(_texts(plans, template.encoder))
        for conversation, plan in zip(chunk, plans, strict=True):
            if isinstance(plan, Dropped):
                yield Tokenized(result=plan)
            else:
                yield _assemble(conversation, plan, template.encoder, section)


def raw_prompt_ids(prompt: str, template: ChatTemplate) -> list[int]:
    """Ids of a raw prompt, as rows of `prompt_completion` begin.

    Raises:
        DataError: it holds a control token, and `control_tokens: error` is set.
    """
    encoder = template.encoder
    literals = [match.span() for match in encoder.control_pattern.finditer(prompt)]
    if literals and template.control_tokens == "error":
        message = f"the prompt contains the control token {prompt[slice(*literals[0])]!r}"
        raise DataError(problems=[Problem(code="D223", message=message, hint="`data.control_tokens: text`")])
    as_text = template.control_tokens == "text"
    encoded = encoder.encode(prompt, literals if as_text else ())
    return [*_prefix(encoder, prompt, as_text), *encoded.ids]


def _texts(plans: Sequence[_Plan | Dropped], encoder: Encoder) -> Iterator[str]:
    for plan in plans:
        if isinstance(plan, _Plan) and not plan.literals:
            yield plan.text
            for start in plan.starts:
                if start <= LONG_PREFIX and not encoder.has_known_tail(plan.text, start):
                    yield plan.text[:start]


# --- plans --------------------------------------------------------------------------------------------------------


def _plan(conversation: Conversation, template: ChatTemplate, section: DataSection) -> _Plan | Dropped:
    plan = _plan_chat if conversation.kind == "chat" else _plan_pieces
    return plan(conversation, template, section)


def _plan_chat(conversation: Conversation, template: ChatTemplate, section: DataSection) -> _Plan | Dropped:
    ref = conversation.ref
    if not conversation.messages:
        return Dropped(ref, "empty", "no messages")
    try:
        proof = prove(conversation, template, loss_on=section.loss_on)
    except Unprovable as refusal:
        return Dropped(ref, "unprovable", str(refusal))
    if proof.literals and section.control_tokens == "error":
        return _control_token(conversation, proof.text[slice(*proof.literals[0])])
    if proof.blank:
        return Dropped(ref, "empty", "the answer to train on is empty")
    if not any(weight for _, _, weight in proof.weights):
        return Dropped(ref, "empty", "no assistant message to train on")
    notes = list(proof.notes)
    literals = proof.literals if section.control_tokens == "text" else []
    if proof.literals:
        notes.append("control tokens in the data kept as text" if literals else "control tokens in the data allowed")
    if template.encoder.default_prefix and not proof.text.startswith(template.encoder.bos[0] or "\0"):
        notes.append("template writes no BOS token, though the tokenizer adds one to plain text")
    return _Plan(
        text=proof.text, starts=proof.starts, literals=literals, weights=proof.weights, notes=notes,
        turns=[(turn.start, turn.end) for turn in proof.turns],
        methods=tuple(turn.method for turn in proof.turns) or ("whole",),
        terminators=tuple(turn.terminator for turn in proof.turns),
    )  # fmt: skip


def _plan_pieces(conversation: Conversation, template: ChatTemplate, section: DataSection) -> _Plan | Dropped:
    """Rows without a template: pieces of text, each with its weight."""
    encoder, pieces = template.encoder, _pieces(conversation, section)
    trained = [text for text, weight in pieces if weight]
    if not any(text.strip() for text in trained):
        return Dropped(conversation.ref, "empty", "no trained text" if not trained else "the text to train on is empty")
    starts, weights, literals = [], [], []
    place = 0
    for text, weight in pieces:
        starts.append(place)
        weights.append((place, place + len(text), weight))
        literals += [(m.start() + place, m.end() + place) for m in encoder.control_pattern.finditer(text)]
        place += len(text)
    whole = "".join(text for text, _ in pieces)
    if literals and section.control_tokens == "error":
        return _control_token(conversation, whole[slice(*literals[0])])
    as_text = section.control_tokens == "text" and conversation.kind != "segments"
    notes = []
    if literals:
        notes.append("control tokens in the data kept as text" if as_text else "control tokens in the data allowed")
    last = pieces[-1]
    closed = bool(literals) and not as_text and literals[-1][1] == len(whole)
    if conversation.kind != "segments":
        closed = closed and whole.endswith(template.tokenizer.eos_token or "\0")
    return _Plan(
        text=whole, starts=starts, literals=literals if as_text else [], weights=weights, notes=notes,
        turns=[span[:2] for span in weights if span[2] and span[1] > span[0]], methods=("pieces",),
        prefix=_prefix(encoder, whole, as_text), suffix=[] if closed or not last[1] else [_eos(template.tokenizer)],
        suffix_weight=last[1],
    )  # fmt: skip


def _pieces(conversation: Conversation, section: DataSection) -> list[tuple[str, float]]:
    if conversation.kind == "text":
        return [(conversation.text, 1.0)]
    if conversation.kind == "segments":
        return [(segment.text, segment.weight) for segment in conversation.segments] or [("", 0.0)]
    return [(conversation.prompt, 1.0 if section.loss_on == "all" else 0.0), (conversation.completion, 1.0)]


def _prefix(encoder: Encoder, text: str, as_text: bool) -> list[int]:
    """The tokenizer's own BOS, unless the text brings one that counts."""
    prefix = encoder.default_prefix
    own = not as_text and prefix and text.startswith(encoder.tokenizer.bos_token or "\0")
    return [] if own else prefix


def _eos(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        message = "the tokenizer has no end-of-text token, so a model trained on plain text would never learn to stop"
        raise DataError(
            problems=[Problem(code="D245", message=message, hint="set `eos_token` in tokenizer_config.json")]
        )
    return int(tokenizer.eos_token_id)


def _control_token(conversation: Conversation, token: str) -> Dropped:
    return Dropped(conversation.ref, "control_token", f"the data contains the control token {token!r}")


# --- ids and weights ----------------------------------------------------------------------------------------------


def _assemble(conversation: Conversation, plan: _Plan, encoder: Encoder, section: DataSection) -> Tokenized:
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


def _token_weights(encoded: Encoded, plan: _Plan) -> list[float]:
    characters = np.zeros(len(plan.text) + 1, dtype=np.float32)
    for start, end, weight in plan.weights:
        characters[start:end] = weight
    ends = np.asarray(encoded.ends, dtype=np.int64)
    found: list[float] = characters[np.maximum(ends - 1, 0)].tolist()
    return found


def _check(encoded: Encoded, plan: _Plan, encoder: Encoder, notes: list[str]) -> None:
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
