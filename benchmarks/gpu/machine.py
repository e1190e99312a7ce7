"""What a number was measured on: hardware, versions, code. And whose turn it is on the device."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "triton", "transformers", "peft", "accelerate", "bitsandbytes", "numpy")


def machine(device: str) -> dict[str, Any]:
    """Name and memory of the device, versions, commit, and a hash of the package's sources."""
    import torch

    facts: dict[str, Any] = {"device": "cpu", "python": platform.python_version(), "versions": _versions()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts.update(
            device=properties.name, device_gib=round(properties.total_memory / 2**30, 1), clocks=_clocks(),
        )  # fmt: skip
    return {**facts, "commit": _commit(), "source": source_hash()}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _clocks() -> str | None:
    """Driver, SM clock, memory clock, power limit; None where nvidia-smi does not answer in five seconds."""
    query = "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit"
    try:
        return subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _commit() -> str | None:
    """Commit of the checkout; where there is no git, what `.gpu/pack/commit` says."""
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        note = ROOT / ".gpu" / "pack" / "commit"
        return note.read_text("utf-8").strip() if note.exists() else None


def source_hash() -> str:
    """Twelve digits of SHA-256 over the Python files of `luthier`: tells versions of a working tree apart."""
    digest = hashlib.sha256()
    for file in sorted((ROOT / "luthier").rglob("*.py")):
        digest.update(file.relative_to(ROOT).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


_turn: list[Any] = []


def take_turn() -> None:
    """Wait until no other process of this list uses the device; the lock ends with the process (BENCH_LOCK)."""
    path = os.environ.get("BENCH_LOCK")
    if path and not _turn:
        handle = Path(path).open("w", encoding="utf-8")  # noqa: SIM115  held until the process ends
        fcntl.flock(handle, fcntl.LOCK_EX)
        _turn.append(handle)
