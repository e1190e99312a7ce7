"""Rules of the rows that a recipe reads, holds out and leaves out."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.recipe.data_rules import data_rules
from luthier.recipe.filter_rules import filter_rules
from luthier.recipe.objective_kind import row_kind
from luthier.recipe.parts import Parts
from luthier.recipe.paths import is_folder, looks_local
from luthier.recipe.positions import Locate
from luthier.recipe.rule_checks import existing_file, rows_file, unused_keys
from luthier.recipe.schema import DecontaminateSection, DedupSection, Source
from luthier.recipe.unused import (
    contradictions_in_dedup,
    unused_in_decontaminate,
    unused_in_dedup,
    unused_in_source,
    unused_in_validation,
)
from luthier.runtime.errors import Problem

__all__ = ["decontaminate_rules", "dedup_rules", "filtering_rules", "source_rules", "validation_rules"]


def source_rules(parts: Parts, locate: Locate) -> Iterator[Problem]:
    """`data.train`, mixture and streaming: files that exist, keys that have an effect."""
    for index, source in parts.sources.items():
        prefix = f"data.train.{index}"
        yield from rows_file(source.path, f"{prefix}.path", locate)
        yield from unused_keys(source, prefix, _unused_hub_keys(source), locate)
    if parts.data is not None:
        yield from data_rules(parts.data, parts.objective, locate)


def _unused_hub_keys(source: Source) -> dict[str, str]:
    return unused_in_source(source, local=looks_local(source.path), folder=is_folder(source.path))


def validation_rules(parts: Parts, locate: Locate) -> Iterator[Problem]:
    """`data.validation`: a file or a share of the rows, not both."""
    validation = parts.validation
    if validation is None:
        return
    prefix = "data.validation"
    if validation.path is not None:
        yield from rows_file(validation.path, f"{prefix}.path", locate)
        if validation.fraction:
            message = "`data.validation.path` and `data.validation.fraction` exclude each other"
            yield locate(f"{prefix}.fraction", on="key").problem("C110", message, hint="keep one of them")
    yield from unused_keys(validation, prefix, unused_in_validation(validation), locate)


def filtering_rules(parts: Parts, locate: Locate) -> Iterator[Problem]:
    """`data.filters`, by the kind of the rows."""
    if parts.filters is not None:
        kind = row_kind(parts.objective.name) if parts.objective is not None else None
        yield from filter_rules(parts.filters, locate, kind=kind)


def dedup_rules(parts: Parts, locate: Locate) -> Iterator[Problem]:
    """`data.dedup`: what excludes or needs each other."""
    dedup = parts.dedup
    if dedup is None:
        return
    for key, message, hint in contradictions_in_dedup(dedup):
        yield locate(f"data.dedup.{key}", on="key").problem("C110", message, hint=hint)
    yield from unused_keys(dedup, "data.dedup", unused_in_dedup(dedup), locate)
    if dedup.score == "@judge" and (parts.filters is None or parts.filters.judge is None):
        message = "`data.dedup.score: @judge` needs `data.filters.judge`, which scores the rows"
        yield locate("data.dedup.score").problem("C110", message, hint="add it, or name a column")
    if dedup.semantic is not None and dedup.embedding_model != DedupSection().embedding_model:
        yield from existing_file(dedup.embedding_model, "data.dedup.embedding_model", locate)


def decontaminate_rules(parts: Parts, locate: Locate) -> Iterator[Problem]:
    """`data.decontaminate`: something to compare with, files that exist."""
    section = parts.decontaminate
    if section is None:
        return
    prefix = "data.decontaminate"
    yield from unused_keys(section, prefix, unused_in_decontaminate(section), locate)
    given = section.against or parts.tasks or (parts.validation is not None and parts.validation.path)
    if section.action != "off" and not given:
        message = (
            f"`{prefix}` has nothing to compare with: no `evaluate.tasks`, no `data.validation.path`, no `against`"
        )
        hint = "for instance against: [{path: test.jsonl}]"
        yield locate(prefix, on="key").problem("C110", message, hint=hint)
    for index, source in enumerate(section.against):
        place = f"{prefix}.against.{index}"
        yield from rows_file(source.path, f"{place}.path", locate)
        local, folder = looks_local(source.path), is_folder(source.path)
        yield from unused_keys(source, place, unused_in_source(source, local=local, folder=folder), locate)
    if section.embedding is not None and section.embedding_model != DecontaminateSection().embedding_model:
        yield from existing_file(section.embedding_model, f"{prefix}.embedding_model", locate)
