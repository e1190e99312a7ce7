"""Text of a document, with its headings as `# ...` lines whatever the file was.

    txt, md     the file itself (UTF-8); offsets are those of the file's text
    html        headings, paragraphs, lists, tables and code; no scripts, styles and navigation (beautifulsoup4)
    pdf         text of each page (pypdf); pages without text are counted: nothing is recognised in images
    docx        paragraphs, headings by their style, tables (python-docx); no footnotes, no text boxes

Offsets of html, pdf and docx count in the text made here; its hash is in the provenance of each row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.recipe.paths import expand, missing_path
from luthier.runtime.errors import DataError, EnvironmentProblem, LuthierError, Problem
from luthier.runtime.hashing import hash_bytes

__all__ = ["SUFFIXES", "Document", "find_documents", "read_document", "read_documents"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One file."""

    path: str
    text: str
    headings: bool
    """Whether lines that begin with `#` are headings."""
    pages: tuple[int, ...] = ()
    """Offset at which each page of a pdf begins."""
    notes: tuple[str, ...] = ()
    """What could not be read, and is said."""

    @property
    def hash(self) -> str:
        """Of the text."""
        return hash_bytes(self.text.encode("utf-8"))

    def page_at(self, offset: int) -> int | None:
        """Page (from 1) of an offset; None without pages."""
        return sum(1 for start in self.pages if start <= offset) or None


def find_documents(paths: Sequence[str]) -> list[Path]:
    """The files behind files, folders and globs, each once, sorted within a folder or glob.

    Raises:
        DataError: paths without a document. All are told.
    """
    found: dict[Path, None] = {}
    problems = []
    for text in paths:
        missing = missing_path(text)
        path = expand(text)
        if missing is not None:
            problems.append(Problem(code="D274", message=missing[0], file=text, hint=missing[1]))
            continue
        files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else _globbed(path)
        known = [file for file in files if file.is_file() and file.suffix.lower() in SUFFIXES]
        if not known:
            message = f"no document: known are {', '.join(SUFFIXES)}"
            problems.append(Problem(code="D274", message=message, file=text))
        found |= dict.fromkeys(known)
    if problems:
        raise DataError(problems=problems)
    return list(found)


def _globbed(path: Path) -> list[Path]:
    import glob

    return sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns)


def read_documents(paths: Sequence[str]) -> list[Document]:
    """Read all; what is wrong with any of them is raised at once.

    Raises:
        DataError: files that cannot be read, or without text.
        EnvironmentProblem: a library that a kind of file needs is missing.
    """
    documents: list[Document] = []
    failures: list[LuthierError] = []
    for path in find_documents(paths):
        try:
            documents.append(read_document(path))
        except LuthierError as error:
            failures.append(error)
    if failures:
        problems = list(dict.fromkeys(problem for error in failures for problem in error.problems))
        raise type(failures[0])(problems=problems)
    return documents


def read_document(path: Path) -> Document:
    """Read one file.

    Raises:
        DataError: it cannot be read as what its ending says, or holds no text.
        EnvironmentProblem: a library is missing.
    """
    try:
        document = _READERS[path.suffix.lower()](path)
    except OSError as error:
        raise _fault(path, f"cannot be read: {error.strerror or error}") from error
    if not document.text.strip():
        hint = "a scan? nothing is recognised in images: run OCR first" if document.pages else None
        raise _fault(path, "holds no text", hint=hint)
    return document


def _fault(path: Path, message: str, *, hint: str | None = None) -> DataError:
    return DataError(problems=[Problem(code="D274", message=message, file=str(path), hint=hint)])


def _needs(module: str, package: str, path: Path) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f"reading {path.suffix} files needs {package}, which is not installed"
        raise EnvironmentProblem(code="D275", message=message, hint=f"pip install {package}") from error


def _plain(path: Path) -> Document:
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _fault(
            path, f"not UTF-8: byte 0x{data[error.start]:02x} at {error.start}", hint="save it as UTF-8"
        ) from None
    return Document(path=str(path), text=text, headings=path.suffix.lower() in {".md", ".markdown"})


# -- html

_SKIPPED = ("script", "style", "noscript", "template", "nav", "svg", "head")
_BLOCKS = ("h1", "h2", "h3", "h4", "h5", "h6", "p", "li", "pre", "tr", "blockquote", "dt", "dd", "figcaption", "div",
           "section", "article", "main", "body", "td", "th")  # fmt: skip


def _html(path: Path) -> Document:
    bs4 = _needs("bs4", "beautifulsoup4", path)
    soup = bs4.BeautifulSoup(path.read_bytes(), "html.parser")
    for tag in soup.find_all(_SKIPPED):
        tag.decompose()
    blocks = list(_html_blocks(soup.body or soup))
    return Document(path=str(path), text="\n\n".join(blocks) + "\n" if blocks else "", headings=True)


def _html_blocks(node: Any) -> Iterator[str]:
    """Blocks in their order; text between blocks is a block of its own."""
    loose: list[str] = []
    for child in node.children:
        name = getattr(child, "name", None)
        if name is None:
            loose.append(str(child) if type(child).__name__ == "NavigableString" else "")
        elif name in _BLOCKS or child.find(_BLOCKS) is not None:
            yield from _paragraph(loose)
            loose = []
            yield from _html_block(child, name)
        else:
            loose.append("\n" if name == "br" else child.get_text())
    yield from _paragraph(loose)


def _html_block(node: Any, name: str) -> Iterator[str]:
    if name == "pre":
        yield "```\n" + node.get_text().strip("\n") + "\n```"
    elif name == "tr":
        cells = [" ".join(cell.get_text(" ").split()) for cell in node.find_all(["td", "th"])]
        yield from _paragraph([" | ".join(cells)])
    elif re.fullmatch("h[1-6]", name):
        yield from (f"{'#' * int(name[1])} {text}" for text in _paragraph([node.get_text(" ")]))
    else:
        mark = "- " if name == "li" else ""
        for index, text in enumerate(_html_blocks(node)):
            yield mark + text if index == 0 else text


def _paragraph(pieces: Sequence[str]) -> Iterator[str]:
    text = " ".join("".join(pieces).split())
    if text:
        yield text


# -- pdf and docx


def _pdf(path: Path) -> Document:
    pypdf = _needs("pypdf", "pypdf", path)
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise _fault(path, "is encrypted", hint="save a copy without a password")
        texts = [page.extract_text() or "" for page in reader.pages]
    except LuthierError:
        raise
    except Exception as error:  # pypdf raises its own, and whatever a broken file leads to
        raise _fault(path, f"no readable pdf: {type(error).__name__}: {error}") from error
    text, pages = "", []
    for page in texts:
        pages.append(len(text))
        text += page.rstrip() + "\n\n"
    empty = [number for number, page in enumerate(texts, 1) if not page.strip()]
    notes = (f"{path}: {len(empty)} of {len(texts)} pages hold no text (the first: page {empty[0]})",) if empty else ()
    return Document(path=str(path), text=text, headings=False, pages=tuple(pages), notes=notes)


def _docx(path: Path) -> Document:
    docx = _needs("docx", "python-docx", path)
    try:
        document = docx.Document(str(path))
        blocks = [block for item in document.iter_inner_content() for block in _docx_blocks(item)]
    except Exception as error:  # a zip of another kind, broken XML, ...
        raise _fault(path, f"no readable docx: {type(error).__name__}: {error}") from error
    return Document(path=str(path), text="\n\n".join(blocks) + "\n" if blocks else "", headings=True)


def _docx_blocks(item: Any) -> Iterator[str]:
    if hasattr(item, "rows"):
        rows = [" | ".join(" ".join(cell.text.split()) for cell in row.cells) for row in item.rows]
        yield "\n".join(rows)
        return
    text = item.text.strip()
    style = (item.style.name or "") if item.style is not None else ""
    level = re.fullmatch(r"Heading ([1-9])", style)
    if text and (level or style == "Title"):
        yield f"{'#' * min(6, int(level[1]) if level else 1)} {text}"
    elif text:
        yield f"- {text}" if style.startswith("List") else text


_READERS: Mapping[str, Callable[[Path], Document]] = {
    ".txt": _plain, ".md": _plain, ".markdown": _plain, ".html": _html, ".htm": _html, ".pdf": _pdf, ".docx": _docx,
}  # fmt: skip
SUFFIXES = tuple(_READERS)
