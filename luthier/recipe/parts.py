"""The sections of a recipe one by one, as the rules look at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from luthier.recipe.filter_schema import FilterSection
from luthier.recipe.judge_schema import EvaluationJudge
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

__all__ = ["Parts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The sections of a recipe that are valid by themselves; None for the others."""

    model: ModelSection | None = None
    data: DataSection | None = None
    sources: Mapping[int, Source] = field(default_factory=dict)
    validation: ValidationSection | None = None
    filters: FilterSection | None = None
    dedup: DedupSection | None = None
    decontaminate: DecontaminateSection | None = None
    method: MethodSection | None = None
    objective: ObjectiveSection | None = None
    train: TrainSection | None = None
    distributed: DistributedSection | None = None
    tasks: Mapping[int, TaskSpec] = field(default_factory=dict)
    judge: EvaluationJudge | None = None
    compare_with_base: bool = True
    export: ExportSection | None = None
    output_dir: str | None = None

    @staticmethod
    def of(recipe: Recipe) -> Parts:
        """All of a valid recipe."""
        return Parts(
            model=recipe.model, data=recipe.data, sources=dict(enumerate(recipe.data.train)),
            validation=recipe.data.validation, filters=recipe.data.filters, dedup=recipe.data.dedup,
            decontaminate=recipe.data.decontaminate, method=recipe.method,
            objective=recipe.objective, train=recipe.train, distributed=recipe.distributed,
            tasks=dict(enumerate(recipe.evaluate.tasks)), judge=recipe.evaluate.judge,
            compare_with_base=recipe.evaluate.compare_with_base,
            export=recipe.export, output_dir=recipe.output_dir,
        )  # fmt: skip
