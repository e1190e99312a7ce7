"""A configuration as plain values: sections and keys by accelerate's full names, with the place of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.recipe.positions import Document, KeyPath, Place
from luthier.recipe.yaml12 import MAX_BYTES, parse_yaml
from luthier.runtime.errors import Problem

__all__ = ["SECTIONS", "Source", "read_config"]

SECTIONS = {
    "fsdp_config": "fsdp_", "deepspeed_config": "", "parallelism_config": "parallelism_config_",
    "megatron_lm_config": "megatron_lm_", "dynamo_config": "dynamo_", "fp8_config": "fp8_", "mpirun_config": "",
    "ipex_config": "",
}  # fmt: skip
"""Sections of the file, and what accelerate puts before a key there that does not begin so."""
_HINT = "`accelerate config --config_file FILE` writes one; see docs/distributed.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where values come from."""

    title: str
    """What messages call it."""
    values: dict[str, Any]
    """Plain values; keys of sections with accelerate's prefix."""
    place: Callable[[KeyPath], Place]
    named: Callable[[KeyPath], str]
    """A key as the user wrote it: dotted in a file, the variable of an environment."""
    exported: bool = False
    """From the environment, where accelerate writes its defaults, too."""


def read_config(path: Path) -> tuple[Source | None, list[Problem]]:
    """A YAML (or JSON) file of `accelerate config`; None where it cannot be read, with the reason."""
    origin = str(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            return None, [_unreadable(origin, f"larger than {MAX_BYTES // 2**20} MiB")]
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except OSError as error:
        return None, [_unreadable(origin, error.strerror or str(error))]
    except UnicodeDecodeError:
        return None, [_unreadable(origin, "not UTF-8")]
    document = parse_yaml(text, origin=origin)
    if document.problems or not document.readable:
        return None, document.in_order(document.problems)
    if not isinstance(document.value, dict):
        return None, [_unreadable(origin, "it is no mapping of keys")]
    return _source(document)


def _source(document: Document) -> tuple[Source | None, list[Problem]]:
    values: dict[str, Any] = {}
    written: dict[KeyPath, KeyPath] = {}
    problems = []
    for key, value in document.value.items():
        prefix = SECTIONS.get(key)
        if prefix is None or value is None:
            values[key] = value
            continue
        if not isinstance(value, dict):
            message = f"`{key}` must be a mapping of keys"
            problems.append(document.place((key,)).problem("L182", message, hint=_HINT))
            continue
        values[key] = {}
        for name, item in value.items():
            # accelerate looks at `fsdp`, without the underscore.
            full = name if name.startswith(prefix.rstrip("_")) else prefix + name
            written[key, full] = (key, name)
            if full in values[key]:
                message = f"`{key}.{name}` stands there twice, once with `{prefix}` before it"
                problems.append(document.place((key, name), on="key").problem("L186", message, hint="keep one of them"))
            values[key][full] = item
    if problems:
        return None, problems

    def named(path: KeyPath) -> str:
        return ".".join(map(str, written.get(path, path)))

    def place(path: KeyPath) -> Place:
        return document.place(written.get(path, path), on="key")

    return Source(title=document.origin, values=values, place=place, named=named), []


def _unreadable(origin: str, why: str) -> Problem:
    message = f"this is no configuration of accelerate that can be read: {why}"
    return Problem(code="L180", message=message, file=origin, hint=_HINT)
