"""What a row is to become, by its kind: text, loss weights, and what stands before and behind it.

- chat: the rendering is encoded as it stands; BOS is the template's business, as on a server. A
  template that writes none for a tokenizer that adds one to plain text is noted, not mended: servers
  (transformers, vLLM) send such prompts without a BOS, and training must see what is served.
- prompt_completion, text: the tokenizer's own BOS in front if it has one, the end-of-text token
  behind, trained. The completion starts a piece of its own, as in serving.
- segments: as prompt_completion, but control tokens in them are the row's own template and stay
  tokens (`control_tokens: error` still refuses them); the end-of-text token is added, with the
  last segment's weight, only if that is trained and does not end with a control token already.

`tokenize.py` makes ids of it and proves them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from luthier.data.encode import Encoder, Interval
from luthier.data.mask import Unprovable, prove
from luthier.data.template import ChatTemplate
from luthier.data.types import Conversation, Dropped
from luthier.recipe.schema import DataSection
from luthier.runtime.errors import DataError, Problem

__all__ = ["RowPlan", "plan_row", "raw_prompt_ids"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPlan:
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


def plan_row(conversation: Conversation, template: ChatTemplate, section: DataSection) -> RowPlan | Dropped:
    """What a row is to become, or why it cannot."""
    plan = _plan_chat if conversation.kind == "chat" else _plan_pieces
    return plan(conversation, template, section)


def _plan_chat(conversation: Conversation, template: ChatTemplate, section: DataSection) -> RowPlan | Dropped:
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
    return RowPlan(
        text=proof.text, starts=proof.starts, literals=literals, weights=proof.weights, notes=notes,
        turns=[(turn.start, turn.end) for turn in proof.turns],
        methods=tuple(turn.method for turn in proof.turns) or ("whole",),
        terminators=tuple(turn.terminator for turn in proof.turns),
    )  # fmt: skip


def _plan_pieces(conversation: Conversation, template: ChatTemplate, section: DataSection) -> RowPlan | Dropped:
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
    return RowPlan(
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
