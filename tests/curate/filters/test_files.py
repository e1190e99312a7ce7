"""`luthier data filter`: shows before it writes; what stays unchanged stays byte for byte, what changes reads right."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.curate.filters.files import filter_files, write_filtered
from luthier.curate.filters.parts import edit_row
from luthier.curate.filters.rewrite import rewrite
from luthier.curate.filters.run import Tools
from luthier.data.sources import read_conversations
from luthier.recipe.filter_schema import FilterSection
from luthier.recipe.schema import Source
from luthier.runtime.errors import DataError, RunFailed
from tests.cli.calling import Caller, caller
from tests.curate.filters.test_edits import to_x
from tests.data.reading import write

ROW = '{{"messages": [{{"role":"user","content":"q"}} , {{"role": "assistant", "content": "{0}"}}], "id": {1}}}'
REFUSAL = "I'm sorry, but I can't help with that."


@pytest.fixture
def luthier(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Caller:
    return caller(monkeypatch, capfd)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Odd spaces, a blank line, CRLF, numbers as they are written, no line feed at the end."""
    mail = ROW.format("mail a@b.com now", '"a@b.com"')
    texts = [ROW.format("all good", "1.50"), "", ROW.format(REFUSAL, 2) + "\r", mail, ROW.format("good, too", 4)]
    file = tmp_path / "rows.jsonl"
    file.write_bytes("\n".join(texts).encode())
    return file


def test_it_shows_and_writes_nothing(luthier: Caller, rows: Path) -> None:
    before = rows.read_bytes()
    said = luthier("data", "filter", rows)
    assert said.code == 0, said.err
    assert "refusals: 1 dropped of 4 rows" in said.out and "pii: 0 dropped, 1 changed of 4 rows" in said.out
    assert "4 rows, 3 stay, 1 of them changed" in said.out
    assert (
        "[-I'm sorry, but I can't help-]" in said.out
        and "mail [-a@b.com-] now" in said.out
        and "nothing is written" in said.err
    )
    assert rows.read_bytes() == before and [file.name for file in rows.parent.iterdir()] == ["rows.jsonl"]
    as_json = luthier("data", "filter", rows, "--json").json
    assert as_json["dropped"]["refusals"] == 1 and as_json["changed"] == 1 and as_json["written"] == {}
    assert "a@b.com" not in json.dumps(as_json)


def test_rows_that_stay_are_the_same_bytes_and_changed_ones_differ_only_there(luthier: Caller, rows: Path) -> None:
    out = rows.with_name("kept.jsonl")
    said = luthier("data", "filter", rows, "--use", "pii,refusals", "--out", out, "--json")
    assert said.code == 0, said.err
    lines = rows.read_bytes().splitlines(keepends=True)
    changed = lines[3].replace(b"mail a@b.com", b"mail [EMAIL_1]").replace(b'"id": "a@b.com"', b'"id": "[EMAIL_1]"')
    assert out.read_bytes() == b"".join([lines[0], lines[1], changed, lines[4]])
    listed = [json.loads(text) for text in rows.with_name("kept.losses.jsonl").read_text("utf-8").splitlines()]
    assert listed == said.json["losses"]
    assert [(item["line"], item.get("reason", item.get("changed")), item["stage"]) for item in listed] == [
        (3, "filtered", "refusals"), (4, "redacted", "pii"),
    ]  # fmt: skip
    again = luthier("data", "filter", out, "--use", "pii,refusals", "--json").json
    assert again["kept"] == again["rows"] == 3 and again["changed"] == 0
    refused = luthier("data", "filter", rows, "--out", out)
    assert refused.code == 2 and "exists" in refused.err


def test_settings_of_the_command_line_and_of_a_recipe(luthier: Caller, rows: Path) -> None:
    dropped = luthier("data", "filter", rows, "--set", "pii.action=drop", "--json").json
    assert dropped["dropped"] == {"pii": 1} and dropped["settings"]["pii"]["action"] == "drop"
    recipe = rows.with_name("recipe.yaml")
    recipe.write_text(
        f"model: {{name_or_path: smollm2-135m-instruct}}\ndata:\n  train: [{{path: {rows}}}]\n"
        "  filters: {length: {unit: characters, min_answer: 9}}\noutput_dir: x\n"
    )
    by_recipe = luthier("data", "filter", rows, "--recipe", recipe, "--json").json
    assert by_recipe["dropped"] == {"length": 1}
    narrower = luthier("data", "filter", rows, "--recipe", recipe, "--set", "length.min_answer=16", "--json").json
    assert narrower["dropped"] == {"length": 2}
    for arguments, words in (
        (("--use", "pi"), "no filter is called pi"),
        (("--set", "pii.action=burn"), "`pii.action` must be"),
        (("--set", "pii.acton=drop"), "`pii.acton` is no key"),
        (("--set", "language.on=prompt"), "`language.languages` is needed"),
        (("--set", "pii"), "sets no key"),
        (("--use", "length"), "has no bound"),
        (("--set", "length.max_answer=5"), "no tokenizer"),
        (("--tokenizer", "none"), "--tokenizer would have no effect"),
        (("--set", "length.max_answer=5", "--set", "length.unit=words", "--tokenizer", "none"), "no filter counts"),
        (("--set", "refusals.patterns=['(']"), "not a regular expression"),
    ):
        said = luthier("data", "filter", rows, *arguments)
        assert said.code == 2 and words in said.err, (arguments, said.err)


def test_json_files_packed_files_and_other_formats_of_rows(luthier: Caller, tmp_path: Path) -> None:
    value = [
        {"instruction": "Say it", "input": "to a@b.com", "output": "sent to a@b.com and c@d.org", "note": "keep 1.0"},
        {"instruction": "Go", "input": "", "output": REFUSAL},
        {"instruction": "Go", "input": "", "output": "gone"},
    ]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(value, indent=1))
    said = luthier("data", "filter", file, "--out", tmp_path / "b.json")
    assert said.code == 0, said.err
    assert json.loads((tmp_path / "b.json").read_text()) == [
        {**value[0], "input": "to [EMAIL_1]", "output": "sent to [EMAIL_1] and [EMAIL_2]"},
        value[2],
    ]
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in value).encode()))
    assert luthier("data", "filter", packed, "--out", tmp_path / "c.jsonl.gz").code == 0
    assert b"sent to [EMAIL_1]" in gzip.decompress((tmp_path / "c.jsonl.gz").read_bytes())


def test_loss_ranges_and_calls_in_a_file_move_with_the_text(tmp_path: Path) -> None:
    content = "mail a@b.com now"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"to": "a@b.com"}'}}
    file = write(tmp_path / "a.jsonl", [
        {"messages": [{"role": "user", "content": "q"},
                      {"role": "assistant", "content": content, "spans": [{"start": 13, "end": 16, "weight": 0.5}]}]},
        {"messages": [{"role": "user", "content": "q"},
                      {"role": "assistant", "content": content, "train_detail":
                       [{"begin_offset": 0, "end_offset": 3, "train": False}]}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call], "content": None},
                      {"role": "tool", "tool_call_id": "1", "content": "ok"},
                      {"role": "assistant", "content": "Done."}]},
    ])  # fmt: skip
    found = filter_files([str(file)], FilterSection.model_validate({"pii": {}}), Tools())
    write_filtered(found, tmp_path / "b.jsonl")
    one, two, three = read_conversations(Source(path=str(tmp_path / "b.jsonl")), 0).conversations
    text = one.messages[1]["content"]
    assert text == "mail [EMAIL_1] now" and [(text[a:b], w) for a, b, w in one.span_weights[1]] == [("now", 0.5)]
    assert [(text[a:b], w) for a, b, w in two.span_weights[1]] == [("mail", 0.0)]
    assert json.loads(three.messages[1]["tool_calls"][0]["function"]["arguments"]) == {"to": "[EMAIL_1]"}


def test_pairs_go_as_a_whole(luthier: Caller, tmp_path: Path) -> None:
    pairs = [{"prompt": "q", "chosen": "yes", "rejected": REFUSAL}, {"prompt": "q", "chosen": "yes", "rejected": "no"}]
    file = write(tmp_path / "a.jsonl", pairs)
    said = luthier("data", "filter", file, "--objective", "dpo", "--use", "refusals", "--json").json
    assert said["dropped"] == {"refusals": 1} and said["losses"][0]["line"] == 1
    chosen = ("--use", "refusals", "--set", "answers=chosen", "--json")
    assert luthier("data", "filter", file, "--objective", "dpo", *chosen).json["dropped"] == {"refusals": 0}


def test_tables_are_written_without_rows_and_refused_with_changed_ones(luthier: Caller, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('question,answer\nq,"mail a@b.com"\nq,"' + REFUSAL + '"\nq,fine\n')
    columns = ("--map", "user=question", "--map", "assistant=answer")
    refused = luthier("data", "filter", file, *columns, "--out", tmp_path / "b.csv")
    assert refused.code == 3 and "D259" in refused.err and not (tmp_path / "b.csv").exists()
    dropped = luthier("data", "filter", file, *columns, "--use", "pii,refusals", "--set", "pii.action=drop",
                      "--out", tmp_path / "b.csv")  # fmt: skip
    assert dropped.code == 0 and (tmp_path / "b.csv").read_text() == "question,answer\nq,fine\n"


def test_words_that_stand_inside_what_is_redacted_stay_elsewhere(luthier: Caller, tmp_path: Path) -> None:
    """The role `user` and the column `shop` are parts of the address, not pieces that a text was joined from."""
    said = "Write to user1@shop.example.com, or to user2@shop.example.com."
    turns = [{"role": "user", "content": "Whom do I ask?"}, {"role": "assistant", "content": said}]
    file = write(tmp_path / "a.jsonl", [{"messages": turns, "topic": "shop", "assistant": "user"}])
    result = luthier("data", "filter", file, "--use", "pii", "--out", tmp_path / "b.jsonl")
    assert result.code == 0, result.err
    turns[1]["content"] = "Write to [EMAIL_1], or to [EMAIL_2]."
    written = json.loads((tmp_path / "b.jsonl").read_text("utf-8"))
    assert written == {"messages": turns, "topic": "shop", "assistant": "user"}


def test_columns_that_make_one_question_are_redacted_each(luthier: Caller, tmp_path: Path) -> None:
    row = {"instruction": "Answer a@b.com", "input": "from c@d.com", "output": "Gladly.", "tag": "from"}
    said = luthier("data", "filter", write(tmp_path / "a.jsonl", [row]), "--use", "pii", "--out", tmp_path / "b.jsonl")
    assert said.code == 0, said.err
    assert json.loads((tmp_path / "b.jsonl").read_text("utf-8")) == {
        **row, "instruction": "Answer [EMAIL_1]", "input": "from [EMAIL_2]",
    }  # fmt: skip


def test_a_file_whose_changed_rows_would_read_otherwise_is_not_written(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.curate.filters import files

    found = filter_files([str(rows)], FilterSection.model_validate({"pii": {}}), Tools())
    monkeypatch.setattr(files, "rewrite", lambda text, old, new: text)
    with pytest.raises(RunFailed) as caught:
        write_filtered(found, rows.with_name("out.jsonl"))
    assert caught.value.problems[0].code == "D258"
    assert [file.name for file in rows.parent.iterdir()] == ["rows.jsonl"]
    monkeypatch.setattr(files, "rewrite", lambda text, old, new: text[5:])
    with pytest.raises((RunFailed, DataError)):
        write_filtered(found, rows.with_name("out.jsonl"))


TEXT = st.text(st.sampled_from('a1 "\\\n\u00e9{[,'), min_size=1, max_size=8).filter(str.strip)


@given(data=st.data())
def test_a_rewritten_row_reads_as_the_changed_one(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the texts, and however the JSON is written."""
    draw = data.draw
    shape = draw(st.sampled_from(["messages", "alpaca", "sharegpt", "pair"]))
    value: dict[str, Any]
    if shape == "messages":
        answer: dict[str, Any] = {"role": "assistant", "content": draw(TEXT)}
        if draw(st.booleans()):
            answer["spans"] = [{"start": 0, "end": len(answer["content"]), "weight": 0.5}]
        value = {"messages": [{"role": "user", "content": draw(TEXT)}, answer], "extra": [draw(TEXT), 1.0]}
    elif shape == "alpaca":
        value = {"instruction": draw(TEXT), "input": draw(TEXT), "output": draw(TEXT)}
    elif shape == "sharegpt":
        value = {"conversations": [{"from": "human", "value": draw(TEXT)}, {"from": "gpt", "value": draw(TEXT)}]}
    else:
        value = {"prompt": draw(TEXT), "chosen": draw(TEXT), "rejected": draw(TEXT) + "!"}
    file = tmp_path_factory.mktemp("rows") / "a.jsonl"
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    kind: Any = "pairs" if shape == "pair" else "tokens"

    def read(content: str) -> Any:
        file.write_text(content + "\n", "utf-8")
        return read_conversations(Source(path=str(file)), 0, kind=kind, on_empty="keep").conversations[0]

    old = read(text)
    new = edit_row(old, to_x)
    if new is not old:
        assert read(rewrite(text, old, new)) == new
