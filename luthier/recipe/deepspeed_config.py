"""first form"""
from __future__ import annotations
from typing import Any
from luthier.recipe.schema import Recipe


def deepspeed_settings(recipe: Recipe, *, dtype: Any, processes: int) -> dict[str, Any]:
    train = recipe.train
    zero: dict[str, Any] = {"stage": {"zero2": 2, "zero3": 3}[recipe.distributed.strategy]}
    if zero["stage"] == 3:
        zero["stage3_param_persistence_threshold"] = 0
        zero["memory_efficient_linear"] = False
    return {
        "train_micro_batch_size_per_gpu": train.per_device_train_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "bf16": {"enabled": str(dtype) == "torch.bfloat16"},
    }
