"""Rows on disk are the rows in memory: ids, weights, refs, split, mixture, packs, manifest; found again by their bytes.

Mutations tried by hand (each makes tests here fail): runs cut one token short; offsets of ids counted in bytes.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from luthier.data import streaming
from luthier.data.prepare import prepare
from luthier.data.stored import RowStore, RowWriter, StoredRows
from luthier.data.types import Example, RowRef
from luthier.runtime.errors import DataError
from tests.data.test_prepare import row, run, section, write
from tests.support.often import often
from tests.support.tiny import CHATML, conversations, tiny_tokenizer

HEAVY = [
    {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "one two", "weight": 0.3},
                  {"role": "user", "content": "R"}, {"role": "assistant", "content": "three four"}]},
    row("Q", "ein <|im_end|> zwei"), row("w " * 200, "too long"), row("same", "same"), row("same", "same"),
]  # fmt: skip
OPTIONS = [
    {}, {"packing": False}, {"loss_on": "all"}, {"overlong": "truncate"}, {"on_empty": "drop"},
    {"validation": {"fraction": 0.3}}, {"validation": {"fraction": 0.5, "max_rows": 5}}, {"max_length": 40},
]  # fmt: skip


@pytest.fixture
def sources(tmp_path):
    one = write(tmp_path / "a.jsonl", [*conversations(40, turns=2), *HEAVY])
    two = write(tmp_path / "b.jsonl", conversations(25, seed=3))
    return [{**one, "weight": 1.5}, {**two, "weight": 0.5}]


def both(sources, **options):
    return run(sources, streaming=False, **options), run(sources, streaming=True, **options)


def comparable(manifest):
    return {name: value for name, value in manifest.items() if name not in {"cache", "streaming"}}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_everything_is_as_in_memory(sources, options):
    memory, disk = both(sources, **options)
    assert isinstance(disk.train, StoredRows) and isinstance(memory.train, list)
    assert [(list(e.ids), list(e.weights), str(e.ref), tuple(e.notes)) for e in disk.train] == [
        (list(e.ids), list(e.weights), str(e.ref), tuple(e.notes)) for e in memory.train
    ]
    assert [str(e.ref) for e in disk.validation] == [str(e.ref) for e in memory.validation]
    assert [(p.examples, p.tokens) for p in disk.packs] == [(p.examples, p.tokens) for p in memory.packs]
    assert comparable(json.loads(json.dumps(disk.manifest))) == comparable(json.loads(json.dumps(memory.manifest)))
    assert disk.manifest["streaming"]["rows"] >= 70 and disk.manifest["streaming"]["bytes"] > 5_000


def test_a_validation_file_and_what_stands_in_both_sets(sources, tmp_path):
    held_out = write(tmp_path / "v.jsonl", [row("same", "same"), row("own", "row")])
    memory, disk = both(sources, validation={"path": held_out["path"]})
    assert comparable(disk.manifest) == comparable(memory.manifest)
    assert disk.manifest["train_validation_overlap"] == 1 and disk.manifest["duplicates"] == 1
    assert contents_of(disk) == contents_of(memory)


def contents_of(prepared):
    return [(list(e.ids), list(e.weights), str(e.ref)) for part in (prepared.train, prepared.validation) for e in part]


def test_a_mixture_takes_the_same_rows(sources):
    shared = [{"path": source["path"], "share": share} for source, share in zip(sources, (0.3, 0.7), strict=True)]
    for mix in ({"by": "rows"}, {"by": "tokens", "stop": "all_exhausted"}, {"size": 900}):
        memory, disk = both(shared, mix=mix)
        assert contents_of(disk) == contents_of(memory) and disk.manifest["mix"] == memory.manifest["mix"]


def test_rows_are_a_sequence(sources):
    disk = run(sources, streaming=True)
    rows = disk.train
    assert len(rows) == len(list(rows)) == disk.manifest["rows_used"]
    assert isinstance(rows[0], Example) and isinstance(rows[0].ids, array)
    assert [str(e.ref) for e in rows[2:5]] == [str(rows[index].ref) for index in (2, 3, 4)]
    assert str(rows[-1].ref) == str(list(rows)[-1].ref)
    with pytest.raises(IndexError):
        rows[len(rows)]


# --- refusals -----------------------------------------------------------------------------------------------------


def test_what_asks_for_all_rows_is_refused_by_name(sources, tmp_path):
    with pytest.raises(DataError, match=r"D248.*`data\.dedup`"):
        run(sources, streaming=True, dedup={})
    with pytest.raises(DataError, match=r"D248.*`data\.validation\.near_duplicates`"):
        run(sources, streaming=True, validation={"fraction": 0.1, "near_duplicates": 0.8})
    pairs = write(tmp_path / "p.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(DataError, match=r"D248.*rows of kind pairs"):
        prepare(section(pairs, streaming=True), tiny_tokenizer(), seed=0, kind="pairs")


def test_problems_of_all_sources_come_together_and_nothing_is_kept(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text('{"messages": [}\n')
    two.write_text("nonsense\n")
    with pytest.raises(DataError) as caught:
        run([{"path": str(one)}, {"path": str(two)}], streaming=True, cache_dir=tmp_path / "cache")
    assert {p.file for p in caught.value.problems} == {str(one), str(two)}
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_refused_rows_are_told_from_the_cache_too(tmp_path):
    bad = write(tmp_path / "bad.jsonl", [row("Q", "A"), row("Q", "A B <|im_end|>")])
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            run(bad, streaming=True, control_tokens="error", cache_dir=tmp_path / "cache")
        assert [(p.code, p.line) for p in caught.value.problems] == [("D223", 2)]


# --- by itself ----------------------------------------------------------------------------------------------------


def test_large_files_are_streamed_and_the_reason_is_said(sources, monkeypatch, capsys):
    assert "streaming" not in run(sources).manifest
    monkeypatch.setattr(streaming, "free_memory_bytes", lambda: 1_000_000)
    assert run(sources).manifest["streaming"]["rows"] >= 70
    assert "rows are kept on disk: the rows would take about 0.0 GiB" in capsys.readouterr().err.replace("\n", " ")
    assert "streaming" not in run(sources, streaming=False).manifest
    assert "streaming" not in run(sources, validation={"fraction": 0.2, "near_duplicates": 0.8}).manifest
    assert "they stay in memory, because `data.validation.near_duplicates`" in capsys.readouterr().err.replace(
        "\n", " "
    )


# --- the cache ----------------------------------------------------------------------------------------------------


def test_unchanged_files_hit_without_being_read(sources, tmp_path, monkeypatch):
    first = run(sources, streaming=True, cache_dir=tmp_path / "cache")
    monkeypatch.setattr("luthier.data.row_cache.Reading", None)
    again = run(sources, streaming=True, cache_dir=tmp_path / "cache", packing=False, seed=3)
    assert (first.manifest["cache"], again.manifest["cache"]) == ("miss: first time", "hit")
    assert again.manifest["mask_proof"] == first.manifest["mask_proof"]
    assert again.manifest["sources"] == first.manifest["sources"]


def test_any_change_that_matters_misses_and_says_why(sources, tmp_path):
    def state(tokenizer=None, rows=sources, **options):
        told = run(rows, tokenizer, streaming=True, cache_dir=tmp_path / "cache", **options).manifest["cache"]
        if rows is sources and data == file.read_bytes():
            assert run(sources, streaming=True, cache_dir=tmp_path / "cache").manifest["cache"] == "hit"
        return told

    file = tmp_path / "b.jsonl"
    data = file.read_bytes()
    assert state() == "miss: first time" and state() == "hit"
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<note>")])
    assert state(tokenizer) == "miss: tokenizer changed and added tokens changed"
    assert state(tiny_tokenizer(chat_template="{# x #}" + CHATML)) == "miss: chat template changed"
    assert state(max_length=64) == "miss: max_length changed"
    assert state(overlong="truncate") == "miss: overlong changed"
    assert state(on_empty="drop") == "miss: on_empty changed"
    limited = [{**sources[0], "limit": 7}, sources[1]]
    assert state(rows=limited) == "miss: format, map, system or limit changed"
    file.write_bytes(data.replace(b'content": "', b'content": "x', 1))
    assert state() == "miss: rows changed"
    assert len(list((tmp_path / "cache" / "rows").iterdir())) == 4  # the oldest are let go


@pytest.mark.parametrize("name", ["ids.bin", "runs.bin", "rows.bin", "rows.json"])
def test_a_damaged_entry_is_made_again(sources, tmp_path, name):
    first = run(sources, streaming=True, cache_dir=tmp_path / "cache")
    expected = contents_of(first)
    (file,) = (tmp_path / "cache").rglob(name)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data) if name != "rows.json" else data[:-9])
    again = run(sources, streaming=True, cache_dir=tmp_path / "cache")
    assert again.manifest["cache"].startswith("miss") and contents_of(again) == expected
    assert run(sources, streaming=True, cache_dir=tmp_path / "cache").manifest["cache"] == "hit"


def test_files_that_moved_keep_their_rows_and_get_their_new_place(tmp_path):
    source = write(tmp_path / "a.jsonl", conversations(9))
    run(source, streaming=True, cache_dir=tmp_path / "cache")
    (tmp_path / "new").mkdir()
    moved = shutil.move(tmp_path / "a.jsonl", tmp_path / "new" / "a.jsonl")
    again = run({"path": str(moved)}, streaming=True, cache_dir=tmp_path / "cache")
    assert again.manifest["cache"] == "hit" and str(again.train[3].ref) == f"{moved}:4"
    assert again.manifest["sources"][0]["path"] == str(moved)


def test_without_a_cache_the_rows_are_deleted_with_their_last_user(sources, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    prepared = run(sources, streaming=True)
    assert len(list((tmp_path / "t").rglob("*.bin"))) == 3 and prepared.train[0].ids
    del prepared
    assert not list((tmp_path / "t").rglob("*.bin"))


# --- the arrays ---------------------------------------------------------------------------------------------------

WEIGHTS = st.sampled_from([0.0, 0.0, 1.0, 0.5, float(np.float32(0.1)), 2.0])
ROWS = st.lists(st.lists(st.tuples(st.integers(0, 65_535), WEIGHTS), min_size=1, max_size=30), max_size=12)


@settings(max_examples=often(60), deadline=None)
@given(rows=ROWS, wide=st.booleans(), data=st.data())
def test_any_rows_come_back_as_they_were(tmp_path_factory, rows, wide, data):
    folder = tmp_path_factory.mktemp("rows")
    writer = RowWriter(folder, vocabulary=200_000 if wide else 65_536, names=["a", "b"])
    examples = []
    for place, tokens in enumerate(rows):
        ref = RowRef("ab"[place % 2], place + 1, place % 3)
        if data.draw(st.booleans()):
            writer.dropped(ref, f"{place:032x}")
        weights = array("f", [0.0, *(weight for _, weight in tokens[1:])])
        notes = ("cut",) * (place % 2)
        examples.append(Example(ids=array("i", [token for token, _ in tokens]), weights=weights, ref=ref, notes=notes))
        writer.used(examples[-1], f"{place:032x}")
    about = writer.close()
    store = RowStore(folder, json.loads(json.dumps(about)), ["x", "y"])
    used = np.flatnonzero(store.column("tokens"))
    assert [store.example(int(index)).ids for index in used] == [example.ids for example in examples]
    assert [store.example(int(index)).weights for index in used] == [example.weights for example in examples]
    assert [store.example(int(index)).notes for index in used] == [example.notes for example in examples]
    assert store.column("trained")[used].tolist() == [example.trained_tokens for example in examples]
    assert list(store.hashes(used)) == [f"{place:032x}" for place in range(len(rows))]
    assert Counter(str(store.ref(int(index))) for index in used) == Counter(
        f"{'xy'[place % 2]}:{place + 1}" for place in range(len(rows))
    )
