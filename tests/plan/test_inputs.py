"""Contract: lengths come from the data stage, from local files, or from assumptions that are told apart."""

import json

import pytest

from luthier.plan import inputs
from luthier.plan.inputs import documents_of, shape_of
from luthier.plan.work import assumed_documents, documents_from_lengths, documents_from_manifest
from luthier.recipe.load import recipe_from_dict
from luthier.recipe.schema import Source
from luthier.runs.folder import RunFolder
from luthier.runtime.errors import AccessError, DataError
from tests.support.tiny import conversations, save_tiny


def _recipe(tmp_path, path, **data):
    return recipe_from_dict(
        {
            "model": {"name_or_path": "meta-llama/Llama-3.1-8B"},
            "data": {"train": [{"path": str(path)}], **data},
            "output_dir": str(tmp_path / "run"),
        },
        origin="test",
    )


def test_a_local_file_is_looked_at(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in conversations(50)))
    found = documents_of(_recipe(tmp_path, rows))
    words = [len((m["content"]).split()) for row in conversations(50) for m in row["messages"]]
    assert found.rows == 50
    assert found.tokens == pytest.approx(1.09 * sum(words) + 5 * len(words), rel=0.02)
    assert "all rows" in found.how and 0.3 < found.supervised < 0.7


def test_many_rows_are_sampled_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "SAMPLE", 20)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in conversations(200)))
    found = documents_of(_recipe(tmp_path, rows))
    assert found.rows == 200 and "the first 20 rows" in found.how
    half = {"path": str(rows), "weight": 0.5, "limit": 100}
    found = documents_of(_recipe(tmp_path, rows, train=[half]))
    assert found.rows == 50


@pytest.mark.parametrize(
    ("validation", "trained"),
    [({"fraction": 0.2}, 160), ({"fraction": 0.2, "max_rows": 10}, 190), ({"path": "held_out.jsonl"}, 200)],
)
def test_rows_that_are_held_out_are_not_trained(tmp_path, validation, trained):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in conversations(200)))
    recipe = _recipe(tmp_path, rows)
    section = recipe.data.validation.model_copy(update=validation)
    held_out = recipe.model_copy(update={"data": recipe.data.model_copy(update={"validation": section})})
    whole, found = documents_of(recipe), documents_of(held_out)
    assert found.rows == trained
    assert found.tokens == pytest.approx(whole.tokens * trained / 200, rel=0.01)


def test_the_estimate_of_tokens_is_near_the_real_tokenizer(tmp_path):
    """Words of the fixture against a byte-level BPE that was trained on such words: one token or a little more each."""
    from tests.support.tiny import tiny_tokenizer

    tokenizer, rows = tiny_tokenizer(), conversations(100)
    texts = [message["content"] for row in rows for message in row["messages"]]
    real = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    assert sum(inputs._count(text) for text in texts) == pytest.approx(real, rel=0.25)


@pytest.mark.parametrize("path", ["org/set-on-a-hub", "rows.csv.gz"])
def test_what_cannot_be_read_is_an_assumption_that_says_so(tmp_path, path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if path.endswith("gz"):
        (tmp_path / path).write_bytes(b"not gzip")
    found = documents_of(_recipe(tmp_path, path))
    assert found.how.count("(assumed)") == 3 and "not looked at" in found.how
    assert found.mean_tokens == 300 and found.rows == 10_000


def test_given_numbers_win(tmp_path):
    found = documents_of(_recipe(tmp_path, "org/set"), mean_tokens=100, rows=7)
    assert (found.rows, found.tokens) == (7, 700)
    assert "7 rows, 100 tokens a row, 60% of the tokens trained (assumed)" in found.how


def test_a_finished_data_stage_is_exact_while_the_recipe_is_the_same(tmp_path):
    recipe = _recipe(tmp_path, "org/set")
    run = RunFolder(tmp_path / "run").create()
    manifest = {
        "rows_used": 10, "tokens": 1000, "trained_fraction": 0.25, "packs": 2,
        "lengths": {"min": 50, "p50": 100, "p95": 150, "max": 150, "histogram": [[50, 100, 5], [100, 151, 5]]},
    }  # fmt: skip
    (run.path / "data").mkdir()
    (run.path / "data" / "manifest.json").write_text(json.dumps(manifest))
    run.finish_stage("data", depends_on={"data": recipe.data.model_dump(mode="json")}, result={}, seconds=1)
    found = documents_of(recipe)
    assert (found.rows, found.tokens, found.sequences, found.supervised) == (10, 1000, 2, 0.25)
    assert found.how.startswith("exact")
    assert found.squares_per_token == pytest.approx(100.0 + 25.0**2 / 100.0, rel=0.1)
    other = _recipe(tmp_path, "org/set", max_length=99)
    assert "assumed" in documents_of(other).how


def test_rows_above_the_limit_are_dropped_or_cut():
    lengths = [(100, 50, 2.0), (300, 100, 1.0)]
    dropped = documents_from_lengths(lengths, max_length=200, packing=True, overlong="drop", how="x")
    assert (dropped.rows, dropped.tokens, dropped.squares, dropped.supervised) == (2, 200, 20_000.0, 0.5)
    cut = documents_from_lengths(lengths, max_length=200, packing=False, overlong="truncate", how="x")
    assert (cut.rows, cut.tokens, cut.sequences, cut.longest_sequence) == (3, 400, 3, 200)
    with pytest.raises(DataError, match="longer than 50"):
        documents_from_lengths(lengths, max_length=50, packing=True, overlong="drop", how="x")


def test_assumed_packs_hold_their_tokens():
    for mean in (10, 300, 1000, 5000):
        for rows in (1, 3, 10_000):
            found = assumed_documents(max_length=1024, packing=True, mean_tokens=mean, rows=rows)
            assert found.sequences <= rows and found.sequence_tokens <= 1024


def test_squares_of_a_manifest_are_at_least_those_of_equal_lengths():
    manifest = {
        "rows_used": 4, "tokens": 40, "trained_fraction": 0.5, "packs": 1,
        "lengths": {"max": 10, "histogram": [[10, 11, 4]]},
    }  # fmt: skip
    assert documents_from_manifest(manifest, max_length=64, packing=True, how="x").squares == 400.0


def test_known_names_need_no_hub_and_unknown_ones_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert shape_of(_recipe(tmp_path, "org/set")).parameters == 8_030_261_248
    unknown = _recipe(tmp_path, "org/set")
    unknown = unknown.model_copy(update={"model": unknown.model.model_copy(update={"name_or_path": "org/unknown"})})
    with pytest.raises(AccessError):
        shape_of(unknown)


def test_a_local_folder_wins_over_a_known_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta-llama").mkdir()
    save_tiny(tmp_path / "meta-llama" / "Llama-3.1-8B")
    assert shape_of(_recipe(tmp_path, "org/set")).parameters < 1_000_000


def test_pairs_are_looked_at_with_their_prompt_once(tmp_path):
    rows = tmp_path / "rows.jsonl"
    pair = {"prompt": "one two three", "chosen": "four five", "rejected": "six"}
    rows.write_text((json.dumps(pair) + "\n") * 20 + json.dumps({**pair, "rejected": "six " * 300}) + "\n")
    recipe = _recipe(tmp_path, rows, max_length=64)
    recipe = recipe.model_copy(update={"objective": recipe.objective.model_copy(update={"name": "dpo"})})
    chat = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"train": [Source(path=str(rows), map={"user": "prompt"})]})}
    )
    found = documents_of(chat)
    assert found.rows == 20 and "all rows" in found.how, "the long pair is dropped"
    assert found.tokens == pytest.approx(20 * (1.09 * 6 + 3 * 5), abs=20)
    assert 0 < found.supervised < 1 and found.longest_sequence == 128
    assert found.sequences == pytest.approx(found.tokens / 128, rel=0.3)
    sft = documents_of(recipe.model_copy(update={"objective": recipe.objective.model_copy(update={"name": "sft"})}))
    assert "the rows are pairs" in sft.how


def test_a_finished_data_stage_of_pairs_has_its_own_capacity():
    manifest = {
        "rows_used": 10, "tokens": 1_000, "trained_fraction": 0.5, "packs": 5, "pack_capacity": 256,
        "lengths": {"min": 90, "max": 110, "histogram": [[90, 111, 10]]},
    }  # fmt: skip
    assert documents_from_manifest(manifest, max_length=128, packing=True, how="x").longest_sequence == 256
    del manifest["pack_capacity"]
    assert documents_from_manifest(manifest, max_length=128, packing=True, how="x").longest_sequence == 128
