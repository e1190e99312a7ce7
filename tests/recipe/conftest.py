"""Fixtures of this folder."""

from tests.recipe.support import work

__all__ = ["work"]
