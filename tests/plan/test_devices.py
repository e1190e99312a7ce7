"""Contract: devices are found by the names users and drivers write, and what is not one is refused with a way out."""

import pytest

from luthier.plan import machine
from luthier.plan.devices import DEVICES, device_bytes, find_device
from luthier.plan.measured import measured_rows
from luthier.runtime.errors import RecipeError

GIB = 2**30


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("H200", "H200"), ("h200", "H200"), ("NVIDIA H200", "H200"), ("L4 24GB", "L4"), ("l4", "L4"),
        ("rtx 4090", "RTX4090"), ("NVIDIA GeForce RTX 4090", "RTX4090"), ("RTX4090-24GB", "RTX4090"),
        ("A100 80GB", "A100-80GB"), ("A100-40GB", "A100-40GB"), ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100-PCIe"), ("Tesla T4", "T4"),
        ("A10G 24GB", "A10G"), ("NVIDIA RTX 6000 Ada Generation", "RTX6000Ada"), ("V100 32GB", "V100-32GB"),
    ],
)  # fmt: skip
def test_the_names_people_and_drivers_write(written, name):
    assert find_device(written).name == name


def test_every_name_finds_itself():
    assert all(find_device(name) == device for name, device in DEVICES.items())
    assert device_bytes("h200") == int(139.8 * GIB)


@pytest.mark.parametrize(
    ("written", "words"),
    [("H20", 'did you mean "H200"'), ("A100", "A100-40GB, A100-80GB"), ("L4 48GB", "not 48 GB"), ("", "known are T4")],
)
def test_what_is_no_device_is_refused_with_a_way_out(written, words):
    with pytest.raises(RecipeError, match=words) as caught:
        find_device(written)
    assert (caught.value.exit_code, caught.value.problems[0].code) == (2, "C131")


def test_no_rate_is_above_the_datasheet_and_only_measured_ones_say_so():
    assert {name: device.measured for name, device in DEVICES.items() if device.measured} == {
        "H100": "rates", "H200": "steps",
    }  # fmt: skip
    assert {row.device for row in measured_rows()} == {"H200"}
    for device in DEVICES.values():
        assert device.bf16 <= device.bf16_datasheet
        assert device.native_bf16 == (device.bf16_datasheet > 0)
    assert (DEVICES["H200"].bf16, DEVICES["H200"].fp8, DEVICES["H200"].bandwidth) == (790e12, 1570e12, 4.27e12)


def test_the_driver_is_asked_and_its_memory_taken(monkeypatch):
    monkeypatch.setattr(machine, "_nvidia_smi", lambda: ("NVIDIA H200", 100 * GIB))
    monkeypatch.delenv("LUTHIER_FORCE_CPU", raising=False)
    device, how = machine.this_machine()
    assert (device.name, device.memory_bytes, device.bf16) == ("H200", 100 * GIB, 790e12)
    assert "nvidia-smi" in how
    monkeypatch.setattr(machine, "_nvidia_smi", lambda: ("NVIDIA Something New", 24 * GIB))
    device, _ = machine.this_machine()
    assert "rates of RTX3090 assumed" in device.name and not device.measured
    monkeypatch.setenv("LUTHIER_FORCE_CPU", "1")
    assert machine.this_machine()[0].type == "cpu"
