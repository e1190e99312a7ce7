"""A model without its values: shapes, buffers and settings of the real one, and parameters that take no memory.

For weights that are sharded over processes: no process holds all of them. Every parameter stands for one number, NaN,
seen as the whole tensor (stride 0), so whoever reads a value that is not there gets NaN and not a plausible number.
transformers makes the model from such tensors as from the files: names, ties, types, buffers and the account of what
is missing are its own. Where the values are is kept beside it (`Values`); `train/distributed/fill.py` reads each
process' rows.

    names in the files are those of the model    each process reads its own rows of each tensor
    they are not (an older form, split experts)   process 0 loads the model whole and sends it tensor by tensor
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.runtime.console import note
from luthier.runtime.env import read_env

__all__ = [
    "Hollow", "Values", "hollow_state", "is_sender", "keep_values", "make_hollow", "say_whole", "stand_in",
    "take_values", "values_of",
]  # fmt: skip

_ATTRIBUTE = "luthier_values"
_COMPARED_ROWS = 4096
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(slots=True)
class Values:
    """Where the values of a hollow model are."""

    where: str
    """The folder, and the type they get: for messages."""
    files: dict[str, Path]
    """File of each tensor, by its name; empty where process 0 sends them."""
    held: dict[str, Tensor] = field(default_factory=dict)
    """In process 0: the tensors that it sends; each is gone when it is sent."""
    names: dict[int, str] = field(default_factory=dict)
    """Name of the tensor of each hollow parameter, by the parameter's id."""


@dataclass(frozen=True, slots=True)
class Hollow:
    """What a hollow model is made of."""

    kind: Any
    """Class of the model."""
    state: dict[str, Tensor]
    """Stand-ins by their names in the files; empty with a `reason`."""
    own: dict[str, Tensor]
    """Stand-ins by the model's own names."""
    values: Values
    reason: str | None
    """Why the files cannot be read by rows; None: they can."""


def stand_in(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of this shape in the memory of one number: NaN, or 0 where there is none."""
    empty = float("nan") if dtype.is_floating_point else 0
    return torch.full((), empty, dtype=dtype).expand(*shape)


def values_of(model: Any) -> Values | None:
    """Where the values of a model (or of an adapted model's base) are; None if it holds them."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    found: Values | None = getattr(base, _ATTRIBUTE, None)
    return found


def keep_values(model: Any, values: Values) -> None:
    """Tie the parameters that a hollow model has now to their tensors."""
    known = values.files or values.held
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not known or name in known:
            values.names.setdefault(id(parameter), name)
    setattr(model, _ATTRIBUTE, values)


def hollow_state(kind: Any, config: Any, files: Sequence[Path], *, where: str, options: Mapping[str, Any]) -> Hollow:
    """The tensors that a hollow model is made of, by looking at the headers of its files.

    Args:
        kind: `AutoModelForCausalLM` or another Auto class.
        config: of the model.
        files: safetensors.
        where: folder and type, for messages.
        options: `dtype`, `trust_remote_code` and `attn_implementation` of `from_pretrained`.
    """
    dtype = options["dtype"]
    with torch.device("meta"):
        outline = kind.from_config(config, **{key: options[key] for key in _FROM_CONFIG if key in options})
    wanted = dict(outline.state_dict(keep_vars=True))
    stored = _headers(files)
    own = {name: stand_in(tensor.shape, _type(tensor.dtype, dtype)) for name, tensor in wanted.items()}
    later = {name for names in _shared(wanted) for name in names[1:]}
    own = {name: tensor for name, tensor in own.items() if name not in later}
    reason = _why_not_by_rows(wanted, stored)
    if reason is not None:
        return Hollow(type(outline), {}, own, Values(where, {}), reason)
    state = {name: stand_in(shape, _type(kept, dtype)) for name, (_, shape, kept) in stored.items()}
    for name, tensor in wanted.items():
        if not isinstance(tensor, nn.Parameter):  # a buffer that is saved
            state[name] = _whole(stored[name][0], name)
    for names in _shared(wanted):
        kept = [name for name in names if name in stored]
        if len(kept) > 1 and all(_equal(stored, kept[0], other) for other in kept[1:]):
            for other in kept[1:]:
                del state[other]  # as if it was stored once: transformers ties equal ones, and cannot see that here
    values = Values(where, {name: file for name, (file, _, _) in stored.items()})
    return Hollow(type(outline), state, own, values, None)


def make_hollow(kind: Any, folder: Path, state: Mapping[str, Tensor], options: Mapping[str, Any]) -> tuple[Any, Any]:
    """(model, report) of `from_pretrained` with these tensors in place of the folder's; the rest is the folder's."""
    from transformers import GenerationConfig

    rest = {key: value for key, value in options.items() if key not in ("use_safetensors", "local_files_only")}
    model, report = kind.from_pretrained(None, **rest, state_dict=dict(state))
    model.name_or_path = model.config.name_or_path = str(folder)
    if model.can_generate():
        try:
            model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except OSError:  # an older folder has these settings in its config.json
            model.generation_config = GenerationConfig.from_pretrained(
                folder, "config.json", _from_model_config=True, local_files_only=True
            )
    return model, report


def take_values(model: Any, values: Values) -> None:
    """Move every parameter of a whole model into `values.held`, and leave stand-ins that are shared as they were."""
    replaced: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if id(parameter) not in replaced:
            hollow = nn.Parameter(stand_in(parameter.shape, parameter.dtype), requires_grad=parameter.requires_grad)
            replaced[id(parameter)] = hollow
            values.held[name] = parameter.detach()
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, replaced[id(parameter)])


def say_whole(reason: str) -> None:
    """Tell that process 0 needs room for the whole model, and why."""
    note(
        f"  the files cannot be read by rows: {reason}. Process 0 loads the whole model into host memory and sends it "
        "tensor by tensor", style="yellow",
    )  # fmt: skip


def is_sender() -> bool:
    """Whether this is the process that loads what cannot be read by rows."""
    return read_env().rank == 0


_FROM_CONFIG = ("dtype", "trust_remote_code", "attn_implementation")
Header = tuple[Path, tuple[int, ...], torch.dtype]


def _headers(files: Sequence[Path]) -> dict[str, Header]:
    from safetensors import safe_open

    found: dict[str, Header] = {}
    for file in files:
        with safe_open(file, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118  (a safetensors file, not a dict)
                view = stream.get_slice(name)
                found[name] = (file, tuple(view.get_shape()), _DTYPES.get(view.get_dtype(), torch.uint8))
    return found


def _why_not_by_rows(wanted: Mapping[str, Any], stored: Mapping[str, Header]) -> str | None:
    for names in [*_shared(wanted), *([name] for name in _alone(wanted))]:
        there = [name for name in names if name in stored]
        if not there:
            return f"they have no `{names[0]}`"
        odd = [name for name in there if stored[name][1] != tuple(wanted[name].shape)]
        if odd:
            return f"`{odd[0]}` has shape {stored[odd[0]][1]} in them and {tuple(wanted[odd[0]].shape)} in the model"
    return None


def _shared(wanted: Mapping[str, Any]) -> list[list[str]]:
    """Groups of names of one tensor."""
    groups: dict[int, list[str]] = {}
    for name, tensor in wanted.items():
        groups.setdefault(id(tensor), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _alone(wanted: Mapping[str, Any]) -> list[str]:
    shared = {name for names in _shared(wanted) for name in names}
    return [name for name in wanted if name not in shared]


def _type(stored: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    return dtype if stored.is_floating_point else stored


def _whole(file: Path, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stream:
        tensor: Tensor = stream.get_tensor(name).clone()
    return tensor


def _equal(stored: Mapping[str, Header], one: str, other: str) -> bool:
    """Whether two stored tensors are the same, a few rows in memory at a time."""
    from safetensors import safe_open

    rows = stored[one][1][0] if stored[one][1] else 0
    with safe_open(stored[one][0], framework="pt") as first, safe_open(stored[other][0], framework="pt") as second:
        a, b = first.get_slice(one), second.get_slice(other)
        return all(
            torch.equal(a[start : start + _COMPARED_ROWS], b[start : start + _COMPARED_ROWS])
            for start in range(0, rows, _COMPARED_ROWS)
        )
