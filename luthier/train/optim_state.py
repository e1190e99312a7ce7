"""The optimizer's state as named tensors and numbers, and back. No pickle.

Tensors are named `PARAMETER/KEY` (`model.norm.weight/exp_avg`); what is a plain number in the
state (Adafactor's and bitsandbytes' step) stays a number, in `state.json`. An optimizer that counts
steps for a group of tensors (`step` as a tensor in the group) has that and its other flags under `group.INDEX/KEY`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from luthier.runtime.errors import Problem, RunFailed

__all__ = ["optimizer_state", "require_trained", "restore_optimizer", "state_bytes"]

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

    `held` may read at each access: what belongs on a device goes there before the next one is read.

    Raises:
        RunFailed: the state is of other parameters.
    """
    by_name: dict[str, dict[str, Any]] = {}
    by_group: dict[int, dict[str, Any]] = {}
    full_names = [*held, *numbers]
    require_trained([n.rpartition("/")[0] for n in full_names if not n.startswith(_GROUP)], tensors)
    for full_name in full_names:
        name, key = full_name.rsplit("/", 1)
        value = held[full_name] if full_name in held else numbers[full_name]
        if name.startswith(_GROUP):
            by_group.setdefault(int(name.removeprefix(_GROUP)), {})[key] = value
        else:
            by_name.setdefault(name, {})[key] = _placed(value, key, tensors[name], optimizer)
    names = {id(tensor): name for name, tensor in tensors.items()}
    ordered = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state = {index: by_name[name] for index, name in enumerate(ordered) if name in by_name}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for index, counted in by_group.items():
        optimizer.param_groups[index].update(counted)


def require_trained(names: Iterable[str], trained: Container[str]) -> None:
    """Names that a saved state is of are those of trained parameters.

    Raises:
        RunFailed: those that are not.
    """
    if unknown := sorted({name for name in names if name not in trained}):
        raise RunFailed(
            problems=[
                Problem(code="T433", message=f"optimizer state of `{name}`, which is not trained") for name in unknown
            ]
        )


def _placed(value: Any, key: str, parameter: Tensor, optimizer: torch.optim.Optimizer) -> Any:
    """A tensor of the state on the device where `load_state_dict` will put it, counters aside.

    bitsandbytes copies what it is given, which would be there twice.
    """
    copies = type(optimizer).__module__.startswith("bitsandbytes")
    return value.to(parameter.device) if isinstance(value, Tensor) and key != "step" and not copies else value


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
