"""Contract: `luthier spectrum` scans once, lists what to train, and says what it left out; the plan needs no scan."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.model.adapters import apply_method
from luthier.pipeline.spectrum import is_tied, scan_model
from luthier.plan.known import known_model
from luthier.plan.shape import read_shape
from luthier.plan.sizes import sizes_of
from luthier.plan.trained import trainable_parameters
from luthier.recipe.load import recipe_from_dict
from luthier.recipe.resolve import recipe_to_dict
from luthier.recipe.schema import MethodSection
from luthier.runtime.errors import RecipeError
from luthier.spectrum.listing import read_listing
from luthier.spectrum.select import select
from tests.cli.calling import caller, make_world, write_recipe
from tests.cli.test_start import NO_TORCH
from tests.support.tiny import save_tiny, tiny_model


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp("spectrum"))
    save_tiny(folder / "deep", layers=6, tied=True)
    return folder


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LUTHIER_FORCE_CPU", "1")
    return caller(monkeypatch, capfd)


# -- the command


def test_the_table_names_types_layers_and_what_is_left_out(world, call):
    said = call("spectrum", world / "deep", "--top-percent", "50")
    assert said.code == 0, said
    for kind in ("mlp.down_proj", "self_attn.q_proj"):
        row = next(line for line in said.out.splitlines() if line.startswith(kind))
        assert row.split()[1] == "6" and " 3 " in row
    assert "^lm_head.weight$, ^model.embed_tokens.weight$" in said.out
    assert "1-D (a norm or a bias)" in said.out and "42 matrices scanned on the cpu" in said.out
    assert "spectrum: 42/42 tensors" in said.err


@pytest.mark.parametrize("score", ["calibrated", "compat"])
def test_the_written_list_is_what_json_says(world, call, tmp_path, score):
    said = call("spectrum", world / "deep", "--score", score, "--out", tmp_path / "u.yaml", "--json")
    assert said.code == 0, said
    value = said.json
    assert value["score"] == score and value["top_percent"] == 30 and len(value["scan"]["results"]) == 42
    assert list(read_listing(tmp_path / "u.yaml").patterns) == value["patterns"]
    assert len(value["patterns"]) == 2 + 7  # one of six layers for each of seven types
    assert call("spectrum", world / "deep", "--no-embeddings", "--json").json["ends"] == []


def test_a_second_scan_is_read_without_torch_and_a_changed_byte_is_another_model(world, call, tmp_path):
    folder = save_tiny(tmp_path / "m", layers=4)
    first = call("spectrum", folder, "--json").json
    script = NO_TORCH.format(arguments=["spectrum", str(folder), "--json"])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert "HEAVY []" in done.stderr
    assert json.loads(done.stdout) == first
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.ones(128, 64)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    again = call("spectrum", folder, "--json").json
    assert again["scan"]["weights"] != first["scan"]["weights"]
    assert "model.layers.2.mlp.up_proj" in again["chosen"]["mlp.up_proj"], "all signal now"


@pytest.mark.parametrize("percent", ["0", "-3", "101", "nan"])
def test_a_share_out_of_bounds_exits_2(world, call, percent):
    said = call("spectrum", world / "deep", "--top-percent", percent)
    assert said.code == 2 and "--top-percent" in said.err


def test_what_is_no_model_or_has_no_layer_to_choose_exits_2(world, call, tmp_path):
    for arguments in ([tmp_path / "none"], [world / "base"], [world / "rows.jsonl"], [world / "deep", "--score", "x"]):
        said = call("spectrum", *arguments)
        assert said.code == 2 and "Traceback" not in said.err, said
    assert "at least 50" in call("spectrum", world / "base").err, "30% of two layers is none"
    (tmp_path / "empty").mkdir()
    assert call("spectrum", tmp_path / "empty").code == 2


def test_a_truncated_file_is_an_error_and_leaves_no_result(call, tmp_path):
    folder = save_tiny(tmp_path / "m", layers=4)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    said = call("spectrum", folder)
    assert said.code == 4 and "M305" in said.err
    assert list((tmp_path / "cache").rglob("*-v1.json")) == []


# -- the plan


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", [{}, {"train_embeddings": False}, {"spectrum_score": "compat", "top_percent": 70.0}])
@pytest.mark.parametrize("bias", [False, True])
def test_the_plan_counts_what_a_scan_will_choose(tmp_path, monkeypatch, tied, method, bias):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    folder = save_tiny(tmp_path / "m", layers=5, tied=tied, attention_bias=bias)
    wanted = MethodSection(name="spectrum", **{"top_percent": 40.0, **method})
    chosen = select(
        scan_model(folder, source="m", device="cpu"), score=wanted.spectrum_score, top_percent=wanted.top_percent,
        train_embeddings=wanted.train_embeddings, tied=is_tied(folder),
    )  # fmt: skip
    model = tiny_model(layers=5, tied=tied, attention_bias=bias)
    report = apply_method(model, wanted, seed=0, unfrozen=chosen.patterns).report
    shape = read_shape(folder)
    assert trainable_parameters(shape, wanted) == report.trainable
    known = sizes_of(shape, wanted, chosen.patterns)
    assert known.trainable == report.trainable
    lowest = min(int(name.split(".")[2]) for name in report.names if ".layers." in name)
    assert known.lowest_layer == (0 if wanted.train_embeddings else lowest)
    assert sizes_of(shape, wanted).lowest_layer == 0, "without a scan the plan takes the worst case"


def test_the_published_share_of_the_8b_model_is_met():
    """shared/research/features.md 3.4: 30% is 3.014 B of 8.030 B, embeddings and head included."""
    shape = known_model("Llama-3.1-8B")
    assert trainable_parameters(shape, MethodSection(name="spectrum")) == pytest.approx(3.014e9, rel=1e-3)
    without = trainable_parameters(shape, MethodSection(name="spectrum", train_embeddings=False))
    assert without / shape.parameters == pytest.approx(0.244, abs=1e-3)


def test_plan_needs_no_torch_and_says_what_it_cannot_know(world, tmp_path):
    recipe = write_recipe(tmp_path / "r.yaml", world, method="spectrum", model={"name_or_path": str(world / "deep")})
    script = NO_TORCH.format(arguments=["plan", str(recipe), "method.train_embeddings=false"])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stderr
    assert "which layers only a scan (`luthier spectrum`) tells; layer 0 is taken" in " ".join(done.stdout.split())


def test_plan_reads_the_list_and_refuses_one_of_another_model(world, tmp_path, call):
    recipe = write_recipe(tmp_path / "r.yaml", world, method="spectrum", model={"name_or_path": str(world / "deep")})
    (tmp_path / "u.yaml").write_text("unfrozen_parameters:\n- model.layers.3.mlp.up_proj\n")
    said = call("plan", recipe, "--json", f"method.spectrum_file={tmp_path / 'u.yaml'}")
    assert said.code == 0, said
    assert said.json["trainable"] == 64 * 128 and "u.yaml" in said.json["trained_how"]
    (tmp_path / "u.yaml").write_text("unfrozen_parameters:\n- model.layers.30.mlp.up_proj\n")
    said = call("plan", recipe, f"method.spectrum_file={tmp_path / 'u.yaml'}")
    assert said.code == 2 and "M332" in said.err and "layers.30" in said.err
    assert "names here: " in said.err and "model.layers.N." in said.err


# -- the recipe


def checked(method, **model):
    value = {"model": {"name_or_path": "org/name", **model}, "data": {"train": [{"path": "org/rows"}]}}
    return recipe_from_dict({**value, "method": method, "output_dir": "runs/x"}, origin="r")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "spectrum", "r": 8}, "method spectrum has no adapters"),
        ({"name": "lora", "top_percent": 20.0}, "it is for method spectrum, not lora"),
        ({"name": "full", "spectrum_file": "u.yaml"}, "it is for method spectrum, not full"),
        ({"name": "spectrum", "last_n_layers": 2}, "it is for method freeze, not spectrum"),
        ({"name": "spectrum", "spectrum_file": "./none.yaml"}, "no such file"),
        ({"name": "spectrum", "top_percent": 0.0}, "a number > 0 and <= 100"),
        ({"name": "spectrum", "spectrum_score": "snr"}, "calibrated"),
        ({"name": "spectrum", "spectrum_top_fraction": 0.5}, "top_percent"),
    ],
)
def test_keys_that_do_not_go_together_are_told(method, words):
    with pytest.raises(RecipeError, match=words):
        checked(method)


def test_a_file_excludes_the_keys_of_a_scan(tmp_path):
    (tmp_path / "u.yaml").write_text("unfrozen_parameters: [a]\n")
    file = str(tmp_path / "u.yaml")
    with pytest.raises(RecipeError) as caught:
        checked({"name": "spectrum", "spectrum_file": file, "top_percent": 20.0, "train_embeddings": False})
    assert [problem.code for problem in caught.value.problems] == ["C111", "C111"]
    kept = recipe_to_dict(checked({"name": "spectrum", "spectrum_file": file}))["method"]
    kept = {key: value for key, value in kept.items() if value is not None}
    assert kept == {"name": "spectrum", "spectrum_file": file}
    scanned = recipe_to_dict(checked({"name": "spectrum"}))["method"]
    assert {key for key, value in scanned.items() if value is not None} == {
        "name", "top_percent", "spectrum_score", "train_embeddings",
    }  # fmt: skip


def test_packed_weights_cannot_be_trained():
    with pytest.raises(RecipeError, match="method spectrum trains the weights themselves"):
        checked({"name": "spectrum"}, quantization="nf4")
