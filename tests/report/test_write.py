"""Contract: one self-contained page from the run folder's files; foreign text stays text; stages may be missing."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser

import pytest

from luthier.report.write import write_report
from luthier.runs.folder import RunFolder
from luthier.runtime.errors import RunFailed
from tests.report.make_run import MEASURED, make_run

PAYLOADS = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>'",
    "{{ 7 * 7 }}{% include 'x' %}",
    "</style><script>1</script>",
    "</title><svg onload=alert(1)>",
    "javascript:alert(1)",
    "&lt;b&gt; &amp; &#x41;",
    "`</code><i>`",
]
VOID = {"meta", "br", "link", "img"}
TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "section", "nav", "footer", "article", "figure",
    "figcaption", "h1", "h2", "h3", "h4", "p", "a", "b", "strong", "small", "em", "span", "code", "pre", "blockquote",
    "table", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd", "div", "ul", "li", "details", "summary", "del",
    "ins", "svg", "g", "line", "circle", "rect", "polyline", "path", "text",
}  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and text of a page; complains about anything left open."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.parts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.parts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.parts)


def page_of(run: RunFolder) -> Page:
    page = Page(write_report(run).read_text("utf-8"))
    assert page.open == []
    return page


def assert_harmless(page: Page) -> None:
    """No tag, attribute or address beyond those of the template."""
    assert page.tags <= TAGS
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "action", "formaction", "xlink:href", "style", "srcdoc")
        if name == "href":
            assert value.startswith("#")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def test_a_complete_run_shows_every_section(run):
    page = page_of(run)
    assert_harmless(page)
    for expected in (
        "Better.", "0.0\N{NARROW NO-BREAK SPACE}%", "p < 0.0001", "rows won, 0 lost", "synthetic data", "Synthetic.",
        "No row was dropped.", "special, trained", "75 steps.", "Learning rate", "Gradient norm", "Tokens per second",
        "smoothed over 6 steps", "validation loss", "now right", "Still wrong after tuning", "passed", "4.1e-5",
        "prompts at once on cpu; changes no answer", "transformers", "2.13.0+cpu", "23.4 GiB", "--side-by-side",
    ):  # fmt: skip
        assert expected in page.text, expected
    assert "has not run" not in page.text


def test_planned_and_measured_stand_side_by_side_with_the_difference(run):
    text = page_of(run).text
    for expected in ("2.24 GiB", "2.33 GiB", "+4.2 %", "-25.0 %", "+33.3 %", "4.25 s", "264"):
        assert expected in text, expected
    assert "MFU" not in text, "a CPU has no such number"
    (run.path / "measured.json").write_text(json.dumps({**MEASURED, "predicted": None, "mfu": 0.41}))
    text = page_of(run).text
    assert "41.0 %" in text
    assert "+4.2 %" not in text
    (run.path / "measured.json").unlink()
    assert "Planned and measured" not in page_of(run).text


def test_the_page_loads_nothing_and_runs_nothing(run):
    html = write_report(run).read_text("utf-8")
    policy = dict(Page(html).attributes)
    assert "default-src 'none'" in html
    assert policy["charset"] == "utf-8"
    style = html.partition("<style>")[2].partition("</style>")[0]
    for request in ("url(", "@import", "http:", "https:", "//", "@font-face"):
        assert request not in style
    assert "<script" not in html


@pytest.mark.parametrize("payload", PAYLOADS)
def test_text_from_data_and_models_stays_text(run, payload):
    """F22: the payload stands in every string of every file."""
    keep = {"name", "kind", "verdict", "metric", "role", "finish_reason"}

    def infect(value, key=""):
        if isinstance(value, dict):
            return {name: infect(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [infect(item, key) for item in value]
        return payload + value if isinstance(value, str) and key not in keep else value

    for file in run.path.rglob("*.json"):
        file.write_text(json.dumps(infect(json.loads(file.read_text("utf-8")))))
    for name in ("recipe.yaml", "resolved.yaml", "data_card.md"):
        (run.path / name).write_text(payload + "\nkey: 1  # " + payload + " (synthetic)\n\n" + payload)
    page = page_of(run)
    assert_harmless(page)
    assert page.text.count(payload.strip("`")) > 20


def test_names_of_tasks_and_fields_stay_text_too(run):
    for name in ("before", "after", "comparison"):
        file = run.path / "eval" / f"{name}.json"
        file.write_text(file.read_text("utf-8").replace('"tickets"', json.dumps(PAYLOADS[1])))
    manifest = json.loads((run.path / "data" / "manifest.json").read_text("utf-8"))
    manifest["dropped"] = {PAYLOADS[0]: 3}
    manifest["dropped_rows"] = [{"ref": PAYLOADS[0], "reason": "overlong", "detail": PAYLOADS[1]}]
    (run.path / "data" / "manifest.json").write_text(json.dumps(manifest))
    page = page_of(run)
    assert_harmless(page)
    assert PAYLOADS[0] in page.text
    assert PAYLOADS[1] in page.text


def test_losses_by_reason_and_source_with_examples(run):
    file = run.path / "data" / "manifest.json"
    manifest = json.loads(file.read_text("utf-8"))
    manifest["dropped"] = {"filtered": 3}
    source = {"path": PAYLOADS[0], "rows_read": 1300, "pairs_split": 7, "used": 1297, "validation": 7}
    manifest["losses"] = {
        "dropped": {"filtered": {"pii": 2, "refusals": 1}}, "changed": {"fixed": {"encoding": 4}},
        "sources": [{**source, "dropped": {"filtered": 3}, "changed": {"fixed": 4}}],
        "examples": [{"file": "a.jsonl", "line": 17, "reason": "filtered", "stage": "pii", "detail": PAYLOADS[1]}],
    }  # fmt: skip
    file.write_text(json.dumps(manifest))
    page = page_of(run)
    assert_harmless(page)
    for expected in ("Lost and changed", "refusals", "pairs split", "1,300", "3 filtered", "4 fixed", "a.jsonl:17",
                     "filtered, pii", PAYLOADS[0], PAYLOADS[1], "data/losses.jsonl"):  # fmt: skip
        assert expected in page.text, expected
    manifest["losses"] = {"dropped": {}, "changed": {}, "sources": [], "examples": []}
    file.write_text(json.dumps(manifest))
    assert "No row was dropped or changed." in page_of(run).text


def test_a_page_says_that_evaluation_rows_were_trained_on(run):
    assert "Evaluation rows" not in page_of(run).text
    file = run.path / "data" / "manifest.json"
    manifest = json.loads(file.read_text("utf-8"))
    told = {"rows": 90, "of_rows": 100, "against_rows": 40, "found": {"copy": 5, "variant": 1, "reworded": 2},
            "sure": {"copy": 5, "variant": 1}, "dropped": 0}  # fmt: skip
    manifest["curated"] = {"decontaminate": told}
    file.write_text(json.dumps(manifest))
    text = page_of(run).text
    assert "Evaluation rows" in text
    assert "40 evaluation rows (90 of 100 looked at): 5 copy, 1 variant, 2 reworded" in text
    assert "5 of them for sure, and trained on" in text
    manifest["curated"]["decontaminate"] = {**told, "dropped": 7}
    file.write_text(json.dumps(manifest))
    text = page_of(run).text
    assert "2 reworded; 7 dropped" in text and "trained on:" not in text


def test_invisible_characters_become_visible(run):
    file = run.path / "eval" / "after.json"
    after = json.loads(file.read_text("utf-8"))
    changed = json.loads((run.path / "eval" / "comparison.json").read_text("utf-8"))["tasks"][0]["changed"][0]
    after["tasks"][0]["rows"][changed]["output"] = (
        "a\x00b\x1b[31mc\x7fd\u202eevil\ud800 \U0001f468\u200d\U0001f469 keep\ttab"
    )
    file.write_text(json.dumps(after))
    html = write_report(run).read_text("utf-8")
    assert "a\u2400b\u241b[31mc\u2421d\ufffdevil\ufffd" in html
    assert "\U0001f468\u200d\U0001f469 keep\ttab" in html
    assert not {letter for letter in html if ord(letter) < 32} - {"\n", "\t"}


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ((), ["Not trained yet.", "The data stage has not run.", "Nothing was trained yet.", "no manifest."]),
        (("data",), ["Not trained yet.", "33,775", "Nothing was trained yet."]),
        (("data", "metrics.jsonl", "stages", "final"), ["Trained, not scored.", "75 steps.", "luthier chat"]),
        (("eval/before.json",), ["Scored, not compared.", "No task was scored before and after"]),
        (("eval/after.json", "manifest.json"), ["Scored, not compared.", "Still wrong after tuning", "luthier rerun"]),
        (("metrics.jsonl",), ["Trained, not scored.", "Nothing was merged in this run."]),
    ],
)  # fmt: skip
def test_stages_that_have_not_run_are_named(run, tmp_path, left, expected):
    part = RunFolder(tmp_path / "part").create()
    for name in left:
        source, target = run.path / name, part.path / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    page = page_of(part)
    assert_harmless(page)
    for text in expected:
        assert text in page.text, text


@pytest.mark.parametrize(
    "verdict, headline", [("better", "Better."), ("worse", "Worse."), ("no evidence", "No evidence")]
)
def test_the_headline_is_the_verdict(run, verdict, headline):
    file = run.path / "eval" / "comparison.json"
    file.write_text(file.read_text("utf-8").replace('"better"', json.dumps(verdict)))
    assert headline in page_of(run).text.partition("json_exact")[0]


def test_two_tasks_with_different_verdicts_are_counted_and_the_worse_one_sets_the_tone(run):
    for name in ("before", "after", "comparison"):
        file = run.path / "eval" / f"{name}.json"
        value = json.loads(file.read_text("utf-8"))
        second = {**value["tasks"][0], "name": "general"}
        value["tasks"].append(second | ({"verdict": "worse"} if name == "comparison" else {}))
        file.write_text(json.dumps(value))
    html = write_report(run).read_text("utf-8")
    assert "1 better, 1 worse." in html
    assert 'class="verdict worse"' in html


def test_a_held_out_loss_is_shown_as_a_number_and_not_as_a_share(run):
    for name in ("before", "after", "comparison"):
        file = run.path / "eval" / f"{name}.json"
        file.write_text(file.read_text("utf-8").replace('"json_exact"', '"loss"'))
    text = page_of(run).text
    assert "points" not in text
    assert "Still wrong" not in text


def test_a_damaged_file_is_refused_by_name(run):
    (run.path / "eval" / "after.json").write_text('{"tasks": [')
    with pytest.raises(RunFailed, match=r"after\.json is damaged"):
        write_report(run)


def test_a_torn_last_metric_line_is_left_out(run):
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 76, "lo')
    assert "75 steps." in page_of(run).text


def test_a_long_run_gives_a_page_of_bounded_size(tmp_path):
    run = make_run(tmp_path / "long", n=400, steps=20_000)
    assert write_report(run).stat().st_size < 900_000


def test_without_a_data_card_nothing_is_called_synthetic(run):
    (run.path / "data_card.md").unlink()
    assert "ynthetic" not in page_of(run).text.replace("quickstart", "")
