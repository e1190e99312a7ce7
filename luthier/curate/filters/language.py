"""Rows in another language, by py3langid (a naive Bayes classifier over byte sequences, 97 languages).

A text is dropped only if one other language has a probability of `min_confidence` or more. Code, links, placeholders
and numbers are taken out first; what is then too short to tell stays, and is counted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from luthier.curate.filters.base import Drop, Mark, RowFilter, Verdict
from luthier.curate.filters.parts import Answers, answers_of, prompts_of
from luthier.data.types import Conversation
from luthier.recipe.filter_schema import LanguageFilter
from luthier.runtime.errors import EnvironmentProblem, RecipeError

__all__ = ["Language", "identifier", "prose"]

_NO_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|https?://\S+|www\.\S+|(?<!\S)\S+@\S+|\[[A-Z_]+_\d+\]", re.DOTALL
)
_NO_LETTERS = re.compile(r"[\W\d_]+")


@cache
def identifier() -> Any:
    """The classifier with probabilities.

    Raises:
        EnvironmentProblem: py3langid is not installed.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        message = "filter `language` needs py3langid"
        raise EnvironmentProblem(code="R720", message=message, hint='pip install "luthier[filters]"') from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def prose(text: str) -> str:
    """Words of a text, without what has no language."""
    return " ".join(_NO_LETTERS.sub(" ", _NO_PROSE.sub(" ", text)).split())


def _letters(words: str) -> int:
    """Letters, those outside of ASCII by their bytes in UTF-8: a Chinese character says more than a Latin letter."""
    return len(words.encode("utf-8", "surrogatepass")) - words.count(" ")


@dataclass(slots=True)
class Language(RowFilter):
    """Drop rows whose prompt or answer is in another language."""

    settings: LanguageFilter
    answers: Answers
    texts: int = 0
    short: int = 0
    found: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse codes that the classifier does not know.

        Raises:
            RecipeError: all unknown codes.
        """
        known = sorted(identifier().labels)
        wrong = [code for code in self.settings.languages if code not in known]
        if wrong:
            message = f"`filters.language.languages`: py3langid does not know {', '.join(wrong)}"
            raise RecipeError(code="D253", message=message, hint=f"it knows {', '.join(known)}")

    def judge(self, row: Conversation) -> Verdict:
        """The first text in another language."""
        asked = prompts_of(row) if self.settings.on != "answer" else []
        told = answers_of(row, self.answers) if self.settings.on != "prompt" else []
        for part in [*asked, *told]:
            words = prose(part.text)
            self.texts += 1
            if _letters(words) < self.settings.min_letters:
                self.short += 1
                continue
            code, confidence = identifier().classify(words)
            if code not in self.settings.languages and confidence >= self.settings.min_confidence:
                self.found[code] = self.found.get(code, 0) + 1
                return Drop(
                    detail=f"{part.where} is {code} ({confidence:.2f})", mark=Mark(part.where, part.text),
                    facts={"language": code, "confidence": round(float(confidence), 4)},
                )  # fmt: skip
        return None

    def report(self) -> dict[str, Any]:
        """Texts looked at, those too short to tell, rows dropped by language."""
        return {"texts": self.texts, "too_short": self.short, "languages": dict(sorted(self.found.items()))}
