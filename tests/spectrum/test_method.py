"""Contract: exactly the chosen tensors train, from a scan or a file; the engine computes nothing for the others."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from luthier.data.batch import collate
from luthier.fast.decoder import function
from luthier.fast.decoder.bases import Dense
from luthier.fast.engine import attach
from luthier.model.save import save_trained
from luthier.pipeline.run import run_recipe
from luthier.recipe.load import recipe_from_dict
from luthier.report.read import read_run
from luthier.report.spectrum_view import Cell, heat_map, spectrum_view
from luthier.runs.folder import RunFolder
from luthier.runtime.errors import RecipeError
from tests.model.support import base_folder, prepare, section, train
from tests.support.tiny import conversations, save_tiny
from tests.train.support import examples

LIST = ("model.layers.1.mlp.down_proj", "model.layers.2.self_attn.q_proj")


def listed(folder, *patterns):
    (folder / "u.yaml").write_text("unfrozen_parameters:\n" + "".join(f"- {pattern}\n" for pattern in patterns))
    return str(folder / "u.yaml")


def changed(before, after):
    assert set(before) == set(after)
    return {name for name in before if before[name].numpy().tobytes() != after[name].numpy().tobytes()}


# -- the model


@pytest.mark.parametrize("tied", [False, True])
def test_the_listed_weights_change_and_all_others_keep_every_byte(tmp_path, tied):
    base = base_folder(tmp_path / "base", layers=3, tied=tied)
    tuned, tokenizer = prepare(
        section(base), name="spectrum", spectrum_file=listed(tmp_path, "^lm_head.weight$", *LIST)
    )
    train(tuned)
    save_trained(tuned.model, tokenizer, tmp_path / "out")
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    names = {head, *(f"{name}.weight" for name in LIST)}
    assert set(tuned.report.names) == names
    assert "q_proj x 1 of 3: 4,096" in tuned.report.lines()[1]
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert changed(before, after) == names


def test_patterns_that_match_nothing_are_all_named(tmp_path):
    base = base_folder(tmp_path / "base", layers=3)
    file = listed(tmp_path, "model.layers.7.mlp.down_proj", LIST[0], "layers.1.mlp")
    with pytest.raises(RecipeError) as caught:
        prepare(section(base), name="spectrum", spectrum_file=file)
    assert [problem.code for problem in caught.value.problems] == ["M332", "M332"]
    assert "layers.7" in str(caught.value) and "'layers.1.mlp'" in str(caught.value)


def test_without_a_scan_and_without_a_file_there_is_nothing_to_train(tmp_path):
    with pytest.raises(RecipeError, match="needs a selection"):
        prepare(section(base_folder(tmp_path / "base")), name="spectrum")


def test_a_bias_goes_with_its_module_and_is_told(tmp_path):
    base = base_folder(tmp_path / "base", layers=3, attention_bias=True)
    tuned, _ = prepare(section(base), name="spectrum", spectrum_file=listed(tmp_path, LIST[1]))
    assert set(tuned.report.names) == {f"{LIST[1]}.weight", f"{LIST[1]}.bias"}
    assert "1 biases" in tuned.report.notes[0]


def test_new_tokens_with_frozen_embeddings_are_refused(tmp_path):
    base = base_folder(tmp_path / "base", layers=3)
    with pytest.raises(RecipeError, match="embedding rows are frozen"):
        prepare(section(base, new_tokens=["<x>"]), name="spectrum", spectrum_file=listed(tmp_path, LIST[0]))


# -- the engine


def spied(monkeypatch, base, file):
    """(weight gradients computed, layers the backward pass went through, names with a gradient)."""
    tuned, _ = prepare(section(base), name="spectrum", spectrum_file=file)
    products, layers = [], []
    plain, backward = Dense.weight_gradient, function.backward_layer

    def gradient(self, g, x, rows):
        products.append((g.shape[1] if rows == slice(None) else rows.stop - rows.start, x.shape[1]))
        return plain(self, g, x, rows)

    def through(program, *args, **kwargs):
        layers.append(program.index)
        return backward(program, *args, **kwargs)

    monkeypatch.setattr(Dense, "weight_gradient", gradient)
    monkeypatch.setattr(function, "backward_layer", through)
    engine = attach(tuned.model)
    tuned.model.train()
    engine.loss(collate(examples(4))).loss.backward()
    with_gradient = {name for name, p in tuned.model.named_parameters() if p.grad is not None}
    return products, layers, with_gradient


def test_weight_gradients_are_computed_for_the_chosen_only_and_backward_stops_below_the_lowest(tmp_path, monkeypatch):
    base = base_folder(tmp_path / "base", layers=4)
    products, layers, names = spied(monkeypatch, base, listed(tmp_path, *LIST))
    assert sorted(products) == [(64, 64), (64, 128)], "q_proj of layer 2 without k and v, down_proj of layer 1"
    assert layers == [3, 2, 1], "layer 0 has nothing trained in it or below it"
    assert names == {f"{name}.weight" for name in LIST}


def test_with_embeddings_the_backward_pass_goes_to_the_bottom(tmp_path, monkeypatch):
    base = base_folder(tmp_path / "base", layers=4)
    products, layers, names = spied(monkeypatch, base, listed(tmp_path, "^model.embed_tokens.weight$", *LIST))
    assert len(products) == 2 and layers == [3, 2, 1, 0]
    assert names == {"model.embed_tokens.weight", *(f"{name}.weight" for name in LIST)}


def test_gradients_are_those_of_full_training(tmp_path):
    base = base_folder(tmp_path / "base", layers=3)
    found = {}
    for name, file in (("full", None), ("spectrum", listed(tmp_path, *LIST))):
        tuned, _ = prepare(section(base), name=name, **({"spectrum_file": file} if file else {}))
        tuned.model.train()
        attach(tuned.model).loss(collate(examples(4))).loss.backward()
        found[name] = {key: p.grad for key, p in tuned.model.named_parameters() if p.grad is not None}
    for name in LIST:
        torch.testing.assert_close(found["spectrum"][f"{name}.weight"], found["full"][f"{name}.weight"])


# -- a whole run


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tied model of six layers, rows, and one finished run with a scan."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "model", tied=True, layers=6)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations(24)))
    result = run_recipe(recipe(folder))
    return folder, result


def recipe(folder, **changes):
    value = {
        "model": {"name_or_path": str(folder / "model"), "dtype": "float32"},
        "data": {"train": [{"path": str(folder / "rows.jsonl")}], "max_length": 128},
        "method": {"name": "spectrum", "top_percent": 34.0},
        "train": {"max_steps": 4, "learning_rate": 1e-3, "tokens_per_step": 256},
        "output_dir": str(folder / "run"),
    }
    for key, change in changes.items():
        value[key] = {**value[key], **change} if isinstance(change, dict) and key != "method" else change
    return recipe_from_dict(value, origin="test")


def selection(run):
    return json.loads((run / "spectrum" / "selection.json").read_text())


def test_a_run_scans_and_changes_the_chosen_tensors_and_no_other_byte(world):
    folder, result = world
    trained = result.stages["train"]["method"]["names"]
    chosen = selection(folder / "run")
    wanted = {f"{module}.weight" for modules in chosen["chosen"].values() for module in modules}
    kinds = {"mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj", "self_attn.o_proj"}
    kinds |= {"self_attn.q_proj", "self_attn.v_proj"}
    assert {kind: len(modules) for kind, modules in chosen["chosen"].items()} == dict.fromkeys(kinds, 2)
    assert set(trained) == wanted | {"model.embed_tokens.weight"}
    before = load_file(folder / "model" / "model.safetensors")
    after = load_file(folder / "run" / "final" / "model.safetensors")
    assert changed(before, after) == set(trained)


def test_optimizer_states_and_checkpoints_hold_the_chosen_only(world):
    folder, result = world
    checkpoint = folder / "run" / result.stages["train"]["checkpoint"]
    trained = set(result.stages["train"]["method"]["names"])
    assert set(load_file(checkpoint / "trainable-00001.safetensors")) == trained
    states = load_file(checkpoint / "optimizer-00001.safetensors")
    assert {name.partition("/")[0] for name in states} == trained


def test_the_result_is_a_whole_model_that_loads_and_merges(world):
    from transformers import AutoModelForCausalLM

    folder, result = world
    assert result.stages["merge"]["passed"] is True
    for name in ("final", "merged"):
        AutoModelForCausalLM.from_pretrained(folder / "run" / name)


def test_the_file_of_the_run_trains_the_same_weights_bit_for_bit(world, tmp_path, monkeypatch):
    folder, result = world
    monkeypatch.setattr("luthier.spectrum.scan.scan_files", None)
    method = {"name": "spectrum", "spectrum_file": str(folder / "run" / "spectrum" / "unfrozen_parameters.yaml")}
    again = run_recipe(recipe(folder, method=method, output_dir=str(tmp_path / "run")), only=("data", "train"))
    assert again.stages["train"]["weights"] == result.stages["train"]["weights"]
    assert selection(tmp_path / "run")["scan"] is None


def test_a_second_call_reuses_everything_and_needs_neither_scan_nor_model(world, monkeypatch):
    folder, _ = world
    for name in (
        "luthier.model.load.load_base",
        "luthier.spectrum.scan.scan_files",
        "luthier.pipeline.spectrum.select",
    ):
        monkeypatch.setattr(name, None)
    again = run_recipe(recipe(folder))
    assert len(again.reused) == len(again.stages)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "spectrum", "top_percent": 50.0}, r"method\.top_percent: 34\.0 -> 50\.0"),
        ({"name": "spectrum", "top_percent": 34.0, "spectrum_score": "compat"}, r"method\.spectrum_score"),
    ],
)
def test_another_selection_is_another_run_and_is_not_resumed(world, tmp_path, change, words):
    folder, _ = world
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / "stages" / "train.json").unlink()
    with pytest.raises(RecipeError, match=words):
        run_recipe(recipe(folder, method=change, output_dir=str(tmp_path / "run")))


def test_a_list_that_changed_in_place_is_another_run(world, tmp_path):
    folder, _ = world
    file = listed(tmp_path, "model.layers.1.mlp")
    made = recipe(folder, method={"name": "spectrum", "spectrum_file": file}, output_dir=str(tmp_path / "run"))
    run_recipe(made, only=("data", "train"))
    assert run_recipe(made, only=("data", "train")).reused == ("data", "train")
    listed(tmp_path, "model.layers.2.mlp")
    (tmp_path / "run" / "stages" / "train.json").unlink()
    with pytest.raises(RecipeError, match=r"spectrum_file"):
        run_recipe(made, only=("data", "train"))


def test_the_plan_of_the_run_knows_what_the_scan_chose(world):
    folder, result = world
    plan = json.loads((folder / "run" / "plan.json").read_text())
    assert plan["trainable"] == result.stages["train"]["method"]["trainable"]
    assert plan["trained_how"] == "exact: chosen by the scan"


# -- the report


def test_the_report_maps_every_ranked_matrix_and_frames_the_chosen(world):
    folder, _ = world
    page = (folder / "run" / "report.html").read_text()
    section_ = page.split('<section id="spectrum">')[1].split("</section>")[0]
    frames = re.findall(
        r'class="heat( chosen)?".*?<title>([\w.]+), layer (\d+), score ([\d.e-]+): (\w+)</title>', section_
    )
    assert len(frames) == 7 * 6
    chosen = {f"model.layers.{layer}.{kind}" for mark, kind, layer, _, _ in frames if mark}
    assert chosen == {name for names in selection(folder / "run")["chosen"].values() for name in names}
    assert all((word == "trained") == bool(mark) for mark, _, _, _, word in frames)
    assert "best 34 % by the calibrated score" in section_ and "^model.embed_tokens.weight$" in section_


def test_the_darkest_of_a_row_is_its_best():
    cells = {"a": {0: Cell(score=0.1, chosen=0, tensors=1), 3: Cell(score=0.4, chosen=1, tensors=1)},
             "b": {1: Cell(score=None, chosen=2, tensors=8)}}  # fmt: skip
    svg = heat_map(cells)
    assert re.findall(r'fill-opacity="([\d.]+)"', svg) == ["0.08", "1.00", "0.50"]
    assert "b, layer 1: 2 of 8 trained" in svg and heat_map({}) == ""


def test_other_methods_have_no_such_section(world):
    run = read_run(RunFolder(world[0] / "run"))
    assert spectrum_view(run) is not None
    run.manifest["recipe"]["method"] = {"name": "lora"}
    assert spectrum_view(run) is None
