"""Keys of accelerate that change nothing here, each with the reason. None is passed over in silence."""

from __future__ import annotations

from typing import Any

from luthier.recipe.positions import KeyPath

__all__ = ["WITHOUT_EFFECT", "is_quiet", "reason_without_effect"]

_TPU = "for TPUs"
_LAUNCH = "`luthier launch` finds the processes itself (c10d on one machine, static on several)"
_LAYERS = "each decoder layer is a unit, whatever its class is called"
_GATHERS = "`fully_shard` gathers the next layer while one runs"
_DYNAMO = "layers run in Luthier's own passes, nothing is compiled by dynamo"
_MACHINES = "start `luthier launch` on each machine"

WITHOUT_EFFECT: dict[KeyPath, tuple[str, tuple[Any, ...]]] = {
    ("debug",): ("checks of accelerate's own operations", ()),
    ("rdzv_backend",): (_LAUNCH, ("static",)),
    ("same_network",): (_LAUNCH, (True,)),
    ("main_training_function",): ("for notebooks and TPUs", ("main",)),
    ("enable_cpu_affinity",): ("`luthier launch` binds no process to cores; `accelerate launch` does", ()),
    ("dynamo_backend",): (_DYNAMO, ()),
    ("downcast_bf16",): (_TPU, ()),
    ("tpu_name",): (_TPU, ()),
    ("tpu_zone",): (_TPU, ()),
    ("tpu_use_cluster",): (_TPU, ()),
    ("tpu_use_sudo",): (_TPU, ()),
    ("tpu_vm",): (_TPU, ()),
    ("tpu_env",): (_TPU, ()),
    ("command_file",): (_TPU, ()),
    ("commands",): (_TPU, ()),
    ("fsdp_config", "fsdp_auto_wrap_policy"): (_LAYERS, ("TRANSFORMER_BASED_WRAP",)),
    ("fsdp_config", "fsdp_transformer_layer_cls_to_wrap"): (_LAYERS, ()),
    ("fsdp_config", "fsdp_min_num_params"): (_LAYERS, (100_000_000, "100000000")),
    ("fsdp_config", "fsdp_backward_prefetch"): (_GATHERS, ("BACKWARD_PRE", "NO_PREFETCH")),
    ("fsdp_config", "fsdp_backward_prefetch_policy"): (_GATHERS, ("BACKWARD_PRE", "NO_PREFETCH")),
    ("fsdp_config", "fsdp_forward_prefetch"): (_GATHERS, ()),
    ("fsdp_config", "fsdp_state_dict_type"): (
        "checkpoints are shards, the result is whole, both in safetensors", ("SHARDED_STATE_DICT",),
    ),
    ("fsdp_config", "fsdp_use_orig_params"): ("`fully_shard` always keeps the parameters", (True, "true", "True")),
    ("fsdp_config", "fsdp_cpu_ram_efficient_loading"): (
        "how a model is loaded under shards is Luthier's own", (True, "true", "True"),
    ),
    ("fsdp_config", "fsdp_sync_module_states"): (
        "every process starts from the same files", (True, "true", "True"),
    ),
    ("fsdp_config", "fsdp_activation_checkpointing_offload"): (
        "what is kept of a recomputed layer stays on the device", (),
    ),
    ("fsdp_config", "fsdp_ignored_modules"): ("everything but adapters is sharded", ()),
    ("fsdp_config", "fsdp_mixed_precision_policy"): ("products in `model.dtype`, sums of gradients in fp32", ()),
    ("deepspeed_config", "zero3_init_flag"): ("how a model is loaded is Luthier's own", (True, "true")),
    ("deepspeed_config", "zero3_save_16bit_model"): (
        "the result is always whole, in the type of the base", (True, "true"),
    ),
    ("deepspeed_config", "offload_optimizer_nvme_path"): ("nothing goes to NVMe", ("none",)),
    ("deepspeed_config", "offload_param_nvme_path"): ("nothing goes to NVMe", ("none",)),
    ("deepspeed_config", "deepspeed_multinode_launcher"): (_MACHINES, ("standard",)),
    ("deepspeed_config", "deepspeed_hostfile"): (_MACHINES, ()),
    ("deepspeed_config", "deepspeed_exclusion_filter"): (_MACHINES, ()),
    ("deepspeed_config", "deepspeed_inclusion_filter"): (_MACHINES, ()),
    ("deepspeed_config", "deepspeed_moe_layer_cls_names"): ("experts are sharded as all other weights", ()),
    ("parallelism_config", "parallelism_config_cp_backend"): ("there is no context parallelism", ("torch", "None")),
    ("parallelism_config", "parallelism_config_cp_comm_strategy"): ("there is no context parallelism", ("None",)),
    ("parallelism_config", "parallelism_config_sp_backend"): (
        "the exchange of heads for positions is Luthier's own", ("deepspeed", "None"),
    ),
    ("parallelism_config", "parallelism_config_sp_seq_length"): ("`data.max_length` says it", ("None",)),
    ("parallelism_config", "parallelism_config_sp_seq_length_is_variable"): (
        "lengths may always differ", (True, "True", "None"),
    ),
    ("parallelism_config", "parallelism_config_sp_attn_implementation"): (
        "attention is Luthier's own", ("None",),
    ),
    ("parallelism_config", "parallelism_config_tp_seed"): ("there is no tensor parallelism", ()),
}  # fmt: skip
"""Key -> (reason, values that `accelerate config` or `accelerate launch` writes unasked, beside none, false and empty).

Sections of which no key has an effect are in `_SECTIONS`."""

_SECTIONS = {
    "megatron_lm_config": "for Megatron-LM",
    "dynamo_config": _DYNAMO,
    "fp8_config": "for `mixed_precision: fp8`",
    "mpirun_config": "`luthier launch` starts processes without MPI",
    "ipex_config": "no Intel extension is used",
}
_NOTHING = ("", "no", "none", "null", "false", "default")


def reason_without_effect(path: KeyPath) -> str | None:
    """Why a key has no effect; None if it has one, or is not known."""
    if path in WITHOUT_EFFECT:
        return WITHOUT_EFFECT[path][0]
    return _SECTIONS.get(str(path[0])) if len(path) == 2 else None


def is_quiet(path: KeyPath, value: Any) -> bool:
    """Whether a value is one that nobody chose."""
    if value is None or value is False or value in ({}, []):
        return True
    if isinstance(value, str) and value.strip().lower() in _NOTHING:
        return True
    return path in WITHOUT_EFFECT and value in WITHOUT_EFFECT[path][1]
