"""Contract: what was put into a journal is there after a kill at any byte; damage is an error, never a silent loss."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.endpoint.cache import request_key
from luthier.runtime.errors import DataError, EnvironmentProblem
from luthier.synthesis.journal import Journal


def body(text):
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 5}


def answer(text):
    return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": None}


def test_every_prefix_of_a_journal_is_a_journal(tmp_path):
    """A kill may tear the file anywhere: what stands before stays, what is asked again is appended behind it."""
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        for index in range(4):
            journal.put(request_key("u", body(f"é{index}"), variant=0), body(f"é{index}"), answer(f"a{index}"))
        journal.record("structured", "none")
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == 10]
    for cut in [*range(0, len(whole) + 1, 37), *ends, *(end - 1 for end in ends)]:
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            complete = sum(end <= cut for end in ends)
            assert len(journal) == min(4, complete)
            for index in range(4):
                found = journal.get(request_key("u", body(f"é{index}"), variant=0), body(f"é{index}"))
                assert (found == answer(f"a{index}")) is (index < complete)
            journal.put("new", body("new"), answer("new"))
        with Journal(path) as journal:
            assert len(journal) == min(4, complete) + 1 and journal.get("new", body("new")) == answer("new")
        path.unlink()


def test_damage_in_the_middle_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        for index in range(3):
            journal.put(str(index), body(str(index)), answer("a"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * 20 + b"\n" + lines[2])
    with pytest.raises(DataError) as caught:
        Journal(path)
    assert (caught.value.problems[0].code, caught.value.problems[0].line) == ("D271", 2)
    path.write_bytes(lines[0] + lines[2])
    with Journal(path) as journal:
        assert len(journal) == 2 and journal.get("0", body("other")) is None, "a key of another request is no answer"


def test_one_process_at_a_time_and_an_empty_journal_leaves_no_file(tmp_path):
    with Journal(tmp_path / "j.jsonl"), pytest.raises(EnvironmentProblem, match="another process") as caught:
        Journal(tmp_path / "j.jsonl")
    assert caught.value.problems[0].code == "D270" and not list(tmp_path.iterdir())


def test_what_no_server_reported_is_charged_at_its_most(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.put("a", body("x"), answer("a"), host="h")
        assert journal.spent("h").completion_tokens == 5 and journal.spent("h").prompt_tokens >= 60
        spent = journal.spent("h")
    with Journal(tmp_path / "j.jsonl") as journal:
        assert journal.spent("h") == spent and journal.spent("other").tokens == 0


TEXTS = st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12), max_size=5)


@given(sessions=st.lists(TEXTS, min_size=1, max_size=4), cuts=st.lists(st.integers(0, 10**6), min_size=4, max_size=4))
@settings(max_examples=25, deadline=None)
def test_sessions_torn_at_any_byte_lose_the_torn_line_alone(sessions, cuts):
    """A model of the journal: lines that were whole at each cut, and what later sessions appended."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.jsonl"
        known: list[str] = []
        for number, (texts, cut) in enumerate(zip(sessions, cuts, strict=False)):
            with Journal(path) as journal:
                assert len(journal) == len(known) and all(key in journal for key in known)
                for place, text in enumerate(texts):
                    key = f"{number}.{place}"
                    journal.put(key, body(text), answer(text))
                    assert journal.get(key, body(text)) == answer(text)
                    known.append(key)
            data = path.read_bytes() if path.exists() else b""
            data = data[: cut % (len(data) + 1)]
            path.write_bytes(data)
            known = [json.loads(line)["key"] for line in data.split(b"\n")[:-1]]
        with Journal(path) as journal:
            assert len(journal) == len(known)
