"""What prompting reaches before any tuning: models x prompts, all compared, with advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.pipeline.contest import Contestant, contest_of
from luthier.pipeline.score import require_tasks
from luthier.recipe.paths import looks_local
from luthier.recipe.schema import EvaluateSection, Recipe
from luthier.train.distributed.group import Group

if TYPE_CHECKING:
    from luthier.evaluate.baseline import Advice
    from luthier.evaluate.versus import Scored

__all__ = ["Baseline", "baseline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Scores, tests and advice."""

    scored: list[Scored]
    comparison: dict[str, Any]
    advice: list[Advice]


def baseline(
    section: EvaluateSection,
    contestants: Sequence[Contestant],
    recipe: Recipe | None,
    *,
    shots: Sequence[int],
    shots_from: str | None,
    systems: Sequence[str],
    group: Group | None = None,
) -> Baseline | None:
    """Score each model with each prompt; of several processes the first has the result, the others have None.

    Args:
        section: Tasks and confidence.
        contestants: Models.
        recipe: For models of this machine, and for worked examples: its first local training file.
        shots: Numbers of worked examples to try besides none.
        shots_from: File of worked examples, in place of the training file.
        systems: System messages to try besides the tasks' own.
        group: As of `contest`.

    Raises:
        RecipeError: as `contest`; nothing to vary; no file of worked examples.
    """
    from luthier.evaluate.baseline import advise, specs_of, variants
    from luthier.evaluate.versus import compare_many

    require_tasks(section)
    source = shots_from or _training_file(recipe)
    ways = variants(shots, systems)
    prompts = {way.name: specs_of(section.tasks, way, shots_from=source) for way in ways}
    scored = contest_of(section, contestants, prompts, recipe=recipe, group=group)
    if group is not None and not group.is_main:
        return None
    everyone = [one for by_prompt in scored.values() for one in by_prompt.values()]
    comparison = compare_many(everyone, confidence=section.confidence, prompts_differ=True)
    results = {model: {prompt: one.results for prompt, one in by_prompt.items()} for model, by_prompt in scored.items()}
    return Baseline(
        scored=everyone,
        comparison=comparison,
        advice=advise(results, comparison, confidence=section.confidence),
    )


def _training_file(recipe: Recipe | None) -> str | None:
    local = [source.path for source in recipe.data.train if looks_local(source.path)] if recipe is not None else []
    return local[0] if local else None
