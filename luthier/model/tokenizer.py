"""The tokenizer of a recipe: the model's own or another one, with the recipe's template and new tokens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.model.locate import locate_model
from luthier.model.new_tokens import add_new_tokens
from luthier.recipe.schema import ModelSection
from luthier.runtime.errors import EnvironmentProblem, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_plain_tokenizer", "load_tokenizer", "read_chat_template"]

_REMOTE_KEYS = ("auto_map", "trust_remote_code")
# transformers' own extension tag; plain Jinja does not know it.
_GENERATION_TAGS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


def load_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """Load the tokenizer with `model.chat_template` applied and `model.new_tokens` added.

    Raises:
        AccessError: a hub tokenizer that may not be read or cannot be reached.
        EnvironmentProblem: the folder holds no tokenizer, or a broken one.
        RecipeError: the template is not valid Jinja, or its file does not exist.
    """
    tokenizer = load_plain_tokenizer(section)
    if section.chat_template is not None:
        tokenizer.chat_template = read_chat_template(section.chat_template)
    elif isinstance(tokenizer.chat_template, str):
        _compile(tokenizer.chat_template, origin="the chat template of the tokenizer")
    add_new_tokens(tokenizer, section.new_tokens)
    return tokenizer


def load_plain_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer as it was published: no new tokens, its own template."""
    from transformers import AutoTokenizer

    revision = section.revision if section.tokenizer is None else None
    name, key = (
        section.tokenizer or section.name_or_path,
        "model.tokenizer" if section.tokenizer else "model.name_or_path",
    )
    folder = locate_model(name, revision, key=key, weights=False, trust_remote_code=section.trust_remote_code)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=section.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise EnvironmentProblem(
            code="M315",
            message=f"no tokenizer can be loaded from {folder}: {_first_line(error)}",
            hint="give `model.tokenizer` a folder or hub id that has tokenizer.json",
        ) from error
    if not section.trust_remote_code:
        # Code that was not run here must not be asked for by the folders we write.
        tokenizer.init_kwargs = {key: value for key, value in tokenizer.init_kwargs.items() if key not in _REMOTE_KEYS}
    return tokenizer


def read_chat_template(value: str) -> str:
    """The Jinja source of `model.chat_template`: inline text, or the content of a `.jinja` file.

    Raises:
        RecipeError: the file does not exist, or the text is not valid Jinja.
    """
    origin = "model.chat_template"
    text = value
    if _looks_like_path(value):
        path = Path(value).expanduser()
        origin = str(path)
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(
                code="M316",
                message=f"`model.chat_template` names a file that cannot be read: {value}",
                hint="give the path of an existing UTF-8 `.jinja` file, or the template itself",
            ) from error
    _compile(text, origin=origin)
    return text


def _looks_like_path(value: str) -> bool:
    return "{" not in value and "\n" not in value


def _compile(text: str, *, origin: str) -> None:
    """Parse without running; a syntax error is reported with its line."""
    from jinja2 import TemplateSyntaxError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    try:
        environment.parse(_GENERATION_TAGS.sub("", text))
    except TemplateSyntaxError as error:
        lines = text.splitlines()
        source = lines[error.lineno - 1] if 0 < error.lineno <= len(lines) else ""
        raise RecipeError(
            code="M316",
            message=f"{origin} is not valid Jinja: line {error.lineno}: {error.message}: {source.strip()[:120]}",
            hint="mend that line of the template",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
