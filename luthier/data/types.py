"""Records that the data stages hand to each other. No torch, no tokenizer.

Source --read--> Row --normalise--> Conversation --template+mask--> Example --pack--> Pack --collate--> Batch

Rows of preferences: Conversation (`pair`, `rated`) --each answer as above--> Branched --pack--> Pack --collate--> Batch
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Branched", "Changed", "Conversation", "Dropped", "Example", "Pack", "RowRef", "Segment", "TrainRow"]

Kind = Literal["chat", "prompt_completion", "text", "segments", "pair", "rated"]


@dataclass(frozen=True, slots=True)
class RowRef:
    """Where a row came from; shown in every message about it."""

    file: str
    line: int
    """1-based line of a text file, or 1-based row of a table."""
    source: int = 0
    """Index into `data.train` (or into the task's sources)."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Segment:
    """Template-free piece of text with its loss weight (0 = context)."""

    text: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """One row in normal form. Exactly one of the six shapes, named by `kind`.

    chat: `messages` (dicts as in the OpenAI API: role, content, tool_calls, name, tool_call_id,
      reasoning_content, ..., values exactly as in the file), `tools`.
      Loss control, removed from the dicts before the template sees them:
      `message_weights[i]` is the row's own weight of message i (None: `data.loss_on` decides);
      `span_weights[i]` are (start, end, weight) character ranges of message i's content.
    prompt_completion: `prompt`, `completion`: raw strings, no template; end-of-text token added and trained.
    text: `text`: all of it is trained; end-of-text token added and trained.
    segments: `segments`: raw pieces, each with its weight.
    pair: `answers`: the conversation with the chosen and the one with the rejected answer, each complete (`chat` or
      `prompt_completion`) and weighted so that only what follows the shared prompt counts; `margin`.
    rated: `answers`: one such conversation; `label` says whether its answer is desired.
    """

    kind: Kind
    ref: RowRef
    messages: Sequence[Mapping[str, Any]] = ()
    tools: Sequence[Mapping[str, Any]] | None = None
    message_weights: Sequence[float | None] = ()
    span_weights: Mapping[int, Sequence[tuple[int, int, float]]] = field(default_factory=dict)
    prompt: str = ""
    completion: str = ""
    text: str = ""
    segments: Sequence[Segment] = ()
    answers: Sequence[Conversation] = ()
    label: bool | None = None
    margin: float | None = None
    """By how much the reward of the chosen answer should be higher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One tokenised row."""

    ids: Sequence[int]
    weights: Sequence[float]
    """Loss weight of each token as a *target*; 0 = context. weights[0] is always 0: nothing predicts it."""
    ref: RowRef
    notes: Sequence[str] = ()
    """What happened on the way: `truncated 1310 -> 1024`, `template trims whitespace`, ..."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def trained_tokens(self) -> int:
        """Tokens with a non-zero weight."""
        return sum(1 for weight in self.weights if weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Branched:
    """One tokenised row of preferences: a prompt, and the answers that continue it.

    A pair has two answers, (chosen, rejected); a rated answer has one, with its `label`. The prompt is the longest
    beginning that all answers share before the first trained token of any of them, so it is computed once.
    """

    prompt: Sequence[int]
    """Ids of the shared beginning; at least one."""
    answers: Sequence[Sequence[int]]
    """Ids of each answer; none is empty."""
    weights: Sequence[Sequence[float]]
    """Of each token of each answer as a target: 1 = counts, 0 = context. Each answer has one that counts."""
    label: bool | None = None
    """Of a rated answer: whether it is desired."""
    margin: float | None = None
    """Of a pair: by how much the reward of the chosen answer should be higher."""
    reference: Sequence[float] | None = None
    """Log-probability of each answer under the reference model, summed over the tokens that count (nats)."""
    ref: RowRef
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.prompt) + sum(len(answer) for answer in self.answers)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with the longest of its answers: what `data.max_length` limits."""
        return len(self.prompt) + max(len(answer) for answer in self.answers)

    @property
    def trained_tokens(self) -> int:
        """Tokens that count, of all answers."""
        return sum(1 for weights in self.weights for weight in weights if weight)


TrainRow = Example | Branched
"""A tokenised row, of either kind."""


Changed = Literal["redacted", "fixed", "trimmed", "cut", "template"]
"""What happened to a row that is used otherwise than it stands in its file: personal data replaced, damaged text
mended, a shared ending cut off, cut at `max_length`, text that the template altered."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that is not used, and why. Never silently: counted in the manifest, listed in `data/losses.jsonl`."""

    ref: RowRef
    reason: Literal[
        "overlong",
        "empty",
        "equal",
        "duplicate",
        "filtered",
        "contaminated",
        "unprovable",
        "control_token",
        "sampled_out",
    ]
    detail: str


@dataclass(frozen=True, slots=True)
class Pack:
    """One training sequence: indices of the examples laid end to end (one index without packing)."""

    examples: tuple[int, ...]
    tokens: int
