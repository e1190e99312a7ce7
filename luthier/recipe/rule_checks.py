"""What rules of many sections check: keys without effect, paths, patterns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec

from pydantic import BaseModel

from luthier.recipe.data_rules import store_rules
from luthier.recipe.paths import is_url, looks_local, missing_path
from luthier.recipe.positions import Locate
from luthier.runtime.errors import Problem

__all__ = ["compiling", "existing_file", "rows_file", "unused_keys"]


def unused_keys(section: BaseModel, prefix: str, unused: Mapping[str, str], locate: Locate) -> Iterator[Problem]:
    """A key that was written, is not null, and would have no effect."""
    for key, reason in unused.items():
        if key in section.model_fields_set and getattr(section, key) is not None:
            message = f"`{prefix}.{key}` would have no effect: {reason}"
            yield locate(f"{prefix}.{key}", on="key").problem("C111", message, hint="remove it")


def existing_file(text: str, key: str, locate: Locate) -> Iterator[Problem]:
    """A path that must exist."""
    missing = missing_path(text) if text else ("empty path", None)
    if missing is not None:
        yield locate(key).problem("C130", missing[0], hint=missing[1])


def rows_file(text: str, key: str, locate: Locate) -> Iterator[Problem]:
    """Rows: a local path that must exist, a hub id, or something in an object store."""
    if is_url(text):
        yield from store_rules(text, key, locate)
    elif not text or looks_local(text):
        yield from existing_file(text, key, locate)


def compiling(pattern: str, key: str, locate: Locate, *, groups: int = 0) -> Iterator[Problem]:
    """A pattern that must compile and, when its first group is the answer, have one."""
    # Answers are searched with `regex`, which knows more than `re`; the core installs without it.
    engine = import_module("regex") if groups and find_spec("regex") is not None else re
    try:
        found = engine.compile(pattern).groups
    except engine.error as error:
        yield locate(key).problem("C103", f"`{key}` is not a regular expression: {error}")
        return
    if found < groups:
        yield locate(key).problem("C103", f"`{key}` has no group", hint="put the answer in parentheses")
