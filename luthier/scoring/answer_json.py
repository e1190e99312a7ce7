"""The JSON that an answer is, alone or in one code fence; nothing is searched for in prose."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["answer_json"]

_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL)


def answer_json(text: str) -> Any:
    """The value of the whole text.

    Raises:
        ValueError: it is no JSON, or nested too deep to be read.
    """
    bare = text.strip()
    fenced = _FENCE.match(bare)
    try:
        return json.loads(fenced[1] if fenced else bare)
    except RecursionError:
        raise ValueError("nested too deep") from None
