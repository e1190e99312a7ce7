"""Contract: the plan takes the fastest setting that fits, says why, and names changes that really make it fit."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.fast.settings import EngineSettings
from luthier.plan.devices import DEVICES, find_device
from luthier.plan.known import known_model
from luthier.plan.machine import cpu_accelerator, with_memory
from luthier.plan.reasons import host_words, why_not
from luthier.plan.request import make_request
from luthier.plan.search import evaluate, first_fit, make_plan, search
from luthier.plan.setting import Setting, Way
from luthier.recipe.facts import Facts
from luthier.recipe.resolve import resolve
from luthier.runtime.errors import RecipeError
from tests.plan.support import documents, recipe, request
from tests.support.often import often

GIB = 2**30


@settings(max_examples=often(60), deadline=None)
@given(
    name=st.sampled_from(["SmolLM2-135M", "Llama-3.2-1B", "Qwen2.5-7B", "Llama-3.1-8B", "gemma-2-2b", "Qwen3-14B"]),
    method=st.sampled_from(
        [{"name": "full"}, {"name": "lora"}, {"name": "qlora"}, {"name": "freeze", "last_n_layers": 3}]
    ),
    gib=st.floats(4, 200),
    tokens=st.sampled_from([2_048, 16_384, 65_536]),
    layers=st.integers(1, 60),
)
def test_whatever_fits_is_found(name, method, gib, tokens, layers):
    """No setting by brute force fits when the plan says that none does, and none that fits is much faster."""
    asked = request(method, name=name, tokens_per_step=tokens)
    asked = replace(asked, device=with_memory(DEVICES["H200"], gib))
    plan = make_plan(asked)
    assert plan.fits == plan.chosen.fits == (plan.chosen.needed_bytes <= plan.chosen.available_bytes)
    policies = [("none", None), ("selective", None), ("layer", None), ("layer", layers)]
    policies += [("selective", layers)]
    if not asked.sizes.fast:
        policies = [("none", None), ("layer", None), ("layer", layers)]
    brute = []
    for budget, split in asked.splits():
        for base in asked.bases(Way()):
            for policy, count in policies:
                setting = Setting(
                    micro_tokens=split.per_device_train_batch_size * 1024, recompute=policy, recompute_layers=count,
                    base=base, accumulate=split.gradient_accumulation_steps, extended=asked.extended,
                )  # fmt: skip
                brute.append(evaluate(asked, setting, budget=budget, split=split))
    fitting = [candidate for candidate in brute if candidate.fits]
    assert plan.fits or not fitting
    if fitting:
        fastest = min(candidate.seconds_per_token for candidate in fitting)
        assert plan.chosen.seconds_per_token <= 1.011 * fastest


def test_no_recompute_on_a_big_card_and_some_on_a_small_one():
    big, small = make_plan(request(gpu="H200")), make_plan(request(gpu="RTX4090", tokens_per_step=131_072))
    assert big.chosen.setting.recompute == "none" and big.fits
    assert small.fits and small.chosen.needed_bytes <= small.request.device.memory_bytes
    assert small.chosen.setting.recompute != "none" or small.chosen.setting.micro_tokens < 4_096


def test_nothing_is_computed_again_where_the_host_decides():
    """Work that hides behind launches looks free; it is still work."""
    plan = make_plan(request(name="SmolLM2-135M", tokens_per_step=4_096))
    assert plan.chosen.step.waiting > 0
    assert plan.chosen.setting.recompute == "none" and plan.chosen.split.gradient_accumulation_steps == 1


def test_no_more_layers_are_recomputed_than_needed():
    """On some card between none and all: n layers fit, n - 1 do not."""
    seen = 0
    for gib in range(17, 40):
        for policy in ("layer", "selective"):
            asked = replace(request(max_length=16_384), device=with_memory(DEVICES["H200"], gib))
            found = [
                candidate
                for candidate in search(asked)
                if candidate.setting.recompute == policy and candidate.setting.recompute_layers is not None
            ]
            for candidate in found:
                fewer = replace(candidate.setting, recompute_layers=candidate.setting.recompute_layers - 1)
                less = evaluate(asked, fewer, budget=candidate.budget, split=candidate.split)
                assert candidate.fits and not less.fits
                seen += 1
    assert seen > 10


@pytest.mark.parametrize("gib", [18, 22, 26, 30, 40])
def test_the_engine_runs_what_the_plan_counts(gib):
    """Policy of each layer, by the engine's settings and by the plan's, for every setting that is looked at."""
    asked = replace(request(max_length=8_192), device=with_memory(DEVICES["H200"], gib))
    for candidate in search(asked):
        setting = candidate.setting
        engine = EngineSettings(recompute=setting.recompute, recompute_layers=setting.recompute_layers)
        assert not setting.keep_attention or setting.whole_layers(32)
        assert setting.attending_layers == 0 or (setting.keep_attention and setting.attending_layers < 32)
        whole = setting.whole_layers(32)
        planned = ["layer"] * whole + [setting.rest] * (32 - whole)
        assert [engine.policy(index) for index in range(32)] == planned, setting


def test_whole_layers_beside_selective_ones_are_taken_where_they_are_fastest():
    """On some card selective does not fit, and the fewest whole layers beside selective ones are fewer, and faster,
    than beside layers that keep all."""
    taken = 0
    for gib in range(17, 40):
        asked = replace(request(max_length=16_384), device=with_memory(DEVICES["H200"], gib))
        setting = make_plan(asked).chosen.setting
        if setting.recompute == "selective" and setting.recompute_layers is not None:
            taken += 1
            found = [other for other in search(asked) if other.setting.micro_tokens == setting.micro_tokens]
            beside_all = [other.setting for other in found if other.setting.recompute == "layer"]
            counts = [other.recompute_layers for other in beside_all if other.recompute_layers is not None]
            assert all(setting.recompute_layers < count for count in counts)
    assert taken >= 3


def long_documents(length, gib=72, **train):
    asked = request(name="Llama-3.1-8B", max_length=65_536, tokens_per_step=65_536, **train)
    found = documents(max_length=65_536, mean_tokens=length, rows=1_000)
    return replace(asked, documents=found, device=with_memory(DEVICES["H200"], gib))


def test_attention_is_kept_where_documents_are_long_and_not_where_they_are_short():
    """8B LoRA on a card that cannot keep everything: at 65,536 tokens attention is most of a layer."""
    found = {}
    for length in (1_024, 65_536):
        plan = make_plan(long_documents(length))
        found[length] = plan
        chosen, attention = plan.chosen.setting, "train.gradient_checkpointing_attention"
        assert plan.fits and chosen.whole_layers(32), length
        assert plan.decision().recompute_attention is not chosen.keep_attention
        assert ("run again" if chosen.keep_attention else "with its output kept") in plan.reasons[attention]
    long = found[65_536]
    assert long.chosen.setting.keep_attention and not found[1_024].chosen.setting.keep_attention
    assert "% slower" in long.reasons["train.gradient_checkpointing_attention"]
    again = make_plan(long_documents(65_536, gradient_checkpointing_attention=True))
    assert not again.chosen.setting.keep_attention and again.chosen.seconds > 1.1 * long.chosen.seconds
    tight = make_plan(long_documents(65_536, gib=62))
    some = tight.decision().recompute_attention
    assert 0 < some < 32 and "the fewest of 32 layers" in tight.reasons["train.gradient_checkpointing_attention"]
    fewer = evaluate(
        tight.request, replace(tight.chosen.setting, attending_layers=some - 1), budget=tight.chosen.budget,
        split=tight.chosen.split,
    )  # fmt: skip
    assert tight.fits and not fewer.fits and fewer.seconds < tight.chosen.seconds
    on_cpu = replace(long.request, device=with_memory(cpu_accelerator(), 72))
    assert not any(candidate.setting.keep_attention for candidate in search(on_cpu))


def test_recomputing_everything_is_the_last_resort():
    """A card on which nothing but recomputing all layers fits, found by its memory."""
    lora = {"name": "lora", "lora_dropout": 0.1}  # not replayed
    asked = request(lora, name="Qwen2.5-0.5B", max_length=8_192)  # a large vocabulary: the loss is the peak
    budget, split = list(asked.splits())[-1]
    tokens = split.per_device_train_batch_size * asked.documents.longest_sequence
    common = {"micro_tokens": tokens, "accumulate": split.gradient_accumulation_steps}
    everything = evaluate(asked, Setting(**common, recompute="layer"), budget=budget, split=split)
    card = with_memory(asked.device, (everything.needed_bytes + 2**20) / 0.96 / GIB)
    plan = make_plan(replace(asked, device=card))
    assert plan.fits
    assert (plan.chosen.setting.recompute, plan.chosen.setting.recompute_layers) == ("layer", None)


def test_a_remedy_leaves_no_key_that_contradicts_it():
    plan = make_plan(request(gpu="RTX4080", model={"quantization": "fp8"}))
    words = [remedy.change for remedy in plan.remedies]
    assert "method.name=qlora model.quantization=auto" in words
    plain = make_plan(request(gpu="RTX4080"))
    assert "method.name=qlora" in [remedy.change for remedy in plain.remedies]
    effects = {remedy.effect for remedy in (*plan.remedies, *plain.remedies) if remedy.change.startswith("method")}
    assert len(effects) == 1  # the same 4-bit base, whatever it was before


def test_a_4_bit_base_is_kept_unpacked_where_there_is_room():
    roomy, tight = make_plan(request({"name": "qlora"})), make_plan(request({"name": "qlora"}, gpu="RTX4080"))
    assert roomy.decision().dequantize_base is True
    assert tight.fits and tight.decision().dequantize_base is False
    assert "does not fit" in tight.reasons["model.dequantize_base"]
    fixed = make_plan(request({"name": "qlora"}, model={"dequantize_base": False}))
    assert fixed.chosen.setting.base == "nf4"


def test_what_the_recipe_fixes_is_kept():
    plan = make_plan(request(gradient_checkpointing="selective", gradient_checkpointing_layers=7))
    assert (plan.chosen.setting.recompute, plan.chosen.setting.recompute_layers) == ("selective", 7)
    plan = make_plan(request(tokens_per_step="auto", per_device_train_batch_size=3, gradient_accumulation_steps=5))
    assert (plan.chosen.split.per_device_train_batch_size, plan.chosen.split.gradient_accumulation_steps) == (3, 5)
    assert plan.chosen.setting.micro_tokens == 3 * 1024
    assert make_plan(request(model={"quantization": "fp8"})).chosen.setting.base == "fp8"


def test_fp8_is_faster_than_bf16_and_never_chosen_unasked():
    assert {candidate.setting.base for candidate in search(request())} == {"plain"}
    assert (
        make_plan(request(model={"quantization": "fp8"})).chosen.tokens_per_second
        > 1.2 * make_plan(request()).chosen.tokens_per_second
    )


@pytest.mark.parametrize(
    ("method", "gpu", "train"),
    [
        ({"name": "full"}, "L4", {}), ({"name": "lora"}, "L4", {"gradient_checkpointing": False}),
        ({"name": "lora"}, "T4", {}), ({"name": "full"}, "RTX4090", {"optim": "adamw_8bit"}),
        ({"name": "lora"}, "RTX4090", {"tokens_per_step": "auto", "per_device_train_batch_size": 16}),
        ({"name": "freeze", "last_n_layers": 8}, "L4", {}),
    ],
)  # fmt: skip
def test_each_remedy_makes_it_fit(method, gpu, train):
    asked = request(method, gpu=gpu, **train)
    plan = make_plan(asked)
    assert not plan.fits
    assert plan.remedies
    for remedy in plan.remedies:
        assert first_fit(_changed(asked, remedy.change)) is not None, remedy


def _changed(asked, change):
    """The request with a remedy's words taken by hand."""
    if change.startswith("--num-gpus "):
        return replace(asked, num_gpus=int(change.split()[1]))
    if change.startswith("--gpu "):
        return replace(asked, device=find_device(change.split()[1]))
    key, value = change.split(" instead of ")[0].split("=")
    section, name = key.split(".")
    if name == "tokens_per_step":
        wanted = recipe({"name": "lora"}, tokens_per_step=int(value))
        return make_request(wanted, asked.sizes.shape, asked.documents, asked.device)
    if section == "method":
        wanted = asked.recipe.model_copy(update={"method": type(asked.recipe.method)(name=value)})
        return make_request(wanted, asked.sizes.shape, asked.documents, asked.device)
    if section == "data":
        part = asked.recipe.data.model_copy(update={name: int(value)})
        wanted = asked.recipe.model_copy(update={"data": part})
        return make_request(wanted, asked.sizes.shape, documents(int(value)), asked.device)
    part = getattr(asked.recipe, section).model_copy(update={name: value})
    return replace(asked, recipe=asked.recipe.model_copy(update={section: part}))


def test_keys_that_cost_time_are_told():
    slow = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16, "gradient_checkpointing": True}
    plan = make_plan(request({"name": "qlora"}, gpu="RTX4090", **slow))
    assert plan.fits and plan.faster is not None
    for key in ("train.gradient_checkpointing=auto", "train.tokens_per_step=", "instead of the two batch keys"):
        assert key in plan.faster.change
    free = make_plan(request({"name": "qlora"}, gpu="RTX4090", tokens_per_step=int(_tokens_of(plan.faster.change))))
    assert f"{free.chosen.tokens_per_second:,.0f} tokens/s" in plan.faster.effect
    assert free.chosen.tokens_per_second > 1.05 * plan.chosen.tokens_per_second
    assert free.faster is None  # nothing is fixed
    assert make_plan(request(gpu="H200", gradient_checkpointing=False)).faster is None  # fixed as the plan would
    assert make_plan(request({"name": "full"}, gpu="L4", gradient_checkpointing=True)).faster is None  # does not fit


def _tokens_of(change):
    return change.split("tokens_per_step=")[1].split()[0]


def test_the_smallest_change_comes_first():
    forced = make_plan(request(gpu="RTX4090", gradient_checkpointing=False, tokens_per_step="auto",
                               per_device_train_batch_size=8, gradient_accumulation_steps=1))  # fmt: skip
    assert forced.remedies[0].change == "train.gradient_checkpointing=auto"
    assert make_plan(request({"name": "full"}, gpu="L4")).remedies[0].change == "method.name=lora"
    long = make_plan(request(gpu="L4", max_length=65_536))
    assert long.remedies[0].change.startswith("data.max_length=")


def test_sharding_makes_a_full_fine_tune_fit_on_several_devices():
    alone = make_plan(request({"name": "full"}, gpu="H100"))
    assert alone.chosen.setting.offload == "optimizer", "without it one device does not do"
    plan = make_plan(request({"name": "full"}, gpu="H100", num_gpus=8))
    assert plan.fits and plan.chosen.setting.sharded
    decision = plan.decision()
    assert decision.strategy == "fsdp2"
    assert "copies do not fit" in decision.reasons["distributed.strategy"]
    recipe = plan.request.recipe
    ddp = recipe.model_copy(update={"distributed": recipe.distributed.model_copy(update={"strategy": "ddp"})})
    assert not make_plan(replace(plan.request, recipe=ddp)).fits


def test_one_device_takes_the_optimizer_to_host_memory_if_nothing_fits_without():
    plan = make_plan(request({"name": "full"}, gpu="H100"))
    assert plan.fits and plan.decision().offload == "optimizer" and plan.decision().strategy == "ddp"
    assert plan.chosen.memory.masters == plan.chosen.memory.optimizer == 0
    assert plan.host.states == 12 * plan.request.sizes.trainable
    assert "without it at least" in plan.reasons["distributed.offload"]
    assert plan.chosen.step.offload > 0.3 * plan.chosen.step.total
    larger = make_plan(request({"name": "full"}, gpu="B200"))
    assert larger.fits and larger.decision().offload == "none" and "distributed.offload" not in larger.reasons
    adapters = make_plan(request({"name": "lora"}, gpu="L4"))
    assert {one.setting.offload for one in search(adapters.request)} == {"none"}


def test_what_is_offloaded_has_to_fit_this_host():
    free = request({"name": "full"}, gpu="H100")
    needed = make_plan(free).chosen.host.offloaded
    enough = make_plan(replace(free, host_memory=needed))
    assert enough.fits and enough.chosen == replace(make_plan(free).chosen, host_available=needed)
    short = make_plan(replace(free, host_memory=needed - 1))
    assert not short.fits and short.chosen.host_missing == 1
    assert short.chosen.needed_bytes <= short.chosen.available_bytes, "the device would do"
    assert "GiB of host memory, of which" in host_words(short.chosen) and not host_words(enough.chosen)
    words = why_not(short.chosen, enough.chosen)
    assert "GiB of host memory" in words and "too much" not in words
    assert short.to_json()["host"]["free"] == needed - 1
    changes = [remedy.change for remedy in short.remedies]
    assert changes[0] == "train.optim=adamw_8bit" and "--gpu H200" in changes
    by_change = {remedy.change: remedy.effect for remedy in short.remedies}
    assert "in host memory" in by_change["train.optim=adamw_8bit"], "its own need is said"
    assert "in host memory" not in by_change["method.name=lora"]
    lora = make_plan(replace(request({"name": "lora"}, gpu="H100"), host_memory=0))
    assert lora.fits and lora.chosen.host_available is None, "nothing is offloaded"


def test_another_device_is_in_another_host():
    """What is free here says nothing of it: a remedy with offload says what it takes there."""
    short = make_plan(replace(request({"name": "full"}, name="Qwen3-14B", gpu="H100"), host_memory=2**30))
    effects = {remedy.change: remedy.effect for remedy in short.remedies}
    assert effects["--gpu H200"].endswith("GiB in host memory")
    assert not any("in host memory" in effect for change, effect in effects.items() if "--gpu" not in change)


def test_a_way_that_this_host_cannot_hold_gives_way_to_one_that_it_can():
    asked = request({"name": "full"}, gpu="L4", num_gpus=4)
    plan = make_plan(asked)
    assert plan.fits and plan.chosen.setting.offload == "all"
    less = make_plan(replace(asked, host_memory=plan.chosen.host.offloaded - 1))
    assert less.fits and less.chosen.setting.offload == "optimizer"
    reason = less.reasons["distributed.strategy"]
    assert "weights and optimizer offloaded do not fit" in reason and "of host memory, of which" in reason


def test_on_one_device_a_written_offload_is_kept():
    def plan(offload, gpu):
        asked = request({"name": "full"}, gpu=gpu)
        section = type(asked.recipe.distributed)(offload=offload)
        return make_plan(replace(asked, recipe=asked.recipe.model_copy(update={"distributed": section})))

    assert plan("optimizer", "B200").chosen.setting.offload == "optimizer"
    never = plan("none", "H100")
    assert not never.fits
    assert never.remedies[0].change == "distributed.offload=optimizer"
    asked = request({"name": "full"}, gpu="L40S", optim="muon")
    section = type(asked.recipe.distributed)(offload="none")
    whole = make_plan(replace(asked, recipe=asked.recipe.model_copy(update={"distributed": section})))
    assert not whole.fits and not any("offload" in remedy.change for remedy in whole.remedies)  # whole matrices


def test_one_device_has_no_shards_to_offload():
    asked = request({"name": "full"}, gpu="H100")
    section = type(asked.recipe.distributed)(offload="all")
    with pytest.raises(RecipeError, match="this plan is of one device") as caught:
        make_plan(replace(asked, recipe=asked.recipe.model_copy(update={"distributed": section})))
    assert caught.value.problems[0].code == "L241"


def test_what_is_offloaded_on_one_device_is_in_the_words():
    plan = make_plan(request({"name": "full"}, gpu="H100"))
    words = plan.chosen.setting.describe(32)
    assert words.endswith(", optimizer offloaded")
    others = [other.candidate.setting.describe(32) for other in plan.runners_up]
    assert others and words not in others and len(set(others)) == len(others)


@pytest.mark.parametrize("written", [True, False])
def test_offload_makes_no_room_on_a_cpu(written):
    asked = replace(request({"name": "full"}), device=with_memory(cpu_accelerator(), 24))
    if written:
        section = type(asked.recipe.distributed)(offload="none")
        asked = replace(asked, recipe=asked.recipe.model_copy(update={"distributed": section}))
    plan = make_plan(asked)
    assert not plan.fits and {one.setting.offload for one in search(asked)} == {"none"}
    assert not any("offload" in remedy.change for remedy in plan.remedies)


def test_ddp_beside_offload_is_for_one_device():
    asked = request({"name": "full"}, gpu="H100", num_gpus=2)
    section = type(asked.recipe.distributed)(strategy="ddp", offload="optimizer")
    with pytest.raises(RecipeError, match="is for one device"):
        make_plan(replace(asked, recipe=asked.recipe.model_copy(update={"distributed": section})))


def test_a_recipe_that_shards_cannot_serve_is_copied_and_the_reason_is_said():
    plan = make_plan(request({"name": "full"}, name="Llama-3.2-1B", gpu="H100", num_gpus=8, optim="adafactor"))
    assert plan.decision().strategy == "ddp"
    assert "shards were not looked at" in plan.reasons["distributed.strategy"]
    assert "adafactor" in plan.reasons["distributed.strategy"]


def test_adapters_are_whole_on_every_device():
    lora = make_plan(request({"name": "lora"}, gpu="H100", num_gpus=8))
    sharded = replace(lora.chosen.setting, way=Way(strategy="fsdp2"), extended=False)
    from luthier.plan.memory import estimate_memory

    memory = estimate_memory(lora.request.sizes, sharded, optim="adamw_torch_fused", supervised=0.6)
    trained = lora.request.sizes.trainable
    assert (memory.masters, memory.optimizer) == (4 * trained, 8 * trained)
    assert memory.weights == lora.request.sizes.parameters * 2 // 8


@settings(max_examples=20, deadline=None)
@given(
    method=st.sampled_from([{"name": "full"}, {"name": "lora"}, {"name": "qlora"}]),
    gib=st.floats(6, 150),
    name=st.sampled_from(["Llama-3.2-1B", "Llama-3.1-8B", "Qwen2.5-14B"]),
)
def test_what_fits_on_some_devices_fits_on_more(method, gib, name):
    fits = []
    for count in (1, 2, 4, 8):
        asked = replace(request(method, name=name, num_gpus=count), device=with_memory(DEVICES["A100-80GB"], gib))
        fits.append(make_plan(asked).fits)
    assert fits == sorted(fits)


def test_runners_up_say_why():
    plan = make_plan(request(gpu="L4", tokens_per_step=65_536))
    assert 2 <= len(plan.runners_up) <= 3
    for other in plan.runners_up:
        assert "slower" in other.why or "no faster" in other.why or "does not fit" in other.why
        assert other.candidate.setting != plan.chosen.setting


def test_the_resolved_recipe_runs_what_was_planned():
    """What `resolve` makes of a decision is the split, the recompute and the base that the plan chose."""
    for gpu, method, tokens in (
        ("L4", {"name": "qlora"}, 65_536), ("H100", {"name": "lora"}, 200_000), ("H100", {"name": "full"}, 65_536),
    ):  # fmt: skip
        asked = request(method, gpu=gpu, tokens_per_step=tokens)
        plan = make_plan(asked)
        facts = Facts(
            device_type="cuda", native_bf16=True, device_memory_bytes=asked.device.memory_bytes, world_size=1,
            rows=asked.documents.rows, sequences=asked.documents.sequences, tokens=asked.documents.tokens,
            model_parameters=asked.sizes.parameters, planned=plan.decision(),
        )  # fmt: skip
        resolved = resolve(asked.recipe, facts).recipe
        split = plan.chosen.split
        assert resolved.distributed.offload == ("optimizer" if method["name"] == "full" else "none")
        assert resolved.train.per_device_train_batch_size == split.per_device_train_batch_size
        assert resolved.train.gradient_accumulation_steps == split.gradient_accumulation_steps
        again = make_plan(replace(asked, recipe=resolved))
        assert again.chosen.setting == plan.chosen.setting
        assert again.steps == plan.steps


def test_total_time_is_steps_times_seconds():
    plan = make_plan(request(num_train_epochs=3.0))
    assert plan.seconds == plan.steps * plan.chosen.seconds
    assert plan.tokens == pytest.approx(3 * plan.request.documents.tokens, rel=0.01)
    assert plan.chosen.tokens_per_second == pytest.approx(plan.tokens / plan.seconds)
    assert 0.4 < plan.mfu < 0.8


def test_a_card_without_bf16_computes_in_fp32():
    plan = make_plan(request(name="SmolLM2-135M", gpu="T4"))
    assert plan.chosen.setting.dtype_bytes == 4 and plan.chosen.memory.masters == 0


def test_a_plan_for_70b_takes_milliseconds():
    import time

    started = time.thread_time()  # of this thread: others may run beside this test
    shape = known_model("Llama-3.1-70B")
    make_plan(make_request(recipe({"name": "full"}), shape, documents(), DEVICES["L4"], num_gpus=2))
    assert time.thread_time() - started < 1.0
