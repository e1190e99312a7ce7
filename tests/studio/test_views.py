"""Rows as their training gets them, page by page from disk."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from luthier.data.show import show_rows
from luthier.data.types import Branched, Example, RowRef
from luthier.explore.rows import explore_files
from luthier.runtime.errors import DataError, RecipeError
from luthier.studio.data.asked import AskedRows, file_rows, run_rows
from luthier.studio.data.build import build_view
from luthier.studio.data.query import AskedPage, View
from luthier.studio.data.stored import StoredView, ViewWriter
from luthier.studio.data.tokens import roles_of
from tests.studio.asking import Desk
from tests.support.tiny import save_tiny

RECIPE = """\
version: 1
model: {{name_or_path: base}}
data:
  train: [{{path: rows.jsonl}}]
  validation: {{fraction: 0.2}}
  max_length: 120
  overlong: {overlong}
method: {{name: lora}}
train: {{max_steps: 2}}
output_dir: runs/a
"""


def chat(question, answer, system=None):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *turns]}


ROWS = [
    *(chat(f"question number {n}", f"answer number {n}") for n in range(10)),
    chat("question number 3", "answer number 3"),
    chat("write to jane.doe@example.com", "she is at jane.doe@example.com", "be brief"),
    chat("tell me a long story", "once upon a time " * 30),
]
PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"say {n}"}],
        "chosen": [{"role": "assistant", "content": f"yes {n}"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    for n in range(4)
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    save_tiny(folder / "base")
    write(folder / "rows.jsonl", ROWS)
    write(folder / "pairs.jsonl", PAIRS)
    return folder


def built(root, **query):
    asked = file_rows(root, {"path": "rows.jsonl", **query})
    folder = root / "views" / asked.key
    if not (folder / "view.json").is_file():
        build_view(asked, folder, more_chips=query.get("path") is None)
    return View(StoredView(folder))


def a_run(root, name="a", overlong="truncate"):
    """A run folder as `luthier run` leaves it after its data stage."""

    from luthier.pipeline.session import Session
    from luthier.recipe.load import recipe_from_text
    from luthier.runs.folder import RunFolder
    from luthier.runtime.atomic import write_json, write_text

    here = Path.cwd()
    os.chdir(root)
    try:
        recipe = recipe_from_text(
            RECIPE.format(overlong=overlong).replace("runs/a", f"runs/{name}"), origin="recipe.yaml"
        )
        run = RunFolder(root / "runs" / name).create()
        write_text(run.path / "recipe.yaml", RECIPE.format(overlong=overlong))
        prepared = Session(recipe, run).prepared
        write_json(
            run.path / "manifest.json",
            {
                "recipe": recipe.model_dump(mode="json", exclude_unset=True),
                "working_directory": str(root),
                "method": "lora",
            },
        )
        write_json(run.path / "data" / "manifest.json", prepared.manifest)
        run.finish_stage("data", depends_on={}, result={}, seconds=1.0)
    finally:
        os.chdir(here)
    return run.path, prepared


@pytest.fixture(scope="module")
def run_view(root):
    folder, prepared = a_run(root)
    asked = run_rows(folder, "runs/a", root=root)
    build_view(asked, root / "views" / "run")
    return View(StoredView(root / "views" / "run")), prepared


def test_tokens_of_a_run_are_those_its_training_gets(run_view):
    view, prepared = run_view
    rows = {(row.ref.line): row for row in [*prepared.train, *prepared.validation]}
    assert len(rows) == len(ROWS)
    for number in range(len(view.stored)):
        own = view.stored.row(number)
        theirs = rows[own.ref.line]
        assert (list(own.ids), list(own.weights), tuple(own.notes)) == (
            list(theirs.ids),
            list(theirs.weights),
            tuple(theirs.notes),
        )
    summary = view.summary("offered")
    assert summary["exact"] and summary["tokens"] == prepared.manifest["tokens"] and summary["validation_rows"] == 2
    assert [view.stored.pack(number) for number in range(view.stored.pack_count)] and view.stored.pack_count == len(
        prepared.packs
    )
    for number, pack in enumerate(prepared.packs):
        lines = [view.stored.ref(row).line for row in view.stored.pack(number)]
        assert lines == [prepared.train[row].ref.line for row in pack.examples]


def test_who_loses_some_of_the_answer_is_counted(root, run_view):
    view, _ = run_view
    assert view.summary("x")["truncated"] == 1 and view.summary("x")["loses_answer"] == 1
    folder, _ = a_run(root, "b", "drop")
    build_view(run_rows(folder, "runs/b", root=root), root / "views" / "dropped")
    dropped = View(StoredView(root / "views" / "dropped"))
    assert dropped.summary("x")["loses_answer"] == 1 and dropped.summary("x")["dropped"] == {"overlong": 1}
    (line,) = dropped.page(AskedPage(chips=(key(dropped, "dropped"),)))["rows"]
    assert line["ref"] == "rows.jsonl:13" and line["why"].startswith("overlong: ")
    assert line["tokens"] > 120, "what it would have been can be looked at"


def key(view, label):
    (chip,) = [chip for chip in view.stored.about["chips"] if chip["label"] == label]
    return chip["key"]


def test_a_run_whose_rows_changed_is_not_exact(root, run_view):
    folder, _ = a_run(root, "c")
    manifest = json.loads((folder / "data" / "manifest.json").read_text())
    (folder / "data" / "manifest.json").write_text(json.dumps({**manifest, "hash": "of other rows"}))
    build_view(run_rows(folder, "runs/c", root=root), root / "views" / "changed")
    assert StoredView(root / "views" / "changed").about["summary"]["exact"] is False


def test_a_file_before_any_run(root):
    view = built(root, tokenizer=str(root / "base"), max_length="120")
    summary = view.summary("offered")
    assert summary["rows_used"] == 13 and summary["over_max_length"] == 1 == summary["loses_answer"]
    assert summary["sources"][0]["format"] == "messages" and summary["sources"][0]["path"] == "rows.jsonl"
    rows = {chip["label"]: chip["rows"] for chip in summary["chips"]}
    assert rows["exact duplicate"] == 1 and rows["over 120 tokens"] == 1 and rows["has system"] == 1
    assert rows["personal data or secrets"] == 1 and rows["repeats itself"] == 1
    assert summary["more_chips"] == "done" and str(root) not in json.dumps(summary)
    line = view.page(AskedPage(sort="-tokens", limit=1))["rows"][0]
    assert line["row"] == 12 and line["tokens"] > 120 and 0 < line["trained_fraction"] < 1


def test_without_a_tokenizer_lengths_are_characters(root):
    view = built(root, path="rows.jsonl")
    summary = view.summary("offered")
    assert summary["lengths"]["unit"] == "characters" and summary["tokens"] is None and not summary["has_tokens"]
    assert view.stored.row(0) is None


def test_a_mapping_is_suggested_and_said_to_be_one(root):
    write(root / "columns.jsonl", [{"question": f"q {n}", "answer": f"a {n}"} for n in range(5)])
    summary = built(root, path="columns.jsonl").summary("offered")
    assert summary["sources"][0]["map"] == {"user": "question", "assistant": "answer"}
    assert "check the `map`" in summary["sources"][0]["verdict"]


def test_pairs(root):
    view = built(root, path="pairs.jsonl", tokenizer=str(root / "base"))
    assert view.summary("x")["kind"] == "pairs"
    row = view.stored.row(2)
    assert isinstance(row, Branched)
    explored = explore_files([str(root / "pairs.jsonl")], kind="pairs", tokenizer=str(root / "base"))
    theirs = explored.items[2].tokens
    assert (row.prompt, row.answers, row.label, row.margin) == (
        theirs.prompt,
        theirs.answers,
        theirs.label,
        theirs.margin,
    )
    assert [list(own) for own in row.weights] == [list(own) for own in theirs.weights]
    record = show_rows([row], explored.tokenizer)[0]
    assert set(record["parts"]) == {"prompt", "chosen", "rejected"}


def test_rows_that_cannot_be_read_are_told_with_their_lines(root):
    (root / "broken.jsonl").write_text('{"messages": 3}\nnot json\n')
    with pytest.raises(DataError) as error:
        build_view(file_rows(root, {"path": "broken.jsonl", "format": "messages"}), root / "views" / "broken")
    assert {problem.line for problem in error.value.problems} == {1, 2}
    assert not (root / "views" / "broken").exists()


def test_search_filter_sort_pages(root):
    view = built(root, tokenizer=str(root / "base"), max_length="120")
    found = lambda **asked: [row["row"] for row in view.page(AskedPage(**asked))["rows"]]  # noqa: E731
    assert found(q="NUMBER 3") == [3, 10] and found(q="jane example") == [11] and found(q="nowhere") == []
    assert found(chips=(key(view, "exact duplicate"),)) == [10]
    assert found(chips=tuple(sorted([key(view, "exact duplicate"), key(view, "has system")]))) == []
    assert found(sort="-row", limit=2) == [12, 11] and found(offset=12) == [12] and found(offset=13) == []
    for name in ("tokens", "trained", "trained_fraction"):
        up = found(sort=name)
        values = [view.page(AskedPage(sort=name))["rows"][place][name] for place in range(13)]
        assert values == sorted(values) and sorted(up) == list(range(13))
    with pytest.raises(RecipeError, match="no 'zz'"):
        view.page(AskedPage(chips=("zz",)))
    with pytest.raises(RecipeError, match="sort must be"):
        view.page(AskedPage(sort="x"))
    for text in ("13", "-1", "x", "", "1e2", "\u0663", "9" * 20):
        with pytest.raises(RecipeError, match="no row"):
            view.check_row(text)


def test_roles_are_those_of_the_turns():
    texts = ["<s>", "user", "\n", "he", "llo", "</s>", "<a>", " hi", "</s>"]
    assert roles_of(texts, [["user", "hello", ""], ["assistant", "hi", ""]]) == [
        None,
        None,
        None,
        "user",
        "user",
        None,
        None,
        "assistant",
        None,
    ]
    assert roles_of(["a", "b"], [["user", "not there", ""], ["assistant", "b", ""]]) == [None, "assistant"]
    assert roles_of([], []) == []


def test_what_was_asked_and_what_is_kept_differ_by_key(root):
    one, other = (file_rows(root, {"path": "rows.jsonl", "max_length": length}) for length in ("5", "6"))
    assert one.key != other.key and one.key == file_rows(root, {"path": "rows.jsonl", "max_length": "5"}).key
    (root / "grown.jsonl").write_text("{}\n")
    before = file_rows(root, {"path": "grown.jsonl"}).key
    (root / "grown.jsonl").write_text("{}\n{}\n")
    assert file_rows(root, {"path": "grown.jsonl"}).key != before
    assert AskedRows(**one.to_json()) == one
    for wrong in ({"objective": "x"}, {"max_length": "0"}, {"max_length": "x"}, {"map": "a"}, {"map": ":b"}):
        with pytest.raises(RecipeError) as error:
            file_rows(root, {"path": "rows.jsonl", **wrong})
        assert error.value.problems[0].code == "W103"


def test_a_hundred_thousand_rows_answer_a_page_without_reading_the_rest(tmp_path):
    """A bound ten times over what is measured (`benchmarks/studio.py`)."""
    folder = tmp_path / "view"
    folder.mkdir()
    writer = ViewWriter(folder)
    weights = np.array([0.0] * 4 + [1.0] * 4, np.float32)
    for number in range(100_000):
        row = Example(
            ids=np.full(8, number % 500, np.int32), weights=weights[: 4 + number % 5], ref=RowRef("f.jsonl", number + 1)
        )
        writer.add(
            ref=row.ref,
            split="train",
            source="f.jsonl",
            turns=[("user", f"word{number} and more", "")],
            notes=(),
            why="",
            tokens=row,
        )
    writer.close(
        {"asked": {"kind": "file", "path": "f", "shown": "f", "root": "/"}, "summary": {}, "chips": [], "model": {}},
        packs=[],
        chips={"c0": [number % 2 == 0 for number in range(100_000)]},
    )
    view = View(StoredView(folder))
    slowest = 0.0
    for asked in (
        AskedPage(offset=99_950),
        AskedPage(q="word9"),
        AskedPage(chips=("c0",), sort="-trained"),
        AskedPage(sort="tokens", offset=50_000),
    ):
        started = time.thread_time()
        page = view.page(asked)
        slowest = max(slowest, time.thread_time() - started)
        assert len(page["rows"]) == 50
    assert slowest < 2.0
    assert view.page(AskedPage(q="word99999"))["rows"][0]["ref"] == "f.jsonl:100000"


def test_through_the_server_in_a_process_of_its_own(root, monkeypatch):
    monkeypatch.chdir(root)
    a_run(root, "served")
    with Desk(root) as desk:
        base = "/studio/api/runs/served/data"
        first = desk.ask(base)
        assert first.status in (200, 202)
        summary = desk.until(base).json
        assert (
            summary["exact"]
            and summary["more_chips"] == "offered"
            and summary["command"] == "luthier data show runs/served/recipe.yaml"
        )
        page = desk.ask(f"{base}/rows?limit=3&q=number").json
        assert page["total"] == 11 and len(page["rows"]) == 3
        chat_view = desk.until(f"{base}/rows/11?view=chat").json
        assert chat_view["turns"][0] == {"role": "system", "text": "be brief", "mark": ""}
        tokens = desk.until(f"{base}/rows/0?view=tokens").json
        names = ("ids", "texts", "kinds", "roles", "positions", "weights", "documents")
        assert len({len(tokens[name]) for name in names}) == 1
        assert {kind for kind, weight in zip(tokens["kinds"], tokens["weights"], strict=True) if weight} == {"trained"}
        text = desk.until(f"{base}/rows/0?view=text").json
        assert "question number 0" in text["text"] and text["trained_text"][0].startswith("answer number 0")
        packs = desk.ask(f"{base}/packs").json
        pack = desk.ask(f"{base}/packs/0").json
        assert packs["total"] == summary["packs"] and pack["capacity"] == 120 and pack["tokens"] == len(pack["ids"])
        assert (
            desk.ask(f"{base}/packs/999").error["code"] == "W131"
            and desk.ask(f"{base}/rows/999").error["code"] == "W131"
        )
        broken = desk.until("/studio/api/files/data?path=broken.jsonl&format=messages")
        assert broken.status == 400 and {problem["line"] for problem in broken.error["problems"]} == {1, 2}
        assert str(root) not in broken.body.decode()
