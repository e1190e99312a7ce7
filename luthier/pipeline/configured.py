"""What a run takes from configurations of accelerate: `distributed.accelerate_config`, and `accelerate launch`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.recipe.accelerate.environment import exported_source
from luthier.recipe.accelerate.merge import config_of, locate_taken, merge
from luthier.recipe.accelerate.reading import Reading
from luthier.recipe.accelerate.translate import Processes, read_source
from luthier.recipe.check import check
from luthier.recipe.deepspeed_config import taken_from_deepspeed
from luthier.recipe.facts import Taken
from luthier.recipe.positions import nowhere
from luthier.recipe.schema import Recipe
from luthier.runtime.console import note
from luthier.runtime.env import read_env
from luthier.runtime.errors import RecipeError

__all__ = ["Configured", "settle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured:
    """An account of every key of the user's configurations."""

    taken: tuple[Taken, ...] = ()
    notes: tuple[str, ...] = ()
    """Keys without effect that somebody chose."""
    quiet: tuple[str, ...] = ()
    """Keys that agree, or are without effect at values nobody chose."""
    launched: bool = False
    """`accelerate launch` started this process."""

    def tell(self) -> None:
        """Lines on the console; what was taken is told with the other derived values."""
        for line in self.notes:
            note(f"  {line}", style="dim")
        if self.quiet:
            note(f"  agree, or have no effect here: {', '.join(self.quiet)}", style="dim")

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        taken = [{"key": one.key, "value": one.value, "reason": one.reason} for one in self.taken]
        return {"taken": taken, "without_effect": [*self.notes, *self.quiet]}


def settle(recipe: Recipe, exported: Mapping[str, str]) -> tuple[Recipe, Configured]:
    """The recipe with what both say, without `accelerate_config`, so that it can be repeated without that file.

    Args:
        recipe: as loaded: it has the values of its file already, and here they get their reasons.
        exported: variables of `accelerate launch`.

    Raises:
        RecipeError: every contradiction, and everything that Luthier does not do.
    """
    env = read_env()
    readings: list[Reading] = []
    notes: list[str] = []
    if recipe.distributed.accelerate_config is not None:
        found = config_of(recipe)
        if isinstance(found, list):
            raise RecipeError(problems=found)
        readings.append(found[0])
        notes += _of_launch(found[1], found[0], world_size=env.world_size, cpu=env.force_cpu)
    source = exported_source(exported, processes=env.world_size)
    if source is not None:
        machines = env.world_size // env.local_world_size
        readings.append(read_source(source, recipe, machines=machines)[0])
    problems = []
    for reading in readings:
        recipe, wrong = merge(recipe, reading.taken, title=reading.source.title)
        problems += [*reading.problems, *wrong]
    recipe = taken_from_deepspeed(recipe)
    taken = tuple(one for reading in readings for one in reading.taken)
    if source is not None and not problems:
        problems += check(recipe, locate=locate_taken(nowhere, taken))
    if problems:
        raise RecipeError(problems=problems)
    configured = Configured(
        taken=taken, notes=(*notes, *(line for reading in readings for line in reading.notes)),
        quiet=tuple(key for reading in readings for key in reading.quiet), launched=source is not None,
    )  # fmt: skip
    if recipe.distributed.accelerate_config is None:  # a copy would count the key as one that the user wrote
        return recipe, configured
    section = recipe.distributed.model_copy(update={"accelerate_config": None})
    return recipe.model_copy(update={"distributed": section}), configured


def _of_launch(processes: Processes, reading: Reading, *, world_size: int, cpu: bool) -> list[str]:
    """Keys that only `luthier launch` can follow, where this run is otherwise."""
    lines = []
    if processes.total is not None and processes.total != world_size:
        started = "this run has one" if world_size == 1 else f"this run has {world_size}"
        lines.append(f"{reading.name('num_processes')}: `luthier launch` starts so many; {started}")
    if processes.cpu and not cpu:
        why = "`luthier launch` follows it; LUTHIER_FORCE_CPU=1 does for a run without it"
        lines.append(f"{reading.name('use_cpu')}: {why}")
    return lines
