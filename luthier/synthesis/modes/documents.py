"""Question and answer pairs from passages; a pair counts only with a quotation that stands in its passage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from luthier.recipe.schema import ModelSection
from luthier.synthesis.asking import Ask, Driver, Failure, Made, Rejected, Steps, Work, provenance_of, written
from luthier.synthesis.documents.chunk import Chunk, Count, chunk, estimate_tokens
from luthier.synthesis.documents.quote import find_quote
from luthier.synthesis.documents.read import Document, read_documents
from luthier.synthesis.modes.base import as_row, candidate, flat, rejected
from luthier.synthesis.spec import SynthSpec
from luthier.synthesis.structured import PAIRS
from luthier.synthesis.templates import Templates, marked

__all__ = ["DocumentsMode"]


@dataclass(frozen=True, slots=True)
class _Passage:
    document: Document
    place: Chunk

    @property
    def text(self) -> str:
        return self.document.text[self.place.start : self.place.end]

    @property
    def item(self) -> str:
        return f"{self.document.path}[{self.place.start}:{self.place.end}]"


class DocumentsMode:
    """As `Mode`.

    Raises:
        DataError, EnvironmentProblem: documents that cannot be read.
    """

    def __init__(self, spec: SynthSpec, templates: Templates) -> None:
        assert spec.documents is not None
        self.spec, self.section, self.templates = spec, spec.documents, templates
        self.documents = read_documents(self.section.paths)
        count = _counter(self.section.tokenizer)
        self.passages = [
            _Passage(document, place)
            for document in self.documents
            for place in chunk(
                document.text, tokens=self.section.chunk_tokens, overlap=self.section.overlap_tokens,
                headings=document.headings, count=count,
            )
        ][: self.section.limit]  # fmt: skip
        self.longest = max((count(passage.text) for passage in self.passages), default=0)

    @property
    def total(self) -> int:
        """One work a passage."""
        return len(self.passages)

    def requests(self) -> tuple[int, int]:
        """One a passage."""
        return self.total, self.total

    def first(self) -> Ask:
        """About the first passage."""
        return self._ask(self.passages[0])

    def report(self) -> dict[str, Any]:
        """Documents and passages."""
        notes = [text for document in self.documents for text in document.notes]
        return {"documents": len(self.documents), "passages": len(self.passages),
                "characters": sum(len(document.text) for document in self.documents),
                "longest_passage_tokens": self.longest, "notes": notes}  # fmt: skip

    def produce(self, driver: Driver, on_done: Callable[[list[Made]], None]) -> list[Made]:
        """Ask about every passage."""
        works = [Work(passage.item, partial(self._steps, passage)) for passage in self.passages]
        return flat(driver.run(works, on_done))

    def _ask(self, passage: _Passage) -> Ask:
        template = self.templates["documents"]
        messages = template.messages(
            material=marked([("passage", passage.text.strip())]), pairs=self.section.pairs,
            title=" / ".join(passage.place.titles),
        )  # fmt: skip
        return Ask(messages=messages, template=template.hash, shape=PAIRS)

    def _source(self, passage: _Passage) -> dict[str, Any]:
        place, document = passage.place, passage.document
        page = {"page": document.page_at(place.new)} if document.pages else {}
        return {"mode": "documents", "document": document.path, "document_hash": document.hash,
                "span": [place.start, place.end], "headings": list(place.titles), **page}  # fmt: skip

    def _steps(self, passage: _Passage) -> Steps:
        ask, source = self._ask(passage), self._source(passage)
        got = yield from written(ask, repair=self.templates["repair"], repairs=self.spec.repairs)
        if isinstance(got, Failure):
            return [rejected(passage.item, got, ask, source)]
        made: list[Made] = []
        if not got.value.pairs:
            made.append(rejected(passage.item, Failure("empty", "no pair was written", got), ask, source))
        for pair in got.value.pairs:
            asked = f"{passage.text.strip()}\n\n{pair.question}" if self.section.with_passage else pair.question
            row = as_row(self.spec.system, asked, pair.answer)
            span = find_quote(pair.quote, passage.text, least_words=self.section.quote_words)
            if span is None:
                detail = f"no quotation of the passage: {pair.quote[:200]!r}"
                made.append(Rejected(item=passage.item, outcome="ungrounded", detail=detail, value=row,
                                     provenance=provenance_of(ask, got, **source)))  # fmt: skip
                continue
            begin = passage.place.start
            quote = {"quote_span": [begin + span[0], begin + span[1]]}
            made.append(candidate(passage.item, row, ask, got, {**source, **quote}))
        return made


def _counter(tokenizer: str | None) -> Count:
    if tokenizer is None:
        return estimate_tokens
    from luthier.model.tokenizer import load_tokenizer

    loaded: Any = load_tokenizer(ModelSection(name_or_path=tokenizer))
    return lambda text: len(loaded.encode(text, add_special_tokens=False))
