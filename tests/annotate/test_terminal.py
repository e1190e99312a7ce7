"""The terminal: keys, lines, and text that cannot reach it as anything but text."""

import io
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.annotate.terminal import printable, render, run_lines
from tests.annotate.support import chats, pairs, says, session, user, write


def drawn(one) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=100, force_terminal=True, color_system=None).print(render(one))
    return out.getvalue()


def test_lines_are_acknowledged_in_order(tmp_path: Path) -> None:
    one = session(tmp_path / "a.jsonl", chats(5))
    out = io.StringIO()
    lines = ["a\n", "\n", 'e "two\\nlines"\n', "e one line\n", "t x y\n", "T x y\n", "n\n", "?\n", "z\n"]
    lines += ["j 9\n", "e\n", "j 1\r\n", "r\n", "q\n", "a\n"]
    assert run_lines(one, lines, out) == 3
    said = out.getvalue().splitlines()
    assert said[0].startswith("accept ") and said[1].startswith("edit ") and said[2].startswith("edit ")
    assert [line for line in said if line.startswith("refused")] == [
        "refused: no such key: 'z'", "refused: rows are numbered 1 to 5, got 9", "refused: an edited text is empty",
    ]  # fmt: skip
    texts = [edit.text for record in one.desk.log.records for edit in record.edits]
    assert texts == ["two\nlines", "one line"]
    assert one.desk.log.records[-1].action == "reject" and one.desk.log.records[-1].line == 1


def test_pairs_by_lines(tmp_path: Path) -> None:
    one = session(tmp_path / "a.jsonl", pairs(4), blind=False)
    assert run_lines(one, ["1", "2", "=", "E 3 x", "E 2 mended"], io.StringIO()) == 1
    records = one.desk.log.records
    assert [(r.action, r.choice) for r in records] == [
        ("choose", "first"), ("choose", "second"), ("tie", None), ("choose", "second"),
    ]  # fmt: skip
    assert [(edit.answer, edit.text) for edit in records[-1].edits] == [(1, "mended")]


def test_nothing_in_a_row_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07 [bold red]x[/] \x9b31m \u202egnp"
    row = {"messages": [user(evil), says(evil, name=evil)], "column\x1b[1m": evil}
    text = drawn(session(tmp_path / "a.jsonl", [row]))
    assert not any(character in text for character in "\x1b\x07\x9b\u202e")
    assert "[bold red]x[/]" in text and "<U+001B>[2J" in text
    assert printable("a\tb\nc") == "a\tb\nc"


def test_a_row_is_drawn_with_all_it_has(tmp_path: Path) -> None:
    call = says("", tool_calls=[{"function": {"name": "f", "arguments": {"a": 1}}}])
    turns = [user("q"), call, {"role": "tool", "content": "out"}, says("answer")]
    rows = [{"messages": turns, "tools": [{"name": "f"}], "source": "s"}]
    one = session(tmp_path / "a.jsonl", rows)
    one.act("tag", text="odd")
    text = drawn(one)
    for part in ("row 1 of 1, 0 decided", "q", '"arguments"', "out", "answer", "source: s", "tags: odd", '"name": "f"'):
        assert part in text
    both = drawn(session(tmp_path / "p.jsonl", pairs(1)))
    assert "a0" in both and "b0" in both and "1 left" in both


@pytest.mark.slow
def test_single_keys_on_a_terminal(tmp_path: Path) -> None:
    rows = write(tmp_path / "a.jsonl", chats(4))
    main, side = pty.openpty()
    editor = tmp_path / "editor.sh"
    editor.write_text('#!/bin/sh\nprintf "edited" > "$1"\n')
    editor.chmod(0o755)
    worker = subprocess.Popen(
        [sys.executable, "-m", "luthier", "data", "label", str(rows), "--annotator", "ann"],
        stdin=side, stdout=side, stderr=side, env={**os.environ, "EDITOR": str(editor), "TERM": "xterm"},
    )  # fmt: skip
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + 20
        while text not in seen:
            assert time.monotonic() < end, seen[-2000:]
            if select.select([main], [], [], 0.1)[0]:
                seen += os.read(main, 65536)
        seen = b""

    wait_for(b"quit")
    for key, answer in (
        (b"a", b"accept"),
        (b"t", b"tag"),
        (b"odd\r", b"tags: odd"),
        (b"e", b"edit "),
        (b"u", b"undone"),
        (b"r", b"reject"),
        (b"\x1b[D", b"row "),
    ):
        time.sleep(0.3)  # a prompt drops what is typed before it stands
        os.write(main, key)
        wait_for(answer)
    os.write(main, b"q")
    assert worker.wait(30) == 0
    log = (tmp_path / "a.jsonl.labels").read_text()
    assert log.count('"action"') == 5 and '"text": "edited"' in log
