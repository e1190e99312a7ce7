"""What can be asked: bases, tuned and merged models of runs, by name; and how a prompt to one of them looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.report.read import printable
from luthier.runtime.errors import LuthierError, RecipeError
from luthier.studio.names import run_folder, run_id
from luthier.studio.runs.details import base_name

if TYPE_CHECKING:
    from luthier.recipe.schema import ModelSection
    from luthier.studio.context import Studio

__all__ = ["Named", "known_models", "named_model", "rendered"]

_MERGED = ":merged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A model by its name."""

    name: str
    section: ModelSection
    """As its run has it; what the tokenizer and the template come from."""
    path: str | None
    """What `luthier serve` would be given; None: the base itself."""
    control_tokens: str = "text"


def known_models(studio: Studio, *, q: str, limit: int) -> dict[str, Any]:
    """Names of the models of all runs, newest runs first, after the bases; `total` may be more."""
    lines = sorted(
        (known.line for known in studio.index.lines()), key=lambda line: str(line["updated_at"]), reverse=True
    )
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line["base"]:
            name = base_name(line["base"])
            found.setdefault(name, {"model": name, "label": name, "kind": "base", "run": None, "step": None})
    for line in lines:
        for name, label, kind in _of_run(studio, line):
            found.setdefault(name, {"model": name, "label": label, "kind": kind, "run": line["id"], "step": None})
            if len(found) > 20 * limit:
                break
    words = q.lower().split()
    chosen = [one for one in found.values() if all(word in f"{one['model']} {one['label']}".lower() for word in words)]
    chosen.sort(key=lambda one: one["kind"] != "base")
    return {"total": len(chosen), "models": [{**one, "loaded": False} for one in chosen[:limit]]}


def _of_run(studio: Studio, line: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    if line["status"] not in ("finished", "stopped", "failed", "running", "paused"):
        return []
    try:
        folder = run_folder(studio.settings.runs, line["id"])
    except RecipeError:
        return []
    found = []
    if (folder / "final").is_dir():
        found.append((line["name"], f"{line['name']} (tuned)", "tuned"))
    if (folder / "merged" / "config.json").is_file():
        found.append((f"{line['name']}{_MERGED}", f"{line['name']} (merged)", "merged"))
    return found


def named_model(studio: Studio, name: str) -> Named:
    """Find a model.

    Raises:
        RecipeError: W134: there is none of this name.
    """
    from luthier.pipeline.rerun import recipe_of_run

    own, merged = name.removesuffix(_MERGED), name.endswith(_MERGED)
    try:
        folder = run_folder(studio.settings.runs, run_id(own))
    except RecipeError:
        return _base(studio, name)
    part = folder / ("merged" if merged else "final")
    if not part.is_dir():
        raise RecipeError(
            code="W134", message=f"{printable(name[:200])}: the run has not come to its {part.name} model yet"
        )
    recipe = recipe_of_run(folder)
    path = str(part if merged else folder)
    return Named(name=name, section=recipe.model, path=path, control_tokens=recipe.data.control_tokens)


def _base(studio: Studio, name: str) -> Named:
    from luthier.pipeline.rerun import recipe_of_run
    from luthier.recipe.schema import ModelSection

    for known in studio.index.lines():
        if known.line["base"] and base_name(known.line["base"]) == name:
            try:
                section = recipe_of_run(known.folder).model
            except LuthierError:
                continue
            return Named(
                name=name, section=ModelSection(name_or_path=section.name_or_path, revision=section.revision), path=None
            )
    raise RecipeError(
        code="W134", message=f"there is no model {printable(name[:200])!r}", hint="see the list of models"
    )


def rendered(
    studio: Studio, named: Named, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None
) -> dict[str, Any]:
    """The prompt as the model is asked with: by the template and the encoder that training used.

    Raises:
        Unfinished: the tokenizer is being loaded.
        DataError: the template refuses the messages.
    """
    from luthier.data.describe import token_texts
    from luthier.data.template import ChatTemplate

    section = named.section.model_dump(mode="json")
    tokenizer = studio.tokenizers.get(section)
    template = ChatTemplate(
        tokenizer,
        kwargs=named.section.chat_template_kwargs,
        control_tokens=named.control_tokens,  # type: ignore[arg-type]
    )
    ids = template.prompt_ids(messages, tools)
    texts = token_texts(ids, template.encoder)
    special = template.encoder.control_ids
    return {
        "text": printable("".join(texts)), "ids": list(ids), "texts": [printable(text) for text in texts],
        "kinds": ["special" if token in special else "context" for token in ids], "tokens": len(ids),
        "template": printable(template.source(tools)),
    }  # fmt: skip
