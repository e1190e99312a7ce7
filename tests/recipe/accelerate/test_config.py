"""Contract: every key of accelerate's file is taken, agrees, or is named with what it does here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.recipe.accelerate.merge import config_of
from luthier.recipe.load import load_recipe, recipe_from_dict
from luthier.recipe.resolve import Facts, resolve, resolved_yaml
from luthier.runtime.errors import RecipeError
from tests.recipe.accelerate.support import FSDP1, FSDP2, FSDP_OLD, HYBRID, ZERO, config
from tests.recipe.support import BASE, load, problems_of
from tests.support.often import often

pytestmark = pytest.mark.usefixtures("work")
CONFIG = "distributed: {accelerate_config: accelerate.yaml}\n"


def write(text: str) -> None:
    Path("accelerate.yaml").write_text(text)


def taken(text: str, recipe: str = "") -> dict:
    write(text)
    found = config_of(load(CONFIG + recipe))
    assert isinstance(found, tuple)
    return {one.key: one.value for one in found[0].taken}


def problems(text: str, recipe: str = CONFIG) -> dict[str, list[str]]:
    write(text)
    found: dict[str, list[str]] = {}
    for problem in problems_of(recipe):
        found.setdefault(problem.code, []).append(problem.message)
        if problem.code.startswith("L18"):
            assert problem.file == "accelerate.yaml"
    return found


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (config(), {"strategy": "fsdp2", "reshard_after_forward": True}),
        (config(rest=FSDP2.replace("forward: true", "forward: false")),
         {"strategy": "fsdp2", "reshard_after_forward": False}),
        (config(rest=FSDP2.replace("fsdp_version", "version").replace("fsdp_reshard", "reshard")),
         {"strategy": "fsdp2", "reshard_after_forward": True}),
        (config(rest=FSDP1), {"strategy": "fsdp2", "reshard_after_forward": True}),
        (config(rest=FSDP1.replace("FULL_SHARD", "SHARD_GRAD_OP")),
         {"strategy": "fsdp2", "reshard_after_forward": False}),
        (config(rest=FSDP1.replace("fsdp_sharding_strategy", "fsdp_version: 1\n  fsdp_reshard_after_forward")),
         {"strategy": "fsdp2", "reshard_after_forward": True}),
        (config(rest=FSDP1.replace("FULL_SHARD", "NO_SHARD")), {"strategy": "ddp"}),
        (config(rest=FSDP_OLD), {"strategy": "fsdp2", "reshard_after_forward": True}),
        (config(rest=FSDP_OLD.replace("strategy: 1", "strategy: 2")),
         {"strategy": "fsdp2", "reshard_after_forward": False}),
        (config(rest=FSDP_OLD.replace("strategy: 1", "strategy: 3")), {"strategy": "ddp"}),
        (config("MULTI_GPU", ""), {}),
        ("distributed_type: 'NO'\n", {}),
        ("distributed_type: MULTI_GPU\nfp16: false\nuse_cpu: no\n", {}),
    ],
)  # fmt: skip
def test_files_of_all_versions_say_how_the_model_is_divided(text, values):
    assert taken(text) == {f"distributed.{key}": value for key, value in values.items()}
    recipe = load(CONFIG)
    for key, value in values.items():
        assert getattr(recipe.distributed, key) == value
    if not values:
        assert recipe.distributed.strategy == "auto"


def test_recompute_precision_and_clipping_are_keys_of_other_sections():
    found = taken(config(rest=FSDP2.replace("checkpointing: false", "checkpointing: true"), precision="bf16"))
    assert (found["train.gradient_checkpointing"], found["model.dtype"]) == (True, "bfloat16")
    recipe = load(CONFIG)
    assert (recipe.train.gradient_checkpointing, recipe.model.dtype) == (True, "bfloat16")
    assert load(CONFIG + "train: {gradient_checkpointing_layers: 1}\n").train.gradient_checkpointing is True


def settled(text: str) -> dict:
    """What a file says where the strategy may not be built: problems of other rules do not matter here."""
    from luthier.recipe.accelerate.source import read_config
    from luthier.recipe.accelerate.translate import read_source

    write(text)
    source, wrong = read_config(Path("accelerate.yaml"))
    assert source is not None and not wrong
    reading, _ = read_source(source, load(""))
    assert not reading.problems, reading.problems
    return {one.key: one.value for one in reading.taken}


def test_deepspeed_by_inline_keys_and_by_file():
    assert settled(config("DEEPSPEED", ZERO)) == {"distributed.strategy": "zero3", "train.max_grad_norm": 0.5}
    assert settled("distributed_type: DEEPSPEED\n") == {"distributed.strategy": "zero2"}
    assert settled(config("DEEPSPEED", ZERO.replace("stage: 3", "stage: 0")))["distributed.strategy"] == "ddp"
    assert settled(config("DEEPSPEED", ZERO.replace("stage: 3", "stage: 1")))["distributed.strategy"] == "zero1"
    both = ZERO.replace("device: none", "device: cpu")
    assert settled(config("DEEPSPEED", both))["distributed.offload"] == "all"
    one = ZERO.replace("optimizer_device: none", "optimizer_device: cpu").replace("stage: 3", "stage: 2")
    assert settled(config("DEEPSPEED", one))["distributed.offload"] == "optimizer"
    steps = settled(config("DEEPSPEED", ZERO.replace("steps: 1", "steps: 4")))
    assert steps["train.gradient_accumulation_steps"] == 4
    Path("zero.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    file = "deepspeed_config:\n  deepspeed_config_file: zero.json\n  zero3_init_flag: false\n"
    assert settled(config("DEEPSPEED", file)) == {
        "distributed.strategy": "zero2", "distributed.deepspeed_config": "zero.json",
    }  # fmt: skip


def test_a_file_of_deepspeed_that_accelerates_file_names_is_read_too():
    value = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}, "gradient_clipping": 0.25}
    Path("zero.json").write_text(json.dumps(value))
    write(config("DEEPSPEED", "deepspeed_config:\n  deepspeed_config_file: zero.json\n  zero3_init_flag: true\n"))
    recipe = load(CONFIG + "method: {name: full}\n")
    assert (recipe.distributed.strategy, recipe.distributed.deepspeed_config) == ("zero3", "zero.json")
    assert (recipe.distributed.offload, recipe.train.max_grad_norm) == ("optimizer", 0.25)


def test_offload_and_sequence_parallel_sizes():
    found = settled(config(rest=FSDP2.replace("params: false", "params: true")))
    assert found["distributed.offload"] == "all"
    sizes = "parallelism_config:\n  parallelism_config_sp_size: 2\n  parallelism_config_tp_size: 1\n"
    assert settled(config(rest=FSDP2 + sizes))["distributed.sequence_parallel_size"] == 2


def test_copies_in_shards():
    found = settled(config(rest=FSDP2 + HYBRID, processes=4))
    assert (found["distributed.strategy"], found["distributed.dp_replicate_size"]) == ("fsdp2", 2)


@pytest.mark.parametrize(
    ("text", "reshard"),
    [
        (config(rest=FSDP1.replace("FULL_SHARD", "HYBRID_SHARD")), True),
        (config(rest=FSDP_OLD.replace("strategy: 1", "strategy: 4")), True),
        (config(rest=FSDP1.replace("FULL_SHARD", "HYBRID_SHARD_ZERO2")), False),
    ],
)
def test_hybrid_shard_is_a_copy_on_each_machine(text, reshard):
    found = settled(text.replace("machines: 1", "machines: 3").replace("processes: 2", "processes: 6"))
    assert found["distributed.strategy"] == "fsdp2" and found["distributed.dp_replicate_size"] == 3
    assert found["distributed.reshard_after_forward"] is reshard
    assert "distributed.dp_replicate_size" not in settled(text), "on one machine it is FULL_SHARD, or SHARD_GRAD_OP"
    beside = text.replace("processes: 2", "processes: 4").replace("machines: 1", "machines: 4") + HYBRID
    assert settled(beside)["distributed.dp_replicate_size"] == 2, "sizes go before the machines"
    assert "`num_machines` is not there" in problems(text.replace("num_machines: 1\n", ""))["L186"][0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (config("MULTI_GPU", HYBRID, processes=4), "needs distributed_type: FSDP"),
        (config(rest=FSDP2 + HYBRID.replace("shard_size: 2", "shard_size: 1")), "leaves no shards"),
    ],
)
def test_copies_that_accelerate_refuses_are_refused(text, words):
    assert any(words in message for message in problems(text)["L186"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (config(rest=FSDP2 + "parallelism_config: {parallelism_config_tp_size: 2}\n"), "tensor parallelism"),
        (config(rest=FSDP2 + "parallelism_config: {parallelism_config_cp_size: 2}\n"), "ring attention"),
        (config("DEEPSPEED", ZERO + HYBRID, processes=4), "DeepSpeed divides over all processes"),
        (config("MEGATRON_LM", "megatron_lm_config: {megatron_lm_tp_degree: 2}\n"), "MEGATRON_LM"),
        (config("XLA", ""), "XLA"),
        (config("MULTI_GPU", "", precision="fp8"), "fp8"),
        (config("MULTI_GPU", "", precision="fp16"), "float16"),
        (config("MULTI_GPU", "").replace("LOCAL_MACHINE", "AMAZON_SAGEMAKER"), "AMAZON_SAGEMAKER"),
        (config("DEEPSPEED", ZERO.replace("optimizer_device: none", "optimizer_device: nvme")), "NVMe"),
    ],
)
def test_what_is_not_built_is_refused_by_name(text, words):
    assert any(words in message for message in problems(text)["L183"])


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("[1]\n", "L180", "no mapping"),
        ("num_processes: 2\n", "L180", "distributed_type"),
        (config(rest="fsdp_config: 7\n"), "L182", "mapping"),
        (config(rest=FSDP2.replace("version: 2", "version: 3")), "L182", "1 or 2"),
        (config(rest=FSDP2.replace("forward: true", "forward: maybe")), "L182", "true or false"),
        (config(processes="two"), "L182", "whole number"),
        (config(rest=FSDP2 + "  fsdp_offload_parms: true\n"), "L181", "fsdp_config.fsdp_offload_parms"),
        (config() + "num_procceses: 2\n", "L181", "num_procceses"),
        (config(rest=FSDP1 + "  fsdp_reshard_after_forward: SHARD_GRAD_OP\n"), "L186", "FULL_SHARD"),
        (config(rest=FSDP1 + "  fsdp_reshard_after_forward: true\n"), "L186", "FSDP 2"),
        (config(rest=FSDP2 + "  version: 2\n"), "L186", "twice"),
        (config(rest=FSDP2 + "parallelism_config: {dp_shard_size: 4}\n"), "L186", "num_processes is 2"),
        (config(processes=3).replace("num_machines: 1", "num_machines: 2"), "L186", "divided by num_machines"),
        (config("DEEPSPEED", ZERO.replace("stage: 3", "stage: 2").replace("param_device: none", "param_device: cpu")),
         "L186", "zero_stage: 3"),
    ],
)  # fmt: skip
def test_files_that_say_nothing_or_too_much(text, code, words):
    assert any(words in message for message in problems(text)[code])


def test_a_contradiction_names_both_and_the_line():
    write(config())
    (problem,) = problems_of("distributed: {accelerate_config: accelerate.yaml, strategy: ddp}\n")
    assert (problem.code, problem.file, problem.line) == ("L184", "accelerate.yaml", 24)
    assert "`distributed.strategy` is ddp in the recipe, and fsdp2 by" in problem.message
    assert "fsdp_config.fsdp_version: 2" in problem.message


@pytest.mark.parametrize(
    ("recipe", "rest", "key"),
    [
        ("train: {gradient_checkpointing: false}", FSDP2.replace("checkpointing: false", "checkpointing: true"),
         "train.gradient_checkpointing"),
        ("train: {max_grad_norm: 1.0}", ZERO, "train.max_grad_norm"),
    ],
)  # fmt: skip
def test_contradictions_of_other_sections(recipe, rest, key):
    kind = "DEEPSPEED" if rest is ZERO else "FSDP"
    assert any(f"`{key}`" in message for message in problems(config(kind, rest), CONFIG + recipe + "\n")["L184"])


def test_one_accumulated_pass_is_written_unasked_and_contradicts_nothing():
    write(config("DEEPSPEED", ZERO))
    assert load(CONFIG + "train: {gradient_accumulation_steps: 4}\n").train.gradient_accumulation_steps == 4
    four = problems(config("DEEPSPEED", ZERO.replace("steps: 1", "steps: 2")),
                    CONFIG + "train: {gradient_accumulation_steps: 4}\n")  # fmt: skip
    assert "`train.gradient_accumulation_steps` is 4 in the recipe, and 2 by" in four["L184"][0]


def test_a_batch_in_tokens_keeps_its_own_split():
    found = taken(config(rest=FSDP2), "train: {tokens_per_step: 1000}\n")
    assert "train.gradient_accumulation_steps" not in found


def test_the_recipe_may_name_shards_beside_multi_gpu():
    write(config("MULTI_GPU", ""))
    recipe = load("distributed: {accelerate_config: accelerate.yaml, strategy: fsdp2}\n")
    assert recipe.distributed.strategy == "fsdp2"


def test_all_problems_at_once_and_those_of_the_recipe_first():
    text = config(rest=FSDP2.replace("version: 2", "version: 9") + "  fsdp_new: 1\n", precision="fp8")
    write(text)
    found = problems_of("distributed: {accelerate_config: accelerate.yaml}\nobjective: {beta: 0.1}\n")
    assert [problem.code for problem in found] == ["C111", "L183", "L182", "L181"]


def test_rules_of_the_recipe_point_at_the_file_that_asked():
    write(config())
    (problem,) = problems_of(CONFIG + "train: {optim: adafactor}\nmethod: {name: full}\n")
    assert (problem.code, problem.file) == ("L112", "accelerate.yaml")


def test_a_file_that_is_not_there_is_told_at_the_key():
    (problem,) = problems_of(CONFIG)
    assert (problem.code, problem.line) == ("C130", 4)


def test_the_resolved_recipe_needs_no_file(monkeypatch):
    from luthier.pipeline.configured import settle

    write(config(precision="bf16"))
    recipe, configured = settle(load(CONFIG), {})
    facts = Facts(
        device_type="cpu", native_bf16=False, device_memory_bytes=1 << 34, world_size=2, rows=8, sequences=8,
        tokens=800, model_parameters=1000, taken=configured.taken,
    )  # fmt: skip
    text = resolved_yaml(resolve(recipe, facts))
    assert "strategy: fsdp2  # accelerate.yaml: fsdp_config.fsdp_version: 2" in text
    assert "dtype: bfloat16  # accelerate.yaml: mixed_precision: bf16" in text
    Path("accelerate.yaml").unlink()
    Path("resolved.yaml").write_text(text)
    again = load_recipe(Path("resolved.yaml")).recipe
    assert (again.distributed.strategy, again.distributed.accelerate_config) == ("fsdp2", None)
    recorded = configured.to_json()
    assert {"distributed.strategy", "distributed.reshard_after_forward", "model.dtype"} == {
        one["key"] for one in recorded["taken"]
    }
    assert any("num_processes: 2" in line for line in recorded["without_effect"])


def test_loading_twice_changes_nothing():
    write(config(precision="bf16"))
    once = load(CONFIG)
    assert recipe_from_dict(once.model_dump(mode="json", exclude_unset=True), origin="again") == once


@settings(max_examples=often(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_key_of_any_file_is_passed_over(data):
    """Every line of a file is accounted for: taken, named, or a problem at its line."""
    from luthier.recipe.accelerate.source import SECTIONS, read_config
    from luthier.recipe.accelerate.translate import read_source
    from luthier.recipe.accelerate.without_effect import WITHOUT_EFFECT

    kind = data.draw(st.sampled_from(["FSDP", "DEEPSPEED", "MULTI_GPU", "MULTI_CPU", "NO"]))
    own = [
        ("fsdp_config", "fsdp_version"), ("fsdp_config", "fsdp_offload_params"), ("mixed_precision",),
        ("num_processes",),
        ("fsdp_config", "fsdp_reshard_after_forward"), ("deepspeed_config", "zero_stage"), ("gpu_ids",), ("use_cpu",),
        ("deepspeed_config", "gradient_accumulation_steps"), ("parallelism_config", "parallelism_config_sp_size"),
        ("fsdp_config", "invented"), ("dynamo_config", "dynamo_backend"), ("invented",),
    ]  # fmt: skip
    keys = data.draw(st.lists(st.sampled_from([*WITHOUT_EFFECT, *own]), unique=True, max_size=12))
    value: dict = {"distributed_type": kind}
    for path in keys:
        item = data.draw(st.sampled_from([True, False, 1, 2, "BACKWARD_PRE", "no"]))
        if len(path) == 1:
            value[path[0]] = item
        else:
            value.setdefault(path[0], {})[path[1]] = item
    write(json.dumps(value))
    source, wrong = read_config(Path("accelerate.yaml"))
    assert source is not None and not wrong
    reading, _ = read_source(source, load(""))
    told = " ".join([
        *(one.reason for one in reading.taken), *reading.notes, *reading.quiet,
        *(problem.message for problem in reading.problems),
    ])  # fmt: skip
    for path in keys:
        name = path[-1] if path != ("fsdp_config", "invented") else "invented"
        assert name in told, (path, value, told)
    assert set(SECTIONS) >= {path[0] for path in keys if len(path) == 2}


def test_an_override_on_the_command_line_names_the_file(tmp_path):
    write(config())
    Path("recipe.yaml").write_text(BASE)
    recipe = load_recipe(Path("recipe.yaml"), ["distributed.accelerate_config=accelerate.yaml"]).recipe
    assert recipe.distributed.strategy == "fsdp2"
    with pytest.raises(RecipeError, match="C130"):
        load_recipe(Path("recipe.yaml"), ["distributed.accelerate_config=other.yaml"])
