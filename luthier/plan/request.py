"""What a plan is asked: a recipe, a model, a device, data; and the settings that the recipe leaves open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.plan.calibrate import Correction, calibration_file, correction
from luthier.plan.devices import Accelerator
from luthier.plan.launches import own_attention
from luthier.plan.setting import HOST_DEVICES, Base, Recompute, Way
from luthier.plan.shape import ModelShape
from luthier.plan.sizes import Sizes, sizes_of
from luthier.plan.work import Documents
from luthier.recipe.schema import Recipe
from luthier.recipe.steps import Batching, choose_batching, step_target, total_steps

__all__ = ["BUDGETS", "Request", "make_request"]

BUDGETS = tuple(1024 * 2**power for power in range(7))
"""Token budgets of a micro-batch that are tried: 1k to 64k."""
COPIES = Way()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One question to the plan."""

    recipe: Recipe
    sizes: Sizes
    documents: Documents
    device: Accelerator
    num_gpus: int = 1
    cache_dir: Path | None = None
    """Where measurements of earlier runs are; None: none are used."""
    host_devices: int = HOST_DEVICES
    """Devices of a host, where there are several hosts."""
    host_memory: int | None = None
    """Bytes that each host has free for what is offloaded; None: a plan for other machines, so not known."""

    @property
    def dtype_bytes(self) -> int:
        """Bytes of a number in the compute type."""
        wanted = self.recipe.model.dtype
        if wanted == "auto":
            return 2 if self.device.native_bf16 else 4
        return 4 if wanted == "float32" else 2

    def bases(self, way: Way) -> tuple[Base, ...]:
        """Ways of storing the base that compute the same numbers, by the recipe. In shards a packed base stays packed:
        unpacked it would travel as such."""
        model = self.recipe.model
        nf4 = model.quantization == "nf4" or (model.quantization == "auto" and self.recipe.method.name == "qlora")
        if model.quantization == "fp8":
            return ("fp8",)
        if not nf4:
            return ("plain",)
        if model.dequantize_base == "auto":
            return ("nf4_dequantized", "nf4") if self.device.type == "cuda" and not way.sharded else ("nf4",)
        return ("nf4_dequantized",) if model.dequantize_base else ("nf4",)

    @property
    def extended(self) -> bool:
        """Adapters are rows and columns of the base's matrices (`fast/decoder/projection.py`)."""
        return self.device.type == "cuda" and self.sizes.adapters and self.sizes.fast

    @property
    def recompute(self) -> tuple[Recompute, int | None] | None:
        """What the recipe fixes; None: the plan chooses."""
        policy, layers = self.recipe.train.gradient_checkpointing, self.recipe.train.gradient_checkpointing_layers
        count = layers if isinstance(layers, int) else None
        if policy == "auto":
            return None if count is None else ("layer", count)
        return {False: "none", True: "layer", "selective": "selective"}[policy], count  # type: ignore[return-value]

    @property
    def attention_is_open(self) -> bool:
        """Whether layers that run again keep their attention is the plan's choice. Autograd's own attention (a CPU,
        fp32, other head widths) keeps more than its output: only by name."""
        wanted = self.recipe.train.gradient_checkpointing_attention
        kernels = self.device.type == "cuda" and self.dtype_bytes == 2 and own_attention(self.sizes)
        return wanted == "auto" and kernels

    @property
    def attention_kept(self) -> tuple[tuple[bool, int], ...]:
        """What to look at: `Setting.keep_attention` and `attending_layers`."""
        wanted = self.recipe.train.gradient_checkpointing_attention
        if self.attention_is_open:
            return ((False, 0), (True, 0))
        if wanted == "auto" or wanted is True:
            return ((False, 0),)
        return ((True, int(wanted)),)

    @property
    def sequences_per_step(self) -> int:
        """Of all devices, as `recipe/resolve.py` takes them."""
        documents = self.documents
        return step_target(
            self.recipe.train, rows=documents.rows, sequences=documents.sequences,
            mean_tokens=documents.sequence_tokens,
        )[0]  # fmt: skip

    def splits(self, way: Way = COPIES) -> Iterator[tuple[int, Batching]]:
        """(token budget, split of a step) for every different micro-batch, largest first. Devices that share sequences
        count as one, with the budget of all."""
        seen: set[int] = set()
        train = self.recipe.train
        micro = train.per_device_train_batch_size
        accumulate = train.gradient_accumulation_steps
        # On a CPU small micro-batches stay in the caches (`recipe/steps.py`): there is nothing to search.
        budgets = tuple(reversed(BUDGETS)) if self.device.type == "cuda" else BUDGETS[:1]
        for budget in budgets:
            split = choose_batching(
                self.sequences_per_step, mean_tokens=self.documents.sequence_tokens, device_type=self.device.type,
                world_size=self.num_gpus // way.sequence_parallel, micro_batch_tokens=budget * way.sequence_parallel,
                per_device_train_batch_size=None if micro == "auto" else micro,
                gradient_accumulation_steps=None if accumulate == "auto" else accumulate,
            )  # fmt: skip
            if split.per_device_train_batch_size not in seen:
                seen.add(split.per_device_train_batch_size)
                yield budget * way.sequence_parallel, split

    def steps(self, split: Batching) -> int:
        """Optimizer steps of the run."""
        train = self.recipe.train
        return total_steps(self.documents.sequences, split.sequences_per_step, train.num_train_epochs, train.max_steps)

    def epochs(self, split: Batching) -> float:
        """Passes over the training rows."""
        per_epoch = -(-self.documents.sequences // split.sequences_per_step)
        return self.steps(split) / per_epoch

    def key(self, base: Base, way: Way = COPIES) -> dict[str, str]:
        """What runs must have in common for their measurements to correct this plan."""
        copies = f" x{self.num_gpus}"
        copies += "" if way == COPIES else f" {way.words()}"
        objective = self.recipe.objective.name
        copies += "" if objective == "sft" else f" {objective}"
        return {
            "device": self.device.name,
            "model": f"{self.sizes.shape.family} {self.sizes.parameters:.1e}",
            "method": f"{self.recipe.method.name} {base} {self.dtype_bytes} bytes{copies}",
        }

    def correction(self, base: Base, way: Way = COPIES) -> Correction:
        """Factors from earlier runs on this machine."""
        if self.cache_dir is None:
            return Correction()
        return correction(calibration_file(self.cache_dir), self.key(base, way))


def make_request(
    recipe: Recipe, shape: ModelShape, documents: Documents, device: Accelerator, *, num_gpus: int = 1,
    cache_dir: Path | None = None, unfrozen: Sequence[str] | None = None, host_devices: int = HOST_DEVICES,
    host_memory: int | None = None,
) -> Request:  # fmt: skip
    """A request for a model of this shape. `unfrozen`: what a scan chose for Spectrum, if it has been made;
    `host_devices`: of each host; `host_memory`: bytes free on it now, where the run is to be there.

    Of a reward model only the last token of each answer has a head.
    """
    if recipe.objective.name == "reward":
        documents = replace(documents, supervised=min(1.0, 2.0 * documents.rows / documents.tokens))
    return Request(
        recipe=recipe, sizes=sizes_of(shape, recipe.method, unfrozen), documents=documents, device=device,
        num_gpus=num_gpus, cache_dir=cache_dir, host_devices=host_devices, host_memory=host_memory,
    )  # fmt: skip
