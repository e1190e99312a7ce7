"""The body of `POST /fine_tuning/jobs`, checked field by field: whatever is wrong is told at once, with its `param`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.jobs.errors import JobProblem, problem
from luthier.recipe.nearest import near

__all__ = ["AUTO", "HYPERPARAMETERS", "Wanted", "parse_body"]

AUTO = "auto"
HYPERPARAMETERS: Mapping[str, tuple[str, ...]] = {
    "supervised": ("n_epochs", "batch_size", "learning_rate_multiplier"),
    "dpo": ("n_epochs", "batch_size", "learning_rate_multiplier", "beta"),
}
"""Those of each method."""
_FIELDS = (
    "model", "training_file", "validation_file", "suffix", "seed", "metadata", "integrations", "method",
    "hyperparameters", "luthier",
)  # fmt: skip
_RANGES: Mapping[str, tuple[type, float, float]] = {
    "n_epochs": (int, 1, 50),
    "batch_size": (int, 1, 4_096),
    "learning_rate_multiplier": (float, 1e-6, 1_000),
    "beta": (float, 1e-6, 10),
}
_SUFFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_SEED = 2**31 - 1
_MAX_LUTHIER = 64 << 10
_MAX_DEPTH = 20
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512
_ONLINE = (
    "method reinforcement is not offered here; online RL with rewards of Luthier's own runs from a recipe "
    "(`objective.name: grpo`, docs/grpo.md)"
)


@dataclass(slots=True, kw_only=True)
class Wanted:
    """What a body asks for, as far as it is well-formed."""

    model: str = ""
    training_file: str = ""
    validation_file: str | None = None
    suffix: str | None = None
    seed: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    integrations: tuple[dict[str, Any], ...] = ()
    method: str = "supervised"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """All of the method, `"auto"` where nothing was said."""
    luthier: dict[str, Any] = field(default_factory=dict)


class _Body:
    """The object under `prefix`, with what is wrong with it; null counts as absent, as the client sends it."""

    def __init__(self, value: Mapping[str, Any], prefix: str, problems: list[JobProblem]) -> None:
        self.value = {key: item for key, item in value.items() if item is not None}
        self.prefix, self.problems = prefix, problems

    def param(self, key: str) -> str:
        return f"{self.prefix}.{key}".lstrip(".")

    def wrong(self, key: str, message: str, *, code: str = "J131", hint: str | None = None) -> None:
        self.problems.append(problem(code, message, param=self.param(key), hint=hint))

    def known(self, keys: tuple[str, ...]) -> None:
        """Refuse every other key."""
        for key in self.value:
            if key not in keys:
                close = near(str(key), list(keys))
                hint = f'did you mean "{close[0]}"?' if close else f"known are {', '.join(keys)}"
                shown = str(key)[:60]
                self.problems.append(
                    problem("J130", f"unknown field `{self.param(shown)}`", param=self.param(shown), hint=hint)
                )

    def text(self, key: str, *, required: bool = False, most: int = 256) -> str | None:
        value = self.value.get(key)
        if value is None:
            if required:
                self.wrong(key, f"`{self.param(key)}` is missing")
            return None
        if not isinstance(value, str) or not 1 <= len(value) <= most or not _storable(value):
            self.wrong(key, f"`{self.param(key)}` must be text of 1 to {most} characters; got {_got(value)}")
            return None
        return value

    def below(self, key: str) -> _Body | None:
        """An object inside; None if it is absent or none."""
        value = self.value.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.wrong(key, f"`{self.param(key)}` must be an object; got {_got(value)}")
            return None
        return _Body(value, self.param(key), self.problems)


def parse_body(body: Any) -> tuple[Wanted, list[JobProblem]]:
    """What is asked for, and everything that is wrong with the body itself."""
    problems: list[JobProblem] = []
    wanted = Wanted()
    if not isinstance(body, dict):
        return wanted, [problem("J130", f"the body must be a JSON object; got {_got(body)}")]
    top = _Body(body, "", problems)
    top.known(_FIELDS)
    wanted.model = top.text("model", required=True) or ""
    wanted.training_file = top.text("training_file", required=True, most=100) or ""
    wanted.validation_file = top.text("validation_file", most=100)
    wanted.suffix = top.text("suffix", most=64)
    if wanted.suffix is not None and not _SUFFIX.fullmatch(wanted.suffix):
        top.wrong("suffix", f"`suffix` takes letters, digits and . _ -; got {_got(wanted.suffix)}")
    seed = top.value.get("seed")
    if seed is not None and not (_whole(seed) and 0 <= seed <= _MAX_SEED):
        top.wrong("seed", f"`seed` must be a whole number from 0 to {_MAX_SEED:,}; got {_got(seed)}")
    elif seed is not None:
        wanted.seed = int(seed)
    wanted.metadata = _metadata(top)
    wanted.integrations = _integrations(top)
    wanted.method, wanted.hyperparameters = _method(top)
    wanted.luthier = _luthier(top)
    return wanted, problems


def _method(top: _Body) -> tuple[str, dict[str, Any]]:
    """The method, and its hyperparameters of both styles; those given twice must agree."""
    old = top.below("hyperparameters")
    method, kind, own = top.below("method"), "supervised", None
    if method is not None:
        kind = method.text("type", required=True) or "supervised"
        if kind == "reinforcement":
            method.wrong("type", _ONLINE, code="J133")
            return "supervised", {}
        if kind not in HYPERPARAMETERS:
            method.wrong("type", f"`method.type` is {_got(kind)}; allowed are supervised and dpo", code="J133")
            return "supervised", {}
        method.known(("type", *HYPERPARAMETERS, "reinforcement"))
        for other in (*HYPERPARAMETERS, "reinforcement"):
            if other != kind and other in method.value:
                method.wrong(other, f"`method.{other}` would have no effect beside type {kind}", hint="remove it")
        inner = method.below(kind)
        if inner is not None:
            inner.known(("hyperparameters",))
            own = inner.below("hyperparameters")
    result: dict[str, Any] = {}
    for where in (own, old):
        if where is None:
            continue
        where.known(HYPERPARAMETERS[kind])
        for key in HYPERPARAMETERS[kind]:
            value = _hyperparameter(where, key)
            if value is None:
                continue
            if key in result and result[key] != value:
                message = f"`{where.param(key)}` is {value}, and `{own.param(key) if own else key}` is {result[key]}"
                where.wrong(key, message, code="J132", hint="say it once, under `method`")
            result.setdefault(key, value)
    return kind, {key: result.get(key, AUTO) for key in HYPERPARAMETERS[kind]}


def _hyperparameter(where: _Body, key: str) -> Any:
    value = where.value.get(key)
    if value is None or value == AUTO:
        return value
    kind, low, high = _RANGES[key]
    fits = _whole(value) if kind is int else _number(value)
    if fits and low <= value <= high:
        return kind(value)
    words = "a whole number" if kind is int else "a number"
    message = f'`{where.param(key)}` must be "auto" or {words} from {low:g} to {high:,g}; got {_got(value)}'
    where.wrong(key, message, code="J132")
    return None


def _metadata(top: _Body) -> dict[str, str]:
    value = top.value.get("metadata")
    if value is None:
        return {}
    if not isinstance(value, dict):
        top.wrong("metadata", f"`metadata` must be an object of texts; got {_got(value)}")
        return {}
    if len(value) > _MAX_PAIRS:
        top.wrong("metadata", f"`metadata` has {len(value):,} pairs; {_MAX_PAIRS} are allowed")
        return {}
    for key, item in value.items():
        at = f"metadata.{key[:_MAX_KEY]}"
        if not 1 <= len(key) <= _MAX_KEY or not _storable(key):
            top.wrong(at, f"a key of `metadata` has 1 to {_MAX_KEY} characters; got {_got(key)}")
        if not isinstance(item, str) or len(item) > _MAX_VALUE or not _storable(item):
            top.wrong(at, f"`{at}` must be text of at most {_MAX_VALUE} characters; got {_got(item)}")
    return dict(value)


def _integrations(top: _Body) -> tuple[dict[str, Any], ...]:
    value = top.value.get("integrations")
    if value is None:
        return ()
    if not isinstance(value, list):
        top.wrong("integrations", f"`integrations` must be a list; got {_got(value)}")
        return ()
    if len(value) > 1:
        top.wrong("integrations", f"`integrations` has {len(value)} entries; one for wandb is allowed")
    for index, entry in enumerate(value):
        at = f"integrations.{index}"
        if not isinstance(entry, dict) or entry.get("type") != "wandb":
            top.wrong(f"{at}.type", f"`{at}.type` must be wandb; got {_got(entry)}")
            continue
        integration = _Body(entry, at, top.problems)
        integration.known(("type", "wandb"))
        own = integration.below("wandb")
        if own is None:
            integration.wrong("wandb", f"`{at}.wandb` is missing", hint='{"project": "..."}')
            continue
        own.known(("project", "name", "entity", "tags"))
        own.text("project", required=True)
        own.text("name")
        own.text("entity")
        tags = own.value.get("tags", [])
        if not isinstance(tags, list) or not all(
            isinstance(tag, str) and 1 <= len(tag) <= 64 and "," not in tag and _storable(tag) for tag in tags
        ):
            own.wrong("tags", f"`{own.param('tags')}` must be a list of texts of at most 64 characters, without commas")
    return tuple(entry for entry in value if isinstance(entry, dict))


def _luthier(top: _Body) -> dict[str, Any]:
    value = top.value.get("luthier")
    if value is None:
        return {}
    if not isinstance(value, dict):
        top.wrong("luthier", f"`luthier` must be an object of recipe keys; got {_got(value)}")
        return {}
    try:
        size = len(json.dumps(value, allow_nan=False, ensure_ascii=False).encode()) if _shallow(value) else None
    except ValueError:
        top.wrong("luthier", "`luthier` has a number that is not finite, or half of a surrogate pair")
        return {}
    if size is None:
        top.wrong("luthier", f"`luthier` is nested more than {_MAX_DEPTH} deep")
        return {}
    if size > _MAX_LUTHIER:
        top.wrong("luthier", f"`luthier` has {size:,} bytes; {_MAX_LUTHIER:,} are allowed")
        return {}
    return value


def _shallow(value: Any) -> bool:
    """Whether a value is nested at most `_MAX_DEPTH` deep; without recursion, which would fail on what is not."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        below = [item for one in level for item in (one.values() if isinstance(one, dict) else one)
                 if isinstance(item, dict | list)]  # fmt: skip
        if not below:
            return True
        level = below
    return False


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


def _storable(text: str) -> bool:
    """Whether a text has no U+0000 and no half of a surrogate pair, which SQLite and UTF-8 cannot hold."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _got(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value):,}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    shown = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a very large number"
    return shown if len(shown) <= 60 else shown[:57] + "..."
