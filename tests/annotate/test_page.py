"""The page in a real browser: keys decide, and nothing that stands in a row runs."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.annotate.server import Page, serve
from tests.annotate.browser import CHROMIUM, Browser
from tests.annotate.support import chats, desk, pairs, says, user

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]

PAYLOADS = [
    "<script>window.owned=1</script>",
    "<img src=x onerror=window.owned=1>",
    "<svg onload=window.owned=1><animate onbegin=window.owned=1 attributeName=x>",
    "\"><script>window.owned=1</script>",
    "'-(window.owned=1)-'",
    "<iframe srcdoc='<script>parent.owned=1</script>'></iframe>",
    "<a href='javascript:window.owned=1' autofocus onfocus=window.owned=1>x</a>",
    "{{constructor.constructor('window.owned=1')()}}${window.owned=1}",
    "</textarea></p><details open ontoggle=window.owned=1>x</details>",
    "<style>@import 'http://127.0.0.1:9/x';</style><link rel=stylesheet href=http://127.0.0.1:9/y><base href=//evil>",
    "<form action=http://127.0.0.1:9/z><button autofocus>x</button></form><meta http-equiv=refresh content='0;javascript:window.owned=1'>",  # noqa: E501
]  # fmt: skip


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Any]:
    servers = []

    def start(rows: list[Any], **options: Any) -> tuple[Browser, Page]:
        page = Page(desk(tmp_path / "a.jsonl", rows), annotator=options.pop("annotator", "ann"))
        server, address = serve(page)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = Browser(**options)
        servers.append((server, browser))
        browser.open(address)
        return browser, page

    yield start
    for server, browser in servers:
        browser.close()
        server.shutdown()
        server.server_close()


def row_shown(browser: Browser, number: int) -> None:
    browser.wait(f"document.getElementById('place').textContent.startsWith('Row {number} of')")


def test_keys_decide_edit_tag_and_take_back(opened: Any) -> None:
    browser, page = opened(chats(4))
    row_shown(browser, 1)
    browser.key("a")
    row_shown(browser, 2)
    browser.key("e")
    browser.wait("document.activeElement.tagName === 'TEXTAREA'")
    browser.type(" and more")
    browser.key("a")  # typed, not a decision
    browser.key("Enter", ctrl=True)
    row_shown(browser, 3)
    browser.key("t")
    browser.wait("document.getElementById('ask').open")
    browser.type("odd")
    browser.key("Enter")
    browser.wait("document.querySelector('#tags button')")
    browser.key("r")
    row_shown(browser, 4)
    browser.key("u")
    row_shown(browser, 3)
    browser.js("document.querySelector('#tags button').click()")
    browser.wait("!document.querySelector('#tags button')")
    records = page.desk.log.records
    assert [record.action for record in records] == ["accept", "edit", "tag", "reject", "undo", "untag"]
    assert records[1].edits[0].text == "a1 and morea"


def test_pairs_are_chosen_by_side(opened: Any) -> None:
    browser, page = opened(pairs(6))
    for number in range(1, 7):
        row_shown(browser, number)
        left = browser.js("document.querySelector('#answers .text').textContent")
        browser.key("a")  # means nothing for a pair
        browser.key("1" if left.startswith("a") else "2")
    browser.wait("!document.getElementById('done-card').hidden")
    assert [record.choice for record in page.desk.log.records] == ["first"] * 6
    assert {record.left for record in page.desk.log.records} == {"first", "second"}


def test_nothing_in_a_row_or_a_name_runs(opened: Any) -> None:
    rows: list[Any] = [
        {"messages": [{"role": "system", "content": text}, user(text), says(text, name=text, reasoning_content=text)],
         "tools": [{"name": text}], text: text}
        for text in PAYLOADS
    ]  # fmt: skip
    rows += []
    browser, page = opened(rows, annotator="<img/src=x/onerror=window.owned=1>")
    for number in range(1, len(rows) + 1):
        row_shown(browser, number)
        browser.key("t")
        browser.wait("document.getElementById('ask').open")
        browser.type(PAYLOADS[number - 1])
        browser.key("Enter")
        browser.wait("document.querySelector('#tags button')")
        browser.key("e")
        browser.wait("document.querySelector('textarea[data-slot]')")
        assert browser.js("document.querySelector('textarea[data-slot]').value") == PAYLOADS[number - 1]
        assert browser.js("document.querySelectorAll('script').length") == 1
        assert browser.js("document.querySelectorAll('img,iframe,svg,style,form,main a,base').length") == 0
        browser.key("Escape")
        browser.key("a")
    browser.wait("!document.getElementById('done-card').hidden")
    assert browser.js("window.owned") is None
    assert browser.js("document.getElementById('who').textContent").startswith("<img")
    address = browser.js("location.origin")
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert asked and all(url.startswith(address) for url in asked)
    assert len(page.desk.log.records) == 2 * len(rows)


def test_the_policy_stops_a_script_that_would_get_in(opened: Any) -> None:
    """The second wall, were the first to fail: inline scripts, handlers and HTML sinks are refused by the browser."""
    browser, _ = opened(chats(1))
    row_shown(browser, 1)
    for sink in (
        "document.body.innerHTML = '<b>x</b>'",
        "const s = document.createElement('div'); s.setAttribute('onclick', 'window.owned=1'); s.click(); "
        "throw new TypeError()",
        "const s = document.createElement('script'); s.textContent = 'window.owned=1'; document.body.append(s)",
        "eval('window.owned=1')",
        "location.href = 'javascript:window.owned=1'; throw new TypeError()",
    ):
        tried = browser.js(f"(() => {{ try {{ {sink}; return 'done' }} catch (error) {{ return error.name }} }})()")
        assert tried in {"TypeError", "EvalError"}, (sink, tried)
    assert browser.js("window.owned") is None


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_sticks_out_sideways(opened: Any, width: int) -> None:
    long = {"messages": [user("x" * 500), says("<b>" + "y" * 2000)], "a_column_of_a_very_long_name_indeed": "z" * 300}
    browser, _ = opened([long, *pairs(0)], width=width, mobile=width < 700)
    row_shown(browser, 1)
    assert browser.js("document.documentElement.scrollWidth <= window.innerWidth")


def test_every_control_has_a_name_and_focus_goes_through_all(opened: Any) -> None:
    browser, _ = opened(chats(1))
    row_shown(browser, 1)
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in tree if node.get("role", {}).get("value") in {"button", "textbox", "progressbar"}]
    assert len(controls) > 10
    assert all(node["name"]["value"].strip() for node in controls if not node.get("ignored"))
