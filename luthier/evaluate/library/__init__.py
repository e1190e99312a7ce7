"""Tasks that ship with Luthier: one YAML file each, with a version that rises when scores would change."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LibraryTask", "RowsOfTask", "SecondaryMetric", "WorkedExample", "library_names", "library_task"]

TextMetric = Literal["exact", "contains", "regex", "number", "json_exact"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class SecondaryMetric(_Strict):
    """A score reported beside the main one."""

    name: str
    metric: TextMetric
    pattern: str | None = None
    """As in the recipe; a reference it does not match (a bare number) is taken as it stands."""


class WorkedExample(_Strict):
    """A question with its answer, shown as earlier turns."""

    question: str
    answer: str


class RowsOfTask(_Strict):
    """Where the rows are when the recipe names no file."""

    path: str
    name: str | None = None
    split: str = "test"


class LibraryTask(_Strict):
    """A task file."""

    name: str
    version: Annotated[int, Field(ge=1)]
    """Part of every result; results of two versions are never compared."""
    description: str
    metric: TextMetric
    pattern: str | None = None
    secondary: list[SecondaryMetric] = Field(default_factory=list)
    rows: RowsOfTask
    map: dict[str, str] = Field(default_factory=dict)
    system: str | None = None
    max_new_tokens: Annotated[int, Field(ge=1)]
    num_fewshot: Annotated[int, Field(ge=0)] = 0
    fewshot: list[WorkedExample] = Field(default_factory=list)


@cache
def library_names() -> tuple[str, ...]:
    """Names of the tasks that ship."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


@cache
def library_task(name: str) -> LibraryTask:
    """Read one of `library_names()`; unknown keys and wrong types are errors."""
    from ruamel.yaml import YAML

    text = resources.files(__name__).joinpath(f"{name}.yaml").read_text("utf-8")
    return LibraryTask.model_validate(YAML(typ="safe", pure=True).load(text))
