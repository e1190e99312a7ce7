"""Rows that were decided for, through our own writers and readers again: nothing changes but what was edited."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.annotate.edits import Edit, apply_edits, slots_of
from luthier.annotate.export import check_export, export
from luthier.annotate.items import Items, read_items
from luthier.data.content import row_hash
from luthier.data.sources import read_conversations
from luthier.recipe.schema import Source
from luthier.runtime.errors import DataError, RecipeError
from tests.annotate.support import chats, labels_of, pairs, says, user, write
from tests.data.making import LINES, answer_pairs, rows_of
from tests.support.often import often

FORMATS = ["messages", "sharegpt", "alpaca", "prompt_completion", "text", "segments"]
FAST = settings(max_examples=often(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def items_of(path: Path, rows: list[Any], **keys: Any) -> Items:
    return read_items([str(write(path, rows))], **keys)


def back(path: Path, kind: Any = "tokens") -> list[Any]:
    return read_conversations(Source(path=str(path)), 0, kind=kind).conversations


def written(path: Path) -> list[Any]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.decode("utf-8").splitlines() if line]


# --- SFT -----------------------------------------------------------------------------------------------------------


def test_accepted_and_edited_rows_are_written_with_their_columns(tmp_path: Path) -> None:
    items = items_of(tmp_path / "a.jsonl", chats(5))
    edit = {"edits": (Edit(0, 1, "better"),)}
    labels = labels_of(items, ("ann", 0, "accept", {}), ("ann", 1, "reject", {}), ("ann", 2, "edit", edit),
                       ("ann", 3, "accept", {}), ("bob", 3, "reject", {}))  # fmt: skip
    done = export(items, labels, tmp_path / "out.jsonl")
    rows = chats(5)
    rows[2]["messages"][1]["content"] = "better"
    assert written(tmp_path / "out.jsonl") == [rows[0], rows[2]]
    assert done.written == 2 and dict(done.by_outcome) == {"accept": 1, "edit": 1}
    assert [(entry["line"], entry["reason"]) for entry in done.left_out] == [
        (2, "rejected"), (4, "conflict"), (5, "undecided"),
    ]  # fmt: skip
    assert done.left_out[1]["detail"] == "ann: accept, bob: reject"
    only = export(items, labels, tmp_path / "ann.jsonl", annotator="ann")
    assert only.written == 3 and only.reasons() == {"rejected": 1, "undecided": 1}


def test_a_majority_decides_only_where_there_is_one(tmp_path: Path) -> None:
    items = items_of(tmp_path / "a.jsonl", chats(2))
    labels = labels_of(items, *((name, row, action, {}) for name, row, action in [
        ("a", 0, "accept"), ("b", 0, "accept"), ("c", 0, "reject"), ("a", 1, "accept"), ("b", 1, "reject"),
    ]))  # fmt: skip
    done = export(items, labels, tmp_path / "out.jsonl", how="majority")
    assert done.written == 1 and done.reasons() == {"conflict": 1}
    with pytest.raises(DataError, match="no row to export: 2 conflict"):
        export(items, labels, tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


@FAST
@given(data=st.data(), name=st.sampled_from(FORMATS))
def test_any_row_accepted_reads_back_as_it_was(tmp_path: Path, data: Any, name: str) -> None:
    rows = data.draw(st.lists(rows_of(name), min_size=1, max_size=4))
    items = items_of(tmp_path / "a.jsonl", rows, format=name)
    labels = labels_of(items, *(("ann", place, "accept", {}) for place in range(len(items.all))))
    done = export(items, labels, tmp_path / "out.jsonl")
    assert done.written == len(rows)
    assert [row_hash(row) for row in back(tmp_path / "out.jsonl")] == [item.hash for item in items.all]


@FAST
@given(data=st.data(), name=st.sampled_from(["messages", "sharegpt", "prompt_completion", "text", "segments"]))
def test_any_edit_reads_back_and_changes_nothing_else(tmp_path: Path, data: Any, name: str) -> None:
    items = items_of(tmp_path / "a.jsonl", [data.draw(rows_of(name))], format=name)
    row = items.all[0].conversation
    slots = slots_of(row)
    if not slots:
        return
    slot, text = data.draw(st.sampled_from(slots)), data.draw(LINES)
    edits = (Edit(slot.answer, slot.part, text),)
    if text == slot.text:
        return
    export(items, labels_of(items, ("ann", 0, "edit", {"edits": edits})), tmp_path / "out.jsonl")
    (read,) = back(tmp_path / "out.jsonl")
    assert row_hash(read) == row_hash(apply_edits(row, edits)) != row_hash(row)
    assert row_hash(apply_edits(read, [Edit(slot.answer, slot.part, slot.text)])) == row_hash(row)


# --- preferences ---------------------------------------------------------------------------------------------------


def test_rankings_and_edits_become_pairs(tmp_path: Path) -> None:
    items = items_of(tmp_path / "a.jsonl", [{**row, "margin": 2.0, "id": n} for n, row in enumerate(pairs(5))])
    labels = labels_of(
        items, ("a", 0, "choose", {"choice": "first"}), ("a", 1, "choose", {"choice": "second"}),
        ("a", 2, "choose", {"choice": "second", "edits": (Edit(1, 1, "b2!"),)}), ("a", 3, "tie", {}),
        ("a", 4, "reject", {}),
    )  # fmt: skip
    done = export(items, labels, tmp_path / "out.jsonl", shape="preference")
    assert written(tmp_path / "out.jsonl") == [
        {"prompt": [user("q0")], "chosen": [says("a0")], "rejected": [says("b0")], "margin": 2.0, "id": 0},
        {"prompt": [user("q1")], "chosen": [says("b1")], "rejected": [says("a1")], "id": 1},
        {"prompt": [user("q2")], "chosen": [says("b2!")], "rejected": [says("a2")], "id": 2},
    ]
    assert done.reasons() == {"tie": 1, "rejected": 1}
    export(items, labels, tmp_path / "openai.jsonl", shape="openai_preference")
    assert written(tmp_path / "openai.jsonl")[1] == {
        "input": {"messages": [user("q1")]}, "preferred_output": [says("b1")], "non_preferred_output": [says("a1")],
        "id": 1,
    }  # fmt: skip
    export(items, labels, tmp_path / "sft.jsonl", shape="sft")
    assert written(tmp_path / "sft.jsonl")[2] == {"messages": [user("q2"), says("b2!")], "id": 2}


def test_an_edit_of_a_single_row_is_preferred_to_what_it_was(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": 2}}}]
    rows = [{"messages": [user("q"), says("a0"), user("r"), says("a1")], "tools": tools}, *chats(1)]
    items = items_of(tmp_path / "a.jsonl", rows)
    labels = labels_of(items, ("a", 0, "edit", {"edits": (Edit(0, 3, "b1"),)}), ("a", 1, "accept", {}))
    done = export(items, labels, tmp_path / "out.jsonl", shape="preference")
    assert written(tmp_path / "out.jsonl") == [
        {"prompt": [user("q"), says("a0"), user("r")], "chosen": [says("b1")], "rejected": [says("a1")], "tools": tools}
    ]
    assert done.reasons() == {"no_second_answer": 1}


@FAST
@given(data=st.data(), shape=st.sampled_from(["preference", "openai_preference"]))
def test_any_pair_ranked_reads_back_in_that_order(tmp_path: Path, data: Any, shape: Any) -> None:
    rows = data.draw(st.lists(answer_pairs(raw=False), min_size=1, max_size=3))
    items = items_of(tmp_path / "a.jsonl", rows, format="preference")
    choices = data.draw(st.lists(st.sampled_from(["first", "second"]), min_size=len(rows), max_size=len(rows)))
    first_of = {item.hash: choice for item, choice in zip(reversed(items.all), reversed(choices), strict=True)}
    labels = labels_of(items, *(("a", n, "choose", {"choice": first_of[i.hash]}) for n, i in enumerate(items.all)))
    export(items, labels, tmp_path / "out.jsonl", shape=shape)
    for read, item in zip(back(tmp_path / "out.jsonl", "pairs"), items.all, strict=True):
        ours = [row_hash(answer) for answer in item.conversation.answers]
        assert [row_hash(answer) for answer in read.answers] == (ours if first_of[item.hash] == "first" else ours[::-1])


@FAST
@given(row=answer_pairs(raw=True))
def test_raw_pairs_keep_prompt_and_answers_and_have_no_place_in_openais_format(tmp_path: Path, row: Any) -> None:
    items = items_of(tmp_path / "a.jsonl", [row], format="preference")
    labels = labels_of(items, ("a", 0, "choose", {"choice": "first"}))
    export(items, labels, tmp_path / "out.jsonl", shape="preference")
    assert [row_hash(read) for read in back(tmp_path / "out.jsonl", "pairs")] == [items.all[0].hash]
    with pytest.raises(DataError, match="D295"):
        export(items, labels, tmp_path / "no.jsonl", shape="openai_preference")


def test_rated_answers_are_trained_when_they_are_desired(tmp_path: Path) -> None:
    rows = [
        {"prompt": [user(f"q{n}")], "completion": [says("a")], "label": label}
        for n, label in enumerate([True, False, False])
    ]
    items = items_of(tmp_path / "a.jsonl", rows)
    labels = labels_of(
        items, ("a", 0, "accept", {}), ("a", 1, "accept", {}), ("a", 2, "edit", {"edits": (Edit(0, 1, "b"),)})
    )
    done = export(items, labels, tmp_path / "out.jsonl")
    assert [row["messages"][-1]["content"] for row in written(tmp_path / "out.jsonl")] == ["a", "b"]
    assert done.reasons() == {"not_desired": 1}


# --- columns -------------------------------------------------------------------------------------------------------


def test_columns_of_other_formats_are_left_out_and_told(tmp_path: Path) -> None:
    rows = [{**chats(1)[0], "text": "x", "system": "y", "note": {"deep": [1, None, 1.5, "ü"]}}]
    items = items_of(tmp_path / "a.jsonl", rows, format="messages")
    done = export(items, labels_of(items, ("a", 0, "accept", {})), tmp_path / "out.jsonl.gz", info="labels")
    assert done.columns_left_out == {"text": 1, "system": 1}
    (row,) = written(tmp_path / "out.jsonl.gz")
    assert row["note"] == rows[0]["note"] and set(row) == {"messages", "score", "id", "note", "labels"}
    assert row["labels"] == {"decision": "accept", "annotators": ["a"], "tags": [], "notes": []}


def test_tags_and_notes_are_those_of_the_annotator_asked_for(tmp_path: Path) -> None:
    items = items_of(tmp_path / "a.jsonl", chats(1))
    ours = [("a", 0, "accept", {}), ("a", 0, "tag", {"text": "mine"})]
    theirs = [("b", 0, "accept", {}), ("b", 0, "tag", {"text": "theirs"}), ("b", 0, "note", {"text": "n"})]
    labels = labels_of(items, *ours, *theirs)
    export(items, labels, tmp_path / "one.jsonl", info="labels", annotator="a")
    export(items, labels, tmp_path / "all.jsonl", info="labels")
    (one,), (both,) = written(tmp_path / "one.jsonl"), written(tmp_path / "all.jsonl")
    assert one["labels"] == {"decision": "accept", "annotators": ["a"], "tags": ["mine"], "notes": []}
    assert both["labels"] == {
        "decision": "accept",
        "annotators": ["a", "b"],
        "tags": ["mine", "theirs"],
        "notes": ["n"],
    }


def test_a_column_that_json_cannot_hold_is_named(tmp_path: Path) -> None:
    import datetime

    import pyarrow
    import pyarrow.parquet

    columns = {"prompt": ["a"], "completion": ["b"], "day": [datetime.date(2026, 1, 2)], "n": [7]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    items = read_items([str(tmp_path / "a.parquet")])
    labels = labels_of(items, ("a", 0, "accept", {}))
    with pytest.raises(DataError, match="column `day`"):
        export(items, labels, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_chats_and_raw_text_do_not_go_into_one_file(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.jsonl", chats(1)), write(tmp_path / "b.jsonl", [{"text": "x y"}])]
    items = read_items([str(path) for path in paths])
    labels = labels_of(items, ("a", 0, "accept", {}), ("a", 1, "accept", {}))
    with pytest.raises(DataError, match="D297"):
        export(items, labels, tmp_path / "out.jsonl")


def test_where_an_export_may_go(tmp_path: Path) -> None:
    items = items_of(tmp_path / "a.jsonl", chats(1))
    for name, says_what in (("a.jsonl", "is a source"), ("b.csv", "must end in"), ("old.jsonl", "exists")):
        if name == "old.jsonl":
            (tmp_path / name).write_text("")
        with pytest.raises(RecipeError, match=says_what):
            check_export(tmp_path / name, items, force=False)
    check_export(tmp_path / "old.jsonl", items, force=True)
    with pytest.raises(RecipeError, match="is a source"):
        check_export(tmp_path / "a.jsonl", items, force=True)
    with pytest.raises(RecipeError, match="part of a format"):
        check_export(tmp_path / "new.jsonl", items, force=False, info="messages")


def test_a_writer_that_changes_a_row_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = items_of(tmp_path / "a.jsonl", chats(1))
    from luthier.annotate import export as module

    make, _ = module._MAKE["sft"]
    monkeypatch.setitem(module._MAKE, "sft", (make, lambda row: {"messages": [user("q"), says("other")]}))
    with pytest.raises(DataError, match="D298"):
        export(items, labels_of(items, ("a", 0, "accept", {})), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
