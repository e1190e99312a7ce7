"""Contract: our file is the original's, byte for byte in form; theirs are read; what matches nothing is named."""

import pytest

from luthier.runtime.errors import RecipeError
from luthier.spectrum.listing import listing, matching, read_listing, unmatched
from luthier.spectrum.names import layer_of, natural_order, type_of
from luthier.spectrum.scan import scan_files
from luthier.spectrum.select import pattern_of, select
from tests.spectrum.makers import original_snr, save, weights


def original_file(tensors, top_percent):
    """`generate_unfrozen_params_yaml` of the original script over its own scores."""
    by_type = {}
    for name in sorted(tensors, key=natural_order):
        if tensors[name].dim() == 2 and "layers" in name:
            module = name.removesuffix(".weight")
            parts = module.split(".")
            first = next(i for i, part in enumerate(parts) if part.isdigit())
            by_type.setdefault(".".join(parts[first + 1 :]), []).append((module, original_snr(tensors[name])))
    text = "unfrozen_parameters:\n- ^lm_head.weight$\n- ^model.embed_tokens.weight$\n"
    for kind in sorted(by_type):
        layers = sorted(by_type[kind], key=lambda x: x[1], reverse=True)[: int(len(by_type[kind]) * top_percent / 100)]
        text += f"# {kind} layers\n" + "".join(f"- {name}\n" for name, _ in layers)
    return text


@pytest.mark.parametrize("percent", [25, 30, 50])
def test_the_compat_file_is_that_of_the_original_script_byte_for_byte(tmp_path, percent):
    tensors = weights(12)
    scan = scan_files(save(tmp_path / "m", tensors), weights="x", source="x", cache_dir=tmp_path)
    chosen = select(scan, score="compat", top_percent=percent, train_embeddings=True, tied=True)
    assert listing(chosen) == original_file(tensors, percent)


def test_what_is_written_is_read(tmp_path):
    scan = scan_files(save(tmp_path / "m", weights(5)), weights="x", source="x", cache_dir=tmp_path)
    chosen = select(scan, score="calibrated", top_percent=40, train_embeddings=True, tied=True)
    (tmp_path / "u.yaml").write_text(listing(chosen))
    read = read_listing(tmp_path / "u.yaml")
    assert read.patterns == chosen.patterns and read.chosen == chosen.chosen and read.ends == chosen.ends


def test_a_list_inside_an_axolotl_recipe_is_read_and_the_rest_is_said_to_be_not(tmp_path, capsys):
    (tmp_path / "axolotl.yml").write_text(
        "base_model: x\nunfrozen_parameters:\n  - ^lm_head.weight$\n  - model.layers.1.mlp.down_proj\nseed: 1\n"
    )
    assert read_listing(tmp_path / "axolotl.yml").patterns == ("^lm_head.weight$", "model.layers.1.mlp.down_proj")
    assert "2 other keys are not: base_model, seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layers: [a]\n", "has no list `unfrozen_parameters`"),
        ("unfrozen_parameters: []\n", "has no list `unfrozen_parameters`"),
        ("- a\n", "has no list"),
        ("unfrozen_parameters: [a\n", "M330"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, text, words):
    (tmp_path / "u.yaml").write_text(text)
    with pytest.raises(RecipeError, match=words):
        read_listing(tmp_path / "u.yaml")
    with pytest.raises(RecipeError, match="cannot read"):
        read_listing(tmp_path / "none.yaml")


def test_all_bad_entries_are_told_at_once_with_their_lines(tmp_path):
    (tmp_path / "u.yaml").write_text("unfrozen_parameters:\n- good\n- (\n- 3\n")
    with pytest.raises(RecipeError) as caught:
        read_listing(tmp_path / "u.yaml")
    assert [(problem.code, problem.line) for problem in caught.value.problems] == [("M330", 3), ("M330", 4)]


def test_names_are_matched_from_their_start():
    names = ["model.layers.1.a.weight", "model.layers.11.a.weight", "model.layers.1.a.bias", "lm_head.weight"]
    assert matching(["model.layers.1.a"], names) == [names[0], names[2]]
    assert matching(["^lm_head.weight$"], names) == [names[3]]
    assert unmatched(["layers.1.a", "model.layers.2"], names) == ["layers.1.a", "model.layers.2"]


def test_a_module_whose_name_begins_another_is_written_whole():
    names = ["model.layers.0.mlp.gate.weight", "model.layers.0.mlp.gate_proj.weight"]
    assert pattern_of(names[0], names) == "model.layers.0.mlp.gate.weight$"
    assert pattern_of(names[1], names) == "model.layers.0.mlp.gate_proj"
    assert matching([pattern_of(names[0], names)], names) == [names[0]]


@pytest.mark.parametrize(
    ("name", "layer", "kind", "original"),
    [
        ("model.layers.7.self_attn.q_proj.weight", 7, "self_attn.q_proj", "self_attn.q_proj"),
        ("model.layers.7.mlp.experts.3.w1.weight", 7, "mlp.experts.*.w1", "mlp.experts.3.w1"),
        ("model.layers.7.mlp.experts.gate_up_proj", 7, "mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj"),
        ("transformer.h.11.attn.c_attn.weight", 11, "attn.c_attn", "attn.c_attn"),
        ("lm_head.weight", None, "lm_head", "lm_head"),
    ],
)
def test_layers_and_types_of_names(name, layer, kind, original):
    assert (layer_of(name), type_of(name), type_of(name, each_expert=True)) == (layer, kind, original)
