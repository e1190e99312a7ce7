"""The recipe's `export.push_to_hub`: where the result is published."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.section import Section

__all__ = ["PushSection"]


class PushSection(Section):
    """A repository on the Hugging Face Hub. The token is never written here: `HF_TOKEN`, or `hf auth login`."""

    repo_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")]
    """`owner/name`; made if it does not exist."""
    private: bool = True
    """Only for you and your organisation. `true` refuses a repository that is public already."""
    what: Literal["adapter", "merged", "gguf"] = "merged"
    """`adapter`: what was trained (`final/`); `merged`: the whole model; `gguf`: files for llama.cpp."""
    revision: Annotated[str, Field(min_length=1)] = "main"
    """Branch; made if it does not exist."""
    base_model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")] | None = None
    """Hub id of the base, where the recipe names it by a local folder."""
