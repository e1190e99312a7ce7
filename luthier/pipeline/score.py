"""Score one model on a recipe's tasks, outside a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.recipe.schema import Recipe
from luthier.runtime.errors import RecipeError

__all__ = ["score_model"]


def score_model(recipe: Recipe, folder: Path | None) -> dict[str, Any]:
    """Scores and every answer, in the shape of `eval/before.json`.

    Args:
        recipe: Names base, template and tasks.
        folder: Adapter or model folder to score; None: the untouched base.

    Raises:
        RecipeError: the recipe has no tasks.
    """
    if not recipe.evaluate.tasks:
        raise RecipeError(
            code="C150",
            message="the recipe has no `evaluate.tasks`",
            hint="add one, for instance {name: gsm8k, path: test.jsonl}",
        )
    from luthier.evaluate.run import results_to_json, run_tasks
    from luthier.evaluate.tasks import load_tasks
    from luthier.model.load import load_base, load_tuned
    from luthier.model.tokenizer import load_tokenizer
    from luthier.runtime.device import pick_device, set_threads

    tasks = load_tasks(recipe.evaluate.tasks)
    device = pick_device()
    set_threads()
    section = recipe.model
    dtype = section.dtype if section.dtype != "auto" else "bfloat16" if device.native_bf16 else "float32"
    quantization = "nf4" if recipe.method.name == "qlora" or section.quantization == "nf4" else "none"
    if folder is None:
        model = load_base(section, device=device, dtype=dtype, quantization=quantization)
    else:
        model = load_tuned(section, folder, device=device, dtype=dtype, quantization=quantization)
    results = run_tasks(
        model,
        load_tokenizer(section),
        tasks,
        batch_size=recipe.evaluate.batch_size,
        confidence=recipe.evaluate.confidence,
        template_kwargs=section.chat_template_kwargs,
        control_tokens=recipe.data.control_tokens,
    )
    return results_to_json(results, model=str(folder or section.name_or_path))
