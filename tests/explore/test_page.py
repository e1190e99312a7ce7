"""The page: what it holds reads back to the rows, and nothing of a row can run or leave it."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from luthier.explore.chart import draw_chart
from luthier.explore.pack import blocks, column, embed_json, read_column, read_page
from luthier.explore.page import render_map
from luthier.explore.rows import explore_files
from luthier.explore.tokens import KINDS, TokenPacker, unpack_text
from luthier.explore.turns import Turn
from tests.cli.calling import make_world
from tests.explore.support import PAYLOADS, hostile_set, planted_set


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_columns_of_whole_numbers_read_back(values):
    packed = column(values)
    assert read_column(packed).tolist() == values
    most = max(values, default=0)
    assert packed["type"] == ("u8" if most < 256 else "u16" if most < 65536 else "u32")


def test_columns_of_numbers_read_back_and_what_fits_none_is_refused():
    floats = np.array([1.5, np.nan, -2.0], np.float32)
    assert np.array_equal(read_column(column(floats)), floats, equal_nan=True)
    for bad in ([-1], [2**32]):
        with pytest.raises(ValueError, match="no column type"):
            column(bad)


@settings(deadline=None)
@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3), max_size=9))
def test_blocks_read_back(rows):
    page = "".join(f'<script type="text/plain" id="chat-{i}">{text}</script>' for i, text in enumerate(blocks(rows, 4)))
    assert read_page(page)["chat"] == rows


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_in_the_page_has_no_character_that_ends_an_element(text):
    import json

    said = embed_json({"a": text})
    assert not set("<>&\u2028\u2029") & set(said) and json.loads(said) == {"a": text}


@pytest.fixture(scope="module")
def drawn():
    explored, _ = planted_set(400, 50)
    chart = draw_chart(explored, languages=False)
    return chart, render_map(chart)


def test_the_page_holds_the_rows(drawn):
    chart, html = drawn
    page = read_page(html)
    head, items = page["head"], chart.explored.items
    assert head["n"] == len(items) == len(page["chat"]) == 450 and page["tokens"] == []
    files, lines = read_column(head["file"]), read_column(head["line"])
    assert [f"{head['files'][f]}:{line}" for f, line in zip(files, lines, strict=True)] == [i.ref for i in items]
    assert [[turn[1] for turn in row] for row in page["chat"]] == [[turn.text for turn in own] for own in chart.turns]
    cats = {cat["key"]: (cat["values"], read_column(cat["data"])) for cat in head["cats"]}
    assert [cats["split"][0][k] for k in cats["split"][1]] == [item.split for item in items]
    assert cats["cluster"][1].tolist() == chart.clusters.of.tolist()
    nums = {num["key"]: read_column(num["data"]) for num in head["nums"]}
    assert nums["length"].tolist() == chart.lengths.tolist() and np.allclose(nums["outlier"], chart.outlier)
    assert read_column(head["nearest"]["rows"]).tolist() == chart.covered.tests.tolist()
    assert np.allclose(nums["distance"][chart.covered.tests], chart.covered.distance)
    assert np.isnan(nums["distance"][:400]).all()
    x, y = read_column(head["x"]).astype(float), read_column(head["y"]).astype(float)
    inner = (x > 0) & (x < 65535) & (y > 0) & (y < 65535)
    # One scale for both axes.
    slope = np.polyfit(chart.places[inner, 0], x[inner], 1)[0]
    assert slope == pytest.approx(np.polyfit(chart.places[inner, 1], y[inner], 1)[0], rel=1e-3)


def test_the_policy_names_the_one_script_and_the_one_style(drawn):
    _, html = drawn
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1].replace("&#39;", "'")
    scripts, styles = re.findall(r"<script>(.*?)</script>", html, re.S), re.findall(r"<style>(.*?)</style>", html, re.S)
    assert len(scripts) == len(styles) == 1
    for name, text in (("script", scripts[0]), ("style", styles[0])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';") and "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", scripts[0])
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|url\(|@import""", html.replace(scripts[0], ""))


class _Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def test_payloads_stay_text(drawn):
    html = render_map(draw_chart(hostile_set(), languages=False))
    seen = _Elements()
    seen.feed(html)
    usual = _Elements()
    usual.feed(drawn[1])
    assert set(seen.tags) <= set(usual.tags) and set(seen.attributes) <= set(usual.attributes)
    assert not [name for name in seen.attributes if name.startswith("on") or name == "style"]
    assert seen.tags.count("style") == 1 and "img" not in seen.tags and "iframe" not in seen.tags
    held = read_page(html)
    assert {turn[1] for row in held["chat"] for turn in row} >= set(PAYLOADS)


@pytest.fixture(scope="module")
def tokenised(tmp_path_factory):
    folder = make_world(tmp_path_factory.mktemp("tokens"))
    return explore_files([str(folder / "rows.jsonl")], tokenizer=str(folder / "base"))


def test_tokens_of_the_page_are_those_of_training(tokenised):
    from luthier.data.describe import token_records
    from luthier.data.encode import Encoder
    from luthier.explore.turns import turns_of

    packer, encoder = TokenPacker(tokenised.tokenizer), Encoder(tokenised.tokenizer)
    for item in tokenised.items:
        turns = turns_of(item.row)
        packed = packer.pack(item.tokens, turns)
        text, records = unpack_text(packed, [turn.text for turn in turns]), token_records(item.tokens, encoder)
        assert text == "".join(record["text"] for record in records) == encoder.decode(item.tokens.ids)
        assert packed["l"] == [len(record["text"]) for record in records]
        runs = zip(packed["k"][::2], packed["k"][1::2], strict=True)
        assert [KINDS[kind] for kind, size in runs for _ in range(size)] == [record["kind"] for record in records]
        assert sum(isinstance(piece, int) for piece in packed["p"]) == len(turns), "no text of a row stands twice"


def test_lengths_are_those_of_javascript(tokenised):
    from luthier.data.types import Example, RowRef

    ids = tokenised.tokenizer("a \U0001f600 b \u00e9", add_special_tokens=False)["input_ids"]
    row = Example(ids=ids, weights=[0.0] * len(ids), ref=RowRef("a", 1))
    packed = TokenPacker(tokenised.tokenizer).pack(row, [Turn("user", "nowhere")])
    text = unpack_text(packed, ["nowhere"])
    assert sum(packed["l"]) == len(text.encode("utf-16-le")) // 2 and text == tokenised.tokenizer.decode(ids)
