"""What a plan says. Frozen records; `to_json` is what `--json` prints and `plan.json` keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.plan.calibrate import Correction
from luthier.plan.disk import disk_bytes
from luthier.plan.host import HostPlan
from luthier.plan.memory import MemoryPlan
from luthier.plan.setting import Setting
from luthier.plan.time import StepTime
from luthier.recipe.facts import Decision
from luthier.recipe.steps import Batching

if TYPE_CHECKING:
    from luthier.plan.remedies import Remedy
    from luthier.plan.request import Request

__all__ = ["Candidate", "Plan", "RunnerUp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One setting with its memory and time."""

    setting: Setting
    budget: int
    """Token budget of a micro-batch that leads to this split."""
    split: Batching
    memory: MemoryPlan
    """Before correction."""
    step: StepTime
    """Before correction."""
    correction: Correction
    step_tokens: float
    """Of one optimizer step, all devices."""
    available_bytes: int
    """Of one device, less what the plan leaves free."""
    host: HostPlan
    host_available: int | None = None
    """Bytes that this host has free; None: not known, or nothing is offloaded."""

    @property
    def needed_bytes(self) -> int:
        """Of one device: corrected peak, and what is outside of it."""
        return round(self.memory.peak * self.correction.memory) + self.memory.recordings + self.memory.outside

    @property
    def peak_bytes(self) -> int:
        """What the allocator will show, corrected."""
        return round(self.memory.peak * self.correction.memory)

    @property
    def fits(self) -> bool:
        """It needs no more than there is, on the device and, of what is offloaded, on this host."""
        return self.needed_bytes <= self.available_bytes and not self.host_missing

    @property
    def host_missing(self) -> int:
        """Bytes of host memory more than are free: what is offloaded, and what loading and saving need beside it. The
        processes themselves run already when that is asked (L310)."""
        if self.host_available is None:
            return 0
        return max(0, self.host.offloaded - self.host_available)

    @property
    def seconds(self) -> float:
        """Of one optimizer step, corrected."""
        return self.step.total * self.correction.seconds

    @property
    def seconds_per_token(self) -> float:
        """Of all devices together."""
        return self.seconds / self.step_tokens

    @property
    def tokens_per_second(self) -> float:
        """Of all devices together."""
        return self.step_tokens / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerUp:
    """Another setting, and why it was not taken."""

    candidate: Candidate
    why: str

    def to_json(self) -> dict[str, Any]:
        """What it would come to, as plain values."""
        return {
            "why": self.why, "fits": self.candidate.fits, "total": self.candidate.needed_bytes,
            "tokens_per_second": self.candidate.tokens_per_second,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer to a request."""

    request: Request
    chosen: Candidate
    """The fastest that fits; if none does, the one with the least memory."""
    fits: bool
    reasons: Mapping[str, str]
    """By key of the recipe."""
    runners_up: tuple[RunnerUp, ...]
    remedies: tuple[Remedy, ...]
    """Single changes after which it fits, smallest first; empty when it fits."""
    faster: Remedy | None
    """Keys that the recipe fixes and that the plan would set to run at least 5% faster."""
    steps: int
    model_flops_per_token: float
    ways: tuple[RunnerUp, ...] = ()
    """The best setting of each way to spread the model that was looked at, the chosen one first."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Ways that were left out, and why."""
    seconds_before: float = 0.0
    """Of passes without gradients before the first step: the reference of DPO and KTO."""

    @property
    def host(self) -> HostPlan:
        """Memory of each host."""
        return self.chosen.host

    @property
    def tokens(self) -> float:
        """Of the whole run."""
        return self.steps * self.chosen.step_tokens

    @property
    def seconds(self) -> float:
        """Of all optimizer steps; loading, scoring and merging come on top."""
        return self.steps * self.chosen.seconds

    @property
    def mfu(self) -> float | None:
        """Model FLOPs a second over the datasheet's bf16 rate (its fp32 rate in fp32); None on a CPU."""
        device = self.request.device
        if device.type != "cuda":
            return None
        peak = device.bf16_datasheet if self.request.dtype_bytes == 2 and device.bf16_datasheet else device.fp32
        return self.chosen.tokens_per_second * self.model_flops_per_token / (peak * self.request.num_gpus)

    def decision(self) -> Decision:
        """For `recipe/resolve.py`."""
        setting = self.chosen.setting
        recompute: Any = {"none": False, "layer": True, "selective": "selective"}[setting.recompute]
        return Decision(
            micro_batch_tokens=self.chosen.budget, recompute=recompute, recompute_layers=setting.recompute_layers,
            recompute_attention=setting.attending_layers or not setting.keep_attention,
            dequantize_base=setting.base == "nf4_dequantized", reasons=dict(self.reasons),
            strategy=setting.way.strategy, offload=setting.offload, sequence_parallel_size=setting.sequence_parallel,
            dp_replicate_size=setting.way.dp_replicate if setting.sharded else 1,
        )  # fmt: skip

    def predicted(self) -> dict[str, Any]:
        """What `calibrate.record` wants: uncorrected, with the key; and the corrected values beside it."""
        return {
            "key": self.request.key(self.chosen.setting.base, self.chosen.setting.way),
            "peak_bytes": self.chosen.memory.peak,
            "seconds_per_step": self.chosen.step.total,
            "corrected_peak_bytes": self.chosen.peak_bytes,
            "corrected_seconds_per_step": self.chosen.seconds,
            "correction": asdict(self.chosen.correction),
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values; `memory.peak` and `time.seconds_per_step` are what a run is held to."""
        chosen, request = self.chosen, self.request
        layers = request.sizes.shape.layers
        return {
            "fits": self.fits,
            "device": request.device.name,
            "num_gpus": request.num_gpus,
            "model": request.sizes.shape.source,
            "data": request.documents.how,
            "parameters": request.sizes.parameters,
            "trainable": request.sizes.trainable,
            "trained_how": request.sizes.trained_how,
            "setting": {
                **asdict(chosen.setting),
                "sharded": chosen.setting.sharded,
                "per_device_train_batch_size": chosen.split.per_device_train_batch_size,
                "gradient_accumulation_steps": chosen.split.gradient_accumulation_steps,
                "words": chosen.setting.describe(layers),
            },
            "reasons": dict(self.reasons),
            "memory": {
                "parts": chosen.memory.parts(),
                "moment": chosen.memory.moment,
                "tokens": chosen.memory.tokens,
                "peak": chosen.peak_bytes,
                "total": chosen.needed_bytes,
                "device": request.device.memory_bytes,
            },
            "time": {
                "parts": chosen.step.parts(),
                "seconds_per_step": chosen.seconds,
                "tokens_per_step": chosen.step_tokens,
                "tokens_per_second": chosen.tokens_per_second,
                "mfu": self.mfu,
                "steps": self.steps,
                "tokens": self.tokens,
                "seconds": self.seconds,
                "seconds_before": self.seconds_before,
            },
            "host": {**self.host.to_json(), "free": chosen.host_available},
            "ways": [
                {**asdict(other.candidate.setting.way), **other.to_json(), "parts": other.candidate.memory.parts()}
                for other in self.ways
            ],
            "refused": dict(self.refused),
            "disk": disk_bytes(request),
            "predicted": self.predicted(),
            "runners_up": [
                {"setting": other.candidate.setting.describe(layers), **other.to_json()} for other in self.runners_up
            ],
            "faster": asdict(self.faster) if self.faster else None,
            "remedies": [asdict(remedy) for remedy in self.remedies],
        }
