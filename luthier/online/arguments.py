"""The recipe as arguments of TRL's trainer; each key that does not mean the same there is told with a line.

Passed on under the same name and meaning: learning_rate, lr_scheduler_type, lr_scheduler_kwargs, adam_beta1,
adam_beta2, adam_epsilon, weight_decay, max_grad_norm, per_device_train_batch_size, gradient_accumulation_steps,
logging_steps, eval_steps, save_steps, save_total_limit, seed, report_to, optim_args, and the keys of
`objective.grpo`. Refused in `recipe/online_rules.py`: what TRL's trainer has no counterpart for. The rest is below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from luthier.online.held_out import Deal
from luthier.online.rewards.base import Reward
from luthier.recipe.online import online_steps
from luthier.recipe.schedules import require_room
from luthier.recipe.schema import Recipe, TrainSection
from luthier.runtime.device import Device
from luthier.runtime.errors import EnvironmentProblem, RecipeError

__all__ = ["Schedule", "arguments", "make_schedule", "mapped_lines", "require_packages"]

_SAME = (
    "lr_scheduler_type", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm",
    "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps", "seed", "optim",
)  # fmt: skip
_SAMPLING = (
    "num_generations", "max_completion_length", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "beta",
    "epsilon", "epsilon_high", "num_iterations", "loss_type", "importance_sampling_level", "scale_rewards",
    "mask_truncated_completions", "use_vllm", "vllm_mode", "vllm_gpu_memory_utilization", "vllm_server_base_url",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Steps of a run, and the prompts they take."""

    steps: int
    prompts: int
    """In the data."""
    prompts_per_batch: int
    """Whose completions are sampled together, and used for `num_iterations` steps."""
    num_iterations: int
    processes: int = 1
    """Each samples its part of a batch."""

    @property
    def batches(self) -> int:
        """Times that completions are sampled."""
        return math.ceil(self.steps / self.num_iterations)

    def epochs_after(self, step: int) -> float:
        """Passes over the prompts after so many steps."""
        return math.ceil(step / self.num_iterations) * self.prompts_per_batch / self.prompts


def make_schedule(recipe: Recipe, *, prompts: int, processes: int = 1) -> Schedule:
    """Steps and prompts of a resolved recipe; batch and accumulation are of each process, as TRL has them."""
    train, grpo = recipe.train, recipe.objective.grpo
    batch, accumulate = train.per_device_train_batch_size, train.gradient_accumulation_steps
    if not isinstance(batch, int) or not isinstance(accumulate, int):
        raise RecipeError(code="T470", message="the recipe was not resolved: the batch shape is still `auto`")
    per_batch = batch * accumulate * processes // grpo.num_generations
    steps = online_steps(
        prompts, per_batch, train.num_train_epochs, train.max_steps, num_iterations=grpo.num_iterations
    )
    return Schedule(
        steps=steps, prompts=prompts, prompts_per_batch=per_batch, num_iterations=grpo.num_iterations,
        processes=processes,
    )  # fmt: skip


def arguments(
    recipe: Recipe, *, rewards: list[Reward], schedule: Schedule, folder: Path, device: Device, held_out: Deal
) -> dict[str, Any]:
    """Keyword arguments of `GRPOConfig`.

    Args:
        recipe: resolved.
        rewards: in the order in which the trainer is given them.
        schedule: of the run.
        folder: of the checkpoints.
        device: of the model.
        held_out: the validation prompts.

    Raises:
        RecipeError: `warmup_stable_decay` is longer than the run.
    """
    train, grpo = recipe.train, recipe.objective.grpo
    warmup = _warmup(train, schedule.steps)
    if train.lr_scheduler_type == "warmup_stable_decay":
        require_room(train.lr_scheduler_kwargs, warmup=warmup, total_steps=schedule.steps)
    evaluates = bool(held_out.names) and isinstance(train.eval_steps, int)
    value: dict[str, Any] = {name: getattr(train, name) for name in _SAME}
    value |= {name: getattr(grpo, name) for name in _SAMPLING}
    value |= {
        "output_dir": str(folder), "run_name": recipe.name or folder.parent.name, "max_steps": schedule.steps,
        "learning_rate": float(train.learning_rate),
        "lr_scheduler_kwargs": dict(train.lr_scheduler_kwargs),
        "optim_args": ",".join(f"{key}={item}" for key, item in train.optim_args.items()) or None,
        "warmup_steps": warmup,
        "gradient_checkpointing": train.gradient_checkpointing is True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "save_strategy": "steps" if isinstance(train.save_steps, int) else "no",
        "eval_strategy": "steps" if evaluates else "no",
        "per_device_eval_batch_size": held_out.batch, "num_generations_eval": 1,
        "reward_weights": [reward.weight for reward in rewards],
        # The order of the prompts is ours (`order.py`), and so are progress, metrics and samples.
        "shuffle_dataset": False, "disable_tqdm": True, "log_completions": False, "logging_nan_inf_filter": False,
        # Checkpoints are removed here too, and only when the new one is whole (`checkpoint.py`).
        "save_total_limit": None,
        # As in `train/processes.py`: every trained weight has a gradient, and buffers are equal.
        "ddp_find_unused_parameters": False, "ddp_broadcast_buffers": False,
        # A completion must come from the model whose probabilities are trained.
        "disable_dropout": True,
        "bf16": recipe.model.dtype == "bfloat16", "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": device.type == "cuda", "report_to": list(train.report_to) or "none",
    }  # fmt: skip
    for key in ("save_steps", "eval_steps"):
        if isinstance(getattr(train, key), int):
            value[key] = getattr(train, key)
    return value


def mapped_lines(recipe: Recipe, schedule: Schedule) -> list[str]:
    """What is not passed on under its own name and meaning, one line each."""
    train, grpo = recipe.train, recipe.objective.grpo
    count = schedule.prompts_per_batch * grpo.num_generations
    lines = [
        f"{schedule.steps} steps of {count} completions: {schedule.prompts_per_batch} prompts x "
        f"{grpo.num_generations} generations ({train.per_device_train_batch_size} x "
        f"{train.gradient_accumulation_steps} accumulated"
        f"{f' x {schedule.processes} processes' if schedule.processes > 1 else ''}), "
        f"{schedule.prompts} prompts an epoch",
        "trainer: TRL's GRPOTrainer on the model as transformers wrote it; Luthier's engine is not used",
        f"sampling: {'vLLM, ' + grpo.vllm_mode if grpo.use_vllm else 'transformers'}",
    ]
    if recipe.model.dtype == "bfloat16":
        trained = "adapters" if recipe.method.name in ("lora", "qlora") else "trained weights"
        lines.append(f"{trained} in float32 under bfloat16 autocast (updates of this size vanish in bfloat16 weights)")
    if train.optim == "adamw_8bit":
        lines.append("optim adamw_8bit: that of bitsandbytes; Luthier's own belongs to its loop")
    if grpo.beta:
        reference = "the base without the adapter" if recipe.method.name in ("lora", "qlora") else "a second copy"
        lines.append(f"KL from the start (beta {grpo.beta:g}): {reference}")
    return lines


def require_packages(recipe: Recipe) -> None:
    """What online RL needs beyond a usual installation.

    Raises:
        EnvironmentProblem: a package is missing, or TRL is of a version whose inner calls are not known.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("trl")
    except PackageNotFoundError:
        raise EnvironmentProblem(
            code="T493", message="objective grpo is run by TRL, which is not installed",
            hint="pip install 'luthier[online]'",
        ) from None  # fmt: skip
    if found.split(".")[:2] != ["1", "16"]:
        message = f"objective grpo was written for TRL 1.16, and {found} is installed"
        raise EnvironmentProblem(code="T493", message=message, hint="pip install 'luthier[online]'")
    if recipe.objective.grpo.use_vllm and find_spec("vllm") is None:
        message = "`objective.grpo.use_vllm` is true, and vLLM is not installed"
        raise EnvironmentProblem(code="T493", message=message, hint="pip install vllm, or use_vllm: false")
    if recipe.train.optim == "adamw_8bit" and find_spec("bitsandbytes") is None:
        message = "optim adamw_8bit is that of bitsandbytes in online RL, and it is not installed"
        raise EnvironmentProblem(code="T493", message=message, hint="pip install 'luthier[qlora]', or another optim")


def _warmup(train: TrainSection, steps: int) -> int:
    """`warmup_steps` if given, else the share `warmup_ratio` of the run, rounded up, as in `train/schedule.py`."""
    if train.warmup_steps is not None:
        return train.warmup_steps
    return math.ceil(train.warmup_ratio * steps - 1e-9)
