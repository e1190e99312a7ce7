"""What is needed to repeat a run: code, versions, hardware, inputs. No torch needed to collect it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from luthier.runtime.errors import RunFailed

__all__ = ["code_version", "cpu_name", "hardware", "library_versions", "read_manifest"]

REPAIR = "`luthier run` with its recipe.yaml writes it again"
LIBRARIES = (
    "luthier", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors",
    "bitsandbytes", "trl", "numpy", "scipy", "pydantic", "pyarrow", "huggingface-hub", "triton",
)  # fmt: skip


def read_manifest(folder: Path) -> dict[str, Any]:
    """`manifest.json` of a run folder; empty if there is none.

    Raises:
        RunFailed: it is damaged.
    """
    file = folder / "manifest.json"
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise RunFailed(code="R724", message=f"{file} is damaged: {error}", hint=REPAIR) from error
    if not isinstance(value, dict) or not isinstance(value.get("recipe"), dict):
        raise RunFailed(code="R724", message=f"{file} is damaged: it holds no recipe", hint=REPAIR)
    return value


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries a result can depend on, and of Python."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        if (version := _installed(name)) is not None:
            versions[name] = version
    return versions


@cache
def _installed(name: str) -> str | None:
    """Its version, read once: every checkpoint asks, and what this process runs does not change."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def code_version() -> dict[str, Any]:
    """Commit of the checkout Luthier runs from, and whether files in it are changed; empty for an installed wheel.

    As it was when first asked: later edits of files are not what this process runs.
    """
    package = Path(__file__).resolve().parents[1]
    try:
        commit = _git(package, "rev-parse", "HEAD")
        changed = bool(_git(package, "status", "--porcelain", "--untracked-files=no", "--", str(package)))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit, "uncommitted_changes": changed}


def _git(folder: Path, *arguments: str) -> str:
    call = ["git", "-C", str(folder), *arguments]
    return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def cpu_name() -> str:
    """Marketing name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def hardware() -> dict[str, Any]:
    """Processor, cores, memory; GPUs only if torch is loaded already."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {"system": platform.platform(), "cpu": cpu_name(), "cores": cores}
    if hasattr(os, "sysconf"):
        facts["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        facts["cuda"] = torch.version.cuda
    return facts
