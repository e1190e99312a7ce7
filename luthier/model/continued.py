"""An adapter of an earlier run, trained further: `method.init_from`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.model.attach import attach_adapter, check_adapter_files, check_same_base
from luthier.model.identity import verify_record
from luthier.model.reward import is_reward_folder, is_reward_model
from luthier.recipe.schema import MethodSection
from luthier.runtime.errors import RecipeError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["continue_from"]


def continue_from(
    model: PreTrainedModel, method: MethodSection, new_token_ids: Sequence[int]
) -> tuple[PeftModel, list[str]]:
    """Load `method.init_from` and train all of it further, and nothing else."""
    folder = Path(method.init_from or "").expanduser()
    check_adapter_files(folder)
    check_same_base(verify_record(folder), model, folder)
    if is_reward_model(model) != is_reward_folder(folder):
        kinds = ("a reward model", "a language model")
        raise RecipeError(
            code="M324",
            message=f"{folder} is an adapter of {kinds[is_reward_model(model)]}, and this trains "
            f"{kinds[not is_reward_model(model)]}",
            hint="merge it first, and name the merged folder in `model.name_or_path`",
        )
    adapted: Any = attach_adapter(model, folder, trainable=True)
    config = adapted.peft_config[adapted.active_adapter]
    defaults = MethodSection()
    problems, notes = [], [f"continues the adapter in {folder}: rank, targets and scale are its own"]
    for key in ("r", "lora_alpha", "use_rslora", "use_dora"):
        asked, has = getattr(method, key), getattr(config, key)
        if asked != has and asked != getattr(defaults, key):
            problems.append(f"`method.{key}` is {asked}, the adapter has {has}")
    if problems:
        raise RecipeError(
            code="M324",
            message=f"{folder} has other settings: {'; '.join(problems)}",
            hint="leave these keys out, or set them to the adapter's values",
        )
    rows = config.trainable_token_indices or {}
    known = set(rows) if isinstance(rows, list) else {index for indices in rows.values() for index in indices}
    if set(new_token_ids) - known and not config.modules_to_save:
        raise RecipeError(
            code="M325",
            message="`model.new_tokens` are not among the token rows that the adapter trains",
            hint="continue with the same `model.new_tokens`, or start a new adapter",
        )
    return adapted, notes
