"""Contract: the benchmarks' reading of an allocator's history names who holds its peak."""

from benchmarks.gpu.holders import peak_holders


def event(action, addr, size, *frames):
    return {"action": action, "addr": addr, "size": size, "frames": [
        {"filename": file, "line": 1, "name": name} for file, name in frames]}  # fmt: skip


def test_the_makers_of_the_peak():
    gather = ("/x/deepspeed/runtime/zero/partition_parameters.py", "wait")
    layer = ("/y/luthier/fast/decoder/layer.py", "forward_layer")
    history = [
        event("free_requested", 7, 5),  # was there before
        event("alloc", 1, 10, ("/z/torch/nn/functional.py", "linear"), layer),
        event("alloc", 2, 30, gather, layer), event("free_requested", 2, 30), event("free_completed", 2, 30),
        event("alloc", 3, 20, gather), event("alloc", 4, 20, layer, gather), event("alloc", 5, 1),
        event("free_requested", 1, 10),
    ]  # fmt: skip
    most, makers = peak_holders(history)
    assert most == -5 + 10 + 20 + 20 + 1
    assert makers == {
        "layer.py:1 forward_layer": 10, "partition_parameters.py:1 wait": 20,
        "layer.py:1 forward_layer < partition_parameters.py:1 wait": 20, "elsewhere": 1,
    }  # fmt: skip
    assert peak_holders(history[:-1]) == (most, makers), "also where nothing is let go after it"
    assert peak_holders([]) == (0, {})
