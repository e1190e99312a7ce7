"""The tokens that end an answer.

An answer ends with what the template puts after an assistant turn (`<|im_end|>`, `<end_of_turn>`, ...),
with the tokenizer's end-of-sequence token (rows without a template), or with what the base's own
generation config says. A served model must stop at each of them, so the union is written into
every exported generation_config.json.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["end_of_turn_id", "stop_ids"]

_PROBE = "luthierprobe"


def stop_ids(tokenizer: PreTrainedTokenizerBase, model_or_config: Any = None) -> list[int]:
    """Ids that end generation: the tokenizer's eos, the template's end-of-turn token, the base's own eos ids.

    Args:
        tokenizer: with the chat template that is trained.
        model_or_config: a model (its generation_config and config are read), a config, or None.
    """
    ids = [*_as_list(tokenizer.eos_token_id), *_as_list(end_of_turn_id(tokenizer))]
    for holder in (
        getattr(model_or_config, "generation_config", None),
        getattr(model_or_config, "config", model_or_config),
    ):
        ids += _as_list(getattr(holder, "eos_token_id", None))
        inner: Any = holder
        if hasattr(inner, "get_text_config"):
            ids += _as_list(getattr(inner.get_text_config(), "eos_token_id", None))
    return list(dict.fromkeys(token for token in ids if 0 <= token < len(tokenizer)))


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The control token that the chat template writes right after an assistant's text, if there is one."""
    if not tokenizer.chat_template:
        return None
    rendered = _render_probe(tokenizer)
    if rendered is None or _PROBE not in rendered:
        return None
    tail = rendered.rpartition(_PROBE)[2].lstrip()
    tokens = sorted(
        ((token.content, index) for index, token in tokenizer.added_tokens_decoder.items()),
        key=lambda pair: -len(pair[0]),
    )
    return next((index for content, index in tokens if content and tail.startswith(content)), None)


def _render_probe(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """One user and one assistant turn through the template; None if the template refuses them."""
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _PROBE}]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError):
        # A template made for another shape of message; TOKENS refuses it with the row when chat rows are used.
        return None


def _as_list(value: int | Iterable[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else [int(item) for item in value]
