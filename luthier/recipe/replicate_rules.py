"""What `distributed.dp_replicate_size` (copies of a model in shards, HSDP) cannot be combined with, and why."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.recipe.deepspeed_keys import ZERO
from luthier.recipe.positions import Locate
from luthier.recipe.schema import DistributedSection
from luthier.runtime.errors import Problem, RecipeError

__all__ = ["KEY", "possible_copies", "replicate_rules", "require_copies"]

KEY = "distributed.dp_replicate_size"


def possible_copies(processes: int) -> list[int]:
    """Numbers of copies that leave at least two processes to each, and one copy."""
    return [1, *(copies for copies in range(2, processes // 2 + 1) if processes % copies == 0)]


def require_copies(copies: int, processes: int) -> None:
    """Return if `processes` can hold `copies` of a model in shards.

    Raises:
        RecipeError: they cannot.
    """
    if copies == 1 or copies in possible_copies(processes):
        return
    possible = ", ".join(map(str, possible_copies(processes)))
    hint = f"possible here: {possible}; the number of machines keeps shards within each"
    if processes == 1:
        why, hint = "in a run of one process", "start several processes (`luthier launch`), or remove it"
    elif copies == processes:
        why = f"over {processes} processes leaves each a whole copy and no shards"
        hint = f"that is `distributed.strategy: ddp`; {hint}"
    else:
        why = f"does not divide {processes} processes"
    raise RecipeError(code="L260", message=f"`{KEY}: {copies}` {why}", hint=hint)


def replicate_rules(section: DistributedSection, locate: Locate) -> Iterator[Problem]:
    """Refused combinations, by name."""
    if section.dp_replicate_size == 1 or section.strategy not in ("ddp", *ZERO):
        return
    without = "copies the whole model" if section.strategy == "ddp" else "divides over all processes (DeepSpeed)"
    yield locate(KEY).problem(
        "L261", f"`{KEY}: {section.dp_replicate_size}` beside `distributed.strategy: {section.strategy}`, which "
        f"{without}", hint="write fsdp2, or remove it",
    )  # fmt: skip
