"""Tables of `luthier eval`: several models, and several prompts of each (`--baseline`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.cli.output import emit_json, show

if TYPE_CHECKING:
    from luthier.evaluate.versus import Scored
    from luthier.pipeline.contest import Contestant
    from luthier.recipe.schema import EvaluateSection, Recipe
    from luthier.train.distributed.group import Group

__all__ = ["run_baseline", "show_scores"]


def run_baseline(
    section: EvaluateSection,
    contestants: Sequence[Contestant],
    recipe: Recipe | None,
    *,
    shots: Sequence[int],
    shots_from: str | None,
    systems: Sequence[str],
    out: Path | None,
    as_json: bool,
    group: Group,
) -> None:
    """Score each model with each prompt, compare all, and tell what follows."""
    from rich.text import Text

    from luthier.pipeline.baseline import baseline
    from luthier.runtime.atomic import write_json

    found = baseline(section, contestants, recipe, shots=shots, shots_from=shots_from, systems=systems, group=group)
    if found is None:
        return
    value = {
        "models": [one.to_json() for one in found.scored],
        "comparison": found.comparison,
        "advice": [{"rule": one.rule, "task": one.task, "text": one.text} for one in found.advice],
    }
    if out:
        write_json(out, value)
    if as_json:
        emit_json(value)
        return
    show_scores(found.scored, found.comparison)
    for one in found.advice:
        show(Text(f"{one.task}: {one.text} (rule {one.rule})"))


def show_scores(scored: Sequence[Scored], comparison: dict[str, Any] | None) -> None:
    """Scores, tests, and what endpoints cost."""
    from rich.text import Text

    from luthier.evaluate.tables import contest_table, pairs_table

    show(contest_table([one.to_json() for one in scored]))
    if comparison is not None:
        show(pairs_table(comparison))
        false = 1 - comparison["confidence"]
        show(Text(f"{comparison['tests']} tests, p corrected by Holm: the chance of any false word is {false:.2g}"))
    for one in scored:
        if one.usage is not None:
            used = one.usage
            cost = "cost unknown (no prices given)" if used["cost_usd"] is None else f"${used['cost_usd']:.4f}"
            counts = f"{used['requests']:,} requests, {used['cached']:,} from the cache"
            tokens = f"{used['prompt_tokens']:,} + {used['completion_tokens']:,} tokens"
            show(Text(f"{one.name}: {counts}, {tokens}, {cost}"))
