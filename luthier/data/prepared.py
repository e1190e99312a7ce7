"""Rows ready to train, and the last steps to them: those in memory and those on disk take the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from luthier.data.content import row_hash
from luthier.data.curated import Curated
from luthier.data.mixing import choose_rows, mix_report, mix_warnings
from luthier.data.pack import one_by_one, pack
from luthier.data.tally import Tally
from luthier.data.types import Conversation, Dropped, Pack, TrainRow
from luthier.recipe.objective_kind import RowKind, pack_capacity
from luthier.recipe.schema import DataSection, Source
from luthier.runtime.console import note
from luthier.runtime.errors import DataError, Problem

__all__ = [
    "Mixed", "Prepared", "left_out_row", "mix_rows", "pack_rows", "require_targets", "wanted_sources", "warn",
    "warn_raw",
]  # fmt: skip

_CUT_WARNING = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Rows to train on."""

    train: Sequence[TrainRow]
    """In the order of the sources; rows of a source with a weight above 1 stand several times. All of one type:
    `Example`, or for preferences `Branched`. In memory, or read from disk one by one (`data.streaming`)."""
    validation: Sequence[TrainRow]
    packs: Sequence[Pack]
    """Training sequences: indices into `train`; one index each when packing is off."""
    manifest: dict[str, Any]
    """What was read, used, dropped, cut and proven; JSON."""
    curated: Curated | None = None
    """What was decided over all rows as a set, before they were tokenised."""
    losses: list[dict[str, Any]] = field(default_factory=list)
    """Each dropped row and each change, in full; of rows kept on disk the first ten thousand."""
    rows: Sequence[Conversation] | None = None
    """The rows behind `train`, one for each, where `keep_rows` asked for them."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """Rows of one epoch."""

    rows: list[Conversation]
    left_out: list[Dropped]
    report: dict[str, Any]


def wanted_sources(section: DataSection) -> list[Source]:
    """The sources to read: those of `data.train`, then the one of `data.validation.path` if there is one."""
    own = section.validation
    if not own.path:
        return list(section.train)
    return [*section.train, Source(path=own.path, format=own.format, map=own.map, limit=own.max_rows)]


def mix_rows(rows: Sequence[Conversation], examples: Sequence[TrainRow], section: DataSection, seed: int) -> Mixed:
    """Repeat or thin out the rows of each source by its weight or share.

    Args:
        rows: Rows that can be used, source by source.
        examples: The same as tokens.
        section: `data` of the recipe.
        seed: `train.seed`.

    Raises:
        DataError: a source cannot give its share.
    """
    sources = np.array([row.ref.source for row in rows], np.int64)
    tokens = np.array([len(example) for example in examples], np.int64)
    trained = np.array([example.trained_tokens for example in examples], np.int64)
    sizes = {"rows": np.ones(len(rows), np.int64), "tokens": tokens, "trained_tokens": trained}
    chosen = choose_rows(
        section, seed, sources=sources, sizes=sizes.__getitem__,
        hashes=lambda wanted: [row_hash(rows[index]) for index in wanted],
    )  # fmt: skip
    return Mixed(
        [rows[index] for index in chosen.used],
        [left_out_row(rows[index].ref, section) for index in chosen.left_out],
        mix_report(section, sources=sources, tokens=tokens, trained=trained, chosen=chosen),
    )


def left_out_row(ref: Any, section: DataSection) -> Dropped:
    """A row that its source's weight or share does not take."""
    source = section.train[ref.source]
    what = f"weight: {source.weight:g}" if source.share is None else f"share: {source.share:g}"
    return Dropped(ref, "sampled_out", f"not among the rows that `{what}` takes")


def pack_rows(lengths: Sequence[int], section: DataSection, kind: RowKind) -> tuple[Sequence[Pack], int]:
    """Training sequences, and the tokens that fit into one."""
    capacity = pack_capacity(kind, section.max_length)
    return (pack(lengths, capacity) if section.packing else one_by_one(lengths)), capacity


def require_targets(found: bool, tally: Tally, rows: int) -> None:
    """Refuse a set of which nothing would be trained.

    Raises:
        DataError: `found` is false.
    """
    if found:
        return
    counts = ", ".join(f"{count:,} {reason}" for reason, count in tally.dropped.items())
    message = f"nothing is left to train on: of {rows:,} rows {counts or 'none can be used'}"
    shown = "; ".join(f"{item.ref}: {item.detail}" for item in tally.dropped_rows[:3])
    raise DataError(problems=[Problem(code="D225", message=message, hint=f"for instance {shown}" if shown else None)])


def warn(manifest: Mapping[str, Any]) -> None:
    """Say aloud what a reader of the manifest would want to have known before."""
    total = manifest["tokens"] + manifest["cut_tokens"]
    if manifest["cut_tokens"] > _CUT_WARNING * total:
        share = manifest["cut_tokens"] / total
        note(f"warning: {share:.0%} of all tokens are cut off or dropped by `data.max_length`", style="yellow")
    if manifest["train_validation_overlap"]:
        count = manifest["train_validation_overlap"]
        note(f"warning: {count:,} validation rows are training rows, too, word for word", style="yellow")
    preferences = manifest.get("preferences", {})
    if preferences.get("conflicts"):
        what = "say the opposite of another row: same prompt, the same answers the other way round"
        note(f"warning: {preferences['conflicts']:,} rows {what}", style="yellow")
    if "preferences" in manifest and manifest["duplicates"]:
        note(f"warning: {manifest['duplicates']:,} rows repeat an earlier row word for word", style="yellow")
    for line in mix_warnings(manifest["mix"]):
        note(f"warning: {line}", style="yellow")


def warn_raw(raw: bool, tokenizer: Any) -> None:
    """Plain text for a model that is served with a template is nearly always a mistake."""
    if raw and getattr(tokenizer, "chat_template", None):
        what = "the preferences are raw text; they do not go through the chat template that the tokenizer has"
        note(f"warning: {what}. `map: {{user: prompt}}` makes a chat of prompt and answers", style="yellow")
