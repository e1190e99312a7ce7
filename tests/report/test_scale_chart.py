"""Contract: values become positions on a logarithmic, linear or categorical axis; text is escaped."""

import re
import xml.etree.ElementTree as ET

import pytest

from luthier.report.scale_chart import Axis, Mark, Series, axis_for, scale_chart, standalone

LOG = Axis(kind="log", label="rate")


def centres(chart):
    return [float(x) for x in re.findall(r'cx="([\d.]+)"', str(chart))]


def test_equal_factors_are_equal_distances():
    series = Series(name="s", points=[(1e-5, 1), (1e-4, 2), (1e-3, 3)], kind="plain")
    left, middle, right = centres(scale_chart([series], title="t", x=LOG, y_label="y"))
    assert middle - left == pytest.approx(right - middle, abs=0.2) and right > middle > left


def test_words_have_places_of_their_own():
    axis, places = axis_for("optim", ["sgd", "adamw", "sgd"])
    assert axis.kind == "category" and axis.values == ("sgd", "adamw") and places == [0.0, 1.0, 0.0]
    chart = str(scale_chart([Series(name="s", points=[(0, 1), (1, 2)], kind="plain")], title="t", x=axis, y_label="y"))
    assert ">sgd<" in chart and ">adamw<" in chart


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1e-5, 1e-3], "log"), ([8, 16], "linear"), ([0.0, 0.1], "linear"), ([True, False], "category"),
        ([1, "a"], "category"), ([], "category"),
    ],
)  # fmt: skip
def test_the_axis_suits_the_values(values, kind):
    assert axis_for("k", values)[0].kind == kind


def test_one_point_and_none():
    assert scale_chart([], title="t", x=LOG, y_label="y") == ""
    for axis in (LOG, Axis(kind="linear", label="x")):
        assert (
            len(
                centres(
                    scale_chart([Series(name="s", points=[(3.0, 1.0)], kind="best")], title="t", x=axis, y_label="y")
                )
            )
            == 1
        )


def test_text_is_escaped_and_the_file_is_xml():
    chart = scale_chart(
        [Series(name="<b>", points=[(1, 1.5), (100, 2)], kind="main", joined=True)], title='"&<', x=LOG, y_label="<i>",
        marks=[Mark(at=10, word="<u>")],
    )  # fmt: skip
    text = standalone(chart)
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and "<b>" not in text and "<u>" not in text
    assert "&lt;u&gt;" in text
