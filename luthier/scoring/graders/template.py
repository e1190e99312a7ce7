"""Template strings of graders: `{{ item.x }}` and `{{ sample.output_text }}`, nested with dots and `[0]`.

A value is put in as text, other JSON values as JSON. Nothing is evaluated: no filter, no expression, and a value that
itself holds `{{ ... }}` is not looked at again.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["InvalidVariable", "check_template", "fill", "sample_of"]

_SLOT = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_VARIABLE = re.compile(r"\s*(item|sample)((?:\.[A-Za-z_][\w-]*|\[\d+\])+)\s*\Z")
_STEP = re.compile(r"\.([A-Za-z_][\w-]*)|\[(\d+)\]")


class InvalidVariable(Exception):
    """A template names what is not there."""


def check_template(text: str) -> str | None:
    """What is wrong with a template, in words; None when all its variables can be written so."""
    for slot in _SLOT.finditer(text):
        if not _VARIABLE.match(slot[1]):
            return f"{slot[0]!r} is no variable: write {{{{ item.NAME }}}} or {{{{ sample.output_text }}}}"
    return None


def fill(text: str, *, item: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
    """The text with its variables replaced.

    Raises:
        InvalidVariable: a variable that the item or sample does not have.
    """
    spaces = {"item": item, "sample": sample}

    def value_of(slot: re.Match[str]) -> str:
        match = _VARIABLE.match(slot[1])
        if match is None:
            raise InvalidVariable(f"{slot[0]} is no variable")
        value: Any = spaces[match[1]]
        for step in _STEP.finditer(match[2]):
            key = step[1] if step[1] is not None else int(step[2])
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                raise InvalidVariable(f"{slot[0]}: there is no {match[1]}{match[2]}") from None
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return _SLOT.sub(value_of, text)


def sample_of(text: str, *, tools: Any = None) -> dict[str, Any]:
    """The `sample` namespace of an answer; `output_json` is there when the answer is JSON."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if tools is not None:
        message["tool_calls"] = tools
    sample: dict[str, Any] = {"output_text": text, "output_tools": tools, "choices": [{"message": message}]}
    with contextlib.suppress(ValueError, RecursionError):
        sample["output_json"] = json.loads(text)
    return sample
