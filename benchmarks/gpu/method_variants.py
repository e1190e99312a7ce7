"""The methods that `methods.py` compares: what each trains, and the learning rates it may choose from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from luthier.pipeline.spectrum import is_tied, scan_model
from luthier.spectrum.results import Scan
from luthier.spectrum.select import Selection, select

TOP_PERCENT = 30.0
WEIGHT_RATES = (4e-4, 2e-4, 8e-4)
"""For methods that train the weights themselves, the likeliest first; the same for all of them."""
ADAPTER_RATES = (1e-3, 2e-3, 5e-4)


@dataclass(frozen=True)
class Variant:
    """One method."""

    name: str
    method: dict[str, Any]
    rates: tuple[float, ...]
    unfrozen: tuple[str, ...] = ()
    quantization: str = "none"
    train: dict[str, Any] = field(default_factory=dict)
    """Further keys of `train`."""
    skip: str | None = None
    """Why it cannot run here."""


def adapter_variants() -> list[Variant]:
    """Other starts and rates of the same adapter, to be compared with `lora_r16`."""
    adapter = {"name": "lora", "r": 16}
    starts = [
        Variant(f"{start}_r16", {**adapter, "lora_alpha": 16.0, "init_lora_weights": start}, (1e-3, 5e-4, 2e-3, 2e-4))
        for start in ("pissa", "olora")
    ]
    plus = Variant(
        "lora_plus_r16", {**adapter, "lora_alpha": 32.0}, (2e-4, 4e-4, 1e-4), train={"loraplus_lr_ratio": 16.0}
    )
    return [plus, *starts]


def variants(folder: Path) -> list[Variant]:
    """All of them, the most wanted first; scans the model."""
    scan, tied = scan_model(folder, source=folder.name), is_tied(folder)

    def chosen(score: Any, *, ends: bool) -> Selection:
        return select(scan, score=score, top_percent=TOP_PERCENT, train_embeddings=ends, tied=tied)

    def spectrum(name: str, patterns: Sequence[str]) -> Variant:
        return Variant(name, {"name": "spectrum"}, WEIGHT_RATES, unfrozen=tuple(patterns))

    adapter = {"r": 16, "lora_alpha": 32.0}
    missing = None if find_spec("bitsandbytes") else "bitsandbytes is not installed"
    found = [
        Variant("full", {"name": "full"}, WEIGHT_RATES),
        Variant("lora_r16", {"name": "lora", **adapter}, ADAPTER_RATES),
        spectrum("calibrated_30", chosen("calibrated", ends=True).patterns),
        spectrum("compat_30", chosen("compat", ends=True).patterns),
    ]
    found += [spectrum(f"random_30_seed{seed}", at_random(scan, chosen("compat", ends=True), seed)) for seed in (0, 1)]
    found.append(Variant("qlora_r16", {"name": "qlora", **adapter}, ADAPTER_RATES, quantization="nf4", skip=missing))
    found.append(Variant("lora_r16_fp8", {"name": "lora", **adapter}, ADAPTER_RATES, quantization="fp8"))
    found += [
        spectrum(f"{score}_30_frozen_ends", chosen(score, ends=False).patterns) for score in ("calibrated", "compat")
    ]
    found.append(spectrum("random_30_seed0_frozen_ends", at_random(scan, chosen("compat", ends=False), 0)))
    return found


def at_random(scan: Scan, like: Selection, seed: int) -> tuple[str, ...]:
    """As many modules of each type as `like` has, drawn without looking at a score."""
    chooser = random.Random(seed)
    patterns = list(like.ends)
    for kind, results in scan.by_type(each_expert=True).items():
        modules = [result.name.removesuffix(".weight") for result in results]
        patterns += sorted(chooser.sample(modules, len(like.chosen.get(kind, ()))))
    return tuple(patterns)
