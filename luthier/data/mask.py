"""Which characters of a rendered conversation are trained, with a proof for each turn (contract 1).

No marker of any known template is searched for. For the assistant message i:

    full      <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n...
    prompt_i  <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n
    alone_i   <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n
    turn                                                             |Hello<|im_end|>|

1. *Start*. What a server sends to get message i, `prompt_i`, must be a prefix of the rendering
   trained on. Then everything before the turn is, byte for byte, what the model is served.
   Where the messages before i cannot be rendered by themselves (a conversation that starts with
   the assistant) the message's content is replaced by two different sentinels; the renderings agree
   before and after it, and what stands before it must end with the template's generation prompt.
2. *End*. `alone_i` renders the messages up to and including i. The last added token in it, with
   nothing but white space behind, closes the turn: it is what the model must emit to stop, and is
   trained; the white space behind it is not. A template that also writes an end-of-text token at
   the very end (Phi-3) is found out by letting the conversation go on.
3. *Text*. The turn in the full rendering must be the one in `alone_i`, up to text that the
   template itself puts in front of a last answer (an empty think block). Everything the message
   says (content, reasoning, tool calls) must be in it; white space may differ and is noted.

A turn that fails is *refused*, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from luthier.data.encode import Interval
from luthier.data.sandbox import TemplateFailure
from luthier.data.saying import (
    SENTINELS,
    Unprovable,
    add_note,
    check_says_all,
    common_length,
    content_span,
    find_content,
    is_blank,
    message_texts,
    place_span,
)
from luthier.data.template import ChatTemplate, Rendering, difference
from luthier.data.types import Conversation

__all__ = ["WAYS_OUT", "Proof", "Turn", "Unprovable", "prove"]

WAYS_OUT = "ways out: `data.loss_on: last_assistant`, `model.chat_template_kwargs`, or another `model.chat_template`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One trained assistant message: characters [start, end) of the rendering, terminator included."""

    message: int
    start: int
    end: int
    terminator: str
    method: Literal["prefix", "sentinel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What to tokenise, and the loss weight of each stretch of it."""

    text: str
    starts: list[int]
    """Where assistant turns begin, trained or not: the ids before each must be those of the prompt alone."""
    literals: list[Interval]
    """Control tokens that are data, not template."""
    turns: list[Turn]
    weights: list[tuple[int, int, float]]
    """(start, end, weight) of characters; later ones override earlier ones; 0 elsewhere."""
    notes: list[str] = field(default_factory=list)
    blank: bool = False
    """Nothing but terminators would be trained: every answer is empty."""


def prove(
    conversation: Conversation, template: ChatTemplate, *, loss_on: Literal["assistant", "last_assistant", "all"]
) -> Proof:
    """Find and prove the trained characters of a `chat` conversation.

    `loss_on: all` trains the whole rendering and needs no turn; messages with a weight of their own
    are still located in it. A weight on a message that is not the assistant's covers its content.

    Raises:
        Unprovable: with the message and the first difference.
    """
    messages = conversation.messages
    notes: list[str] = []
    rendering = Rendering(template, messages, conversation.tools)
    try:
        text = rendering.full
        literals = rendering.literals(text)
        starts = rendering.starts(text, below=len(messages))
    except TemplateFailure as failure:
        raise Unprovable(f"the chat template refuses this row: {failure}") from failure
    weights: list[tuple[int, int, float]] = [(0, len(text), 1.0)] if loss_on == "all" else []
    turns: list[Turn] = []
    blank = True
    for index, weight in sorted(_wanted(conversation, loss_on).items()):
        spans = conversation.span_weights.get(index, ())
        if messages[index].get("role") == "assistant":
            turn, content = _prove_turn(rendering, index, text, literals, notes)
            turns.append(turn)
            starts = sorted({*starts, turn.start})
            weights.append((turn.start, turn.end, weight))
            blank = blank and is_blank(messages[index])
        else:
            content = content_span(rendering, index, text)
            weights.append((*content, weight))
            blank = blank and not weight
        for begin, end, own in spans:
            first, last = place_span(messages[index], (begin, end), content, text, index)
            weights.append((first, last, own))
    nothing = blank and bool(turns or weights) and loss_on != "all"
    return Proof(text=text, starts=starts, literals=literals, turns=turns, weights=weights, notes=notes, blank=nothing)


def _wanted(conversation: Conversation, loss_on: str) -> dict[int, float]:
    """Weight of each message that must be located: the row's own, else as `loss_on` says."""
    own = dict(enumerate(conversation.message_weights))
    answers = [i for i, message in enumerate(conversation.messages) if message.get("role") == "assistant"]
    default = set(answers if loss_on == "assistant" else answers[-1:] if loss_on == "last_assistant" else ())
    wanted: dict[int, float] = {}
    for index in range(len(conversation.messages)):
        weight, spans = own.get(index), conversation.span_weights.get(index, ())
        base = 1.0 if index in default or loss_on == "all" else 0.0
        if weight is not None:
            base = float(weight)
        explicit = loss_on == "all" and (weight is not None or spans)
        if explicit or (loss_on != "all" and (base or any(w for _, _, w in spans))):
            wanted[index] = base
    return wanted


# --- one turn -----------------------------------------------------------------------------------------------------


def _prove_turn(
    rendering: Rendering, index: int, text: str, literals: list[Interval], notes: list[str]
) -> tuple[Turn, Interval]:
    """The turn of message `index`, and where its content stands in the text."""
    start, method = _start(rendering, index, text)
    alone = _alone(rendering, index)
    alone_literals = literals if alone == text else _literals(rendering, alone, index)
    token = _terminator(rendering, index, alone, start, alone_literals)
    terminator = alone[token[0] : token[1]]
    if text.startswith(alone[: token[1]]):
        end = token[1]
    else:
        end = _end_in_history(rendering, index, text, start, literals, alone=alone[start : token[1]], sign=terminator)
        add_note(notes, "template writes less of an earlier turn than of the last")
    body = text[start : end - len(terminator)]
    check_says_all(rendering.messages[index], body, index, notes)
    if method == "sentinel":
        content = content_span(rendering, index, text)
    else:
        content = find_content(rendering, index, text, (start, end - len(terminator)))
    return Turn(message=index, start=start, end=end, terminator=terminator, method=method), content


def _start(rendering: Rendering, index: int, text: str) -> tuple[int, Literal["prefix", "sentinel"]]:
    try:
        prompt = rendering.prompt(index)
    except TemplateFailure:
        return _sentinel_start(rendering, index, text), "sentinel"
    if text.startswith(prompt):
        return len(prompt), "prefix"
    if index == 0:  # no server can be asked with an empty conversation, so its rendering proves nothing
        return _sentinel_start(rendering, index, text), "sentinel"
    raise Unprovable(
        f"message {index} (assistant): the prompt a server would send is not the beginning of the rendered row: "
        f"{difference(text, prompt, names=('the row has', 'the prompt'))}"
    )


def _sentinel_start(rendering: Rendering, index: int, text: str) -> int:
    """Start of a turn whose messages before cannot be rendered by themselves."""
    content = content_span(rendering, index, text)
    opening = _generation_prompt(rendering)
    start = text.rfind(opening, 0, content[0]) + len(opening) if opening else -1
    between = text[start : content[0]]
    found = opening and text.rfind(opening, 0, content[0]) >= 0
    if not found or rendering.template.encoder.control_pattern.search(between):
        raise Unprovable(
            f"message {index} (assistant): the text before it, {text[max(0, content[0] - 40) : content[0]]!r}, "
            f"does not end with the template's generation prompt {opening!r}"
        )
    return start


def _generation_prompt(rendering: Rendering) -> str:
    """What `add_generation_prompt` adds to a conversation, from a probe."""
    probe = Rendering(rendering.template, [{"role": "user", "content": SENTINELS[0]}], rendering.tools)
    try:
        without, served = probe.full, probe.prompt(1)
    except TemplateFailure:
        return ""
    place = common_length(without, served)
    for match in rendering.template.encoder.added_pattern.finditer(served):
        if match.start() < place < match.end():
            place = match.start()
    return served[place:]


def _alone(rendering: Rendering, index: int) -> str:
    try:
        return rendering.upto(index + 1)
    except TemplateFailure as failure:
        raise Unprovable(
            f"message {index} (assistant): the conversation up to it cannot be rendered: {failure}"
        ) from failure


def _literals(rendering: Rendering, alone: str, index: int) -> list[Interval]:
    try:
        return rendering.literals(alone, upto=index + 1)
    except TemplateFailure as failure:
        raise Unprovable(f"message {index} (assistant): {failure}") from failure


# --- the terminator -----------------------------------------------------------------------------------------------


def _terminator(rendering: Rendering, index: int, alone: str, start: int, literals: list[Interval]) -> Interval:
    """The added token that closes the turn in `alone`."""
    closing: list[Interval] = []
    place = len(alone)
    for span in reversed(list(_written(rendering, alone, start, literals))):
        if alone[span[1] : place].strip():
            break
        closing.insert(0, span)
        place = span[0]
    texts = [text.strip() for _, text in message_texts(rendering.messages[index])]
    closing = [span for span in closing if not any(_is_ending_of(text, alone, span) for text in texts)]
    if not closing:
        raise Unprovable(
            f"message {index} (assistant): the template does not close the turn with a token of the tokenizer (it ends "
            f"with {alone[-40:]!r}), so the model would never learn to stop"
        )
    return closing[-1] if len(closing) == 1 else _kept_when_continued(rendering, index, alone, start, closing)


def _is_ending_of(text: str, alone: str, span: Interval) -> bool:
    """Whether an added token is the end of what the message says, and so proves nothing about the template.

    Control tokens in data are known already (`literals`); this is about others (`</think>`).
    """
    before, token = alone[: span[0]].rstrip(), alone[slice(*span)]
    return text.endswith(token) and alone[: span[1]].endswith(text) and not before.endswith(text)


def _kept_when_continued(rendering: Rendering, index: int, alone: str, start: int, closing: list[Interval]) -> Interval:
    """Of several closing tokens the last that is still there when a user message follows."""
    longer = [*rendering.messages[: index + 1], {"role": "user", "content": SENTINELS[0]}]
    probe = Rendering(rendering.template, longer, rendering.tools)
    try:
        continued = probe.prompt(len(longer))
        data = probe.literals(continued, prompt_of=len(longer))
    except TemplateFailure:
        return closing[-1]
    going_on = {continued[a:b] for a, b in _written(rendering, continued, min(start, len(continued)), data)}
    return next((span for span in reversed(closing) if alone[slice(*span)] in going_on), closing[-1])


def _written(rendering: Rendering, text: str, start: int, literals: list[Interval]) -> Iterator[Interval]:
    """Added tokens in a text from `start` on, apart from those that are data."""
    data = set(literals)
    for match in rendering.template.encoder.added_pattern.finditer(text, start):
        if match.span() not in data:
            yield match.span()


def _end_in_history(
    rendering: Rendering,
    index: int,
    text: str,
    start: int,
    literals: list[Interval],
    *,
    alone: str,
    sign: str,
) -> int:
    """End of a turn that the template writes differently once the conversation goes on."""
    for a, b in _written(rendering, text, start, literals):
        if text[a:b] == sign:
            if alone.endswith(text[start:b]):
                return b
            break
    raise Unprovable(
        f"message {index} (assistant): the template rewrites this turn when the conversation goes on: "
        f"{difference(text[start:], alone, names=('the row has', 'an answer to the prompt'))}"
    )
