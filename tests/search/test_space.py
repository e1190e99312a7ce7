"""Contract: what a sweep goes over is read as written, and everything that is wrong is told at once."""

import pytest

from luthier.runtime.errors import RecipeError
from luthier.search.space import Axis, Range, read_space


def read(*arguments, file=None):
    return read_space(arguments, file)


def problems(*arguments, file=None):
    with pytest.raises(RecipeError) as error:
        read(*arguments, file=file)
    return [problem.message for problem in error.value.problems]


def test_values_ranges_and_single_values():
    axes, overrides = read(
        "train.learning_rate=1e-4,3e-4", "method.r=int:4..64", "method.lora_dropout=lin:0..0.1", "train.seed=7"
    )
    assert axes == [
        Axis(key="train.learning_rate", values=(1e-4, 3e-4)),
        Axis(key="method.r", range=Range(kind="int", low=4, high=64)),
        Axis(key="method.lora_dropout", range=Range(kind="lin", low=0, high=0.1)),
    ]
    assert overrides == ["train.seed=7"]


def test_values_have_the_types_of_yaml():
    (axis,), _ = read("a.b=1,1.5,true,null,text,[q_proj,v_proj],'x,y'")
    assert axis.values == (1, 1.5, True, None, "text", ["q_proj", "v_proj"], "x,y")


def test_commas_inside_brackets_and_quotes_separate_nothing():
    _, overrides = read("method.target_modules=[q_proj,v_proj]", "a.b=1,2")
    assert overrides == ["method.target_modules=[q_proj,v_proj]"]


def test_ranges_by_hand():
    log = Range(kind="log", low=1e-5, high=1e-3, points=3)
    assert log.grid() == [1e-5, 1e-4, 1e-3]
    assert [Range(kind="int", low=4, high=8, points=3).at(share) for share in (0.0, 0.5, 1.0)] == [4, 6, 8]
    assert Range(kind="logint", low=4, high=64, points=5).grid() == [4, 8, 16, 32, 64]
    assert Range(kind="int", low=1, high=3, points=9).grid() == [1, 2, 3], "whole numbers that coincide once"
    assert log.at(0.123456) == float(f"{1e-5 * 100**0.123456:.4g}"), "four digits: it can be read and typed"


def test_points_for_a_grid():
    (axis,), _ = read("train.learning_rate=log:1e-5..1e-3/5")
    assert axis.range.points == 5 and len(axis.range.grid()) == 5


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("log:1e-3..1e-5", "must rise"), ("log:0..1", "starts above 0"), ("int:1.5..4", "whole numbers"),
        ("lin:a..b", "finite numbers"), ("lin:0..inf", "finite numbers"), ("log:1e-5..1e-3/1", "at least 2"),
        ("log:1e-5..1e-3/x", "at least 2"), ("exp:1..2", "is no range"), ("log:1e-5..", "is no range"),
    ],
)  # fmt: skip
def test_wrong_ranges(text, word):
    (message,) = problems(f"train.learning_rate={text}")
    assert "train.learning_rate" in message and word in message


def test_everything_wrong_is_told_at_once():
    found = problems("a.b=1,1", "c.d=log:2..1", "e.f=1,2", "e.f=3,4", "output_dir=x,y", "g.h=5", "g.h=6,7")
    assert len(found) == 5
    assert any("value 1 twice" in message for message in found) and any("must rise" in message for message in found)
    assert any("`e.f` is given 2 times" in message for message in found)
    assert any("output_dir" in message for message in found)
    assert any("`g.h` is swept and also" in message for message in found)


def test_nothing_to_sweep():
    assert "nothing to sweep" in problems("train.seed=1")[0] and "nothing to sweep" in problems()[0]


def test_a_file(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(
        "train.learning_rate: log:1e-5..1e-3\nmethod.r: [8, 16]\nmethod.target_modules: [all-linear, [q_proj]]\n"
    )
    axes, _ = read("train.seed=1,2", file=file)
    assert [axis.key for axis in axes] == ["train.learning_rate", "method.r", "method.target_modules", "train.seed"]
    assert axes[2].values == ("all-linear", ["q_proj"])


def test_wrong_files(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("method.r: 8\ntrain.learning_rate: log:2..1\na.b: []\n")
    with pytest.raises(RecipeError) as error:
        read(file=file)
    assert [(item.file, item.line) for item in error.value.problems][:3] == [
        (str(file), 1),
        (str(file), 2),
        (str(file), 3),
    ]
    file.write_text("- 1\n")
    assert "mapping" in problems(file=file)[0]
    file.write_text("a: [")
    assert problems(file=file)
    assert "cannot read" in problems(file=tmp_path / "none.yaml")[0]
