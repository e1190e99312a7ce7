"""Cross-field rules and files that must exist. All problems, none raised here."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from luthier.recipe.filter_schema import FilterSection
from luthier.recipe.judge_schema import EvaluationJudge
from luthier.recipe.parts import Parts
from luthier.recipe.positions import Document, Locate
from luthier.recipe.rules import apply_rules
from luthier.recipe.schema import (
    DataSection,
    DecontaminateSection,
    DedupSection,
    DistributedSection,
    ExportSection,
    MethodSection,
    ModelSection,
    ObjectiveSection,
    Recipe,
    Source,
    TaskSpec,
    TrainSection,
    ValidationSection,
)
from luthier.recipe.validate import fill_empty_sections
from luthier.runtime.errors import Problem

__all__ = ["check", "check_parts"]

_SectionType = TypeVar("_SectionType", bound=BaseModel)


def check(recipe: Recipe, *, locate: Locate) -> list[Problem]:
    """Every cross-field problem of a valid recipe; `locate` finds the place of a dotted key."""
    return apply_rules(Parts.of(recipe), locate)


def check_parts(document: Document) -> list[Problem]:
    """Every cross-field problem in the sections of an invalid recipe that are valid by themselves."""
    if not isinstance(document.value, dict):
        return []
    value = fill_empty_sections(document.value)
    bad = {path[0] for path in document.bad if path}

    def below(name: str) -> dict[str, Any]:
        return found if name not in bad and isinstance(found := value.get(name), dict) else {}

    def whole(name: str, section: type[_SectionType]) -> _SectionType | None:
        return _valid(section, value.get(name, {})) if name not in bad else None

    output_dir = value.get("output_dir")
    parts = Parts(
        model=whole("model", ModelSection),
        data=_valid(DataSection, value.get("data", {})) if "data" not in bad else None,
        sources=_valid_items(Source, below("data").get("train")),
        validation=_valid(ValidationSection, below("data").get("validation", {})) if "data" not in bad else None,
        filters=_valid(FilterSection, found) if "data" not in bad and (found := below("data").get("filters")) else None,
        dedup=_valid(DedupSection, dedup) if "data" not in bad and (dedup := below("data").get("dedup")) else None,
        decontaminate=_valid(DecontaminateSection, found)
        if "data" not in bad and (found := below("data").get("decontaminate"))
        else None,
        method=whole("method", MethodSection),
        objective=whole("objective", ObjectiveSection),
        train=whole("train", TrainSection),
        distributed=whole("distributed", DistributedSection),
        tasks=_valid_items(TaskSpec, below("evaluate").get("tasks")),
        judge=_valid(EvaluationJudge, judge) if (judge := below("evaluate").get("judge")) else None,
        compare_with_base=below("evaluate").get("compare_with_base") is not False,
        export=whole("export", ExportSection),
        output_dir=output_dir if isinstance(output_dir, str) else None,
    )
    return apply_rules(parts, document.locate)


def _valid(section: type[_SectionType], value: Any) -> _SectionType | None:
    try:
        return section.model_validate(value)
    except ValidationError:
        return None


def _valid_items(section: type[_SectionType], value: Any) -> dict[int, _SectionType]:
    items = value if isinstance(value, list) else []
    return {index: found for index, item in enumerate(items) if (found := _valid(section, item)) is not None}
