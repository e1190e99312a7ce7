"""What a row says: every text of it exactly once, whatever its kind."""

from luthier.data.types import Conversation, RowRef, Segment
from luthier.explore.turns import Turn, text_to_embed, turns_of
from tests.explore.support import asked, chat_row

REF = RowRef("a.jsonl", 1)


def test_a_chat_with_tools_thoughts_and_calls():
    call = [{"function": {"name": "f", "arguments": "{}"}}]
    row = chat_row(
        [
            {"role": "system", "content": "be short"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image", "url": "u"}]},
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": call},
            {"role": "tool", "content": "42"},
            {"role": "assistant", "content": "it is 42"},
        ],
        tools=[{"name": "f"}],
    )
    turns = turns_of(row)
    assert [(turn.role, turn.mark) for turn in turns] == [
        ("tools", ""), ("system", ""), ("user", ""), ("assistant", "reasoning"), ("assistant", "call"), ("tool", ""),
        ("assistant", ""),
    ]  # fmt: skip
    assert turns[2].text.startswith("hi\n{") and turns[3].text == "hm" and '"name": "f"' in turns[4].text
    assert text_to_embed(turns, "conversation").startswith("hi\n") and "be short" not in text_to_embed(turns, "prompt")
    assert text_to_embed(turns, "answer") == "it is 42"


def test_a_pair_has_its_prompt_once_and_both_answers():
    row = Conversation(kind="pair", ref=REF, answers=(asked("q", "good"), asked("q", "bad")))
    answers = [Turn("assistant", "good", "chosen"), Turn("assistant", "bad", "rejected")]
    assert turns_of(row) == [Turn("user", "q"), *answers]


def test_rated_and_raw_rows():
    rated = Conversation(kind="rated", ref=REF, answers=(asked("q", "no"),), label=False)
    assert turns_of(rated) == [Turn("user", "q"), Turn("assistant", "no", "undesired")]
    raw = Conversation(kind="prompt_completion", ref=REF, prompt="p", completion="c")
    assert turns_of(raw) == [Turn("prompt", "p"), Turn("completion", "c")]
    pieces = Conversation(kind="segments", ref=REF, segments=(Segment("a", 0.0), Segment("b", 1.0)))
    assert turns_of(pieces) == [Turn("segment", "a", "context"), Turn("segment", "b")]
    assert turns_of(Conversation(kind="text", ref=REF, text="t")) == [Turn("text", "t")]
    assert text_to_embed(turns_of(pieces), "answer") == "b"


def test_a_row_with_nothing_but_context_still_has_a_text():
    assert text_to_embed([Turn("system", "only this")], "conversation") == "only this"
