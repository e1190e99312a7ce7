"""Contract: what the engine's layers really keep for the backward pass is what the formulas of the plan count."""

import gc
import weakref

import pytest
import torch

from luthier.fast.engine import attach
from luthier.fast.settings import EngineSettings
from luthier.model.adapters import apply_method
from luthier.plan.activations import activation_bytes
from luthier.plan.setting import Setting
from luthier.plan.shape import shape_from_config
from luthier.plan.sizes import sizes_of
from luthier.recipe.schema import MethodSection
from tests.fast.families import build
from tests.fast.helpers import make_batch

LAYERS, BYTES = 4, 4
POLICIES = [("none", None), ("selective", None), ("layer", None), ("layer", 1), ("layer", 3), ("selective", 2)]
KEPT = [("layer, attention kept", None), ("selective, attention kept", 3)]


class _Kept:
    """A saved tensor, alive as long as the graph holds it."""

    def __init__(self, tensor):
        self.tensor = tensor.detach()  # an output would hold its own graph alive


def kept_bytes(model, settings, batch):
    """Bytes of all storages that the graph of the loss holds, but parameters."""
    engine = attach(model, settings)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    alive = weakref.WeakSet()

    def pack(tensor):
        kept = _Kept(tensor)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        loss = engine.loss(batch).loss
    gc.collect()
    assert loss.requires_grad
    storages = {storage.data_ptr(): storage.nbytes() for kept in alive if (storage := kept.tensor.untyped_storage())}
    return sum(size for place, size in storages.items() if place not in parameters)


METHODS = {
    "full": ({"name": "full"}, False),
    "lora": ({"name": "lora", "r": 4}, False),
    "lora fused": ({"name": "lora", "r": 4}, True),
    "freeze": ({"name": "freeze", "last_n_layers": 2}, False),
}
CASES = [("llama", method, policy) for method in ("full", "lora fused") for policy in POLICIES + KEPT]
CASES += [("llama", "lora", POLICIES[0]), ("llama", "freeze", POLICIES[0]), ("llama", "freeze", POLICIES[4])]
CASES += [("qwen3", "full", policy) for policy in POLICIES[:2]]
CASES += [(family, "lora fused", POLICIES[0]) for family in ("qwen2", "gemma", "phi3")]


@pytest.mark.parametrize(("family", "method", "policy"), CASES, ids=str)
def test_the_graph_holds_what_was_predicted(family, method, policy):
    (recompute, *more), count = policy[0].split(", "), policy[1]
    attending = 1 if more and count else 0
    values, fuse = METHODS[method]
    wanted = MethodSection(**values)
    model = build(family, num_hidden_layers=LAYERS)
    sizes = sizes_of(shape_from_config(model.config.to_dict(), where=family, source="test"), wanted)
    batch = make_batch([100, 60, 40], vocab=600)
    tuned = apply_method(model, wanted, seed=0).model
    settings = EngineSettings(
        recompute=recompute,
        recompute_layers=count,
        keep_attention=bool(more),
        fuse_adapters=fuse,
        attending_layers=attending,
    )
    measured = kept_bytes(tuned, settings, batch)
    setting = Setting(
        micro_tokens=batch.tokens, recompute=recompute, recompute_layers=count, dtype_bytes=BYTES, extended=fuse,
        keep_attention=bool(more), attending_layers=attending,
    )  # fmt: skip
    predicted = activation_bytes(sizes, setting, batch.trained_tokens / batch.tokens)
    # Not in the graph but alive: the tables of RoPE. On a CPU alone: attention's output once more, by document; and q,
    # k, v of a layer that runs again and keeps its attention, as autograd has them.
    predicted -= batch.tokens * 2 * sizes.shape.head_dim * BYTES
    whole = max(0, setting.whole_layers(LAYERS) - sizes.lowest_layer)
    predicted += (sizes.backward_layers - whole) * batch.tokens * sizes.shape.query * BYTES
    if more:
        predicted += (whole - attending) * batch.tokens * (2 * sizes.shape.query + 2 * sizes.shape.key_value) * BYTES
    assert predicted == pytest.approx(measured, rel=0.03), (predicted, measured)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "down_proj"]])
def test_dora_keeps_two_outputs_more_of_each_adapted_matrix(targets):
    """Without them, as for families without a layer of the engine's own, an upper bound within 8% (no target: 5%)."""
    measured, predicted, outputs = {}, {}, 0
    for dora in (False, True):
        wanted = MethodSection(name="lora", r=4, use_dora=dora, target_modules=targets)
        model = build("llama", num_hidden_layers=LAYERS)
        sizes = sizes_of(shape_from_config(model.config.to_dict(), where="llama", source="test"), wanted)
        batch = make_batch([100, 60, 40], vocab=600)
        adapted = apply_method(model, wanted, seed=0).model
        outputs = sum(m.out_features for m in adapted.modules() if hasattr(m, "lora_A")) // LAYERS
        measured[dora] = kept_bytes(adapted, EngineSettings(replace_layers=False), batch)
        setting = Setting(micro_tokens=batch.tokens, dtype_bytes=BYTES, extended=False)
        predicted[dora] = activation_bytes(sizes, setting, batch.trained_tokens / batch.tokens)
    more = 2 * outputs * LAYERS * batch.tokens * BYTES
    assert measured[True] - measured[False] == pytest.approx(more, rel=0.05)
    assert measured[True] <= predicted[True] * 1.01
    if targets == "all-linear":
        assert predicted[True] <= 1.08 * measured[True]
