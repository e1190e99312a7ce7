"""Tokenizers of models, loaded when they are first needed and kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from luthier.studio.work import Work

__all__ = ["Tokenizers"]


class Tokenizers:
    """By the `model` section of a recipe."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def get(self, section: Mapping[str, Any]) -> Any:
        """The tokenizer with its template and added tokens.

        Raises:
            Unfinished: it is being loaded.
            LuthierError: it cannot be loaded.
        """
        key = ("tokenizer", json.dumps(section, sort_keys=True))
        return self.work.get(key, lambda: _load(section), what="loading the tokenizer")


def _load(section: Mapping[str, Any]) -> Any:
    from luthier.model.tokenizer import load_tokenizer
    from luthier.recipe.schema import ModelSection

    return load_tokenizer(ModelSection.model_validate(section))
