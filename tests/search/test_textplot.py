"""Contract: the curve in a terminal has its highest point on top, its lowest at the bottom, and marks."""

from luthier.search.textplot import text_plot

POINTS = [(10.0 ** (step / 10 - 5), 3.0 - step / 20) for step in range(31)]


def test_a_falling_line():
    lines = text_plot(POINTS, marks={"P": 1e-3}, width=61, height=7, label="loss").splitlines()
    assert lines[0] == "loss" and len(lines) == 1 + 7 + 2
    grid = [line.partition("┤")[2] for line in lines[1:8]]
    assert grid[0].startswith("•") and len(grid[6]) == 61 and grid[6].endswith("•")
    assert lines[1].startswith("  3 ┤") and lines[7].startswith("1.5 ┤")
    axis = lines[8].partition("└")[2]
    assert axis.index("P") == 40 and len(axis) == 61, "two thirds of three decades"
    assert [lines[9].index(word) for word in ("1e-5", "1e-4", "1e-3")] == [5, 25, 45]


def test_nothing_is_cut_and_one_point_is_a_plot():
    assert text_plot([(1e-3, 2.0)], width=20, height=3).count("•") == 1
    many = text_plot([(10.0 ** -(step % 7), step % 3) for step in range(100)], width=30, height=5)
    assert max(map(len, many.splitlines())) <= 30 + 12
