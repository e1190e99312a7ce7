"""Publish a run's model: card, files, upload, and a record of it in `export/push.json`.

What people wrote into the card on the Hub since the last push is kept: the card is then made from that one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.export.hub.files import PushFile, collect
from luthier.export.hub.upload import PushResult, PushSettings, push_files, remote_card
from luthier.model.identity import verify_record
from luthier.recipe.push_schema import PushSection
from luthier.report.card.write import CARD, card_text, read_card
from luthier.report.read import read_run
from luthier.runs.folder import RunFolder, utc_now
from luthier.runs.published import PUSHES, read_pushes
from luthier.runtime.atomic import write_json, write_text
from luthier.runtime.errors import Problem, RecipeError, RunFailed
from luthier.runtime.scrub import find_secrets

__all__ = ["FOLDERS", "PushPlan", "plan_push", "plan_table", "push", "result_lines", "section_from"]

FOLDERS = {"adapter": "final", "merged": "merged", "gguf": "gguf"}
"""What is pushed -> folder of the run."""
_MADE_BY = {
    "adapter": "`luthier run` with its recipe.yaml trains one",
    "merged": "`luthier merge RUN` makes it",
    "gguf": "`luthier export RUN --gguf q8_0` makes one",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PushPlan:
    """What a push would send."""

    folder: Path
    section: PushSection
    files: list[PushFile]
    card: str
    """Text of README.md, written into `folder` before the push."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "folder": str(self.folder),
            **self.section.model_dump(mode="json"),
            "bytes": self.size,
            "files": [{"name": file.name, "bytes": file.size, "change": file.change} for file in self.files],
        }


def plan_push(run: RunFolder, section: PushSection, *, token: str | None = None) -> PushPlan:
    """Look at what would be pushed; writes nothing.

    Args:
        run: the run folder.
        section: where to, and what.
        token: to look at the card that is on the Hub already; None: it is not looked at.

    Raises:
        RecipeError: the run does not hold what is to be pushed.
        RunFailed: a secret in a file, a damaged file, a card that was changed here and there.
        DataError: the markers of a card are damaged.
    """
    folder = run.path / FOLDERS[section.what]
    has = folder.is_dir() and any(folder.glob("*.gguf" if section.what == "gguf" else "*.safetensors"))
    if not has:
        raise RecipeError(code="X657", message=f"{run.path} has no {section.what} to push", hint=_MADE_BY[section.what])
    if section.what == "adapter" and not (folder / "adapter_config.json").is_file():
        raise RecipeError(
            code="X657", message=f"{folder} holds a whole model, no adapter", hint="push `merged`, which is checked"
        )
    verify_record(folder)  # the bytes are those that were written and checked
    old = _card_to_keep(run, section, folder, token)
    text = card_text(read_run(run), folder, old=old, repo_id=section.repo_id, base_model=section.base_model)
    files = [file for file in collect(folder, base_model=section.base_model) if file.name != CARD]
    card = PushFile(name=CARD, size=len(text.encode("utf-8")), path=folder / CARD, data=text.encode("utf-8"))
    _no_secrets(text, folder / CARD)
    return PushPlan(folder=folder, section=section, card=text, files=sorted([*files, card], key=lambda file: file.name))


def push(run: RunFolder, plan: PushPlan, *, token: str) -> PushResult:
    """Write the card, push, and record it.

    Raises:
        AccessError, RecipeError, EnvironmentProblem, RunFailed: as `push_files`.
    """
    if read_card(plan.folder) != plan.card:
        write_text(plan.folder / CARD, plan.card)
    section = plan.section
    settings = PushSettings(repo_id=section.repo_id, private=section.private, revision=section.revision)
    result = push_files(plan.files, settings, token=token, staging=run.path)
    pushes = read_pushes(run.path)
    pushes[section.what] = {**result.to_json(), "base_model": section.base_model, "pushed_at": utc_now()}
    write_json(run.path / PUSHES, pushes)
    return result


def _card_to_keep(run: RunFolder, section: PushSection, folder: Path, token: str | None) -> str | None:
    """The card whose hand-written text goes into the new one: the local one, or the one that was changed on the Hub."""
    local = read_card(folder)
    if token is None:
        return local
    there = remote_card(PushSettings(repo_id=section.repo_id, revision=section.revision), token)
    if there is None:
        return local
    text, blob = there
    last = read_pushes(run.path).get(section.what, {})
    pushed = last.get("card") if last.get("repo_id") == section.repo_id else None
    if blob == pushed or local == text:
        return local
    if local is not None and pushed is not None and _blob(local) != pushed and _own_text(local) != _own_text(text):
        raise RunFailed(
            code="X659", message=f"{folder / CARD} and the card of {section.repo_id} were both changed since the push",
            hint=f"bring what you wrote there into {folder / CARD}, put it on the Hub as well, and push again",
        )  # fmt: skip
    if pushed is None and local is not None and _own_text(local).strip():
        return local
    return text


def _own_text(card: str) -> str:
    """What stands outside our sections, roughly: enough to see a change of it."""
    kept, inside = [], False
    for line in card.splitlines():
        if line.startswith("<!-- luthier:begin "):
            inside = True
        elif line.startswith("<!-- luthier:end "):
            inside = False
        elif not inside and line.strip() and not line.startswith("<!-- luthier:"):
            kept.append(line)
    text = "\n".join(kept)
    return text.split("\n---\n", 1)[-1] if text.startswith("---\n") else text


def _blob(text: str) -> str:
    data = text.encode("utf-8")
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _no_secrets(text: str, file: Path) -> None:
    problems = [
        Problem(code="X650", message=f"holds {kind}", file=str(file), line=line, hint="remove it from the card")
        for line, content in enumerate(text.splitlines(), start=1)
        for kind in find_secrets(content)
    ]
    if problems:
        raise RunFailed(problems=problems)


def section_from(repo_id: str, what: str, *, private: bool, revision: str, base_model: str | None) -> PushSection:
    """The section that a command line means.

    Raises:
        RecipeError: a value is not allowed; all that are wrong.
    """
    try:
        return PushSection.model_validate(
            {"repo_id": repo_id, "what": what, "private": private, "revision": revision, "base_model": base_model}
        )
    except ValidationError as error:
        allowed = {"repo_id": "owner/name", "what": "adapter, merged or gguf", "base_model": "owner/name"}
        problems = [
            Problem(
                code="X652", message=f"{item['loc'][0]}: got {item['input']!r}", hint=allowed.get(str(item["loc"][0]))
            )
            for item in error.errors()
        ]
        raise RecipeError(problems=problems) from error


def plan_table(plan: PushPlan) -> Any:
    """The files with their sizes, and what is changed in a copy."""
    from rich.table import Table
    from rich.text import Text

    seen = "private" if plan.section.private else "PUBLIC"
    title = f"{plan.folder} -> {plan.section.repo_id} ({seen}, {plan.section.revision}), {_size(plan.size)}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("file")
    table.add_column("size", justify="right")
    table.add_column("differs from the local file in")
    for file in plan.files:
        table.add_row(Text(file.name), _size(file.size), Text(file.change or ""))
    return table


def result_lines(result: PushResult) -> list[str]:
    """What a push came to."""
    if not result.changed:
        return [f"nothing to push: {result.url} holds all {result.unchanged} files as they are here ({result.commit})"]
    lines = [f"pushed {len(result.sent)} files, {result.unchanged} were there already: {result.url} ({result.commit})"]
    lines += [f"  removed there: {name}, of an earlier split" for name in result.removed]
    return lines


def _size(size: int) -> str:
    return f"{size:,} B" if size < 10_000 else f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"
