"""Score several models on the same tasks: base, tuned, checkpoints, folders, endpoints. One is loaded at a time."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.endpoint.client import Endpoint
from luthier.endpoint.settings import EndpointSettings
from luthier.pipeline.judging import asking
from luthier.pipeline.score import load_local, require_tasks
from luthier.recipe.schema import EvaluateSection, Recipe, TaskSpec
from luthier.runtime.console import note
from luthier.runtime.env import read_env
from luthier.runtime.errors import RecipeError
from luthier.train.distributed.group import Group

if TYPE_CHECKING:
    from luthier.evaluate.harness.load import HarnessTask
    from luthier.evaluate.task import Task
    from luthier.evaluate.versus import Scored
    from luthier.scoring.graders.models import Ask

__all__ = ["Contestant", "contest", "contest_of", "names"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One model to be scored."""

    kind: Literal["base", "folder", "checkpoint", "endpoint"]
    path: Path | None = None
    """Of a folder or checkpoint."""
    endpoint: EndpointSettings | None = None
    label: str | None = None
    """Name in tables; None: made from the rest."""

    @property
    def name(self) -> str:
        """Short name in tables."""
        if self.label is not None:
            return self.label
        if self.endpoint is not None:
            return self.endpoint.model
        return self.kind if self.path is None else str(self.path)


def names(contestants: Sequence[Contestant]) -> list[str]:
    """Names that differ: equal ones get their host behind them.

    Raises:
        RecipeError: the same model twice.
    """
    plain = [one.name for one in contestants]
    found = [
        f"{name}@{one.endpoint.host}" if plain.count(name) > 1 and one.endpoint is not None else name
        for name, one in zip(plain, contestants, strict=True)
    ]
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise RecipeError(code="E550", message=f"{', '.join(twice)} is to be scored twice", hint="name each model once")
    return found


def contest(
    section: EvaluateSection,
    contestants: Sequence[Contestant],
    *,
    recipe: Recipe | None = None,
    other_prompts: bool = False,
    group: Group | None = None,
) -> list[Scored]:
    """Scores of each model, in order.

    Args:
        section: Tasks and confidence.
        contestants: Models; those on this machine need `recipe`.
        recipe: Names base, template and dtype.
        other_prompts: Tuned models may be asked with other prompts than they were trained on.
        group: The processes that share the rows of models of this machine; endpoints are asked by process 0, which
            alone gets results.

    Raises:
        RecipeError: no tasks; a model twice; a model of this machine without a recipe.
        LuthierError: whatever loading, asking or scoring raises.
    """
    require_tasks(section)
    scored = contest_of(
        section, contestants, {"": section.tasks}, recipe=recipe, other_prompts=other_prompts, group=group
    )
    return [by_prompt[""] for by_prompt in scored.values() if by_prompt]


def contest_of(
    section: EvaluateSection,
    contestants: Sequence[Contestant],
    prompts: Mapping[str, Sequence[TaskSpec]],
    *,
    recipe: Recipe | None = None,
    other_prompts: bool = False,
    group: Group | None = None,
) -> dict[str, dict[str, Scored]]:
    """Scores by model and name of a set of tasks; each model is loaded once for all sets. Arguments as `contest`."""

    labels = names(contestants)
    local = [one for one in contestants if one.kind != "endpoint"]
    if local and recipe is None:
        message = f"{local[0].name} is a model of this machine, and the file has tasks only"
        raise RecipeError(code="E550", message=message, hint="give a recipe, or --endpoint and --model")
    group = group or Group()
    tasks = _read(prompts, recipe if local else None, group)
    with asking(section) as ask:
        return {
            label: dict(_scored(one, label, tasks, section, recipe, ask, other_prompts, group))
            for one, label in zip(contestants, labels, strict=True)
        }


def _read(
    prompts: Mapping[str, Sequence[TaskSpec]], recipe: Recipe | None, group: Group
) -> dict[str, list[Task | HarnessTask]]:
    """All rows. Process 0 reads them first, and finds the base: what has to be fetched is fetched once."""
    from luthier.evaluate.tasks import load_tasks
    from luthier.model.locate import locate_model

    found: dict[str, list[Task | HarnessTask]] = {}

    def read() -> None:
        found.update({name: load_tasks(specs) for name, specs in prompts.items()})
        if recipe is not None and group.size > 1:
            locate_model(recipe.model.name_or_path, recipe.model.revision)

    group.from_main("rows and base", read)
    if not group.is_main:
        read()
    return found


def _scored(
    one: Contestant,
    label: str,
    sets: Mapping[str, Sequence[Any]],
    section: EvaluateSection,
    recipe: Recipe | None,
    ask: Ask | None,
    other_prompts: bool,
    group: Group,
) -> Iterator[tuple[str, Scored]]:
    from luthier.evaluate.versus import Scored

    named = {prompt: f"{label}, {prompt}" if prompt else label for prompt in sets}
    if one.endpoint is not None:
        if not group.is_main:
            return
        from luthier.evaluate.served import run_served

        with Endpoint(one.endpoint, cache_dir=read_env().cache_dir / "answers") as endpoint:
            for prompt, tasks in sets.items():
                note(f"scoring {named[prompt]}", style="bold")
                before = endpoint.usage()
                results = run_served(endpoint, tasks, confidence=section.confidence, ask=ask)
                yield (
                    prompt,
                    Scored(name=named[prompt], results=results, usage=endpoint.usage().since(before).to_json()),
                )
        return
    assert recipe is not None
    from luthier.evaluate.run import run_tasks

    model, tokenizer = load_local(recipe, one.path, checkpoint=one.kind == "checkpoint", other_prompts=other_prompts)
    for prompt, tasks in sets.items():
        note(f"scoring {named[prompt]}", style="bold")
        results = run_tasks(
            model,
            tokenizer,
            tasks,
            batch_size=section.batch_size,
            confidence=section.confidence,
            template_kwargs=recipe.model.chat_template_kwargs,
            control_tokens=recipe.data.control_tokens,
            ask=ask,
            spread=group.spread(named[prompt]),
        )
        yield prompt, Scored(name=named[prompt], results=results)
    del model
    gc.collect()
