"""Is this folder a model that can be read safely? Looks at names and headers before anything is loaded.

Only safetensors are read: a pickle can run code when it is opened, whatever the flags say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from luthier.runtime.errors import EnvironmentProblem, Problem, RecipeError, RunFailed

__all__ = ["check_weight_files", "non_finite_tensors", "read_config", "refuse_non_finite", "stored_dtype", "tensors_of"]

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a dict.

    Raises:
        RecipeError: there is none: not a model folder.
        EnvironmentProblem: it is not a JSON object.
    """
    file = folder / "config.json"
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            hint = "name the adapter's base in `model.name_or_path` and this folder in `method.init_from`"
            raise RecipeError(code="M302", message=f"{folder} is an adapter, not a model", hint=hint)
        raise RecipeError(
            code="M302",
            message=f"{folder} is not a model folder: it has no config.json",
            hint="give the folder that holds config.json and *.safetensors",
        )
    try:
        value = json.loads(file.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EnvironmentProblem(
            code="M303", message=f"{file} is not JSON: {error}", hint="fetch the model again"
        ) from error
    if not isinstance(value, dict):
        raise EnvironmentProblem(code="M303", message=f"{file} holds no JSON object", hint="fetch the model again")
    return value


def check_weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model; all that is missing or unreadable is reported at once.

    Raises:
        EnvironmentProblem: no safetensors (or only pickles), a shard is missing, a header is broken.
    """
    index = folder / "model.safetensors.index.json"
    files = _shards(index) if index.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
        if pickles:
            raise EnvironmentProblem(
                code="M306",
                message=f"{folder} holds only pickled weights ({', '.join(pickles[:3])}), which can run code",
                hint="use a revision of the model that has *.safetensors, or convert it where that is safe",
            )
        raise EnvironmentProblem(
            code="M304",
            message=f"{folder} holds no *.safetensors file",
            hint="fetch the model again, or check the path",
        )
    problems = [problem for file in files if (problem := _check_header(file)) is not None]
    if problems:
        raise EnvironmentProblem(problems=problems)
    return files


def _shards(index: Path) -> list[Path]:
    """The files an index names. Names must be plain: an index never leads out of its folder."""
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise EnvironmentProblem(
            code="M305", message=f"{index} is not a safetensors index: {error}", hint="fetch the model again"
        ) from error
    bad = [
        str(name)
        for name in names
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors")
    ]
    if bad:
        raise EnvironmentProblem(
            code="M305", message=f"{index} names {bad[0]!r}; only plain names of .safetensors files are allowed"
        )
    return [index.parent / name for name in names]


def _check_header(file: Path) -> Problem | None:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return Problem(code="M304", message=f"{file} is missing; the index lists it", hint="fetch the model again")
    try:
        with safe_open(file, framework="pt") as stream:
            stream.keys()
    except (SafetensorError, OSError) as error:
        return Problem(
            code="M305", message=f"{file} is not a complete safetensors file: {error}", hint="fetch the model again"
        )
    return None


def tensors_of(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor of safetensors files, one in memory at a time."""
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118  (a safetensors file, not a dict)
                yield name, stream.get_tensor(name)


def stored_dtype(files: list[Path]) -> torch.dtype:
    """The type most weights of a model are stored in (counted by elements).

    Raises:
        RecipeError: no float tensor at all.
    """
    from safetensors import safe_open

    counts: dict[torch.dtype, int] = {}
    for file in files:
        with safe_open(file, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118
                view = stream.get_slice(name)
                dtype = _TORCH_DTYPES.get(view.get_dtype())
                if dtype is not None:
                    counts[dtype] = counts.get(dtype, 0) + max(1, _product(view.get_shape()))
    if not counts:
        raise RecipeError(
            code="M311", message=f"{files[0].parent} holds no float weights", hint="use the original, unquantised model"
        )
    return max(counts, key=lambda dtype: counts[dtype])


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def non_finite_tensors(tensors: Mapping[str, torch.Tensor] | Iterator[tuple[str, torch.Tensor]]) -> list[str]:
    """Names of float tensors that hold NaN or infinity.

    The sum is tried first: it is finite for almost every good tensor and needs no second tensor.
    """
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    bad = []
    with torch.no_grad():
        for name, tensor in pairs:
            if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
                plain = tensor if tensor.element_size() > 1 else tensor.float()
                if not bool(torch.isfinite(plain.sum(dtype=torch.float32))) and not bool(torch.isfinite(plain).all()):
                    bad.append(name)
    return bad


def refuse_non_finite(names: list[str], *, where: str) -> None:
    """Raise if any tensor is named.

    Raises:
        RunFailed: with the names; training from NaN can only give NaN.
    """
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise RunFailed(
            code="M309", message=f"{where} holds NaN or infinity in {shown}",
            hint="fetch the model again; if it was made on purpose, load it with a wider `model.dtype`",
        )  # fmt: skip
