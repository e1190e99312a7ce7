"""What a run says of its offload, where that would have no effect, and a host that has too little memory."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from luthier.fast.kernels import choice
from luthier.pipeline import offload
from luthier.pipeline.offload import check_offload
from luthier.recipe.schema import Recipe
from luthier.runtime.errors import RecipeError

GIB = 2**30


def session(folder, *, size=2, device="cuda", method="full", optim="adamw_torch_fused", **distributed):
    recipe = Recipe(
        model={"name_or_path": "m", "quantization": "none"}, data={"train": [{"path": "rows.jsonl"}]},
        method={"name": method}, train={"optim": optim}, distributed=distributed, output_dir="unused",
    )  # fmt: skip
    return SimpleNamespace(
        group=SimpleNamespace(size=size, from_main=lambda _, action: action()), run=SimpleNamespace(path=folder),
        resolved=SimpleNamespace(recipe=recipe),
        device=SimpleNamespace(type=device, torch_device=torch.device(device)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "strategy", "kind"),
    [(1, "fsdp2", "all"), (1, "ddp", "all"), (2, "ddp", "all"), (2, "ddp", "optimizer")],
)
def test_offload_without_shards_is_refused(tmp_path, size, strategy, kind):
    with pytest.raises(RecipeError, match=f"offload: {kind}") as caught:
        check_offload(session(tmp_path, size=size, strategy=strategy, offload=kind))
    assert caught.value.problems[0].code == "L241"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 1, "offload": "optimizer"}, "go through the GPU for each update"),
        ({"size": 1, "offload": "optimizer", "optim": "adamw_8bit"}, "go through the GPU for each update"),
        ({"strategy": "fsdp2", "offload": "all"}, "go through the GPU for each update"),
        ({"strategy": "fsdp2", "offload": "all", "method": "lora"}, "adapters stay on the device"),
        ({"strategy": "fsdp2", "offload": "optimizer", "optim": "sgd"}, "the CPU updates with"),
        ({"strategy": "fsdp2", "offload": "optimizer", "device": "cpu"}, "the CPU updates with"),
        ({"strategy": "zero3", "offload": "all"}, "the CPU updates with"),
        ({"strategy": "zero3", "offload": "all", "method": "lora"}, "the CPU updates with"),
    ],
)
def test_who_updates_is_said(tmp_path, capsys, monkeypatch, settings, words):
    monkeypatch.setattr(choice, "_has_triton", lambda: True)
    check_offload(session(tmp_path, **settings))
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_gpu_without_triton_leaves_the_update_to_the_cpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(choice, "_has_triton", lambda: False)
    check_offload(session(tmp_path, size=1, offload="optimizer"))
    assert "the CPU updates with" in capsys.readouterr().err


def test_without_offload_nothing_is_said(tmp_path, capsys):
    check_offload(session(tmp_path, strategy="fsdp2"))
    assert not capsys.readouterr().err


def test_a_host_with_too_little_memory_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    plan = {"host": {"parts": {"processes": 3 * GIB}, "total": 103 * GIB}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    monkeypatch.setattr(offload, "free_memory_bytes", lambda: 100 * GIB)
    check_offload(session(tmp_path, size=1, offload="optimizer"))
    monkeypatch.setattr(offload, "free_memory_bytes", lambda: 100 * GIB - 1)
    with pytest.raises(RecipeError, match=r"needs 100\.0 GiB of host memory") as caught:
        check_offload(session(tmp_path, size=1, offload="optimizer"))
    assert caught.value.problems[0].code == "L310"
    check_offload(session(tmp_path, size=1, offload="optimizer", device="cpu"))
