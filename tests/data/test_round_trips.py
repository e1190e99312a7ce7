"""Any row of any format, written into any kind of file, reads back as the row it was, types and order of keys kept."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.annotate.rows import openai_preference_row, preference_row, training_row
from luthier.curate.write import write_without
from luthier.data.content import row_hash
from luthier.data.files import local_file
from luthier.data.sources import read_conversations
from luthier.recipe.schema import Source
from tests.data.making import JSON, LINES, TEXTS, answer_pairs, rows_of

FAST = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SINGLE = ["messages", "sharegpt", "alpaca", "prompt_completion", "text", "segments"]
CELLS = TEXTS.filter(lambda text: "\r" not in text)
"""Texts that a spreadsheet can hold: its own line ends are its own."""


def put(path: Path, rows: list[Any]) -> Path:
    """A file of rows, of the kind its name says."""
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson")):
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    elif name == "data.json":
        data = json.dumps({"note": [1, {"data": []}], "data": rows}, indent=1, ensure_ascii=False).encode()
    elif name.endswith(".json"):
        data = json.dumps(rows, ensure_ascii=True).encode()
    else:
        stream = io.StringIO(newline="")
        out = csv.writer(stream, delimiter="\t" if name.endswith(".tsv") else ",")
        out.writerow(list(rows[0]))
        out.writerows([[row[name] for name in rows[0]] for row in rows])
        data = stream.getvalue().encode("utf-8-sig" if name.startswith("bom") else "utf-8")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def table(path: Path, rows: list[Any]) -> Path:
    import pyarrow
    import pyarrow.parquet

    made = pyarrow.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(made, path)
    else:
        new = pyarrow.ipc.new_file if path.suffix == ".feather" else pyarrow.ipc.new_stream
        with new(path, made.schema) as writer:
            writer.write_table(made)
    return path


def read(path: Path, kind: Any = "tokens", **keys: Any) -> list[Any]:
    return read_conversations(Source(path=str(path), **keys), 0, kind=kind).conversations


def shown(rows: list[Any]) -> list[str]:
    return [row_hash(row) for row in rows]


# --- JSON and JSON Lines: every format ------------------------------------------------------------------------------


@FAST
@given(
    data=st.data(),
    name=st.sampled_from(SINGLE),
    ending=st.sampled_from(["list.json", "data.json", "a.ndjson", "a.jsonl.gz", "a.json.gz"]),
)
def test_every_kind_of_json_file_gives_the_same_rows(tmp_path: Path, data: Any, name: str, ending: str) -> None:
    rows = data.draw(st.lists(rows_of(name), min_size=1, max_size=3))
    plain = read(put(tmp_path / "plain.jsonl", rows), format=name)
    assert shown(read(put(tmp_path / ending, rows), format=name)) == shown(plain)


@FAST
@given(data=st.data(), name=st.sampled_from(SINGLE))
def test_what_is_read_can_be_written_and_read_again(tmp_path: Path, data: Any, name: str) -> None:
    first = read(put(tmp_path / "a.jsonl", data.draw(st.lists(rows_of(name), min_size=1, max_size=3))), format=name)
    again = read(put(tmp_path / "b.jsonl", [training_row(row) for row in first]))
    assert shown(again) == shown(first)
    for one, other in zip(first, again, strict=True):  # the order of keys inside tools and arguments shows in the text
        assert json.dumps(one.tools) == json.dumps(other.tools)
        assert [json.dumps(m.get("tool_calls")) for m in one.messages] == [
            json.dumps(m.get("tool_calls")) for m in other.messages
        ]


@FAST
@given(data=st.data(), write=st.sampled_from([preference_row, openai_preference_row]))
def test_pairs_can_be_written_and_read_again(tmp_path: Path, data: Any, write: Any) -> None:
    raw = False if write is openai_preference_row else None
    rows = data.draw(st.lists(answer_pairs(raw), min_size=1, max_size=3))
    if len({isinstance(row["prompt"], str) for row in rows}) > 1:
        rows = rows[:1]
    first = read(put(tmp_path / "a.jsonl", rows), "pairs", format="preference")
    assert shown(read(put(tmp_path / "b.jsonl", [write(row) for row in first]), "pairs")) == shown(first)


@FAST
@given(rows=st.lists(answer_pairs(), min_size=1, max_size=3), label=st.booleans())
def test_rated_answers_read_as_the_chosen_side_of_a_pair(tmp_path: Path, rows: list[Any], label: bool) -> None:
    rated = [{"prompt": row["prompt"], "completion": row["chosen"], "label": label} for row in rows]
    found = read(put(tmp_path / "a.jsonl", rated), "rated", format="unpaired_preference")
    for row, one in zip(found, rows, strict=True):
        (answer,) = row.answers
        assert row.label is label
        last = answer.completion if answer.kind == "prompt_completion" else answer.messages[-1]["content"]
        assert last == (one["chosen"] if isinstance(one["chosen"], str) else one["chosen"][0]["content"])


@FAST
@given(turns=st.lists(TEXTS, min_size=1, max_size=3), chosen=LINES, rejected=LINES)
def test_sharegpt_pairs_are_the_pairs_of_trl(tmp_path: Path, turns: list[str], chosen: str, rejected: str) -> None:
    rejected += "!" if chosen == rejected else ""
    one = {"conversations": [{"from": "human", "value": text} for text in turns],
           "chosen": {"from": "gpt", "value": chosen}, "rejected": {"from": "gpt", "value": rejected}}  # fmt: skip
    other = {"prompt": [{"role": "user", "content": text} for text in turns],
             "chosen": [{"role": "assistant", "content": chosen}],
             "rejected": [{"role": "assistant", "content": rejected}]}  # fmt: skip
    assert shown(read(put(tmp_path / "a.jsonl", [one]), "pairs")) == shown(
        read(put(tmp_path / "b.jsonl", [other]), "pairs")
    )


# --- tables of text -------------------------------------------------------------------------------------------------


@FAST
@given(
    cells=st.lists(st.tuples(CELLS, CELLS.filter(str.strip)), min_size=1, max_size=4),
    ending=st.sampled_from(["a.csv", "a.tsv", "bom.csv", "a.csv.gz", "a.tsv.gz"]),
)
def test_cells_of_csv_and_tsv_are_the_texts_they_were(tmp_path: Path, cells: list[Any], ending: str) -> None:
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in cells]
    assert [(row.prompt, row.completion) for row in read(put(tmp_path / ending, rows))] == cells


@FAST
@given(cells=st.lists(st.tuples(CELLS.filter(str.strip), CELLS, CELLS.filter(str.strip)), min_size=1, max_size=3))
def test_csv_reads_as_the_same_alpaca_pairs_and_rated_rows_as_json(tmp_path: Path, cells: list[Any]) -> None:
    for kind, names, name in (
        ("tokens", ("instruction", "input", "output"), "alpaca"),
        ("pairs", ("chosen", "prompt", "rejected"), "preference"),
    ):
        rows = [dict(zip(names, row, strict=True)) for row in cells]
        if kind == "pairs":
            rows = [{**row, "rejected": row["rejected"] + "!" * (row["chosen"] == row["rejected"])} for row in rows]
        as_json = read(put(tmp_path / "a.jsonl", rows), kind, format=name)
        assert shown(read(put(tmp_path / "a.csv", rows), kind, format=name)) == shown(as_json)


# --- Parquet and Arrow ----------------------------------------------------------------------------------------------


@FAST
@given(
    rows=st.lists(st.fixed_dictionaries({"prompt": TEXTS, "completion": LINES}), min_size=1, max_size=4),
    ending=st.sampled_from(["a.parquet", "a.arrow", "a.feather"]),
)
def test_texts_of_typed_tables_are_the_texts_they_were(tmp_path: Path, rows: list[Any], ending: str) -> None:
    assert shown(read(table(tmp_path / ending, rows))) == shown(read(put(tmp_path / "a.jsonl", rows)))


@FAST
@given(
    turns=st.lists(st.tuples(st.sampled_from(["user", "tool"]), TEXTS), max_size=3), answer=LINES,
    weight=st.sampled_from([None, 1.0, 0.5]), ending=st.sampled_from(["a.parquet", "a.arrow"]),
)  # fmt: skip
def test_chats_of_typed_tables_are_the_chats_they_were(
    tmp_path: Path, turns: list[Any], answer: str, weight: float | None, ending: str
) -> None:
    messages = [{"role": role, "content": text} for role, text in turns]
    last = {"role": "assistant", "content": answer, **({} if weight is None else {"weight": weight})}
    rows = [{"messages": [*messages, last]}, {"messages": [{"role": "assistant", "content": "x"}]}]
    assert shown(read(table(tmp_path / ending, rows))) == shown(read(put(tmp_path / "a.jsonl", rows)))


@pytest.mark.parametrize("ending", ["a.parquet", "a.arrow", "a.feather"])
def test_pairs_and_segments_of_typed_tables(tmp_path: Path, ending: str) -> None:
    said = {"role": "assistant", "content": "yes"}
    pair = {"prompt": [{"role": "user", "content": "q"}], "chosen": [said], "rejected": [{**said, "content": "no"}]}
    assert shown(read(table(tmp_path / ending, [pair]), "pairs")) == shown(
        read(put(tmp_path / "a.jsonl", [pair]), "pairs")
    )
    pieces = {"segments": [{"label": False, "text": "Q"}, {"label": True, "text": "A"}]}
    assert shown(read(table(tmp_path / ending, [pieces]))) == shown(read(put(tmp_path / "b.jsonl", [pieces])))


# --- writing without some rows --------------------------------------------------------------------------------------


@FAST
@given(
    data=st.data(), ending=st.sampled_from(["a.jsonl", "list.json", "data.json", "a.jsonl.gz", "a.csv", "a.tsv.gz", "a.parquet", "a.arrow", "a.feather"]),  # noqa: E501
)  # fmt: skip
def test_rows_that_stay_are_the_rows_they_were(tmp_path: Path, data: Any, ending: str) -> None:
    typed = ending.endswith((".parquet", ".arrow", ".feather"))
    texts = CELLS.filter(str.strip)
    columns = {"prompt": CELLS, "completion": texts, "extra": texts if "sv" in ending or typed else JSON}
    rows = data.draw(st.lists(st.fixed_dictionaries(columns), min_size=2, max_size=5))
    left_out = data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=len(rows) - 1))
    path = table(tmp_path / ending, rows) if typed else put(tmp_path / ending, rows)
    before = read(path)
    out = tmp_path / f"out.{ending.split('.', 1)[1]}"
    assert write_without(local_file(path), left_out, out) == len(rows) - len(left_out)
    stay = [row for place, row in enumerate(before) if place not in left_out]
    assert shown(read(out)) == shown(stay)
    if not left_out and not typed and not ending.endswith(".gz"):
        assert out.read_bytes() == path.read_bytes()
