"""Contract: a checkpoint in shards is read like a whole one, tensor by tensor, and of rows no other part."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from luthier.runtime.errors import RunFailed
from luthier.train import saved as subject
from luthier.train.distributed.shards import load_whole
from luthier.train.saved import SavedTensors, numbers_of


def write(folder, process: int, file: int, parts: dict[str, tuple[int, torch.Tensor]]) -> None:
    """A file as torch writes it: parts by name, each with the row that it begins at."""
    places = {name: {"saved_offsets": [first] + [0] * (part.ndim - 1)} for name, (first, part) in parts.items()}
    save_file(
        {name: part.contiguous() for name, (_, part) in parts.items()},
        folder / f"shard-{process:05d}-model-{file:05d}-of-00002.safetensors",
        metadata={"DCP_SHARDING_INFO": json.dumps(places)},
    )


def cut(folder, tensor: torch.Tensor, edges: list[int]) -> None:
    """`trainable/a` in one file for each process, and counters beside it."""
    for process, (first, last) in enumerate(pairwise(edges), start=1):
        write(folder, process, 1, {"trainable/a": (first, tensor[first:last])})
    write(folder, 1, 2, {"optimizer/a/step": (0, torch.tensor(7.0)), "optimizer/a/exp_avg": (0, tensor * 2)})


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), inner=st.lists(st.integers(0, 9), max_size=3), data=st.data())
def test_any_rows_of_any_parts(tmp_path_factory, rows, inner, data):
    folder = tmp_path_factory.mktemp("parts")
    tensor = torch.randn(rows, 3)
    cut(folder, tensor, [0, *sorted(min(edge, rows) for edge in inner), rows])
    found = SavedTensors(folder, "trainable")
    first = data.draw(st.integers(0, rows * 3))
    last = data.draw(st.integers(first, rows * 3))
    assert list(found) == ["a"] and found.shapes == {"a": tensor.shape}
    assert torch.equal(found["a"], tensor)
    assert torch.equal(found.rows("a", first // 3, last // 3), tensor[first // 3 : last // 3])
    for held in (found, {"a": tensor}):
        assert torch.equal(numbers_of(held, "a", first, last), tensor.flatten()[first:last])
    assert torch.equal(load_whole(folder, "optimizer")["a/exp_avg"], tensor * 2)


def test_a_number_is_a_tensor_without_rows(tmp_path):
    cut(tmp_path, torch.ones(4, 3), [0, 2, 4])
    found = SavedTensors(tmp_path, "optimizer")
    assert found.shapes["a/step"] == torch.Size([]) and float(found["a/step"]) == 7
    assert found.numbers("a/step", 0, 1).tolist() == [7] and "step" not in found


def test_of_rows_no_other_file_is_opened(tmp_path, monkeypatch):
    tensor = torch.arange(12.0).view(4, 3)
    cut(tmp_path, tensor, [0, 2, 4])
    found = SavedTensors(tmp_path, "trainable")
    (tmp_path / "shard-00001-model-00001-of-00002.safetensors").unlink()
    assert torch.equal(found.rows("a", 2, 4), tensor[2:]) and torch.equal(
        found.numbers("a", 7, 11), torch.arange(7.0, 11)
    )
    with pytest.raises(FileNotFoundError):
        found["a"]


def test_files_are_opened_anew_after_so_many_bytes(tmp_path, monkeypatch):
    tensor = torch.arange(12.0).view(4, 3)
    cut(tmp_path, tensor, [0, 2, 4])
    monkeypatch.setattr(subject, "MAPPED_BYTES", 10)
    found = SavedTensors(tmp_path, "trainable")
    for _ in range(3):
        assert torch.equal(found["a"], tensor)
        assert len(found._open) == 1


@pytest.mark.parametrize(("edges", "said"), [([(0, 2), (3, 4)], "0 to 2, 3 to 4"), ([(0, 3), (2, 4)], "0 to 3, 2 to 4"),
                                             ([(1, 4)], "1 to 4")])  # fmt: skip
def test_rows_that_are_in_no_part_or_in_two_are_refused(tmp_path, edges, said):
    tensor = torch.ones(4, 3)
    for process, (first, last) in enumerate(edges, start=1):
        write(tmp_path, process, 1, {"trainable/a": (first, tensor[first:last])})
    with pytest.raises(RunFailed, match=said) as caught:
        SavedTensors(tmp_path, "trainable")
    assert caught.value.problems[0].code == "L316"
