"""The only reader of environment variables."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = [
    "Env",
    "child_environment",
    "for_other_hosts",
    "launcher_variables",
    "read_env",
    "read_plain",
    "read_secret",
    "read_visible_devices",
    "secret_values",
    "show_devices",
    "variable",
    "without_launcher_variables",
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
    """`RANK` as set by torchrun, or by MPI under `accelerate launch --cpu`; 0 without them."""
    local_rank: int
    """`LOCAL_RANK`."""
    world_size: int
    """`WORLD_SIZE`; 1 without torchrun."""
    local_world_size: int
    """`LOCAL_WORLD_SIZE`: processes on this machine."""
    machine: int
    """`GROUP_RANK` as set by torchrun: number of this machine; 0 without it."""
    machines: int
    """`GROUP_WORLD_SIZE` as set by torchrun: how many there are; 1 without it."""
    unshared: bool
    """`LUTHIER_UNSHARED` is set by `luthier launch`: the machines of the run do not see one run folder."""
    machine_seconds: float
    """`LUTHIER_MACHINE_SECONDS`: a machine that is silent for so long is lost; 30 by default."""
    launched: bool
    """`LUTHIER_LAUNCHED` is set: `luthier launch` started this process and tells its error."""
    launch_command: tuple[str, ...]
    """`LUTHIER_LAUNCH_COMMAND` is set by `luthier launch`, as JSON: the words that the user gave; else empty."""
    error_file: Path | None
    """`TORCHELASTIC_ERROR_FILE`: where torchrun reads the error of a process."""
    hang_seconds: float
    """`LUTHIER_HANG_SECONDS`: without progress of any process for so long, a run counts as hung; 900 by default."""
    roll_call: bool
    """`LUTHIER_ROLL_CALL` is set: under FSDP2 on GPUs processes answer before each exchange of every step."""
    watch_folder: Path | None
    """`LUTHIER_WATCH_FOLDER` is set by `luthier eval`, which has no run folder: where processes leave heartbeats."""
    network_gbits: float | None
    """`LUTHIER_NETWORK_GBITS`: what each device sends to other hosts, in Gbit/s, for the plan; None: it assumes 400."""
    omp_num_threads: int | None
    """`OMP_NUM_THREADS` if the user set it: then Luthier leaves the thread count alone."""
    offline: bool
    """`HF_HUB_OFFLINE` is set to 1/true/yes/on."""
    force_cpu: bool
    """`LUTHIER_FORCE_CPU`, or accelerate's `ACCELERATE_USE_CPU`, is set: ignore accelerators."""
    no_color: bool
    """`NO_COLOR` is set."""


def read_env() -> Env:
    """Read the environment now (not at import: tests and launchers change it)."""
    get = os.environ.get
    base = get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    threads = get("OMP_NUM_THREADS", "")
    return Env(
        cache_dir=Path(get("LUTHIER_CACHE") or Path(base) / "luthier"),
        rank=int(_process("RANK") or 0),
        local_rank=int(_process("LOCAL_RANK") or 0),
        world_size=int(_process("WORLD_SIZE") or 1),
        local_world_size=int(_process("LOCAL_WORLD_SIZE") or _process("WORLD_SIZE") or 1),
        machine=int(get("GROUP_RANK") or 0),
        machines=int(get("GROUP_WORLD_SIZE") or 1),
        unshared=_truthy(get("LUTHIER_UNSHARED", "")),
        machine_seconds=float(get("LUTHIER_MACHINE_SECONDS") or 30.0),
        launched=_truthy(get("LUTHIER_LAUNCHED", "")),
        launch_command=tuple(json.loads(get("LUTHIER_LAUNCH_COMMAND") or "[]")),
        error_file=Path(get("TORCHELASTIC_ERROR_FILE", "")) if get("TORCHELASTIC_ERROR_FILE") else None,
        hang_seconds=float(get("LUTHIER_HANG_SECONDS") or 900.0),
        roll_call=_truthy(get("LUTHIER_ROLL_CALL", "")),
        watch_folder=Path(get("LUTHIER_WATCH_FOLDER", "")) if get("LUTHIER_WATCH_FOLDER") else None,
        network_gbits=float(value) if (value := get("LUTHIER_NETWORK_GBITS")) else None,
        omp_num_threads=int(threads) if threads.isdigit() else None,
        offline=_truthy(get("HF_HUB_OFFLINE", "")),
        force_cpu=_truthy(get("LUTHIER_FORCE_CPU", "")) or _truthy(get("ACCELERATE_USE_CPU", "")),
        no_color="NO_COLOR" in os.environ,
    )


_OF_MPI = {
    "RANK": ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    "WORLD_SIZE": ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    "LOCAL_RANK": ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    "LOCAL_WORLD_SIZE": ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
}
"""As accelerate reads them (`utils/environment.py: get_cpu_distributed_information`)."""


def _process(name: str) -> str | None:
    """torchrun's variable; under `accelerate launch --cpu` through mpirun MPI's: elsewhere it may be of another job."""
    names = (name, *_OF_MPI[name]) if _truthy(os.environ.get("ACCELERATE_USE_CPU", "")) else (name,)
    return next((value for one in names if (value := os.environ.get(one))), None)


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


_OF_LAUNCHER = re.compile(
    r"(FSDP|PARALLELISM_CONFIG|MEGATRON_LM|ACCELERATE_(DEEPSPEED|DYNAMO|FP8))_.+"
    r"|ACCELERATE_(MIXED_PRECISION|USE_(FSDP|DEEPSPEED|MEGATRON_LM|PARALLELISM_CONFIG|CPU)|CONFIG_DS_FIELDS"
    r"|GRADIENT_ACCUMULATION_STEPS|GRADIENT_CLIPPING|DEBUG_MODE)"
)
_LAUNCHED_BY = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


def launcher_variables() -> dict[str, str]:
    """What `accelerate launch` tells its processes; empty without it."""
    if not any(name in os.environ for name in _LAUNCHED_BY):
        return {}
    return {name: value for name, value in os.environ.items() if _OF_LAUNCHER.fullmatch(name)}


@contextmanager
def without_launcher_variables() -> Iterator[Mapping[str, str]]:
    """Hide from libraries what `accelerate launch` exported; gives what was hidden, which is put back afterwards.

    accelerate, transformers and PEFT read these wherever they are: accelerate would wrap models, transformers would
    load weights in process 0 alone.
    """
    hidden = launcher_variables()
    for name in hidden:
        if name != "ACCELERATE_USE_CPU":  # our device follows it, and so accelerate's may
            del os.environ[name]
    try:
        yield hidden
    finally:
        os.environ.update(hidden)


def read_secret(name: str) -> str | None:
    """A key that a recipe names by its variable; None if it is not set. Never printed, never stored."""
    return os.environ.get(name)


def read_plain(name: str) -> str | None:
    """A variable of a library, which is no secret; None if it is not set."""
    return os.environ.get(name)


def read_visible_devices() -> str | None:
    """`CUDA_VISIBLE_DEVICES`, if it is set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def show_devices(ids: str) -> None:
    """Set `CUDA_VISIBLE_DEVICES`, before anything has asked for devices, for this process and those it starts."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ids


def secret_values() -> list[tuple[str, str]]:
    """(name, value) of every variable named like a secret, to keep its value out of what is written or sent."""
    return [
        (name, value)
        for name, value in ((name, os.environ[name]) for name in os.environ if _named_like_a_secret(name))
        if len(value) >= _SHORTEST_SECRET
        and not value.startswith(("/", "~"))
        and value.lower() not in {"disabled", "unlimited"}
    ]


@cache
def _named_like_a_secret(name: str) -> bool:
    """Asked of every variable for every line of a model card."""
    return any(word in name.upper() for word in _SECRET_NAMES)


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
        if name.startswith(_FOR_HOSTS) and name not in _SET_BY_LAUNCH
    }  # fmt: skip


_SET_BY_LAUNCH = (
    "LUTHIER_LAUNCHED", "LUTHIER_LAUNCH_COMMAND", "LUTHIER_UNSHARED", "LUTHIER_PARENT", "LUTHIER_WATCH_FOLDER",
)  # fmt: skip
_FOR_HOSTS = (
    "LUTHIER_", "HF_", "HUGGING_FACE_", "TRANSFORMERS_", "TORCH_", "PYTORCH_", "NCCL_", "GLOO_", "WANDB_", "OMP_",
    "MKL_", "PYTHONPATH", "CUDA_VISIBLE_DEVICES", "NO_COLOR",
)  # fmt: skip


def _is_secret(name: str, value: str) -> bool:
    named = any(word in name.upper() for word in (*_SECRET_NAMES, "_KEY"))
    return (named and not value.startswith("/")) or _URL_PASSWORD.search(value) is not None


_URL_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")


def _truthy(value: str) -> bool:
    return value.strip().lower() in {"1", "true", "yes", "on"}
