"""Make the card of a model folder, and keep what people wrote into it.

facts  ->  YAML block (meta.py) and sections  ->  into the old card (keep.py)  ->  README.md
"""

from __future__ import annotations

from pathlib import Path

from luthier.report.card import evidence, sections, use
from luthier.report.card.facts import CardFacts, Kind, card_facts
from luthier.report.card.keep import compose
from luthier.report.card.meta import front_matter
from luthier.report.read import RunFiles, read_run
from luthier.runs.folder import RunFolder
from luthier.runs.published import read_pushes
from luthier.runtime.atomic import write_text

__all__ = ["CARD", "card_text", "keep_cards", "kind_of", "model_folders", "read_card", "write_cards"]

CARD = "README.md"
KEPT = Path("export") / "cards"
"""Where a card waits while its folder is made again."""
_PUSHED_AS = {"final": "adapter", "merged": "merged", "gguf": "gguf"}


def kind_of(folder: Path) -> Kind:
    """What a folder of a run holds: `adapter` or `model` (final), `merged`, `gguf`."""
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    if folder.name == "gguf":
        return "gguf"
    return "merged" if folder.name == "merged" else "model"


def card_text(
    run: RunFiles, folder: Path, *, old: str | None, repo_id: str | None = None, base_model: str | None = None
) -> str:
    """The text of a card.

    Args:
        run: the run that made the model.
        folder: where the model is: `RUN/final`, `RUN/merged`, `RUN/gguf`.
        old: what stands in the card now; None: nothing.
        repo_id: where it is (to be) published; examples then name it.
        base_model: hub id of the base, when the run knows only a folder.

    Raises:
        DataError: the old card's markers or YAML block are damaged.
    """
    facts = card_facts(run, folder, kind=kind_of(folder), repo_id=repo_id, base_model=base_model)
    return compose(folder / CARD, front_matter(facts), all_sections(facts), old=old)


def all_sections(facts: CardFacts) -> dict[str, str]:
    """Name -> Markdown, in order."""
    return {
        "summary": sections.summary(facts),
        "scores": evidence.scores(facts),
        "limits": evidence.limits(facts),
        "use": use.use(facts),
        "data": sections.data(facts),
        "training": sections.training(facts),
        "reproduce": use.reproduce(facts),
    }


def model_folders(run: RunFolder) -> list[Path]:
    """Folders of a run that hold a model."""
    return [folder for name in ("final", "merged", "gguf") if (folder := run.path / name).is_dir()]


def keep_cards(run: RunFolder) -> None:
    """Before a model folder is replaced: put its card, which people may have written in, where it is found again."""
    for folder in model_folders(run):
        text = read_card(folder)
        if text is not None:
            write_text(run.path / KEPT / f"{folder.name}.md", text)


def write_cards(run: RunFolder, *, base_model: str | None = None) -> list[Path]:
    """Write README.md into every model folder of a run; returns the files.

    Args:
        run: the run folder; examples name the repository a model was pushed to.
        base_model: as in `card_text`.

    Raises:
        DataError: a card's markers or YAML block are damaged; no card is written.
        RunFailed: a file of the run is damaged.
        EnvironmentProblem: a card cannot be written.
    """
    files = read_run(run)
    texts = {}
    published = read_pushes(run.path)
    for folder in model_folders(run):
        kept = run.path / KEPT / f"{folder.name}.md"
        before = read_card(folder)
        if before is None and kept.is_file():
            before = kept.read_text("utf-8", errors="replace")
        last = published.get(_PUSHED_AS[folder.name], {})
        named = base_model or last.get("base_model")
        texts[folder / CARD] = card_text(files, folder, old=before, repo_id=last.get("repo_id"), base_model=named)
    for file, text in texts.items():
        if not file.is_file() or file.read_text("utf-8", errors="replace") != text:
            write_text(file, text)
        (run.path / KEPT / f"{file.parent.name}.md").unlink(missing_ok=True)
    return list(texts)


def read_card(folder: Path) -> str | None:
    """The card of a folder as it is; None if there is none."""
    file = folder / CARD
    return file.read_text("utf-8", errors="replace") if file.is_file() else None
