"""Judging rows in a terminal with single keys; in a pipe the same commands are read as lines, for scripts and tests."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TextIO

from luthier.annotate.keys import Keys, edit_text
from luthier.annotate.record import Action
from luthier.annotate.session import Session
from luthier.annotate.view import Block, Shown
from luthier.runtime.errors import LuthierError, RecipeError

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["HELP", "printable", "render", "run_command", "run_keys", "run_lines"]

HELP = """a  accept          r  reject (of two answers: both are bad)
e  edit the answer, then accept it
1  left is better  2  right is better   =  tie
E  edit the better of two answers (asks which)
t  add a tag       T  take a tag off    n  note
s  skip            u  undo              j  jump to a row
p  previous row    f  following row     ?  this help         q  quit"""
_KEYS = frozenset("are12=EtTnsujpf?q")
_TEXTS = {"t": "tag", "T": "tag to take off", "n": "note", "j": "number of the row"}
_SIMPLE: dict[str, Action] = {"a": "accept", "r": "reject", "=": "tie", "s": "skip"}
_TEXTED: dict[str, Action] = {"t": "tag", "T": "untag", "n": "note"}
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text that cannot move the cursor, change colours or turn the direction of writing: such characters by number."""
    return _UNSAFE.sub(lambda match: f"<U+{ord(match.group()):04X}>", text)


def run_command(session: Session, key: str, rest: str = "", *, edit: Callable[[str], str | None]) -> str | None:
    """Do what one key means.

    Args:
        session: The annotator.
        key: One of the keys of `HELP`.
        rest: What follows it: text of a tag or note, number of a row, side of an edit.
        edit: Old text -> new text, None to leave it.

    Returns:
        What happened, in a few words; None: stop.

    Raises:
        RecipeError: the key is unknown, or does not fit the row.
    """
    if key == "q":
        return None
    if key in _SIMPLE:
        return _done(session.act(_SIMPLE[key]))
    if key in {"1", "2"}:
        return _done(session.act("choose", side="left" if key == "1" else "right"))
    if key in _TEXTED:
        return _done(session.act(_TEXTED[key], text=rest))
    if key in {"e", "E"}:
        return _edit(session, rest, edit)
    if key == "u":
        last = session.undo()
        return "nothing to undo" if last is None else f"undone: {last.action} {last.file}:{last.line}"
    if key in {"p", "f"}:
        session.move(-1 if key == "p" else 1)
        return "moved"
    if key == "j":
        if not rest.strip().isdigit():
            raise RecipeError(code="D294", message=f"j needs the number of a row, got {rest!r}")
        session.jump(int(rest))
        return "moved"
    if key == "?":
        return HELP
    raise RecipeError(code="D294", message=f"no such key: {key!r}", hint="? lists the keys")


def _edit(session: Session, rest: str, edit: Callable[[str], str | None]) -> str:
    view = session.view()
    if view is None or not view.slots:
        raise RecipeError(code="D294", message="this row has no text that can be edited", hint="edit it in the file")
    number, side = len(view.slots) - 1, None
    if view.kind == "pair":
        word = rest.strip()[:1]
        if word not in {"1", "2"}:
            raise RecipeError(code="D294", message="which answer is edited, 1 (left) or 2 (right)?")
        side = "left" if word == "1" else "right"
        answer = 0 if (side == "left") == (view.left == "first") else 1
        numbers = [place for place, slot in enumerate(view.slots) if slot.answer == answer]
        if not numbers:
            raise RecipeError(code="D294", message="this answer has no text that can be edited")
        number = numbers[-1]
    new = edit(view.slots[number].text)
    if new is None or new == view.slots[number].text:
        return "not changed"
    action: Action = "choose" if side else "edit"
    return _done(session.act(action, side=side, edits={number: new}))


def _done(record: Any) -> str:
    return f"{record.action} {record.file}:{record.line}"


# --- two ways to be told -------------------------------------------------------------------------------------------


def run_lines(session: Session, lines: Iterable[str], out: TextIO) -> int:
    """Read commands as lines, one a line: a key, then what belongs to it.

    The text of an edit follows its key (`e new answer`, `E 2 new answer`), as JSON when it begins with a quote. Each
    command is acknowledged by a line once it is on the disk.

    Returns:
        Commands that were refused; each is told.
    """
    refused = 0
    for line in lines:
        command = line.rstrip("\r\n")
        if not command.strip():
            continue
        key, rest = command[0], command[1:].removeprefix(" ")
        try:
            said = run_command(session, key, rest, edit=lambda _, text=rest, key=key: _text_of(text, key))  # type: ignore[misc]
        except LuthierError as error:
            refused += 1
            said = "refused: " + "; ".join(problem.message for problem in error.problems)
        if said is None:
            break
        out.write(printable(said) + "\n")
        out.flush()
    return refused


def _text_of(rest: str, key: str) -> str:
    text = rest.lstrip()[1:].removeprefix(" ") if key == "E" else rest
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError as error:
        raise RecipeError(code="D294", message=f"the text is no JSON string: {error}") from error


def run_keys(session: Session, show: Callable[[Any], None]) -> None:
    """Show one row after the other and read single keys until `q`, or until nothing is left."""
    import typer

    with Keys() as keys:

        def edit(text: str) -> str | None:
            with keys.lines():
                return edit_text(text)

        while True:
            show(render(session))
            if session.item is None:
                skipped = session.counts()["skipped"]
                show(f"all rows are decided on{f', {skipped} skipped (--skipped shows them)' if skipped else ''}")
            key = keys.read()
            if key not in _KEYS:
                continue
            try:
                rest = ""
                with keys.lines():
                    if key in _TEXTS:
                        rest = typer.prompt(_TEXTS[key], default="", show_default=False, err=True)
                    elif key == "E":
                        rest = typer.prompt("1 left, 2 right", err=True)
                said = run_command(session, key, rest, edit=edit)
            except LuthierError as error:
                said = "; ".join(problem.message for problem in error.problems)
            except typer.Abort:
                continue
            if said is None:
                return
            show(printable(said))


# --- what is shown -------------------------------------------------------------------------------------------------


def render(session: Session) -> RenderableType:
    """The row as panels; texts are data: nothing in them is markup or moves the cursor."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.text import Text

    view, item = session.view(), session.item
    if view is None or item is None:
        return Text("")
    standing, counts = session.standing(), session.counts()
    head = f"\nrow {(session.at or 0) + 1} of {counts['rows']}, {counts['decided']} decided   {item.ref}"
    parts: list[Any] = [Text(printable(head), "bold")]
    changed = session.desk.changed.get(item.hash)
    if changed is not None:
        parts.append(Text(printable(f"changed since {changed.annotator}: {changed.action}"), "bold yellow"))
    if item.empty:
        parts.append(Text(f"nothing to train on: {printable(item.empty)}", "bold yellow"))
    if view.tools:
        parts.append(_panel(Block("tools", view.tools), "dim"))
    parts += [_panel(block) for block in view.blocks]
    if view.kind == "pair":
        sides = [
            Group(Text(name, "bold"), *map(_panel, answer)) for name, answer in zip("12", view.answers, strict=True)
        ]
        width = max(30, (_width() - 4) // 2)
        parts.append(Columns(sides, width=width, equal=True) if width >= 50 else Group(*sides))
    told = [f"{name}: {text}" for name, text in view.columns]
    told += [f"label: {str(view.label).lower()}"] if view.label is not None else []
    told += [f"tags: {', '.join(standing.tags)}"] if standing.tags else []
    told += [f"note: {standing.note}"] if standing.note else []
    told += [f"you said: {words(standing.decision, view)}"] if standing.decision else []
    parts += [Text(printable(line), "cyan") for line in told]
    keys = "1 left  2 right  = tie  r both bad  E edit" if view.kind == "pair" else "a accept  r reject  e edit"
    parts.append(Text(f"{keys}  s skip  t tag  n note  u undo  j jump  ? help  q quit", "dim"))
    return Group(*parts)


def words(record: Any, view: Shown) -> str:
    """A decision as it looks on the screen: which answer, by its side."""
    if record.action != "choose":
        return str(record.action)
    return f"{'left' if record.choice == view.left else 'right'} is better" + (" (edited)" if record.edits else "")


def _panel(block: Block, style: str = "") -> RenderableType:
    from rich.panel import Panel
    from rich.text import Text

    colour = {"user": "blue", "assistant": "green", "completion": "green", "trained": "green", "text": "green"}
    text = Text(printable(block.text), style)
    for name, value in block.notes:
        text.append(f"\n{printable(name)}: {printable(value)}", "dim")
    return Panel(text, title=printable(block.role), title_align="left", border_style=colour.get(block.role, "dim"))


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
