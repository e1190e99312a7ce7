"""Contract: rows go to distilabel's folder and come from it; where distilabel is installed, it does both itself."""

from __future__ import annotations

import json

import pytest

from luthier.data.sources import read_conversations
from luthier.recipe.schema import Source
from luthier.runtime.errors import DataError, RecipeError
from luthier.synthesis.distiset import check_distiset, write_distiset
from luthier.synthesis.load import load_spec
from luthier.synthesis.modes.build import build_mode
from luthier.synthesis.templates import load_templates

datasets = pytest.importorskip("datasets")


def row(number):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": f"q{number}"},
                {"role": "assistant", "content": f"a{number}"}]  # fmt: skip
    return {"messages": messages, "provenance": {"model": "m", "time": "t"}}


def test_rows_become_a_distiset(tmp_path):
    write_distiset([row(1), row(2)], tmp_path / "set")
    data = datasets.load_from_disk(str(tmp_path / "set" / "default"))["train"]
    assert data["instruction"][:] == ["q1", "q2"] and data["generation"][:] == ["a1", "a2"]
    assert data["messages"][1] == row(2)["messages"] and json.loads(data["provenance"][0]) == row(1)["provenance"]
    assert data["distilabel_metadata"][0]["raw_output_luthier_0"] == "a1" and data["model_name"][0] == "m"
    with pytest.raises(RecipeError, match="exists"):
        check_distiset(tmp_path / "set", force=False)


def test_pairs_become_a_distiset(tmp_path):
    pair = {"prompt": row(1)["messages"][:2], "chosen": [row(1)["messages"][2]], "rejected": [row(2)["messages"][2]],
            "provenance": {}}  # fmt: skip
    write_distiset([pair], tmp_path / "set")
    data = datasets.load_from_disk(str(tmp_path / "set" / "default"))["train"]
    assert data["chosen"][0] == pair["chosen"] and data.column_names == ["prompt", "chosen", "rejected", "provenance"]


def distiset_like(number, generation):
    """A row as distilabel's TextGeneration leaves it."""
    text = f"Write about {number}."
    return {"instruction": text, "generation": generation, "model_name": "m", "distilabel_metadata": {
        "raw_input_text_generation_0": [{"role": "user", "content": text}], "raw_output_text_generation_0": generation,
        "statistics_text_generation_0": {"input_tokens": 4, "output_tokens": 9}}}  # fmt: skip


def made(tmp_path, *, split, second="Two."):
    """A folder as `Distiset.save_to_disk` or `push_to_hub` leaves it."""
    data = datasets.Dataset.from_list([distiset_like(1, "One."), distiset_like(2, second), distiset_like(3, "Three.")])
    if split == "parquet":
        (tmp_path / "hub" / "data").mkdir(parents=True)
        data.to_parquet(str(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet"))
        return str(tmp_path / "hub" / "data")
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "set" / "default"))
    return str(tmp_path / "set" / "default")


@pytest.mark.parametrize("split", ["parquet", "saved"])
def test_a_distiset_is_a_source_of_rows(tmp_path, split):
    path = made(tmp_path, split=split)
    source = Source(path=path, map={"user": "instruction", "assistant": "generation"})
    read = read_conversations(source, 0)
    assert [one.messages[-1]["content"] for one in read.conversations] == ["One.", "Two.", "Three."]
    file = tmp_path / "s.yaml"
    evolve = {"source": {"path": path, "map": {"user": "instruction", "assistant": "generation"}}}
    file.write_text(
        json.dumps({"mode": "evolve", "endpoint": {"base_url": "http://x/v1", "model": "m"}, "evolve": evolve})
    )
    assert build_mode(load_spec(file), load_templates()).total == 3


def test_a_generation_that_failed_is_null_there_and_an_error_with_its_row_here(tmp_path):
    source = Source(
        path=made(tmp_path, split="saved", second=None), map={"user": "instruction", "assistant": "generation"}
    )
    with pytest.raises(DataError, match="generation: expected string, got null") as caught:
        read_conversations(source, 0)
    assert [problem.line for problem in caught.value.problems] == [2]


def test_distilabel_itself_reads_and_writes_them(tmp_path):
    distiset = pytest.importorskip("distilabel.distiset")
    write_distiset([row(1), row(2)], tmp_path / "set")
    read = distiset.Distiset.load_from_disk(tmp_path / "set")
    assert read["default"]["train"]["generation"][:] == ["a1", "a2"]
    data = datasets.Dataset.from_list([distiset_like(1, "One.")])
    distiset.Distiset({"default": datasets.DatasetDict({"train": data})}).save_to_disk(
        tmp_path / "theirs", save_card=False, save_pipeline_config=False, save_pipeline_log=False
    )
    source = Source(path=str(tmp_path / "theirs" / "default"), map={"user": "instruction", "assistant": "generation"})
    assert read_conversations(source, 0).conversations[0].messages[-1]["content"] == "One."
