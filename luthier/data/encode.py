"""Text to token ids, with the place of each token in the text.

Two rules make the ids of training those of serving:

- A text is tokenised as a whole, because that is what a server does. Where that would fuse
  characters from both sides of a turn's start into one token, so that the ids before the turn are
  no longer those of the prompt alone, the text is cut there and the pieces are tokenised one by
  one (`encode_cut`). `ChatTemplate.prompt_ids` cuts its history by the same rule.
- Stretches of data that spell a control token (`literals`) are tokenised as plain text.

Only tokenizers that report offsets (all with a `tokenizer.json`) can be used: without them no
token can be proven to lie inside a turn.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from luthier.data.direct import Direct, Encoded
from luthier.runtime.errors import DataError, Problem

__all__ = ["LONG_PREFIX", "Encoded", "Encoder", "Interval"]

LONG_PREFIX = 8_000
"""Characters up to which a prompt is always encoded as a whole."""

_MOST_TAILS = 8

Interval = tuple[int, int]
"""Half-open range of characters."""


class Encoder:
    """Wraps a transformers fast tokenizer; adds no special tokens by itself.

    Raises:
        DataError: the tokenizer reports no offsets.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            hint = "use a model folder with a `tokenizer.json` (transformers writes one for most tokenizers)"
            message = f"{type(tokenizer).__name__} does not report which characters a token comes from"
            raise DataError(problems=[Problem(code="D240", message=message, hint=hint)])
        self.tokenizer = tokenizer
        self._ready: dict[str, Encoded] = {}
        self._tails: dict[str, Encoded] = {}

    # --- vocabulary -----------------------------------------------------------------------------------------------

    @cached_property
    def added(self) -> Mapping[str, int]:
        """Added tokens, special or not: text to id."""
        return dict(self.tokenizer.get_added_vocab())

    @cached_property
    def control(self) -> frozenset[str]:
        """Control tokens: the special ones, and what is named bos, eos, pad, ... among the added ones.

        Added tokens that are not special (`<think>`) are ordinary model output; a word of the
        vocabulary that somebody named as pad is still a word.
        """
        marked = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return frozenset(marked | (set(self.tokenizer.all_special_tokens) & set(self.added)))

    @cached_property
    def added_pattern(self) -> re.Pattern[str]:
        """Matches any added token, longest first."""
        return _any_of(self.added)

    @cached_property
    def control_pattern(self) -> re.Pattern[str]:
        """Matches any control token, longest first."""
        return _any_of(self.control)

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids of the control tokens."""
        return frozenset(self.tokenizer.convert_tokens_to_ids(sorted(self.control)))

    @cached_property
    def added_ids(self) -> frozenset[int]:
        """Ids of the added tokens."""
        return frozenset(self.added.values())

    @cached_property
    def bos(self) -> tuple[str | None, int | None]:
        """BOS token and its id."""
        return self.tokenizer.bos_token, self.tokenizer.bos_token_id

    @cached_property
    def unknown(self) -> tuple[str | None, int | None]:
        """Token for what is not in the vocabulary, and its id."""
        return self.tokenizer.unk_token, self.tokenizer.unk_token_id

    @cached_property
    def default_prefix(self) -> list[int]:
        """What the tokenizer itself puts in front of a plain text: usually the BOS token or nothing."""
        bare = self.tokenizer("x", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("x", add_special_tokens=True)["input_ids"]
        return list(next((full[:n] for n in range(len(full)) if full[n : n + len(bare)] == bare), []))

    @cached_property
    def seamless(self) -> bool:
        """Whether pieces encode and decode by themselves: no space is put in front of a text or dropped there."""
        probe = " a b  c"
        ids = self.tokenizer(probe, add_special_tokens=False)["input_ids"]
        return all(self.decode(ids[:k]) + self.decode(ids[k:]) == probe for k in range(len(ids) + 1))

    # --- encoding -------------------------------------------------------------------------------------------------

    def prepare(self, texts: Iterable[str]) -> None:
        """Tokenise many texts at once, several times faster than one by one; `encode` then finds them."""
        wanted = list(dict.fromkeys(text for text in texts if text and text not in self._tails))
        self._ready = dict(zip(wanted, self._tokenise(wanted), strict=True)) if wanted else {}

    def encode(self, text: str, literals: Sequence[Interval] = (), *, continued: bool = False) -> Encoded:
        """Tokenise a text as a whole, apart from `literals`, which become plain-text tokens.

        Args:
            text: what to tokenise.
            literals: ascending stretches that spell a control token and are data.
            continued: the text goes on where another ended, so nothing is put in front of it.
        """
        if not literals:
            return self._one(text, continued=continued)
        ids: list[int] = []
        ends: list[int] = []
        place = 0
        for start, end in [*literals, (len(text), len(text))]:
            for first, last, spelled in ((place, start, False), (start, end, True)):
                part = self._one(text[first:last], continued=continued or first > 0, spelled=spelled).shifted(first)
                ids += part.ids
                ends += part.ends
            place = end
        return Encoded(ids, ends)

    def _one(self, text: str, *, continued: bool, spelled: bool = False) -> Encoded:
        if not text:
            return Encoded([], [])
        if continued and not self.seamless:
            # Behind a line feed the tokenizer puts no space of its own in front of the piece.
            lead = next(self._tokenise(["\n"])).ids
            whole = next(self._tokenise(["\n" + text], spelled=spelled))
            if whole.ids[: len(lead)] == lead:
                return Encoded(whole.ids[len(lead) :], [end - 1 for end in whole.ends[len(lead) :]])
        if not spelled and (known := self._ready.get(text) or self._tails.get(text)) is not None:
            return known
        return next(self._tokenise([text], spelled=spelled))

    def encode_cut(
        self, text: str, starts: Sequence[int], literals: Sequence[Interval] = ()
    ) -> tuple[Encoded, list[int]]:
        """Tokenise so that the ids before each of `starts` are those of the text before it.

        Returns:
            The tokens, and the starts at which the text had to be cut.
        """
        ids: list[int] = []
        ends: list[int] = []
        cuts: list[int] = []
        base = 0
        whole = self._piece(text, 0, len(text), literals)
        for start in starts:
            if start <= base:
                continue
            before = self._before(text, base, start, literals, whole)
            if whole.ids[: len(before.ids)] != before.ids:
                ids += before.ids
                ends += before.ends
                cuts.append(start)
                base = start
                whole = self._piece(text, base, len(text), literals)
        return Encoded(ids + whole.ids, ends + whole.ends), cuts

    def has_known_tail(self, text: str, start: int) -> bool:
        """Whether text[:start] ends with what is proven to stand for itself, so that it need not be encoded."""
        return any(text.endswith(tail, 0, start) for tail in self._tails)

    def _before(self, text: str, base: int, start: int, literals: Sequence[Interval], whole: Encoded) -> Encoded:
        """Tokens of text[base:start] alone.

        Encoding every prefix of a long conversation would take the square of its length. Added
        tokens split a text before anything else happens to it, so only the part from the last of
        them on, the tail, is encoded anew; what stands before it is as in `whole`. A tail (`<|im_start|>assistant\n`
        is nearly always the only one) must first be shown to give what the whole prefix gives.
        """
        if not literals and self.seamless and start - base <= LONG_PREFIX:
            return self._before_by_tail(text, base, start, whole)
        anchor = base
        if self.seamless and start - base > LONG_PREFIX:
            matches = self.added_pattern.finditer(text, max(base, start - LONG_PREFIX), start)
            anchor = max((m.end() for m in matches if m.span() not in literals), default=base)
        if anchor == base:
            return self._piece(text, base, start, literals)
        known = bisect_right(whole.ends, anchor)
        rest = self._piece(text, anchor, start, literals)
        return Encoded(whole.ids[:known] + rest.ids, whole.ends[:known] + rest.ends)

    def _before_by_tail(self, text: str, base: int, start: int, whole: Encoded) -> Encoded:
        known = bisect_right(whole.ends, start)
        if not known or whole.ends[known - 1] != start:
            return self._piece(text, base, start, ())
        known -= 1
        while known and whole.ids[known] not in self.added_ids:
            known -= 1
        place = whole.ends[known - 1] if known else 0  # where the added token begins
        tail = text[place:start]
        if not known or place < base or whole.ids[known] not in self.added_ids:
            return self._piece(text, base, start, ())
        encoded = self._tails.get(tail)
        if encoded is None:
            full = self._piece(text, base, start, ())
            alone = self._one(tail, continued=False)
            joined = whole.ids[:known] + alone.ids
            if base == 0 and joined == full.ids and len(self._tails) < _MOST_TAILS:
                self._tails[tail] = alone
            return full
        return Encoded(whole.ids[:known] + encoded.ids, whole.ends[:known] + encoded.shifted(place).ends)

    def _piece(self, text: str, start: int, end: int, literals: Sequence[Interval]) -> Encoded:
        inside = [(a - start, b - start) for a, b in literals if a >= start and b <= end]
        return self.encode(text[start:end], inside, continued=start > 0).shifted(start)

    def _tokenise(self, texts: list[str], *, spelled: bool = False) -> Iterator[Encoded]:
        """`spelled`: control tokens in the text become plain-text tokens."""
        return self._direct.encode(texts, spelled=spelled)

    @cached_property
    def _direct(self) -> Direct:
        return Direct(self.tokenizer, "".join(sorted(self.control)[:3]))

    # --- the way back ---------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, nothing skipped, nothing cleaned up."""
        return self._direct.decode(ids)

    def decodes_to(self, encoded: Encoded, first: int, last: int, text: str) -> str | None:
        """Whether tokens [first, last) are exactly `text`.

        Tokenizers that mark the starts of words drop a space when they decode from the middle of
        a text; there the text that the tokens *add* to those before them is compared.

        Returns:
            None if they are, `NFC` if they are its Unicode normal form C (the normaliser that
            several tokenizers apply before training and serving alike), else what they decode to.
        """
        got = self.decode(encoded.ids[first:last])
        if first and not self.seamless:
            before, after = self.decode(encoded.ids[:first]), self.decode(encoded.ids[:last])
            got = after.removeprefix(before) if after.startswith(before) else after
        if got == text:
            return None
        return "NFC" if got == unicodedata.normalize("NFC", text) else got


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern for the longest of `texts` at each place; matches nothing without texts."""
    ordered = sorted((text for text in texts if text), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")
