"""The optimizer's state as named tensors and numbers, and back. No pickle.

Tensors are named `PARAMETER/KEY` (`model.norm.weight/exp_avg`); what is a plain number in the
state (Adafactor's and bitsandbytes' step) stays a number, in `state.json`. An optimizer that counts
steps for a group of tensors (`step` as a tensor in the group) has that and its other flags under `group.INDEX/KEY`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from luthier.runtime.errors import Problem, RunFailed

__all__ = ["optimizer_state", "restore_optimizer", "state_bytes"]

Number = int | float | bool | None
_GROUP = "group."
_SETTINGS = frozenset(["params", "lr", "initial_lr", "weight_decay"])
"""Of the recipe and the schedule."""


def optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Number]]:
    """State of the optimizer over `tensors`: (tensors by name, numbers by name)."""
    held: dict[str, Tensor] = {}
    numbers: dict[str, Number] = {}
    for name, parameter in tensors.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                held[f"{name}/{key}"] = value
            elif value is None or isinstance(value, int | float):
                numbers[f"{name}/{key}"] = value
            else:
                raise TypeError(
                    f"{type(optimizer).__name__} keeps a {type(value).__name__} as `{key}`: cannot be saved"
                )
    for index, group in enumerate(optimizer.param_groups):
        for key, value in _counted(group).items():
            if isinstance(value, Tensor):
                held[f"{_GROUP}{index}/{key}"] = value
            else:
                numbers[f"{_GROUP}{index}/{key}"] = value
    return held, numbers


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    *,
    held: Mapping[str, Tensor],
    numbers: Mapping[str, Number],
) -> None:
    """Put saved state back; rates and other settings stay those of the recipe.

    Raises:
        RunFailed: the state is of other parameters.
    """
    by_name: dict[str, dict[str, Any]] = {}
    by_group: dict[int, dict[str, Any]] = {}
    for full_name, value in [*held.items(), *numbers.items()]:
        name, key = full_name.rsplit("/", 1)
        if name.startswith(_GROUP):
            by_group.setdefault(int(name.removeprefix(_GROUP)), {})[key] = value
        else:
            by_name.setdefault(name, {})[key] = value
    if unknown := sorted(set(by_name) - set(tensors)):
        raise RunFailed(
            problems=[
                Problem(code="T433", message=f"optimizer state of `{name}`, which is not trained") for name in unknown
            ]
        )
    names = {id(tensor): name for name, tensor in tensors.items()}
    ordered = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state = {index: by_name[name] for index, name in enumerate(ordered) if name in by_name}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for index, counted in by_group.items():
        optimizer.param_groups[index].update(counted)


def _counted(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a group counts for its tensors; nothing where the tensors count for themselves."""
    if not isinstance(group.get("step"), Tensor):
        return {}
    plain = (Tensor, bool, int, float, type(None))
    return {key: value for key, value in group.items() if key not in _SETTINGS and isinstance(value, plain)}


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the state there is now; a tensor that many parameters share counts once."""
    tensors = {
        value.data_ptr(): value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    }
    return sum(tensors.values())
