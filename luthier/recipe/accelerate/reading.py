"""Takes values out of a source one by one: each is taken, agrees, has no effect, or is a problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.recipe.accelerate.source import SECTIONS, Source
from luthier.recipe.accelerate.without_effect import WITHOUT_EFFECT, is_quiet, reason_without_effect
from luthier.recipe.facts import Taken
from luthier.recipe.nearest import near
from luthier.recipe.positions import KeyPath
from luthier.runtime.errors import Problem

__all__ = ["Reading"]

_TRUE, _FALSE = ("true", "yes", "on", "y", "1"), ("false", "no", "off", "n", "0")


class Reading:
    """What a source comes to, as far as it was read."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.taken: list[Taken] = []
        self.notes: list[str] = []
        """Keys that change nothing here and that somebody chose, with the reason."""
        self.quiet: list[str] = []
        """Keys that change nothing here, at values that nobody chose."""
        self.problems: list[Problem] = []
        self._read: set[KeyPath] = set()

    # -- values

    def raw(self, *path: str) -> Any:
        """The value of a key; None if it is not there, or null."""
        self._read.add(path)
        section = self.source.values if len(path) == 1 else self.source.values.get(path[0]) or {}
        value = section.get(path[-1])
        return None if isinstance(value, str) and value.strip().lower() in ("", "none", "null") else value

    def flag(self, *path: str) -> bool | None:
        """A truth value in any spelling of YAML 1.1 or the environment."""
        value = self.raw(*path)
        word = str(value).strip().lower()
        if value is None or word in _TRUE + _FALSE:
            return None if value is None else word in _TRUE
        self.wrong(path, "true or false")
        return None

    def whole(self, *path: str) -> int | None:
        """A whole number."""
        value = self.raw(*path)
        if value is None:
            return None
        try:
            return int(str(value))
        except ValueError:
            self.wrong(path, "a whole number")
            return None

    def number(self, *path: str) -> float | None:
        """A number; None also for DeepSpeed's `auto`."""
        value = self.raw(*path)
        if value is None or value == "auto":
            return None
        try:
            return float(str(value))
        except ValueError:
            self.wrong(path, "a number or auto")
            return None

    def word(self, *path: str, allowed: Sequence[str]) -> str | None:
        """One of some words, in any case; FALSE stands for `no`, as YAML 1.1 reads that word."""
        value = self.raw(*path)
        if value is None:
            return None
        text = "no" if value is False else str(value).strip()
        found = next((one for one in allowed if one.lower() == text.lower()), None)
        if found is None:
            self.wrong(path, "one of " + ", ".join(allowed))
        return found

    # -- what they come to

    def name(self, *path: str) -> str:
        """`fsdp_config.fsdp_version: 2`, as written."""
        value = self.raw(*path)
        shown = str(value).lower() if isinstance(value, bool) else value
        joined = f"{self.source.named(path)}={shown}" if self.source.exported else f"{self.source.named(path)}: {shown}"
        return joined if value is not None else self.source.named(path)

    def take(self, key: str, value: Any, *path: str, why: str = "") -> None:
        """`key` of the recipe is `value`, because of `path`."""
        reason = f"{self.source.title}: {self.name(*path)}" + (f", {why}" if why else "")
        self.taken.append(Taken(key=key, value=value, reason=reason, place=self.source.place(path)))

    def note(self, *path: str, why: str, always: bool = False) -> None:
        """A key that changes nothing."""
        self._read.add(path)
        if always or not is_quiet(path, self.raw(*path)):
            self.notes.append(f"{self.name(*path)}: {why}")
        else:
            self.quiet.append(self.source.named(path))

    def wrong(self, path: KeyPath, allowed: str) -> None:
        """A value that accelerate would not take either."""
        message = f"`{self.source.named(path)}` must be {allowed}; got {self.raw(*map(str, path))!r}"
        self.problems.append(self.source.place(path).problem("L182", message))

    def refuse(self, *path: str, why: str, hint: str) -> None:
        """Something that Luthier does not do."""
        self._problem("L183", path, f"`{self.name(*path)}`: {why}", hint)

    def contradicts(self, *path: str, why: str, hint: str) -> None:
        """Two keys of the source that cannot both be meant."""
        self._problem("L186", path, f"`{self.name(*path)}` {why}", hint)

    def _problem(self, code: str, path: KeyPath, message: str, hint: str) -> None:
        self.problems.append(self.source.place(path).problem(code, message, hint=hint))

    # -- the rest

    def finish(self) -> None:
        """Everything that was not read: without effect, or unknown."""
        for key, value in self.source.values.items():
            if isinstance(value, dict) and key in SECTIONS:
                for name in value:
                    self._rest(key, name)
            else:
                self._rest(key)

    def _rest(self, *path: str) -> None:
        if path in self._read:
            return
        reason = reason_without_effect(path)
        if reason is not None:
            self.note(*path, why=f"without effect: {reason}")
            return
        if path[0] in SECTIONS and len(path) == 1:
            return  # an empty section
        known = {*WITHOUT_EFFECT, *self._read}
        beside = sorted({str(one[-1]) for one in known if len(one) == len(path) and one[:-1] == path[:-1]})
        close = near(path[-1], beside)
        hint = f"did you mean `{close[0]}`?" if close else "accelerate 1.15 has no key of that name either: remove it"
        self._problem("L181", path, f"unknown key `{self.source.named(path)}`", hint)
