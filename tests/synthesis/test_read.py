"""Contract: documents give their text with its headings; what cannot be read is an error that names the file."""

from __future__ import annotations

import sys

import pytest

from luthier.runtime.errors import DataError, EnvironmentProblem
from luthier.synthesis.documents.read import find_documents, read_document, read_documents

HTML = b"""<html><head><title>No</title><style>p {}</style></head><body><nav>Menu</nav>
<h1>The  <em>mill</em></h1><p>It stands at<br>the river. It is <b>old</b>.</p>Loose text.
<ul><li>wheel</li><li>stones <p>two of them</p></li></ul>
<pre>x = 1
  y = 2</pre><table><tr><th>year</th><th>sacks</th></tr><tr><td>1840</td><td>12</td></tr></table>
<div>in a <span>div</span></div><script>alert(1)</script><!-- hidden --></body></html>"""


def pdf(*pages: str) -> bytes:
    """A PDF of one line of Helvetica a page."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode() if text else b""
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        objects.append(b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R /Resources "
                       b"<< /Font << /F1 3 0 R >> >> >>" % len(objects))  # fmt: skip
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    data, places = b"%PDF-1.4\n", []
    for number, value in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, value)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    return data + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)


def test_text_and_markdown_are_the_file_itself(tmp_path):
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbf# Title\r\n\r\ntext\r\n")
    document = read_document(tmp_path / "a.md")
    assert document.text == "# Title\r\n\r\ntext\r\n" and document.headings
    (tmp_path / "a.txt").write_text("# no heading\n")
    assert not read_document(tmp_path / "a.txt").headings


def test_html_becomes_blocks_with_headings(tmp_path):
    pytest.importorskip("bs4")
    (tmp_path / "a.html").write_bytes(HTML)
    text = read_document(tmp_path / "a.html").text
    assert text.split("\n\n") == [
        "# The mill", "It stands at the river. It is old.", "Loose text.", "- wheel", "- stones", "two of them",
        "```\nx = 1\n  y = 2\n```", "year | sacks", "1840 | 12", "in a div\n",
    ]  # fmt: skip


def test_pdf_has_pages_and_empty_ones_are_said(tmp_path):
    pytest.importorskip("pypdf")
    (tmp_path / "a.pdf").write_bytes(pdf("First page text.", "", "Third page text."))
    document = read_document(tmp_path / "a.pdf")
    assert "First page text." in document.text and "Third page text." in document.text
    assert document.page_at(document.text.index("First")) == 1 and document.page_at(document.text.index("Third")) == 3
    assert "1 of 3 pages hold no text (the first: page 2)" in document.notes[0]
    (tmp_path / "scan.pdf").write_bytes(pdf("", ""))
    with pytest.raises(DataError, match="run OCR first"):
        read_document(tmp_path / "scan.pdf")


def test_docx_has_headings_lists_and_tables(tmp_path):
    docx = pytest.importorskip("docx")
    made = docx.Document()
    made.add_heading("The mill", 1)
    made.add_paragraph("It is old.")
    made.add_heading("Parts", 2)
    made.add_paragraph("wheel", style="List Bullet")
    table = made.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "year", "1840"
    made.save(tmp_path / "a.docx")
    text = read_document(tmp_path / "a.docx").text
    assert text == "# The mill\n\nIt is old.\n\n## Parts\n\n- wheel\n\nyear | 1840\n"


def test_all_that_cannot_be_read_is_told_at_once(tmp_path):
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 no")
    (tmp_path / "broken.docx").write_bytes(b"PK no")
    (tmp_path / "latin.txt").write_bytes("größe".encode("latin-1"))
    (tmp_path / "empty.md").write_text(" \n")
    (tmp_path / "good.md").write_text("text")
    with pytest.raises(DataError) as caught:
        read_documents([str(tmp_path)])
    assert len(caught.value.problems) == 4 and {problem.code for problem in caught.value.problems} == {"D274"}
    with pytest.raises(DataError) as caught:
        find_documents([str(tmp_path / "no.md"), str(tmp_path / "good.md"), str(tmp_path / "*.rtf")])
    assert len(caught.value.problems) == 2


def test_files_are_found_once_and_in_order(tmp_path):
    for name in ("b.md", "a.txt", "sub/c.html", "d.rtf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = find_documents([str(tmp_path / "b.md"), str(tmp_path), str(tmp_path / "*.txt")])
    assert [path.name for path in found] == ["b.md", "a.txt", "c.html"]


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    (tmp_path / "a.pdf").write_bytes(pdf("text"))
    with pytest.raises(EnvironmentProblem, match="pip install pypdf") as caught:
        read_document(tmp_path / "a.pdf")
    assert caught.value.problems[0].code == "D275"
