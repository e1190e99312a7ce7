"""`api.yaml`: what the operator of a service decides. Strict: every key is known, everything wrong is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from luthier.jobs.merge import merged
from luthier.recipe.load import read_document, recipe_from_dict
from luthier.recipe.paths import looks_local
from luthier.recipe.section import Section
from luthier.recipe.validate import validate_as
from luthier.runtime.errors import Problem, RecipeError

__all__ = ["EMBEDDED", "AllowSection", "ApiSettings", "LimitsSection", "load_settings"]

EMBEDDED = "smollm2-135m-instruct"
"""The model that ships in a package needs no entry in `models`."""
PositiveInt = Annotated[int, Field(ge=1)]


class AllowSection(Section):
    """What a client's `luthier` keys may do beyond training on its own file. All off: clients are strangers."""

    paths: bool = False
    """Name files, folders, hub data sets, revisions and models (`evaluate.tasks`, `method.init_from`)."""
    code: bool = False
    """Run Python: `data.filters.python`, `rewards: [{python: ...}]`, `trust_remote_code`, graders, lm_eval tasks."""
    endpoints: bool = False
    """Let this machine ask servers that the client names (judges, vLLM)."""
    publish: bool = False
    """`export.push_to_hub`, and trackers in `train.report_to`, with the tokens of this machine."""
    any_base: bool = False
    """Take any hub id as `model`, beyond `models`."""


class LimitsSection(Section):
    """Bounds of all clients; a key may have tighter ones."""

    file_bytes: PositiveInt = 512 << 20
    """Largest file sent at once, in bytes."""
    upload_bytes: PositiveInt = 8 << 30
    """Largest file sent in parts, in bytes."""
    min_rows: PositiveInt = 10
    """Fewest rows of a training file, as at OpenAI."""
    shown_problems: PositiveInt = 20
    """Bad lines named in the message of a failed job; their number is always told."""
    max_queued: PositiveInt | None = 100
    """Most jobs of an owner that wait; null: no limit."""
    requests_per_minute: PositiveInt | None = None
    """Most requests of a key; null: no limit."""


class ApiSettings(Section):
    """Settings of `luthier api`."""

    version: Literal[1] = 1
    """Version of this schema."""
    organization: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")] = "luthier"
    """Stands in the names of tuned models, `ft:BASE:ORGANIZATION:SUFFIX:ID`."""
    models: dict[str, str] = Field(default_factory=dict)
    """Name that clients use -> hub id or local folder, for instance `gpt-4o-mini-2024-07-18: Qwen/Qwen3-0.6B`."""
    recipe: dict[str, Any] = Field(default_factory=dict)
    """Recipe keys of every job; a job's own keys go before them."""
    recipe_of_base: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Recipe keys of the jobs of one base (a value of `models`); they go before `recipe`."""
    priority: dict[str, int] = Field(default_factory=dict)
    """Owner -> priority of the jobs; higher ones are run first; others have 0."""
    integrations: list[Literal["wandb"]] = Field(default_factory=list)
    """What `integrations` of a job may name; metrics then leave this machine, with its credentials."""
    allow: AllowSection = Field(default_factory=AllowSection)
    """What clients may do beyond training on their own file."""
    limits: LimitsSection = Field(default_factory=LimitsSection)
    """Bounds of all clients."""

    def base_recipe(self, base: str) -> dict[str, Any]:
        """Recipe keys below those of a job."""
        return merged(merged(_SERVICE, self.recipe), self.recipe_of_base.get(base, {}))


_SERVICE: dict[str, Any] = {
    # No row is lost in silence: a job with rows that are too long fails and names them.
    "data": {"max_length": 4096, "overlong": "error"},
    # Adapters are served on their base; merged weights are written when asked for.
    "export": {"merge": False},
}
"""Where a job differs from a recipe that leaves everything open."""


Kind = TypeVar("Kind", bound=ApiSettings)


def load_settings(path: Path | None, kind: type[Kind]) -> Kind:
    """Read the settings.

    Args:
        path: `api.yaml`; None: all defaults.
        kind: `ApiSettings`, or what has further sections.

    Raises:
        RecipeError: C101 to C105 the file and its keys, J140 what cannot be right, C1xx recipe keys: all at once.
    """
    if path is None:
        return kind()
    document = read_document(path)
    if document.value is None and document.readable and not document.problems:
        return kind()
    settings = None
    problems = list(document.problems)
    if document.readable and isinstance(document.value, dict):
        settings, found = validate_as(kind, document)
        problems += found
    elif not problems:
        problems.append(Problem(code="C103", message="settings are a mapping of keys", file=document.origin))
    if settings is not None:
        problems += [
            document.locate(key, on="key").problem("J140", message, hint=hint)
            for key, message, hint in _rules(settings)
        ]
    if settings is None or problems:
        raise RecipeError(problems=document.in_order(problems))
    return settings.model_copy(update={"models": {name: _absolute(base) for name, base in settings.models.items()}})


def _rules(settings: ApiSettings) -> list[tuple[str, str, str | None]]:
    """Key, message, hint of what the schema cannot tell."""
    found: list[tuple[str, str, str | None]] = []
    for name, base in settings.models.items():
        if name.startswith("ft:") or not name.strip() or not name.isprintable() or len(name) > 200:
            found.append(("models", f"`{name[:60]}` is no name for a model", "names of tuned models begin with ft:"))
        if looks_local(base, suffixes=()) and not Path(base).expanduser().is_dir():
            found.append(("models", f"`{name}` stands for {base}, and there is no such folder", None))
    unknown = sorted(set(settings.recipe_of_base) - {*settings.models.values(), EMBEDDED})
    if unknown and not settings.allow.any_base:
        found.append(("recipe_of_base", f"`{unknown[0]}` is no base of `models`", None))
    found += [("recipe", *item) for item in _recipe_problems(settings.recipe)]
    for base in settings.recipe_of_base:
        found += [("recipe_of_base", *item) for item in _recipe_problems(settings.base_recipe(base))]
    return found


def _recipe_problems(keys: dict[str, Any]) -> list[tuple[str, str | None]]:
    """What the loader of recipes says to these keys in a job."""
    taken = [
        key for key in ("model.name_or_path", "data.train", "data.validation.path", "output_dir") if _has(keys, key)
    ]
    if taken:
        return [(f"`{key}` is what each job brings itself", "remove it") for key in taken]
    probe = merged(
        keys, {"model": {"name_or_path": EMBEDDED}, "data": {"train": [{"path": __file__}]}, "output_dir": "x"}
    )
    try:
        recipe_from_dict(probe, origin="recipe")
    except RecipeError as error:
        return [(problem.message, problem.hint) for problem in error.problems]
    return []


def _has(keys: dict[str, Any], dotted: str) -> bool:
    value: Any = keys
    for part in dotted.split("."):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _absolute(base: str) -> str:
    """A local folder by its whole path: workers may start elsewhere."""
    return str(Path(base).expanduser().absolute()) if base != EMBEDDED and looks_local(base, suffixes=()) else base
