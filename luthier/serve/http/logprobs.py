"""Log-probabilities in OpenAI's two shapes. The token that ends an answer is not part of its text, nor of these."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from luthier.serve.engine.request import Piece, TokenInfo
from luthier.serve.host import Served

__all__ = ["chat_logprobs", "completion_logprobs"]

_TORN = "\N{REPLACEMENT CHARACTER}"


def _infos(served: Served, pieces: Sequence[Piece]) -> list[TokenInfo]:
    return [info for piece in pieces for info in piece.infos if info.id not in served.stop_ids]


def chat_logprobs(served: Served, pieces: Sequence[Piece], asked: bool | None) -> dict[str, Any] | None:
    """`choices[].logprobs` of a chat answer."""
    if not asked:
        return None
    content = [
        {
            **_token(served, info.id, info.logprob),
            "top_logprobs": [_token(served, token, value) for token, value in info.top],
        }
        for info in _infos(served, pieces)
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    served: Served, pieces: Sequence[Piece], asked: int | None, *, offset: int = 0
) -> dict[str, Any] | None:
    """`choices[].logprobs` of a completion; `offset` is where its text begins in the answer, in characters."""
    if asked is None:
        return None
    told: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for info in _infos(served, pieces):
        text = _text(served, info.id)
        told["tokens"].append(text)
        told["token_logprobs"].append(info.logprob)
        told["top_logprobs"].append({_text(served, token): value for token, value in info.top})
        told["text_offset"].append(offset)
        offset += len(text)
    return told


def _token(served: Served, token: int, logprob: float) -> dict[str, Any]:
    return {"token": _text(served, token), "logprob": logprob, "bytes": _bytes(served, token)}


def _text(served: Served, token: int) -> str:
    text: str = served.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _bytes(served: Served, token: int) -> list[int] | None:
    """UTF-8 of a token; None for a part of a character whose bytes the tokenizer does not tell."""
    text = _text(served, token)
    if _TORN not in text:
        return list(text.encode())
    spelled = served.tokenizer.convert_ids_to_tokens(token)
    table = _byte_level()
    if spelled.startswith("<0x") and spelled.endswith(">"):
        return [int(spelled[3:-1], 16)]
    return [table[letter] for letter in spelled] if all(letter in table for letter in spelled) else None


@lru_cache
def _byte_level() -> dict[str, int]:
    """The letters by which byte-level BPE spells bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}
