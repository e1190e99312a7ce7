"""Odd rows, as they stand in a file, and what is right for each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["CASES", "GOOD", "PAIRS", "Case"]


@dataclass(frozen=True)
class Case:
    """One odd row."""

    name: str
    text: str
    """The line in the file."""
    right: str
    """What Luthier must do: trains, refuses, drops."""
    says: str
    """Regular expression: the trained text, or the message."""
    pairs: bool = False
    ending: str = ".jsonl"
    good: str | None = None
    """The other rows, where they must have another shape than `GOOD`."""
    turns: int | None = None
    """Turns that the template ends, of rows whose text looks like such an end."""


def u(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def a(text: Any, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **keys}


def s(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def chat(*messages: Any, **keys: Any) -> str:
    return json.dumps({"messages": messages, **keys}, ensure_ascii=False)


def pair(prompt: Any, chosen: Any, rejected: Any) -> str:
    return json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}, ensure_ascii=False)


GOOD = [chat(u("one"), a("fine one")), chat(u("two"), a("fine two"))]
PAIRS = [pair([u("one")], [a("good")], [a("bad")]), pair([u("two")], [a("good two")], [a("bad two")])]
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CALL_OBJECT = {"type": "function", "function": {"name": "f", "arguments": {"x": 1, "when": "2024-01-01"}}}
LOOP = [u("q"), a("", tool_calls=[CALL]), {"role": "tool", "content": "7", "tool_call_id": "1"}, a("it is 7")]
TURNS = {"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "fine"}]}

CASES = [
    Case("two user turns in a row", chat(u("q"), u("more"), a("yes")), "trains", r"^yes"),
    Case("assistant first", chat(a("hello"), u("q"), a("yes")), "trains", r"hello.*yes"),
    Case("two assistant turns in a row", chat(u("q"), a("first"), a("second")), "trains", r"first.*second"),
    Case("ends with a question", chat(u("q"), a("yes"), u("and now?")), "trains", r"^yes⏹$"),
    Case("no assistant at all", chat(u("q")), "refuses", r"no assistant message"),
    Case("empty answer", chat(u("q"), a("")), "refuses", r"empty answer"),
    Case("answer of white space", chat(u("q"), a(" \n ")), "refuses", r"empty answer"),
    Case("no messages", chat(), "refuses", r"no messages"),
    Case("system in the middle", chat(u("q"), s("be brief"), a("yes")), "trains", r"^yes"),
    Case("null content", chat(u("q"), a(None)), "refuses", r"got null"),
    Case("null user content", chat(u(None), a("yes")), "refuses", r"got null"),
    Case("content is a number", chat(u("q"), a(42)), "refuses", r"expected string, got 42"),
    Case("content is a list of text parts", chat(u("q"), a([{"type": "text", "text": "yes"}])), "refuses", r"template refuses"),
    Case("content is a list, in all rows", chat(u([{"type": "text", "text": "q"}]), a([{"type": "text", "text": "yes"}])),
         "refuses", r"template refuses", good=chat(u([{"type": "text", "text": "o"}]), a([{"type": "text", "text": "fine"}]))),
    Case("content is an image part", chat(u("q"), a([{"type": "image_url", "image_url": "x.png"}])), "refuses", r"only text"),
    Case("content is an object", chat(u("q"), a({"answer": "yes"})), "refuses", r"expected string, got an object"),
    Case("unknown role", chat(u("q"), {"role": "bot", "content": "yes"}), "refuses", r"unknown role 'bot'"),
    Case("role in capitals", chat(u("q"), {"role": "Assistant", "content": "yes"}), "refuses", r"unknown role"),
    Case("no role", chat(u("q"), {"content": "yes"}), "refuses", r"no `role`"),
    Case("`from` and `value` among `messages`", chat({"from": "human", "value": "q"}, {"from": "gpt", "value": "yes"}),
         "refuses", r"no `role`"),
    Case("messages is a string", '{"messages": "hello"}', "refuses", r"expected a list of messages"),
    Case("messages is null", '{"messages": null}', "refuses", r"got null"),
    Case("another column instead", '{"text": "hello"}', "refuses", r"no column `messages`"),
    Case("extra keys in a message", chat(u("q"), a("yes", score=0.5, name="bot")), "trains", r"^yes"),
    Case("extra columns", chat(u("q"), a("yes"), id=7, meta={"a": [1, None]}), "trains", r"^yes"),
    Case("`weight: 0` on an answer", chat(u("q"), a("bad", weight=0), u("again"), a("good")), "trains", r"^good"),
    Case("`train: false` on an answer", chat(u("q"), a("bad", train=False), u("again"), a("good")), "trains", r"^good"),
    Case("`weight` is text", chat(u("q"), a("yes", weight="1")), "refuses", r"a number >= 0"),
    Case("all answers have weight 0", chat(u("q"), a("yes", weight=0)), "refuses", r"weight 0"),
    Case("tool call, arguments as text", chat(*LOOP, tools=[TOOL]), "trains", r'"arguments": {"x": 1}}(?s:.*)it is 7'),
    Case("tool call, arguments as object", chat(u("q"), a("", tool_calls=[CALL_OBJECT]), tools=[TOOL]), "trains", r"2024-01-01"),
    Case("tool call without a name", chat(u("q"), a("", tool_calls=[{"type": "function", "function": {"arguments": "{}"}}])),
         "refuses", r"name of a function"),
    Case("user calls a tool", chat({**u("q"), "tool_calls": [CALL]}, a("yes")), "refuses", r"only assistant messages"),
    Case("unicode line separators", chat(u("q"), a("a\u2028b\u2029c\x85d")), "trains", "a\u2028b\u2029c\x85d"),
    Case("a date in the text", chat(u("q"), a("2024-01-01")), "trains", r"2024-01-01"),
    Case("answers that are all dates", chat(u("q"), a("2024-01-01T00:00:00")), "trains", r"2024-01-01T00:00:00⏹",
         good=chat(u("one"), a("2023-05-06T00:00:00"))),
    Case("leading zeros", chat(u("q"), a("007")), "trains", r"007"),
    Case("control tokens in the text", chat(u("q<|im_end|>\n<|im_start|>assistant\nno"), a("yes")), "trains", r"^yes", turns=3),
    Case("control tokens in the answer", chat(u("q"), a("no<|im_end|>\n<|im_start|>user\nx")), "trains", r"no<.im_end.>", turns=3),
    Case("a key twice", '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "content": "b"}]}',
         "refuses", r"key"),
    Case("NaN in a column", chat(u("q"), a("yes"))[:-1] + ', "score": NaN}', "refuses", r"NaN"),
    Case("broken JSON", chat(u("q"), a("yes"))[:-2], "refuses", r"invalid JSON"),
    Case("half a surrogate pair", '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\\ud83d"}]}',
         "refuses", r"surrogate"),
    Case("a blank line", "", "drops", r""),
    Case("longer than the limit", chat(u("q"), a("word " * 2000)), "drops", r""),
    Case("prompt longer than the limit", chat(u("word " * 2000), a("yes")), "drops", r""),
    Case("exact copy of another row", GOOD[0], "trains", r"fine one"),
    Case("ShareGPT: unknown `from`", json.dumps({"conversations": [{"from": "human", "value": "q"}, {"from": "bot", "value": "x"}]}),
         "refuses", r"unknown role", good=json.dumps(TURNS)),
    Case("ShareGPT: two human turns", json.dumps({"conversations": [*[{"from": "human", "value": "q"}] * 2, {"from": "gpt", "value": "yes"}]}),
         "trains", r"yes", good=json.dumps(TURNS)),
    Case("pair: both answers equal", pair([u("q")], [a("same")], [a("same")]), "refuses", r"the same", pairs=True),
    Case("pair: rejected is empty", pair([u("q")], [a("yes")], [a("")]), "refuses", r"empty answer", pairs=True),
    Case("pair: rejected is null", pair([u("q")], [a("yes")], None), "refuses", r"got null|expected", pairs=True),
    Case("pair: prompt inside the answers too", pair([u("q")], [u("q"), a("yes")], [u("q"), a("no")]), "trains", r"yes.*no", pairs=True),
    Case("pair: different prompts", json.dumps({"chosen": [u("q"), a("yes")], "rejected": [u("r"), a("no")]}), "refuses",
         r"part at message", pairs=True,
         good=json.dumps({"chosen": [u("o"), a("good")], "rejected": [u("o"), a("bad")]})),
    Case("pair: text beside messages", pair([u("q")], [a("yes")], "no"), "refuses", r"both strings or both messages", pairs=True),
    Case("pair: rejected longer than the limit", pair([u("q")], [a("yes")], [a("word " * 2000)]), "drops", r"", pairs=True),
]  # fmt: skip
