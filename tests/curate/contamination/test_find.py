"""What is found: copies, rewordings by hand, answers; what is a variant; what is left alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from luthier.curate.contamination.run import decontaminate
from luthier.curate.contamination.scan import parts_of
from luthier.curate.contamination.targets import text_on
from luthier.data.types import Conversation, RowRef
from luthier.recipe.schema import DecontaminateSection
from tests.curate.contamination.support import clean, evaluation, find, hand, place_of, row, text, verdict
from tests.curate.support import chat

REWORDED = [item for item in hand() if item["kind"] in {"light", "medium", "deep"}]


def asked(place: int) -> str:
    return str(evaluation()[place].messages[0]["content"])


def answered(place: int) -> str:
    return str(evaluation()[place].messages[1]["content"])


def typos(words: str) -> str:
    chance = random.Random(0)
    return " ".join(
        word[0] + word[2] + word[1] + word[3:] if len(word) > 4 and chance.random() < 0.2 else word
        for word in words.split()
    )


CHANGES: dict[str, Callable[[str], str]] = {
    "copy": lambda words: words,
    "case": str.upper,
    "white space": lambda words: "\n\n".join(words.split(" ")),
    "no punctuation": lambda words: words.replace(",", "").replace("?", "").replace(". ", " "),
    "typos": typos,
    "sentences reversed": lambda words: " ".join(reversed(words.split(". "))),
    "cut": lambda words: words[: int(0.6 * len(words))],
    "within other text": lambda words: f"{asked_of(clean()[5])} {words} {asked_of(clean()[6])} " * 3,
}


def asked_of(one: Conversation) -> str:
    return str(one.messages[0]["content"])


@pytest.mark.parametrize("change", CHANGES)
def test_every_copy_is_found_and_no_clean_row(change: str) -> None:
    planted = [
        row(CHANGES[change](asked(place)), answered(place), 10_000 + place) for place in range(len(evaluation()))
    ]
    found = find(planted)
    assert {match.row: match.of for match in found.matches} == {place: place for place in range(len(planted))}
    assert {match.verdict for match in found.matches} <= {"copy", "reworded", "answer"}


def test_every_rewording_by_hand_is_found_with_its_answer() -> None:
    assert len(REWORDED) >= 30
    planted = [row(item["question"], item["answer"], item["test_line"]) for item in REWORDED]
    found = {match.row: match for match in find(planted).matches}
    wanted = {index: place_of(item["test_line"]) for index, item in enumerate(REWORDED)}
    assert {index: match.of for index, match in found.items()} == wanted


def test_rewordings_with_another_solution_are_found_by_what_they_say() -> None:
    """Only the result is the same: the answer's text gives nothing away."""
    planted = []
    for item in REWORDED:
        result = item["answer"].split("####")[1].strip()
        planted.append(row(item["question"], f"Let us see. It comes to {result}.", item["test_line"]))
    found = {match.row: match for match in find(planted).matches}
    assert all(match.side == "prompt" for match in found.values())
    light = [index for index, item in enumerate(REWORDED) if item["kind"] == "light"]
    assert set(light) <= set(found)
    assert len(found) >= 0.8 * len(REWORDED)


def test_other_numbers_are_a_variant() -> None:
    place = place_of(605)  # Howard at the arcade
    other = asked(place).replace("$8", "$13").replace("$100", "$250").replace("4 times", "3 times")
    assert verdict(row(other, "13 + 26 + 78 = 117\n250 - 117 = 133\n#### 133")) == ("variant", place)
    assert verdict(text(other)) == ("variant", place)


def test_an_answer_alone_is_found_wherever_it_stands() -> None:
    place = place_of(65)
    assert verdict(row("And another one?", answered(place))) == ("answer", place)
    assert verdict(text(answered(place))) == ("answer", place)
    assert verdict(row("And another one?", answered(place)), on="prompt") is None


def test_on_answer_looks_for_no_prompt() -> None:
    place = place_of(65)
    assert verdict(row(asked(place)), on="answer") is None
    assert verdict(row(asked(place)), on="prompt") == ("copy", place)


def test_a_short_answer_is_not_looked_for_and_that_is_said() -> None:
    rows = [
        chat("What colour is the sky over the sea?", "blue", 1),
        chat("Where does the river end in the south?", "18", 2),
    ]
    found = decontaminate([row("Something else entirely?", "blue")], rows, DecontaminateSection())
    assert found.matches == [] and found.short == {"prompt": 0, "answer": 2}


def test_pairs_rated_rows_and_raw_rows() -> None:
    place = place_of(65)

    def raw(answer: str) -> Conversation:
        return Conversation(kind="prompt_completion", ref=RowRef("p.jsonl", 1), prompt=asked(place), completion=answer)

    pair = Conversation(kind="pair", ref=RowRef("p.jsonl", 1), answers=(raw("300 miles"), raw("I do not know.")))
    rated = Conversation(kind="rated", ref=RowRef("p.jsonl", 1), answers=(raw("300 miles"),), label=True)
    for one in (raw("300"), pair, rated):
        assert verdict(one) == ("copy", place)
    leaked = Conversation(
        kind="pair",
        ref=RowRef("p.jsonl", 1),
        answers=tuple(
            Conversation(kind="prompt_completion", ref=RowRef("p.jsonl", 1), prompt="Go on.", completion=answer)
            for answer in ("Never mind.", answered(place))
        ),
    )
    assert verdict(leaked) == ("answer", place)


def test_phrases_that_many_rows_share_do_not_count() -> None:
    frame = "Read the following problem with care, think step by step and write the result at the end of the answer. "
    rows = [
        chat(frame + asked_of(one), str(one.messages[1]["content"]), place) for place, one in enumerate(evaluation())
    ]
    framed = [chat(frame + asked_of(one), str(one.messages[1]["content"]), place) for place, one in enumerate(clean())]
    assert decontaminate(framed, rows, DecontaminateSection()).matches == []


def test_a_long_evaluation_text_is_found_by_a_piece_of_it() -> None:
    chance = random.Random(1)
    words = [f"{chance.choice('bcdfg')}{chance.choice('aeiou')}{chance.randrange(900)}x" for _ in range(3_000)]
    rows = [chat(" ".join(words), "yes", 1), *evaluation()]
    piece = text(" ".join(words[1_200:1_500]))
    assert [match.of for match in decontaminate([piece, *clean()], rows, DecontaminateSection()).matches] == [0]


def test_spans_are_places_that_match() -> None:
    place = place_of(65)
    wrapped = row(f"A riddle for you: {asked(place)} Good luck!", "300")
    match = find([wrapped]).matches[0]
    own, other = parts_of(wrapped)[match.part], text_on(evaluation()[place], match.side)
    assert own[slice(*match.spans[0])].startswith("Sophia is thinking") and "riddle" not in str(match.spans)
    marked = [own[start:end] for start, end in match.spans]
    assert "".join(marked) == "".join(other[start:end] for start, end in match.of_spans)
    assert not any("riddle" in piece or "luck" in piece for piece in marked)


def test_the_order_of_the_rows_and_copies_change_nothing() -> None:
    """Five copies of one evaluation row make its words no less telling."""
    place = place_of(65)
    rows = [row(asked(place), "300", line) for line in range(1, 6)]
    found = decontaminate(rows, evaluation(), DecontaminateSection())
    assert [(match.row, match.of) for match in found.matches] == [(index, place) for index in range(5)]
    one = decontaminate(rows[:1], evaluation()[place : place + 1], DecontaminateSection())
    assert [match.verdict for match in one.matches] == ["copy"]


@pytest.mark.parametrize("rows", [[], [row("", "")], [text("")]])
def test_nothing_to_compare(rows: list[Any]) -> None:
    assert decontaminate(rows, evaluation(), DecontaminateSection()).matches == []
    assert decontaminate(rows, [], DecontaminateSection()).matches == []


def test_thresholds_decide() -> None:
    place = place_of(65)
    half = row(" ".join(asked(place).split()[:32]), "no idea")
    match = find([half]).matches[0]
    assert match.kinds == tuple(
        kind for kind in match.kinds if match.scores[kind] >= {"ngram": 0.3, "characters": 0.55, "reworded": 0.36}[kind]
    )
    assert find([half], ngram=1.0, characters=1.0, reworded=1.0).matches == []


def test_another_number_but_the_same_result_is_no_variant() -> None:
    """`half` became `50%`: each text has a number that the other lacks."""
    place = place_of(290)
    other = asked(place).replace("half that speed", "50% of that speed")
    assert "50%" in other
    assert verdict(row(other, "60 * 0.5 = 30\n480 / 30 = 16")) == ("copy", place)
    assert verdict(row(other, "60 * 0.5 = 30\n480 / 30 = 17")) == ("variant", place)


def test_one_shared_number_is_not_enough_be_it_ever_so_rare() -> None:
    rows = [
        chat("The Pebble Sleeping Bag is not what I hoped for. I ordered it as 0944SO. Emeka", '{"order": "0944SO"}', 1)
    ]
    ticket = row(
        "Sven from Malmo here, the new Phoenix Headphones stopped. Find it under 0944TC.", '{"order": "0944TC"}'
    )
    assert decontaminate([ticket, *clean()], [*rows, *evaluation()], DecontaminateSection()).matches == []


@pytest.mark.parametrize("before", range(0, 240, 20))
def test_a_question_is_found_wherever_it_stands_in_a_long_text(before: int) -> None:
    place = place_of(65)
    filler = " ".join(f"word{number}" for number in range(1_000)).split()
    found = find([text(" ".join([*filler[:before], asked(place), *filler[before:]]))]).matches
    assert [(match.verdict, match.of) for match in found] == [("copy", place)]
    assert found[0].scores["ngram"] > 0.95


def test_spans_begin_and_end_with_words() -> None:
    planted = [row(item["question"], item["answer"], item["test_line"]) for item in REWORDED]
    for match in find(planted).matches:
        own, other = parts_of(planted[match.row])[match.part], text_on(evaluation()[match.of], match.side)
        for full, spans in ((own, match.spans), (other, match.of_spans)):
            assert spans and all(full[start].isalnum() or full[start] == "." for start, _ in spans)
            assert all(full[end - 1].isalnum() for _, end in spans)
