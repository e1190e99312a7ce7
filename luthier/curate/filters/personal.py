"""Personal data and secrets: found, and replaced by placeholders or a reason to drop the row.

    private_key  PEM and PGP blocks                     iban         check digits, length of the country
    secret       keys by form; by name, if random       card         range and length of a brand, Luhn
    email        address                                national_id  check digits (23 kinds)
    ip           public IPv4 and IPv6 addresses         ssn          US, with dashes, of numbers given out
    phone        with + and country code; US form; digits behind `phone`, `tel`, `call`, ...

Names, addresses and dates of birth are not found: that takes a model. A placeholder is `[KIND_n]`; the same value has
the same number within a row, in both answers of preferences too.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.curate.filters.base import Change, Drop, Mark, RowFilter, Verdict
from luthier.curate.filters.edits import Edit
from luthier.curate.filters.ids import cards, ibans, national_ids, us_ssns
from luthier.curate.filters.parts import edit_row
from luthier.curate.filters.secrets import private_keys, secrets
from luthier.data.types import Conversation

__all__ = ["KINDS", "Found", "Personal", "Placeholders", "find"]

_EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_%+-])?@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w@-])"
)
_IPV4 = re.compile(r"(?<![\w.-])(?<!ersion )(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:.]*\w)")
_PHONE = re.compile(
    r"(?<![\w+./=-])\+[1-9]\d{0,2}(?:[ .-]?(?:\(\d{1,4}\)|\d))?(?:[ .-]?\d{2,5}){2,5}(?![\w+*/=-]|[.,]\d)"
    r"|(?<![\w+./=$<-])(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[.-])[2-9]\d{2}[ .-]\d{4}(?![\w+*/=-]|[.,]\d)"
)
_NAMED_PHONE = re.compile(
    r"(?i)\b(?:tel(?:e?phone|efon)?|phone(?: (?:number|no\.?))?|mobile|cell|fax|call(?: (?:me|us|back))?|whatsapp)\b"
    r"(?:[\s:.,-]{1,3}|\s+(?:is|at|on|under|number|no\.?)[\s:]+){1,2}(\(?\d[\d ().-]{5,18}\d)(?![\w%])"
)
_DATE = re.compile(r"\d{1,2}[./-]\d{1,2}[./-](?:19|20)\d\d\b|(?:19|20)\d\d-\d\d-\d\d\b")
_DIGITS = re.compile(r"\D")
_SOURCE_CONTROL = ("git@", "hg@", "svn@")
_LABELS = {"national_id": "ID", "private_key": "PRIVATE_KEY"}


@dataclass(frozen=True, slots=True)
class Found:
    """One place."""

    start: int
    end: int
    kind: str


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" in text:
        spans = (found.span() for found in _EMAIL.finditer(text))
        yield from (span for span in spans if not text.startswith(_SOURCE_CONTROL, span[0]))


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    for pattern in (_IPV4, _IPV6):
        for found in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(found[0])
            except ValueError:
                continue
            # Of IPv6 only 2000::/3 is given out so far.
            if address.is_global and (address.version == 4 or found[0][0] in "23"):
                yield found.span()


def _phones(text: str) -> Iterator[tuple[int, int]]:
    for found in _PHONE.finditer(text):
        if 8 <= len(_DIGITS.sub("", found[0])) <= 15:
            yield found.span()
    for found in _NAMED_PHONE.finditer(text):
        if 7 <= len(_DIGITS.sub("", found[1])) <= 15 and not _DATE.match(found[1]):
            yield found.span(1)


KINDS: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {
    "private_key": private_keys, "secret": secrets, "email": _emails, "iban": ibans, "card": cards,
    "national_id": national_ids, "ssn": us_ssns, "ip": _addresses, "phone": _phones,
}  # fmt: skip
"""In this order: what an earlier kind has found is not looked at by a later one."""

_NEEDS_DIGITS = {"card", "ssn", "phone", "ip"}
_SHORTEST = re.compile(r"[\dA-Fa-f](?:[ ().:+-]{0,2}[\dA-Fa-f]){3}")


def find(text: str, kinds: Sequence[str]) -> list[Found]:
    """All places, in order, none overlapping another."""
    found: list[Found] = []
    digits = _SHORTEST.search(text) is not None  # four digits near each other, hexadecimal ones for addresses
    for kind, search in KINDS.items():
        if kind not in kinds or (kind in _NEEDS_DIGITS and not digits):
            continue
        for start, end in search(text):
            if all(end <= other.start or start >= other.end for other in found):
                found.append(Found(start, end, kind))
    return sorted(found, key=lambda item: item.start)


class Placeholders:
    """What stands for the values of one row."""

    def __init__(self, kinds: Sequence[str], taken: Callable[[str], bool] = lambda name: False) -> None:
        self.kinds = kinds
        self.found: Counter[str] = Counter()
        """Different values of each kind."""
        self.first: tuple[str, Found] | None = None
        self.names: dict[tuple[str, str], str] = {}
        """(kind, value) -> placeholder."""
        self._taken = taken
        self._edits: dict[str, list[Edit]] = {}

    def edits(self, text: str) -> list[Edit]:
        """The editor of a row."""
        if text not in self._edits:
            places = find(text, self.kinds)
            self._edits[text] = [Edit(at.start, at.end, self._name(at.kind, text[at.start : at.end])) for at in places]
            if places and self.first is None:
                self.first = (text, places[0])
        return self._edits[text]

    def _name(self, kind: str, value: str) -> str:
        plain = value.casefold() if kind == "email" else value if kind == "secret" else re.sub(r"[\s().-]", "", value)
        if (kind, plain) not in self.names:
            label = _LABELS.get(kind, kind.upper())
            number = 1
            while (name := f"[{label}_{number}]") in self.names.values() or self._taken(name):
                number += 1
            self.names[kind, plain] = name
            self.found[kind] += 1
        return self.names[kind, plain]


@dataclass(slots=True)
class Personal(RowFilter):
    """Redact such rows, or drop them."""

    action: Literal["redact", "drop"]
    kinds: Sequence[str]

    def judge(self, row: Conversation) -> Verdict:
        """All texts of the row, also those that are context."""
        places = Placeholders(self.kinds)
        changed = edit_row(row, places.edits)
        if changed is row or places.first is None:
            return None
        if any(_holds(row, name) for name in places.names.values()):
            places = Placeholders(self.kinds, lambda name: _holds(row, name))
            changed = edit_row(row, places.edits)
        assert places.first is not None
        text, at = places.first
        mark = Mark("", text, at.start, at.end)
        facts = {"found": dict(sorted(places.found.items()))}
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(places.found.items()))
        if self.action == "drop":
            return Drop(detail=f"holds {said}", mark=mark, facts=facts)
        if changed.kind == "pair" and changed.answers[0] == changed.answers[1]:
            detail = f"without {said} the chosen and the rejected answer are the same"
            return Drop(detail=detail, mark=mark, facts=facts)
        return Change(row=changed, what="redacted", detail=said, mark=mark, facts=facts)


def _holds(row: Conversation, name: str) -> bool:
    """Whether a placeholder stands in the row already, as text of its own."""
    found = False

    def look(text: str) -> list[Edit]:
        nonlocal found
        found = found or name in text
        return []

    edit_row(row, look)
    return found
