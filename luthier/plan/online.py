"""What can be said of online RL before it runs, and what cannot.

Known: how many prompts, completions and steps; the most tokens that are sampled; bytes of weights, gradients, optimizer
and reference, and of the key-value cache with all completions at their longest. Not known, and not guessed: how long
the model's answers will be, hence the time (sampling is most of it, and answers grow or shrink while the policy
learns); and what transformers' layers keep for the backward pass (the plan counts those of Luthier's engine). The run
tells both after its first step.

Units: bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from luthier.plan.devices import Accelerator
from luthier.plan.shape import ModelShape
from luthier.plan.sizes import Sizes, sizes_of
from luthier.plan.states import NF4_BYTES, optimizer_bytes
from luthier.plan.work import Documents
from luthier.recipe.online import Completions, choose_completions, online_steps, require_processes
from luthier.recipe.schema import Recipe

__all__ = ["UNKNOWN", "OnlinePlan", "plan_online"]

UNKNOWN = (
    "time: answers have the length the model chooses, and sampling them is most of a step; told after the first step",
    "activations of the update: transformers' layers keep more than the engine's, which are the ones the plan counts",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlinePlan:
    """Counts and bytes of a run of online RL."""

    prompts: int
    steps: int
    devices: int
    """Each holds a copy of the model and samples its part of a step; the bytes are of one."""
    prompts_per_step: int
    completions_per_step: int
    """Of all devices."""
    completions: int
    """Of the whole run."""
    sampled_tokens_at_most: int
    """Of the whole run, with all completions at their longest."""
    weights: int
    adapters: int
    gradients: int
    optimizer: int
    reference: int
    """A second copy of the model, for a KL penalty on weights that are trained themselves."""
    cache: int
    """Keys and values while a device samples its completions of a step, all at their longest."""
    device: str
    device_bytes: int
    how: str
    """Where the number and the lengths of the prompts come from."""

    @property
    def sampling_bytes(self) -> int:
        """While sampling: no gradients yet, the cache at its longest."""
        return self.weights + self.adapters + self.optimizer + self.reference + self.cache

    @property
    def update_bytes(self) -> int:
        """During the update, without activations: less than it will take."""
        return self.weights + self.adapters + self.optimizer + self.reference + self.gradients

    @property
    def fits(self) -> bool | None:
        """False: certainly not. None: it depends on the activations, which are not known."""
        return False if self.update_bytes > self.device_bytes else None

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "objective": "grpo", **asdict(self), "sampling_bytes": self.sampling_bytes,
            "update_bytes_at_least": self.update_bytes, "fits": self.fits, "seconds": None, "unknown": list(UNKNOWN),
        }  # fmt: skip


def plan_online(
    recipe: Recipe, shape: ModelShape, documents: Documents, device: Accelerator, *, num_gpus: int = 1
) -> OnlinePlan:
    """Count.

    Args:
        recipe: with `objective.name: grpo`.
        shape: of the base.
        documents: rows; their tokens are taken as those of the prompts (where the answers are in them, too many).
        device: whose memory is looked at.
        num_gpus: devices that share a step, each with a copy of the model.

    Raises:
        RecipeError: the step cannot be divided into whole groups, or the recipe takes one process.
    """
    require_processes(recipe, num_gpus)
    train, grpo = recipe.train, recipe.objective.grpo
    sizes = sizes_of(shape, recipe.method)
    mean = documents.tokens / documents.rows + grpo.max_completion_length
    split = choose_completions(
        train, num_generations=grpo.num_generations, prompts=documents.rows, mean_tokens=mean, device_type=device.type,
        processes=num_gpus,
    )  # fmt: skip
    steps = online_steps(
        documents.rows, split.prompts, train.num_train_epochs, train.max_steps, num_iterations=grpo.num_iterations
    )
    batches = -(-steps // grpo.num_iterations)
    return OnlinePlan(
        prompts=documents.rows, steps=steps, devices=num_gpus, prompts_per_step=split.prompts,
        completions_per_step=split.count, completions=batches * split.count,
        sampled_tokens_at_most=batches * split.count * grpo.max_completion_length,
        **_bytes(recipe, sizes, device, split, mean), device=device.name, device_bytes=device.memory_bytes,
        how=documents.how,
    )  # fmt: skip


def _bytes(recipe: Recipe, sizes: Sizes, device: Accelerator, split: Completions, mean: float) -> dict[str, int]:
    """Parts by formula.

    Weights that are trained themselves are held in float32 (`online/fit.py:weights_dtype`), and so are adapters; their
    gradients too. The cache holds 2 x layers x key-value heads x head size numbers a token, in the compute type.
    """
    shape, method = sizes.shape, recipe.method.name
    size = _number_bytes(recipe, device)
    whole = method not in ("lora", "qlora")
    packed = method == "qlora" or recipe.model.quantization == "nf4"
    weights = (4 if whole else size) * sizes.parameters
    if packed:
        weights = (sizes.parameters - sizes.linear) * size + round(sizes.linear * NF4_BYTES)
    window = mean if shape.window is None else min(mean, shape.window)
    tokens = (shape.layers - shape.windowed_layers) * mean + shape.windowed_layers * window
    return {
        "weights": weights,
        "adapters": 0 if whole else 4 * sizes.trainable,
        "gradients": 4 * sizes.trainable,
        "optimizer": optimizer_bytes(sizes, recipe.train.optim, recipe.train.optim_args),
        "reference": 4 * sizes.parameters if whole and recipe.objective.grpo.beta else 0,
        "cache": round(split.count // split.processes * tokens * 2 * shape.key_value_heads * shape.head_dim * size),
    }


def _number_bytes(recipe: Recipe, device: Accelerator) -> int:
    if recipe.model.dtype == "auto":
        return 2 if device.native_bf16 else 4
    return 4 if recipe.model.dtype == "float32" else 2
