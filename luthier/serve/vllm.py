"""The command that serves the same models with vLLM: same names, same template, same length."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from luthier.model.attach import is_adapter
from luthier.model.contract import require_same
from luthier.model.tokenizer import load_tokenizer
from luthier.runtime.console import note
from luthier.runtime.errors import EnvironmentProblem, RecipeError
from luthier.serve.engine.adapters import shareable
from luthier.serve.host import Target, prompts_of
from luthier.serve.settings import ServeSettings

__all__ = ["check_installed", "vllm_command"]

# vLLM takes these only.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def vllm_command(
    targets: Sequence[Target], settings: ServeSettings, *, max_batch_size: int, dtype: str,
    template_folder: Path, write: bool,
) -> list[str]:  # fmt: skip
    """Arguments of `vllm serve`. The key is not among them: it goes through the environment (`VLLM_API_KEY`).

    Args:
        targets: What to serve: one base with any number of adapters, or one model.
        settings: Address.
        max_batch_size: Most rows at once.
        dtype: Of the weights.
        template_folder: Where the chat template of a recipe is put for vLLM to read.
        write: Put it there (not for `--print`).

    Raises:
        RecipeError: models that one vLLM server cannot serve together.
        RunFailed: a model's prompts are not those of its training.
    """
    adapters, models = _served_together(targets)
    first = targets[0]
    name = models[0].name if models else first.base_name or Path(first.section.name_or_path).name
    command = ["vllm", "serve", _weights(first), "--served-model-name", name]
    command += ["--host", settings.host, "--port", str(settings.port), "--max-num-seqs", str(max_batch_size)]
    command += ["--dtype", dtype]
    tokenizer = load_tokenizer(first.section)
    length = _length(first)
    if length is not None:
        command += ["--max-model-len", str(length)]
    if first.section.revision and not models:
        command += ["--revision", first.section.revision]
    if first.quantization == "nf4":
        command += ["--quantization", "bitsandbytes"]
    if first.section.chat_template is not None:
        file = template_folder / f"{name}.jinja"
        if write:
            template_folder.mkdir(parents=True, exist_ok=True)
            file.write_text(str(tokenizer.chat_template), "utf-8")
        command += ["--chat-template", str(file)]
    if adapters:
        needed = max(_rank(target) for target in adapters)
        rank = next((rank for rank in RANKS if rank >= needed), needed)
        command += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(len(adapters)), "--lora-modules"]
        command += [f"{target.name}={target.folder}" for target in adapters]
    return command


def _served_together(targets: Sequence[Target]) -> tuple[list[Target], list[Target]]:
    """(adapters, models) of targets that one server can serve.

    Raises:
        RecipeError: it cannot.
        RunFailed: a model's prompts are not those of its training.
    """
    for target in targets:
        require_same(target.contract, prompts_of(target), stops=None, where=target.name)
        if target.section.chat_template_kwargs:
            told = json.dumps(target.section.chat_template_kwargs)
            note(f"{target.name} was trained with chat_template_kwargs {told}: vLLM takes them with each request only")
    adapters = [target for target in targets if target.folder is not None and is_adapter(target.folder)]
    models = [target for target in targets if target not in adapters]
    places = {_weights(target) for target in targets}
    if len(places) != 1 or len({tuple(target.section.new_tokens) for target in targets}) != 1 or len(models) > 1:
        raise RecipeError(
            code="S612", message="vLLM serves one base with its adapters; these models have several bases",
            hint="start one server for each",
        )  # fmt: skip
    for target in adapters:
        assert target.folder is not None
        reason = shareable(target.folder)
        if reason is not None or target.section.new_tokens:
            why = reason or "it has new tokens"
            raise RecipeError(
                code="S613", message=f"vLLM cannot load {target.name} as an adapter: {why}",
                hint="`luthier merge RUN`, then serve RUN/merged",
            )  # fmt: skip
    return adapters, models


def check_installed() -> str:
    """Path of the program.

    Raises:
        EnvironmentProblem: it is not there.
    """
    found = shutil.which("vllm")
    if found is None:
        raise EnvironmentProblem(
            code="S614", message="vLLM is not installed",
            hint="`pip install vllm` (Linux with a GPU); or leave --backend out; --print shows the command",
        )  # fmt: skip
    return found


def _weights(target: Target) -> str:
    """Where the weights vLLM loads lie: an adapter's base, or the model itself."""
    if target.folder is None or is_adapter(target.folder):
        return target.section.name_or_path
    return str(target.folder)


def _rank(target: Target) -> int:
    assert target.folder is not None
    return int(json.loads((target.folder / "adapter_config.json").read_text("utf-8"))["r"])


def _length(target: Target) -> int | None:
    from luthier.model.locate import locate_model
    from luthier.model.weights import read_config

    folder = target.folder if target.folder is not None and not is_adapter(target.folder) else None
    section = target.section
    config = read_config(folder or locate_model(section.name_or_path, section.revision, weights=False))
    inner = config.get("text_config", config)
    length = inner.get("max_position_embeddings")
    return int(length) if length else None
