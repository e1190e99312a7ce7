"""From scores to the weights that are trained: the best of each module type, and the list that tools read. No torch.

Of a type with n tensors the int(n * top_percent / 100) best are taken, as the original does: types differ in shape
and scale, so that scores are only compared inside a type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from luthier.runtime.errors import RecipeError
from luthier.spectrum.names import is_embedding, is_head, layer_of, module_of
from luthier.spectrum.results import Result, Scan

__all__ = ["ScoreName", "Selection", "chosen_count", "ends_of", "pattern_of", "select"]

ScoreName = Literal["calibrated", "compat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a scan (or a file) says is trained."""

    score: ScoreName | None
    """None: the list came from a file."""
    top_percent: float | None
    ends: tuple[str, ...]
    """Patterns of embeddings and head."""
    chosen: dict[str, tuple[str, ...]]
    """By module type: patterns (paths of modules), the best first."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """Regular expressions, matched from the start of parameter names: the content of `unfrozen_parameters`."""
        return self.ends + tuple(pattern for patterns in self.chosen.values() for pattern in patterns)

    def layers(self) -> dict[str, list[int]]:
        """Numbers of the chosen layers by type, ascending."""
        return {
            kind: sorted(index for pattern in patterns if (index := layer_of(pattern)) is not None)
            for kind, patterns in self.chosen.items()
        }

    def to_json(self) -> dict[str, Any]:
        """For people and for the report."""
        return {
            "score": self.score, "top_percent": self.top_percent, "ends": list(self.ends),
            "chosen": {kind: list(patterns) for kind, patterns in self.chosen.items()},
        }  # fmt: skip


def chosen_count(count: int, top_percent: float) -> int:
    """How many of `count` tensors of a type are trained."""
    return int(count * top_percent / 100)


def select(scan: Scan, *, score: ScoreName, top_percent: float, train_embeddings: bool, tied: bool) -> Selection:
    """The best tensors of each type.

    Args:
        scan: of the model.
        score: what to rank by; the original's types keep experts apart, the calibrated ones rank them together.
        top_percent: share of each type, 0 to 100.
        train_embeddings: embeddings and head, too, as the original always does.
        tied: the head is the embedding under a second name (it then has no tensor of its own).

    Raises:
        RecipeError: nothing would be chosen.
    """
    names = scan.names()
    chosen, largest = {}, 0
    for kind, results in scan.by_type(each_expert=score == "compat").items():
        ranked = [result for result in results if result.score(score) is not None]
        largest = max(largest, len(ranked))
        best = sorted(ranked, key=lambda result: -_known(result, score))[: chosen_count(len(ranked), top_percent)]
        if best:
            chosen[kind] = tuple(pattern_of(result.name, names) for result in best)
    if not chosen:
        raise RecipeError(
            code="M331", message=f"`method.top_percent` {top_percent:g} of at most {largest} tensors of a type is none",
            hint=f"at least {100 / largest:.3g}" if largest else "no tensor has a score; use `spectrum_score: compat`",
        )  # fmt: skip
    ends = ends_of(names, tied=tied) if train_embeddings else ()
    return Selection(score=score, top_percent=top_percent, ends=ends, chosen=chosen)


def _known(result: Result, score: ScoreName) -> float:
    value = result.score(score)
    assert value is not None
    return value


def ends_of(names: Sequence[str], *, tied: bool) -> tuple[str, ...]:
    """Patterns of head and embeddings, in the original's order; a tied head has no tensor, but a name."""
    heads = [name for name in names if is_head(name)]
    tables = [name for name in names if is_embedding(name)]
    heads = heads or (["lm_head.weight"] if tied and tables else [])
    return tuple(f"^{name}$" for name in heads + tables)


def pattern_of(name: str, names: Sequence[str]) -> str:
    """The module's path, as the original writes it; the whole name where the path is the beginning of another
    module's (`mlp.gate` and `mlp.gate_proj`)."""
    module = module_of(name)
    if any(other.startswith(module) and other[len(module) : len(module) + 1] not in ("", ".") for other in names):
        return f"{name}$"
    return module
