"""A rule of the user's own: a function in a Python file.

    def keep(row) -> bool                   # or (bool, "reason")

`row` is a dict: `messages` and `tools`, or `prompt` and `completion`, `text`, `segments`; of preferences `chosen` and
`rejected` (each such a dict) and `margin`, or `answer` and `label`; always `kind`, `file`, `line`, `source`. It is a
copy: changing it changes nothing. True keeps the row. It is the user's code and runs with the user's rights; what it
raises or returns wrongly ends the run with the place in the file, and nothing it does becomes a silent False.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from luthier.curate.filters.base import Drop, RowFilter, Verdict
from luthier.curate.filters.parts import as_value
from luthier.data.types import Conversation
from luthier.recipe.online_rules import split_python
from luthier.runtime.errors import LuthierError, Problem, RunFailed
from luthier.runtime.user_code import deepest_line, first_line, load_function

__all__ = ["Own"]

_SHOWN = 200


@dataclass(slots=True)
class Own(RowFilter):
    """Drop rows for which the function says False."""

    spec: str
    function: Callable[[dict[str, Any]], Any]

    @classmethod
    def of(cls, spec: str) -> Own:
        """Load it.

        Raises:
            RecipeError: the file cannot be imported, or has no such function.
        """
        file, name = split_python(spec)
        return cls(spec, load_function(spec, file, name, code="D254", prefix="luthier_filter"))

    def judge(self, row: Conversation) -> Verdict:
        """Call the function.

        Raises:
            RunFailed: it raised, or returned something else than a bool, or a bool and a reason.
        """
        file, name = split_python(self.spec)
        try:
            found = self.function(as_value(row))
        except LuthierError:
            raise
        except Exception as error:
            line, source = deepest_line(error, file)
            message = f"filter `{name}` raised {type(error).__name__} for the row {row.ref}: {error}"
            line = line or first_line(self.function)
            raise RunFailed(
                problems=[Problem(code="D255", message=message, file=file, line=line, source=source)]
            ) from error
        keep, reason = found if isinstance(found, tuple) and len(found) == 2 else (found, "")
        if not isinstance(keep, bool) or not isinstance(reason, str | None):
            message = f"filter `{name}` returned {found!r:.80} for the row {row.ref}"
            hint = "return True or False, or (True or False, a reason)"
            at = first_line(self.function)
            raise RunFailed(problems=[Problem(code="D255", message=message, file=file, line=at, hint=hint)])
        return None if keep else Drop(detail=f"{name}: {' '.join((reason or 'returned False').split())[:_SHOWN]}")
