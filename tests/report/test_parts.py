"""Contract: charts hold every point they promise, differences rebuild both texts, smoothing is unbiased."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.report.answers_view import examples, still_wrong
from luthier.report.diff import word_diff
from luthier.report.read import printable, read_run
from luthier.report.svg import Line, histogram, intervals, line_chart, nice_ticks, number
from luthier.report.trend import smoothed
from luthier.report.views import chosen_values, data_view
from luthier.report.write import write_report
from luthier.runtime.atomic import write_json
from tests.report.make_run import make_run

FINITE = st.floats(-1e9, 1e9, allow_nan=False)


def chart(points):
    return line_chart([Line(name="loss", points=points, kind="main")], title="t", x_label="step", y_label="loss")


@given(FINITE, FINITE)
def test_ticks_span_the_values_and_are_few(one, other):
    low, high = sorted((one, other))
    ticks = nice_ticks(low, high)
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 9


@pytest.mark.parametrize("points", [[(1, 2.0)], [(1, 0.0), (2, 0.0)], [(5, -1e-9), (5, 1e9)]])
def test_degenerate_curves_are_drawn_with_finite_coordinates(points):
    svg = chart(points)
    assert "nan" not in svg
    assert "inf" not in svg
    assert svg.count("<title>") == len(points)


def test_no_points_give_no_chart():
    assert chart([]) == ""
    assert histogram([], title="t", x_label="x") == ""
    assert intervals([], title="t", share=True) == ""


def test_higher_values_are_drawn_higher():
    (line,) = re.findall(r'points="([^"]*)"', chart([(1, 3.0), (2, 1.0), (3, 2.0)]))
    xs, ys = zip(*[map(float, pair.split(",")) for pair in line.split()], strict=True)
    assert xs == tuple(sorted(xs))
    assert ys[0] < ys[2] < ys[1]


def test_a_tooltip_names_step_and_value():
    assert "<title>step 2: loss 0.25</title>" in chart([(1, 0.5), (2, 0.25)])


def test_marks_of_an_axis_differ_and_steps_are_whole():
    drawn = line_chart(
        [Line(name="a", points=[(1, 6.4151), (2, 6.4043)], kind="main")], title="t", x_label="step", y_label="y"
    )
    left, below = (re.findall(rf'text-anchor="{side}">([^<]*)<', drawn) for side in ("end", "middle"))
    assert len(left) == len(set(left)) >= 4 and below == ["1", "2", "step"]
    assert number(5e29) == "5e29" and number(12_345_678.0) == "12,345,678"


def test_long_curves_keep_their_last_point():
    svg = chart([(step, 1.0) for step in range(1, 10_001)])
    assert "step 10,000: loss 1" in svg
    assert svg.count("<circle") <= 152


def test_histogram_bars_are_as_high_as_their_counts():
    heights = [
        float(h)
        for h in re.findall(r'<rect[^>]* height="([\d.]+)"', histogram([(0, 1, 10), (1, 2, 5)], title="t", x_label="x"))
    ]
    assert heights[0] == pytest.approx(2 * heights[1], rel=0.01)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0000152, "1.52e-5"), (2e-3, "0.002"), (0.0015, "0.0015"), (1, "1"), (12.345, "12.3"),
     (99999, "99,999"), (-3.5, "-3.5"), (1234, "1234")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert number(value) == text


@given(st.text(), st.text())
def test_a_difference_rebuilds_both_texts(before, after):
    left, right, _ = word_diff(before, after)
    assert "".join(text for text, _ in left) == before
    assert "".join(text for text, _ in right) == after


def test_only_the_words_that_differ_are_marked():
    left, right, marked = word_diff("the cat sat on a mat", "the dog sat on a mat")
    assert marked
    assert [text for text, own in left if own] == ["cat"]
    assert [text for text, own in right if own] == ["dog"]


def test_texts_with_little_in_common_are_not_marked():
    assert word_diff("Dear customer, thank you", '{"name": null}') == (
        [("Dear customer, thank you", False)], [('{"name": null}', False)], False,
    )  # fmt: skip


def test_smoothing_keeps_a_constant_and_starts_at_the_first_value():
    assert smoothed([2.0] * 20, 7) == pytest.approx([2.0] * 20)
    assert smoothed([5.0, 0.0], 3)[0] == 5.0
    assert smoothed([1.0, 0.0], 3) == pytest.approx([1.0, (0.5 * 1.0) / 1.5])


@given(st.text())
def test_printable_text_has_no_control_character_and_can_be_written(text):
    shown = printable(text)
    shown.encode("utf-8")
    assert len(shown) == len(text)
    assert not [letter for letter in shown if ord(letter) < 32 and letter not in "\n\t"]
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b\ufeff\x7f\x85")


def test_chosen_values_are_those_with_a_reason(tmp_path):
    found = chosen_values(read_run(make_run(tmp_path / "run")))
    assert [key for key, _, _ in found] == [
        "model.dtype", "model.quantization", "train.gradient_accumulation_steps", "train.gradient_checkpointing",
        "train.save_steps", "evaluate.batch_size",
    ]  # fmt: skip
    assert found[1] == ("model.quantization", "none", "method lora")


def test_examples_put_losses_first_and_still_wrong_rows_are_the_unsolved_ones(tmp_path):
    run = make_run(tmp_path / "run")
    import json

    before = run.path / "eval" / "before.json"
    compared = run.path / "eval" / "comparison.json"
    old, comparison = json.loads(before.read_text("utf-8")), json.loads(compared.read_text("utf-8"))
    after = json.loads((run.path / "eval" / "after.json").read_text("utf-8"))["tasks"][0]["rows"]
    lost = next(index for index, row in enumerate(after) if row["score"] == 0)
    old["tasks"][0]["rows"][lost]["score"] = 1.0
    comparison["tasks"][0]["changed"].append(lost)
    before.write_text(json.dumps(old))
    compared.write_text(json.dumps(comparison))
    files = read_run(run)
    shown = examples(files)
    assert [example["won"] for example in shown] == [False] + [True] * 11
    assert len(still_wrong(files)) == sum(row["score"] == 0 for row in after)
    assert math.isclose(float(shown[0]["scores"][0]), 1.0)


def test_preferences_have_their_numbers_charts_and_coloured_answers(tmp_path):
    from tests.data.preferring import pairs, prepared

    run = make_run(tmp_path / "run")
    manifest = prepared(tmp_path, pairs(20)).manifest
    write_json(run.path / "data" / "manifest.json", manifest)
    view = data_view(read_run(run))
    assert any(line.startswith("chosen is the longer answer in") for line in view["preference_lines"])
    assert ["Tokens of chosen answers" in chart for chart in view["answer_charts"]] == [True, False]
    page = write_report(run).read_text("utf-8")
    samples = page[page.index('id="tokens"') :]
    assert samples.count('<b class="begins">chosen</b>') == samples.count('<b class="begins">rejected</b>') == 3
    counted = [token["kind"] for sample in manifest["samples"] for token in sample["tokens"]]
    for kind in ("chosen", "rejected"):
        assert samples.count(f'class="t {kind}"') == counted.count(kind) + 1, "the legend names it once"
    assert "prompts are computed once a pair" in page


def test_plain_rows_have_no_preferences(tmp_path):
    view = data_view(read_run(make_run(tmp_path / "run")))
    assert view["preference_lines"] == [] and view["answer_charts"] == []
