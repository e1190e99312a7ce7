"""Optional libraries of the map, imported where they are used; what is missing is one clear error."""

from __future__ import annotations

import importlib
from typing import Any

from luthier.runtime.errors import EnvironmentProblem

__all__ = ["need"]

_INSTALL = {"sklearn": "pip install 'scikit-learn>=1.5'", "umap": "pip install 'umap-learn>=0.5.7'",
            "py3langid": "pip install 'py3langid>=0.3'"}  # fmt: skip


def need(module: str, what: str) -> Any:
    """The module.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        raise EnvironmentProblem(
            code="D280", message=f"{what} needs {top}, which is not installed", hint=_INSTALL[top]
        ) from error
