"""Contract: docs/errors.md lists every error code that the package uses, and no other."""

import ast
import re
from functools import cache
from pathlib import Path

from luthier.runtime import errors

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"[ACDEJLMRSTWX][1-7][0-9]{2}\Z")
ROW = re.compile(r"^\| ([A-Z][0-9]{3}) \|", re.MULTILINE)
EXITS_ROW = re.compile(r"^\| ([A-Z][0-9]{3}) \| ([0-9, ]+) \|", re.MULTILINE)
EXIT_ROW = re.compile(r"^\| ([0-9]+) \| `?(\w*)`? \|", re.MULTILINE)


@cache
def trees() -> list[ast.Module]:
    """Of all files of the package."""
    return [ast.parse(file.read_text("utf-8")) for file in (ROOT / "luthier").rglob("*.py")]


@cache
def codes_in_package() -> set[str]:
    """Every string in luthier/ that has the form of an error code."""
    found = set()
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.match(node.value):
                found.add(node.value)
    return found


def exits_in_package() -> dict[str, set[int]]:
    """Exit codes of the classes in whose call a code is written down."""
    found: dict[str, set[int]] = {}
    for tree in trees():
        for node in ast.walk(tree):
            cls = getattr(errors, node.func.id, None) if isinstance(node, ast.Call) and _named(node) else None
            if not (isinstance(cls, type) and issubclass(cls, errors.LuthierError)):
                continue
            for inner in ast.walk(node):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and CODE.match(inner.value):
                    found.setdefault(inner.value, set()).add(cls(message="x").exit_code)
    return found


def _named(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name)


def page() -> str:
    return (ROOT / "docs" / "errors.md").read_text("utf-8")


def test_every_code_of_the_package_is_explained():
    assert sorted(codes_in_package() - set(ROW.findall(page()))) == []


def test_every_code_explained_is_used():
    assert sorted(set(ROW.findall(page())) - codes_in_package()) == []


def test_no_code_is_explained_twice_and_each_stands_under_its_letter():
    codes = ROW.findall(page())
    assert len(codes) == len(set(codes)) > 100
    for section in page().split("\n## ")[1:]:
        letter = re.search(r"\(([A-Z])\)$", section.splitlines()[0])
        if letter:
            assert {code[0] for code in ROW.findall(section)} == {letter[1]}


def test_exit_codes_are_those_of_the_classes():
    table = {name: int(code) for code, name in EXIT_ROW.findall(page()) if name}
    classes = (
        errors.RunFailed, errors.RecipeError, errors.DataError, errors.EnvironmentProblem,
        errors.OutOfMemory, errors.AccessError, errors.MachineLost, errors.Interrupted,
    )  # fmt: skip
    assert table == {cls.__name__: cls(message="x").exit_code for cls in classes}


def test_each_code_has_the_exit_codes_of_the_errors_that_carry_it():
    explained = {code: {int(one) for one in exits.split(",")} for code, exits in EXITS_ROW.findall(page())}
    raised = exits_in_package()
    assert len(raised) > 60
    assert {code: exits for code, exits in raised.items() if explained[code] != exits} == {}
