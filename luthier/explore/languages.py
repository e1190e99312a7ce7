"""The language of each row, guessed by py3langid (97 languages, ISO 639-1 codes) from its first characters."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import nullcontext

from luthier.explore.needs import need
from luthier.runtime.console import note, progress

__all__ = ["UNKNOWN", "guess_languages", "languages_of"]

UNKNOWN = "unknown"
"""Rows with fewer letters than `_LEAST_LETTERS`."""

_CHARACTERS = 400
_LONG = 5_000
_LEAST_LETTERS = 12


def guess_languages(texts: Sequence[str]) -> list[str] | None:
    """Language of each text; None without py3langid, which is said."""
    if importlib.util.find_spec("py3langid") is None:
        note("languages are not guessed: pip install 'py3langid>=0.3'")
        return None
    return languages_of(texts)


def languages_of(texts: Sequence[str]) -> list[str]:
    """Language of each text.

    Raises:
        EnvironmentProblem: py3langid is missing.
    """
    classify = need("py3langid", "guessing languages").classify
    found: list[str] = []
    with progress("languages", len(texts)) if len(texts) > _LONG else nullcontext() as bar:
        for text in texts:
            head = text[:_CHARACTERS]
            letters = sum(map(str.isalpha, head))
            found.append(str(classify(head)[0]) if letters >= _LEAST_LETTERS else UNKNOWN)
            if bar is not None:
                bar.advance()
    return found
