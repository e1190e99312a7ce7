"""Contract: `auto` takes the fastest way that fits, offload and shared sequences only where nothing fits without, what
rules refuse is left out with its reason, and a resolved recipe runs the way that was planned."""

from dataclasses import replace

import pytest

from luthier.plan import remedies, ways
from luthier.plan.devices import DEVICES
from luthier.plan.known import known_model
from luthier.plan.request import make_request
from luthier.plan.search import look, make_plan
from luthier.plan.setting import Way
from luthier.recipe.facts import Decision, Facts
from luthier.recipe.resolve import resolve
from luthier.recipe.schema import DistributedSection
from luthier.runtime.errors import RecipeError
from tests.plan.support import documents, recipe

LONG = {"max_length": 262_144, "tokens_per_step": 8 * 262_144}
FULL = {"max_length": 4096, "tokens_per_step": 1_048_576}


@pytest.fixture(autouse=True)
def nothing_is_refused(monkeypatch):
    """As if every key of `distributed` were built, whatever rules say today."""
    for module in (ways, remedies):
        monkeypatch.setattr(module, "why_refused", lambda recipe, way: None)


def ask(method="lora", *, name="Llama-3.1-8B", gpu="H100", num_gpus=8, distributed=None, mean=None, **more):
    wanted = recipe(method if isinstance(method, dict) else {"name": method}, **more)
    wanted = wanted.model_copy(update={"distributed": DistributedSection(**(distributed or {}))})
    length = wanted.data.max_length
    data = documents(length, mean_tokens=mean or length, rows=10_000)
    return make_request(wanted, known_model(name), data, DEVICES[gpu], num_gpus=num_gpus)


def looked_at(plan):
    return {other.candidate.setting.way.words() for other in plan.ways}


def test_copies_and_shards_are_all_that_is_looked_at_where_one_fits():
    plan = make_plan(ask())
    assert plan.fits and looked_at(plan) == {"ddp", "fsdp2"}
    assert plan.ways[0].why == "chosen" and plan.ways[0].candidate is plan.chosen
    other = plan.ways[1]
    assert f"{other.candidate.tokens_per_second:,.0f} tokens/s" in plan.reasons["distributed.strategy"]
    alone = make_plan(ask(num_gpus=1))
    assert looked_at(alone) == {"ddp"} and alone.chosen.setting.way == Way()


def test_offload_comes_where_shards_do_not_fit():
    plan = make_plan(ask("full", name="Llama-3.1-70B", **FULL))
    assert plan.fits
    assert plan.chosen.setting.way == Way(strategy="fsdp2", offload="all")
    assert looked_at(plan) >= {"ddp", "fsdp2", "fsdp2, optimizer offloaded"}
    by_way = {other.candidate.setting.way.offload: other.candidate for other in plan.ways[0:1] + plan.ways}
    assert not by_way["optimizer"].fits  # or it would have been faster
    reason = plan.reasons["distributed.offload"]
    assert reason.startswith("without it at least") and "with it" in reason
    # Sharing sequences cannot help: the states do not fit, whatever the tokens need.
    assert not any("a sequence" in words for words in looked_at(plan))


def test_the_optimizer_alone_is_offloaded_where_that_is_enough():
    """8B in full on two 80 GB cards."""
    plan = make_plan(ask("full", num_gpus=2, **FULL))
    both = {words for words in looked_at(plan) if "offloaded" in words}
    assert plan.fits and both == {"fsdp2, optimizer offloaded", "fsdp2, weights and optimizer offloaded"}
    fitting = [other.candidate for other in plan.ways if other.candidate.fits]
    assert plan.chosen.seconds_per_token == min(candidate.seconds_per_token for candidate in fitting)
    assert plan.decision().offload == plan.chosen.setting.way.offload != "none"


def test_a_sequence_is_shared_where_it_does_not_fit_recomputed():
    plan = make_plan(ask(**LONG))
    assert plan.fits and plan.chosen.setting.way.sequence_parallel > 1
    alone = [other.candidate for other in plan.ways if other.candidate.setting.way.sequence_parallel == 1]
    assert alone and not any(candidate.fits for candidate in alone)
    size = plan.chosen.setting.way.sequence_parallel
    assert plan.decision().sequence_parallel_size == size
    assert plan.chosen.setting.micro_tokens == 262_144 // size * plan.chosen.split.per_device_train_batch_size
    assert plan.chosen.split.sequences_per_step == 8
    # No smaller number of devices fits and is faster.
    for other in plan.ways:
        assert not other.candidate.fits or other.candidate.seconds_per_token >= plan.chosen.seconds_per_token
    assert "distributed.sequence_parallel_size" in plan.reasons


def test_both_together_are_the_last():
    """70B in full on eight cards, sequences of 131,072 tokens."""
    plan = make_plan(ask("full", name="Llama-3.1-70B", max_length=131_072, tokens_per_step=1_048_576))
    assert plan.fits
    assert (plan.chosen.setting.way.offload, plan.chosen.setting.way.sequence_parallel > 1) == ("all", True)


def test_keys_that_the_recipe_has_stay():
    fixed = make_plan(ask("full", name="Llama-3.1-70B", distributed={"offload": "none"}, **FULL))
    assert not fixed.fits and not any("offloaded" in words for words in looked_at(fixed))
    assert "distributed.offload=all" in [remedy.change for remedy in fixed.remedies]
    written = make_plan(ask("full", distributed={"offload": "optimizer"}, **FULL))
    assert {other.candidate.setting.way.offload for other in written.ways} == {"optimizer"}
    shared = make_plan(ask(distributed={"sequence_parallel_size": 2}))
    assert {other.candidate.setting.way.sequence_parallel for other in shared.ways} == {2}
    for strategy in ("ddp", "fsdp2", "zero2", "zero3"):
        named = make_plan(ask(distributed={"strategy": strategy}))
        assert looked_at(named) == {strategy} and named.decision().strategy == strategy


def test_what_was_decided_is_what_runs():
    for asked in (ask("full", name="Llama-3.1-70B", **FULL), ask(**LONG), ask("full", num_gpus=2, **FULL)):
        plan = make_plan(asked)
        facts = Facts(
            device_type="cuda", native_bf16=True, device_memory_bytes=asked.device.memory_bytes,
            world_size=asked.num_gpus, rows=asked.documents.rows, sequences=asked.documents.sequences,
            tokens=asked.documents.tokens, model_parameters=asked.sizes.parameters, planned=plan.decision(),
        )  # fmt: skip
        resolved = resolve(asked.recipe, facts)
        section, way = resolved.recipe.distributed, plan.chosen.setting.way
        assert (section.strategy, section.offload) == (way.strategy, way.offload)
        assert section.sequence_parallel_size == way.sequence_parallel
        assert {"distributed.strategy"} < {one.key for one in resolved.derived if one.key.startswith("distributed")}
        split = plan.chosen.split
        assert resolved.recipe.train.per_device_train_batch_size == split.per_device_train_batch_size
        assert resolved.recipe.train.gradient_accumulation_steps == split.gradient_accumulation_steps
        assert resolve(resolved.recipe, facts).recipe == resolved.recipe
        again = make_plan(replace(asked, recipe=resolved.recipe))
        assert again.chosen.setting == plan.chosen.setting


def test_a_decision_of_an_older_plan_is_read():
    old = {"micro_batch_tokens": 1024, "recompute": False, "recompute_layers": None, "dequantize_base": False,
           "strategy": "fsdp2", "reasons": {}}  # fmt: skip
    decision = Decision(**old)
    assert (decision.offload, decision.sequence_parallel_size) == ("none", 1)


def test_the_smallest_change_over_the_same_devices_comes_before_more_of_them():
    fixed = make_plan(ask("full", name="Llama-3.1-70B", distributed={"strategy": "fsdp2"}, **FULL))
    words = [remedy.change for remedy in fixed.remedies]
    assert words[0] == "distributed.strategy=auto"
    assert any(word.startswith("--num-gpus 16") or word.startswith("--num-gpus 32") for word in words)
    assert words.index("distributed.strategy=auto") < min(
        place for place, word in enumerate(words) if word.startswith("--num-gpus")
    )
    effect = next(remedy.effect for remedy in fixed.remedies if remedy.change == "--num-gpus 64")
    assert effect.endswith("(fsdp2)")
    both = {"offload": "none", "sequence_parallel_size": 1}
    long = make_plan(ask(distributed=both, **LONG))
    found = [remedy.change for remedy in long.remedies]
    assert found[0].startswith("distributed.sequence_parallel_size=")


def test_devices_and_heads_must_be_divisible():
    with pytest.raises(RecipeError) as caught:
        look(ask(distributed={"sequence_parallel_size": 3}))
    assert caught.value.problems[0].code == "L250" and "possible here: 1, 2, 4, 8" in caught.value.problems[0].hint
    with pytest.raises(RecipeError) as caught:  # 14 heads
        look(ask(name="Qwen2.5-0.5B", distributed={"sequence_parallel_size": 4}))
    assert caught.value.problems[0].code == "L251" and "1, 2" in caught.value.problems[0].hint
    assert make_plan(ask(name="Qwen2.5-0.5B", distributed={"sequence_parallel_size": 2})).fits


def test_a_packed_base_stays_packed_in_shards():
    plan = make_plan(ask("qlora", name="Llama-3.1-70B", **FULL))
    bases = {other.candidate.setting.way.strategy: other.candidate.setting.base for other in plan.ways}
    assert bases["fsdp2"] == "nf4"
    shards = next(other.candidate for other in plan.ways if other.candidate.setting.way.sharded)
    assert shards.memory.weights < 6 * 2**30


def test_what_rules_refuse_is_left_out_with_its_reason(monkeypatch):
    def refuse(recipe, way):
        return "not built" if way.strategy == "fsdp2" or way.sequence_parallel > 1 else None

    monkeypatch.setattr(ways, "why_refused", refuse)
    plan = make_plan(ask("full", name="Llama-3.1-70B", **FULL))
    assert not plan.fits and looked_at(plan) == {"ddp"}
    assert plan.refused["fsdp2"] == "not built" and "fsdp2, optimizer offloaded" in plan.refused
    assert "shards were not looked at: not built" in plan.reasons["distributed.strategy"]
    monkeypatch.setattr(ways, "why_refused", lambda recipe, way: "no")
    with pytest.raises(RecipeError) as caught:
        make_plan(ask())
    assert caught.value.problems[0].code == "L252" and "fsdp2: no" in caught.value.problems[0].message


def test_rules_are_asked_as_a_recipe_would_be(monkeypatch):
    """The real rules: shards beside an optimizer that needs whole matrices, whatever else is built by then."""
    monkeypatch.undo()
    wanted = recipe({"name": "full"}, optim="adafactor")
    reason = ways.why_refused(wanted, Way(strategy="fsdp2"))
    assert reason is not None and "adafactor" in reason
    assert ways.why_refused(recipe({"name": "full"}), Way(strategy="fsdp2")) is None
    assert ways.why_refused(recipe({"name": "full"}), Way()) is None
    # `reshard_after_forward: false` has no effect beside copies, which is no reason not to look at them.
    kept = recipe({"name": "full"}).model_copy(update={"distributed": DistributedSection(reshard_after_forward=False)})
    assert ways.why_refused(kept, Way()) is None


def test_passes_of_the_reference_gather_weights_too():
    """DPO's pass before the first step, and KTO's in each, under shards: slower than copies by what they gather."""
    for objective in ("dpo", "kto"):
        seconds = {}
        for strategy in ("ddp", "fsdp2"):
            asked = ask(distributed={"strategy": strategy}, gpu="A100-40GB", num_gpus=8)
            section = asked.recipe.objective.model_copy(update={"name": objective})
            plan = make_plan(replace(asked, recipe=asked.recipe.model_copy(update={"objective": section})))
            assert plan.fits
            seconds[strategy] = plan
        copied, sharded = seconds["ddp"], seconds["fsdp2"]
        assert sharded.chosen.step.exchange > copied.chosen.step.exchange
        assert sharded.seconds_before > 0 and sharded.host.total > 0
        assert sharded.chosen.memory.gathered > 0


@pytest.mark.parametrize(
    ("method", "more", "strategy", "whole"),
    [
        ("lora", {}, "fsdp2", False), ("full", {}, "fsdp2", False), ("full", {}, "zero3", True),
        ("qlora", {}, "fsdp2", True), ("lora", {"model": {"quantization": "fp8"}}, "fsdp2", True),
        ({"name": "lora", "modules_to_save": ["lm_head"]}, {}, "fsdp2", True),
        ({"name": "lora", "use_dora": True}, {}, "fsdp2", True),
        ({"name": "lora", "init_lora_weights": "pissa"}, {}, "fsdp2", True),
        ({"name": "lora", "init_lora_weights": "pissa"}, {}, "ddp", False),
    ],
)  # fmt: skip
def test_what_each_process_has_in_host_memory_while_loading(method, more, strategy, whole):
    """As `pipeline/loading.py` decides: the base, or the rows of one tensor."""
    plan = make_plan(ask(method, distributed={"strategy": strategy}, **more), with_remedies=False)
    tensor, base = 2 * 4096 * 128_256, 2 * plan.request.sizes.parameters
    assert plan.host.loading == 8 * (base if whole else tensor)


def test_everything_is_in_the_json():
    value = make_plan(ask("full", name="Llama-3.1-70B", **FULL)).to_json()
    way = {"strategy": "fsdp2", "offload": "all", "sequence_parallel": 1, "dp_replicate": 1}
    assert value["setting"]["way"] == way
    assert sum(value["memory"]["parts"].values()) == value["memory"]["total"]
    host = value["host"]
    assert host["devices"] == 8 and host["parts"]["states"] > 700 * 2**30
    assert value["ways"][0]["strategy"] == "fsdp2"
    assert all(sum(way["parts"].values()) == way["total"] for way in value["ways"])
