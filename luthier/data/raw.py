"""Rows that are raw text, without a chat template: prompt and completion, plain text, segments."""

from __future__ import annotations

from luthier.data.chats import check_trainable, finish_chat
from luthier.data.fields import Fields
from luthier.data.messages import is_weight, read_messages
from luthier.data.types import Conversation, Segment

__all__ = ["read_prompt_completion", "read_segments", "read_text", "refuse_system"]


def read_prompt_completion(fields: Fields, system: str | None, loss_on: str) -> Conversation:
    """Two strings are raw text, as in TRL. Two lists of messages are a chat whose prompt is context only."""
    prompt, completion = fields.required("prompt"), fields.required("completion")
    if isinstance(prompt, list) and isinstance(completion, list):
        found = read_messages(prompt, fields.path("prompt"), fields.findings)
        found.weights = [0.0 if weight is None else weight for weight in found.weights]
        answer = read_messages(completion, fields.path("completion"), fields.findings)
        if not fields.findings.faults:
            check_trainable(answer, fields.path("completion"), fields.findings, loss_on)
        found.extend(answer)
        return finish_chat(fields, found, system, loss_on, at=())
    if isinstance(prompt, list) != isinstance(completion, list) and fields.has("prompt") and fields.has("completion"):
        fields.findings.add((), "`prompt` and `completion` must be both strings or both lists of messages")
    texts = {}
    for name, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, (str, list)) and fields.has(name):
            fields.findings.wrong(fields.path(name), "string", value)
        texts[name] = value if isinstance(value, str) else ""
    if not texts["completion"].strip():
        fields.findings.nothing_to_train(fields.path("completion"), "empty completion")
    refuse_system(fields, system)
    return Conversation(
        kind="prompt_completion", ref=fields.row.ref, prompt=texts["prompt"], completion=texts["completion"]
    )


def read_text(fields: Fields, system: str | None, loss_on: str) -> Conversation:
    """`text`: all of it is trained."""
    text = fields.text("text")
    if not text.strip():
        fields.findings.nothing_to_train(fields.path("text"), "empty text")
    refuse_system(fields, system)
    return Conversation(kind="text", ref=fields.row.ref, text=text)


def read_segments(fields: Fields, system: str | None, loss_on: str) -> Conversation:
    """Axolotl's `input_output`: `[{"label": true, "text": ...}]`; `weight` may stand for `label`."""
    value, path = fields.required("segments"), fields.path("segments")
    segments: list[Segment] = []
    if fields.has("segments") and not isinstance(value, list):
        fields.findings.wrong(path, "a list of segments", value)
    for index, item in enumerate(value if isinstance(value, list) else []):
        at = (*path, index)
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            fields.findings.wrong(at, "an object with label and text", item)
            continue
        label, weight = item.get("label"), item.get("weight")
        if (label is None) == (weight is None):
            fields.findings.add(at, "a segment has either `label` (true or false) or `weight` (a number >= 0)")
        elif label is not None and not isinstance(label, bool):
            fields.findings.wrong((*at, "label"), "true or false", label)
        elif weight is not None and not is_weight(weight):
            fields.findings.wrong((*at, "weight"), "a number >= 0", weight)
        else:
            segments.append(Segment(item["text"], float(label is True) if weight is None else float(weight)))
    if not any(segment.weight and segment.text.strip() for segment in segments):
        fields.findings.nothing_to_train(path, "no segment with text is trained")
    refuse_system(fields, system)
    return Conversation(kind="segments", ref=fields.row.ref, segments=tuple(segments))


def refuse_system(fields: Fields, system: str | None) -> None:
    """A system message needs a chat."""
    if system is not None:
        fields.findings.add((), "`system` is for chat rows; this row is raw text", code="D209")
