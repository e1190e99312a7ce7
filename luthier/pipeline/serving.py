"""What `luthier serve` is given (runs, adapters, models) as targets of a server; loading them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.model.attach import is_adapter
from luthier.model.identity import read_record
from luthier.pipeline.rerun import recipe_of_run
from luthier.recipe.schema import ModelSection
from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    from luthier.serve.engine.scheduler import EngineLimits
    from luthier.serve.host import Host, Target

__all__ = ["open_host", "resolve", "resolve_all"]

# Prompt tokens between two steps: what a device reads in about the time that a stream may pause.
PREFILL_TOKENS = {"cpu": 256, "cuda": 4_096}
# Answers made at once: a GPU reads its weights once a step, for any number of rows.
BATCH_SIZE = {"cpu": 32, "cuda": 256}


def resolve(text: str, name: str | None = None) -> Target:
    """Something to serve: a run folder, an adapter folder, a model folder or a hub id, perhaps as NAME=PATH.

    Raises:
        RecipeError: there is nothing to serve, or the name cannot be one.
    """
    from luthier.serve.host import Target

    given, equals, path = text.partition("=")
    if equals and name is None and not Path(text).exists():
        name, text = given, path
    folder = Path(text).expanduser()
    called = name or folder.resolve().name if folder.exists() else name or text.rpartition("/")[2]
    if not called or len(called) > 200 or not called.isprintable() or called.startswith("/"):
        raise RecipeError(code="S615", message=f"{called!r} cannot be the name of a model", hint="NAME=PATH")
    if (folder / "manifest.json").is_file():
        return _checked(_run(folder, called), folder / "final")
    if is_adapter(folder):
        return _checked(_adapter(folder, called), folder)
    return _checked(Target(name=called, section=ModelSection(name_or_path=text)), folder)


def _checked(target: Target, folder: Path) -> Target:
    """With what training froze about its prompts; the files in `folder` must still say the same.

    Raises:
        RunFailed: they do not: template, tokenizer or stop tokens were changed.
    """
    from luthier.model.contract import check_saved, contract_of

    contract = contract_of(folder) if folder.is_dir() else None
    if contract is None:
        return target
    check_saved(folder, contract)
    section = target.section.model_copy(update={"chat_template_kwargs": dict(contract["kwargs"])})
    return replace(target, section=section, control_tokens=contract["control_tokens"], contract=contract)


def _run(folder: Path, name: str) -> Target:
    from luthier.serve.host import Target

    recipe = recipe_of_run(folder)
    final = folder / "final"
    if not final.is_dir():
        raise RecipeError(
            code="S616", message=f"{folder} holds no tuned model: its run has not finished training",
            hint="`luthier run` with its recipe.yaml",
        )  # fmt: skip
    return Target(
        name=name,
        section=recipe.model,
        folder=final,
        quantization="nf4" if recipe.method.name == "qlora" else "none",
        control_tokens=recipe.data.control_tokens,
        base_name=_base_name(recipe.model.name_or_path),
    )


def _adapter(folder: Path, name: str) -> Target:
    """An adapter without its run: what it says about its base is all there is."""
    from luthier.serve.host import Target

    base: dict[str, Any] = (read_record(folder) or {}).get("base") or {}
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    where = base.get("name_or_path") or config.get("base_model_name_or_path")
    if not where:
        raise RecipeError(
            code="S617", message=f"{folder} does not say which base it belongs to",
            hint="write `base_model_name_or_path` into its adapter_config.json",
        )  # fmt: skip
    section = ModelSection(
        name_or_path=where,
        revision=base.get("revision") or config.get("revision"),
        tokenizer=str(folder) if (folder / "tokenizer.json").is_file() else None,
        new_tokens=[] if (folder / "tokenizer.json").is_file() else base.get("new_tokens", []),
    )
    return Target(
        name=name, section=section, folder=folder, quantization=base.get("quantization", "none"),
        base_name=_base_name(where),
    )  # fmt: skip


def _base_name(name_or_path: str) -> str:
    return name_or_path.rstrip("/").rpartition("/")[2] or name_or_path


def resolve_all(texts: Sequence[str]) -> list[Target]:
    """All of them, bases first: then a base that is named is not loaded again for its adapters.

    Raises:
        RecipeError: as `resolve`; two of one name.
    """
    targets = [resolve(text) for text in texts]
    names = [target.name for target in targets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(
            code="S609", message=f"two models would be called {twice[0]!r}",
            hint="give one another name: `luthier serve NAME=PATH`",
        )  # fmt: skip
    return sorted(targets, key=lambda target: target.folder is not None)


def open_host(targets: Sequence[Target], *, limits: EngineLimits, dtype: str | None) -> Host:
    """Load everything.

    Args:
        targets: From `resolve_all`.
        limits: Of each engine; `prefill_tokens` and `max_batch_size` 0: as many as suit the device.
        dtype: Of the weights; None: bfloat16 where the device computes with it, else float32.
    """
    from luthier.runtime.device import pick_device, set_threads
    from luthier.serve.host import Host

    device = pick_device()
    set_threads()
    if not limits.prefill_tokens:
        limits = replace(limits, prefill_tokens=PREFILL_TOKENS.get(device.type, PREFILL_TOKENS["cpu"]))
    if not limits.max_batch_size:
        limits = replace(limits, max_batch_size=BATCH_SIZE.get(device.type, BATCH_SIZE["cpu"]))
    host = Host(device=device, dtype=dtype or ("bfloat16" if device.native_bf16 else "float32"), limits=limits)
    try:
        for target in targets:
            host.add(target)
    except BaseException:
        host.close()
        raise
    return host
