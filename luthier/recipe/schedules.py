"""What each `train.lr_scheduler_type` takes in `train.lr_scheduler_kwargs`, as transformers has it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from luthier.runtime.errors import RecipeError

__all__ = ["FEEDBACK", "NO_WARMUP", "REQUIRED", "SCHEDULES", "require_room"]

Kind = Literal["number", "whole", "flag"] | tuple[str, ...]

FEEDBACK = frozenset(["reduce_lr_on_plateau", "greedy"])
"""Schedules whose rate depends on validation losses."""
NO_WARMUP = frozenset(["constant", *FEEDBACK])
"""Schedules without warm-up."""
_SHAPES = ("linear", "cosine", "1-sqrt")
_PLATEAU: dict[str, Kind] = {
    "factor": "number", "patience": "whole", "threshold": "number", "threshold_mode": ("rel", "abs"),
    "cooldown": "whole", "min_lr": "number", "eps": "number",
}  # fmt: skip
_MIN_LR: dict[str, Kind] = {"min_lr": "number", "min_lr_rate": "number", "num_cycles": "number"}

SCHEDULES: Mapping[str, Mapping[str, Kind]] = {
    "constant": {},
    "constant_with_warmup": {},
    "linear": {},
    "cosine": {"num_cycles": "number"},
    "cosine_with_restarts": {"num_cycles": "whole"},
    "polynomial": {"lr_end": "number", "power": "number"},
    "inverse_sqrt": {"timescale": "whole"},
    "cosine_with_min_lr": _MIN_LR,
    "cosine_warmup_with_min_lr": {**_MIN_LR, "warmup_lr_rate": "number"},
    "warmup_stable_decay": {
        "num_decay_steps": "whole", "num_stable_steps": "whole", "warmup_type": _SHAPES, "decay_type": _SHAPES,
        "min_lr_ratio": "number", "num_cycles": "number",
    },
    "reduce_lr_on_plateau": _PLATEAU,
    "greedy": {
        **_PLATEAU, "warmup": "whole", "max_lr": "number", "smooth": "flag", "window_size": "whole",
        "reset_start": "whole",
    },
}  # fmt: skip
"""Keys by schedule, and what each takes."""
REQUIRED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "cosine_with_min_lr": (("min_lr", "min_lr_rate"), "where the cosine ends, for instance min_lr_rate: 0.1"),
    "cosine_warmup_with_min_lr": (("min_lr", "min_lr_rate"), "where the cosine ends, for instance min_lr_rate: 0.1"),
    "warmup_stable_decay": (("num_decay_steps",), "how many steps the rate falls, for instance 100"),
    "greedy": (("min_lr",), "transformers' own least rate, 1e-3, is above most of fine-tuning"),
}
"""Of these keys exactly one must be given, and why."""


def require_room(settings: Mapping[str, Any], *, warmup: int, total_steps: int) -> None:
    """`warmup_stable_decay` must fit into the run: transformers would make its stable part negative without a word.

    Raises:
        RecipeError: it does not.
    """
    needed = warmup + settings["num_decay_steps"] + settings.get("num_stable_steps", 0)
    if needed > total_steps:
        raise RecipeError(
            code="T476",
            message=f"warmup_stable_decay: {warmup} steps of warm-up and {needed - warmup} of flat rate and decay are "
            f"more than the {total_steps} steps of the run",
            hint="lower `train.lr_scheduler_kwargs.num_decay_steps`",
        )
