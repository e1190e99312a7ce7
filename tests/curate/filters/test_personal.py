"""Personal data: check digits decide, placeholders are consistent, loss ranges and JSON stay right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.curate.filters.base import Change, Drop
from luthier.curate.filters.personal import KINDS, Personal, find
from luthier.data.types import Conversation, RowRef
from tests.curate.support import chat

ALL = list(KINDS)


def found(text: str) -> list[tuple[str, str]]:
    return [(item.kind, text[item.start : item.end]) for item in find(text, ALL)]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("write to john.doe@acme.co.uk.", "email", "john.doe@acme.co.uk"),
        ("(415) 555-0132 is ours", "phone", "(415) 555-0132"),
        ("at +49 30 901820, or", "phone", "+49 30 901820"),
        ("+33 6 76 91 44 85", "phone", "+33 6 76 91 44 85"),
        ("Phone 450 2991.", "phone", "450 2991"),
        ("from 8.8.8.8 today", "ip", "8.8.8.8"),
        ("2001:4860:4860::8888", "ip", "2001:4860:4860::8888"),
        ("card 4111 1111 1111 1111, thanks", "card", "4111 1111 1111 1111"),
        ("378282246310005", "card", "378282246310005"),
        ("IBAN DE89 3704 0044 0532 0130 00 AND MORE", "iban", "DE89 3704 0044 0532 0130 00"),
        ("GB82WEST12345698765432", "iban", "GB82WEST12345698765432"),
        ("536-90-4399", "ssn", "536-90-4399"),
        ("my PESEL is 44051401359", "national_id", "44051401359"),
        ("CPF 390.533.447-05", "national_id", "390.533.447-05"),
        ("RSSMRA85T10A562S", "national_id", "RSSMRA85T10A562S"),
        ("use ghp_16C7e42F292c6912E7710c838347Ae178B4a", "secret", "ghp_16C7e42F292c6912E7710c838347Ae178B4a"),
        ("password: 8fJq2LxZ9vTq4WmR!", "secret", "8fJq2LxZ9vTq4WmR"),
        ("api_key=fb3ac694b80bfaa944c42c00b4f530a1", "secret", "fb3ac694b80bfaa944c42c00b4f530a1"),
    ],
)
def test_what_is_found(text: str, kind: str, value: str) -> None:
    assert found(text) == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "card 4111 1111 1111 1112", "1234567890123456", "DE89 3704 0044 0532 0130 01", "000-12-3456", "44051401359",
        "a PESEL is a Polish number; the inventory of this shop has another, which is 44051401359",
        "my PESEL is 44051401358", "CPF 390.533.447-06", "192.168.1.1 and 127.0.0.1", "version 1.2.3.4", "dead::beef",
        "git@github.com:a/b.git", "password = hunter2", "api_key = os.environ['API_KEY_OF_OPENAI']",
        "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "3.14159265358979", "48/2 = <<48/2=24>>24", "1000-200-3000",
        "call it 12 times",
        "call me on 24.12.2024 or 2024-12-24", "9fceb02d0ae598e95dc970b74767f19372d61af8", "2024-05-17T12:30:45",
    ],
)  # fmt: skip
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    assert found(text) == []


def test_a_private_key_goes_as_a_whole_also_without_an_end() -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIE/abc=\n-----END RSA PRIVATE KEY-----"
    assert found(f"see {key} bye") == [("private_key", key)]
    assert found("x -----BEGIN PRIVATE KEY-----\nMIIEabc\n")[0][0] == "private_key"


def redacted(row: Conversation) -> Conversation:
    verdict = Personal("redact", ALL).judge(row)
    assert isinstance(verdict, Change)
    return verdict.row


def test_one_value_has_one_placeholder_in_all_messages_and_others_have_others() -> None:
    row = chat("a@b.com, A@B.com and c@d.org", "I wrote to c@d.org from 8.8.8.8")
    texts = [message["content"] for message in redacted(row).messages]
    assert texts == ["[EMAIL_1], [EMAIL_1] and [EMAIL_2]", "I wrote to [EMAIL_2] from [IP_1]"]


def test_a_placeholder_that_stands_there_already_is_not_used_for_another_value() -> None:
    row = chat("[EMAIL_1] and a@b.com", "yes")
    assert redacted(row).messages[0]["content"] == "[EMAIL_1] and [EMAIL_2]"


def test_loss_ranges_move_with_the_text() -> None:
    content = "mail john.doe@acme.com now, please"
    messages = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": content})
    start = content.index("now")
    row = Conversation(
        kind="chat", ref=RowRef("a", 1), messages=messages, message_weights=(None, 0.5),
        span_weights={1: ((0, 4, 2.0), (start, start + 3, 0.0))},
    )  # fmt: skip
    new = redacted(row)
    text = new.messages[1]["content"]
    assert [(text[a:b], w) for a, b, w in new.span_weights[1]] == [("mail", 2.0), ("now", 0.0)]
    assert new.message_weights == (None, 0.5)


def test_arguments_and_tools_stay_what_they_are() -> None:
    arguments = '{"to": "a@b.com",  "card": 4111111111111111, "n": 1.50}'
    call: dict[str, Any] = {"id": "a@b.com", "function": {"name": "send", "arguments": arguments}}
    tool = {"type": "function", "function": {"name": "send", "parameters": {"enum": ["a@b.com"]}}}
    messages = (
        {"role": "user", "content": "send it"}, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a@b.com", "content": "sent to a@b.com"},
    )  # fmt: skip
    row = Conversation(kind="chat", ref=RowRef("a", 1), messages=messages, message_weights=(None,) * 3, tools=[tool])
    new = redacted(row)
    written = new.messages[1]["tool_calls"][0]
    assert written["id"] == new.messages[2]["tool_call_id"] == "a@b.com"
    assert written["function"]["arguments"] == '{"to": "[EMAIL_1]",  "card": "[CARD_1]", "n": 1.50}'
    assert new.messages[2]["content"] == "sent to [EMAIL_1]"
    assert new.tools == [{"type": "function", "function": {"name": "send", "parameters": {"enum": ["[EMAIL_1]"]}}}]
    assert json.loads(arguments)["to"] == "a@b.com"


def test_both_answers_of_a_pair_and_a_pair_that_differs_in_nothing_else_goes() -> None:
    def pair(chosen: str, rejected: str) -> Conversation:
        answers = tuple(
            Conversation(kind="prompt_completion", ref=RowRef("a", 1), prompt="c@d.org?", completion=text)
            for text in (chosen, rejected)
        )
        return Conversation(kind="pair", ref=RowRef("a", 1), answers=answers)

    new = redacted(pair("write a@b.com", "no, c@d.org"))
    assert [answer.prompt for answer in new.answers] == ["[EMAIL_1]?"] * 2
    assert [answer.completion for answer in new.answers] == ["write [EMAIL_2]", "no, [EMAIL_1]"]
    assert isinstance(Personal("redact", ALL).judge(pair("a@b.com", "x@y.org")), Change)  # two values, two names
    verdict = Personal("redact", ["card"]).judge(pair("4111 1111 1111 1111", "4111111111111111"))
    assert isinstance(verdict, Drop) and "are the same" in verdict.detail


def test_no_value_stands_in_what_is_stored() -> None:
    row = chat("a@b.com", "password: 8fJq2LxZ9vTq4WmR")
    for action in ("redact", "drop"):
        verdict = Personal(action, ALL).judge(row)  # type: ignore[arg-type]
        assert verdict is not None
        stored = json.dumps([verdict.detail, verdict.facts])
        assert "a@b" not in stored and "8fJq" not in stored
        assert verdict.facts == {"found": {"email": 1, "secret": 1}}
