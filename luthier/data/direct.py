"""The Rust tokenizer itself, where transformers adds nothing of its own: what it does around a call takes as long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import itemgetter
from typing import Any

__all__ = ["Direct", "Encoded"]

_END = itemgetter(1)
_PROBES = ("{special}Hi, \u00fc 12  \n\tx{special} \u4e16 </s> [INST]", " a", "\n")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a text, and for each the end of its characters in it (non-decreasing)."""

    ids: list[int]
    ends: list[int]

    def shifted(self, offset: int) -> Encoded:
        """The same tokens in a longer text that has `offset` characters in front."""
        return Encoded(self.ids, [end + offset for end in self.ends]) if offset else self


class Direct:
    """Text to ids and back, without special tokens added or left out.

    Args:
        tokenizer: A transformers fast tokenizer.
        special: Text with some of its control tokens, to try it with.
    """

    def __init__(self, tokenizer: Any, special: str) -> None:
        self._tokenizer, self._special = tokenizer, special

    def encode(self, texts: list[str], *, spelled: bool = False) -> Iterator[Encoded]:
        """Tokenise many texts at once. `spelled`: control tokens in the text become plain-text tokens."""
        return self._by_rust(texts, spelled) if self.is_same else self._by_transformers(texts, spelled)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, nothing skipped, nothing cleaned up."""
        if self.is_same:
            text: str = self._tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
            return text
        return self._decode_by_transformers(ids)

    @cached_property
    def is_same(self) -> bool:
        """Whether both ways give the same for some texts, there and back."""
        texts = [probe.replace("{special}", self._special) for probe in _PROBES]
        backend = self._tokenizer.backend_tokenizer
        return all(
            list(self._by_transformers(texts, spelled)) == list(self._by_rust(texts, spelled))
            for spelled in (False, True)
        ) and all(
            self._decode_by_transformers(one.ids) == backend.decode(one.ids, skip_special_tokens=False)
            for one in self._by_transformers(texts, False)
        )

    def _by_rust(self, texts: list[str], spelled: bool) -> Iterator[Encoded]:
        backend = self._tokenizer.backend_tokenizer
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        backend.encode_special_tokens = spelled
        return (_encoded(one.ids, one.offsets) for one in backend.encode_batch(texts, add_special_tokens=False))

    def _by_transformers(self, texts: list[str], spelled: bool) -> Iterator[Encoded]:
        batch = self._tokenizer(
            texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False,
            return_token_type_ids=False, split_special_tokens=spelled, verbose=False,
        )  # fmt: skip
        return map(_encoded, batch["input_ids"], batch["offset_mapping"])

    def _decode_by_transformers(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def _encoded(ids: Sequence[int], offsets: Iterable[tuple[int, int]]) -> Encoded:
    """An end never goes back: some tokenizers report (0, 0) for what they add."""
    return Encoded(list(ids), list(accumulate(map(_END, offsets), max)))
