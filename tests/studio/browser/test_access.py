"""Keyboard, names and landmarks; axe-core's rules over every screen, light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.studio.browser.conftest import World

expect = pytest.importorskip("playwright.sync_api").expect

AXE = Path(__file__).resolve().parents[3] / "studio" / "node_modules" / "axe-core" / "axe.min.js"
SCREENS = (
    "", "runs/first", "runs/first/data?row=1&view=tokens", "runs/first/data?row=1", "runs/first/evals?only=all", "new",
    "compare?runs=first,second", "play", "data",
)  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", SCREENS)
def test_axe_finds_nothing(page: Any, address: str, scheme: str) -> None:
    if not AXE.is_file():
        pytest.skip("axe-core comes with `make studio-build`")
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.goto(f"/studio/{address}")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    expect(page.locator(".wait")).to_have_count(0, timeout=120_000)
    page.wait_for_timeout(500)
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    told = [f"{one['id']}: {one['help']}: {[node['target'] for node in one['nodes'][:3]]}" for one in found]
    assert not told, "\n".join(told)


def test_the_keyboard_reaches_a_run_and_the_focus_is_seen(page: Any, world: World) -> None:
    page.goto("/studio/")
    expect(page.get_by_role("link", name="first", exact=True)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    row = page.get_by_role("grid", name="Runs").locator("[role=row][tabindex='0']")
    row.focus()
    page.keyboard.press("ArrowDown")
    focused = page.locator(":focus")
    expect(focused).to_have_attribute("data-index", "1")
    assert focused.evaluate("node => getComputedStyle(node).outlineStyle") != "none"
    page.keyboard.press("End")
    expect(page.locator(":focus")).to_have_attribute("data-index", str(world.count - 1))
    page.keyboard.press("Enter")
    expect(page.get_by_role("navigation", name="Pages of this run")).to_be_visible()


def test_landmarks_titles_and_the_switch_of_colours(page: Any) -> None:
    page.goto("/studio/runs/first")
    for landmark in ("banner", "main"):
        expect(page.get_by_role(landmark)).to_have_count(1)
    expect(page).to_have_title("Run · first · Luthier studio")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Dark").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != before
    page.reload()
    expect(page.get_by_role("button", name="Dark")).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
