"""Accelerators by the names users write: memory, bandwidth, rates, links.

Datasheet columns are dense rates with fp32 sums. What a training step can reach of them was measured on the H200
(one box, torch 2.11: 790 TFLOP/s bf16, 1,570 fp8 row-wise, 4.27 TB/s copy) and in part on the H100 (798, 3.0 TB/s);
for all others the shares below are assumed, and the plan says so until a run has calibrated it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from luthier.runtime.errors import RecipeError

__all__ = ["DEVICES", "Accelerator", "device_bytes", "find_device", "nearest_by_memory"]

GIB = 2**30
ASSUMED_MATMUL, ASSUMED_COPY = 0.80, 0.88
"""Share of the datasheet that big products and copies reach where it was not measured: as on H100 and H200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One device. Rates in operations a second, bandwidths in bytes a second."""

    name: str
    type: str = "cuda"
    """`cuda` or `cpu`."""
    memory_bytes: int
    """Bytes a program can use; of the host for a CPU."""
    bf16_datasheet: float
    """0: no bf16 units."""
    bf16: float
    """Of big products, reached."""
    fp8: float
    """0: no fp8 units."""
    fp32: float
    bandwidth: float
    """Of copies, reached."""
    link: float
    """To the other devices of the host, one direction."""
    host_link: float = 0.0
    """To host memory, one direction, reached; assumed for every device (`HOST_LINKS`)."""
    network: float = 50e9
    """Bytes a second to other hosts, one direction: an adapter of 400 Gbit/s beside each device. Assumed, not measured;
    `luthier plan --network` and LUTHIER_NETWORK_GBITS say another. Rings of a whole host use all of its adapters, so
    that each device sees up to eight of them."""
    measured: Literal["", "rates", "steps"] = ""
    """What was measured on this device: whole training steps, or products and copies only; else nothing, and the
    reached rates are assumed shares of its datasheet."""

    @property
    def native_bf16(self) -> bool:
        """It multiplies bf16 in hardware."""
        return self.bf16 > 0


# name, GiB usable, TB/s, TFLOP/s bf16, fp8, fp32, GB/s to a neighbour (NVLink or PCIe, one direction)
_TABLE: tuple[tuple[str, float, float, float, float, float, float], ...] = (
    ("T4", 14.6, 0.320, 0, 0, 8.1, 12),
    ("V100-16GB", 15.8, 0.900, 0, 0, 15.7, 150),
    ("V100-32GB", 31.7, 0.900, 0, 0, 15.7, 150),
    ("RTX3060", 11.8, 0.360, 25.5, 0, 12.7, 24),
    ("RTX3090", 23.6, 0.936, 71, 0, 35.6, 24),
    ("RTX4080", 15.7, 0.717, 97.5, 195, 48.7, 24),
    ("RTX4090", 23.5, 1.008, 165, 330, 82.6, 24),
    ("RTX5080", 15.5, 0.960, 112, 225, 56.3, 48),
    ("RTX5090", 31.4, 1.792, 209, 419, 104.8, 48),
    ("L4", 22.0, 0.300, 121, 242, 30.3, 24),
    ("A10", 22.0, 0.600, 125, 0, 31.2, 24),
    ("A10G", 22.0, 0.600, 70, 0, 31.2, 24),
    ("A40", 44.4, 0.696, 150, 0, 37.4, 24),
    ("RTXA6000", 47.4, 0.768, 155, 0, 38.7, 24),
    ("L40S", 44.4, 0.864, 362, 733, 91.6, 24),
    ("RTX6000Ada", 47.4, 0.960, 364, 728, 91.1, 24),
    ("A100-40GB", 39.4, 1.555, 312, 0, 19.5, 300),
    ("A100-80GB", 79.1, 2.039, 312, 0, 19.5, 300),
    ("H100", 79.1, 3.350, 989, 1979, 66.9, 450),
    ("H100-PCIe", 79.1, 2.000, 756, 1513, 51.2, 48),
    ("H100-NVL", 93.1, 3.900, 835, 1671, 60.0, 48),
    ("GH200", 94.5, 4.000, 989, 1979, 66.9, 450),
    ("H200", 139.8, 4.800, 989, 1979, 66.9, 450),
    ("B200", 178.4, 8.000, 2250, 4500, 80.0, 900),
)
HOST_LINKS = {"pcie3": 12e9, "pcie4": 24e9, "pcie5": 48e9, "nvlink": 300e9}
"""Bytes a second that copies from page-locked memory reach: three quarters of what 16 lanes carry (16, 32, 64 GB/s);
GH200 two thirds of NVLink-C2C's 450. Assumed, not measured, and half of it where two devices share a switch."""
_PCIE3, _PCIE5 = ("T4", "V100-16GB", "V100-32GB"), (
    "RTX5080", "RTX5090", "H100", "H100-PCIe", "H100-NVL", "H200", "B200",
)  # fmt: skip
_MEASURED: dict[str, dict[str, float]] = {
    "H200": {"bf16": 790e12, "fp8": 1570e12, "bandwidth": 4.27e12},
    "H100": {"bf16": 798e12, "bandwidth": 3.0e12},
}
STEPS_MEASURED = "H200"
"""The device of `plan/measured.jsonl`."""
_POWER_LIMITED = {"L4": 0.55}  # 72 W: its clock falls under load; assumed


def _device(name: str, gib: float, tbs: float, bf16: float, fp8: float, fp32: float, link: float) -> Accelerator:
    share = _POWER_LIMITED.get(name, ASSUMED_MATMUL)
    device = Accelerator(
        name=name, memory_bytes=int(gib * GIB), bf16_datasheet=bf16 * 1e12, bf16=bf16 * share * 1e12,
        fp8=fp8 * share * 1e12, fp32=fp32 * share * 1e12, bandwidth=tbs * ASSUMED_COPY * 1e12, link=link * 1e9,
        host_link=_host_link(name),
    )  # fmt: skip
    found = _MEASURED.get(name, {})
    measured = "steps" if name == STEPS_MEASURED else "rates" if found else ""
    return replace(device, **found, measured=measured)  # type: ignore[arg-type]


def _host_link(name: str) -> float:
    kind = "pcie3" if name in _PCIE3 else "pcie5" if name in _PCIE5 else "nvlink" if name == "GH200" else "pcie4"
    return HOST_LINKS[kind]


DEVICES: dict[str, Accelerator] = {row[0]: _device(*row) for row in _TABLE}
"""By name."""

_NOISE = re.compile(r"nvidia|geforce|tesla|graphics|sxm\d?|hbm\d?e?|gpu|generation")
_MEMORY = re.compile(r"\b(\d+)\s*(?:gib|gb|g)\b")


def find_device(name: str) -> Accelerator:
    """The device called `name`: `H200`, `l4 24GB`, `rtx 4090`, `A100 80GB`, `NVIDIA A100-SXM4-80GB`.

    Raises:
        RecipeError: no such device (names the nearest), or the name leaves open which memory it has.
    """
    text = _NOISE.sub(" ", name.lower().replace("-", " ").replace("_", " "))
    memory = _MEMORY.search(text)
    wanted = int(memory.group(1)) if memory else None
    key = re.sub(r"[^a-z0-9]", "", _MEMORY.sub(" ", text))
    fits = [device for device in DEVICES.values() if key and _key(device.name) == key]
    if not fits:
        short = {_key(device.name): device.name for device in DEVICES.values()}
        near = get_close_matches(key, sorted(short), n=1, cutoff=0.4)
        hint = f'did you mean "{short[near[0]]}"?' if near else "or give --gpu-memory-gib alone"
        raise RecipeError(code="C131", message=f"unknown device `{name}`; known are {', '.join(DEVICES)}", hint=hint)
    if wanted is not None:
        fits = [
            device for device in fits if device.memory_bytes / GIB <= wanted * 1.02 <= device.memory_bytes / GIB * 1.15
        ]
    if len(fits) == 1:
        return fits[0]
    versions = [device.name for device in DEVICES.values() if _key(device.name) == key]
    if fits:
        message = f"`{name}` comes with different memory: {', '.join(versions)}"
        raise RecipeError(code="C131", message=message, hint="name one of them")
    sizes = " or ".join(f"{DEVICES[version].memory_bytes / GIB:.0f} GiB usable" for version in versions)
    raise RecipeError(
        code="C131", message=f"`{name}`: {versions[0]} has {sizes}, not {wanted} GB",
        hint=f"write {versions[0]}, and --gpu-memory-gib for a share of it",
    )  # fmt: skip


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", _MEMORY.sub(" ", name.lower().replace("-", " ")))


def device_bytes(name: str) -> int:
    """Bytes of the device called `name`.

    Raises:
        RecipeError: see `find_device`.
    """
    return find_device(name).memory_bytes


def nearest_by_memory(memory_bytes: int) -> Accelerator:
    """The listed device with bf16 units whose memory is nearest: stands in for one that is not listed."""
    candidates = [device for device in DEVICES.values() if device.native_bf16]
    return min(candidates, key=lambda device: abs(device.memory_bytes - memory_bytes))


def larger_devices(memory_bytes: int) -> list[Accelerator]:
    """The usual next sizes above `memory_bytes`, smallest first."""
    usual = [DEVICES[name] for name in ("L4", "A100-40GB", "L40S", "H100", "H200", "B200")]
    return [device for device in usual if device.memory_bytes > 1.05 * memory_bytes]
