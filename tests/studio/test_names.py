"""Names from a browser lead nowhere but below their folder (F17)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.runtime.errors import RecipeError
from luthier.studio.names import check_name, name_of, path_below, run_folder, run_id
from tests.studio.folders import make_run

HOSTILE = [
    "..",
    "../x",
    "a/../../x",
    "/etc/passwd",
    "//x",
    "a//b",
    "./x",
    "a/./b",
    "a/",
    "",
    "..\\x",
    "a\\b",
    "a\0b",
    "\0",
    "a\nb",
    "\x1b[31m",
    "x" * 300,
    "/".join("abcdefghij"),
    "~1..~1..",
    "..~1..~1x",
    "%2e%2e",
    "%2e%2e%2fx",
    "..%2fx",
    "runs_beside",
    "../runs_beside/secret",
    "\u202ex",
    "\ud800",
    "CON/../..",
    "file:///etc/passwd",
    "C:\\x",
    "~",
    "~root",
    "$(touch x)",
    "`x`",
    ";x",
    "a;b",
    "-rf",
    "--help",
    " ",
    "..;/x",
    "one/../../runs_beside",
]


@pytest.fixture
def root(tmp_path):
    make_run(tmp_path / "runs" / "one")
    make_run(tmp_path / "runs_beside")
    (tmp_path / "runs_beside" / "secret").write_text("secret")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "runs_beside")
    return tmp_path


@pytest.mark.parametrize("name", [*HOSTILE, "link", "one/eval", "two"])
def test_no_hostile_name_is_a_run(root, name):
    for ident in (name, run_id(name)):
        with pytest.raises(RecipeError) as error:
            run_folder(root / "runs", ident)
        assert error.value.problems[0].code == "W104"


@pytest.mark.parametrize("name", [*(name for name in HOSTILE if name), "link", "link/secret", "absent.jsonl"])
def test_no_hostile_path_is_a_file(root, name):
    with pytest.raises(RecipeError) as error:
        path_below(root / "runs", name)
    assert error.value.problems[0].code in {"W105", "W106"}


def test_what_is_there_is_found(root):
    make_run(root / "runs" / "a~b c" / "trial-1")
    assert run_folder(root / "runs", "one") == root / "runs" / "one"
    assert run_folder(root / "runs", run_id("a~b c/trial-1")) == root / "runs" / "a~b c" / "trial-1"
    assert path_below(root, "runs/one/recipe.yaml") == root / "runs" / "one" / "recipe.yaml"
    assert path_below(root, "") == root


def test_the_runs_folder_may_be_a_run_itself(tmp_path):
    make_run(tmp_path / "only")
    assert run_folder(tmp_path / "only", ".") == tmp_path / "only"


@given(st.text(max_size=40))
def test_ids_are_one_segment_and_come_back(name):
    assert name_of(run_id(name)) == name
    assert "/" not in run_id(name)


@pytest.mark.parametrize("name", ["..", "a/b/c", ".hidden", "-x", "a/-x", "", "a\nb", "/x", "x" * 300])
def test_names_for_new_folders(name):
    with pytest.raises(RecipeError, match="cannot be the name"):
        check_name(name)
    assert check_name("sweep/trial 1") == "sweep/trial 1"
