"""Slow: QLoRA under FSDP2 from the recipe to the merged model, on two real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.launch.support import launched
from tests.support.tiny import conversations, save_tiny

pytest.importorskip("bitsandbytes")


def launch_qlora(folder: Path, processes: int) -> tuple[dict, str]:
    """(result, what was printed) of `luthier launch`."""
    (folder / "recipe.yaml").write_text(
        f"""
model: {{name_or_path: {folder.parent}/tiny, dtype: float32}}
data: {{train: [{{path: {folder.parent}/rows.jsonl}}], max_length: 128, validation: {{fraction: 0.2}}}}
method: {{name: qlora}}
train: {{learning_rate: 1.0e-3, num_train_epochs: 3, tokens_per_step: 200, warmup_steps: 0}}
distributed: {{strategy: {"fsdp2" if processes > 1 else "auto"}}}
output_dir: {folder}/run
"""
    )
    return launched(folder / "recipe.yaml", processes)


@pytest.mark.slow
def test_qlora_in_shards_from_the_recipe_to_the_merged_model(tmp_path):
    save_tiny(tmp_path / "tiny")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations(13)))
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        found[processes] = (*launch_qlora(folder, processes), folder / "run")
    result, printed, run = found[2]
    assert result["stages"]["train"]["processes"] == 2
    assert "a shard of the model each (FSDP2)" in printed and "gatheredquantized matrices" in printed
    assert " dequantized matrices" in found[1][1]
    assert "merged model and adapter agree" in printed
    merged = [load_file(where / "merged/model.safetensors") for where in (found[1][2], run)]
    base = load_file(tmp_path / "tiny/model.safetensors")
    assert set(merged[0]) == set(merged[1]) == set(base)
    assert max(float((merged[1][name] - base[name]).abs().max()) for name in base) > 1e-4
    apart = max(float((merged[0][name] - merged[1][name]).abs().max()) for name in base)
    assert apart <= 5e-5, "the same steps, whatever the number of processes"
    assert all(torch.isfinite(tensor).all() for tensor in merged[1].values())
