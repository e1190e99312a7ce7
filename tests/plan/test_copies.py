"""Contract: copies of shards (`dp_replicate_size`) by hand: bytes of the smaller group, seconds of gathers within hosts
and of gradients between hosts; `auto` takes them where the network is slow."""

from dataclasses import replace

import pytest

from luthier.plan.devices import DEVICES
from luthier.plan.efficiency import EFFICIENCY
from luthier.plan.host import estimate_host
from luthier.plan.known import known_model
from luthier.plan.machine import with_network
from luthier.plan.memory import estimate_memory
from luthier.plan.request import make_request
from luthier.plan.search import make_plan
from luthier.plan.setting import Setting, Way
from luthier.plan.sharding import exchange_seconds
from luthier.plan.sizes import sizes_of
from luthier.recipe.schema import DistributedSection, MethodSection
from luthier.runtime.errors import RecipeError
from tests.plan.support import documents, recipe

P = 8_030_261_248
H100 = DEVICES["H100"]


def setting(copies, *, world=64, **more):
    way = Way(strategy="fsdp2", dp_replicate=copies)
    return Setting(micro_tokens=2048, world=world, way=way, extended=False, replay=False, **more)


def sizes(method):
    return sizes_of(known_model("Llama-3.1-8B"), MethodSection(name=method))


def test_a_device_holds_what_one_of_its_copy_holds():
    """8 copies on 64 devices are as 8 devices, but for the exchange."""
    full = sizes("full")
    copies = estimate_memory(full, setting(8), optim="adamw_torch_fused", supervised=0.6)
    alone = estimate_memory(full, setting(1, world=8), optim="adamw_torch_fused", supervised=0.6)
    assert (copies.weights, copies.masters, copies.optimizer) == (P // 4, P // 2, P)
    assert copies.parts() == alone.parts()
    hosts = [estimate_host(full, one, optim="adamw_torch") for one in (setting(8), setting(1, world=8))]
    assert hosts[0] == hosts[1]


@pytest.mark.parametrize(("method", "accumulate"), [("full", 1), ("full", 4), ("lora", 4)])
def test_seconds_by_hand(method, accumulate):
    """Without anything to hide behind: the share that stays visible plus what is beyond the (no) compute."""
    device, one = with_network(H100, 100.0), sizes(method)
    found = exchange_seconds(
        one, setting(8, accumulate=accumulate), device, compute=0.0, tokens=2048, again=0, table=EFFICIENCY
    )
    divided = one.trainable if method == "full" else 0
    gathered = 2.0 * 32 * 2 * 218_103_808 + 2 * 2 * 4096 * 128_256
    link, network = 450e9 * EFFICIENCY.link, 12.5e9 * EFFICIENCY.link
    within = 7 / 8 * (gathered + 4 * divided) / link
    between = 2 * 7 / 8 * 4 * divided / 8 / network
    copied = gathered * (3 + 2 / 8) + divided * (10 + 10 / 8)
    # Gradients of adapters go over all devices, by a ring that has the adapters of a whole host: 8 x 12.5 GB/s.
    once = 0.0 if divided else 2 * 63 / 64 * 4 * one.trainable / (100e9 * EFFICIENCY.link)
    wanted = accumulate * (max(EFFICIENCY.exposed_communication, 1.0) * (within + between) + copied / device.bandwidth)
    assert found == pytest.approx(wanted + once, rel=1e-6)


def ask(method="lora", *, name="Llama-3.1-70B", gbits=None, distributed=None, **more):
    length = 4096
    wanted = recipe({"name": method}, max_length=length, tokens_per_step=1_048_576)
    wanted = wanted.model_copy(update={"distributed": DistributedSection(**(distributed or {}))})
    data = documents(length, mean_tokens=1000, rows=10_000)
    return make_request(wanted, known_model(name), data, with_network(H100, gbits), **{"num_gpus": 64, **more})


def words(plan):
    return {other.candidate.setting.way.words() for other in plan.ways}


def test_auto_takes_copies_where_the_network_is_slow():
    slow, fast = make_plan(ask(gbits=25.0)), make_plan(ask())
    assert words(slow) == words(fast) == {"ddp", "fsdp2", "fsdp2, 8 copies of shards"}
    assert slow.fits and slow.chosen.setting.way == Way(strategy="fsdp2", dp_replicate=8)
    assert slow.decision().dp_replicate_size == 8
    assert "gathered among 8 devices" in slow.reasons["distributed.dp_replicate_size"]
    assert "shards: " in slow.reasons["distributed.strategy"]
    assert fast.chosen.setting.way == Way(strategy="fsdp2")
    assert fast.decision().dp_replicate_size == 1 and "distributed.dp_replicate_size" not in fast.reasons
    assert "shards in 8 copies" in fast.reasons["distributed.strategy"]


def test_hosts_have_as_many_devices_as_they_have():
    assert words(make_plan(ask(gbits=25.0, num_gpus=32, host_devices=4))) == {
        "ddp", "fsdp2", "fsdp2, 8 copies of shards",
    }  # fmt: skip
    assert words(make_plan(ask("qlora", num_gpus=8))) == {"ddp", "fsdp2"}, "one host"


def test_what_crosses_hosts_goes_over_the_network_however_few_devices_they_have():
    """Eight devices of two hosts, and of one: gathers within four of them need no network."""
    two, one = make_plan(ask("qlora", gbits=25.0, num_gpus=8, host_devices=4)), make_plan(ask("qlora", num_gpus=8))
    assert words(two) == {"ddp", "fsdp2", "fsdp2, 2 copies of shards"}
    seconds = {
        (len(plan.ways), other.candidate.setting.way.words()): other.candidate.seconds
        for plan in (two, one) for other in plan.ways
    }  # fmt: skip
    assert seconds[3, "fsdp2, 2 copies of shards"] < 0.8 * seconds[3, "fsdp2"]
    assert seconds[3, "fsdp2"] > 1.2 * seconds[2, "fsdp2"]
    full = sizes("full")
    for host, link in ((4, 4 * 12.5e9), (8, 450e9)):
        found = exchange_seconds(
            full, Setting(micro_tokens=2048, world=8, way=Way(), extended=False, replay=False, host=host),
            with_network(H100, 100.0), compute=0.0, tokens=2048, again=0, table=EFFICIENCY,
        )  # fmt: skip
        assert found == pytest.approx(2 * 7 / 8 * 4 * P / (link * EFFICIENCY.link), rel=1e-6)
        held = estimate_host(full, setting(1, world=8, host=host), optim="adamw_torch")
        assert held.devices == host


def test_what_the_recipe_says_stays():
    fixed = make_plan(ask(gbits=25.0, distributed={"dp_replicate_size": 1}))
    assert words(fixed) == {"ddp", "fsdp2"}
    named = make_plan(ask(distributed={"strategy": "fsdp2", "dp_replicate_size": 4}))
    assert words(named) == {"fsdp2, 4 copies of shards"} and "4 copies of shards" in named.chosen.setting.describe(80)
    left = make_plan(ask(distributed={"dp_replicate_size": 8}))
    assert words(left) == {"fsdp2, 8 copies of shards"}
    for way in named.to_json()["ways"]:
        assert way["dp_replicate"] == 4


@pytest.mark.parametrize("devices", [1, 4, 6, 64])
def test_devices_that_cannot_hold_the_copies_are_an_error(devices):
    with pytest.raises(RecipeError) as caught:
        make_plan(
            ask(distributed={"strategy": "fsdp2", "dp_replicate_size": 64 if devices == 64 else 4}, num_gpus=devices)
        )
    assert [problem.code for problem in caught.value.problems] == ["L260"]


def test_a_network_without_a_rate_is_an_error():
    with pytest.raises(RecipeError) as caught:
        with_network(H100, 0.0)
    assert caught.value.problems[0].code == "L262"
    assert with_network(H100, None) == H100 and with_network(H100, 8.0) == replace(H100, network=1e9)
