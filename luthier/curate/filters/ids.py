"""Numbers of persons and accounts that carry check digits, verified by python-stdnum.

An id whose form is rare in ordinary text (letters in fixed places, dots and dashes, two check digits) counts by itself.
One that is only a row of digits with one check digit would be met by one number in ten: it counts only behind its
name (`BSN`, `PESEL`, `Aadhaar`, ...), at most 40 characters before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from luthier.runtime.errors import EnvironmentProblem

__all__ = ["IDS", "Id", "cards", "ibans", "national_ids", "us_ssns"]

_NAME_WITHIN = 40


@dataclass(frozen=True, slots=True)
class Id:
    """A national id."""

    module: str
    """Of stdnum; its `is_valid` knows the check digits."""
    form: str
    name: str = ""
    """Words of which one must stand before it; empty: none."""


IDS = (
    Id("be.nn", r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}"),
    Id("br.cpf", r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    Id("br.cpf", r"\d{11}", "cpf"),
    Id("ch.ssn", r"756\.\d{4}\.\d{4}\.\d{2}"),
    Id("cl.rut", r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]"),
    Id("cn.ric", r"\d{17}[\dXx]"),
    Id("es.dni", r"\d{8}-?[A-Z]"),
    Id("es.nie", r"[XYZ]-?\d{7}-?[A-Z]"),
    Id("fi.hetu", r"\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]"),
    Id("fr.nir", r"[12] ?\d{2} ?(?:0[1-9]|1[0-2]) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}"),
    Id("it.codicefiscale", r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]"),
    Id("kr.rrn", r"\d{6}-[1-8]\d{6}"),
    Id("mx.curp", r"[A-Z]{4}\d{6}[HM][A-Z]{5}[0-9A-Z]\d"),
    Id("se.personnummer", r"(?:\d{2})?\d{6}[-+]\d{4}"),
    Id("au.tfn", r"\d{3} ?\d{3} ?\d{3}", "tfn|tax file number"),
    Id("ca.sin", r"\d{3}[ -]?\d{3}[ -]?\d{3}", "sin|social insurance"),
    Id("de.idnr", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", r"steuer\W?id\w*|idnr|steuer\w*nummer|tax id"),
    Id("dk.cpr", r"\d{6}-?\d{4}", "cpr"),
    Id("gb.nhs", r"\d{3}[ -]?\d{3}[ -]?\d{4}", "nhs"),
    Id("in_.aadhaar", r"\d{4}[ -]?\d{4}[ -]?\d{4}", "aadhaar|aadhar|uidai"),
    Id("nl.bsn", r"\d{9}", "bsn|burgerservicenummer|sofinummer"),
    Id("pl.pesel", r"\d{11}", "pesel"),
    Id("tr.tckimlik", r"\d{11}", "tckn|t\\.?c\\.? ?kimlik|kimlik no"),
    Id("za.idnr", r"\d{13}", "id number|identity number|sa id"),
)
"""In the order they are tried."""

_CARD = re.compile(
    r"(?<![\w.,-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{4,5})(?![\w-]|[.,]\d)"
)
_BRANDS = re.compile(
    r"4\d{15}|4\d{18}|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}|"
    r"6(?:011|5\d\d|4[4-9]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,4})?(?!\w)")
_SSN = re.compile(r"(?<![\w.-])\d{3}-\d{2}-\d{4}(?![\w-]|\.\d)")


@cache
def _stdnum(module: str) -> Any:
    try:
        return import_module(f"stdnum.{module}")
    except ImportError as error:
        message = "filter `pii` needs python-stdnum for check digits"
        raise EnvironmentProblem(code="R720", message=message, hint='pip install "luthier[filters]"') from error


def cards(text: str) -> Iterator[tuple[int, int]]:
    """Payment cards: number range and length of a brand, and Luhn's check digit."""
    for found in _CARD.finditer(text):
        digits = re.sub(r"[ -]", "", found[0])
        if _BRANDS.fullmatch(digits) and len(set(digits)) > 1 and _stdnum("luhn").is_valid(digits):
            yield found.span()


def ibans(text: str) -> Iterator[tuple[int, int]]:
    """IBANs: length and form of their country, check digits mod 97. Spaces between groups of four may be there."""
    for found in _IBAN.finditer(text):
        # The pattern may have swallowed a word in capitals behind the number.
        end = found.end()
        while end > found.start() + 14:
            if _stdnum("iban").is_valid(text[found.start() : end]):
                yield found.start(), end
                break
            end = max(text.rfind(" ", found.start(), end), text.rfind("-", found.start(), end))


def us_ssns(text: str) -> Iterator[tuple[int, int]]:
    """US social security numbers with dashes, of numbers that are given out; they have no check digit."""
    for found in _SSN.finditer(text):
        if _stdnum("us.ssn").is_valid(found[0]):
            yield found.span()


# Six digits near each other, or the beginning of an Italian code: every id has one of them.
_SOME_DIGITS = re.compile(r"\d(?:[ .+-]?\d){5}|[A-Z]{6}\d\d")


@cache
def _forms() -> list[tuple[re.Pattern[str], re.Pattern[str] | None, Any]]:
    return [
        (
            re.compile(rf"(?<![\w.-]){one.form}(?![\w-]|[.,]\d)"),
            re.compile(rf"\b(?:{one.name})\b", re.IGNORECASE) if one.name else None,
            _stdnum(one.module),
        )
        for one in IDS
    ]


def national_ids(text: str) -> Iterator[tuple[int, int]]:
    """Ids of `IDS` with right check digits."""
    if not _SOME_DIGITS.search(text):
        return
    for form, name, module in _forms():
        if name is not None and not name.search(text):
            continue
        for found in form.finditer(text):
            before = text[max(0, found.start() - _NAME_WITHIN) : found.start()]
            if (name is None or name.search(before)) and module.is_valid(found[0]):
                yield found.span()
