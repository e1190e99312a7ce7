"""Names that a recipe takes from transformers and PEFT, as types. What each of them needs: `optimizers.py`,
`schedules.py`, `model/starts.py`."""

from __future__ import annotations

from typing import Literal

__all__ = ["OptimName", "ScheduleName", "StartName", "takes_from_base"]

OptimName = Literal[
    "adamw_torch_fused", "adamw_torch", "adamw_8bit", "adafactor", "sgd", "muon", "adagrad", "rmsprop",
    "adamw_bnb_8bit", "ademamix", "ademamix_8bit", "lion_32bit", "lion_8bit",
    "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "paged_adamw_32bit", "paged_adamw_8bit",
    "paged_ademamix_32bit", "paged_ademamix_8bit", "paged_lion_32bit", "paged_lion_8bit", "stable_adamw",
]  # fmt: skip
ScheduleName = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "cosine_with_restarts",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "reduce_lr_on_plateau", "greedy",
]  # fmt: skip
StartName = Literal["gaussian", "orthogonal", "olora", "pissa"]


def takes_from_base(start: str | bool) -> bool:
    """Whether adapters that start so (`method.init_lora_weights`) take the main part of each weight out of the base."""
    return start not in (True, "gaussian", "orthogonal")
