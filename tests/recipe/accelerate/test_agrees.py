"""Contract: our keys are those of the installed accelerate, and what it exports for a file means the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.recipe.accelerate.environment import exported_source
from luthier.recipe.accelerate.source import SECTIONS, read_config
from luthier.recipe.accelerate.translate import read_source
from luthier.recipe.accelerate.without_effect import reason_without_effect
from luthier.runtime.env import launcher_variables
from tests.recipe.accelerate.support import FSDP1, FSDP2, FSDP_OLD, HYBRID, ZERO, config
from tests.recipe.support import load

pytestmark = pytest.mark.usefixtures("work")

READ = {
    "compute_environment", "distributed_type", "mixed_precision", "num_processes", "num_machines", "machine_rank",
    "main_process_ip", "main_process_port", "gpu_ids", "use_cpu",
    *(f"fsdp_{name}" for name in (
        "version", "sharding_strategy", "reshard_after_forward", "offload_params", "activation_checkpointing",
    )),
    "zero_stage", "offload_optimizer_device", "offload_param_device", "gradient_accumulation_steps",
    "gradient_clipping", "deepspeed_config_file",
    *(f"parallelism_config_{name}_size" for name in ("dp_replicate", "dp_shard", "tp", "cp", "sp")),
}  # fmt: skip


def test_every_key_of_accelerates_file_is_read_or_has_a_reason():
    from accelerate.commands.config.config_args import ClusterConfig

    keys = {key for key in ClusterConfig.__dataclass_fields__ if key not in SECTIONS}
    assert len(keys) > 20
    assert {key for key in keys if key not in READ and reason_without_effect((key,)) is None} == set()


def test_every_option_of_accelerate_launch_on_shards_is_read_or_has_a_reason():
    from accelerate.commands.launch import launch_command_parser

    names = {action.dest for action in launch_command_parser()._actions}
    found = 0
    for name in names:
        section = next((key for key, prefix in SECTIONS.items() if prefix and name.startswith(prefix)), None)
        if name.startswith(("zero", "offload_", "gradient_", "deepspeed_")):
            section = "deepspeed_config"
        if section is None:
            continue
        found += 1
        assert name in READ or reason_without_effect((section, name)) is not None, name
    assert found > 60


FILES = {
    "fsdp2": config(),
    "fsdp2 kept whole": config(rest=FSDP2.replace("forward: true", "forward: false"), precision="bf16"),
    "fsdp1": config(rest=FSDP1),
    "fsdp1 zero2": config(rest=FSDP1.replace("FULL_SHARD", "SHARD_GRAD_OP")),
    "fsdp1 new key": config(
        rest=FSDP1.replace("fsdp_sharding_strategy: FULL_SHARD", "fsdp_reshard_after_forward: SHARD_GRAD_OP")
    ),
    "fsdp1 copies": config(rest=FSDP1.replace("FULL_SHARD", "NO_SHARD")),
    "fsdp1 hybrid": config(rest=FSDP1.replace("FULL_SHARD", "HYBRID_SHARD_ZERO2")),
    "hybrid": config(rest=FSDP2 + HYBRID, processes=4),
    "old": config(rest=FSDP_OLD.replace("dynamo_backend: 'NO'\n", "").replace("strategy: 1", "strategy: 2")),
    "recompute": config(rest=FSDP2.replace("checkpointing: false", "checkpointing: true")),
    "sequence": config(rest=FSDP2 + "parallelism_config:\n  parallelism_config_sp_size: 2\n"),
    "zero3": config("DEEPSPEED", ZERO),
    "zero2 offload": config(
        "DEEPSPEED", ZERO.replace("stage: 3", "stage: 2").replace("zer_device: none", "zer_device: cpu")
    ),
    "copies": config("MULTI_GPU", "", precision="bf16"),
}  # fmt: skip


def exported(monkeypatch) -> dict[str, str]:
    """What accelerate itself exports for `accelerate.yaml`."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    words = ["--config_file", "accelerate.yaml", "--main_process_port", "0", "-m", "luthier"]
    args = launch_command_parser().parse_args(words)
    args, _, _ = _validate_launch_command(args)
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""
        environment = prepare_deepspeed_cmd_env(args)[1]
    else:
        environment = prepare_multi_gpu_env(args)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return launcher_variables()


@pytest.mark.parametrize("name", FILES)
def test_the_environment_says_what_the_file_says(name, monkeypatch):
    Path("accelerate.yaml").write_text(FILES[name])
    source, _ = read_config(Path("accelerate.yaml"))
    launched = exported_source(exported(monkeypatch), processes=2)
    assert source is not None and launched is not None
    recipe = load("")
    of_file, _ = read_source(source, recipe)
    of_launch, _ = read_source(launched, recipe, machines=1)
    assert of_launch.problems == of_file.problems == []
    values = {one.key: one.value for one in of_file.taken}
    # True is what accelerate exports unasked.
    assert {one.key: one.value for one in of_launch.taken} == {
        key: value for key, value in values.items() if (key, value) != ("distributed.reshard_after_forward", True)
    }
    for one in of_launch.taken:
        variable = one.reason.removeprefix("`accelerate launch`: ").partition("=")[0]
        assert variable in launcher_variables(), "the message names a variable that is there"


def test_without_accelerate_launch_nothing_is_read(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert exported_source(launcher_variables(), processes=2) is None
