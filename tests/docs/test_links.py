"""Contract: what docs and README point at is there: links, anchors, files, functions, commands."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("README.md"), *ROOT.glob("CONTRIBUTING.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
QUOTED = re.compile(r"`([^`\n]+)`")
# `pipeline/run.py`, `data/mask.py:prove`, `docs/plan.md`, `recipes/x.yaml`, `tests/support/tiny.py`
FILE = re.compile(r"([A-Za-z0-9_.\-]+(?:/[A-Za-z0-9_.\-]+)*\.(?:py|md|toml))(?::([A-Za-z_][A-Za-z0-9_.]*))?\Z")
RECIPE = re.compile(r"recipes/[A-Za-z0-9_.\-/]+\.yaml\Z")
# Decisions and experiments tell of their time: files they name may be gone.
HISTORY = ("docs/adr/", "docs/experiments/")
# A page may be read from its own folder, from the repository, or name a file of the package.
BASES = ("", "luthier")


def ids(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", without_code(page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def find(name: str, page: Path) -> Path | None:
    places = [page.parent / name, *(ROOT / base / name for base in BASES)]
    return next((place for place in places if place.exists()), None)


def names_in(file: Path) -> set[str]:
    """Functions, classes, methods (`Class.method`) and constants of a module."""
    found = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in LINK.findall(QUOTED.sub("", without_code(page.read_text("utf-8")))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page if not name else page.parent / name
        if not file.exists():
            broken.append(f"{target}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            broken.append(f"{target}: no such heading")
    return broken


def missing_files(page: Path) -> list[str]:
    missing = []
    for text in QUOTED.findall(without_code(page.read_text("utf-8"))):
        match = FILE.match(text)
        if RECIPE.match(text) and not (ROOT / text).exists():
            missing.append(f"{text}: no such recipe")
        if not match:
            continue
        file = find(match[1], page)
        if file is None:
            missing.append(f"{text}: no such file")
        elif match[2] and match[2] not in names_in(file):
            missing.append(f"{text}: no such name in it")
    return missing


def test_the_pages_are_found():
    names = {ids(page) for page in PAGES}
    assert {"docs/index.md", "docs/architecture.md", "docs/errors.md", "docs/reference/cli.md"} <= names


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_relative_link_leads_somewhere(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", [page for page in PAGES if not ids(page).startswith(HISTORY)], ids=ids)
def test_every_file_and_function_named_exists(page):
    assert missing_files(page) == []


def test_every_page_of_docs_is_in_the_index():
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in LINK.findall(index.read_text("utf-8"))}
    folders = {target for target in linked if target.is_dir()}
    pages = [page.resolve() for page in PAGES if page.is_relative_to(ROOT / "docs") and page != index]
    pages = [page for page in pages if not ids(page).startswith("docs/experiments/")]  # they come and go
    assert [ids(page) for page in pages if page not in linked and not folders & set(page.parents)] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_command_in_an_example_exists(page):
    import typer

    from luthier.cli.main import app

    root = typer.main.get_command(app)
    wrong = []
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            words = line.split("#")[0].split()
            if words[:1] != ["luthier"] or len(words) < 2 or words[1].startswith("-"):
                continue
            command = root
            for word in words[1:]:
                if word not in getattr(command, "commands", {}):
                    break
                command = command.commands[word]
            if hasattr(command, "commands") and not command.invoke_without_command:
                wrong.append(line)
                continue
            known = {
                option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
            } | {"--help", "--debug"}
            sets_keys = any(parameter.name == "overrides" for parameter in command.params)
            given = [word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
            wrong += [f"{line}: {word}" for word in given if word not in known and not (sets_keys and "." in word)]
    assert wrong == []


def test_broken_pages_are_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[a](none.md) [b](#nowhere) `pipeline/none.py` `pipeline/run.py:nothing` `recipes/none.yaml`\n")
    assert len(broken_links(page)) == 2
    assert len(missing_files(page)) == 3
    page.write_text("# Some Title\n[b](#some-title) `pipeline/run.py:run_recipe` `runs/folder.py:RunFolder.lock`\n")
    assert broken_links(page) == missing_files(page) == []
