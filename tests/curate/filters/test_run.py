"""`data.filters` in a recipe: order, records, changes, own rules, and what happens when those fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.curate.apply import curator
from luthier.curate.filters.parts import as_value
from luthier.curate.steps import Curation
from luthier.data.prepare import Prepared, prepare
from luthier.data.types import Conversation, Dropped, RowRef
from luthier.recipe.schema import DataSection
from luthier.runtime.errors import RecipeError, RunFailed
from tests.curate.support import THEMES, chat
from tests.data.reading import write
from tests.support.tiny import tiny_tokenizer


def line(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def run(file: Path, filters: dict[str, Any], **keys: Any) -> Prepared:
    data = DataSection.model_validate({"train": [{"path": str(file)}], "max_length": 256, "filters": filters, **keys})
    tokenizer = tiny_tokenizer()
    curate = curator(data, cache_dir=file.parent / "cache" / "dedup", tokenizer=tokenizer)
    return prepare(data, tokenizer, seed=0, curate=curate)


def told(prepared: Prepared) -> list[tuple[int, str, str]]:
    return [(r["line"], r.get("reason", r.get("changed")), r["stage"]) for r in prepared.losses]


def test_mended_and_redacted_text_is_what_later_filters_see_and_what_is_trained(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [
        line("Who?", "Write to a@b.com, the caf\u00c3\u00a9."), line("Tell me about it", "tell me about it"),
        line("What?", "The ship, the"), line("Why?", "I'm sorry, but I can't help with that. Write to a@b.com"),
    ])  # fmt: skip
    prepared = run(file, {"encoding": {}, "pii": {}, "echo": {}, "endings": {}, "refusals": {}})
    assert told(prepared) == [(2, "filtered", "echo"), (3, "filtered", "endings"), (4, "filtered", "refusals"),
                              (1, "fixed", "encoding"), (1, "redacted", "pii")]  # fmt: skip
    text = tiny_tokenizer().decode(prepared.train[0].ids)  # type: ignore[union-attr]
    assert "[EMAIL_1], the caf\u00e9." in text
    assert prepared.manifest["dropped"] == {"filtered": 3}
    stages = prepared.manifest["curated"]["filters"]["stages"]
    assert list(stages) == ["encoding", "pii", "echo", "endings", "refusals"]
    assert [stage["rows"] for stage in stages.values()] == [4, 4, 4, 3, 2]
    # Row 4 was redacted, then dropped: it is listed as dropped only.
    assert stages["pii"]["changed"] == 2
    assert "a@b.com" not in str(prepared.manifest["losses"]) + str(prepared.losses)


def test_filters_come_before_dedup(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [line("Who?", "Write to a@b.com."), line("Who?", "Write to c@d.com.")])
    prepared = run(file, {"pii": {}}, dedup={})
    assert told(prepared) == [(2, "duplicate", "exact"), (1, "redacted", "pii")]


def test_length_counts_tokens_of_the_recipes_tokenizer(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [line("Who?", THEMES[0]), line("Who?", "yes")])
    count = len(tiny_tokenizer()(THEMES[0], add_special_tokens=False)["input_ids"])
    assert told(run(file, {"length": {"max_answer": count - 1}})) == [(1, "filtered", "length")]
    assert told(run(file, {"length": {"max_answer": count}})) == []


def own(tmp_path: Path, body: str) -> str:
    (tmp_path / "rules.py").write_text(body)
    return f"{tmp_path / 'rules.py'}:keep"


def test_a_rule_of_the_user(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [line("Who?", "yes"), line("Who?", "no"), line("Who?", "maybe")])
    body = (
        "def keep(row):\n"
        "    answer = row['messages'][-1]['content']\n"
        "    row['messages'].clear()\n"
        "    return (answer != 'no', 'says no') if answer != 'maybe' else False\n"
    )
    prepared = run(file, {"python": [own(tmp_path, body)]})
    assert [record["detail"] for record in prepared.losses] == ["keep: says no", "keep: returned False"]
    assert len(prepared.train) == 1 and prepared.train[0].trained_tokens


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("def keep(row):\n    return row['nothing']\n", "D255", "raised KeyError for the row"),
        ("def keep(row):\n    return None\n", "D255", "returned None"),
        ("def keep(row):\n    return (True, 3)\n", "D255", "returned (True, 3)"),
        ("def keep(row):\n    return 1\n", "D255", "returned 1"),
        ("def other(row):\n    return True\n", "D254", "has no function `keep`; its functions: other"),
        ("def keep(row:\n", "D254", "SyntaxError"),
        ("import nothing_of_this_name\n", "D254", "ModuleNotFoundError"),
    ],
)
def test_a_rule_that_fails_ends_the_run_at_its_place(tmp_path: Path, body: str, code: str, words: str) -> None:
    file = write(tmp_path / "a.jsonl", [line("Who?", "yes")])
    with pytest.raises((RunFailed, RecipeError)) as caught:
        run(file, {"python": [own(tmp_path, body)]})
    problem = caught.value.problems[0]
    assert problem.code == code and words in problem.message, problem.render()


def test_rows_as_functions_see_them() -> None:
    ref = RowRef("a", 3, 1)
    raw = Conversation(kind="prompt_completion", ref=ref, prompt="p", completion="c")
    place = {"file": "a", "line": 3, "source": 1}
    assert as_value(raw) == {"kind": "prompt_completion", **place, "prompt": "p", "completion": "c"}
    pair = Conversation(kind="pair", ref=ref, answers=(raw, raw), margin=0.5)
    sides = {name: {"prompt": "p", "completion": "c"} for name in ("chosen", "rejected")}
    assert as_value(pair) == {"kind": "pair", **place, **sides, "margin": 0.5}
    rated = Conversation(kind="rated", ref=ref, answers=(raw,), label=True)
    assert as_value(rated) == {"kind": "rated", **place, "answer": sides["chosen"], "label": True}
    assert as_value(chat("q", "a"))["messages"][1] == {"role": "assistant", "content": "a"}


def test_a_row_keeps_its_history_until_it_is_dropped() -> None:
    rows = [chat("a", "1", 1), chat("b", "2", 2)]
    curation = Curation(list(rows), ())
    first, second = chat("a", "x", 1), chat("a", "y", 1)
    curation.change({0: (first, {"n": 1})})
    curation.change({0: (second, {"n": 2})})
    assert curation.changes == {id(second): [{"n": 1}, {"n": 2}]} and curation.origin == {id(second): rows[0]}
    curation.drop({0: (Dropped(rows[0].ref, "filtered", "gone"), {"reason": "filtered"})})
    done = curation.done()
    assert done.changes == {} and curation.origin == {}
    assert done.rows == [rows[1]] and done.records == [{"reason": "filtered", "detail": "gone"}]
