"""Contract: counts of parameters are exact, and bytes are parameters times the bytes stated."""

import pytest

from luthier.plan.devices import device_bytes
from luthier.plan.memory import plan_memory, trainable_parameters
from luthier.plan.shape import read_header, read_shape
from luthier.recipe.schema import DataSection, MethodSection, ModelSection, Recipe, Source
from luthier.runtime.errors import EnvironmentProblem, RecipeError
from tests.support.tiny import save_tiny, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def _recipe(method: MethodSection) -> Recipe:
    data = DataSection(train=[Source(path="x.jsonl")])
    return Recipe(model=ModelSection(name_or_path="x"), data=data, method=method, output_dir="runs/x")


def test_parameters_equal_those_of_the_loaded_model(folder):
    assert read_shape(folder).parameters == sum(parameter.numel() for parameter in tiny_model().parameters())


def test_a_tied_head_counts_once(tmp_path):
    shape = read_shape(save_tiny(tmp_path, tied=True))
    assert shape.tied
    assert shape.parameters == sum(parameter.numel() for parameter in tiny_model(tied=True).parameters())


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*\.(q|k)_proj"])
def test_adapter_parameters_equal_those_peft_makes(folder, targets):
    import peft

    method = MethodSection(name="lora", r=4, target_modules=targets)
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    expected = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable_parameters(read_shape(folder), method) == expected


def test_full_training_in_bf16_takes_16_bytes_a_parameter_without_activations(folder):
    shape = read_shape(folder)
    plan = plan_memory(shape, _recipe(MethodSection(name="full")), dtype_bytes=2, tokens=16)
    # 2 weights + 2 gradients + 8 Adam + 4 masters
    assert plan.weights + plan.gradients + plan.optimizer + plan.masters == 16 * shape.parameters
    assert plan.total == 16 * shape.parameters + plan.activations + plan.logits


def test_qlora_weights_are_about_an_eighth_of_fp32(folder):
    shape = read_shape(folder)
    plan = plan_memory(shape, _recipe(MethodSection(name="qlora", r=1)), dtype_bytes=4, tokens=16)
    linear = sum(tensor.parameters for tensor in shape.linear_tensors)
    other = shape.parameters - linear
    # 4.127 bits a weight (QLoRA, section 3): 0.5159 bytes
    assert plan.weights == pytest.approx(0.51587 * linear + 4 * other + 4 * plan.trainable, rel=1e-4)


def test_a_torn_safetensors_file_is_named(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\x00\x01")
    with pytest.raises(EnvironmentProblem, match=r"model\.safetensors"):
        read_header(file)
    with pytest.raises(EnvironmentProblem, match=r"config\.json"):
        read_shape(tmp_path)


def test_an_unknown_device_suggests_the_nearest():
    assert device_bytes("h200") == int(139.8 * 2**30)
    with pytest.raises(RecipeError, match='did you mean "H200"'):
        device_bytes("H20")
