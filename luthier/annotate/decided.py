"""Decisions of several annotators -> one outcome a row, and the row that outcome makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from luthier.annotate.edits import Edit, apply_edits
from luthier.annotate.items import Item
from luthier.annotate.labels import Outcome, outcome_of
from luthier.annotate.record import Record
from luthier.data.types import Conversation

__all__ = ["LeftOut", "Resolve", "as_pair", "as_single", "resolve"]

Resolve = Literal["agree", "majority"]
"""agree: all who decided say the same; majority: more than half of them do."""


class LeftOut(Exception):
    """Why a row is not exported."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def resolve(decisions: Mapping[str, Record], how: Resolve) -> Outcome:
    """The outcome that stands.

    Raises:
        LeftOut: nobody decided, or they do not agree.
    """
    if not decisions:
        raise LeftOut("undecided")
    outcomes = Counter(outcome_of(record) for record in decisions.values())
    outcome, count = outcomes.most_common(1)[0]
    if len(outcomes) > 1 and (how == "agree" or 2 * count <= len(decisions)):
        said = ", ".join(f"{name}: {outcome_of(record).category}" for name, record in sorted(decisions.items()))
        raise LeftOut("conflict", said)
    return outcome


def as_single(item: Item, outcome: Outcome) -> Conversation:
    """The row to train on.

    Accepted and edited rows as they are; of a pair the prompt with the better answer; of a rated answer the answer
    when it is desired.

    Raises:
        LeftOut: rejected, a tie, or an answer that is not desired.
    """
    if outcome.category in {"reject", "tie"}:
        raise LeftOut("rejected" if outcome.category == "reject" else "tie")
    row = _edited(item, outcome)
    if row.kind == "pair":
        return _trained(row.answers[0 if outcome.category == "first" else 1])
    if row.kind == "rated":
        if not row.label and outcome.category == "accept":
            raise LeftOut("not_desired", "the row's own label is false, and the label was accepted")
        return _trained(row.answers[0])
    if item.empty and outcome.category == "accept":
        raise LeftOut("empty", item.empty)
    return row


def as_pair(item: Item, outcome: Outcome) -> Conversation:
    """The row as a preference: the better answer before the other; an edited answer before what it was.

    Raises:
        LeftOut: rejected, a tie, or nothing to prefer it to.
    """
    if outcome.category in {"reject", "tie"}:
        raise LeftOut("rejected" if outcome.category == "reject" else "tie")
    if item.conversation.kind == "pair":
        row = _edited(item, outcome)
        if outcome.category == "second":
            # A margin says by how much the file's first answer is better; it does not hold the other way round.
            row = replace(row, answers=(row.answers[1], row.answers[0]), margin=None)
        if row.answers[0] == row.answers[1]:
            raise LeftOut("equal", "both answers are the same")
        return row
    if outcome.category == "accept":
        raise LeftOut("no_second_answer", "accepted as it is, so there is nothing to prefer it to")
    if item.empty:
        raise LeftOut("empty", f"the answer before the edit: {item.empty}")
    before = item.conversation.answers[0] if item.conversation.answers else item.conversation
    after = _edited(item, outcome)
    after = after.answers[0] if after.answers else after
    if before.kind not in {"chat", "prompt_completion"}:
        raise LeftOut("no_prompt", f"{before.kind} has no prompt that two answers could share")
    start = min(edit[1] for edit in outcome.texts)
    return Conversation(kind="pair", ref=before.ref, answers=(_from(after, start), _from(before, start)))


def _edited(item: Item, outcome: Outcome) -> Conversation:
    return apply_edits(item.conversation, [Edit(*edit) for edit in outcome.texts])


def _from(row: Conversation, start: int) -> Conversation:
    """A chat whose first messages are prompt: they count nothing."""
    if row.kind != "chat":
        return row
    weights = [0.0 if place < start else _whole(weight) for place, weight in enumerate(row.message_weights)]
    spans = {place: own for place, own in row.span_weights.items() if place >= start}
    return replace(row, message_weights=tuple(weights), span_weights=spans)


def _whole(weight: float | None) -> float | None:
    """A message of an answer counts or it does not."""
    return weight if weight is None else float(weight > 0)


def _trained(row: Conversation) -> Conversation:
    """An answer as a row of its own: answers in its prompt stay context; other messages need no weight to be that."""
    weights = tuple(
        weight if message["role"] == "assistant" or weight else None
        for message, weight in zip(row.messages, row.message_weights, strict=True)
    )
    return replace(row, message_weights=weights) if row.kind == "chat" else row
