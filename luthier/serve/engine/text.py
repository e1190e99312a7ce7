"""Tokens to text as they come: no torn characters, and nothing that might turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["TextStream", "held_back"]

# A token that ends inside a character decodes to this; its text waits for the next token.
_TORN = "\N{REPLACEMENT CHARACTER}"
# Characters torn for longer than this are no characters: a model can write bytes that are not UTF-8.
_MAX_TORN = 8


class TextStream:
    """The text of one answer. `push` returns what may be shown; `stopped` tells of a stop string.

    Decoding goes over a window of the last tokens, so that its cost does not grow with the answer:
    the text of a token is what it adds to the text of the few tokens before it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.stop = tuple(stop)
        self._text_of = _decoder(tokenizer)
        self.stopped: bool = False
        self._ids: list[int] = []
        self._start, self._shown = 0, 0
        """The window begins at `_start`; the text of ids before `_shown` is out."""
        self._held = ""
        """Text that may be the beginning of a stop string."""

    def push(self, token: int) -> str:
        """Add a token; returns new text that is certain."""
        self._ids.append(token)
        known = self._decode(self._start, self._shown)
        grown = self._decode(self._start, len(self._ids))
        torn = grown.endswith(_TORN) and len(self._ids) - self._shown < _MAX_TORN
        if torn or len(grown) <= len(known):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return self._certain(grown[len(known) :])

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        if self.stopped:
            return ""
        known = self._decode(self._start, self._shown)
        text = self._certain(self._decode(self._start, len(self._ids))[len(known) :])
        rest, self._held = self._held, ""
        return text + rest

    def _decode(self, start: int, end: int) -> str:
        return self._text_of(self._ids[start:end])

    def _certain(self, new: str) -> str:
        text = self._held + new
        places = [(place, stop) for stop in self.stop if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)[0]]
        keep = held_back(text, self.stop)
        self._held = text[len(text) - keep :] if keep else ""
        return text[: len(text) - keep]


def _decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    """A tokenizer's `decode` without special tokens and without cleaning up.

    Where that is the `tokenizers` library's own (a class of transformers that does not change it), the library is
    asked itself: two thirds of the time are spent on the way there, twice a token for every stream.
    """
    try:
        from transformers.tokenization_utils_tokenizers import TokenizersBackend
    except ImportError:
        TokenizersBackend = None  # noqa: N806
    kind = type(tokenizer)
    own = TokenizersBackend is not None and isinstance(tokenizer, TokenizersBackend)
    if own and kind._decode is TokenizersBackend._decode and kind.decode is TokenizersBackend.decode:
        library = tokenizer.backend_tokenizer

        def direct(ids: list[int]) -> str:
            text: str = library.decode(ids, skip_special_tokens=True)
            return text

        return direct

    def through(ids: list[int]) -> str:
        text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    return through


def held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that is the beginning of one of `stops`."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
