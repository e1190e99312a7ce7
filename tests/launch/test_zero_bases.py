"""Slow: an fp8 base, DoRA and PiSSA under ZeRO-3 from the recipe to the merged model, on two real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.launch.support import launched
from tests.support.tiny import conversations, save_tiny

pytest.importorskip("deepspeed", reason="pip install 'luthier[deepspeed]'")
pytestmark = pytest.mark.slow
CASES = {
    "fp8": ("bfloat16, quantization: fp8", "name: lora"),
    "dora": ("float32", "name: lora, use_dora: true"),
    "pissa": ("float32", "name: lora, init_lora_weights: pissa"),
}
"""`model.dtype` with what follows it, `method`."""


def launch_case(folder: Path, name: str, processes: int) -> tuple[dict, str]:
    """(result, what was printed) of `luthier launch`; the strategy is that of a file beside the recipe."""
    model, method = CASES[name]
    (folder / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 3}, "train_batch_size": "auto"}))
    spread = f"distributed: {{strategy: auto, deepspeed_config: {folder}/ds.json}}" if processes > 1 else ""
    (folder / "recipe.yaml").write_text(
        f"""
model: {{name_or_path: {folder.parent}/tiny, dtype: {model}}}
data: {{train: [{{path: {folder.parent}/rows.jsonl}}], max_length: 128, validation: {{fraction: 0.2}}}}
method: {{{method}, r: 4}}
train: {{learning_rate: 1.0e-3, num_train_epochs: 3, tokens_per_step: 200, warmup_steps: 0, optim: adamw_torch}}
{spread}
output_dir: {folder}/run
"""
    )
    return launched(folder / "recipe.yaml", processes)


@pytest.mark.parametrize("name", CASES)
def test_from_the_recipe_to_the_merged_model(tmp_path, name):
    save_tiny(tmp_path / "tiny")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations(13)))
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        found[processes] = (*launch_case(folder, name, processes), folder / "run")
    result, printed, run = found[2]
    assert result["stages"]["train"]["processes"] == 2 and result["stages"]["train"]["strategy"] == "zero3"
    assert "masters and moments each (DeepSpeed ZeRO-3)" in printed
    wanted = {"fp8": "fp8 base: rounding fitted", "dora": "DoraLinearVariant", "pissa": "starts as pissa"}
    assert wanted[name] in printed and wanted[name] in found[1][1]
    assert "merged model and adapter agree" in printed
    merged = [load_file(where / "merged/model.safetensors") for where in (found[1][2], run)]
    base = load_file(tmp_path / "tiny/model.safetensors")
    assert set(merged[0]) == set(merged[1]) == set(base)
    assert max(float((merged[1][key].float() - base[key].float()).abs().max()) for key in base) > 1e-4
    apart = max(float((merged[0][key].float() - merged[1][key].float()).abs().max()) for key in base)
    assert apart <= (2e-3 if name == "fp8" else 5e-5)
