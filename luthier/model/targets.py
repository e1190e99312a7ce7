"""Which modules a name, a list of names, or a regular expression in the recipe stands for.

Each entry must match something that can be adapted, or the recipe is refused: a target that is
dropped without a word looks like training and is none.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from luthier.model.quantize import is_quantized
from luthier.model.reward import HEAD as REWARD_HEAD
from luthier.model.reward import is_reward_model
from luthier.runtime.errors import Problem, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["head_name", "input_name", "is_tied", "modules_named", "resolve_modules_to_save", "resolve_targets"]


def input_name(model: PreTrainedModel) -> str:
    """Module name of the input embeddings, for instance `model.embed_tokens`."""
    return _name_of(model, model.get_input_embeddings()) or "embed_tokens"


def head_name(model: PreTrainedModel) -> str | None:
    """Module name of the output head, for instance `lm_head`; None if there is none."""
    return _name_of(model, model.get_output_embeddings())


def _name_of(model: PreTrainedModel, module: nn.Module | None) -> str | None:
    return (
        next((name for name, other in model.named_modules() if other is module), None) if module is not None else None
    )


def is_tied(model: PreTrainedModel) -> bool:
    """Whether input embeddings and head are one tensor (looked at, not taken from config.json)."""
    head = model.get_output_embeddings()
    return head is not None and getattr(head, "weight", None) is model.get_input_embeddings().weight


def resolve_targets(model: PreTrainedModel, spec: str | Sequence[str]) -> list[str]:
    """Module names that `method.target_modules` stands for.

    `all-linear` is every linear layer but the output head; a list holds names or their ends (whole
    parts: `proj` is not `q_proj`); another string is a regular expression over the full name.

    Raises:
        RecipeError: an entry matches nothing, or matches what LoRA cannot adapt.
    """
    head = head_name(model)
    heads = {head, REWARD_HEAD if is_reward_model(model) else None}
    linear = [name for name, module in model.named_modules() if _is_linear(module) and name not in heads]
    if spec == "all-linear":
        return linear
    matches = (
        _by_regex(model, spec) if isinstance(spec, str) else modules_named(model, spec, key="method.target_modules")
    )
    modules = dict(model.named_modules())
    wrong = [name for name in matches if not (_is_linear(modules[name]) or isinstance(modules[name], nn.Embedding))]
    if wrong:
        kinds = sorted({f"{name} ({type(modules[name]).__name__})" for name in wrong})[:3]
        raise RecipeError(
            code="M321", message=f"`method.target_modules` matches modules that LoRA cannot adapt: {', '.join(kinds)}",
            hint="name linear layers; other modules can be trained in full with `method.modules_to_save`",
        )  # fmt: skip
    if is_tied(model) and {input_name(model), head} & set(matches):
        raise RecipeError(
            code="M321", message="`method.target_modules` names embeddings and head, which share one weight here",
            hint=f"train it in full with `method.modules_to_save: [{input_name(model).rpartition('.')[2]}]`",
        )  # fmt: skip
    return matches


def resolve_modules_to_save(model: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """Full names of the modules that are trained in full beside the adapters.

    Raises:
        RecipeError: a name matches nothing, or a module stored in 4 bits.
    """
    matches = modules_named(model, names, key="method.modules_to_save")
    packed = [
        name for name in matches if any(is_quantized(weight) for weight in model.get_submodule(name).parameters())
    ]
    if packed:
        raise RecipeError(
            code="M326", message=f"`method.modules_to_save` names {packed[0]}, which is stored in 4 bits",
            hint="adapt it through `method.target_modules`, or use `model.quantization: none`",
        )  # fmt: skip
    return matches


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _by_regex(model: PreTrainedModel, pattern: str) -> list[str]:
    try:
        matches = [name for name, _ in model.named_modules() if name and re.fullmatch(pattern, name)]
    except re.error as error:
        raise RecipeError(
            code="M320",
            message=f"`method.target_modules` is no regular expression: {error}: {pattern!r}",
            hint='use `all-linear`, or a list: ["q_proj", "v_proj"]',
        ) from error
    if not matches:
        raise RecipeError(
            code="M320",
            message=f"`method.target_modules` {pattern!r} matches no module (it must match a whole name)",
            hint=_examples(model, pattern),
        )
    return matches


def modules_named(model: PreTrainedModel, names: Sequence[str], *, key: str) -> list[str]:
    """Modules whose name is an entry or ends with `.entry`, in model order.

    Raises:
        RecipeError: entries that match nothing, all at once; `key` is named in the message.
    """
    all_names = [name for name, _ in model.named_modules() if name]
    problems = [
        Problem(
            code="M320",
            message=f"`{key}` has {entry!r}, which matches no module of this model",
            hint=_examples(model, entry),
        )
        for entry in names
        if not any(_ends_with(name, entry) for name in all_names)
    ]
    if not names:
        problems = (
            [Problem(code="M320", message=f"`{key}` is an empty list", hint="use `all-linear`")]
            if key.endswith("target_modules")
            else []
        )
    if problems:
        raise RecipeError(problems=problems)
    return [name for name in all_names if any(_ends_with(name, entry) for entry in names)]


def _ends_with(name: str, entry: str) -> bool:
    return name == entry or name.endswith("." + entry)


def _examples(model: PreTrainedModel, entry: str) -> str:
    ends = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if _is_linear(module) or isinstance(module, nn.Embedding)
        }
    )
    near = difflib.get_close_matches(entry, ends, n=1)
    return f'did you mean "{near[0]}"?' if near else f"modules here: {', '.join(ends)}"
