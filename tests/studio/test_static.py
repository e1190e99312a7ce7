"""The built pages in the wheel come from the sources in `studio/`, whole and without anything from elsewhere."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

import luthier

STATIC = Path(luthier.__file__).parent / "studio" / "static"
SOURCES = Path(__file__).resolve().parents[2] / "studio"
# As in studio/build-record.ts.
NAMES = (
    "index.html",
    "package.json",
    "package-lock.json",
    "vite.config.ts",
    "build-record.ts",
    "svelte.config.js",
    "tsconfig.json",
    "src",
)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _below(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def source_hash(root: Path) -> str:
    """Hash over `path NUL sha256 newline` of every source, paths in order of code points."""
    lines = sorted((file.relative_to(root).as_posix(), _sha256(file)) for name in NAMES for file in _below(root / name))
    return hashlib.sha256("".join(f"{path}\0{digest}\n" for path, digest in lines).encode()).hexdigest()


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((STATIC / "build.json").read_text())


def test_files_are_built_from_these_sources(record: dict) -> None:
    assert record["sources"] == source_hash(SOURCES), "studio/ changed since the build: run `make studio-build`"


def test_built_files_are_as_the_build_left_them(record: dict) -> None:
    found = {file.relative_to(STATIC).as_posix(): _sha256(file) for file in _below(STATIC) if file.name != "build.json"}
    assert found == record["files"], "run `make studio-build`; built files are not edited by hand"


def test_a_changed_source_changes_the_hash(tmp_path: Path) -> None:
    for name in NAMES:
        for file in _below(SOURCES / name):
            copy = tmp_path / file.relative_to(SOURCES)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    assert source_hash(tmp_path) == source_hash(SOURCES)
    (tmp_path / "src" / "app.css").write_text("body { color: red }")
    assert source_hash(tmp_path) != source_hash(SOURCES)


def test_names_of_assets_hold_a_hash(record: dict) -> None:
    assert "index.html" in record["files"]
    for name in record["files"]:
        assert name == "index.html" or re.fullmatch(r"assets/[\w.-]+-[\w-]{8}\.(js|css|svg)", name), name


def test_the_page_has_no_inline_script_or_style_and_nothing_from_elsewhere(record: dict) -> None:
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    for tag in re.findall(r"<script[^>]*>", page):
        assert ' src="/studio/assets/' in tag, tag
    for address in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert address.startswith("/studio/assets/") and address.removeprefix("/studio/") in record["files"], address
    for file in STATIC.glob("assets/*.css"):
        text = file.read_text()
        assert "@import" not in text and "url(" not in text, "fonts and pictures would have to be looked at"
    for file in STATIC.glob("assets/*.js"):
        # The only addresses: names of XML languages and pages that Svelte's own messages point to.
        hosts = set(re.findall(r"https?://([\w.-]+)", file.read_text()))
        assert hosts <= {"www.w3.org", "svelte.dev"}, hosts


def test_sources_never_put_data_into_the_page_as_html() -> None:
    for file in _below(SOURCES / "src"):
        text = file.read_text()
        assert "{@html" not in text and "innerHTML" not in text and "eval(" not in text, file
        if file.suffix == ".svelte":
            assert not re.search(r'\sstyle="', text), f"{file}: an inline style, which the policy refuses"


def test_the_lockfile_names_no_registry() -> None:
    lock = json.loads((SOURCES / "package-lock.json").read_text())
    named = [name for name, entry in lock["packages"].items() if "resolved" in entry]
    assert not named
    assert all(entry.get("integrity") for name, entry in lock["packages"].items() if name and not entry.get("link"))
