"""F06, F07, F10: every bad line is named with line, column and reason; limits hold in bounded time and memory."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import pytest

from luthier.data.rows import MAX_LINE_BYTES
from luthier.data.strict_json import JsonError, locate, parse
from tests.data.reading import CHAT, faults, problems, read, write

GOOD = json.dumps(CHAT)


def lines(path: Path, *content: str | bytes) -> Path:
    raw = [line if isinstance(line, bytes) else line.encode("utf-8") for line in content]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


BAD_LINES = [
    ('{"a": 1, }', "1:10 D202 invalid JSON: expecting property name enclosed in double quotes"),
    ('{"a": 1', "1:8 D202 invalid JSON: expecting ',' delimiter"),
    ('{"a": "x', "1:7 D202 invalid JSON: unterminated string starting at"),
    ('{"a": 1} {"b": 2}', "1:10 D202 something follows the end of the JSON value"),
    ("{'a': 1}", "1:2 D202 invalid JSON: expecting property name enclosed in double quotes"),
    ("nonsense", "1:1 D202 invalid JSON: expecting value"),
    ('{"a": 1, "b": {"c": 1, "c": 2}}', '1:24 D203 key "c" stands twice in one object'),
    ('{"a": 1, "\\u0061": 2}', '1:10 D203 key "\\u0061" stands twice in one object'),
    ('{"a": NaN}', "1:7 D203 NaN is not JSON"),
    ('{"a": [1, -Infinity]}', "1:11 D203 -Infinity is not JSON"),
    ('{"a": 1e999}', "1:7 D203 number 1e999 does not fit into a double"),
    ('{"a": "ok \\ud83d\\ude00", "b": "x\\ud83d"}', "1:33 D203 lone surrogate (half a character) in a string"),
    ('{"a\\udc00": 1}', "1:4 D203 lone surrogate (half a character) in a string"),
    ('{"a": "x\\u0000"}', "1:9 D203 NUL character (\\u0000) in a string"),
    ('{"a": "x\x00"}', "1:9 D202 invalid JSON: invalid control character at"),
    ('{"a": "tab\there"}', "1:11 D202 invalid JSON: invalid control character at"),
    (b'{"a": "\xc3\xa9\xff"}', "1:9 D205 not UTF-8: byte 0xff (invalid start byte)"),
    (b'{"a": "\xc3', "1:8 D205 not UTF-8: byte 0xc3 (unexpected end of data)"),
    ("[1, 2]", "1:1 D207 expected one object a line, got a list of 2"),
    ("3", "1:1 D207 expected one object a line, got 3"),
    ("null", "1:1 D207 expected one object a line, got null"),
    ("{" * 101 + "}", "1:2 D202 invalid JSON: expecting property name enclosed in double quotes"),
    ('{"a":' * 101 + "1" + "}" * 101, "1:501 D204 nested deeper than 100 levels"),
    ('{"a":' + "[" * 10_000 + "]" * 10_000 + "}", "1:105 D204 nested deeper than 100 levels"),
    ('{"a": ' + "9" * 5_000 + "}", "1:7 D204 number of 5,000 characters; the limit is 400"),
]


@pytest.mark.parametrize(("line", "fault"), BAD_LINES, ids=[fault for _, fault in BAD_LINES])
def test_a_bad_line_is_named_with_column_and_reason(tmp_path: Path, line: str | bytes, fault: str) -> None:
    path = lines(tmp_path / "a.jsonl", line)
    assert [found.split(" (char")[0] for found in faults(path)] == [fault]


def test_all_bad_lines_are_found_at_once_with_their_numbers(tmp_path: Path) -> None:
    """F06; the good rows around them are not in the way, nor are blank lines."""
    content: list[str | bytes] = [GOOD, ""]
    for line, _ in BAD_LINES:
        content += [line, GOOD]
    found = faults(lines(tmp_path / "a.jsonl", *content))
    assert found == [f"{3 + 2 * i}{fault.removeprefix('1')}" for i, (_, fault) in enumerate(BAD_LINES)]


def test_a_problem_shows_the_line_with_a_caret(tmp_path: Path) -> None:
    (problem,) = problems(lines(tmp_path / "a.jsonl", GOOD, '{"a": NaN}'))
    assert problem.render().splitlines()[1:] == ['    2 | {"a": NaN}', "              ^"]


def test_a_line_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    """F26: no raw escape byte in a message."""
    (problem,) = problems(lines(tmp_path / "a.jsonl", '{"a": "\x1b[2J\x9b"}'))
    assert "\x1b" not in problem.render()
    assert "\x9b" not in problem.render()


def test_a_truncated_file_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD + "\n" + GOOD[:-5])
    (problem,) = problems(path)
    assert (problem.line, problem.hint) == (2, "the line ends too early: is the file cut off?")


def test_a_json_document_under_the_wrong_name_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps([CHAT], indent=1))
    assert ".json" in (problems(path)[0].hint or "")
    path.write_text(json.dumps([CHAT, CHAT]))
    assert ".json" in (problems(path)[0].hint or "")


def test_a_byte_order_mark_blank_lines_and_crlf_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n \t\n" + GOOD.encode())
    result = read(path)
    assert result.rows == 2
    assert result.conversations[1].ref.line == 4
    assert set(result.notes) == {"1 byte-order marks at the start of a file skipped", "2 blank lines skipped"}


def test_utf16_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD.encode("utf-16"))
    assert "UTF-16" in (problems(path)[0].hint or "")


def test_line_separators_inside_strings_end_no_line(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d\x0b"
    row = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}
    result = read(write(tmp_path / "a.jsonl", [row, row]))
    assert result.rows == 2
    assert result.conversations[0].messages[1]["content"] == text


def test_escapes_that_only_look_like_faults_pass() -> None:
    assert parse(r'{"a": "\\u0000 \\ud800 \ud83d\ude00", "b": "NaN"}') == {
        "a": "\\u0000 \\ud800 \U0001f600",
        "b": "NaN",
    }
    assert parse('{"a": "' + "[{" * 500 + '"}') == {"a": "[{" * 500}
    assert parse('{"a":' * 100 + "1" + "}" * 100)


def test_faults_behind_other_values_are_found_where_they_are() -> None:
    with pytest.raises(JsonError) as caught:
        parse('{"a": ["NaN", {"b": 1}], "c": {"b": 2, "d": "b"}, "e": NaN}')
    assert caught.value.offset == 55


@pytest.mark.parametrize(
    ("path", "offset"),
    [
        (("messages", 1, "content"), 48),
        (("messages", 1, "weight"), 28),
        (("messages", 5), 13),
        (("b",), 65),
        (("nothing",), 0),
    ],
)
def test_the_place_of_a_value_in_its_text_is_found(path: tuple[str | int, ...], offset: int) -> None:
    text = '{"messages": [{"role": 1}, {"role": "x", "content": 3}], "b" :  4}'
    expected = {48: text.index("3}]"), 28: text.index('{"role": "x"'), 13: text.index("["), 65: text.index("4}"), 0: 0}
    assert locate(text, path) == expected[offset]


def _memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_a_line_of_100_mb_is_rejected_in_bounded_time_and_memory(tmp_path: Path) -> None:
    """F10."""
    path = tmp_path / "a.jsonl"
    with path.open("wb") as stream:
        stream.write(b'{"text": "')
        for _ in range(100):
            stream.write(b"x" * 1_000_000)
        stream.write(b'"}\n')
        stream.write(b"broken\n")
    before, start = _memory_mib(), time.process_time()
    found = faults(path)
    assert time.process_time() - start < 5
    assert _memory_mib() - before < 300
    assert found[0] == f"1:None D204 line of 100,000,013 bytes; the limit is {MAX_LINE_BYTES:,}"
    assert found[1].startswith("2:1 D202")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"a": {' + ", ".join(f'"{i}": 1' for i in range(1_000_000)) + "}}", "more than 10,000 keys in one object"),
        (json.dumps({"messages": CHAT["messages"] * 50_000}), "100,000 messages; the limit is 10,000"),
        ("[" * 1_000_000, "nested deeper than 100 levels"),
    ],
    ids=["a million keys", "100,000 messages", "a million brackets"],
)
def test_giant_rows_are_rejected_naming_the_limit(tmp_path: Path, row: str, says: str) -> None:
    """F10."""
    path = lines(tmp_path / "a.jsonl", GOOD, row)
    before, start = _memory_mib(), time.process_time()
    (found,) = faults(path)
    assert time.process_time() - start < 5
    assert _memory_mib() - before < 1_000
    assert says in found


def test_a_json_file_may_be_a_list_an_object_with_data_or_lines(tmp_path: Path) -> None:
    for text in (
        json.dumps([CHAT, CHAT], indent=2),
        json.dumps({"version": {"a": [1]}, "data": [CHAT, CHAT], "end": "x"}),
        f"{GOOD}\n{GOOD}\n",
        "\ufeff" + json.dumps([CHAT, CHAT]),
    ):
        path = tmp_path / "a.json"
        path.write_text(text, encoding="utf-8")
        assert read(path).rows == 2, text


def test_keys_beside_data_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 3, "data": [CHAT]}))
    assert read(path).notes == ("1 key `version` beside `data` not used",)


def test_rows_of_a_json_file_carry_the_line_on_which_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([CHAT, CHAT], indent=1))
    size = len(json.dumps(CHAT, indent=1).splitlines())
    assert [row.ref.line for row in read(path).conversations] == [2, 2 + size]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '[\n{"a": NaN},\n{"b": 1, "b": 2},\n3]',
            ["2:7 D203 NaN", "3:10 D203 key", "4:1 D207 expected an object, got 3"],
        ),
        ('[\n{"text": "1"},\n{"text": ', ["3:10 D202 invalid JSON: expecting value"]),
        ('[\n{"text": "1"}\n', ["2:13 D202 invalid JSON: the list has no end"]),
        ('[{"text": "1"},]', ["1:16 D202 invalid JSON: expecting value"]),
        ('[{"text": "1"}] x', ["1:17 D202 something follows the end of the JSON list"]),
        ('{"rows": []}', ['1:1 D207 expected a list of objects or {"data": [...]}, got an object with the keys: rows']),
        ('{"data": [\n{"a": 1,, }]}', ["2:9 D202"]),
        ('{"data" 1}', ["1:9 D202"]),
        ('"text"', ["1:1 D207 expected a list"]),
        ("[]", ["None:None D206 the file has no rows"]),
        (" \n", ["None:None D206 the file has no rows"]),
    ],
)
def test_faults_of_a_json_file_are_told_by_line_and_column(tmp_path: Path, text: str, expected: list[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    found = faults(path)
    assert len(found) == len(expected)
    assert all(one.startswith(start) for one, start in zip(found, expected, strict=True)), found
