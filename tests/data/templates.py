"""Every chat template that ships with the installed TRL and transformers, on the tiny tokenizer."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

from tests.support.tiny import tiny_tokenizer

# What the templates write as control tokens: <|x|>, <｜x｜>, <turn|>, <start_of_turn>, [INST], </s> and the like.
# Tags of ordinary model output (<think>, <tool_call>, <tools>, ...) are added tokens too, but not special ones.
_CONTROL = re.compile(
    r"<\|[\w▁./-]+\|?>|<｜[\w▁]+｜>|<[\w]+\|>|<(?:start|end)_of_\w+>|<end_of_utterance>|\[/?INST\]|</?s>|<eos>|<bos>"
)
_TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


@cache
def shipped_templates() -> dict[str, str]:
    """Name to source."""
    found = {}
    for package in ("trl", "transformers"):
        root = Path(importlib.util.find_spec(package).origin).parent
        for path in sorted(root.rglob("*.jinja")):
            found[path.stem] = path.read_text("utf-8")
    return found


def tokenizer_for(source: str):
    """The tiny tokenizer with the control tokens that a template names."""
    return with_template(tiny_tokenizer(), source)


def with_template(tokenizer, source: str):
    """The tokenizer, changed: this template, and the control tokens that it names."""
    tokenizer.chat_template = source
    own = sorted(set(_CONTROL.findall(source)))
    if "bos_token" in source:
        tokenizer.add_special_tokens({"bos_token": "<bos>"})
    if "<|im_end|>" not in source:
        bos = next((t for t in own if re.search(r"bos|begin_of_text|begin▁of|^<s>$|startoftext", t)), "<bos>")
        eos = next(
            (t for t in own if re.search(r"eos|end▁of|end_of_text|endoftext|^</s>$|eot_id|end_of_utt|end_of_turn", t)),
            "<eos>",
        )
        tokenizer.add_special_tokens({"bos_token": bos, "eos_token": eos, "pad_token": eos})
    tokenizer.add_special_tokens({"additional_special_tokens": own})
    tokenizer.add_tokens(list(_TAGS))
    return tokenizer
