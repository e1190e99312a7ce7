"""Where the answers of a row of preferences begin, and that nothing before them counts.

What counts is what follows the prompt:

- A prompt of its own (`prompt`, `conversations`, `input.messages`, a mapped `user`) ends where the row says.
- Two whole conversations (TRL's implicit prompt) share their first equal messages; they must part at an answer.
- Two raw texts share their beginning up to the last `\\n\\nAssistant:` in it (Anthropic's hh-rlhf; the code of
  arXiv:2305.18290 cuts there), else up to the last word they share whole. TRL cuts inside words.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.data.messages import Findings, Messages, Path
from luthier.data.rows import show_value
from luthier.data.saying import common_length

__all__ = ["answers_of", "context_only", "shared_messages", "shared_text", "whole_weights"]

_HH_ANSWER = "\n\nAssistant:"


def shared_text(chosen: str, rejected: str) -> str:
    """The beginning that two raw texts share; see the module text."""
    shared = chosen[: common_length(chosen, rejected)]
    place = shared.rfind(_HH_ANSWER)
    if place >= 0:
        return shared[: place + len(_HH_ANSWER)]
    if shared and not shared[-1].isspace():
        shared = _without_last_word(shared)
    while shared.strip() and not (chosen[len(shared) :].strip() and rejected[len(shared) :].strip()):
        shared = _without_last_word(shared)  # neither answer may be left without a word
    return shared[:-1] if shared.endswith(" ") else shared  # tokenizers keep a space with the word behind it


def shared_messages(sides: Sequence[Messages], findings: Findings) -> int:
    """How many messages two whole conversations share, at least one answer of each left out."""
    first, second = (side.messages for side in sides)
    pairs = zip(first, second, strict=False)
    equal = next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
    last = [answers[-1] for side in sides if (answers := answers_of(side))]
    shared = min([equal, *last])
    if len(last) == len(sides) and shared == equal and equal < min(len(first), len(second)):
        roles = {str(message["role"]) for message in (first[equal], second[equal])}
        if roles != {"assistant"}:
            findings.add(
                (),
                f"chosen and rejected part at message {equal} ({' and '.join(sorted(roles))}), so they answer "
                "different prompts; give what they share as `prompt`",
            )
    return shared


def answers_of(found: Messages) -> list[int]:
    """Indices of the assistant's messages."""
    return [index for index, message in enumerate(found.messages) if message.get("role") == "assistant"]


def context_only(found: Messages, count: int, path: Path, findings: Findings) -> None:
    """The first messages are prompt: they count nothing, and must not ask to."""
    for index in range(min(count, len(found.messages))):
        spans = any(weight for _, _, weight in found.spans.get(index, ()))
        if found.weights[index] or spans:
            findings.add((*path, index), "a weight above 0 in the prompt: only what follows it can count")
        found.weights[index] = 0.0


def whole_weights(found: Messages, path: Path, findings: Findings) -> None:
    """A token counts or it does not: the log-probability of an answer has no fractions of tokens."""
    for index, weight in enumerate(found.weights):
        given = [weight, *(own for _, _, own in found.spans.get(index, ()))]
        bad = next((own for own in given if own not in (None, 0.0, 1.0)), None)
        if bad is not None:
            findings.add((*path, index), f"a weight of {show_value(bad)}: in preferences it is 0 or 1")


def _without_last_word(text: str) -> str:
    text = text.rstrip()
    return text[: -len(text.split()[-1])]
