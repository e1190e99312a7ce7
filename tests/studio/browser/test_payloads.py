"""F22: script in prompts, answers, names, titles, tags and errors is shown as text and runs nowhere.

The `page` fixture fails a test on any dialog, any request beyond the studio's own address, and any word in the console,
which is where Chromium reports a breach of the content security policy.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.studio.browser.conftest import World
from tests.studio.browser.payloads import PAYLOADS

expect = pytest.importorskip("playwright.sync_api").expect

STRAY = ", ".join(
    f"main {one}"
    for one in (
        "script", "iframe", "img", "style", "link", "[onerror]", "[onload]", "[ontoggle]", "[onclick]", "[onfocus]",
        "[href^='javascript:']", "[srcdoc]",
    )
)  # fmt: skip


def _inert(page: Any) -> None:
    """No element or attribute came out of the data."""
    assert page.locator(STRAY).count() == 0
    assert page.evaluate("document.querySelectorAll('script:not([src])').length") == 0


def test_names_titles_errors_and_tags_of_the_list(page: Any, world: World) -> None:
    page.goto("/studio/")
    expect(page.get_by_role("link", name=world.named, exact=True)).to_have_text(world.named)
    expect(page.locator(".cell.headline .bad")).to_have_text(f"T301 it broke {PAYLOADS[1]}")
    page.get_by_text("first", exact=True).hover()
    page.get_by_role("button", name="Tags and notes of first").click()
    page.get_by_label("Tags, with commas between").fill("<b>x</b>")
    page.get_by_role("textbox", name="Notes").fill("\n".join(PAYLOADS))
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.goto("/studio/?cols=name,tags")
    expect(page.locator(".cell.tags .tag", has_text="<b>x</b>")).to_be_visible()
    page.get_by_role("button", name="Tags and notes of first").click()
    expect(page.get_by_role("textbox", name="Notes")).to_have_value("\n".join(PAYLOADS))
    _inert(page)


def test_errors_events_and_recipe_of_a_run(page: Any) -> None:
    page.goto("/studio/runs/broken")
    expect(page.get_by_role("alert").first).to_have_text(f"T301: it broke {PAYLOADS[1]}")
    expect(page.get_by_role("region", name="Event feed")).to_contain_text(PAYLOADS[1])
    expect(page.get_by_role("region", name="Event feed")).to_contain_text(PAYLOADS[3])
    expect(page.locator(".sub")).to_contain_text(PAYLOADS[0])
    page.locator("summary", has_text="Recipe").click()
    expect(page.locator("pre.code")).to_contain_text(PAYLOADS[0])
    _inert(page)


@pytest.mark.parametrize("number", range(len(PAYLOADS)))
def test_a_row_in_every_view(page: Any, number: int) -> None:
    page.goto(f"/studio/runs/first/data?row={number}")
    turns = page.locator(".turn .text")
    expect(turns.first).to_be_visible(timeout=120_000)
    assert any(text.startswith(PAYLOADS[number]) for text in turns.all_text_contents())
    _inert(page)
    page.get_by_role("button", name="Text", exact=True).click()
    expect(page.locator("pre.text").first).to_contain_text(PAYLOADS[number])
    page.get_by_role("button", name="Tokens", exact=True).click()
    expect(page.get_by_role("application")).to_contain_text(PAYLOADS[number])
    _inert(page)


def test_prompts_references_and_answers_of_evaluations(page: Any) -> None:
    page.goto("/studio/runs/first/evals?only=all&sort=row")
    for number, payload in enumerate(PAYLOADS):
        page.goto(f"/studio/runs/first/evals?only=all&sort=row&row={number}")
        expect(page.locator(".turn .text").first).to_contain_text(payload, timeout=60_000)
        expect(page.locator(".reference .mono")).to_contain_text(payload)
    _inert(page)


def test_what_is_typed_into_recipe_search_and_playground(page: Any) -> None:
    page.goto("/studio/new")
    editor = page.get_by_role("textbox", name="Recipe (YAML)")
    for payload in PAYLOADS:
        editor.fill(f"name: {payload}\n{payload}: 1\n")
        page.wait_for_timeout(150)
    expect(page.locator("#recipe-problems .alert").first).to_be_visible(timeout=60_000)
    _inert(page)
    page.goto("/studio/play?run=first&max=4")
    page.get_by_label("User").fill(" ".join(PAYLOADS))
    page.locator("summary", has_text="Prompt as the model gets it").first.click()
    expect(page.locator(".prompt").first).to_contain_text(PAYLOADS[7], timeout=90_000)
    _inert(page)
    for payload in PAYLOADS:
        page.goto("/studio/?" + urlencode({"q": payload, "sort": payload, "cols": payload, "status": "failed"}))
        page.wait_for_timeout(200)
    page.watch.wrong = [line for line in page.watch.wrong if "400" not in line]
    _inert(page)


def test_a_streamed_answer_is_text(page: Any) -> None:
    """The answer comes from a stand-in here: no small model says a payload on demand."""
    parts = [{"choices": [{"delta": {"content": piece}, "finish_reason": None}]} for piece in " ".join(PAYLOADS)]
    parts.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    body = "".join(f"data: {json.dumps(part)}\n\n" for part in parts) + "data: [DONE]\n\n"
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body)
    )
    page.goto("/studio/play?run=first")
    page.get_by_label("User").fill("hello")
    page.get_by_role("button", name="Ask 2 models").click()
    expect(page.locator(".answer .text").first).to_have_text(" ".join(PAYLOADS), timeout=60_000)
    _inert(page)
