"""Rows named in a list: those and no others go, whatever way their file is written; a wrong name is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.curate.filters.files import filter_files
from luthier.curate.filters.run import Tools
from luthier.recipe.filter_schema import FilterSection
from luthier.runtime.errors import DataError
from tests.cli.calling import Caller, caller

ROW = '{{"messages": [{{"role": "user", "content": "q{0}"}}, {{"role": "assistant", "content": "a{0}"}}]}}'


@pytest.fixture
def luthier(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Caller:
    return caller(monkeypatch, capfd)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("listed") / "rows: 1.jsonl"
    file.write_text("\n".join(ROW.format(line) if line != 3 else "" for line in range(1, 8)))
    return file


def kept(file: Path, *lists: Path, action: str = "drop") -> list[int]:
    section = FilterSection.model_validate({"listed": {"files": [str(one) for one in lists], "action": action}})
    found = filter_files([str(file)], section, Tools())
    return [row.ref.line for row in found.curation.train]


@given(
    named=st.sets(st.sampled_from([1, 2, 4, 5, 6, 7]), min_size=1, max_size=5), action=st.sampled_from(["drop", "keep"])
)
def test_the_named_rows_and_no_others(rows: Path, named: set[int], action: str) -> None:
    listed = rows.with_name("rows.txt")
    listed.write_text("# from the map\n" + "".join(f"{rows}:{line}\n" for line in sorted(named)))
    expected = [line for line in (1, 2, 4, 5, 6, 7) if (line in named) == (action == "keep")]
    assert kept(rows, listed, action=action) == expected


def test_a_file_is_the_same_however_it_is_written(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rows.parent)
    link = rows.with_name("link.jsonl")
    link.unlink(missing_ok=True)
    link.symlink_to(rows)
    listed = rows.with_name("names.txt")
    listed.write_text(
        f"{rows.name}:1\n./{rows.name}:2\n../{rows.parent.name}/{rows.name}:4\nlink.jsonl:5\nother.jsonl:1\n"
    )
    assert kept(rows, listed) == [6, 7]


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("{rows}:1\n{rows}\n", "D233", 2),
        ("{rows}:one\n", "D233", 1),
        (":4\n", "D233", 1),
        ("{rows}:1\n{rows}:3\n", "D234", 2),  # a blank line
        ("{rows}:99\n", "D234", 1),
        ("elsewhere.jsonl:1\n", "D234", None),
    ],
)
def test_a_list_that_names_no_row_is_an_error(rows: Path, text: str, code: str, line: int | None) -> None:
    listed = rows.with_name("wrong.txt")
    listed.write_text(text.format(rows=rows))
    with pytest.raises(DataError) as told:
        kept(rows, listed)
    problem = told.value.problems[0]
    assert (problem.code, problem.line, Path(str(problem.file)).name) == (code, line, "wrong.txt")


def test_from_the_command_line(luthier: Caller, rows: Path, tmp_path: Path) -> None:
    listed, out = tmp_path / "rows.txt", tmp_path / "kept.jsonl"
    listed.write_text(f"{rows}:2\n{rows}:7\n")
    said = luthier("data", "filter", rows, "--drop-listed", listed, "--out", out, "--json")
    assert said.code == 0, said.err
    assert said.json["dropped"] == {"listed": 2}
    assert [line for line in out.read_text().splitlines() if line] == [ROW.format(line) for line in (1, 4, 5, 6)]
    assert "named in" in (tmp_path / "kept.losses.jsonl").read_text()
    both = luthier("data", "filter", rows, "--drop-listed", listed, "--keep-listed", listed)
    assert both.code == 2 and "exclude each other" in both.err
