"""The page in Chromium: it draws, filters, selects and opens rows; payloads run nowhere; no request leaves it.

Driven over a pipe (`browser.py`). Marked slow: it starts a browser several times.
"""

from __future__ import annotations

import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from tests.explore.browser import Browser, find_chromium
from tests.explore.support import PAYLOADS, hostile_set, page_of, planted_set

STAGE = "document.getElementById('stage').getBoundingClientRect()"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    explored, _ = planted_set(300, 60, without=("music",))
    return page_of(explored, tmp_path_factory.mktemp("page") / "map.html")


@pytest.fixture
def browser(page):
    with Browser(find_chromium()) as tab:
        tab.open(page)
        yield tab
        assert tab.complaints() == [] and tab.requests() == []


def text(tab, identifier):
    return tab.js(f"document.getElementById('{identifier}').textContent")


def drawn_pixels(tab):
    code = """(() => { const c = document.getElementById('points');
        const d = new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer);
        let k = 0; for (const p of d) k += p !== d[0]; return k; })()"""
    return tab.js(code)


def test_it_draws_points_and_lists_rows(browser):
    assert text(browser, "count") == "360 of 360 rows"
    browser.until("document.querySelectorAll('#list .line').length > 3")
    assert drawn_pixels(browser) > 1000
    assert "train.jsonl:1" in browser.js("document.querySelector('#list .line small').textContent")


def test_filters_by_split_text_length_and_coverage(browser):
    browser.js("document.querySelectorAll('#kinds input[type=checkbox]').forEach((box) => {"
               " if (box.parentElement.textContent.startsWith('train')) box.click(); })")  # fmt: skip
    assert text(browser, "count") == "60 of 360 rows"
    browser.js("document.getElementById('uncovered').click()")
    uncovered = browser.js("luthierMap.state.shownCount")
    assert 3 <= uncovered < 20
    browser.press("Escape")
    assert text(browser, "count") == "360 of 360 rows"
    browser.press("/")
    for letter in "Telescope":
        browser.press(letter)
    browser.until("document.getElementById('found').textContent.endsWith('rows have it')")
    found = browser.js("luthierMap.state.shownCount")
    assert 0 < found < 80 and text(browser, "found") == f"{found} rows have it"
    browser.js("document.getElementById('clear').click()")
    middle = browser.js("[...document.querySelectorAll('#sort option')].map((o) => o.value).join()")
    assert "length down" in middle
    browser.js("document.getElementById('low').value = 200")
    browser.js("document.getElementById('low').dispatchEvent(new Event('change'))")
    assert 0 < browser.js("luthierMap.state.shownCount") < 360


def test_lasso_selects_and_the_list_is_saved(browser):
    box = browser.js(f"((b) => [b.left, b.top, b.width, b.height])({STAGE})")
    browser.press("l")
    left, top, width, height = box
    corners = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98), (0.02, 0.3)]
    places = [(left + x * width, top + y * height) for x, y in corners]
    browser.mouse("mousePressed", *places[0], button="left", clickCount=1)
    for place in places[1:]:
        browser.mouse("mouseMoved", *place, button="left", buttons=1)
    browser.mouse("mouseReleased", *places[-1], button="left", clickCount=1)
    selected = browser.js("luthierMap.state.selectedCount")
    assert selected > 300 and f"{selected} selected" in text(browser, "count")
    browser.js("luthierMap.select([0, 2, 300])")
    browser.js("""window.saved = ''; HTMLAnchorElement.prototype.click = () => {};
        URL.createObjectURL = (blob) => { blob.text().then((t) => { window.saved = t; }); return 'blob:none'; };
        document.getElementById('export').click()""")
    browser.until("window.saved !== ''")
    assert browser.js("window.saved") == "train.jsonl:1\ntrain.jsonl:3\ntest.jsonl:301\n"


def test_a_click_opens_a_row_and_keys_move_on(browser):
    place = browser.js(f"((b, at) => [b.left + at[0], b.top + at[1]])({STAGE}, luthierMap.place(5))")
    browser.click(*place)
    browser.until("luthierMap.state.open >= 0 && document.querySelectorAll('#row-body .turn').length === 2")
    browser.js("luthierMap.openRow(0)")
    browser.press("j")
    browser.until("luthierMap.state.open === 1")
    assert text(browser, "row-ref") == "train.jsonl:2"
    browser.js("luthierMap.openRow(301)")
    browser.until("document.querySelector('#row-near .turn') !== null")
    assert "Nearest training row" in text(browser, "row-near") and "train.jsonl:" in text(browser, "row-near")
    browser.press("Escape")
    assert browser.js("document.getElementById('row').hidden")


def test_colours_zoom_and_keys_of_the_map(browser):
    for value in browser.js("[...document.querySelectorAll('#colour option')].map((o) => o.value)"):
        browser.js(f"luthierMap.setColour({value!r}); luthierMap.draw()")
        assert drawn_pixels(browser) > 500, value
    browser.js("document.getElementById('marks').focus()")
    browser.press("0")
    before = browser.js("luthierMap.view.scale")
    browser.press("+")
    browser.press("ArrowLeft")
    assert browser.js("luthierMap.view.scale") > before * 1.3
    browser.press("0")
    assert browser.js("luthierMap.view.scale") == before


def test_tokens_and_rendered_text_are_those_of_training(tmp_path):
    from luthier.explore.rows import explore_files
    from tests.cli.calling import make_world

    make_world(tmp_path)
    explored = explore_files([str(tmp_path / "rows.jsonl")], tokenizer=str(tmp_path / "base"))
    with Browser(find_chromium()) as tab:
        tab.open(page_of(explored, tmp_path / "map.html"))
        for index in (0, 7):
            row = explored.items[index].tokens
            tab.js(f"luthierMap.openRow({index}).then(() => document.querySelector('[data-view=tokens]').click())")
            tab.until("document.querySelectorAll('#row-body .t').length > 10")
            tab.until(f"document.querySelectorAll('#row-body .tokens .t').length === {len(row)}")
            found = "[...document.querySelectorAll('#row-body .tokens .trained')]"
            trained = tab.js(found + ".map((t) => t.textContent).join('')")
            assert trained == explored.tokenizer.decode([t for t, w in zip(row.ids, row.weights, strict=True) if w])
            tab.js("document.querySelector('[data-view=text]').click()")
            tab.until("!!document.querySelector('#row-body .rendered')")
            assert text(tab, "row-body") == explored.tokenizer.decode(row.ids)
            tab.js("document.querySelector('[data-view=chat]').click()")
        assert tab.complaints() == []


def test_payloads_run_nowhere(tmp_path):
    explored = hostile_set()
    with Browser(find_chromium()) as tab:
        tab.open(page_of(explored, tmp_path / "map.html"))
        seen = ""
        for index in range(len(PAYLOADS) + 2):
            tab.js(f"luthierMap.openRow({index})")
            tab.until(f"luthierMap.state.open === {index} && document.querySelectorAll('#row-body .turn').length === 5")
            seen += text(tab, "row")
        assert all(payload in seen for payload in PAYLOADS), "they are shown as they are"
        tab.js("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        tab.js("luthierMap.search('script', () => {})")
        assert tab.js("window.pwned === undefined")
        assert tab.js("document.querySelectorAll('iframe, img, svg, a, link').length") == 0
        assert tab.complaints() == [] and tab.requests() == []
        blocked = tab.js("""(() => { const said = [];
            for (const make of [() => { document.body.innerHTML += '<p>x</p>'; },
                () => { document.createElement('script').text = 'window.pwned = 99'; }]) {
              try { make(); said.push('done'); } catch (error) { said.push('refused'); } }
            return said.join(); })()""")
        assert blocked == "refused,refused", "the policy lets no text become HTML or script"


@pytest.mark.parametrize("keys", [{"width": 390, "height": 844, "touch": True}, {"dark": True}, {"ratio": 2}])
def test_other_screens(page, keys):
    with Browser(find_chromium(), **keys) as tab:
        tab.open(page)
        assert drawn_pixels(tab) > 500 and tab.complaints() == []
        assert tab.js("document.documentElement.scrollWidth <= window.innerWidth"), "nothing stands out to the side"
