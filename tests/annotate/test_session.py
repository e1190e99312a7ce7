"""Deciding, taking back, moving; which row comes next; what a changed file does to what was said."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from luthier.annotate.items import read_items
from luthier.annotate.labels import outcome_of
from luthier.annotate.order import ordered
from luthier.annotate.session import Desk, Session
from luthier.runtime.errors import DataError, LuthierError, RecipeError
from tests.annotate.support import chats, desk, pairs, says, session, user, write


def said(one: Session) -> dict[int, str]:
    """Line -> outcome."""
    found = {}
    for place in one.desk.places:
        item = one.desk.items.all[place]
        decision = one.desk.labels.standing(one.annotator, item.hash).decision
        if decision is not None:
            found[item.ref.line] = outcome_of(decision).category
    return found


def test_rows_come_in_order_and_a_later_session_goes_on(tmp_path: Path) -> None:
    one = session(tmp_path / "a.jsonl", chats(4))
    one.act("accept")
    one.act("skip")
    one.act("edit", edits={0: "better"})
    assert one.item is not None and one.item.ref.line == 4
    again = session(tmp_path / "a.jsonl")
    assert said(again) == {1: "accept", 3: "edit"} and again.item is not None and again.item.ref.line == 4
    again.act("reject")
    assert again.item is None, "the skipped row is not forced on anyone"
    assert again.counts() == {"rows": 4, "decided": 3, "skipped": 1}
    shown = Session(again.desk, "ann", skipped_too=True)
    assert shown.item is not None and shown.item.ref.line == 2
    shown.act("accept")
    assert shown.counts() == {"rows": 4, "decided": 4, "skipped": 0}
    other = Session(again.desk, "bob")
    assert other.item is not None and other.item.ref.line == 1, "another annotator begins at the start"


def test_undo_takes_back_entry_by_entry(tmp_path: Path) -> None:
    one = session(tmp_path / "a.jsonl", chats(2))
    one.act("accept")
    one.move(-1)
    one.act("reject")
    one.act("tag", text="odd")
    one.act("note", text="why?")
    assert said(one) == {1: "reject"} and one.standing().tags == ("odd",) and one.standing().note == "why?"
    for left in ("tag", "reject", "accept", ""):
        undone = one.undo()
        assert undone is not None
        standing = one.desk.labels.standing("ann", one.desk.items.all[1].hash)
        assert standing.note == "" and (standing.tags == ("odd",)) == (left == "tag")
    assert said(one) == {} and one.item is not None and one.item.ref.line == 1
    assert one.undo() is None
    assert said(session(tmp_path / "a.jsonl")) == {}, "the log says the same"


def test_undo_is_ones_own(tmp_path: Path) -> None:
    one = session(tmp_path / "a.jsonl", chats(2))
    other = Session(one.desk, "bob")
    one.act("accept")
    other.act("reject")
    one.undo()
    assert (said(one), said(other)) == ({}, {1: "reject"})


@pytest.mark.parametrize(
    ("rows", "action", "keys", "says_what"),
    [
        (chats(1), "choose", {"side": "left"}, "does not fit one row"),
        (chats(1), "tie", {}, "does not fit"),
        (chats(1), "edit", {}, "nothing was changed"),
        (chats(1), "edit", {"edits": {0: "a0"}}, "nothing was changed"),
        (chats(1), "edit", {"edits": {0: " "}}, "empty"),
        (chats(1), "edit", {"edits": {1: "x"}}, "cannot be edited"),
        (chats(1), "edit", {"edits": {0: "a\0"}}, "NUL"),
        (chats(1), "edit", {"edits": {0: "\ud800"}}, "surrogate"),
        (chats(1), "accept", {"edits": {0: "x"}}, "takes no edited text"),
        (chats(1), "accept", {"text": "x"}, "tags and notes"),
        (chats(1), "tag", {"text": " "}, "empty tag"),
        (chats(1), "tag", {}, "tags and notes"),
        (chats(1), "undo", {}, "does not fit"),
        (pairs(1), "accept", {}, "does not fit two answers"),
        (pairs(1), "choose", {}, "left or right"),
        (pairs(1), "choose", {"side": "up"}, "left or right"),
        (pairs(1), "tie", {"side": "left"}, "left or right"),
    ],
)  # fmt: skip
def test_what_does_not_fit_writes_nothing(
    tmp_path: Path, rows: Any, action: Any, keys: dict[str, Any], says_what: str
) -> None:
    one = session(tmp_path / "a.jsonl", rows)
    with pytest.raises(LuthierError, match=says_what):
        one.act(action, **keys)
    assert one.desk.log.records == [] and one.item is not None


def test_only_the_better_answer_is_edited(tmp_path: Path) -> None:
    one = session(tmp_path / "a.jsonl", pairs(1))
    view = one.view()
    assert view is not None
    right = next(n for n, slot in enumerate(view.slots) if slot.answer != (0 if view.left == "first" else 1))
    with pytest.raises(RecipeError, match="only the better"):
        one.act("choose", side="left", edits={right: "x"})
    record = one.act("choose", side="right", edits={right: "x"})
    assert record.choice != view.left and record.edits[0].text == "x"


def test_an_empty_answer_can_be_written_but_not_accepted(tmp_path: Path) -> None:
    one = session(tmp_path / "a.jsonl", [{"messages": [user("q"), says("")]}, *chats(2)])
    with pytest.raises(RecipeError, match="nothing to train on"):
        one.act("accept")
    assert one.act("edit", edits={0: "an answer"}).edits[0].text == "an answer"


@pytest.mark.parametrize("name", ["", "  ", "a" * 61, "a\x1b[1m", "a\nb"])
def test_names_are_printable(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="D294"):
        session(tmp_path / "a.jsonl", chats(1), name)


# --- blind pairs ---------------------------------------------------------------------------------------------------


def test_half_of_the_pairs_are_swapped_the_same_each_time(tmp_path: Path) -> None:
    one = session(tmp_path / "a.jsonl", pairs(200))
    sides: list[Any] = []
    for number in range(1, 201):
        one.jump(number)
        view = one.view()
        assert view is not None
        sides.append(view.left)
        texts = [answer[0].text for answer in view.answers]
        assert texts == [
            f"{'a' if view.left == 'first' else 'b'}{number - 1}",
            f"{'b' if view.left == 'first' else 'a'}{number - 1}",
        ]
        assert "first" not in json.dumps(view.to_json()), "the page is not told which is which"
    assert 70 < Counter(sides)["first"] < 130
    again, other = Session(one.desk, "ann"), Session(one.desk, "bob")
    again.jump(7), other.jump(7)
    assert again.view().left == sides[6]  # type: ignore[union-attr]
    lefts = []
    for number in range(1, 201):
        other.jump(number)
        lefts.append(other.view().left)  # type: ignore[union-attr]
    assert 60 < sum(a == b for a, b in zip(sides, lefts, strict=True)) < 140, "annotators see other sides"


def test_the_choice_is_told_in_terms_of_the_file(tmp_path: Path) -> None:
    one = session(tmp_path / "a.jsonl", pairs(40))
    for number in range(40):  # always the answer `a`, wherever it stands
        view = one.view()
        assert view is not None
        one.act("choose", side="left" if view.answers[0][0].text.startswith("a") else "right")
        assert len(said(one)) == number + 1
    assert set(said(one).values()) == {"first"}
    assert {record.left for record in one.desk.log.records} == {"first", "second"}


def test_other_columns_of_a_blind_pair_are_not_shown(tmp_path: Path) -> None:
    rows = [{**pairs(1)[0], "score_chosen": 9}]
    assert session(tmp_path / "a.jsonl", rows).view().columns == ()  # type: ignore[union-attr]
    assert session(tmp_path / "a.jsonl", blind=False).view().columns == (("score_chosen", "9"),)  # type: ignore[union-attr]


# --- files that change ---------------------------------------------------------------------------------------------


def test_appended_and_reordered_rows_keep_their_labels(tmp_path: Path) -> None:
    rows = chats(5)
    one = session(tmp_path / "a.jsonl", rows)
    for action in ("accept", "reject", "accept"):
        one.act(action)  # type: ignore[arg-type]
    again = session(tmp_path / "a.jsonl", [*chats(9)[5:], *reversed(rows)])
    assert said(again) == {9: "accept", 8: "reject", 7: "accept"}
    assert again.desk.changed == {} and again.desk.gone == []


def test_another_column_or_format_keeps_the_label_and_a_copy_is_judged_once(tmp_path: Path) -> None:
    one = session(tmp_path / "a.jsonl", chats(2))
    one.act("accept")
    rows = [{"conversations": [{"from": "human", "value": "q0"}, {"from": "gpt", "value": "a0"}]}] * 2
    other = read_items([str(write(tmp_path / "b.jsonl", rows))])
    again = Session(Desk(other, one.desk.log, other.distinct), "ann")
    assert again.item is None and again.counts() == {"rows": 1, "decided": 1, "skipped": 0}


def test_a_changed_row_is_shown_again_and_told(tmp_path: Path) -> None:
    rows = chats(3)
    one = session(tmp_path / "a.jsonl", rows)
    for _ in rows:
        one.act("accept")
    rows[1]["messages"][1]["content"] = "other"
    again = session(tmp_path / "a.jsonl", rows)
    assert again.item is not None and again.item.ref.line == 2
    assert [record.line for record in again.desk.changed.values()] == [2] and again.item.hash in again.desk.changed
    gone = session(tmp_path / "a.jsonl", rows[:1])
    assert len(gone.desk.gone) == 2 and gone.desk.changed == {}


# --- order ---------------------------------------------------------------------------------------------------------


def test_orders(tmp_path: Path) -> None:
    rows = chats(10)
    items = read_items([str(write(tmp_path / "a.jsonl", rows))]).all
    keys: dict[str, Any] = {"seed": 1, "score": "score", "around": 0.5}
    assert ordered(items, "file", **keys) == list(range(10))
    assert ordered(items, "low", **keys) == list(range(10))
    assert ordered(items, "high", **keys) == list(reversed(range(10)))
    assert ordered(items, "uncertain", **keys) == [4, 3, 5, 2, 6, 1, 7, 0, 8, 9]
    mixed = ordered(items, "random", **keys)
    assert sorted(mixed) == list(range(10)) and mixed != list(range(10))
    assert mixed != ordered(items, "random", **{**keys, "seed": 2})
    fewer = read_items([str(write(tmp_path / "b.jsonl", rows[:6]))]).all
    assert ordered(fewer, "random", **keys) == [place for place in mixed if place < 6], "appended rows move no other"


def test_rows_without_a_score_are_all_named(tmp_path: Path) -> None:
    rows = [
        *chats(1),
        {**chats(1)[0], "score": None},
        {**chats(1)[0], "score": "0.5"},
        {"messages": chats(1)[0]["messages"]},
    ]
    with pytest.raises(DataError) as caught:
        ordered(desk(tmp_path / "a.jsonl", rows).items.all, "low", seed=0, score="score", around=0)
    assert [(p.code, p.line) for p in caught.value.problems] == [("D292", 2), ("D292", 4)]
