"""What a card is made of: the run's own files, and what the base and the data sets say of themselves.

Nothing is downloaded: cards of hub repositories are read from the hub cache, where they lie if they were fetched once.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.model.embedded import MODEL_NAME, SOURCE_LICENSE, SOURCE_MODEL
from luthier.recipe.paths import looks_local
from luthier.report.card.keep import front_matter_of
from luthier.report.read import RunFiles
from luthier.runtime.scrub import scrub_path

__all__ = ["BaseFacts", "CardFacts", "Kind", "SourceFacts", "base_facts", "card_facts"]

Kind = Literal["adapter", "model", "merged", "gguf"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFacts:
    """The base model."""

    shown: str
    """Its name without places of this machine."""
    hub_id: str | None
    """`owner/name`, if it is one or its own card names one."""
    revision: str | None
    license: str | None
    """As its card states it; None: not stated anywhere Luthier can see."""
    license_name: str | None
    license_link: str | None
    license_from: str
    """Where that is stated."""
    language: tuple[str, ...]
    """As its card states it."""
    positions: int | None
    """`max_position_embeddings`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """One source of rows."""

    shown: str
    hub_id: str | None
    format: str
    rows: int | None
    hash: str
    license: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """Everything a card says, before it is put into words."""

    run: RunFiles
    kind: Kind
    name: str
    repo_id: str | None
    """Where the folder is published; None: unknown, and examples say so."""
    base: BaseFacts
    sources: tuple[SourceFacts, ...]
    recipe: dict[str, Any]
    """As in the manifest: what the user wrote, overrides included."""
    files: dict[str, Any]
    """config.json or adapter_config.json of the folder; empty if there is none."""
    chat: bool
    """The folder has a chat template."""
    gguf: tuple[dict[str, Any], ...] = ()
    """What `luthier export` found of each GGUF file."""

    @property
    def languages(self) -> list[str]:
        """ISO 639-1 codes that the rows were filtered to; empty: their language was not measured."""
        filters = ((self.run.data or {}).get("curated") or {}).get("filters") or {}
        found = ((filters.get("settings") or {}).get("language") or {}).get("languages")
        return [str(item) for item in found] if isinstance(found, list) else []

    @property
    def method(self) -> str:
        """`lora`, `full`, ..."""
        return str(self.recipe.get("method", {}).get("name", self.run.manifest.get("method", "lora")))

    @property
    def objective(self) -> str:
        """`sft`, `dpo`, ..."""
        return str(self.recipe.get("objective", {}).get("name", "sft"))

    @property
    def confidence(self) -> float:
        """Level of the intervals."""
        return float(self.recipe.get("evaluate", {}).get("confidence", 0.95))


def card_facts(run: RunFiles, folder: Path, *, kind: Kind, repo_id: str | None, base_model: str | None) -> CardFacts:
    """Collect what is known of the model in `folder`.

    Args:
        run: the run it came from.
        folder: `final`, `merged` or `gguf` of it.
        kind: what it holds.
        repo_id: where it is published.
        base_model: hub id of the base, when the run itself knows only a folder.
    """
    recipe = run.manifest.get("recipe")
    value: dict[str, Any] = recipe if isinstance(recipe, dict) else {}
    where = Path(run.manifest.get("working_directory") or ".")
    return CardFacts(
        run=run, kind=kind, name=str(value.get("name") or run.path.resolve().name), repo_id=repo_id,
        base=base_facts(value.get("model", {}), where, base_model), sources=_sources(run, value, where), recipe=value,
        files=_json(folder / ("adapter_config.json" if kind == "adapter" else "config.json")),
        chat=any((place / "chat_template.jinja").is_file() for place in (folder, run.path / "final"))
        or bool(value.get("model", {}).get("chat_template")),
        gguf=tuple(item for item in _json(run.path / "export" / "gguf.json").get("files", []) if isinstance(item, dict))
        if kind == "gguf" else (),
    )  # fmt: skip


def base_facts(model: dict[str, Any], where: Path, base_model: str | None) -> BaseFacts:
    """What is known of the base that a recipe names; `where`: folder that relative paths start at."""
    name, revision = str(model.get("name_or_path", "")), model.get("revision")
    folder = _local(name, where)
    card, said = {}, ""
    hub_id, shown = base_model, scrub_path(name)
    if name == MODEL_NAME:
        card, said, hub_id = {"license": SOURCE_LICENSE}, f"the card of {SOURCE_MODEL}", base_model or SOURCE_MODEL
    elif folder is not None:
        card, said = front_matter_of(folder / "README.md"), "the card in the base's folder"
        named = card.get("base_model")
        # A copy of a hub model names its origin; a fine-tune of ours names what it was made from, and is that no more.
        copy = isinstance(named, str) and _HUB_ID.fullmatch(named) and "luthier" not in (card.get("tags") or [])
        hub_id = base_model or (str(named) if copy else None)
    elif _HUB_ID.fullmatch(name):
        file = _cached(name, revision, "README.md", "model")
        card, said = (front_matter_of(file) if file else {}), f"the card of {name}"
        hub_id = base_model or name
    config = folder / "config.json" if folder else _cached(name, revision, "config.json", "model")
    language = card.get("language")
    languages = language if isinstance(language, list) else [language] if isinstance(language, str) else []
    return BaseFacts(
        shown=shown, hub_id=hub_id, revision=str(revision) if revision else None, license=_text(card.get("license")),
        license_name=_text(card.get("license_name")), license_link=_text(card.get("license_link")), license_from=said,
        language=tuple(str(item) for item in languages),
        positions=_positions(_json(config) if config else {}),
    )  # fmt: skip


def _sources(run: RunFiles, recipe: dict[str, Any], where: Path) -> tuple[SourceFacts, ...]:
    """Sources of the data manifest, in order; ids of data sets as the recipe writes them."""
    written = [item for item in recipe.get("data", {}).get("train", []) if isinstance(item, dict)]
    found = []
    for index, source in enumerate((run.data or {}).get("sources", [])):
        path = str(source.get("path", ""))
        asked = str(written[index].get("path", path)) if index < len(written) else path
        hub = asked if _HUB_ID.fullmatch(asked) and _local(asked, where) is None and not looks_local(asked) else None
        file = _cached(hub, None, "README.md", "dataset") if hub else None
        stated = front_matter_of(file).get("license") if file else None
        rows = source.get("rows")
        found.append(
            SourceFacts(
                shown=hub or scrub_path(path),
                hub_id=hub,
                format=str(source.get("format", "")),
                rows=rows if isinstance(rows, int) else None,
                hash=str(source.get("hash", "")),
                license=_text(stated),
            )
        )
    return tuple(found)


def _local(name: str, where: Path) -> Path | None:
    """The folder or file of this name: absolute, or seen from where the run was made."""
    if not name or "\0" in name:
        return None
    path = Path(name).expanduser() if name.startswith("~") else Path(name)
    candidates = [path] if path.is_absolute() else [where / path, path]
    return next((item for item in candidates if item.exists()), path if path.is_absolute() else None)


def _cached(repo: str, revision: str | None, file: str, kind: str) -> Path | None:
    """A file of a hub repository, if it lies in the cache."""
    if not _HUB_ID.fullmatch(repo):
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(repo, file, revision=revision, repo_type=kind)
    return Path(found) if isinstance(found, str) else None


def _positions(config: dict[str, Any]) -> int | None:
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    value = text.get("max_position_embeddings") if isinstance(text, dict) else None
    return value if isinstance(value, int) else None


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    if isinstance(value, list):
        value = ", ".join(str(item) for item in value)
    return str(value) if isinstance(value, str) and value.strip() else None
