"""Through all seven screens on the real server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.studio.browser.conftest import World

expect = pytest.importorskip("playwright.sync_api").expect

SCREENS = (
    "", "new", "data", "compare", "play", "runs/first", "runs/first/data?row=1&view=tokens", "runs/first/evals",
    "compare?runs=first,second",
)  # fmt: skip


def _state(folder: Path) -> dict[str, int]:
    """Every file with the time of its last change."""
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_runs_are_found_sorted_pinned_tagged_and_picked(page: Any, world: World) -> None:
    before = _state(world.runs / "second")
    page.goto("/studio/")
    rows = page.get_by_role("grid", name="Runs").get_by_role("row")
    expect(page.get_by_role("link", name="second", exact=True)).to_be_visible()
    expect(rows).to_have_count(world.count + 1)  # and the head
    page.get_by_role("searchbox", name="Search runs").fill("second")
    expect(rows).to_have_count(2)
    assert "q=second" in page.url
    page.reload()
    expect(rows).to_have_count(2)
    page.get_by_role("searchbox", name="Search runs").fill("")
    page.get_by_role("button", name="failed 1").click()
    expect(rows).to_have_count(2)
    expect(page.get_by_text("it broke").first).to_be_visible()
    page.get_by_role("button", name="failed 1").click()

    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("columnheader", name="Run")).to_have_attribute("aria-sort", "descending")
    rows.nth(1).hover()
    page.get_by_role("button", name="Pin second").click()
    expect(page.get_by_role("button", name="Pin second")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Tags and notes of second").click()
    page.get_by_label("Tags, with commas between").fill("keep, best")
    page.get_by_role("textbox", name="Notes").fill("a note")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("button", name="★ pinned").click()
    expect(rows).to_have_count(2)
    page.get_by_role("combobox", name="Tag").select_option("best")
    expect(rows).to_have_count(2)
    assert _state(world.runs / "second") == before, "tags are kept beside the run folders, not in them"

    page.goto("/studio/")
    page.get_by_label("Pick first for comparing").check()
    page.get_by_label("Pick second for comparing").check()
    page.get_by_role("link", name="Compare 2 runs").click()
    expect(page.get_by_role("heading", name="Compare", level=1)).to_be_visible()
    expect(page.get_by_role("region", name="Settings that differ")).to_contain_text("train.learning_rate")


def test_columns_are_chosen(page: Any) -> None:
    page.goto("/studio/")
    page.locator("summary", has_text="Columns").click()
    page.get_by_role("checkbox", name="Eval loss").check()
    page.get_by_role("checkbox", name="Base model").uncheck()
    expect(page.get_by_role("columnheader", name="Eval loss")).to_be_visible()
    expect(page.get_by_role("columnheader", name="Base model")).to_have_count(0)
    page.reload()
    expect(page.get_by_role("columnheader", name="Eval loss")).to_be_visible()


def test_the_page_of_a_run_has_curves_with_their_numbers(page: Any) -> None:
    page.goto("/studio/runs/first")
    loss = page.get_by_role("figure", name="Loss")
    expect(loss.locator("canvas")).to_be_visible()
    loss.locator("summary").click()
    expect(loss.get_by_role("row")).to_have_count(9)  # eight steps and the head
    page.get_by_role("button", name="Tokens", exact=True).click()
    assert "axis=tokens" in page.url
    expect(loss.get_by_role("columnheader").first).to_have_text("tokens")
    for name in ("Gradient norm", "Learning rate", "Tokens per second"):
        expect(page.get_by_role("figure", name=name).locator("canvas")).to_be_visible()
    expect(page.get_by_role("region", name="Event feed")).to_contain_text("checkpoint")
    page.locator("summary", has_text="Settings").click()
    expect(page.get_by_role("region", name="Settings")).to_contain_text("train.learning_rate")


def test_data_as_chat_text_and_tokens(page: Any) -> None:
    page.goto("/studio/runs/first/data")
    grid = page.get_by_role("grid", name="Rows")
    expect(grid.get_by_role("row").first).to_be_visible(timeout=120_000)
    expect(page.get_by_role("region", name="Format")).to_contain_text("trainer's own prepared rows")
    expect(page.get_by_role("figure", name="Lengths of rows in tokens")).to_be_visible()
    grid.get_by_role("row").nth(2).click()
    expect(page.get_by_text("assistant").first).to_be_visible()
    page.get_by_role("button", name="Text", exact=True).click()
    expect(page.locator("pre.text").first).to_contain_text("<|im_start|>user")
    page.get_by_role("button", name="Tokens", exact=True).click()
    tokens = page.get_by_role("application")
    expect(tokens.locator(".trained").first).to_be_visible()
    tokens.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".info")).to_contain_text("position 1")
    address = page.url
    page.reload()
    expect(page.get_by_role("application")).to_be_visible(timeout=60_000)
    assert page.url == address and "view=tokens" in address


def test_a_file_before_any_run(page: Any) -> None:
    page.goto("/studio/data")
    page.get_by_role("link", name="train.jsonl").click()
    expect(page.get_by_role("region", name="Format")).to_contain_text("messages", timeout=60_000)
    page.get_by_role("searchbox", name="Search the text of rows").fill("onerror")
    expect(page.get_by_text("3 rows found")).to_be_visible(timeout=30_000)


def test_form_and_text_follow_each_other_and_problems_have_lines(page: Any) -> None:
    page.goto("/studio/new?from=first")
    editor = page.get_by_role("textbox", name="Recipe (YAML)")
    expect(editor).to_have_value(re.compile("max_steps"), timeout=60_000)
    form = page.get_by_role("region", name="Short form")
    expect(form.get_by_label("Learning rate")).to_have_value("0.001", timeout=60_000)
    form.get_by_label("Learning rate").fill("3e-4")
    form.get_by_label("Learning rate").press("Tab")
    expect(editor).to_have_value(re.compile(r"learning_rate: (0\.0003|3e-4)"), timeout=60_000)
    text = editor.input_value().replace("learning_rate:", "lerning_rate:")
    editor.fill(text)
    line = text[: text.index("lerning_rate")].count("\n") + 1
    expect(page.locator("#recipe-problems")).to_contain_text(f"line {line}", timeout=60_000)
    expect(page.get_by_role("button", name="Start run")).to_be_disabled()
    editor.fill(text.replace("lerning_rate:", "learning_rate:"))
    expect(page.get_by_role("region", name="Plan")).to_contain_text("fits", timeout=120_000)
    expect(page.get_by_role("region", name="Equivalent command")).to_contain_text("luthier run")
    expect(page.get_by_role("button", name="Start run")).to_be_enabled(timeout=60_000)


def test_a_run_is_started_and_followed_to_its_end(page: Any, world: World) -> None:
    page.goto("/studio/new?from=second")
    editor = page.get_by_role("textbox", name="Recipe (YAML)")
    expect(editor).to_have_value(re.compile("runs/second"))
    page.get_by_role("region", name="Short form").get_by_label("Run folder").fill("runs/started")
    page.get_by_role("region", name="Short form").get_by_label("Run folder").press("Tab")
    expect(editor).to_have_value(re.compile("runs/started"))
    expect(page.get_by_role("button", name="Start run")).to_be_enabled()
    page.get_by_role("button", name="Start run").click()
    page.wait_for_url("**/studio/runs/*")
    expect(page.get_by_role("heading", level=1)).to_have_text("started")
    expect(page.get_by_text("finished", exact=True).first).to_be_visible(timeout=240_000)
    expect(page.get_by_role("region", name="Event feed")).to_contain_text("training ended at step 8")
    assert (world.runs / "started" / "report.html").is_file()


def test_the_editor_offers_keys_of_the_schema(page: Any) -> None:
    page.goto("/studio/new")
    editor = page.get_by_role("textbox", name="Recipe (YAML)")
    editor.fill("train:\n  learning_r")
    expect(page.locator(".help")).to_contain_text("The loop")  # the schema is there
    editor.press("End")
    editor.press("Control+Space")
    expect(page.get_by_role("option", name="learning_rate Peak")).to_be_visible(timeout=30_000)
    editor.press("Enter")
    expect(editor).to_have_value("train:\n  learning_rate: ")
    expect(page.locator(".help")).to_contain_text("Peak learning rate")


def test_compare_and_before_after(page: Any) -> None:
    page.goto("/studio/compare?runs=first,second")
    expect(page.get_by_role("figure", name="Training loss").locator("canvas")).to_be_visible(timeout=60_000)
    settings = page.get_by_role("region", name="Settings that differ")
    expect(settings).to_contain_text("train.learning_rate")
    expect(settings).not_to_contain_text("max_length")
    page.get_by_role("combobox", name="Add a run").fill("broken")
    page.get_by_role("option", name="broken").click()
    expect(page.get_by_role("button", name="Leave out broken")).to_be_visible(timeout=60_000)

    page.goto("/studio/runs/first/evals?only=all")
    expect(page.get_by_role("region", name="Task words")).to_be_visible(timeout=60_000)
    expect(page.get_by_role("grid", name="Rows of words").get_by_role("row").first).to_be_visible(timeout=60_000)
    expect(page.get_by_role("region", name="Answer of base")).to_be_visible()
    expect(page.get_by_role("region", name="Answer of tuned")).to_be_visible()


def test_playground_streams_the_same_prompt_to_two_models(page: Any) -> None:
    page.goto("/studio/play?run=first&max=8")
    user = page.get_by_label("User")
    user.fill("time year people")
    expect(page.get_by_role("button", name="Ask 2 models")).to_be_enabled(timeout=60_000)
    page.get_by_role("button", name="Ask 2 models").click()
    expect(page.locator(".meta", has_text="tokens/s")).to_have_count(2, timeout=180_000)
    page.get_by_role("button", name="Top tokens").first.click()
    page.locator("button.t").first.focus()
    expect(page.get_by_role("columnheader", name="Log probability")).to_be_visible()
    page.locator("summary", has_text="Prompt as the model gets it").first.click()
    expect(page.locator(".prompt").first).to_contain_text("<|im_start|>user", timeout=60_000)


@pytest.mark.parametrize("address", SCREENS)
def test_a_phone_shows_every_screen_without_scrolling_sideways(phone: Any, address: str) -> None:
    phone.goto(f"/studio/{address}")
    expect(phone.get_by_role("heading", level=1)).to_be_visible(timeout=60_000)
    phone.wait_for_timeout(1500)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_run_with_a_strange_name_has_its_pages(page: Any, world: World) -> None:
    page.goto("/studio/")
    page.get_by_role("link", name=world.named, exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(world.named)
    assert quote(world.named) in page.url or "%3Cimg" in page.url


def test_unknown_pages_and_runs_say_so(page: Any) -> None:
    page.goto("/studio/nothing")
    expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
    page.goto("/studio/runs/none")
    expect(page.get_by_role("alert").first).to_be_visible()
    # The browser itself reports the 404 of the request; nothing else may be wrong.
    page.watch.wrong = [line for line in page.watch.wrong if "404" not in line]


def test_without_a_session_the_page_says_what_to_do(world: World, browser: Any) -> None:
    context = browser.new_context(base_url=world.base_url)
    page = context.new_page()
    page.goto("/studio/")
    expect(page.get_by_role("heading", name="This browser has no session")).to_be_visible()
    expect(page.locator("main")).to_contain_text("luthier studio")
    context.close()
