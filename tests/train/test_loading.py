"""Contract: a sharded model has every bit of the one loaded whole, and no process ever holds it whole.

One torchrun launch (two gloo processes) loads models that are made here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny import save_tiny, tiny_tokenizer
from tests.train.support import FULL
from tests.train.test_processes import half
from tests.train.worker import thirteen

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
CASES = [f"{name} {method} {dtype}" for name in ("plain", "tied", "old_names", "experts")
         for method in ("full", "lora") for dtype in ("float32", "bfloat16")]  # fmt: skip


def make_bases(folder: Path) -> None:
    odd = {"vocab_size": 601}  # rows that two processes cannot halve
    for name, settings in {"plain": {}, "tied": {"tied": True}, "old_names": {}, "nan": {}}.items():
        save_tiny(folder / name, **odd, **settings)
    file = folder / "old_names/model.safetensors"
    save_file({name.removeprefix("model."): t for name, t in load_file(file).items()}, file, {"format": "pt"})
    file = folder / "nan/model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][-1, -1] = float("inf")
    save_file(tensors, file, {"format": "pt"})
    save_tiny(folder / "large", hidden_size=512, intermediate_size=4096, layers=12, vocab_size=8192)
    from transformers import MixtralConfig, MixtralForCausalLM

    MixtralForCausalLM(MixtralConfig(
        vocab_size=600, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, bos_token_id=1, eos_token_id=2,
    )).save_pretrained(folder / "experts")  # fmt: skip
    tiny_tokenizer().save_pretrained(folder / "experts")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder, out = tmp_path_factory.mktemp("bases"), tmp_path_factory.mktemp("out")
    torch.manual_seed(0)
    make_bases(folder)
    whole = thirteen(out / "whole", 1, FULL)
    half(out / "whole", out / "resumed all")
    save_file({name: p.detach() for name, p in whole.model.named_parameters()}, out / "whole.safetensors")
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "LUTHIER_FORCE_CPU": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536", "LUTHIER_CACHE": str(out / "cache"),
    }  # fmt: skip
    launch = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "tests.train.load_worker", str(folder), str(out),
    ]  # fmt: skip
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    (out / "bases").symlink_to(folder)
    return out, [json.loads((out / f"facts-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES)
def test_every_bit_is_that_of_the_model_loaded_whole(found, case):
    for facts in found[1]:
        assert facts["processes"] == 2
        assert facts[case]["odd"] == [] and facts[case]["count"] > 15
        assert facts[case]["kinds"] == ["DTensor"]
        assert facts[case]["by_rows"] is case.startswith(("plain", "tied"))


def test_no_process_holds_the_model(found):
    """Its shard, the rows of one tensor and at most 32 MiB besides; a loaded model is 350 MiB."""
    for facts in found[1]:
        large = facts["large"]
        assert large["bytes"] > 300 * MIB and large["largest"] <= 17 * MIB
        assert large["made"] <= 32 * MIB, "without values it takes no memory"
        assert large["loading"] <= 0.5 * large["bytes"] + 2 * large["largest"] + 32 * MIB
        assert large["loading"] >= 0.5 * large["bytes"], "the shard itself is there"


def test_no_process_holds_the_result(found):
    """Files of 40 MB: process 0 holds one and what safetensors needs to write it."""
    first, second = (facts["large"]["writing"] for facts in found[1])
    assert first <= 2 * 40e6 + 2 * found[1][0]["large"]["largest"] + 32 * MIB
    assert second <= 3 * found[1][0]["large"]["largest"] + 16 * MIB
    written: dict[str, torch.Tensor] = {}
    files = sorted((found[0] / "large").glob("*.safetensors"))
    assert len(files) >= 8 and all(file.stat().st_size <= 40e6 + 1e5 for file in files)
    for file in files:
        written |= load_file(file)
    base = load_file(found[0] / "bases/large/model.safetensors")
    assert base.keys() == written.keys() and all(torch.equal(base[name], written[name]) for name in base)


def test_where_masters_live_changes_no_bit(found):
    """bf16, two passes a step, the CPU's AdamW in all three."""
    for facts in found[1]:
        assert facts["offloads"]["optimizer"] == facts["offloads"]["all"] == 0.0


def test_a_run_of_one_process_goes_on_offloaded(found):
    reference = load_file(found[0] / "whole.safetensors")
    for facts in found[1]:
        assert facts["offloads"]["resumed_from"] == 3
        for name, values in facts["offloads"]["weights"].items():
            expected = reference[name].double().flatten()[:64]
            assert float((torch.tensor(values, dtype=torch.float64) - expected).abs().max()) <= 5e-5, name


def test_a_value_that_is_not_finite_ends_all_with_its_name(found):
    for facts in found[1]:
        assert facts["nan"]["code"] == "M309"
        assert "model.layers.1.mlp.up_proj.weight" in facts["nan"]["text"]
