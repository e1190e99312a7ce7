"""Models of this machine to score outside a run: base, adapter or model folder, checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.recipe.schema import EvaluateSection, Recipe
from luthier.runtime.console import note
from luthier.runtime.errors import RecipeError, RunFailed

__all__ = ["load_local", "require_tasks"]


def require_tasks(section: EvaluateSection) -> None:
    """There is something to score.

    Raises:
        RecipeError: no tasks.
    """
    if not section.tasks:
        raise RecipeError(
            code="C150",
            message="the recipe has no `evaluate.tasks`",
            hint="add one, for instance {name: gsm8k, path: test.jsonl}",
        )


def load_local(
    recipe: Recipe, folder: Path | None, *, checkpoint: bool = False, other_prompts: bool = False
) -> tuple[Any, Any]:
    """(model, tokenizer).

    Args:
        recipe: Names base, template and dtype.
        folder: Adapter or model folder, or a checkpoint; None: the untouched base.
        checkpoint: `folder` is `RUN/checkpoints/step-N`.
        other_prompts: Prompts may differ from those of the model's training; it is said, not refused.

    Raises:
        RecipeError: no such checkpoint.
        RunFailed: it is damaged, not of this recipe's method, or its prompts would not be those of its training.
        EnvironmentProblem, AccessError: as `load_base`.
    """
    from luthier.model.load import load_base, load_tuned
    from luthier.model.tokenizer import load_tokenizer
    from luthier.runtime.device import pick_device, set_threads

    device = pick_device()
    set_threads()
    section = recipe.model
    dtype = section.dtype if section.dtype != "auto" else "bfloat16" if device.native_bf16 else "float32"
    quantization = "nf4" if recipe.method.name == "qlora" or section.quantization == "nf4" else "none"
    tokenizer = load_tokenizer(section)
    _same_prompts(recipe, tokenizer, folder, checkpoint=checkpoint, other_prompts=other_prompts)
    if folder is not None and not checkpoint:
        return load_tuned(section, folder, device=device, dtype=dtype, quantization=quantization), tokenizer
    model: Any = load_base(section, device=device, dtype=dtype, quantization=quantization)
    if folder is not None:
        model = _with_checkpoint(model, tokenizer, recipe, folder)
    return model, tokenizer


def _same_prompts(
    recipe: Recipe, tokenizer: Any, folder: Path | None, *, checkpoint: bool, other_prompts: bool
) -> None:
    """What the recipe makes of a conversation is what the model was trained on, and so is what its own files say."""
    from luthier.data.template import ChatTemplate
    from luthier.model.contract import contract_of, problems_of_saved, prompt_problems

    control = recipe.data.control_tokens
    template = ChatTemplate(tokenizer, kwargs=recipe.model.chat_template_kwargs, control_tokens=control)
    contract = None if folder is None or not folder.is_dir() else contract_of(folder)
    problems = prompt_problems(contract, template, where="the recipe")
    if folder is not None and contract is not None and not checkpoint:
        problems += problems_of_saved(folder, contract)
    if problems and not other_prompts:
        raise RunFailed(problems=problems)
    for problem in problems:
        note(f"note [{problem.code}]: {problem.message}", style="bold yellow")


def _with_checkpoint(model: Any, tokenizer: Any, recipe: Recipe, path: Path) -> Any:
    """The base as the recipe's method trains it, with the trained tensors of a checkpoint."""
    import torch

    from luthier.model.adapters import apply_method
    from luthier.train.checkpoint import require_valid
    from luthier.train.loop import START_FOLDER
    from luthier.train.saved import SavedTensors

    if not path.is_dir():
        raise RecipeError(
            code="E551", message=f"there is no checkpoint {path}", hint="they are in RUN/checkpoints/step-N"
        )
    require_valid(path)
    if recipe.method.name in ("lora", "qlora"):
        tuned = apply_method(
            model,
            recipe.method,
            seed=recipe.train.seed,
            new_token_ids=tokenizer.convert_tokens_to_ids(recipe.model.new_tokens),
            start_folder=path.parent.parent / START_FOLDER,
        )
        model = tuned.model
    own = dict(model.named_parameters())
    saved = SavedTensors(path, "trainable")  # whole or in shards, read tensor by tensor
    wrong = [name for name, shape in saved.shapes.items() if name not in own or own[name].shape != shape]
    untouched = [name for name, one in own.items() if "lora_" in name and one.requires_grad and name not in saved]
    if wrong or untouched or not saved:
        message = f"{path} holds other weights than the recipe trains: {', '.join((wrong + untouched)[:3]) or 'none'}"
        raise RunFailed(code="E551", message=message, hint="give the recipe of its run (RUN/recipe.yaml)")
    with torch.no_grad():
        for name, tensor in saved.items():
            own[name].copy_(tensor)
    model.eval()
    return model
