"""Memory of common accelerators, from their vendors' data sheets."""

from __future__ import annotations

from difflib import get_close_matches

from luthier.runtime.errors import RecipeError

__all__ = ["DEVICE_GIB", "device_bytes"]

DEVICE_GIB: dict[str, float] = {
    "T4": 15, "RTX3060": 12, "RTX3090": 24, "RTX4090": 24, "RTX5090": 32, "L4": 22.5, "A10": 22.5, "A10G": 22.5,
    "L40S": 45, "A40": 45, "A100-40GB": 39.5, "A100-80GB": 79, "H100": 79, "H200": 139.8, "B200": 178,
}  # fmt: skip
"""GiB that a program can use, by name."""


def device_bytes(name: str) -> int:
    """Bytes of the device called `name`, upper or lower case.

    Raises:
        RecipeError: no such device; names the nearest.
    """
    known = {key.lower(): key for key in DEVICE_GIB}
    if name.lower() not in known:
        near = get_close_matches(name.lower(), known, n=1, cutoff=0.4)
        hint = f'did you mean "{known[near[0]]}"?' if near else None
        allowed = ", ".join(DEVICE_GIB)
        raise RecipeError(code="C131", message=f"unknown device `{name}`; known are {allowed}", hint=hint)
    return int(DEVICE_GIB[known[name.lower()]] * 2**30)
