"""Damaged text: mojibake (UTF-8 read as something else), U+FFFD, control characters. Mended by ftfy.

Only damage is mended: quotes, ligatures, widths, line ends and the normal form stay as they are. What U+FFFD stands
for is lost, so such rows are dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from luthier.curate.filters.base import Change, Drop, Mark, RowFilter, Verdict
from luthier.curate.filters.edits import Edit, difference
from luthier.curate.filters.parts import answers_of, edit_row
from luthier.data.types import Conversation
from luthier.runtime.errors import EnvironmentProblem

__all__ = ["Encoding", "mended"]

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufff9-\ufffb\ud800-\udfff]")
_PLAIN = re.compile(r"[\t\n\r\x20-\x7e]*\Z")
_CONTEXT = 20


@cache
def _ftfy() -> tuple[Any, Any]:
    try:
        import ftfy
    except ImportError as error:
        message = "filter `encoding` needs ftfy"
        raise EnvironmentProblem(code="R720", message=message, hint='pip install "luthier[filters]"') from error
    config = ftfy.TextFixerConfig(
        unescape_html=False, remove_terminal_escapes=True, fix_encoding=True, restore_byte_a0=True,
        replace_lossy_sequences=False, decode_inconsistent_utf8=True, fix_c1_controls=True, fix_latin_ligatures=False,
        fix_character_width=False, uncurl_quotes=False, fix_line_breaks=False, fix_surrogates=True,
        remove_control_chars=True, normalization=None, explain=False,
    )  # fmt: skip
    return ftfy.fix_text, config


def mended(text: str) -> str:
    """The text without damage, as far as ftfy can tell what it was.

    Raises:
        EnvironmentProblem: ftfy is not installed.
    """
    if _PLAIN.match(text):
        return text
    fix, config = _ftfy()
    fixed: str = fix(text, config)
    return _CONTROL.sub("", fixed)


@dataclass(slots=True)
class Encoding(RowFilter):
    """Mend or drop damaged rows."""

    action: Literal["fix", "drop"]

    def judge(self, row: Conversation) -> Verdict:
        """All texts of the row, also those that are context."""
        seen: dict[str, list[Edit]] = {}

        def editor(text: str) -> list[Edit]:
            if _PLAIN.match(text):
                return []
            if text not in seen:
                seen[text] = difference(text, mended(text))
            return seen[text]

        changed = edit_row(row, editor)
        lost = [text for text in seen if "\ufffd" in text]
        damaged = [(text, edits) for text, edits in seen.items() if edits]
        if lost:
            place = lost[0].index("\ufffd")
            mark = Mark("", lost[0], place, place + 1)
            return Drop(detail=f"{len(lost)} texts hold U+FFFD: characters were lost", mark=mark)
        if changed is row:
            return None
        text, edits = damaged[0]
        mark = Mark("", text, edits[0].start, edits[0].end)
        count = sum(len(found) for _, found in damaged)
        said = f"{count} places, first {text[edits[0].start : edits[0].end][:20]!r} -> {edits[0].new[:20]!r}"
        if self.action == "drop":
            return Drop(detail=f"damaged text: {said}", mark=mark)
        if len(answers_of(changed)) < len(answers_of(row)):
            return Drop(detail="nothing is left of an answer once damaged characters are taken out", mark=mark)
        if changed.kind == "pair" and changed.answers[0] == changed.answers[1]:
            return Drop(detail="once mended, the chosen and the rejected answer are the same", mark=mark)
        return Change(row=changed, what="fixed", detail=said, mark=mark, facts={"places": count})
