"""Training rows that give evaluation rows away: scan, embed what is doubtful, judge. Read `decontaminate` first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from luthier.curate.contamination.candidates import FLOOR
from luthier.curate.contamination.evidence import Evidence
from luthier.curate.contamination.scan import Pair, Scan, parts_of
from luthier.curate.contamination.spans import Span, matching
from luthier.curate.contamination.targets import Side, Target
from luthier.curate.contamination.verdict import (
    VERDICTS,
    Verdict,
    certainty,
    kinds_of,
    scores_of,
    verdict_of,
    worth_embedding,
)
from luthier.curate.contamination.words import located
from luthier.curate.dedup.embed import embed
from luthier.curate.dedup.shown import bar_for
from luthier.data.types import Conversation
from luthier.recipe.decontaminate_schema import DecontaminateSection

__all__ = ["Decontaminated", "Match", "decontaminate", "part_name"]

_SIDES: dict[str, tuple[Side, ...]] = {"both": ("prompt", "answer"), "prompt": ("prompt",), "answer": ("answer",)}
_LOW_FLOOR = 0.25
"""Of the candidates, when embeddings can tell more."""
_SURE = 0.9
"""Share of an answer's n-grams that is no chance likeness of a variant's."""
_ORDER = {verdict: place for place, verdict in enumerate(VERDICTS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A training row that holds an evaluation row: the likest one."""

    row: int
    """Index of the training row."""
    of: int
    """Index of the evaluation row."""
    verdict: Verdict
    side: Side
    """What of the evaluation row was found."""
    kinds: tuple[str, ...]
    """Evidence that reaches its threshold."""
    scores: dict[str, float]
    """From 0 to 1: those compared with thresholds, and what they are made of."""
    certainty: float
    """As `verdict.certainty`."""
    part: int
    """Of `text_of(row).parts`: where it was found."""
    spans: tuple[Span, ...]
    """Matching places in that part, in characters."""
    of_spans: tuple[Span, ...]
    """The same in the evaluation row's prompt or answer."""
    others: int
    """Further evaluation rows that this training row holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decontaminated:
    """What was found."""

    matches: list[Match]
    """In the order of the training rows, one for each that holds an evaluation row."""
    rows: int
    against: int
    compared: int
    """Pairs compared in full."""
    embedded: int
    """Texts of which embeddings were made."""
    short: dict[Side, int] = field(default_factory=dict)
    """Prompts and answers too short to be looked for."""

    def counts(self) -> dict[str, int]:
        """Training rows of each verdict."""
        found = Counter(match.verdict for match in self.matches)
        return {verdict: found[verdict] for verdict in VERDICTS if found[verdict]}

    @property
    def touched(self) -> int:
        """Evaluation rows that a training row holds, but for variants."""
        return len({match.of for match in self.matches if match.verdict != "variant"})


def decontaminate(
    rows: Sequence[Conversation],
    against: Sequence[Conversation],
    settings: DecontaminateSection,
    *,
    common: Sequence[Conversation] | None = None,
) -> Decontaminated:
    """Find the training rows that hold the prompt or the answer of an evaluation row.

    Args:
        rows: training rows of any kind.
        against: evaluation rows; the last assistant message is the answer.
        settings: what is looked for, and the thresholds.
        common: rows that tell how common a word is; None: the training rows.

    Raises:
        EnvironmentProblem: `embedding` is set, and the model or a library is missing.
    """
    floor = FLOOR if settings.embedding is None else _LOW_FLOOR
    scan = Scan(against, rows if common is None else common, _SIDES[settings.on], floor=floor)
    kept: dict[int, list[Pair]] = {}
    doubtful: list[Pair] = []
    with bar_for("decontaminate", len(rows), len(rows)) as bar:
        for pair in scan.pairs(rows, bar.advance):
            side = scan.targets[pair.target].side
            if kinds_of(side, pair.evidence, settings):
                kept.setdefault(pair.row, []).append(pair)
            elif settings.embedding is not None and worth_embedding(side, pair.evidence, settings):
                doubtful.append(pair)
    pairs, embedded = _embed(doubtful, rows, scan, settings)
    for pair in pairs:
        if kinds_of(scan.targets[pair.target].side, pair.evidence, settings):
            kept.setdefault(pair.row, []).append(pair)
    matches = [_match(kept[row], rows, scan, settings) for row in sorted(kept)]
    return Decontaminated(matches=matches, rows=len(rows), against=len(against), compared=scan.compared,
                          embedded=embedded, short=scan.short)  # fmt: skip


def _embed(
    pairs: Sequence[Pair], rows: Sequence[Conversation], scan: Scan, settings: DecontaminateSection
) -> tuple[list[Pair], int]:
    """Doubtful pairs with the cosine of their embeddings, and the number of texts embedded."""
    if settings.embedding is None:
        return [], 0
    texts: dict[str, int] = {}

    def place_of(text: str) -> int:
        return texts.setdefault(text, len(texts))

    places = [
        (place_of(_compared(rows[pair.row], pair)), place_of(_piece(scan.targets[pair.target]))) for pair in pairs
    ]
    # The model is asked for in any case: a missing one is an error, not a matter of what is found.
    with bar_for("embed", len(texts), len(texts) * 50, "texts") as bar:
        vectors = embed(list(texts) or [""], settings.embedding_model, bar.advance)
    return [
        replace(pair, evidence=replace(pair.evidence, embedding=float(vectors[own] @ vectors[other])))
        for pair, (own, other) in zip(pairs, places, strict=True)
    ], len(texts)


def _compared(row: Conversation, pair: Pair) -> str:
    """The place in a training text that was compared."""
    text = parts_of(row)[pair.part]
    _, places = located(text)
    return _between(text, places[pair.evidence.start : pair.evidence.end], whole=len(places))


def _piece(target: Target) -> str:
    return _between(target.text, target.places, whole=-1)


def _between(text: str, places: Sequence[Span], *, whole: int) -> str:
    return text if len(places) == whole or not places else text[places[0][0] : places[-1][1] + 1]


def _match(pairs: Sequence[Pair], rows: Sequence[Conversation], scan: Scan, settings: DecontaminateSection) -> Match:
    """The strongest of the evaluation rows that a training row holds."""
    by_row: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_row.setdefault(scan.targets[pair.target].row, []).append(pair)
    best = [_best(found, scan, settings) for found in by_row.values()]
    verdict, sure, pair = min(
        best, key=lambda found: (_ORDER[found[0]] == _ORDER["variant"], -found[1], found[2].target)
    )
    target = scan.targets[pair.target]
    text, evidence = parts_of(rows[pair.row])[pair.part], pair.evidence
    _, places = located(target.text)
    first = places.index(target.places[0])
    spans, of_spans = matching(text, target.text, scan.lexicon, (evidence.start, evidence.end),
                               (first, first + len(target.places)))  # fmt: skip
    return Match(
        row=pair.row, of=target.row, verdict=verdict, side=target.side,
        kinds=kinds_of(target.side, evidence, settings), scores=_scores(target.side, evidence),
        certainty=round(sure, 4), part=pair.part, spans=tuple(spans), of_spans=tuple(of_spans), others=len(by_row) - 1,
    )  # fmt: skip


def _best(pairs: Sequence[Pair], scan: Scan, settings: DecontaminateSection) -> tuple[Verdict, float, Pair]:
    """Of the pairs with one evaluation row: what is said of it, by which pair. The prompt with other numbers is a
    variant even where its answer begins as the evaluation row's does."""
    judged: list[tuple[Verdict, float, Pair]] = []
    for pair in pairs:
        side = scan.targets[pair.target].side
        verdict = verdict_of(side, pair.evidence, settings)
        assert verdict is not None
        judged.append((verdict, certainty(side, pair.evidence, settings), pair))
    variant = any(verdict == "variant" for verdict, *_ in judged)
    sure = [
        item for item in judged
        if item[0] in {"copy", "reworded"} or (item[0] == "answer" and (not variant or item[2].evidence.ngram >= _SURE))
    ]  # fmt: skip
    own = sure or [item for item in judged if item[0] == "variant"]
    return max(own, key=lambda item: (-_ORDER[item[0]] // 2, item[1]))


def _scores(side: Side, evidence: Evidence) -> dict[str, float]:
    """Scores that are compared, and what they are made of."""
    scores = {**scores_of(side, evidence), "words": evidence.words, "numbers": evidence.numbers}
    if side == "prompt":
        scores["same_answer"] = evidence.answer
    if evidence.embedding is not None:
        scores["cosine"] = evidence.embedding
    return {name: round(score, 4) for name, score in scores.items()}


def part_name(row: Conversation, part: int) -> str:
    """What a part of a training row is called."""
    if row.kind == "text":
        return "text"
    return ("prompt", "said")[part] if part < 2 else f"answer {part - 1}"
