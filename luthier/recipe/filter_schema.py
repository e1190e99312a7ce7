"""The recipe's `data.filters`: which rows are left out or mended for what they say. Nothing is done unless named."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.online_schema import JudgeSection
from luthier.recipe.section import Section

__all__ = [
    "FILTERS", "BoilerplateFilter", "EchoFilter", "EncodingFilter", "EndingFilter", "FilterSection", "JudgeEndpoint",
    "JudgeFilter", "LanguageFilter", "LengthFilter", "ListedFilter", "PersonalFilter", "RefusalFilter",
    "RepetitionFilter",
]  # fmt: skip

PositiveInt = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
PersonalKind = Literal[
    "email", "phone", "ip", "card", "iban", "ssn", "national_id", "secret", "private_key",
]  # fmt: skip


class ListedFilter(Section):
    """Rows named in files, one `FILE:LINE` a line, as `luthier data map` saves them."""

    files: Annotated[list[str], Field(min_length=1)]
    """The lists. Empty lines and lines that begin with # are skipped."""
    action: Literal["drop", "keep"] = "drop"
    """`drop`: the named rows go; `keep`: all others go."""


class EncodingFilter(Section):
    """Text damaged on its way: mojibake, U+FFFD, control characters."""

    action: Literal["fix", "drop"] = "fix"
    """`fix`: mend what can be mended (ftfy) and drop rows with U+FFFD, whose text is lost; `drop`: drop all."""


class PersonalFilter(Section):
    """Personal data and secrets."""

    action: Literal["redact", "drop"] = "redact"
    """`redact`: put a placeholder such as `[EMAIL_1]` there, the same for the same value within a row; `drop`."""
    kinds: Annotated[list[PersonalKind], Field(min_length=1)] = Field(
        default=["email", "phone", "ip", "card", "iban", "ssn", "national_id", "secret", "private_key"]
    )
    """What is looked for. Cards, IBANs and national ids count only if their check digits are right."""


class LengthFilter(Section):
    """Bounds on the text of a row, without the chat template. Needs at least one bound."""

    unit: Literal["tokens", "characters", "words"] = "tokens"
    """`tokens`: of the model's tokenizer."""
    min_prompt: PositiveInt | None = None
    """Shortest text before the last answer, system message included."""
    max_prompt: PositiveInt | None = None
    """Longest."""
    min_answer: PositiveInt | None = None
    """Shortest last answer."""
    max_answer: PositiveInt | None = None
    """Longest."""
    min_total: PositiveInt | None = None
    """Shortest prompt and answer together."""
    max_total: PositiveInt | None = None
    """Longest. `max_length` also counts the tokens of the template."""


class EchoFilter(Section):
    """Answers that only repeat the question."""

    min_characters: PositiveInt = 10
    """Shorter questions are not compared: `Hello` may be answered with `Hello`."""


class EndingFilter(Section):
    """Answers that were cut off."""

    min_words: PositiveInt = 6
    """Words a last sentence without an end mark must have before it counts as cut."""


class RefusalFilter(Section):
    """Answers that begin with a refusal (English; the list is in docs/filters.md)."""

    patterns: list[str] = Field(default_factory=list)
    """Further regular expressions, tried at the start of the answer; case does not count."""


class BoilerplateFilter(Section):
    """Phrases of assistants about themselves, and endings that many answers share."""

    phrases: list[str] = Field(default_factory=list)
    """Further phrases that drop a row, as plain text; case does not count. The built-in list is in docs/filters.md."""
    endings: Literal["cut", "drop", "keep"] = "cut"
    """What happens to a last sentence that many answers share: cut it off, drop the row, keep it."""
    ending_share: Share = 0.01
    """Share of the answers from which an ending is shared by many; at least `ending_rows`."""
    ending_rows: Annotated[int, Field(ge=2)] = 10
    """Least number of answers with one ending."""


class RepetitionFilter(Section):
    """Answers that repeat themselves, by the measures of Gopher (arXiv:2112.11446, table A1). Its limits on n-grams
    (0.20, 0.18, 0.16; 0.15 to 0.10) are for documents and would drop one GSM8K answer of 13; ours are two and three
    times as high."""

    min_words: PositiveInt = 50
    """Shorter answers are not judged."""
    duplicate_lines: Share = 0.30
    """Largest share of lines that repeat an earlier one."""
    duplicate_line_characters: Share = 0.20
    """Largest share of characters in such lines."""
    duplicate_paragraphs: Share = 0.30
    """Largest share of paragraphs that repeat an earlier one."""
    duplicate_paragraph_characters: Share = 0.20
    """Largest share of characters in such paragraphs."""
    loops: Annotated[int, Field(ge=2)] = 8
    """Most times in a row that the same 1 to 8 words may stand (not of Gopher); also in answers below `min_words`."""
    top_ngrams: Annotated[list[Share], Field(min_length=3, max_length=3)] = Field(default=[0.40, 0.36, 0.32])
    """Largest share of characters in the most frequent sequence of 2, 3, 4 words."""
    duplicate_ngrams: Annotated[list[Share], Field(min_length=6, max_length=6)] = Field(
        default=[0.45, 0.42, 0.39, 0.36, 0.33, 0.30]
    )
    """Largest share of characters in sequences of 5, 6, ... 10 words that occur more than once."""


class LanguageFilter(Section):
    """Rows in another language (py3langid, 97 languages)."""

    languages: Annotated[list[Annotated[str, Field(pattern=r"^[a-z]{2}$")]], Field(min_length=1)]
    """ISO 639-1 codes of the languages that stay, for instance [en, de]."""
    on: Literal["both", "prompt", "answer"] = "both"
    """What must be in one of them: user messages, answers, or both."""
    min_confidence: Share = 0.8
    """Least probability of another language, of all py3langid knows, to drop a row."""
    min_letters: PositiveInt = 40
    """Texts with fewer letters, code and addresses not counted, are too short to tell: they stay, counted. A letter
    outside of ASCII counts by its bytes in UTF-8 (Chinese: 3)."""


class JudgeEndpoint(JudgeSection):
    """The model that the filter `judge` asks, behind any OpenAI-compatible server."""


class JudgeFilter(Section):
    """A score of another model, by a rubric."""

    rubric: str
    """What makes a row good, in words."""
    min_score: float
    """Rows below it are dropped."""
    lowest: float = 0.0
    """Lowest score of the rubric."""
    highest: float = 10.0
    """Highest score of the rubric."""
    endpoint: JudgeEndpoint
    """The model that is asked, behind any OpenAI-compatible server."""


class FilterSection(Section):
    """Filters over training rows, in the order of these keys; null: not used. `{}` takes a filter's defaults."""

    listed: ListedFilter | None = None
    """Drop rows that a list names, or all others."""
    encoding: EncodingFilter | None = None
    """Mend or drop damaged text."""
    pii: PersonalFilter | None = None
    """Redact or drop personal data and secrets."""
    length: LengthFilter | None = None
    """Drop rows that are too short or too long."""
    echo: EchoFilter | None = None
    """Drop answers equal to their question."""
    endings: EndingFilter | None = None
    """Drop answers that were cut off."""
    refusals: RefusalFilter | None = None
    """Drop answers that refuse."""
    boilerplate: BoilerplateFilter | None = None
    """Drop phrases about being an AI model; cut endings that many answers share."""
    repetition: RepetitionFilter | None = None
    """Drop answers that repeat themselves."""
    language: LanguageFilter | None = None
    """Drop rows in another language."""
    python: list[Annotated[str, Field(pattern=r"^.+\.py:[A-Za-z_]\w*$")]] = Field(default_factory=list)
    """Drop rows by functions of your own, each as FILE:FUNCTION. Called with each row as a dict; returns True (the row
    stays) or False, or (True or False, a reason)."""
    judge: JudgeFilter | None = None
    """Drop rows that another model scores low."""
    answers: Literal["either", "chosen"] = "either"
    """Of preferences: judge all answers, or only the desired ones. `encoding` and `pii` always look at all."""

    def named(self) -> list[str]:
        """Filters in use, in their order."""
        return [name for name in FILTERS if getattr(self, name)]


FILTERS = tuple(name for name in FilterSection.model_fields if name != "answers")
