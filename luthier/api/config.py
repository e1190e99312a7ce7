"""Read `api.yaml`, with what the command line says instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.api.settings import ServiceSettings
from luthier.jobs.settings import load_settings
from luthier.recipe.json_schema import json_schema
from luthier.runtime.errors import EnvironmentProblem, RecipeError

__all__ = ["check_open", "needed_packages", "read_settings", "settings_schema"]

SCHEMA_ID = "luthier-api-1.schema.json"


def read_settings(path: Path | None, *, host: str | None = None, port: int | None = None) -> ServiceSettings:
    """The settings.

    Args:
        path: `api.yaml`; None: all defaults.
        host: Instead of `server.host`.
        port: Instead of `server.port`.

    Raises:
        RecipeError: everything that is wrong with it.
    """
    settings = load_settings(path, ServiceSettings)
    said = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    return settings.model_copy(update={"server": settings.server.model_copy(update=said)})


def settings_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of `api.yaml`, for editors."""
    return json_schema(ServiceSettings, schema_id=SCHEMA_ID, title="Luthier api.yaml")


def check_open(settings: ServiceSettings, *, keys: int) -> None:
    """A server that others can reach needs keys.

    Args:
        settings: Where it listens.
        keys: How many there are.

    Raises:
        RecipeError: A101.
    """
    if not settings.server.loopback and not keys:
        raise RecipeError(
            code="A101", message=f"{settings.server.host} can be reached by others, and there are no keys",
            hint="`luthier api keys new NAME --scope admin` makes one; or leave --host at 127.0.0.1",
        )  # fmt: skip


def needed_packages() -> None:
    """The server's libraries are an extra.

    Raises:
        EnvironmentProblem: A102.
    """
    import importlib.util

    packages = {"starlette": "starlette", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
    missing = [name for module, name in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise EnvironmentProblem(
            code="A102", message=f"the API needs {', '.join(missing)}", hint="pip install 'luthier[api]'"
        )
