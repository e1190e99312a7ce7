"""Contract: one tensor at a time, every kind handled or named; a killed scan goes on; changed weights never reuse."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch

from luthier.runtime.errors import RecipeError, RunFailed
from luthier.spectrum import scan as scanning
from luthier.spectrum.results import load_scan, scan_file
from luthier.spectrum.scan import scan_files
from luthier.spectrum.select import select
from luthier.spectrum.tensors import list_tensors
from tests.spectrum.makers import noise, original_snr, planted, save, weights


def scan(files, folder, *, weights="hash", **kwargs):
    return scan_files(files, weights=weights, source="test", cache_dir=folder, **kwargs)


def same(one, other):
    return [(r.name, r.compat, r.calibrated) for r in one.results] == [
        (r.name, r.compat, r.calibrated) for r in other.results
    ]


def test_scores_are_those_of_the_tensors(tmp_path):
    tensors = weights(2)
    found = scan(save(tmp_path / "m", tensors), tmp_path)
    assert [r.name for r in found.results] == sorted(
        (name for name, tensor in tensors.items() if tensor.dim() == 2 and "layers" in name),
    )
    for result in found.results:
        assert result.compat == pytest.approx(original_snr(tensors[result.name]), rel=2e-4)
        assert result.how == "gram" and result.shape == tuple(tensors[result.name].shape)


def test_layers_come_in_the_order_of_the_model_and_shards_change_nothing(tmp_path):
    one, three = save(tmp_path / "one", weights(12)), save(tmp_path / "three", weights(12), shards=3)
    found = scan(one, tmp_path, weights="one")
    assert same(found, scan(three, tmp_path, weights="three"))
    layers = [int(r.name.split(".")[2]) for r in found.results]
    assert layers == sorted(layers), "10 after 9, not after 1"


def test_every_kind_of_tensor_is_ranked_or_named_with_a_reason(tmp_path):
    tensors = {
        "model.embed_tokens.weight": noise(64, 32).float(),
        "lm_head.weight": noise(64, 32).float(),
        "model.norm.weight": torch.ones(32),
        "model.rotary.table": noise(8, 8).float(),
        "model.layers.0.self_attn.qkv_proj.weight": noise(96, 32).half(),
        "model.layers.0.self_attn.qkv_proj.bias": torch.zeros(96),
        "model.layers.0.mlp.gate_up_proj.weight": noise(128, 32).bfloat16(),
        "model.layers.0.mlp.experts.gate_up_proj": planted(64, 32, [5.0]).float()[None].repeat(3, 1, 1),
        "model.layers.0.mlp.experts.1.w1.weight": noise(48, 32).double(),
        "model.layers.0.mlp.gate.weight": noise(4, 32).float(),
        "model.layers.0.mlp.down_proj.weight": noise(32, 48).to(torch.float8_e4m3fn),
        "model.layers.0.mlp.up_proj.qweight": torch.zeros(16, 32, dtype=torch.int32),
        "model.layers.0.conv.weight": noise(32, 12).reshape(32, 3, 4).float(),
    }
    found = scan(save(tmp_path / "m", tensors), tmp_path)
    ranked, skipped = {r.name: r for r in found.results}, dict(found.skipped)
    assert set(ranked) | set(skipped) == set(tensors) and not set(ranked) & set(skipped)
    assert set(ranked) == {name for name in tensors if "qkv_proj.weight" in name or "gate_up" in name} | {
        "model.layers.0.mlp.experts.1.w1.weight", "model.layers.0.mlp.gate.weight",
    }  # fmt: skip
    assert "quantised" in skipped["model.layers.0.mlp.down_proj.weight"]
    assert "I32" in skipped["model.layers.0.mlp.up_proj.qweight"]
    assert "embeddings and head" in skipped["lm_head.weight"]
    assert "1-D" in skipped["model.layers.0.self_attn.qkv_proj.bias"]
    assert "3-D" in skipped["model.layers.0.conv.weight"]
    assert "outside the layers" in skipped["model.rotary.table"]
    router = ranked["model.layers.0.mlp.gate.weight"]
    assert router.calibrated is None and router.compat > 0
    fused = ranked["model.layers.0.mlp.experts.gate_up_proj"]
    alone = original_snr(tensors["model.layers.0.mlp.experts.gate_up_proj"][0])
    assert fused.shape == (3, 64, 32) and fused.signal_rank == 3 and fused.compat == pytest.approx(alone, rel=2e-4)


def test_only_quantised_weights_are_an_error_that_says_so(tmp_path):
    files = save(tmp_path / "m", {"model.layers.0.q.weight": torch.zeros(8, 8, dtype=torch.uint8)})
    with pytest.raises(RecipeError, match="no matrix that can be ranked: stored as U8"):
        scan(files, tmp_path)


def test_nan_is_named(tmp_path):
    bad = weights(1)
    bad["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    with pytest.raises(RunFailed, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        scan(save(tmp_path / "m", bad), tmp_path)


def test_a_killed_scan_goes_on_where_it_was(tmp_path, monkeypatch):
    files = save(tmp_path / "m", weights(4))
    whole = scan(files, tmp_path / "whole")
    read, counted = scanning.read_tensor, []

    def dies(stored):
        if len(counted) == 5:
            raise KeyboardInterrupt
        counted.append(stored.name)
        return read(stored)

    monkeypatch.setattr(scanning, "read_tensor", dies)
    with pytest.raises(KeyboardInterrupt):
        scan(files, tmp_path / "cache")
    partial = scan_file(tmp_path / "cache", "hash").with_suffix(".partial.jsonl")
    assert len(partial.read_text().splitlines()) == 5 and load_scan(tmp_path / "cache", "hash") is None
    with partial.open("a") as stream:
        stream.write('{"name": "torn')  # as a kill in the middle of a line leaves it
    again = []
    monkeypatch.setattr(scanning, "read_tensor", lambda stored: again.append(stored.name) or read(stored))
    scan(files, tmp_path / "cache", weights="another hash")
    assert len(again) == len(whole.results), "what was found of other weights is not taken over"
    again.clear()
    assert same(scan(files, tmp_path / "cache"), whole)
    assert len(again) == len(whole.results) - 5 and not set(again) & set(counted)
    assert not partial.exists()


def test_a_finished_scan_is_read_and_other_weights_are_scanned(tmp_path, monkeypatch):
    files = save(tmp_path / "m", weights(2))
    first = scan(files, tmp_path)
    monkeypatch.setattr(scanning, "read_tensor", None)
    assert scan(files, tmp_path) == first
    with pytest.raises(TypeError):
        scan(files, tmp_path, weights="another hash")


@pytest.mark.parametrize("damage", ["not json", '{"version": 1}', "[]", "change"])
def test_a_damaged_result_is_not_used(tmp_path, damage):
    files = save(tmp_path / "m", weights(1))
    first = scan(files, tmp_path)
    path = scan_file(tmp_path, "hash")
    if damage == "change":
        damage = json.dumps({**json.loads(path.read_text()), "weights": "of another model"})
    path.write_text(damage)
    assert load_scan(tmp_path, "hash") is None
    assert same(scan(files, tmp_path), first)


def test_results_are_json_that_a_person_can_read(tmp_path):
    scan(save(tmp_path / "m", weights(1)), tmp_path)
    text = scan_file(tmp_path, "hash").read_text()
    entry = json.loads(text)["results"][0]
    assert "\n" in text and {"name", "shape", "compat", "calibrated", "signal_rank"} <= set(entry)


def test_matrices_in_batches_give_the_same_scores(tmp_path):
    """As a GPU takes them, here on the CPU."""
    files = save(tmp_path / "m", weights(6))
    alone = scan(files, tmp_path)
    groups = list(scanning._groups(list_tensors(files)[0], together=True))
    assert max(len(group) for group in groups) == 6
    together = {r.name: r for group in groups for r in scanning.score_tensors(group, "cpu")}
    for result in alone.results:
        assert together[result.name].calibrated == pytest.approx(result.calibrated, rel=1e-9)


def test_only_one_tensor_is_read_at_a_time(tmp_path, monkeypatch):
    """Counted: when a tensor is read, nobody holds an earlier one."""
    import weakref

    files = save(tmp_path / "m", weights(3))
    read, alive = scanning.read_tensor, []

    def watched(stored):
        assert sum(reference() is not None for reference in alive) == 0
        tensor = read(stored).clone()
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(scanning, "read_tensor", watched)
    assert len(scan(files, tmp_path).results) == len(alive) == 9


PEAK = """
    import resource, sys
    from pathlib import Path
    import torch
    from luthier.spectrum.scan import scan_files
    from luthier.runtime.console import set_quiet
    set_quiet(True)
    torch.linalg.eigvalsh(torch.eye(512, dtype=torch.float64) @ torch.eye(512, dtype=torch.float64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folder = Path(sys.argv[1])
    scan_files(sorted(folder.glob("*.safetensors")), weights="x", source="x", cache_dir=folder / "cache")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_the_peak_of_memory_is_a_small_part_of_the_model(tmp_path):
    """256 MB of weights in one file: the scan may need a few tensors' worth, never the whole."""
    tensor = noise(32, 32768).float()
    save(tmp_path / "m", {f"model.layers.{k}.mlp.up_proj.weight": tensor + k for k in range(64)})
    size = (tmp_path / "m" / "model.safetensors").stat().st_size
    command = [sys.executable, "-c", textwrap.dedent(PEAK), str(tmp_path / "m")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=200).stdout) * 1024
    assert size > 250e6 and grown < 0.35 * size


def test_the_chosen_are_the_best_of_each_type(tmp_path):
    found = scan(save(tmp_path / "m", weights(10)), tmp_path)
    for score in ("compat", "calibrated"):
        chosen = select(found, score=score, top_percent=30, train_embeddings=True, tied=True)
        assert set(chosen.chosen) == {"self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"}
        for kind, results in found.by_type(each_expert=False).items():
            best = sorted(results, key=lambda r: -r.score(score))[:3]
            assert chosen.chosen[kind] == tuple(r.name.removesuffix(".weight") for r in best)
        assert chosen.ends == ("^lm_head.weight$", "^model.embed_tokens.weight$")
    assert select(found, score=score, top_percent=30, train_embeddings=False, tied=True).ends == ()
    assert select(found, score=score, top_percent=30, train_embeddings=True, tied=False).ends == (
        "^model.embed_tokens.weight$",
    )


def test_a_share_that_chooses_nothing_is_an_error_with_the_smallest_that_does(tmp_path):
    found = scan(save(tmp_path / "m", weights(2)), tmp_path)
    with pytest.raises(RecipeError, match=r"top_percent` 30 of at most 2 tensors.*\n.*at least 50"):
        select(found, score="compat", top_percent=30, train_embeddings=True, tied=True)
    assert select(found, score="compat", top_percent=50, train_embeddings=True, tied=True).chosen


def test_experts_are_ranked_together_and_by_number_in_the_originals_way(tmp_path):
    tensors = {
        f"model.layers.{layer}.mlp.experts.{expert}.w1.weight": planted(32, 48, [2.0 + layer + 5 * expert]).float()
        for layer in range(4)
        for expert in range(2)
    }
    found = scan(save(tmp_path / "m", tensors), tmp_path)
    ours = select(found, score="calibrated", top_percent=25, train_embeddings=False, tied=False)
    assert ours.chosen == {"mlp.experts.*.w1": ("model.layers.3.mlp.experts.1.w1", "model.layers.2.mlp.experts.1.w1")}
    original = select(found, score="compat", top_percent=25, train_embeddings=False, tied=False)
    assert sorted(original.chosen) == ["mlp.experts.0.w1", "mlp.experts.1.w1"]
