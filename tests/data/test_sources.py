"""Reading a source: files, folders, globs, limits, the verdict, and what every row becomes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data.files import find_files, is_local
from luthier.data.sources import hash_source, read_conversations
from luthier.recipe.paths import missing_path
from luthier.recipe.schema import Source
from luthier.runtime.errors import DataError
from tests.data.reading import ANSWER, CHAT, USER, faults, messages, problems, read, write
from tests.support.often import often


def test_messages_are_read_as_they_stand(tmp_path: Path) -> None:
    result = read(write(tmp_path / "a.jsonl", [CHAT, CHAT]))
    assert messages(result) == CHAT["messages"]
    assert (result.format, result.rows, result.dropped, result.notes) == ("messages", 2, [], ())
    assert result.verdict == "messages: 2 of 2 rows have a list `messages` with role and content"
    assert [str(row.ref) for row in result.conversations] == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/a.jsonl:2"]


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    result = read(write(tmp_path / "a.jsonl", [{**CHAT, "id": 3}, {**CHAT, "system": "unread"}]))
    assert result.verdict.endswith("; columns not used: id, system")
    assert len(result.conversations[1].messages) == 2


def test_limit_takes_the_first_rows_and_sees_nothing_behind_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [CHAT, CHAT, CHAT])
    path.write_text(path.read_text() + "broken\n")
    assert read(path, limit=2).rows == 2
    assert len(problems(path)) == 1


def test_limit_counts_over_files(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", [CHAT, CHAT])
    result = read(tmp_path, limit=3)
    assert [row.ref.line for row in result.conversations] == [1, 2, 1]


def test_a_folder_gives_its_known_files_sorted_and_counts_the_others(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", [CHAT])
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "c.jsonl", [CHAT])
    (tmp_path / "a.json").write_text(json.dumps([CHAT]))
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".hidden.jsonl").write_text("broken")
    result = read(tmp_path)
    assert [Path(row.ref.file).name for row in result.conversations] == ["a.json", "b.jsonl", "c.jsonl"]
    assert result.notes == ("1 files of other kinds in the folder not read",)


def test_a_folder_with_train_and_test_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [CHAT])
    write(tmp_path / "test-00000.jsonl", [CHAT])
    (problem,) = problems(tmp_path)
    assert (problem.code, "test, train" in problem.message, "*train*" in (problem.hint or "")) == ("D200", True, True)
    assert read(tmp_path / "*train*").rows == 1


def test_a_loop_of_links_in_a_folder_ends(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [CHAT])
    (tmp_path / "again").symlink_to(tmp_path)
    assert read(tmp_path).rows == 1


def test_a_glob_over_folders_does_not_go_in_circles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F12: two loops of links are 2 to the 40 paths for `glob.glob`, and one is each row forty times."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / f"{name}.jsonl", [CHAT])
        (tmp_path / name / "up").symlink_to(tmp_path)
        (tmp_path / name / "again").symlink_to(tmp_path / name)
    write(tmp_path / "a" / ".hidden.jsonl", [CHAT])
    started = time.thread_time()
    found = find_files(f"{tmp_path}/**/*.jsonl")
    assert [file.path.name for file in found] == ["a.jsonl", "b.jsonl"]
    monkeypatch.chdir(tmp_path)
    assert [str(file.path) for file in find_files("**/*.jsonl")] == ["a/a.jsonl", "b/b.jsonl"]
    assert [str(file.path) for file in find_files("a*/**/a.jsonl")] == ["a/a.jsonl"]
    assert missing_path("**/*.jsonl") is None and "no file matches" in missing_path("**/*.csv")[0]  # type: ignore[index]
    assert time.thread_time() - started < 2


def test_a_glob_gives_its_files_sorted(tmp_path: Path) -> None:
    for name in ("p-2.jsonl", "p-1.jsonl", "q.jsonl"):
        write(tmp_path / name, [CHAT])
    result = read(tmp_path / "p-*.jsonl")
    assert [Path(row.ref.file).name for row in result.conversations] == ["p-1.jsonl", "p-2.jsonl"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.jsonl", "no such file or folder"),
        ("none-*.jsonl", "no such file or folder"),
        ("notes.docx", "unknown kind of file"),
        ("a.parquet.gz", "unknown kind of file"),
        ("empty", "no file of a known kind"),
    ],
)
def test_paths_that_lead_nowhere_are_refused(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "notes.docx").write_text("x")
    (tmp_path / "a.parquet.gz").write_text("x")
    (tmp_path / "empty").mkdir()
    (problem,) = problems(tmp_path / name)
    assert problem.code == "D200"
    assert says in problem.message


def test_a_slip_in_a_relative_path_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert is_local("data/tickets")
    assert is_local("owner/tickets.jsonl")
    assert not is_local("owner/tickets")
    assert "owner/name" in (problems("tickets")[0].hint or "")


def test_an_empty_file_is_an_error_also_beside_a_full_one(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [CHAT])
    (tmp_path / "b.jsonl").write_text("\n \n")
    (problem,) = problems(tmp_path)
    assert (problem.code, problem.message, Path(problem.file or "").name) == ("D206", "the file has no rows", "b.jsonl")


def test_rows_of_another_format_later_in_the_file_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [CHAT] * 300 + [{"prompt": "a", "completion": "b"}])
    assert faults(path) == ["301:1 D209 no column `messages`; the row has: prompt, completion"]


def test_all_bad_rows_are_counted_and_fifty_are_printed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [CHAT] + [{"messages": 3}] * 2_000)
    with pytest.raises(DataError) as caught:
        read(path)
    text = str(caught.value)
    assert text.count("error[D207]") == 50
    assert text.endswith("2,000 errors, the first 50 are shown")


def test_a_system_message_is_put_before_rows_without_one(tmp_path: Path) -> None:
    own = {"messages": [{"role": "system", "content": "mine"}, USER, {**ANSWER, "weight": 0.5}]}
    spans = {"messages": [USER, {**ANSWER, "spans": [{"start": 0, "end": 2, "weight": 1}]}]}
    result = read(write(tmp_path / "a.jsonl", [own, spans]), system="be kind")
    assert messages(result, 0)[0]["content"] == "mine"
    assert messages(result, 1)[0] == {"role": "system", "content": "be kind"}
    assert result.conversations[1].span_weights == {2: ((0, 2, 1.0),)}
    assert result.conversations[1].message_weights == (None, None, None)


def test_a_system_message_for_raw_text_is_refused(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path / "a.jsonl", [{"text": "x"}] * 3), system="be kind")
    assert "`system` is for chats" in problem.message


def test_a_conversation_that_ends_with_a_question_is_kept_and_noted(tmp_path: Path) -> None:
    result = read(write(tmp_path / "a.jsonl", [{"messages": [USER, ANSWER, USER]}, CHAT]))
    assert len(result.conversations[0].messages) == 3
    assert result.notes == ("1 conversations end with a user or tool turn, which is context only",)


def test_the_hash_follows_the_content_alone(tmp_path: Path) -> None:
    first = read(write(tmp_path / "a.jsonl", [CHAT]))
    moved = read(write(tmp_path / "b.jsonl", [{"messages": [dict(reversed(USER.items())), ANSWER]}]))
    other = read(write(tmp_path / "c.jsonl", [{"messages": [USER, {**ANSWER, "content": "hello "}]}]))
    weighted = read(write(tmp_path / "d.jsonl", [{"messages": [USER, {**ANSWER, "weight": 1}]}]))
    assert first.hash == moved.hash
    assert len({first.hash, other.hash, weighted.hash}) == 3


def test_the_hash_of_a_source_follows_its_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [CHAT])
    before = hash_source(str(path))
    assert before == hash_source(str(path))
    path.write_text(path.read_text() + "\n")
    assert hash_source(str(path)) != before


def _json_values() -> st.SearchStrategy[Any]:
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
    scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=6
    )


@st.composite
def _conversations(draw: st.DrawFn) -> dict[str, Any]:
    text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)
    solid = text.filter(str.strip)
    rows: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 4))):
        rows.append({"role": draw(st.sampled_from(["user", "tool", "function"])), "content": draw(text)})
        answer: dict[str, Any] = {"role": "assistant", "content": draw(solid)}
        if draw(st.booleans()):
            arguments = draw(text | st.dictionaries(text, _json_values(), max_size=3))
            answer["tool_calls"] = [
                {"id": draw(text), "type": "function", "function": {"name": "f", "arguments": arguments}}
            ]
            answer["content"] = draw(st.none() | text)
        if draw(st.booleans()):
            answer[draw(st.sampled_from(["extra", "reasoning_content", "name"]))] = draw(text)
        rows.append(answer)
    row: dict[str, Any] = {"messages": rows}
    if draw(st.booleans()):
        row["tools"] = [draw(st.dictionaries(text, _json_values(), max_size=3))]
    return row


@settings(max_examples=often(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(_conversations(), min_size=1, max_size=4),
    ascii_only=st.booleans(),
    kind=st.sampled_from(["jsonl", "json"]),
)
def test_any_conversation_written_and_read_back_is_identical(
    tmp_path: Path, rows: list[dict[str, Any]], ascii_only: bool, kind: str
) -> None:
    """B56: strings of digits, dates, "null", unicode line breaks and missing keys all come back as they were."""
    path = tmp_path / f"a.{kind}"
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    text = "\n".join(lines) + "\n" if kind == "jsonl" else json.dumps(rows, ensure_ascii=ascii_only, indent=1)
    path.write_bytes(text.encode("utf-8"))
    found = read_conversations(Source(path=str(path)), 0).conversations
    assert len(found) == len(rows)
    for conversation, row in zip(found, rows, strict=True):
        # json.dumps tells 1 from 1.0 and from true, and keeps the order of keys.
        assert json.dumps(list(conversation.messages)) == json.dumps(row["messages"])
        assert json.dumps(conversation.tools) == json.dumps(row.get("tools"))


@pytest.mark.parametrize(
    "value", ["2024-01-01", "2024-01-01T00:00:00Z", "007", "1e5", "null", "true", "NaN", "", " ", "12"]
)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_values_that_look_like_something_else_stay_text(tmp_path: Path, value: str, kind: str) -> None:
    """B56: also when every row looks so."""
    path = tmp_path / f"a.{kind}"
    rows = [{"q": value, "a": f"={value}"}] * 3
    if kind in {"csv", "tsv"}:
        mark = "," if kind == "csv" else "\t"
        path.write_text(f"q{mark}a\n" + f"{value}{mark}={value}\n" * 3)
    else:
        path.write_text(json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    result = read(path, map={"user": "q", "assistant": "a"})
    assert [m["content"] for m in messages(result, 2)] == [value, f"={value}"]


def test_a_key_that_one_row_has_appears_in_no_other_row(tmp_path: Path) -> None:
    """B56."""
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": "007"}'}}]}
    result = read(write(tmp_path / "a.jsonl", [CHAT, {"messages": [USER, call], "tools": [{"name": "f"}]}]))
    assert messages(result, 0) == CHAT["messages"]
    assert messages(result, 1) == [USER, call]
    assert result.conversations[0].tools is None
