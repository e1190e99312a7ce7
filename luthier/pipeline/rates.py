"""Learning rates that `luthier lr-find` found, for the reason line of `learning_rate: auto`.

`auto` itself never takes them: a recipe must mean the same on every machine and after every search, and a run
that goes on must go on with its rate. It mentions them; `luthier lr-find --write` puts one into the recipe.

Kept in the cache folder, one file for each (base, data, method, objective): `learning_rates/HASH.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.recipe.facts import FoundRate
from luthier.recipe.objective import objective_values
from luthier.runs.folder import utc_now
from luthier.runtime.atomic import write_json
from luthier.runtime.env import read_env
from luthier.runtime.hashing import hash_json

if TYPE_CHECKING:
    from luthier.pipeline.session import Session

__all__ = ["recall", "remember"]

MOST = 20
"""Findings kept in a file; the oldest go first."""


def remember(session: Session, *, learning_rate: float, tokens_per_step: int, eval_loss: float, steps: int) -> Path:
    """Keep what a search found for the training of this session; returns the file.

    Raises:
        EnvironmentProblem: the cache folder cannot be written.
    """
    key = _key(session)
    file = _file(key)
    found = {
        "learning_rate": learning_rate, "tokens_per_step": tokens_per_step, "eval_loss": eval_loss, "steps": steps,
        "found_at": utc_now(),
    }  # fmt: skip
    write_json(file, {"key": key, "found": [*_stored(file), found][-MOST:]})
    return file


def recall(session: Session) -> tuple[FoundRate, ...]:
    """What searches found for this base, data, method and objective, oldest first; empty if nothing is stored."""
    names = ("learning_rate", "tokens_per_step", "found_at")
    return tuple(FoundRate(**{name: item[name] for name in names}) for item in _stored(_file(_key(session))))


def _key(session: Session) -> dict[str, Any]:
    """What a finding is about. Validation rows are not trained on, so they are no part of it."""
    recipe = session.recipe
    count = len(recipe.data.train)
    return {
        "base": session.identity["hash"],
        "data": recipe.data.model_dump(mode="json", exclude={"validation", "train"}),
        "sources": [
            [source_hash, source.model_dump(mode="json", exclude={"path"})]
            for source_hash, source in zip(session.source_hashes[:count], recipe.data.train, strict=True)
        ],
        "model": recipe.model.model_dump(mode="json", include={"quantization", "chat_template", "new_tokens"}),
        "method": recipe.method.model_dump(mode="json"),
        "objective": objective_values(recipe.objective),
        "optim": recipe.train.optim,
    }


def _file(key: dict[str, Any]) -> Path:
    return read_env().cache_dir / "learning_rates" / f"{hash_json(key)}.json"


def _stored(file: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(file.read_text("utf-8"))["found"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return found if isinstance(found, list) else []
