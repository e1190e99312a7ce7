"""The models of a server by name: bases, adapters on them, and models of their own.

Adapters of one base share its weights and its engine, so base and tuned models are answered side by
side, in one batch. An adapter that cannot share (`engine/adapters.py: shareable`) gets a model of
its own.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from luthier.data.template import ChatTemplate
from luthier.generation.decode import context_length, inner_model
from luthier.generation.generate import token_capacity
from luthier.model.attach import is_adapter
from luthier.model.contract import require_same
from luthier.model.identity import base_identity
from luthier.model.load import load_base, load_tuned
from luthier.model.locate import locate_model
from luthier.model.stops import stop_ids
from luthier.model.tokenizer import load_tokenizer
from luthier.recipe.schema import ModelSection
from luthier.runtime.console import note
from luthier.runtime.device import Device
from luthier.runtime.errors import RecipeError
from luthier.runtime.hashing import hash_json
from luthier.serve.engine.adapters import Adapter, load_adapter, shareable
from luthier.serve.engine.loop import Engine
from luthier.serve.engine.scheduler import EngineLimits

__all__ = ["Host", "Served", "Target", "prompts_of"]

# Tokens when a model does not say how many it holds.
UNBOUNDED = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Something to serve."""

    name: str
    section: ModelSection
    folder: Path | None = None
    """Adapter or trained model; None for the base itself."""
    quantization: str = "none"
    control_tokens: Literal["text", "allow", "error"] = "text"
    base_name: str | None = None
    """For an adapter: the name its base is served under."""
    contract: Mapping[str, Any] | None = None
    """What training froze about its prompts (`luthier.model.contract`)."""


def prompts_of(target: Target) -> ChatTemplate:
    """How its prompts are made."""
    tokenizer = load_tokenizer(target.section)
    return ChatTemplate(tokenizer, kwargs=target.section.chat_template_kwargs, control_tokens=target.control_tokens)


@dataclass(eq=False, slots=True, kw_only=True)
class Served:
    """One model that requests can name."""

    name: str
    engine: Engine
    adapter: Adapter | None
    template: ChatTemplate
    stop_ids: tuple[int, ...]
    context: int
    parent: str | None
    """Name of the base it shares."""
    shares: str | None
    """Key of the base in `Host`."""
    created: int = field(default_factory=lambda: int(time.time()))
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Template and tokenizer are used by one thread at a time."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, with the template it was trained with."""
        return self.template.tokenizer


class Host:
    """Loads, finds and drops models. `add` and `remove` may be called from any thread."""

    def __init__(self, *, device: Device, dtype: str, limits: EngineLimits) -> None:
        self.device, self.dtype, self.limits = device, dtype, limits
        self._served: dict[str, Served] = {}
        self._bases: dict[str, Engine] = {}
        self._engines: list[Engine] = []
        self._change = threading.Lock()

    def names(self) -> list[str]:
        """Names in the order they came."""
        return list(self._served)

    def find(self, name: str) -> Served | None:
        """The model of this name."""
        return self._served.get(name)

    @property
    def engines(self) -> list[Engine]:
        """All engines, for counting."""
        return list(self._engines)

    def add(self, target: Target) -> Served:
        """Load a model and begin to serve it; an adapter brings its base along.

        Raises:
            RecipeError: the name is taken.
            LuthierError: as the loaders of `luthier.model`.
        """
        with self._change:
            self._check_free(target.name)
            if target.folder is not None and is_adapter(target.folder):
                reason = shareable(target.folder)
                if reason is None:
                    return self._add_adapter(target, target.folder)
                note(f"{target.name} gets a model of its own: {reason}")
            elif target.folder is None:
                return self._add_base(target)
            model = load_tuned(
                target.section, target.folder, device=self.device, dtype=self.dtype, quantization=target.quantization
            )
            engine = self._new_engine(inner_model(model))
            return self._register(target, engine, engine.model, adapter=None, shares=None, parent=None)

    def remove(self, name: str) -> None:
        """Stop serving a model. Answers under way are finished; its memory is freed when nothing uses it.

        Raises:
            RecipeError: no such model, a base that adapters stand on, or a model that is busy.
        """
        with self._change:
            served = self._served.get(name)
            if served is None:
                raise RecipeError(code="S607", message=f"no model is called {name!r}", hint=self._listed())
            others = [other for other in self._served.values() if other.engine is served.engine and other is not served]
            standing = [other.name for other in others if other.adapter is not None]
            if served.adapter is None and standing:
                raise RecipeError(code="S608", message=f"{name} is the base of {', '.join(standing)}: drop those first")
            if not others and served.engine.running + served.engine.waiting:
                raise RecipeError(
                    code="S608", message=f"{name} is answering requests", hint="try again when it is idle"
                )
            del self._served[name]
            if not others:
                served.engine.close()
                self._engines.remove(served.engine)
                self._bases = {key: engine for key, engine in self._bases.items() if engine is not served.engine}
        del served, others
        gc.collect()

    def close(self) -> None:
        """End all engines."""
        for engine in self._engines:
            engine.close()

    # --- loading --------------------------------------------------------------------------------------------------

    def _add_base(self, target: Target) -> Served:
        key, engine = self._base(target)
        return self._register(target, engine, engine.model, adapter=None, shares=key, parent=None)

    def _add_adapter(self, target: Target, folder: Path) -> Served:
        key, engine = self._base(target)
        adapter = load_adapter(folder, engine.model, target.name)
        parent = next((s.name for s in self._served.values() if s.shares == key and s.adapter is None), None)
        if parent is None and target.base_name is not None:
            self._check_free(target.base_name)
            plain = replace(target, name=target.base_name, folder=None, contract=None)
            parent = self._register(plain, engine, engine.model, adapter=None, shares=key, parent=None).name
        return self._register(target, engine, engine.model, adapter=adapter, shares=key, parent=parent)

    def _base(self, target: Target) -> tuple[str, Engine]:
        section = target.section
        where = locate_model(section.name_or_path, section.revision, trust_remote_code=section.trust_remote_code)
        key = hash_json([base_identity(where)["hash"], target.quantization, list(section.new_tokens)])
        if key not in self._bases:
            model = load_base(section, device=self.device, dtype=self.dtype, quantization=target.quantization)
            self._bases[key] = self._new_engine(model)
        return key, self._bases[key]

    def _new_engine(self, model: Any) -> Engine:
        from transformers import GenerationConfig

        model.eval()
        capacity = min(token_capacity(model), self.limits.cache_tokens)
        kept = min(self.limits.prefix_tokens, capacity // 4)
        engine = Engine(model, replace(self.limits, cache_tokens=capacity, prefix_tokens=kept))
        model.generation_config = model.generation_config or GenerationConfig()
        engine.start()
        self._engines.append(engine)
        return engine

    def _register(
        self, target: Target, engine: Engine, model: Any, *, adapter: Adapter | None, shares: str | None,
        parent: str | None,
    ) -> Served:  # fmt: skip
        template = prompts_of(target)
        stops = tuple(stop_ids(template.tokenizer, model))
        require_same(target.contract, template, stops=stops, where=target.name)
        served = Served(
            name=target.name,
            engine=engine,
            adapter=adapter,
            template=template,
            stop_ids=stops,
            context=min(context_length(model) or UNBOUNDED, engine.limits.cache_tokens),
            parent=parent,
            shares=shares,
        )
        self._served[target.name] = served
        return served

    def _check_free(self, name: str) -> None:
        if name in self._served:
            raise RecipeError(
                code="S609", message=f"two models would be called {name!r}",
                hint="give one another name: `luthier serve NAME=PATH`",
            )  # fmt: skip

    def _listed(self) -> str:
        return f"models are: {', '.join(self._served) or 'none'}"
