"""Contract: the plan knows which micro-batches the engine replays as CUDA graphs, and what their memory is."""

from dataclasses import replace

import pytest

from luthier.fast import graph
from luthier.model.adapters import apply_method
from luthier.plan import launches
from luthier.plan.efficiency import EFFICIENCY
from luthier.plan.known import known_model
from luthier.plan.launches import most_replayed_tokens, replayed
from luthier.plan.memory import estimate_memory
from luthier.plan.setting import Setting
from luthier.plan.shape import shape_from_config
from luthier.plan.sizes import sizes_of
from luthier.plan.time import estimate_step
from luthier.recipe.schema import MethodSection
from tests.fast.families import build
from tests.plan.test_time import H200, _rows_of

METHODS = [{"name": "full"}, {"name": "lora"}, {"name": "freeze", "last_n_layers": 1}]


def test_the_constants_are_those_of_the_engine():
    assert launches.LAUNCH_SECONDS_A_LAYER == graph.LAUNCH_SECONDS_A_LAYER
    assert launches.FLOPS == graph.FLOPS
    assert launches.RECORDINGS == graph.MOST_RECORDINGS


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
def test_the_largest_replayed_batch_is_the_engines(family, method):
    section = MethodSection(**method)
    model = build(family)
    sizes = sizes_of(shape_from_config(model.config.to_dict(), where=family, source=family), section)
    tuned = apply_method(model, section, seed=0).model
    trunk = tuned.get_base_model().model if sizes.adapters else tuned.model
    assert most_replayed_tokens(sizes) == pytest.approx(graph.Graphs(trunk).most_tokens, rel=0.01)


def _sizes(model="SmolLM2-135M", **method):
    return sizes_of(known_model(model), MethodSection(**(method or {"name": "lora"})))


def test_what_is_not_replayed():
    setting, sizes = Setting(micro_tokens=8_192), _sizes()
    assert replayed(sizes, setting, cuda=True)
    assert not replayed(sizes, setting, cuda=False)
    assert not replayed(sizes, replace(setting, replay=False), cuda=True)
    assert not replayed(sizes, replace(setting, dtype_bytes=4), cuda=True)
    assert not replayed(sizes, replace(setting, micro_tokens=1_000_000), cuda=True)
    assert not replayed(_sizes(name="lora", lora_dropout=0.1), setting, cuda=True)
    assert not replayed(replace(sizes, shape=replace(sizes.shape, head_dim=80)), setting, cuda=True)
    assert not replayed(_sizes("gemma-2-2b"), replace(setting, micro_tokens=512), cuda=True)
    assert not replayed(_sizes("Llama-3.1-8B"), setting, cuda=True)


def test_replay_takes_time_from_a_step_and_memory_from_the_card():
    setting, sizes = Setting(micro_tokens=8_192), _sizes()
    eager = replace(setting, replay=False)

    def step(setting):
        return estimate_step(sizes, setting, _rows_of(300), H200, step_tokens=8_192, optim="sgd")

    saved = step(eager).total - step(setting).total
    assert saved > 0.05
    busy = sum(step(setting).parts().values()) - step(setting).other - step(setting).waiting
    assert busy + step(setting).waiting >= EFFICIENCY.launches_step * EFFICIENCY.launch_seconds

    def memory(setting):
        return estimate_memory(sizes, setting, optim="sgd", supervised=0.6)

    one, none = memory(setting), memory(eager)
    assert none.recordings == 0
    assert one.peak == none.peak  # of the allocator: what a recording keeps is not counted there
    assert one.total - none.total == one.recordings > 2 * none.activations


def test_trained_parameters_of_the_decoder():
    """Without embeddings and head, tied (1B: 128,256 x 2,048 once) or not (8B: 128,256 x 4,096 twice)."""
    tied, untied, adapters = _sizes("Llama-3.2-1B", name="full"), _sizes("Llama-3.1-8B", name="full"), _sizes()
    assert tied.trained_decoder == tied.parameters - 128_256 * 2_048
    assert untied.trained_decoder == untied.parameters - 2 * 128_256 * 4_096
    assert adapters.trained_decoder == adapters.trainable
