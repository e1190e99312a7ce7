"""The only reader of environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Env",
    "child_environment",
    "for_other_hosts",
    "read_env",
    "read_plain",
    "read_secret",
    "read_visible_devices",
    "secret_values",
    "variable",
]

_SECRET_NAMES = (
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "API_KEY",
    "APIKEY",
    "ACCESS_KEY",
    "CREDENTIAL",
    "PRIVATE_KEY",
)
_SHORTEST_SECRET = 8
"""Shorter values would be found in ordinary words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Env:
    """What Luthier takes from the environment."""

    cache_dir: Path
    """`LUTHIER_CACHE`, else `$XDG_CACHE_HOME/luthier`, else `~/.cache/luthier`."""
    rank: int
    """`RANK` as set by torchrun; 0 without it."""
    local_rank: int
    """`LOCAL_RANK`."""
    world_size: int
    """`WORLD_SIZE`; 1 without torchrun."""
    local_world_size: int
    """`LOCAL_WORLD_SIZE`: processes on this machine."""
    machine: int
    """`GROUP_RANK` as set by torchrun: number of this machine; 0 without it."""
    unshared: bool
    """`LUTHIER_UNSHARED` is set by `luthier launch`: the machines of the run do not see one run folder."""
    machine_seconds: float
    """`LUTHIER_MACHINE_SECONDS`: a machine that is silent for so long is lost; 30 by default."""
    launched: bool
    """`LUTHIER_LAUNCHED` is set: `luthier launch` started this process and tells its error."""
    error_file: Path | None
    """`TORCHELASTIC_ERROR_FILE`: where torchrun reads the error of a process."""
    hang_seconds: float
    """`LUTHIER_HANG_SECONDS`: without progress of any process for so long, a run counts as hung; 900 by default."""
    accelerate_strategy: str | None
    """What `accelerate launch` was configured for: `fsdp`, `deepspeed`, `ddp` or `one process`; None without it."""
    omp_num_threads: int | None
    """`OMP_NUM_THREADS` if the user set it: then Luthier leaves the thread count alone."""
    offline: bool
    """`HF_HUB_OFFLINE` is set to 1/true/yes/on."""
    force_cpu: bool
    """`LUTHIER_FORCE_CPU` is set: ignore accelerators."""
    no_color: bool
    """`NO_COLOR` is set."""


def read_env() -> Env:
    """Read the environment now (not at import: tests and launchers change it)."""
    get = os.environ.get
    base = get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    threads = get("OMP_NUM_THREADS", "")
    return Env(
        cache_dir=Path(get("LUTHIER_CACHE") or Path(base) / "luthier"),
        rank=int(get("RANK", "0")),
        local_rank=int(get("LOCAL_RANK", "0")),
        world_size=int(get("WORLD_SIZE", "1")),
        local_world_size=int(get("LOCAL_WORLD_SIZE") or get("WORLD_SIZE", "1")),
        machine=int(get("GROUP_RANK") or 0),
        unshared=_truthy(get("LUTHIER_UNSHARED", "")),
        machine_seconds=float(get("LUTHIER_MACHINE_SECONDS") or 30.0),
        launched=_truthy(get("LUTHIER_LAUNCHED", "")),
        error_file=Path(get("TORCHELASTIC_ERROR_FILE", "")) if get("TORCHELASTIC_ERROR_FILE") else None,
        hang_seconds=float(get("LUTHIER_HANG_SECONDS") or 900.0),
        accelerate_strategy=_accelerate_strategy(),
        omp_num_threads=int(threads) if threads.isdigit() else None,
        offline=_truthy(get("HF_HUB_OFFLINE", "")),
        force_cpu=_truthy(get("LUTHIER_FORCE_CPU", "")),
        no_color="NO_COLOR" in os.environ,
    )


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Set a variable for the libraries and processes inside; what it was is put back."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def read_secret(name: str) -> str | None:
    """A key that a recipe names by its variable; None if it is not set. Never printed, never stored."""
    return os.environ.get(name)


def read_plain(name: str) -> str | None:
    """A variable of a library, which is no secret; None if it is not set."""
    return os.environ.get(name)


def read_visible_devices() -> str | None:
    """`CUDA_VISIBLE_DEVICES`, if it is set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def secret_values() -> list[tuple[str, str]]:
    """(name, value) of every variable named like a secret, to keep its value out of what is written or sent."""
    return [
        (name, value)
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST_SECRET
        and any(word in name.upper() for word in _SECRET_NAMES)
        and not value.startswith(("/", "~"))
        and value.lower() not in {"disabled", "unlimited"}
    ]


def child_environment(*, keep: Collection[str] = ()) -> dict[str, str]:
    """The environment for a process that works for somebody else: without what is named like a secret or holds one.

    Args:
        keep: Names of secrets that it needs.
    """
    return {name: value for name, value in os.environ.items() if name in keep or not _is_secret(name, value)}


def for_other_hosts() -> dict[str, str]:
    """What a process on another host gets of this environment: variables of Luthier, Hugging Face, torch, NCCL and
    trackers; none that names something of this host."""
    return {
        name: value for name, value in os.environ.items()
        if name.startswith(_FOR_HOSTS) and name not in {"LUTHIER_LAUNCHED", "LUTHIER_UNSHARED"}
    }  # fmt: skip


_FOR_HOSTS = (
    "LUTHIER_", "HF_", "HUGGING_FACE_", "TRANSFORMERS_", "TORCH_", "PYTORCH_", "NCCL_", "GLOO_", "WANDB_", "OMP_",
    "MKL_", "PYTHONPATH", "CUDA_VISIBLE_DEVICES", "NO_COLOR",
)  # fmt: skip


def _is_secret(name: str, value: str) -> bool:
    named = any(word in name.upper() for word in (*_SECRET_NAMES, "_KEY"))
    return (named and not value.startswith("/")) or _URL_PASSWORD.search(value) is not None


_URL_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")


def _accelerate_strategy() -> str | None:
    get = os.environ.get
    if get("ACCELERATE_MIXED_PRECISION") is None:
        return None
    if _truthy(get("ACCELERATE_USE_FSDP", "")):
        return "fsdp"
    if _truthy(get("ACCELERATE_USE_DEEPSPEED", "")):
        return "deepspeed"
    return "ddp" if int(get("WORLD_SIZE", "1")) > 1 else "one process"


def _truthy(value: str) -> bool:
    return value.strip().lower() in {"1", "true", "yes", "on"}
