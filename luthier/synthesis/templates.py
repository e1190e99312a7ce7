"""What the model is told: Jinja templates from `prompts.yaml`, and operators from `operators.yaml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.recipe.load import read_document
from luthier.runtime.errors import Problem, RecipeError
from luthier.runtime.hashing import hash_json

__all__ = ["OPERATORS_FILE", "PROMPTS_FILE", "Template", "Templates", "load_operators", "load_templates", "marked"]

PROMPTS_FILE = Path(__file__).parent / "prompts.yaml"
OPERATORS_FILE = Path(__file__).parent / "operators.yaml"

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Template:
    """A system message (empty: none) and a user message."""

    name: str
    system: str
    user: str

    @property
    def hash(self) -> str:
        """Changes with its text."""
        return hash_json([self.name, self.system, self.user])

    def messages(self, **values: Any) -> Messages:
        """Rendered. Material is a value, so nothing in it is taken for a template."""
        turns = [("system", self.system), ("user", self.user)]
        return [{"role": role, "content": _render(text, values)} for role, text in turns if text]


Templates = Mapping[str, Template]


def _render(text: str, values: Mapping[str, Any]) -> str:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
    return environment.from_string(text).render(**values)


def load_templates(own: Path | None = None) -> Templates:
    """The templates that ship, those of `own` in their places.

    Raises:
        RecipeError: a file that cannot be read, an unknown name, or a template with a fault. All are told.
    """
    shipped = _read(PROMPTS_FILE)
    values = dict(shipped)
    problems: list[Problem] = []
    for name, texts in (_read(own) if own is not None else {}).items():
        if name not in shipped or not isinstance(texts, dict) or not set(texts) <= set(shipped[name]):
            message = f"`{name}` must be one of {', '.join(shipped)}, each with `system` and `user`"
            problems.append(Problem(code="D272", message=message, file=str(own)))
        else:
            values[name] = {**shipped[name], **texts}
    templates = {
        name: Template(name, str(texts.get("system", "")), str(texts["user"])) for name, texts in values.items()
    }
    problems += [found for template in templates.values() for found in _faults(template, own or PROMPTS_FILE)]
    if problems:
        raise RecipeError(problems=problems)
    return templates


def load_operators() -> Mapping[str, str]:
    """Instruction of each operator of evolution."""
    return {name: str(text) for name, text in _read(OPERATORS_FILE).items()}


def marked(parts: Sequence[tuple[str, str]]) -> str:
    """Material between marks that it cannot contain: no text can hold the hash of itself."""
    mark = hash_json([text for _, text in parts])[:8]
    return "\n\n".join(f"[{mark} {name}]\n{text}\n[{mark} end]" for name, text in parts)


def _faults(template: Template, file: Path) -> list[Problem]:
    """A template is rendered once, so that a slip in it is found before anything is sent."""
    from jinja2 import TemplateError

    names = ("material", "pairs", "title", "prompts", "topic", "operator", "low", "high", "rubric", "fault", "shape")
    values = dict.fromkeys(names, 1)
    try:
        template.messages(**values)
    except TemplateError as error:
        hint = f"its values: {', '.join(values)}"
        return [Problem(code="D272", message=f"template `{template.name}`: {error}", file=str(file), hint=hint)]
    return []


def _read(path: Path) -> dict[str, Any]:
    document = read_document(path)
    if document.problems:
        raise RecipeError(problems=document.problems)
    if not isinstance(document.value, dict):
        raise RecipeError(code="D272", message=f"{path}: a mapping of names to templates is expected")
    return document.value
