"""The keys of a DeepSpeed configuration (0.19), by what becomes of them here.

DeepSpeed itself passes over a misspelt key at the top level, so every one is in a table or refused.
"""

from __future__ import annotations

__all__ = [
    "AGREED", "NO_EFFECT", "NO_EFFECT_IN_ZERO", "PASSED", "PASSED_IN_ZERO", "SHORT_IN_ZERO", "STAGES", "UNTRIED",
    "UNTRIED_IN_ZERO", "ZERO",
]  # fmt: skip

STAGES = {1: "zero1", 2: "zero2", 3: "zero3"}
"""`distributed.strategy` of each stage of ZeRO."""
ZERO = frozenset(STAGES.values())
"""The strategies that are DeepSpeed's."""

SHORT_IN_ZERO = (
    "max_live_parameters", "max_reuse_distance", "model_persistence_threshold", "module_granularity_threshold",
    "param_persistence_threshold", "prefetch_bucket_size", "use_all_reduce_for_fetch_params",
)  # fmt: skip
"""DeepSpeed takes these with `stage3_` before them and without: Axolotl's files are written without."""

AGREED = {
    "train_micro_batch_size_per_gpu": "train.per_device_train_batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "gradient_clipping": "train.max_grad_norm",
    "bf16.enabled": "model.dtype",
    "zero_optimization.stage": "distributed.strategy",
    "zero_optimization.offload_optimizer.device": "distributed.offload",
    "zero_optimization.offload_param.device": "distributed.offload",
    "optimizer.type": "train.optim",
    "optimizer.params.lr": "train.learning_rate",
    "optimizer.params.betas.0": "train.adam_beta1",
    "optimizer.params.betas.1": "train.adam_beta2",
    "optimizer.params.eps": "train.adam_epsilon",
    "optimizer.params.weight_decay": "train.weight_decay",
    "scheduler.type": "train.lr_scheduler_type",
    "scheduler.params.warmup_max_lr": "train.learning_rate",
    "scheduler.params.warmup_num_steps": "train.warmup_steps",
}
"""Values that the recipe has too: both must say the same, or one of them `auto` or nothing."""

PASSED = frozenset(
    ["aio", "communication_data_type", "data_types", "gradient_predivide_factor", "prescale_gradients",
     "zero_optimization"]
)  # fmt: skip
"""Go to DeepSpeed as they are."""

PASSED_IN_ZERO = frozenset(
    [
        "allgather_bucket_size", "allgather_partitions", "allgather_sequential", "contiguous_gradients",
        "enable_sanity_checks", "log_trace_cache_warnings", "offload_optimizer", "offload_param", "overlap_comm",
        "override_module_apply", "parameter_alignment", "reduce_bucket_size", "reduce_scatter",
        "round_robin_gradients", "stage", "stage3_allgather_sequential", "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_model_persistence_threshold", "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size",
        "stage3_use_all_reduce_for_fetch_params", "sub_group_size", "use_multi_rank_bucket_allreduce",
    ]
)  # fmt: skip

_MONITOR = "`train.report_to` says where metrics go"
_PRINTS = "Luthier measures and prints itself"
_FILES = "checkpoints and results are plain safetensors, made whole"

NO_EFFECT = {
    "activation_checkpointing": "`train.gradient_checkpointing` decides",
    "checkpoint": _FILES,
    "comet": _MONITOR,
    "csv_monitor": _MONITOR,
    "dataloader_drop_last": "the last, uneven part of a step loses nothing",
    "dump_state": _PRINTS,
    "flops_profiler": _PRINTS,
    "load_universal_checkpoint": _FILES,
    "memory_breakdown": _PRINTS,
    "nebula": _FILES,
    "steps_per_print": _PRINTS,
    "tensorboard": _MONITOR,
    "use_node_local_storage": _FILES,
    "wall_clock_breakdown": _PRINTS,
    "wandb": _MONITOR,
    "zero_allow_untested_optimizer": "the optimizer is torch's",
    "zero_force_ds_cpu_optimizer": "the optimizer is torch's",
}
"""Taken without a complaint, and named once."""

NO_EFFECT_IN_ZERO = {
    "elastic_checkpoint": _FILES,
    "gather_16bit_weights_on_model_save": _FILES,
    "ignore_unused_parameters": "every trained weight has a gradient",
    "leaf_module": "decoder layers are gathered as one",
    "load_from_fp32_weights": _FILES,
    "memory_efficient_linear": "the layers have products of their own",
    "pipeline_loading_checkpoint": _FILES,
    "stage3_gather_16bit_weights_on_model_save": _FILES,
    "stage3_gather_fp16_weights_on_model_save": _FILES,
    "stage3_module_granularity_threshold": "decoder layers are gathered as one",
}

UNTRIED = {
    "amp": "Apex is not used", "autotuning": "the plan chooses shapes", "compile": "not tried",
    "compression_training": "not tried", "coalesce_grad_reduction": "not tried", "comms_logger": "not tried",
    "curriculum_learning": "the order of rows is the recipe's", "data_efficiency": "the order of rows is the recipe's",
    "eigenvalue": "not tried", "elasticity": "a step has the sequences of the recipe", "expert_parallel": "not tried",
    "hybrid_engine": "not tried", "managed_gradient_accumulation": "Luthier says which pass is the last of a step",
    "pipeline": "not tried", "progressive_layer_drop": "layers are not dropped",
    "quantize_training": "not tried", "sequence_parallel_size": "`distributed.sequence_parallel_size` is the key",
    "sparse_attention": "attention is the engine's", "sparse_gradients": "gradients are dense",
    "tensor_parallel": "not tried", "torch_autocast": "weights live in the type they compute in",
    "weight_quantization": "not tried",
}  # fmt: skip
"""Would change what is computed: refused where they are on."""

UNTRIED_IN_ZERO = {
    "cpu_offload": "its successor is `offload_optimizer: {device: cpu}`",
    "cpu_offload_param": "its successor is `offload_param: {device: cpu}`",
    "cpu_offload_params": "its successor is `offload_param: {device: cpu}`",
    "cpu_offload_use_pin_memory": "its successor is `offload_optimizer: {pin_memory: true}`",
    "compute_grad_norm": "the norm is clipped and written down", "legacy_stage1": "not tried",
    "save_muon_momentum_buffer_in_memory": "the optimizer is torch's",
    "zenflow": "updates would be late by a step", "zero_hpz_partition_size": "not tried",
    "zero_quantized_gradients": "gradients would be rounded",
    "zero_quantized_nontrainable_weights": "weights would be rounded",
    "zero_quantized_weights": "weights would be rounded",
}  # fmt: skip
