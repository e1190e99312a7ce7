"""Whether a base is loaded without its values."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from luthier.pipeline.loading import loads_hollow, why_values_first
from luthier.recipe.schema import Recipe


def session(*, size=2, method=None, model=None, objective=None, **distributed):
    recipe = Recipe(
        model={"name_or_path": "m", "quantization": "none", **(model or {})}, data={"train": [{"path": "rows.jsonl"}]},
        method=method or {}, objective=objective or {}, distributed=distributed, output_dir="unused",
    )  # fmt: skip
    return SimpleNamespace(group=SimpleNamespace(size=size), resolved=SimpleNamespace(recipe=recipe))


@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "lora"}, {"name": "freeze", "last_n_layers": 1}])
def test_shards_are_read_by_rows(method):
    assert loads_hollow(session(strategy="fsdp2", method=method))
    assert not loads_hollow(session(strategy="fsdp2", method=method, size=1))
    assert not loads_hollow(session(strategy="ddp", method=method))


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"method": {"name": "qlora"}, "model": {"quantization": "nf4"}}, "nf4"),
        ({"method": {"name": "lora", "use_dora": True}}, "start from the base"),
        ({"method": {"name": "lora", "init_lora_weights": "pissa"}}, "start from the base"),
        ({"method": {"name": "lora", "modules_to_save": ["lm_head"]}}, "modules_to_save"),
        ({"method": {"name": "full"}, "model": {"new_tokens": ["<x>"]}}, "new_tokens"),
        ({"method": {"name": "full"}, "objective": {"name": "reward"}}, "reward"),
    ],
)
def test_what_reads_the_base_first_is_loaded_whole_and_said(sections, word, capsys):
    found = session(strategy="fsdp2", **sections)
    assert not loads_hollow(found)
    assert word in why_values_first(found.resolved.recipe)
    assert word in " ".join(capsys.readouterr().err.split())
