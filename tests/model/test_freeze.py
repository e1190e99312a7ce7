"""Contract: exactly the selected weights train, each pattern matches something, frozen weights keep every byte."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from luthier.model.save import save_trained
from luthier.runtime.errors import RecipeError
from tests.model.support import base_folder, prepare, section, train


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("base") / "base", layers=3)


@pytest.mark.parametrize(
    ("method", "selected"),
    [
        ({"trainable": [r"layers\.0\.mlp"]}, lambda name: "layers.0.mlp" in name),
        ({"trainable": ["norm"]}, lambda name: "norm" in name),
        ({"last_n_layers": 2}, lambda name: ".layers.1." in name or ".layers.2." in name),
        ({"last_n_layers": 1, "trainable": ["lm_head"]}, lambda name: ".layers.2." in name or "lm_head" in name),
    ],
)
def test_selected_weights_change_and_frozen_ones_are_byte_identical_in_the_export(base, tmp_path, method, selected):
    tuned, tokenizer = prepare(section(base), name="freeze", **method)
    train(tuned)
    save_trained(tuned.model, tokenizer, tmp_path / "out")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(before) == set(after)
    names = {name for name in before if selected(name)}
    assert set(tuned.report.names) == names
    assert 0 < len(names) < len(before)
    for name in before:
        same = before[name].numpy().tobytes() == after[name].numpy().tobytes()
        assert same == (name not in names), name


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"trainable": ["norm", r"layers\.7\."]}, r"'layers\\\\.7\\\\.', which matches no parameter"),
        ({"trainable": ["("]}, "no regular expression"),
        ({"last_n_layers": 4}, r"is 4, but the model has 3 layers"),
        ({}, "selects nothing"),
    ],
)
def test_a_selection_that_matches_nothing_is_an_error(base, method, words):
    with pytest.raises(RecipeError, match=words) as caught:
        prepare(section(base), name="freeze", **method)
    assert caught.value.exit_code == 2


def test_all_bad_patterns_are_reported_at_once(base):
    with pytest.raises(RecipeError) as caught:
        prepare(section(base), name="freeze", trainable=["nope", "norm", "neither"], last_n_layers=9)
    assert [problem.code for problem in caught.value.problems] == ["M322", "M322", "M323"]


def test_a_tied_head_is_selected_by_either_name_and_said_to_be_shared(tmp_path):
    base = base_folder(tmp_path / "tied", tied=True)
    tuned, _ = prepare(section(base), name="freeze", trainable=["lm_head"])
    assert tuned.report.names == ("model.embed_tokens.weight",)
    assert "lm_head.weight shares its weight" in tuned.report.notes[0]


def test_new_tokens_with_frozen_embeddings_are_refused(base):
    with pytest.raises(RecipeError, match="embedding rows are frozen"):
        prepare(section(base, new_tokens=["<x>"]), name="freeze", last_n_layers=1)
    prepare(section(base, new_tokens=["<x>"]), name="freeze", trainable=["embed_tokens", "lm_head"])


def test_the_largest_list_of_equal_modules_is_taken_for_the_layers(base):
    tuned, _ = prepare(section(base), name="freeze", last_n_layers=3)
    assert {name.split(".")[2] for name in tuned.report.names} == {"0", "1", "2"}
    assert torch.is_tensor(tuned.model.lm_head.weight)
